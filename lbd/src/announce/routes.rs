//! Our host routes in the kernel's table, by netlink.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::TryStreamExt as _;
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType},
    },
};

/// An address may have several routes of ours, which others have added: of another type, or metric.
const TRIES: usize = 16;

/// Why the kernel's routes are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// A route for this address is there that is not ours.
    #[error(
        "table {table} has a route to {address} of another protocol, which is left alone: delete it, or use another table"
    )]
    Foreign {
        /// The address.
        address: IpAddr,
        /// The table.
        table: u32,
    },
    /// There is no netlink socket.
    #[error("open netlink for the announced routes: {0}")]
    Open(#[source] std::io::Error),
    /// Routes of ours for this address come as fast as they are deleted.
    #[error("the route to {address} in table {table} is still there after {TRIES} deletions: something adds it again")]
    Undying {
        /// The address.
        address: IpAddr,
        /// The table.
        table: u32,
    },
    /// Another process announces with this table and protocol.
    #[error(
        "an lbd that runs in this network namespace has protocol {protocol} in table {table}: stop it first, or choose \
         another `protocol` or `table` in [announce]"
    )]
    Claimed {
        /// The table.
        table: u32,
        /// The protocol.
        protocol: u8,
    },
    /// The kernel refused.
    #[error("cannot {operation} table {table}: {source}")]
    Netlink {
        /// What was tried.
        operation: String,
        /// In which table.
        table: u32,
        /// What netlink said.
        source: rtnetlink::Error,
    },
}

/// The routes of one protocol in one table of the network namespace that it was opened in.
#[derive(Clone, Debug)]
pub struct Routes {
    handle: Handle,
    table: u32,
    protocol: u8,
}

impl Routes {
    /// Opens a netlink socket. Must be called inside a tokio runtime; the socket closes when this is dropped.
    ///
    /// # Errors
    /// [`RouteError::Open`].
    pub fn open(table: u32, protocol: u8) -> Result<Self, RouteError> {
        // With strict checks the kernel dumps this table only: a router's main table may hold a million routes.
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check().map_err(RouteError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle, table, protocol })
    }

    /// The addresses that have a route of ours.
    ///
    /// # Errors
    /// The kernel refuses the question.
    pub async fn list(&self) -> Result<BTreeSet<IpAddr>, RouteError> {
        let mut addresses = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            question.header.protocol = self.protocol.into();
            set_table(&mut question, self.table);
            let mut routes = self.handle.route().get(question).execute();
            loop {
                match routes.try_next().await {
                    Ok(Some(route)) => addresses.extend(host(&route).filter(|_| self.is_ours(&route))),
                    Ok(None) => break,
                    Err(rtnetlink::Error::NetlinkError(error)) if is_empty(error.raw_code()) => break,
                    Err(source) => return Err(self.failed("list the routes of", source)),
                }
            }
        }
        Ok(addresses)
    }

    /// Adds a route.
    ///
    /// # Errors
    /// [`RouteError::Foreign`], if the place is taken; or the kernel refuses.
    pub async fn add(&self, address: IpAddr) -> Result<(), RouteError> {
        match self.handle.route().add(self.route(address)).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => {
                // Somebody else may have added it with our protocol number.
                let is_ours = self.list().await?.contains(&address);
                if is_ours { Ok(()) } else { Err(RouteError::Foreign { address, table: self.table }) }
            }
            added => added.map_err(|source| self.failed(format!("add a route to {address} to"), source)),
        }
    }

    /// Deletes the routes of ours for an address, of any type and metric: when this returns the kernel has said that there is
    /// none any more.
    ///
    /// # Errors
    /// The kernel refuses; or [`RouteError::Undying`].
    pub async fn delete(&self, address: IpAddr) -> Result<(), RouteError> {
        // The kernel deletes one that has the message's protocol; these two stand for any (net/ipv4/fib_trie.c).
        let mut route = self.route(address);
        (route.header.kind, route.header.scope) = (RouteType::Unspec, RouteScope::NoWhere);
        for _ in 0..TRIES {
            match self.handle.route().del(route.clone()).execute().await {
                Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ESRCH => return Ok(()),
                deleted => {
                    deleted.map_err(|source| self.failed(format!("delete the route to {address} of"), source))?;
                }
            }
        }
        Err(RouteError::Undying { address, table: self.table })
    }

    fn route(&self, address: IpAddr) -> RouteMessage {
        let mut route = match address {
            IpAddr::V4(address) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build(),
            IpAddr::V6(address) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, 128).build(),
        };
        route.header.protocol = self.protocol.into();
        route.header.kind = RouteType::BlackHole;
        set_table(&mut route, self.table);
        route
    }

    fn is_ours(&self, route: &RouteMessage) -> bool {
        route.header.protocol == RouteProtocol::from(self.protocol) && table_of(route) == self.table
    }

    fn failed(&self, operation: impl Into<String>, source: rtnetlink::Error) -> RouteError {
        RouteError::Netlink { operation: operation.into(), table: self.table, source }
    }
}

/// rtnetlink(7): the header has eight bits for it; a larger number is an attribute.
fn set_table(route: &mut RouteMessage, table: u32) {
    route.header.table = u8::try_from(table).unwrap_or(RouteHeader::RT_TABLE_UNSPEC);
    if u8::try_from(table).is_err() {
        route.attributes.push(RouteAttribute::Table(table));
    }
}

pub(super) fn table_of(route: &RouteMessage) -> u32 {
    let large = |attribute: &RouteAttribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    };
    route.attributes.iter().find_map(large).unwrap_or_else(|| route.header.table.into())
}

/// The address of a host route; not of one for a type of service, which routing daemons do not read either.
pub(super) fn host(route: &RouteMessage) -> Option<IpAddr> {
    if route.header.tos != 0 {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match (attribute, route.header.destination_prefix_length) {
        (RouteAttribute::Destination(RouteAddress::Inet(address)), 32) => Some(IpAddr::V4(*address)),
        (RouteAttribute::Destination(RouteAddress::Inet6(address)), 128) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

/// No route has ever been in that table (ENOENT), or the kernel does not speak that family.
fn is_empty(code: i32) -> bool {
    [libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP].contains(&-code)
}

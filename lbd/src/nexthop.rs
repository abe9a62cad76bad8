//! Where the kernel would send a packet for a real: device, MAC addresses and source, from its own tables.
//!
//! ```text
//! real ── RTM_GETROUTE ──▶ device, gateway ──┬── link ──────▶ our MAC, MTU, up?
//!                                            └── neighbour ─▶ the gateway's MAC
//! ```
//!
//! Nothing here makes the kernel look for a neighbour: the probes travel the same way and keep its entry alive.

mod tables;
#[cfg(test)]
mod tests;
mod watch;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::RouteType;
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::sync::Mutex;

use tables::{Route, Tables};
pub use watch::watch;

/// The next hop of a real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NextHop {
    /// The device packets leave by.
    pub ifindex: u32,
    /// The largest IP packet that leaves whole, in bytes: the smaller of the device's MTU and the route's.
    pub mtu: u32,
    /// The device's own address.
    pub source_mac: [u8; 6],
    /// The address of the gateway, or of the real where it is on the link.
    pub dest_mac: [u8; 6],
    /// The source the kernel would choose on this route, of the real's family.
    pub source: IpAddr,
}

/// Why a real has no next hop at the moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unresolved {
    /// No route leads there.
    #[error("no route to {real}")]
    NoRoute {
        /// The real.
        real: IpAddr,
    },
    /// A route answers for it that forwards nothing: it is our own address, a broadcast, or a blackhole.
    #[error("the route to {real} is of type {kind:?}, which forwards nothing")]
    NotForwarded {
        /// The real.
        real: IpAddr,
        /// What the route does instead.
        kind: RouteType,
    },
    /// The device is down, has no carrier, or has just gone.
    #[error("device {device} towards {real} is down")]
    DeviceDown {
        /// The real.
        real: IpAddr,
        /// The device's name, or its index where it is gone.
        device: String,
    },
    /// The device adds its tag on the way out, where XDP's redirect does not pass.
    #[error("device {device} towards {real} is a VLAN device, which XDP cannot send through: route {real} by another")]
    Vlan {
        /// The real.
        real: IpAddr,
        /// The device's name.
        device: String,
    },
    /// The device has no Ethernet header to fill.
    #[error("device {device} towards {real} is not Ethernet")]
    NotEthernet {
        /// The real.
        real: IpAddr,
        /// The device's name.
        device: String,
    },
    /// The kernel does not know the neighbour yet.
    #[error("neighbour {via} on {device} is not resolved")]
    NeighbourUnresolved {
        /// The gateway, or the real itself.
        via: IpAddr,
        /// The device's name.
        device: String,
    },
    /// The kernel has asked and nobody answered. Whoever had a MAC before keeps it: a wrong one costs no more than none.
    #[error("neighbour {via} on {device} does not answer")]
    NeighbourFailed {
        /// The gateway, or the real itself.
        via: IpAddr,
        /// The device's name.
        device: String,
    },
    /// The kernel could not be asked.
    #[error("cannot read the kernel's {table}: {source}")]
    Netlink {
        /// What was read.
        table: &'static str,
        /// What netlink said.
        source: rtnetlink::Error,
    },
}

/// Asks the kernel for next hops, in the network namespace it was made in.
#[derive(Debug)]
pub struct Resolver {
    handle: Handle,
    dump: Mutex<()>,
}

impl Resolver {
    /// Opens a netlink socket. Must be called inside a tokio runtime; the socket closes when this is dropped.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn new() -> std::io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle, dump: Mutex::new(()) })
    }

    /// The next hop of one real.
    ///
    /// # Errors
    /// [`Unresolved`] says what is missing.
    pub async fn resolve(&self, real: IpAddr) -> Result<NextHop, Unresolved> {
        let tables = self.tables().await?;
        self.resolve_in(&tables, real).await
    }

    /// The next hops of all of them, in the same order, from one reading of the link and neighbour tables.
    pub async fn resolve_all(&self, reals: &[IpAddr]) -> Vec<Result<NextHop, Unresolved>> {
        let tables = match self.tables().await {
            Ok(tables) => tables,
            Err(error) => return vec![Err(error); reals.len()],
        };
        let mut all = Vec::with_capacity(reals.len());
        for &real in reals {
            all.push(self.resolve_in(&tables, real).await);
        }
        all
    }

    async fn resolve_in(&self, tables: &Tables, real: IpAddr) -> Result<NextHop, Unresolved> {
        let route = self.route(real).await?;
        tables.join(real, &route)
    }

    async fn route(&self, real: IpAddr) -> Result<Route, Unresolved> {
        let request = match real {
            IpAddr::V4(real) => RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(real, 32).build(),
            IpAddr::V6(real) => RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(real, 128).build(),
        };
        match self.handle.route().get(request).execute().try_next().await {
            Ok(Some(message)) => Route::read(real, &message),
            Ok(None) => Err(Unresolved::NoRoute { real }),
            Err(rtnetlink::Error::NetlinkError(error)) if no_route(error.raw_code()) => {
                Err(Unresolved::NoRoute { real })
            }
            Err(source) => Err(Unresolved::Netlink { table: "route", source }),
        }
    }

    async fn tables(&self) -> Result<Tables, Unresolved> {
        // A netlink socket carries one dump at a time; the kernel answers a second with EBUSY.
        let _alone = self.dump.lock().await;
        let failed = |table| move |source| Unresolved::Netlink { table, source };
        let mut links = self.handle.link().get().execute();
        let mut tables = Tables::default();
        while let Some(message) = links.try_next().await.map_err(failed("link table"))? {
            tables.add_link(&message);
        }
        let mut neighbours = self.handle.neighbours().get().set_address_family(AddressFamily::Unspec).execute();
        while let Some(message) = neighbours.try_next().await.map_err(failed("neighbour table"))? {
            tables.add_neighbour(&message);
        }
        Ok(tables)
    }
}

/// What `fib_lookup()` answers when no route matches, or one of type unreachable, blackhole (EINVAL) or prohibit (EACCES) does.
fn no_route(code: i32) -> bool {
    [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EINVAL, libc::EACCES].contains(&-code)
}

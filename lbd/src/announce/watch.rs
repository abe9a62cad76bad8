//! Tells of changes to the host routes of one table, whoever makes them.

use std::{future::poll_fn, io, net::IpAddr};

use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        route::{RouteMessage, RouteProtocol},
    },
    sys::{AsyncSocket, SocketAddr, TokioSocket, protocols},
};
use tokio::sync::mpsc;

use super::routes::{host, table_of};

/// A message of a route is far smaller; what is longer is cut and cannot be read.
const LONGEST: usize = 8192;
/// `nlmsghdr`, and where the `rtmsg` behind it has its table: include/uapi/linux/rtnetlink.h.
const TABLE_AT: usize = 16 + 4;
/// `RT_TABLE_COMPAT`: what stands there for a table above 255.
const LARGE_TABLE: u8 = 252;

/// Something has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// A host route was added or replaced, or deleted.
    Route {
        /// Its address.
        address: IpAddr,
        /// It has our protocol.
        ours: bool,
        /// It is there now.
        added: bool,
    },
    /// Changes were lost: look again.
    Lost,
}

/// Watches a table of the network namespace of the calling thread, for routes of this protocol and of others. Must be
/// called inside a tokio runtime. The channel closes only when the kernel takes the socket away.
///
/// # Errors
/// The socket cannot be opened or bound.
pub fn watch(table: u32, protocol: u8) -> io::Result<mpsc::Receiver<Change>> {
    let mut socket = TokioSocket::new(protocols::NETLINK_ROUTE)?;
    let groups = [MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];
    let groups = groups.iter().fold(0, |mask, group| mask | 1 << (*group as u32 - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
    // Who is slow to read overruns the socket, which is told as well.
    let (changes, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        tokio::select! {
            error = listen(&socket, table, protocol, &changes) => {
                tracing::error!(%error, "watching the announced routes ended");
            }
            () = changes.closed() => {}
        }
    });
    Ok(receiver)
}

/// Runs until the socket fails for good; gives the reason.
async fn listen(socket: &TokioSocket, table: u32, protocol: u8, changes: &mpsc::Sender<Change>) -> io::Error {
    let mut buffer = Vec::with_capacity(LONGEST);
    loop {
        buffer.clear();
        let change = match poll_fn(|cx| socket.poll_recv(cx, &mut buffer)).await {
            Ok(()) => read(&buffer, table, protocol),
            // netlink(7): the buffer was full and messages were lost. Reading the error clears it.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Some(Change::Lost),
            Err(error) => return error,
        };
        if let Some(change) = change {
            // Closed: the caller's select ends this task.
            let _ = changes.send(change).await;
        }
    }
}

/// What a message says of a host route of the table. Notifications come one a datagram.
fn read(bytes: &[u8], table: u32, protocol: u8) -> Option<Change> {
    // Most are about other tables: those are not read any further.
    let short = u8::try_from(table).unwrap_or(LARGE_TABLE);
    bytes.get(TABLE_AT).filter(|&&named| named == short)?;
    let (route, added) = match NetlinkMessage::deserialize(bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => (route, true),
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route)) => (route, false),
        _ => return None,
    };
    let is_ours = |route: &RouteMessage| route.header.protocol == RouteProtocol::from(protocol);
    let change = |address| Change::Route { address, ours: is_ours(&route), added };
    host(&route).filter(|_| table_of(&route) == table).map(change)
}

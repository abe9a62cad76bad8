//! One process announces with a protocol number in a table: each of two would delete what the other adds.

use super::RouteError;
use std::{
    io::ErrorKind,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixDatagram},
    },
};

/// A protocol number in a table of the network namespace that it was claimed in, until this is dropped or the process ends.
#[derive(Debug)]
pub struct Claim {
    /// unix(7): an abstract name is the namespace's, has one owner, and goes with it.
    _socket: UnixDatagram,
}

impl Claim {
    /// Claims a pair.
    ///
    /// # Errors
    /// [`RouteError::Claimed`]; or the system refuses a socket.
    pub fn of(table: u32, protocol: u8) -> Result<Self, RouteError> {
        let name = format!("lbd-announce-{table}-{protocol}");
        let bound = SocketAddr::from_abstract_name(name).and_then(|name| UnixDatagram::bind_addr(&name));
        match bound {
            Ok(socket) => Ok(Self { _socket: socket }),
            Err(error) if error.kind() == ErrorKind::AddrInUse => Err(RouteError::Claimed { table, protocol }),
            Err(error) => Err(RouteError::Open(error)),
        }
    }
}

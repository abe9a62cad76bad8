//! Sending: raw sockets with the header included, which leave routing and neighbours to the kernel.

use std::{
    io::{self, IoSlice},
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
};

use nix::sys::socket::{
    ControlMessage, MsgFlags, MultiHeaders, SetSockOpt, SockaddrIn, SockaddrIn6, SockaddrLike, sendmmsg, setsockopt,
    sockopt,
};
use socket2::{Domain, Protocol, Socket, Type};

use crate::batch::{Batch, Outgoing, ProbeId};

/// How many packets go to the kernel in one call.
const BATCH: usize = 128;

/// Bytes that may wait in the socket; blocking when they are exceeded, so that a burst is paced, not lost.
const BUFFER: usize = 4 << 20;

/// A raw socket of each family.
#[derive(Debug)]
pub struct Transport {
    v4: Socket,
    /// Without IPv6 in the kernel: the error number with which it refused.
    v6: Result<Socket, i32>,
}

impl Transport {
    /// Opens the sockets in the caller's network namespace.
    ///
    /// # Errors
    /// Not permitted: `CAP_NET_RAW` is needed.
    pub fn open() -> io::Result<Self> {
        let v6 = match raw(Domain::IPV6, sockopt::Ipv6RecvErr) {
            Ok(socket) => Ok(socket),
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => Err(libc::EAFNOSUPPORT),
            Err(error) => return Err(error),
        };
        Ok(Self { v4: raw(Domain::IPV4, sockopt::Ipv4RecvErr)?, v6 })
    }

    /// Sends all packets, in order. `refused` is told of each that the kernel did not take (its probe; `None` for a RST), and
    /// the error number.
    pub fn send(&self, batch: &Batch, mut refused: impl FnMut(Option<ProbeId>, i32)) {
        let packets: Vec<Outgoing<'_>> = batch.iter().collect();
        for family in packets.chunk_by(|a, b| a.destination.is_ipv4() == b.destination.is_ipv4()) {
            for chunk in family.chunks(BATCH) {
                self.send_chunk(chunk, &mut refused);
            }
        }
    }

    fn send_chunk(&self, chunk: &[Outgoing<'_>], refused: &mut impl FnMut(Option<ProbeId>, i32)) {
        let mut rest = chunk;
        while let Some((first, others)) = rest.split_first() {
            match self.send_some(rest) {
                Ok(sent) => rest = rest.get(sent.max(1)..).unwrap_or_default(),
                Err(nix::Error::EINTR) => {}
                // sendmmsg(2): an error is about the first packet.
                Err(error) => {
                    refused(first.probe, error as i32);
                    rest = others;
                }
            }
        }
    }

    /// Sends some of `packets`, which are of one family; returns how many.
    fn send_some(&self, packets: &[Outgoing<'_>]) -> nix::Result<usize> {
        let v4 = |packet: &Outgoing<'_>| match packet.destination {
            IpAddr::V4(address) => Some(SockaddrIn::from(SocketAddrV4::new(address, 0))),
            IpAddr::V6(_) => None,
        };
        let v6 = |packet: &Outgoing<'_>| match packet.destination {
            IpAddr::V6(address) => Some(SockaddrIn6::from(SocketAddrV6::new(address, 0, 0, 0))),
            IpAddr::V4(_) => None,
        };
        match packets.first().map(|packet| packet.destination) {
            None => Ok(0),
            Some(IpAddr::V4(_)) => send_on(&self.v4, packets, v4),
            Some(IpAddr::V6(_)) => {
                let socket = self.v6.as_ref().map_err(|errno| nix::Error::from_raw(*errno))?;
                send_on(socket, packets, v6)
            }
        }
    }
}

fn raw(domain: Domain, report_drops: impl SetSockOpt<Val = bool>) -> io::Result<Socket> {
    // raw(7): a protocol of IPPROTO_RAW implies IP_HDRINCL. So it does for IPv6 (`inet6_create`).
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    socket.set_send_buffer_size(BUFFER)?;
    // ip(7): without IP_RECVERR, or IPV6_RECVERR, a packet that a queue of ours drops (ENOBUFS) counts as sent. Errors that
    // reals report do not come here: no packet carries this socket's protocol.
    setsockopt(&socket, report_drops, &true)?;
    Ok(socket)
}

fn send_on<S: SockaddrLike + Copy>(
    socket: &impl AsFd,
    packets: &[Outgoing<'_>],
    address: impl Fn(&Outgoing<'_>) -> Option<S>,
) -> nix::Result<usize> {
    let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|packet| [IoSlice::new(packet.bytes)]).collect();
    let addresses: Vec<Option<S>> = packets.iter().map(address).collect();
    let mut headers = MultiHeaders::preallocate(packets.len(), None);
    let none: [ControlMessage<'_>; 0] = [];
    let flags = MsgFlags::empty();
    sendmmsg(socket.as_fd().as_raw_fd(), &mut headers, &slices, &addresses, none, flags).map(Iterator::count)
}

//! Sending: a raw socket with the header included, which leaves routing and neighbours to the kernel.

use std::{
    io::{self, IoSlice},
    net::SocketAddrV4,
    os::fd::AsRawFd,
};

use nix::sys::socket::{ControlMessage, MsgFlags, MultiHeaders, SockaddrIn, sendmmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::batch::{Batch, Outgoing, ProbeId};

/// How many packets go to the kernel in one call.
const BATCH: usize = 128;

/// Bytes that may wait in the socket; blocking when they are exceeded, so that a burst is paced, not lost.
const BUFFER: usize = 4 << 20;

/// A raw socket.
#[derive(Debug)]
pub struct Transport {
    socket: Socket,
}

impl Transport {
    /// Opens the socket in the caller's network namespace.
    ///
    /// # Errors
    /// Not permitted: `CAP_NET_RAW` is needed.
    pub fn open() -> io::Result<Self> {
        // raw(7): a protocol of IPPROTO_RAW implies IP_HDRINCL.
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
        socket.set_send_buffer_size(BUFFER)?;
        // ip(7): without it a packet that a queue of ours drops (ENOBUFS) counts as sent. Errors that reals report do not come
        // here: no packet carries this socket's protocol.
        setsockopt(&socket, sockopt::Ipv4RecvErr, &true)?;
        Ok(Self { socket })
    }

    /// Sends all packets, in order. `refused` is told of each that the kernel did not take (its probe; `None` for a RST), and
    /// the error number.
    pub fn send(&self, batch: &Batch, mut refused: impl FnMut(Option<ProbeId>, i32)) {
        let packets: Vec<Outgoing<'_>> = batch.iter().collect();
        for chunk in packets.chunks(BATCH) {
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
    }

    fn send_some(&self, packets: &[Outgoing<'_>]) -> nix::Result<usize> {
        let slices: Vec<[IoSlice<'_>; 1]> = packets.iter().map(|packet| [IoSlice::new(packet.bytes)]).collect();
        let address = |packet: &Outgoing<'_>| Some(SockaddrIn::from(SocketAddrV4::new(packet.destination, 0)));
        let addresses: Vec<Option<SockaddrIn>> = packets.iter().map(address).collect();
        let mut headers = MultiHeaders::preallocate(packets.len(), None);
        let none: [ControlMessage<'_>; 0] = [];
        let flags = MsgFlags::empty();
        sendmmsg(self.socket.as_raw_fd(), &mut headers, &slices, &addresses, none, flags).map(Iterator::count)
    }
}

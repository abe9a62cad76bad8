//! What the path needs to know of a packet, whatever its family.

use crate::flows::Kind;
use lb_ebpf::{counter::Reason, net};

/// A packet for an address that may be a VIP's. Fields are as they lie in the packet unless they say otherwise.
///
/// Of an ICMP error, addresses, ports and protocol are those of the flow that it is about, in the client's direction.
#[derive(Clone, Copy)]
pub(crate) struct Packet<A> {
    pub(crate) source: A,
    pub(crate) destination: A,
    /// Source port, destination port: the first four bytes of the TCP or UDP header. 0 in a fragment.
    pub(crate) ports: u32,
    pub(crate) protocol: u8,
    /// ToS or traffic class: DSCP and ECN.
    pub(crate) tos: u8,
    /// Whether routers must not fragment it; always so with IPv6.
    pub(crate) dont_fragment: bool,
    pub(crate) is_fragment: bool,
    pub(crate) kind: Kind,
    /// Length from the IP header on, host byte order.
    pub(crate) len: u32,
}

impl<A> Packet<A> {
    #[inline(always)]
    pub(crate) fn destination_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }

    /// What becomes of it if its address is a VIP's and no VIP takes it.
    #[inline(always)]
    pub(crate) fn unmatched(&self) -> Reason {
        if self.kind == Kind::Error {
            Reason::DropIcmp
        } else if self.is_fragment {
            Reason::DropFragment
        } else {
            Reason::DropUnmatched
        }
    }
}

/// A packet that no VIP takes: what becomes of it if its address is a VIP's.
pub(crate) enum Refusal {
    /// An ICMP echo request: it is answered.
    Echo,
    /// It is dropped, or passed where the configuration says so.
    Because(Reason),
}

impl From<Reason> for Refusal {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self::Because(reason)
    }
}

/// Bytes that a TCP or UDP header has at least; `None` for any other protocol.
#[inline(always)]
pub(crate) fn transport_len(protocol: u8) -> Option<usize> {
    match protocol {
        net::TCP => Some(20),
        net::UDP => Some(UDP_LEN),
        _ => None,
    }
}

/// The least that every datagram has.
pub(crate) const UDP_LEN: usize = 8;
/// Place of the flags in a TCP header.
pub(crate) const TCP_FLAGS: usize = 13;

/// Whether these TCP flags begin a connection.
#[inline(always)]
pub(crate) fn is_syn(flags: u8) -> bool {
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    flags & (SYN | ACK) == SYN
}

/// The ports of the flow that an error is about, from those of the VIP's packet that it quotes.
#[inline(always)]
pub(crate) fn reversed(ports: u32) -> u32 {
    ports.rotate_left(16)
}

//! ICMP echo for a VIP, answered here: the VIP is on no interface of this host.

use crate::frame::Frame;
use lb_ebpf::{
    counter::Reason,
    net::{ETH_LEN, IPV4_LEN, checksum_update},
};

const ICMP_AT: usize = ETH_LEN + IPV4_LEN;
const ICMP_LEN: usize = 8;
/// Type 8, code 0 (RFC 792), as they lie in memory.
const ECHO_REQUEST: u16 = u16::from_ne_bytes([8, 0]);
const ECHO_REPLY: u16 = u16::from_ne_bytes([0, 0]);
const REPLY_TTL: u8 = 64;

/// Turns an echo request into its reply; any other ICMP is passed.
///
/// The frame holds a whole ICMP packet in IPv4 without options that is no fragment.
#[inline(always)]
pub(crate) fn answer(frame: Frame) -> Reason {
    if !frame.has(ICMP_AT + ICMP_LEN) {
        return Reason::DropMalformed;
    }
    // SAFETY: Ethernet, IPv4 and ICMP header are there, checked above; so for every access below.
    let kind = unsafe { frame.load::<u16>(ICMP_AT) };
    if kind != ECHO_REQUEST {
        return Reason::PassIcmp;
    }
    // SAFETY: as above. Exchanging the addresses leaves the IPv4 checksum as it is.
    unsafe {
        let (destination, source) = (frame.load::<[u16; 3]>(0), frame.load::<[u16; 3]>(6));
        frame.store(0, source);
        frame.store(6, destination);
        let (source, destination) = (frame.load::<u32>(ETH_LEN + 12), frame.load::<u32>(ETH_LEN + 16));
        frame.store(ETH_LEN + 12, destination);
        frame.store(ETH_LEN + 16, source);

        let ttl = frame.load::<[u8; 2]>(ETH_LEN + 8);
        let new_ttl = [REPLY_TTL, ttl[1]];
        let checksum = frame.load::<u16>(ETH_LEN + 10);
        let (old, new) = (u16::from_ne_bytes(ttl), u16::from_ne_bytes(new_ttl));
        frame.store(ETH_LEN + 8, new_ttl);
        frame.store(ETH_LEN + 10, checksum_update(checksum, old, new));

        let checksum = frame.load::<u16>(ICMP_AT + 2);
        frame.store(ICMP_AT, ECHO_REPLY);
        frame.store(ICMP_AT + 2, checksum_update(checksum, ECHO_REQUEST, ECHO_REPLY));
    }
    Reason::EchoReply
}

//! What the path needs to know of an IPv4 packet that carries TCP or UDP.

use crate::frame::Frame;
use lb_ebpf::{
    counter::Reason,
    net::{ETH_LEN, ICMP, IP_FRAGMENT, IPV4_LEN, TCP, UDP, VERSION_IHL},
};

const TCP_LEN: usize = 20;
const UDP_LEN: usize = 8;
const TCP_FLAGS: usize = 13;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A whole TCP segment or UDP datagram. Fields are as they lie in the packet unless they say otherwise.
pub(crate) struct Datagram {
    pub(crate) source: u32,
    pub(crate) destination: u32,
    /// Source port, destination port: the first four bytes of the TCP or UDP header.
    pub(crate) ports: u32,
    pub(crate) protocol: u8,
    pub(crate) tos: u8,
    pub(crate) id: u16,
    /// DF, and zeros.
    pub(crate) flags: u16,
    /// Length from the IPv4 header on, host byte order.
    pub(crate) total_len: u16,
    /// A TCP SYN without ACK.
    pub(crate) is_syn: bool,
}

impl Datagram {
    #[inline(always)]
    pub(crate) fn destination_port(&self) -> u16 {
        (self.ports >> 16) as u16
    }
}

/// Reads the headers of a frame that has an Ethernet and an IPv4 header.
///
/// `Err` is what becomes of it *if* it is for a VIP's address.
#[inline(always)]
pub(crate) fn read(frame: Frame) -> Result<Datagram, Reason> {
    // SAFETY: the caller has checked that ETH_LEN + IPV4_LEN bytes are there.
    let (version_ihl, tos, total_len, id, flags, protocol, source, destination) = unsafe {
        (
            frame.load::<u8>(ETH_LEN),
            frame.load::<u8>(ETH_LEN + 1),
            u16::from_be(frame.load(ETH_LEN + 2)),
            frame.load::<u16>(ETH_LEN + 4),
            frame.load::<u16>(ETH_LEN + 6),
            frame.load::<u8>(ETH_LEN + 9),
            frame.load::<u32>(ETH_LEN + 12),
            frame.load::<u32>(ETH_LEN + 16),
        )
    };
    if version_ihl != VERSION_IHL {
        let has_options = version_ihl >> 4 == 4 && version_ihl & 0xf > 5;
        return Err(if has_options { Reason::DropOptions } else { Reason::DropMalformed });
    }
    if (total_len as usize) < IPV4_LEN || (ETH_LEN + total_len as usize) as u64 > frame.len() {
        return Err(Reason::DropMalformed);
    }
    if flags & IP_FRAGMENT != 0 {
        return Err(Reason::DropFragment);
    }
    let transport_len = match protocol {
        TCP => TCP_LEN,
        UDP => UDP_LEN,
        ICMP => return Err(Reason::PassIcmp),
        _ => return Err(Reason::DropUnmatched),
    };
    // The second comparison repeats what follows from the first, in the form that the verifier knows.
    if (total_len as usize) < IPV4_LEN + transport_len || !frame.has(ETH_LEN + IPV4_LEN + UDP_LEN) {
        return Err(Reason::DropMalformed);
    }
    // SAFETY: at least UDP_LEN bytes of transport header, checked above.
    let ports = unsafe { frame.load::<u32>(ETH_LEN + IPV4_LEN) };
    let is_syn = protocol == TCP && frame.has(ETH_LEN + IPV4_LEN + TCP_LEN) && {
        // SAFETY: TCP_LEN bytes of transport header, checked just now.
        let flags = unsafe { frame.load::<u8>(ETH_LEN + IPV4_LEN + TCP_FLAGS) };
        flags & (SYN | ACK) == SYN
    };
    Ok(Datagram { source, destination, ports, protocol, tos, id, flags, total_len, is_syn })
}

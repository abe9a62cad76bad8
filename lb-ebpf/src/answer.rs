//! The addresses that the load balancer answers for on a link: ARP requests and neighbour solicitations.

use crate::pod;
use core::net::IpAddr;

/// An address on an interface.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Asked {
    /// The interface that the question comes in by.
    pub ifindex: u32,
    /// The address as it lies in a packet; an IPv4 address is mapped (RFC 4291, 2.5.5.2).
    pub address: [u32; 4],
}

impl Asked {
    /// An address on an interface.
    #[must_use]
    pub fn new(ifindex: u32, address: IpAddr) -> Self {
        let octets = match address {
            IpAddr::V4(address) => return Self::new4(ifindex, u32::from_ne_bytes(address.octets())),
            IpAddr::V6(address) => address.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.as_chunks().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        Self { ifindex, address: words }
    }

    /// An IPv4 address as it lies in a packet.
    #[must_use]
    #[inline(always)]
    pub const fn new4(ifindex: u32, address: u32) -> Self {
        Self { ifindex, address: [0, 0, 0xffff_u32.to_be(), address] }
    }
}

/// What is answered: the interface's Ethernet address as it lies in a packet, and a zero.
pub type Answer = [u16; 4];

/// The answer with this Ethernet address.
#[must_use]
pub const fn answer(mac: [u8; 6]) -> Answer {
    let [first, second, third] = [[mac[0], mac[1]], [mac[2], mac[3]], [mac[4], mac[5]]];
    [u16::from_ne_bytes(first), u16::from_ne_bytes(second), u16::from_ne_bytes(third), 0]
}

/// The most addresses that are answered for, of all interfaces together.
pub const MAX_ANSWERS: usize = 4096;

const _: () = assert!(size_of::<Asked>() == 20);
pod!(Asked);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_address_is_the_one_that_maps_it() {
        let v4 = core::net::Ipv4Addr::new(198, 19, 10, 1);
        assert_eq!(Asked::new(7, v4.into()), Asked::new(7, v4.to_ipv6_mapped().into()));
        assert_ne!(Asked::new(7, v4.into()), Asked::new(8, v4.into()));
    }

    #[test]
    fn answer_lies_in_memory_as_in_a_packet() {
        let bytes = answer([2, 0, 0, 0, 1, 3]).map(u16::to_ne_bytes);
        assert_eq!(bytes.as_flattened(), [2, 0, 0, 0, 1, 3, 0, 0]);
    }
}

//! A real as the packet path sees it: the 34 bytes that are put in front of its packets, ready made.

use crate::{net, pod};
use core::net::Ipv4Addr;

/// Entries of the map of reals; index 0 is never a real.
pub const MAX_REALS: usize = 4096;

/// Established TCP flows may go to it (it is up, or only its port is closed, or it is draining).
pub const SERVES_TCP: u32 = 1;
/// UDP flows that it already has may go to it.
pub const SERVES_UDP: u32 = 2;

/// Outer TTL (RFC 2003 §3.1 leaves it to the encapsulator; 64 is the RFC 1700 default).
const OUTER_TTL: u8 = 64;

/// How to reach a real at layer 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Interface the packet leaves by.
    pub ifindex: u32,
    /// MTU of that interface, bytes of IP packet.
    pub mtu: u16,
    /// MAC address of that interface.
    pub source_mac: [u8; 6],
    /// MAC address of the neighbour.
    pub destination_mac: [u8; 6],
}

/// One real. All zero: an index that is not in use.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RealEntry {
    /// Bytes 0 to 31 of Ethernet and outer IPv4 header, as they lie in memory.
    pub head: [u64; 4],
    /// Bytes 32 and 33.
    pub tail: u16,
    /// Largest outer packet, bytes from the outer IPv4 header; 0 while there is no next hop.
    pub mtu: u16,
    /// Interface the packet leaves by.
    pub ifindex: u32,
    /// Sum of the outer header's 16-bit words with ToS, length, ID, DF and checksum zero, not folded.
    pub header_sum: u32,
    /// [`SERVES_TCP`], [`SERVES_UDP`].
    pub serves: u32,
    reserved: [u64; 2],
}

impl RealEntry {
    /// A real that is encapsulated to with IPIP. Without a next hop its packets are dropped, and counted.
    #[must_use]
    pub fn ipip(source: Ipv4Addr, real: Ipv4Addr, next_hop: Option<&NextHop>, serves: u32) -> Self {
        let mut ip = [0; net::IPV4_LEN];
        ip[0] = net::VERSION_IHL;
        ip[8] = OUTER_TTL;
        ip[9] = net::IPIP;
        ip[12..16].copy_from_slice(&source.octets());
        ip[16..20].copy_from_slice(&real.octets());
        let mut bytes = [0; 34];
        if let Some(hop) = next_hop {
            bytes[0..6].copy_from_slice(&hop.destination_mac);
            bytes[6..12].copy_from_slice(&hop.source_mac);
        }
        bytes[12..14].copy_from_slice(&net::ETHERTYPE_IPV4.to_ne_bytes());
        bytes[14..34].copy_from_slice(&ip);
        let (words, _) = bytes.as_chunks();
        let word = |at: usize| words.get(at).copied().map_or(0, u64::from_ne_bytes);
        Self {
            head: [word(0), word(1), word(2), word(3)],
            tail: u16::from_ne_bytes([bytes[32], bytes[33]]),
            mtu: next_hop.map_or(0, |hop| hop.mtu),
            ifindex: next_hop.map_or(0, |hop| hop.ifindex),
            header_sum: net::sum(&ip),
            serves,
            reserved: [0; 2],
        }
    }

    /// The real's address; `None` for an index that is not in use.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        let [.., high_a, high_b] = self.head[3].to_ne_bytes();
        let [low_a, low_b] = self.tail.to_ne_bytes();
        let address = Ipv4Addr::new(high_a, high_b, low_a, low_b);
        (!address.is_unspecified()).then_some(address)
    }
}

const _: () = assert!(size_of::<RealEntry>() == 64 && core::mem::offset_of!(RealEntry, reserved) == 48);
pod!(RealEntry);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipip_template_holds_the_headers_in_wire_order() {
        let hop =
            NextHop { ifindex: 7, mtu: 1500, source_mac: [2, 0, 0, 0, 0, 1], destination_mac: [2, 0, 0, 0, 0, 2] };
        let (source, address) = (Ipv4Addr::new(198, 18, 221, 11), Ipv4Addr::new(198, 18, 101, 10));
        let entry = RealEntry::ipip(source, address, Some(&hop), SERVES_TCP);
        let bytes: Vec<u8> = entry.head.iter().flat_map(|w| w.to_ne_bytes()).chain(entry.tail.to_ne_bytes()).collect();
        assert_eq!(&bytes[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(&bytes[14..26], [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 4, 0, 0]);
        assert_eq!(&bytes[26..], [198, 18, 221, 11, 198, 18, 101, 10]);
        assert_eq!(entry.address(), Some(address));
        assert_eq!(RealEntry::default().address(), None);
    }
}

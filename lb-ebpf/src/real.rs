//! A real as the packet path sees it: the 34 or 54 bytes that are put in front of its packets, ready made.

use crate::{net, pod, source::OuterSource};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Entries of the map of reals; index 0 is never a real.
pub const MAX_REALS: usize = 4096;

/// Established TCP flows may go to it (it is up, or only its port is closed, or it is draining).
pub const SERVES_TCP: u16 = 1;
/// UDP flows that it already has may go to it.
pub const SERVES_UDP: u16 = 2;

/// Outer TTL and hop limit (RFC 2003 §3.1, RFC 2473 §5.1 leave it to the encapsulator; 64 is the RFC 1700 default).
const OUTER_TTL: u8 = 64;

/// How to reach a real at layer 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Interface the packet leaves by.
    pub ifindex: u32,
    /// MTU of that interface, bytes of IP packet.
    pub device_mtu: u16,
    /// MTU of the path, which routers beyond may have told; at most that of the interface.
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
    /// Bytes 0 to 47 of Ethernet and outer IP header as they lie in memory; with IPv4 the last 14 are zero.
    pub head: [u64; 6],
    /// Bytes 48 to 51. With IPv4, whose headers end before: see [`Self::device_mtu`].
    pub tail: u32,
    /// Bytes 52 and 53. With IPv4, whose headers end before: see [`Self::source_mask`].
    pub end: u16,
    /// Largest outer packet that gets to the real whole, bytes from the outer IP header; 0 while there is no next hop.
    pub mtu: u16,
    /// Interface the packet leaves by.
    pub ifindex: u32,
    /// Sum of an outer IPv4 header's 16-bit words with ToS, length, ID, DF and checksum zero, folded.
    pub header_sum: u16,
    /// [`SERVES_TCP`], [`SERVES_UDP`].
    pub serves: u16,
}

/// Ethernet and IPv6 header.
const HEADERS: usize = net::ETH_LEN + net::IPV6_LEN;

impl RealEntry {
    /// A real that is encapsulated to with IPv4 (RFC 2003). Without a next hop its packets are dropped, and counted.
    #[must_use]
    pub fn ipip(source: impl Into<OuterSource>, real: Ipv4Addr, next_hop: Option<&NextHop>, serves: u16) -> Self {
        let source = source.into();
        let mut bytes = ethernet(next_hop, net::ETHERTYPE_IPV4);
        bytes[14] = net::VERSION_IHL;
        bytes[22] = OUTER_TTL;
        bytes[23] = net::IPIP;
        bytes[26..30].copy_from_slice(&source.first().octets());
        bytes[30..34].copy_from_slice(&real.octets());
        let header_sum = net::fold(net::sum(&bytes[14..34]));
        let [_, _, high, low] = source.host_mask().to_be_bytes();
        let tail = next_hop.map_or(0, |hop| hop.device_mtu.into());
        Self { header_sum, end: u16::from_ne_bytes([high, low]), tail, ..Self::of(&bytes, next_hop, serves) }
    }

    /// A real that is encapsulated to with IPv6 (RFC 2473). Without a next hop its packets are dropped, and counted.
    /// Version, traffic class, flow label and next header are patched in, as they vary with the packet.
    #[must_use]
    pub fn ip6(source: Ipv6Addr, real: Ipv6Addr, next_hop: Option<&NextHop>, serves: u16) -> Self {
        let mut bytes = ethernet(next_hop, net::ETHERTYPE_IPV6);
        bytes[21] = OUTER_TTL;
        bytes[22..38].copy_from_slice(&source.octets());
        bytes[38..54].copy_from_slice(&real.octets());
        Self::of(&bytes, next_hop, serves)
    }

    fn of(bytes: &[u8; HEADERS], next_hop: Option<&NextHop>, serves: u16) -> Self {
        let mut head = [0; 6];
        let (words, rest) = bytes.as_chunks();
        for (word, bytes) in head.iter_mut().zip(words) {
            *word = u64::from_ne_bytes(*bytes);
        }
        Self {
            head,
            tail: rest.first_chunk().map_or(0, |bytes| u32::from_ne_bytes(*bytes)),
            end: rest.last_chunk().map_or(0, |bytes| u16::from_ne_bytes(*bytes)),
            mtu: next_hop.map_or(0, |hop| hop.mtu),
            ifindex: next_hop.map_or(0, |hop| hop.ifindex),
            header_sum: 0,
            serves,
        }
    }

    /// With IPv4: the bits of the source's last two bytes that the flow hash sets, as they lie in the packet. They are
    /// zero in the template.
    #[must_use]
    #[inline(always)]
    pub const fn source_mask(&self) -> u16 {
        self.end
    }

    /// With IPv4: the largest outer packet that leaves this host, which routers beyond may fragment unless DF is set.
    #[must_use]
    #[inline(always)]
    pub const fn device_mtu(&self) -> u32 {
        self.tail
    }

    /// Whether the outer header is IPv6's.
    #[must_use]
    #[inline(always)]
    pub const fn is_ip6(&self) -> bool {
        // The EtherType, bytes 12 and 13, loaded natively: little endian, as the packet path's target is.
        (self.head[1] >> 32) & 0xffff == net::ETHERTYPE_IPV6 as u64
    }

    /// The real's address; `None` for an index that is not in use.
    #[must_use]
    pub fn address(&self) -> Option<IpAddr> {
        let mut bytes = [0; HEADERS];
        let words = self.head.iter().flat_map(|word| word.to_ne_bytes());
        let ends = self.tail.to_ne_bytes().into_iter().chain(self.end.to_ne_bytes());
        for (byte, value) in bytes.iter_mut().zip(words.chain(ends)) {
            *byte = value;
        }
        let address = if self.is_ip6() {
            IpAddr::V6(Ipv6Addr::from(*bytes.last_chunk::<16>()?))
        } else {
            IpAddr::V4(Ipv4Addr::from(*bytes[..34].last_chunk::<4>()?))
        };
        (!address.is_unspecified()).then_some(address)
    }
}

fn ethernet(next_hop: Option<&NextHop>, ethertype: u16) -> [u8; HEADERS] {
    let mut bytes = [0; HEADERS];
    if let Some(hop) = next_hop {
        bytes[0..6].copy_from_slice(&hop.destination_mac);
        bytes[6..12].copy_from_slice(&hop.source_mac);
    }
    bytes[12..14].copy_from_slice(&ethertype.to_ne_bytes());
    bytes
}

const _: () = assert!(size_of::<RealEntry>() == 64 && core::mem::offset_of!(RealEntry, serves) == 62);
pod!(RealEntry);

#[cfg(test)]
mod tests {
    use super::*;

    const HOP: NextHop = NextHop {
        ifindex: 7,
        device_mtu: 1500,
        mtu: 1500,
        source_mac: [2, 0, 0, 0, 0, 1],
        destination_mac: [2, 0, 0, 0, 0, 2],
    };

    fn bytes(entry: &RealEntry) -> Vec<u8> {
        let head = entry.head.iter().flat_map(|word| word.to_ne_bytes());
        head.chain(entry.tail.to_ne_bytes()).chain(entry.end.to_ne_bytes()).collect()
    }

    #[test]
    fn ipip_template_holds_the_headers_in_wire_order() {
        let (source, address) = (Ipv4Addr::new(198, 18, 221, 11), Ipv4Addr::new(198, 18, 101, 10));
        let entry = RealEntry::ipip(source, address, Some(&HOP), SERVES_TCP);
        let bytes = bytes(&entry);
        assert_eq!(&bytes[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(&bytes[14..26], [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 4, 0, 0]);
        assert_eq!(&bytes[26..34], [198, 18, 221, 11, 198, 18, 101, 10]);
        assert_eq!(entry.header_sum, net::fold(net::sum(&bytes[14..34])));
        assert_eq!((entry.address(), entry.is_ip6()), (Some(address.into()), false));
        assert_eq!(entry.source_mask(), 0);
        assert_eq!(RealEntry::default().address(), None);
    }

    #[test]
    fn ipip_template_with_a_prefix_holds_its_first_address_and_what_varies() {
        let address = Ipv4Addr::new(198, 18, 101, 10);
        for (prefix, first, mask) in
            [("198.18.221.16/28", [198, 18, 221, 16], [0, 15]), ("198.18.220.0/23", [198, 18, 220, 0], [1, 255])]
        {
            let entry = RealEntry::ipip(prefix.parse::<OuterSource>().unwrap(), address, Some(&HOP), SERVES_TCP);
            assert_eq!(bytes(&entry)[26..30], first);
            assert_eq!(entry.source_mask().to_ne_bytes(), mask);
            assert_eq!(entry.header_sum, net::fold(net::sum(&bytes(&entry)[14..34])));
            assert_eq!(entry.address(), Some(address.into()));
        }
    }

    #[test]
    fn ip6_template_holds_the_headers_in_wire_order() {
        let source: Ipv6Addr = "2001:db8::11".parse().unwrap();
        let address: Ipv6Addr = "2001:db8:101:2:3:4:5:10".parse().unwrap();
        let entry = RealEntry::ip6(source, address, Some(&HOP), SERVES_TCP);
        let bytes = bytes(&entry);
        assert_eq!(&bytes[..14], [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd]);
        assert_eq!(&bytes[14..22], [0, 0, 0, 0, 0, 0, 0, 64]);
        assert_eq!(&bytes[22..], [source.octets(), address.octets()].concat());
        assert_eq!((entry.address(), entry.is_ip6()), (Some(address.into()), true));
    }
}

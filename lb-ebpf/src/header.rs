//! The headers that the real's programs read: IPv4, IPv6 and its extension headers, as they are on the wire.

use crate::net::{IP6, IPIP, IPV6_LEN};

/// An IPv4 header without options, as it is on the wire (RFC 791 section 3.1).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version (4) and header length in 32-bit words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length of header and payload, octets, network byte order.
    pub total_length: [u8; 2],
    /// Identification.
    pub id: [u8; 2],
    /// Flags and fragment offset, network byte order.
    pub fragment: [u8; 2],
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Header checksum.
    pub checksum: [u8; 2],
    /// Source address, network byte order.
    pub source: [u8; 4],
    /// Destination address, network byte order.
    pub destination: [u8; 4],
}

const _: () = assert!(size_of::<Ipv4Header>() == 20);

impl Ipv4Header {
    /// Header length in octets; below 20 is malformed.
    #[must_use]
    #[inline]
    pub const fn header_length(&self) -> u32 {
        (self.version_ihl & 0x0f) as u32 * 4
    }

    /// Length of header and payload, octets.
    #[must_use]
    #[inline]
    pub const fn total_length(&self) -> u32 {
        u16::from_be_bytes(self.total_length) as u32
    }

    /// Whether the packet is a fragment: "more fragments" is set or the offset is not zero.
    #[must_use]
    #[inline]
    pub const fn is_fragment(&self) -> bool {
        u16::from_be_bytes(self.fragment) & 0x3fff != 0
    }

    /// Whether this can be the header of a packet carried in `room` octets, itself no tunnel.
    #[must_use]
    #[inline]
    pub const fn is_plausible_inner(&self, room: u32) -> bool {
        self.version_ihl >> 4 == 4
            && self.header_length() >= 20
            && self.total_length() >= self.header_length()
            && self.total_length() <= room
            && !is_tunnel(self.protocol)
    }
}

/// An IPv6 header, as it is on the wire (RFC 8200 section 3).
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version (6), traffic class, flow label.
    pub version_class_flow: [u8; 4],
    /// Length of what follows this header, octets, network byte order.
    pub payload_length: [u8; 2],
    /// Protocol of the payload, or of the first extension header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address, network byte order.
    pub source: [u8; 16],
    /// Destination address, network byte order.
    pub destination: [u8; 16],
}

const _: () = assert!(size_of::<Ipv6Header>() == IPV6_LEN);

impl Ipv6Header {
    const LENGTH: u32 = 40;

    /// Length of header and payload, octets. A jumbogram's (RFC 2675) reads as 40.
    #[must_use]
    #[inline]
    pub const fn total_length(&self) -> u32 {
        u16::from_be_bytes(self.payload_length) as u32 + Self::LENGTH
    }

    /// Whether this can be the header of a packet carried in `room` octets, itself no tunnel.
    #[must_use]
    #[inline]
    pub const fn is_plausible_inner(&self, room: u32) -> bool {
        self.version_class_flow[0] >> 4 == 6 && self.total_length() <= room && !is_tunnel(self.next_header)
    }
}

/// What an IPv6 extension header says of its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extension {
    /// So many octets; the next header follows.
    Octets(u32),
    /// A fragment header: the next header follows in the first fragment only.
    Fragment,
}

impl Extension {
    /// The fixed part that every extension header has: next header, length, six octets more.
    pub const FIXED: u32 = 8;
    const HOP_BY_HOP: u8 = 0;
    const ROUTING: u8 = 43;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const DESTINATION: u8 = 60;
    const MOBILITY: u8 = 135;
    const HIP: u8 = 139;
    const SHIM6: u8 = 140;

    /// Of the header of this protocol number, whose second octet is `length`. `None`: no extension header, or one that
    /// hides what follows (ESP).
    #[must_use]
    #[inline(always)]
    pub const fn of(protocol: u8, length: u8) -> Option<Self> {
        match protocol {
            Self::HOP_BY_HOP | Self::ROUTING | Self::DESTINATION | Self::MOBILITY | Self::HIP | Self::SHIM6 => {
                // RFC 6564 section 4: in units of 8 octets, the first 8 not counted.
                Some(Self::Octets((length as u32 + 1) * 8))
            }
            // RFC 4302 section 2.2: in units of 4 octets, less 2.
            Self::AUTHENTICATION => Some(Self::Octets((length as u32 + 2) * 4)),
            Self::FRAGMENT => Some(Self::Fragment),
            _ => None,
        }
    }
}

/// Whether the protocol number is that of a packet in a packet: IPv4 (RFC 2003) or IPv6 (RFC 2473).
#[must_use]
#[inline(always)]
pub const fn is_tunnel(protocol: u8) -> bool {
    matches!(protocol, IPIP | IP6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner() -> Ipv4Header {
        Ipv4Header {
            version_ihl: 0x45,
            tos: 0,
            total_length: [0, 40],
            id: [0; 2],
            fragment: [0x40, 0],
            ttl: 64,
            protocol: 6,
            checksum: [0; 2],
            source: [198, 18, 0, 1],
            destination: [198, 19, 10, 1],
        }
    }

    #[test]
    fn header_dont_fragment_is_no_fragment() {
        assert!(!inner().is_fragment());
        assert!(Ipv4Header { fragment: [0x20, 0], ..inner() }.is_fragment());
        assert!(Ipv4Header { fragment: [0, 1], ..inner() }.is_fragment());
    }

    #[test]
    fn inner_within_the_room_is_plausible() {
        assert!(inner().is_plausible_inner(40));
        assert!(!inner().is_plausible_inner(39), "longer than what carried it");
    }

    #[test]
    fn inner_hostile_is_not_plausible() {
        for hostile in [
            Ipv4Header { version_ihl: 0x65, ..inner() },
            Ipv4Header { version_ihl: 0x44, ..inner() },
            Ipv4Header { version_ihl: 0x4f, ..inner() },
            Ipv4Header { total_length: [0, 19], ..inner() },
            Ipv4Header { protocol: IPIP, ..inner() },
            Ipv4Header { protocol: IP6, ..inner() },
        ] {
            assert!(!hostile.is_plausible_inner(40), "{hostile:?}");
        }
    }

    fn inner6() -> Ipv6Header {
        Ipv6Header {
            version_class_flow: [0x60, 0, 0, 0],
            payload_length: [0, 20],
            next_header: 6,
            hop_limit: 64,
            source: [0xfd; 16],
            destination: [0xfe; 16],
        }
    }

    #[test]
    fn inner6_within_the_room_is_plausible() {
        assert!(inner6().is_plausible_inner(60));
        assert!(!inner6().is_plausible_inner(59), "longer than what carried it");
    }

    #[test]
    fn inner6_hostile_is_not_plausible() {
        for hostile in [
            Ipv6Header { version_class_flow: [0x45, 0, 0, 0], ..inner6() },
            Ipv6Header { payload_length: [0xff, 0xff], ..inner6() },
            Ipv6Header { next_header: IPIP, ..inner6() },
            Ipv6Header { next_header: IP6, ..inner6() },
        ] {
            assert!(!hostile.is_plausible_inner(60), "{hostile:?}");
        }
    }

    #[test]
    fn extension_lengths_are_in_their_own_units() {
        assert_eq!(Extension::of(60, 0), Some(Extension::Octets(8)));
        assert_eq!(Extension::of(0, 255), Some(Extension::Octets(2048)));
        assert_eq!(Extension::of(51, 4), Some(Extension::Octets(24)));
        assert_eq!(Extension::of(44, 9), Some(Extension::Fragment));
        for none in [4, 6, 17, 41, 50, 58, 59] {
            assert_eq!(Extension::of(none, 0), None, "{none}");
        }
    }
}

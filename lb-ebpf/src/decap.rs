//! What the real's decapsulator (`src/bin/decap.rs`) and `realsrv-setup` agree on.
//!
//! | map         | key                                    | value                                  |
//! |-------------|----------------------------------------|----------------------------------------|
//! | `ADDRESSES` | IPv4 address, network byte order       | [`ROLE_HOST`] or [`ROLE_VIP`]          |
//! | `SOURCES`   | prefix of allowed outer sources        | 1 (`0.0.0.0/0`: anybody may tunnel)    |
//! | `MSS`       | interface index                        | largest MSS a VIP may announce there   |
//! | `COUNTERS`  | [`Counter`] as index                   | packets, one `u64` a CPU               |

/// Value in `ADDRESSES`: an address of the host itself. Tunnels end at these, and the tunnelled packet may be for one.
pub const ROLE_HOST: u32 = 1;
/// Value in `ADDRESSES`: a VIP. The tunnelled packet may be for one; a tunnel never ends at one.
pub const ROLE_VIP: u32 = 2;

/// Capacity of `ADDRESSES`.
pub const MAX_ADDRESSES: u32 = 4096;
/// Capacity of `SOURCES`.
pub const MAX_SOURCES: u32 = 1024;
/// Capacity of `MSS`.
pub const MAX_DEVICES: u32 = 1024;

/// What happened to a packet that concerned the programs: the index into `COUNTERS`.
///
/// [`Counter::BadSource`] drops the packet: a kernel tunnel would take it. All but that, the first and the last leave it as
/// it was: without a kernel tunnel the stack answers it with ICMP protocol unreachable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// The outer header was removed.
    Decapsulated = 0,
    /// The tunnelled packet is neither for a VIP nor for the host.
    NotOurs = 1,
    /// The outer source is not one of the load balancers.
    BadSource = 2,
    /// A fragment of a tunnel packet: the sender's MTU is too large for the path.
    Fragment = 3,
    /// Outer options, an inner header that cannot be, or a tunnel within the tunnel.
    Malformed = 4,
    /// The kernel refused to remove the header.
    Failed = 5,
    /// The MSS option of a VIP's SYN was lowered.
    MssClamped = 6,
}

impl Counter {
    /// How many there are.
    pub const COUNT: u32 = 7;
    /// Every counter, in index order.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::Decapsulated,
        Self::NotOurs,
        Self::BadSource,
        Self::Fragment,
        Self::Malformed,
        Self::Failed,
        Self::MssClamped,
    ];

    /// The name in metrics and JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decapsulated => "decapsulated",
            Self::NotOurs => "not_ours",
            Self::BadSource => "bad_source",
            Self::Fragment => "fragment",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
            Self::MssClamped => "mss_clamped",
        }
    }
}

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
    /// IP in IP (RFC 2003).
    pub const IPIP: u8 = 4;
    /// TCP.
    pub const TCP: u8 = 6;
    /// IPv6 in IPv4 (RFC 4213).
    pub const IPV6: u8 = 41;

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
            && self.protocol != Self::IPIP
            && self.protocol != Self::IPV6
    }
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
    fn counter_index_is_its_place_in_all() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(index, counter as usize);
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
            Ipv4Header { protocol: Ipv4Header::IPIP, ..inner() },
            Ipv4Header { protocol: Ipv4Header::IPV6, ..inner() },
        ] {
            assert!(!hostile.is_plausible_inner(40), "{hostile:?}");
        }
    }
}

//! What the real's decapsulator (`src/bin/decap.rs`) and `realsrv-setup` agree on.
//!
//! | map         | key                                          | value                                             |
//! |-------------|----------------------------------------------|---------------------------------------------------|
//! | `ADDRESSES` | [`Address`]                                  | [`ROLE_HOST`] or [`ROLE_VIP`]                     |
//! | `SOURCES`   | prefix of allowed outer sources: [`Address`] | 1 (length 0 in both families: anybody may tunnel) |
//! | `MSS`       | interface index                              | [`MssLimits`]                                     |
//! | `COUNTERS`  | [`Counter`] as index                         | packets, one `u64` a CPU                          |

use core::net::IpAddr;

use crate::pod;

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

/// An address of either family. The families share no prefix: `::/0` is every IPv6 address and no other.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// 4 or 6.
    family: u32,
    /// As it lies in a packet; of an IPv4 address the first word, the others are zero.
    words: [u32; 4],
}

const _: () = assert!(size_of::<Address>() == 20);

impl Address {
    /// Bits before those of the address itself, in the length of a prefix.
    pub const FAMILY_BITS: u32 = 32;

    /// Of the octets of an IPv4 packet.
    #[must_use]
    #[inline(always)]
    pub const fn ipv4(octets: [u8; 4]) -> Self {
        Self { family: 4, words: [u32::from_ne_bytes(octets), 0, 0, 0] }
    }

    /// Of the octets of an IPv6 packet.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "each word is a part of the address")]
    pub const fn ipv6(octets: [u8; 16]) -> Self {
        let whole = u128::from_le_bytes(octets);
        let words = [whole as u32, (whole >> 32) as u32, (whole >> 64) as u32, (whole >> 96) as u32];
        let [first, second, third, fourth] = words;
        Self { family: 6, words: [first.to_le(), second.to_le(), third.to_le(), fourth.to_le()] }
    }

    /// `None`: not a family that there is.
    #[must_use]
    pub fn to_ip(self) -> Option<IpAddr> {
        let [first, second, third, fourth] = self.words.map(u32::to_ne_bytes);
        match self.family {
            4 => Some(first.into()),
            6 => {
                let mut octets = [0; 16];
                let words = octets.chunks_exact_mut(4).zip([first, second, third, fourth]);
                words.for_each(|(place, word)| place.copy_from_slice(&word));
                Some(octets.into())
            }
            _ => None,
        }
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::ipv4(address.octets()),
            IpAddr::V6(address) => Self::ipv6(address.octets()),
        }
    }
}

/// The largest MSS that VIPs may announce on a device, octets, by the VIP's family; 0: any.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MssLimits {
    /// IPv4 VIPs.
    pub ipv4: u16,
    /// IPv6 VIPs.
    pub ipv6: u16,
}

const _: () = assert!(size_of::<MssLimits>() == 4);
pod!(Address, MssLimits);

/// What happened to a packet that concerned the programs: the index into `COUNTERS`.
///
/// [`Counter::BadSource`] drops the packet, which a kernel tunnel would take, and so does [`Counter::Failed`], since a
/// part of its header may be gone, or RFC 6040 says so. All but these, the first and the last leave it as it was: without a kernel tunnel
/// the stack answers it with ICMP protocol unreachable, or ICMPv6 parameter problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// The outer header was removed.
    Decapsulated = 0,
    /// The tunnelled packet is neither for a VIP nor for the host.
    NotOurs = 1,
    /// The outer source is not one of the load balancers.
    BadSource = 2,
    /// A fragment of a tunnel packet: the sender's MTU is too large for the path. The stack puts it together again, but
    /// a whole packet does not pass the program.
    Fragment = 3,
    /// Outer options or extension headers, an inner header that cannot be, or a tunnel within the tunnel.
    Malformed = 4,
    /// The kernel refused to remove the header, or it said Congestion Experienced around a packet that is not
    /// ECN-capable (RFC 6040 section 4.2): dropped.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_index_is_its_place_in_all() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(index, counter as usize);
        }
    }

    #[test]
    fn address_is_the_octets_of_the_packet_and_comes_back() {
        for text in ["198.18.0.1", "fd00:1:2:3:4:5:6:7", "::", "0.0.0.0", "::ffff:198.18.0.1"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(Address::from(address).to_ip(), Some(address));
        }
        assert_eq!(Address::ipv6([0xfd; 16]).words[3].to_ne_bytes(), [0xfd; 4]);
        assert_eq!(Address { family: 0, words: [0; 4] }.to_ip(), None);
    }

    #[test]
    fn addresses_of_different_families_differ_within_the_family_bits() {
        let [ipv4, ipv6] = [Address::ipv4([0; 4]), Address::ipv6([0; 16])];
        assert_ne!(ipv4.family, ipv6.family);
        assert_eq!(size_of_val(&ipv4.family) * 8, Address::FAMILY_BITS as usize);
    }
}

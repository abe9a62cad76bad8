//! Header constants and the Internet checksum (RFC 1071, RFC 1624).
//!
//! Sums are taken over 16-bit words *as they lie in memory*: the one's complement sum is independent
//! of byte order (RFC 1071 §2(B)), so a sum of native words, stored natively, is right on the wire.

/// Length of an Ethernet header without VLAN tags, bytes.
pub const ETH_LEN: usize = 14;
/// Length of an IPv4 header without options, bytes.
pub const IPV4_LEN: usize = 20;
/// EtherType of IPv4, in network byte order as loaded from memory.
pub const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
/// Length of an IPv6 header without extension headers, bytes.
pub const IPV6_LEN: usize = 40;
/// EtherType of ARP, in network byte order as loaded from memory.
pub const ETHERTYPE_ARP: u16 = 0x0806_u16.to_be();
/// EtherType of IPv6, in network byte order as loaded from memory.
pub const ETHERTYPE_IPV6: u16 = 0x86dd_u16.to_be();
/// EtherType of a VLAN tag (IEEE 802.1Q), in network byte order as loaded from memory.
pub const ETHERTYPE_VLAN: u16 = 0x8100_u16.to_be();
/// EtherType of a service VLAN tag (IEEE 802.1ad), in network byte order as loaded from memory.
pub const ETHERTYPE_SERVICE_VLAN: u16 = 0x88a8_u16.to_be();
/// First byte of an IPv4 header without options: version 4, five 32-bit words.
pub const VERSION_IHL: u8 = 0x45;
/// IPv4 "don't fragment", in network byte order as loaded from memory.
pub const IP_DF: u16 = 0x4000_u16.to_be();
/// IPv4 "more fragments" and the fragment offset, in network byte order as loaded from memory.
pub const IP_FRAGMENT: u16 = 0x3fff_u16.to_be();
/// Length of an ICMP or ICMPv6 header, bytes.
pub const ICMP_LEN: usize = 8;
/// Protocol number of ICMP.
pub const ICMP: u8 = 1;
/// Protocol number of IPv4 in IPv4 (RFC 2003).
pub const IPIP: u8 = 4;
/// Protocol number of TCP.
pub const TCP: u8 = 6;
/// Protocol number of UDP.
pub const UDP: u8 = 17;
/// Protocol number of IPv6 in IPv6 (RFC 2473).
pub const IP6: u8 = 41;
/// Protocol number of ICMP for IPv6 (RFC 4443).
pub const ICMPV6: u8 = 58;

/// Folds a sum of 16-bit words into 16 bits with end-around carry; right for any 32-bit sum.
#[must_use]
#[inline(always)]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    #[expect(clippy::cast_possible_truncation, reason = "two folds leave at most 16 bits")]
    {
        sum as u16
    }
}

/// The checksum after one 16-bit word of the covered data changed from `old` to `new`:
/// RFC 1624 equation 3, `HC' = ~(~HC + ~m + m')`. All words as they lie in memory.
#[must_use]
#[inline(always)]
pub const fn checksum_update(checksum: u16, old: u16, new: u16) -> u16 {
    !fold((!checksum) as u32 + (!old) as u32 + new as u32)
}

/// The sum of the 16-bit words of `bytes` (an odd last byte is padded with zero), not folded.
/// Enough for 64 KiB: the sum of 32,768 words fits in 32 bits.
#[must_use]
pub fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks(2).fold(0, |sum, pair| match *pair {
        [a, b] => sum + u32::from(u16::from_ne_bytes([a, b])),
        [a] => sum + u32::from(u16::from_ne_bytes([a, 0])),
        _ => sum,
    })
}

/// The Internet checksum of `bytes` whose checksum field is zero.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    !fold(sum(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn checksum_of_rfc1071_example_matches() {
        // RFC 1071 §3: the words 0001 f203 f4f5 f6f7 sum to ddf2.
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(u16::from_be(fold(sum(&bytes))), 0xddf2);
    }

    proptest! {
        #[test]
        fn checksum_update_equals_recomputation(mut bytes in prop::collection::vec(any::<u8>(), 8..64), new: u16) {
            bytes.truncate(bytes.len() & !1);
            // The bytes 2..4 are the checksum; it is never 0 in a header that has a non-zero word.
            bytes[0] = 0x45;
            bytes[2..4].fill(0);
            let before = checksum(&bytes);
            let old = u16::from_ne_bytes([bytes[4], bytes[5]]);
            bytes[4..6].copy_from_slice(&new.to_ne_bytes());
            prop_assert_eq!(checksum_update(before, old, new), checksum(&bytes));
        }
    }
}

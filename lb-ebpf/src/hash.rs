//! The flow hash: keyed multilinear hashing of 32-bit words, finished by a multiply-xorshift.
//!
//! Multilinear hashing over 64-bit keys is strongly universal in its high bits (Lemire and Kaser,
//! "Strongly universal string hashing is fast", 2014): without the key nobody can aim flows at one slot.
//! It costs a multiplication a word where SipHash would need rotations, which BPF has not.

/// Words of the key: one to begin with, one each for ports and protocol, and one for each word of two IPv6 addresses.
const WORDS: usize = 3 + 2 * 4;

/// The key: one 64-bit word more than a flow has 32-bit words at most. Derived from the node's seed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKey(pub [u64; WORDS]);

impl HashKey {
    /// Expands a 128-bit seed with SplitMix64 (Steele, Lea and Flood, 2014), one stream from each half.
    #[must_use]
    pub fn from_seed(seed: [u8; 16]) -> Self {
        let seed = u128::from_le_bytes(seed);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the seed")]
        let (mut low, mut high) = (seed as u64, (seed >> 64) as u64);
        Self([(); WORDS].map(|()| splitmix64(&mut low) ^ splitmix64(&mut high).rotate_left(32)))
    }
}

/// The next value of a SplitMix64 generator.
pub const fn splitmix64(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// An address as it lies in a packet: network byte order, loaded natively.
pub trait Address: Copy + PartialEq {
    /// The sum of the products of two addresses' words and the key's.
    #[must_use]
    fn products(source: Self, destination: Self, key: &HashKey) -> u64;
}

/// IPv4.
impl Address for u32 {
    #[inline(always)]
    fn products(source: Self, destination: Self, key: &HashKey) -> u64 {
        let [_, _, _, k3, k4, ..] = key.0;
        k3.wrapping_mul(u64::from(source)).wrapping_add(k4.wrapping_mul(u64::from(destination)))
    }
}

/// IPv6.
impl Address for [u32; 4] {
    #[inline(always)]
    fn products(source: Self, destination: Self, key: &HashKey) -> u64 {
        let [_, _, _, k3, k4, k5, k6, k7, k8, k9, k10] = key.0;
        let product = |keys: [u64; 4], [a, b, c, d]: Self| {
            let [ka, kb, kc, kd] = keys;
            let (a, b) = (ka.wrapping_mul(u64::from(a)), kb.wrapping_mul(u64::from(b)));
            let (c, d) = (kc.wrapping_mul(u64::from(c)), kd.wrapping_mul(u64::from(d)));
            a.wrapping_add(b).wrapping_add(c).wrapping_add(d)
        };
        product([k3, k4, k5, k6], source).wrapping_add(product([k7, k8, k9, k10], destination))
    }
}

/// The hash of a flow. Addresses and ports as they lie in the packet (network byte order, loaded
/// natively); `ports` is the first four bytes of the TCP or UDP header. The high bits are the best ones.
#[must_use]
#[inline(always)]
pub fn flow_hash<A: Address>(key: &HashKey, source: A, destination: A, ports: u32, protocol: u8) -> u64 {
    let [k0, k1, k2, ..] = key.0;
    let sum = k0
        .wrapping_add(k1.wrapping_mul(u64::from(ports)))
        .wrapping_add(k2.wrapping_mul(u64::from(protocol)))
        .wrapping_add(A::products(source, destination, key));
    (sum ^ (sum >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn flow_hash_changes_with_every_word_of_the_flow(
            seed: [u8; 16], flow: ([u32; 4], [u32; 4], u32, u8), word in 0..10_usize, bit in 0..8_u32
        ) {
            let key = HashKey::from_seed(seed);
            let mut other = flow;
            match word {
                0..4 => other.0[word] ^= 1 << bit,
                4..8 => other.1[word - 4] ^= 1 << bit,
                8 => other.2 ^= 1 << bit,
                _ => other.3 ^= 1 << bit,
            }
            let hash = |(source, destination, ports, protocol)| flow_hash(&key, source, destination, ports, protocol);
            prop_assert_ne!(hash(flow), hash(other));
        }
    }
}

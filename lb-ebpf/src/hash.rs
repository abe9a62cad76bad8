//! The flow hash: keyed multilinear hashing of 32-bit words, finished by a multiply-xorshift.
//!
//! Multilinear hashing over 64-bit keys is strongly universal in its high bits (Lemire and Kaser,
//! "Strongly universal string hashing is fast", 2014): without the key nobody can aim flows at one slot.
//! It costs a multiplication a word where SipHash would need rotations, which BPF has not.

/// The key: one 64-bit word more than the flow has 32-bit words. Derived from the node's seed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HashKey(pub [u64; 5]);

impl HashKey {
    /// Expands a 128-bit seed with SplitMix64 (Steele, Lea and Flood, 2014), one stream from each half.
    #[must_use]
    pub fn from_seed(seed: [u8; 16]) -> Self {
        let seed = u128::from_le_bytes(seed);
        #[expect(clippy::cast_possible_truncation, reason = "the two halves of the seed")]
        let (mut low, mut high) = (seed as u64, (seed >> 64) as u64);
        Self([(); 5].map(|()| splitmix64(&mut low) ^ splitmix64(&mut high).rotate_left(32)))
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

/// The hash of an IPv4 flow. Addresses and ports as they lie in the packet (network byte order, loaded
/// natively); `ports` is the first four bytes of the TCP or UDP header. The high bits are the best ones.
#[must_use]
#[inline(always)]
pub const fn flow_hash(key: &HashKey, source: u32, destination: u32, ports: u32, protocol: u8) -> u64 {
    let [k0, k1, k2, k3, k4] = key.0;
    let sum = k0
        .wrapping_add(k1.wrapping_mul(source as u64))
        .wrapping_add(k2.wrapping_mul(destination as u64))
        .wrapping_add(k3.wrapping_mul(ports as u64))
        .wrapping_add(k4.wrapping_mul(protocol as u64));
    (sum ^ (sum >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

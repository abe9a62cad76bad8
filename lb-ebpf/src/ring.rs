//! The ring as the packet path reads it: one 32-bit word a slot.

use crate::pod;

/// Slots of a ring's part, and of the smallest ring. A power of two, so that a slot index is the top bits of the
/// hash and the verifier sees it bounded. 16,384 slots are 64 KiB: several rings stay in the second-level cache.
pub const RING_SLOTS: usize = 1 << RING_BITS;
const RING_BITS: u32 = 14;
/// A ring has `2^order` parts, with an order up to this.
pub const MAX_RING_ORDER: u8 = 4;
/// Parts of the largest ring.
pub const RING_PARTS: usize = 1 << MAX_RING_ORDER;
/// Rings that can exist at a time, one for each VIP.
pub const MAX_RINGS: usize = crate::vip::MAX_VIPS;

/// A real's index in the map of reals, 1 to [`crate::real::MAX_REALS`] − 1; 0 is "no real".
pub type RealId = u16;

/// One slot's word.
///
/// ```text
///  31      30     29 ........ 15  14 ......... 0
///  LOOKUP  TRACK  prev            cur
/// ```
///
/// - `cur`: the real that new flows get; 0 when there is none.
/// - `prev`: while a window is open, the real of flows that have no entry; 0 when there is no window.
/// - `TRACK`: the answer for this slot may still change back, so flows are remembered.
/// - `LOOKUP`: entries of this slot's flows may live.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot(pub u32);

impl Slot {
    const REAL_MASK: u32 = 0x7fff;
    const PREV_SHIFT: u32 = 15;
    const TRACK: u32 = 1 << 30;
    const LOOKUP: u32 = 1 << 31;

    /// Packs a slot. Both ids must be below [`crate::real::MAX_REALS`]; higher bits are cut off.
    #[must_use]
    pub const fn new(cur: RealId, prev: RealId, track: bool, lookup: bool) -> Self {
        let word = (cur as u32 & Self::REAL_MASK) | ((prev as u32 & Self::REAL_MASK) << Self::PREV_SHIFT);
        let track = if track { Self::TRACK } else { 0 };
        let lookup = if lookup { Self::LOOKUP } else { 0 };
        Self(word | track | lookup)
    }

    /// The real that new flows get, 0 for none.
    #[must_use]
    #[inline(always)]
    pub const fn cur(self) -> RealId {
        (self.0 & Self::REAL_MASK) as RealId
    }

    /// The real of flows without an entry while a window is open, else 0.
    #[must_use]
    #[inline(always)]
    pub const fn prev(self) -> RealId {
        ((self.0 >> Self::PREV_SHIFT) & Self::REAL_MASK) as RealId
    }

    /// Whether flows of this slot are to be remembered.
    #[must_use]
    #[inline(always)]
    pub const fn track(self) -> bool {
        self.0 & Self::TRACK != 0
    }

    /// Whether flows of this slot may have entries.
    #[must_use]
    #[inline(always)]
    pub const fn lookup(self) -> bool {
        self.0 & Self::LOOKUP != 0
    }
}

/// The slot of a flow hash in a ring of this order: the hash's top bits, always below `RING_SLOTS << order`.
/// The order is at most [`MAX_RING_ORDER`].
#[must_use]
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "at most 18 bits are left")]
pub const fn slot_index(hash: u64, order: u8) -> usize {
    (hash >> (u64::BITS - RING_BITS - order as u32)) as usize
}

/// The hash of a flow whose slot is, in a ring of any order, that of `spread`, the hash of what its VIP spreads flows by.
#[must_use]
#[inline(always)]
pub const fn hash_in_slot(spread: u64, hash: u64) -> u64 {
    const REST: u64 = u64::MAX >> (RING_BITS + MAX_RING_ORDER as u32);
    (spread & !REST) | (hash & REST)
}

/// Which ring a VIP goes by, and how large it is.
///
/// ```text
///  15 .. 12  11 ...... 0
///  order     index
/// ```
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RingRef(u16);

impl RingRef {
    const INDEX_BITS: u32 = 12;

    /// The ring with this index, below [`MAX_RINGS`], and this order, at most [`MAX_RING_ORDER`].
    #[must_use]
    pub const fn new(index: u16, order: u8) -> Self {
        Self((index & ((1 << Self::INDEX_BITS) - 1)) | ((order as u16) << Self::INDEX_BITS))
    }

    /// Its index.
    #[must_use]
    #[inline(always)]
    pub const fn index(self) -> u16 {
        self.0 & ((1 << Self::INDEX_BITS) - 1)
    }

    /// The logarithm of the number of its parts.
    #[must_use]
    #[inline(always)]
    pub const fn order(self) -> u8 {
        (self.0 >> Self::INDEX_BITS) as u8
    }

    /// Where its part number `part`, below `2^order`, is in the outer map.
    #[must_use]
    #[inline(always)]
    pub const fn place(self, part: u32) -> u32 {
        ((self.index() as u32) << MAX_RING_ORDER) + part
    }

    /// The slot of a flow hash: its part's place in the outer map, and its index in that part.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "at most 18 bits are left")]
    pub const fn locate(self, hash: u64) -> (u32, usize) {
        let slot = slot_index(hash, self.order());
        (self.place((slot >> RING_BITS) as u32), slot & (RING_SLOTS - 1))
    }
}

/// A ring, or one of the parts of a larger one, in the order of their slots: the one value of an inner map, filled
/// aside and swapped in by one outer update. A flow's slot is in one part, so it meets the old ring or the new one.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The slots.
    pub slots: [Slot; RING_SLOTS],
}

const _: () = assert!(size_of::<Ring>() == 4 * RING_SLOTS && size_of::<Slot>() == 4 && size_of::<RingRef>() == 2);
const _: () = assert!(MAX_RINGS <= 1 << RingRef::INDEX_BITS);
pod!(Slot, Ring);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn slot_packed_reads_back(cur in 0..0x8000_u16, prev in 0..0x8000_u16, track: bool, lookup: bool) {
            let slot = Slot::new(cur, prev, track, lookup);
            prop_assert_eq!((slot.cur(), slot.prev(), slot.track(), slot.lookup()), (cur, prev, track, lookup));
        }

        #[test]
        fn slot_of_any_hash_is_inside_its_ring(hash: u64, index in 0..512_u16, order in 0..=MAX_RING_ORDER) {
            let ring = RingRef::new(index, order);
            prop_assert_eq!((ring.index(), ring.order()), (index, order));
            let (place, slot) = ring.locate(hash);
            let part = place - ring.place(0);
            prop_assert!(part < 1 << order && slot < RING_SLOTS);
            prop_assert_eq!(slot_index(hash, order), part as usize * RING_SLOTS + slot);
        }

        #[test]
        fn hash_in_slot_has_the_slot_of_one_and_the_rest_of_the_other(spread: u64, hash: u64) {
            let both = hash_in_slot(spread, hash);
            prop_assert_eq!(slot_index(both, MAX_RING_ORDER), slot_index(spread, MAX_RING_ORDER));
            prop_assert_eq!(both << 18, hash << 18);
        }
    }
}

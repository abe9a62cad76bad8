//! The ring as the packet path reads it: one 32-bit word a slot.

use crate::pod;

/// Slots of a ring. A power of two, so that a slot index is the top bits of the hash and the verifier
/// sees it bounded. 16,384 slots are 64 KiB: several rings stay in the second-level cache.
pub const RING_SLOTS: usize = 1 << RING_BITS;
const RING_BITS: u32 = 14;
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

/// The slot of a flow hash: its top bits, always below [`RING_SLOTS`].
#[must_use]
#[inline(always)]
pub const fn slot_index(hash: u64) -> usize {
    (hash >> (u64::BITS - RING_BITS)) as usize
}

/// A whole ring: the one value of an inner map, filled aside and swapped in by one outer update.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ring {
    /// The slots; a flow's is `slots[slot_index(hash)]`.
    pub slots: [Slot; RING_SLOTS],
}

const _: () = assert!(size_of::<Ring>() == 4 * RING_SLOTS && size_of::<Slot>() == 4);
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
        fn slot_index_of_any_hash_is_inside_the_ring(hash: u64) {
            prop_assert!(slot_index(hash) < RING_SLOTS);
        }
    }
}

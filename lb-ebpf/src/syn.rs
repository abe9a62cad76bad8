//! New connections and how many of them had to ask again: a signal for the health of a real.

use crate::pod;

/// What a real was sent of new connections.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynCounter {
    /// TCP SYNs.
    pub syns: u64,
    /// Those of them that repeat one of the same flow, as far as the sketch remembers: an estimate from below.
    pub repeated: u64,
}

/// Flows that the sketch can remember: as many as fit into one per-CPU value of 32 KiB.
const PLACES: usize = 1 << PLACE_BITS;
const PLACE_BITS: u32 = 13;
/// The sketch's clock goes in steps of so many (2ⁿ) jiffies: the cheapest clock there is, a second at 250 a second
/// (Debian), 0.26 s at 1000, 2.6 s at 100.
const STEP_BITS: u32 = 8;
/// A SYN after so many steps is a new one. Linux repeats after 1, 2, 4, 8 s.
const REPEATED_WITHIN: u8 = 24;

/// Which flows sent a SYN lately: one flow a place, the last one, by 24 bits of its hash and the step of time it was in.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynSketch {
    places: [u32; PLACES],
}

impl SynSketch {
    /// A sketch that remembers nothing.
    #[must_use]
    #[expect(clippy::large_stack_arrays, reason = "the size of a per-CPU value")]
    pub const fn new() -> Self {
        Self { places: [0; PLACES] }
    }

    /// Remembers the SYN of a flow; true if it repeats one.
    ///
    /// Place and tag are bits of the hash that do not choose the slot: those may be the same for all of a client's flows.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "parts of the hash and of the time are taken")]
    #[expect(clippy::indexing_slicing, reason = "the place is below PLACES by construction")]
    pub const fn repeats(&mut self, hash: u64, jiffies: u64) -> bool {
        let place = (hash >> 24) as usize & (PLACES - 1);
        let (tag, step) = ((hash as u32) << 8, (jiffies >> STEP_BITS) as u8);
        let before = self.places[place];
        self.places[place] = tag | step as u32;
        before & !0xff == tag && step.wrapping_sub(before as u8) < REPEATED_WITHIN
    }
}

impl Default for SynSketch {
    fn default() -> Self {
        Self::new()
    }
}

const _: () = assert!(size_of::<SynCounter>() == 16 && size_of::<SynSketch>() == 32 << 10);
pod!(SynCounter, SynSketch);

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 250;

    #[test]
    fn syn_of_the_same_flow_repeats_for_a_while_and_others_do_not() {
        let mut sketch = SynSketch::new();
        let (flow, other_tag, other_place) = (0x1234_5678_9abc_def0, 0x1234_5678_9abc_def1, 0x1234_5679_9abc_def0);
        let start = 300 * SECOND;
        assert!(!sketch.repeats(flow, start));
        assert!(!sketch.repeats(other_place, start));
        assert!(sketch.repeats(flow, start + SECOND));
        assert!(sketch.repeats(flow, start + 9 * SECOND));
        assert!(!sketch.repeats(flow, start + 40 * SECOND), "a new connection on old ports");
        assert!(!sketch.repeats(other_tag, start + 40 * SECOND));
        assert!(!sketch.repeats(flow, start + 40 * SECOND), "another flow took its place");
    }
}

//! Tracked flows: remembered only while the ring could still give another answer for them. Found by their hash.

use crate::{pod, ring::RealId};

/// Flows that can be remembered at a time; the least recently used go first.
pub const MAX_FLOWS: usize = 1 << 18;

/// What is remembered of a flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// When it was last seen, nanoseconds of `CLOCK_MONOTONIC` (coarse).
    pub last_seen_ns: u64,
    /// The real it goes to.
    pub real: u32,
    /// Zero.
    pub reserved: u32,
}

impl Flow {
    /// A flow that goes to `real` and was seen now.
    #[must_use]
    #[inline(always)]
    pub const fn new(real: RealId, now_ns: u64) -> Self {
        Self { last_seen_ns: now_ns, real: real as u32, reserved: 0 }
    }

    /// Whether it was used within `idle_s` seconds of `now_ns`.
    #[must_use]
    #[inline(always)]
    pub const fn lives(&self, now_ns: u64, idle_s: u16) -> bool {
        now_ns.saturating_sub(self.last_seen_ns) < idle_s as u64 * 1_000_000_000
    }
}

const _: () = assert!(size_of::<Flow>() == 16);
pod!(Flow);

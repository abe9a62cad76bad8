//! A token bucket in one word, one a CPU: bounds how many packets the data plane makes by itself.

use crate::pod;

/// Tokens a second and CPU.
pub const RATE: u64 = 1000;
/// Tokens in a full bucket.
pub const BURST: u64 = 100;

const INTERVAL_NS: u64 = 1_000_000_000 / RATE;

/// A token bucket. All zero: full.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When it is full again if nothing is taken, nanoseconds of `CLOCK_MONOTONIC`.
    full_at_ns: u64,
}

impl Bucket {
    /// Takes a token; false if there is none.
    #[must_use]
    #[inline(always)]
    pub const fn take(&mut self, now_ns: u64) -> bool {
        let full_at_ns = if self.full_at_ns > now_ns { self.full_at_ns } else { now_ns };
        if full_at_ns - now_ns > (BURST - 1) * INTERVAL_NS {
            return false;
        }
        self.full_at_ns = full_at_ns + INTERVAL_NS;
        true
    }
}

const _: () = assert!(size_of::<Bucket>() == 8);
pod!(Bucket);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_gives_its_burst_and_then_the_rate() {
        let mut bucket = Bucket::default();
        let mut take = |now_ns| (0..10_000).take_while(|_| bucket.take(now_ns)).count() as u64;
        let start = 5_000_000_000;
        assert_eq!(take(start), BURST);
        assert_eq!(take(start), 0);
        assert_eq!(take(start + 10 * INTERVAL_NS), 10);
        assert_eq!(take(start + 3600 * 1_000_000_000), BURST, "never more than a burst");
    }
}

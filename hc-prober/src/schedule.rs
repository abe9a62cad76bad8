//! What is due when: a queue ordered by time, and how probes are spread so that they never march in step.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use crate::time::Monotonic;

/// Items by the time at which they are due; equal times in the items' order.
#[derive(Debug, Clone)]
pub struct Queue<T> {
    heap: BinaryHeap<Reverse<(Monotonic, T)>>,
}

impl<T: Ord> Queue<T> {
    /// Makes `item` due at `at`.
    pub fn push(&mut self, at: Monotonic, item: T) {
        self.heap.push(Reverse((at, item)));
    }

    /// When the next item is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Monotonic> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// The earliest item that is due at `now`, and since when.
    pub fn pop_due(&mut self, now: Monotonic) -> Option<(Monotonic, T)> {
        if self.next_due()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry)
    }
}

impl<T: Ord> Default for Queue<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new() }
    }
}

/// `interval` varied by ± 10 %, as `hash` decides.
#[must_use]
pub fn jitter(interval: Duration, hash: u64) -> Duration {
    interval.saturating_sub(interval / 10) + part(interval / 5, hash)
}

/// How long after the start the first probe goes out: anywhere within `interval`, as `hash` decides.
#[must_use]
pub fn phase(interval: Duration, hash: u64) -> Duration {
    part(interval, hash)
}

/// The part of `whole` that `hash` is of 2⁶⁴.
fn part(whole: Duration, hash: u64) -> Duration {
    let nanos = (whole.as_nanos().min(u128::from(u64::MAX)) * u128::from(hash)) >> 64;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn jitter_stays_within_a_tenth(nanos in 0_u64..10_000_000_000, hash: u64) {
            let interval = Duration::from_nanos(nanos);
            let varied = jitter(interval, hash);
            prop_assert!(varied >= interval.saturating_sub(interval / 10) && varied <= interval + interval / 10);
        }

        #[test]
        fn queue_yields_in_order_of_time(times in prop::collection::vec(0_u64..100, 0..50), now in 0_u64..100) {
            let mut queue = Queue::default();
            for (n, at) in times.iter().enumerate() {
                queue.push(Monotonic(*at), n);
            }
            let popped: Vec<_> = std::iter::from_fn(|| queue.pop_due(Monotonic(now))).collect();
            prop_assert!(popped.is_sorted());
            prop_assert_eq!(popped.len(), times.iter().filter(|at| **at <= now).count());
        }
    }

    #[test]
    fn phase_many_hashes_cover_the_interval() {
        let interval = Duration::from_secs(1);
        let early = (0..1000_u64).map(|n| phase(interval, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
        let early = early.filter(|p| *p < interval / 4).count();
        assert!((200..300).contains(&early), "{early} of 1000 in the first quarter");
    }
}

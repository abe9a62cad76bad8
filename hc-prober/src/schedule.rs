//! What is due when: a timing wheel, and how probes are spread so that they never march in step.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use crate::time::Monotonic;

/// A tick is 2²⁰ nanoseconds, about a millisecond.
const TICK_BITS: u32 = 20;

/// Slots of the wheel: it reaches some four seconds ahead.
const SLOTS: usize = 64 * WORD;

/// Bits of a word in the map of filled slots.
const WORD: usize = 64;

/// Items by the time at which they are due; equal times in the items' order.
///
/// A timing wheel: what is due within its reach goes into the slot of its tick, unsorted, and is sorted only among its
/// tick's, when that has come. So an item costs the same however many there are.
#[derive(Debug, Clone)]
pub struct Queue<T> {
    /// The last tick that has come.
    tick: u64,
    /// Items of ticks that have come, and those that are out of the wheel's reach.
    ready: BinaryHeap<Reverse<(Monotonic, T)>>,
    far: BinaryHeap<Reverse<(Monotonic, T)>>,
    /// Items of the ticks after `tick`, each slot those of one tick.
    slots: Vec<Vec<(Monotonic, T)>>,
    /// A bit for each slot that is not empty.
    filled: [u64; SLOTS / WORD],
    /// Memory of slots that were emptied.
    spare: Vec<Vec<(Monotonic, T)>>,
}

impl<T: Ord> Queue<T> {
    /// Makes `item` due at `at`.
    pub fn push(&mut self, at: Monotonic, item: T) {
        let tick = tick(at);
        if tick <= self.tick {
            return self.ready.push(Reverse((at, item)));
        }
        let index = index(tick);
        match self.slots.get_mut(index).filter(|_| tick - self.tick < SLOTS as u64) {
            Some(slot) => {
                if slot.capacity() == 0 {
                    *slot = self.spare.pop().unwrap_or_default();
                }
                slot.push((at, item));
                self.mark(index, true);
            }
            None => self.far.push(Reverse((at, item))),
        }
    }

    /// When the next item is due; or, if its tick has not come yet, the beginning of that.
    #[must_use]
    pub fn next_due(&self) -> Option<Monotonic> {
        let first = |heap: &BinaryHeap<Reverse<(Monotonic, T)>>| heap.peek().map(|Reverse((at, _))| *at);
        let turning = || self.next_filled().map(|tick| Monotonic(tick << TICK_BITS));
        first(&self.ready).or_else(|| first(&self.far).into_iter().chain(turning()).min())
    }

    /// The earliest item that is due at `now`, and since when.
    pub fn pop_due(&mut self, now: Monotonic) -> Option<(Monotonic, T)> {
        if self.ready.peek().is_none_or(|Reverse((at, _))| *at > now) {
            self.turn(tick(now));
        }
        if self.ready.peek()?.0.0 > now {
            return None;
        }
        self.ready.pop().map(|Reverse(entry)| entry)
    }

    /// Makes the items ready of the next tick that has any, if that has come by `now`.
    fn turn(&mut self, now: u64) {
        let near = self.next_filled().filter(|tick| *tick <= now);
        let far = self.far.peek().map(|Reverse((at, _))| tick(*at)).filter(|tick| *tick <= now);
        let Some(next) = near.into_iter().chain(far).min() else {
            self.tick = self.tick.max(now);
            return;
        };
        self.tick = next;
        while let Some(Reverse((at, _))) = self.far.peek()
            && tick(*at) <= next
        {
            self.ready.extend(self.far.pop());
        }
        if near == Some(next)
            && let Some(slot) = self.slots.get_mut(index(next))
        {
            let mut items = std::mem::take(slot);
            self.ready.extend(items.drain(..).map(Reverse));
            self.spare.push(items);
            self.mark(index(next), false);
        }
    }

    fn mark(&mut self, index: usize, filled: bool) {
        if let Some(word) = self.filled.get_mut(index / WORD) {
            let bit = 1 << (index % WORD);
            *word = if filled { *word | bit } else { *word & !bit };
        }
    }

    /// The first tick after the current one that has items in its slot.
    fn next_filled(&self) -> Option<u64> {
        let start = index(self.tick + 1);
        // The word in which the search begins is looked at twice: from there on, and at the end up to there.
        let words = (0..=SLOTS / WORD).map(|n| (start / WORD + n) % (SLOTS / WORD));
        let mut found = words.enumerate().filter_map(|(n, word)| {
            let from_start = u64::MAX << (start % WORD);
            let mask = if n == 0 {
                from_start
            } else if n == SLOTS / WORD {
                !from_start
            } else {
                u64::MAX
            };
            let bits = self.filled.get(word)? & mask;
            (bits != 0).then(|| word * WORD + bits.trailing_zeros() as usize)
        });
        let ahead = (found.next()? + SLOTS - start) % SLOTS;
        Some(self.tick + 1 + ahead as u64)
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self {
            tick: 0,
            ready: BinaryHeap::new(),
            far: BinaryHeap::new(),
            slots: std::iter::repeat_with(Vec::new).take(SLOTS).collect(),
            filled: [0; SLOTS / WORD],
            spare: Vec::new(),
        }
    }
}

fn tick(at: Monotonic) -> u64 {
    at.0 >> TICK_BITS
}

/// The slot of a tick.
#[expect(clippy::cast_possible_truncation, reason = "below SLOTS")]
fn index(tick: u64) -> usize {
    (tick % SLOTS as u64) as usize
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

        /// Against a list that is searched: pushed now and then, near and far, popped as time passes.
        #[test]
        fn queue_yields_what_is_due_in_order_of_time(
            steps in prop::collection::vec((0_u64..3, prop::collection::vec((0_u64..40, 0_u32..8), 0..6)), 1..60),
        ) {
            let (mut queue, mut list, mut now) = (Queue::default(), Vec::new(), Monotonic(1 << 50));
            for (step, pushes) in steps {
                for (far, bits) in pushes {
                    // From 0.25 ms to 5 s ahead, and sometimes in the past.
                    let at = Monotonic((now.0 + (far << (18 + bits / 2 * 3))).saturating_sub(1 << 22));
                    queue.push(at, far);
                    list.push((at, far));
                }
                now = now + Duration::from_micros([300, 70_000, 6_000_000][usize::try_from(step).unwrap()]);
                list.sort_unstable();
                let due = list.partition_point(|(at, _)| *at <= now);
                prop_assert!(queue.next_due() <= list.first().map(|(at, _)| *at), "asleep when something is due");
                prop_assert_eq!(queue.next_due().is_some(), !list.is_empty());
                let popped: Vec<_> = std::iter::from_fn(|| queue.pop_due(now)).collect();
                prop_assert_eq!(popped, list.drain(..due).collect::<Vec<_>>());
            }
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

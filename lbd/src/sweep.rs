//! A sweep over the table of tracked flows: entries of flows that are long silent are cleared, and what the others still
//! name is told, so that their slots stay looked up and their reals keep their indexes.

use lb_ebpf::{
    flow::{Bucket, Entry, Tick, longest_age},
    ring::{MAX_RING_ORDER, RING_SLOTS, RealId},
};
use std::{collections::BTreeSet, sync::atomic::Ordering::Relaxed};

/// Ticks that an entry is left alone after the packet path takes it for dead: a packet that found it alive a moment ago
/// may still refresh it.
const GRACE: u64 = 2;

/// What a sweep found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sweep {
    /// Of the largest rings.
    slots: Vec<bool>,
    reals: BTreeSet<RealId>,
    /// Entries that live.
    pub living: usize,
    /// Entries that were cleared.
    pub cleared: usize,
}

impl Sweep {
    /// Goes through the table, in which packets go on writing. `longest_idle_s` is the longest that the flows of any VIP
    /// may be silent, seconds.
    #[must_use]
    pub fn over(table: &[Bucket], now: Tick, longest_idle_s: u16) -> Self {
        let mut sweep =
            Self { slots: vec![false; RING_SLOTS << MAX_RING_ORDER], reals: BTreeSet::new(), living: 0, cleared: 0 };
        for word in table.iter().flat_map(Bucket::words) {
            let entry = Entry(word.load(Relaxed));
            if !entry.is_some() || entry.age(now) <= longest_age(longest_idle_s) + GRACE {
                sweep.take(entry);
                continue;
            }
            match word.compare_exchange(entry.0, 0, Relaxed, Relaxed) {
                Ok(_) => sweep.cleared += 1,
                // Another flow has got the place meanwhile.
                Err(other) => sweep.take(Entry(other)),
            }
        }
        sweep
    }

    fn take(&mut self, entry: Entry) {
        if !entry.is_some() {
            return;
        }
        if let Some(slot) = self.slots.get_mut(entry.slot_index(MAX_RING_ORDER)) {
            *slot = true;
        }
        self.reals.insert(entry.real());
        self.living += 1;
    }

    /// Whether a flow of this slot, of whichever ring of this order, is remembered. An entry does not tell its VIP.
    #[must_use]
    pub fn names_slot(&self, slot: usize, order: u8) -> bool {
        let finer = MAX_RING_ORDER.saturating_sub(order);
        let slots = self.slots.get(slot << finer..(slot + 1) << finer);
        slots.is_none_or(|slots| slots.contains(&true))
    }

    /// Whether a flow that goes to this real is remembered.
    #[must_use]
    pub fn names_real(&self, real: RealId) -> bool {
        self.reals.contains(&real)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_ebpf::{flow::TableSize, ring::slot_index};

    const IDLE: u16 = 900;

    fn table(entries: &[(u64, RealId, Tick)]) -> Vec<Bucket> {
        let mut table = Vec::new();
        table.resize_with(TableSize::MIN.buckets(), Bucket::default);
        for (way, &(hash, real, seen)) in entries.iter().enumerate() {
            table[TableSize::MIN.bucket_index(hash)].store(way, Entry::new(hash, real, seen));
        }
        table
    }

    #[test]
    fn sweep_clears_the_expired_and_tells_what_the_living_name() {
        let now = Tick::of(1 << 50);
        let oldest = u16::try_from(longest_age(IDLE) + GRACE).unwrap() - 1;
        let (living, kept, dead) = (1 << 60, 2 << 60, 3 << 60);
        let table = table(&[(living, 7, now), (kept, 8, now.before(oldest)), (dead, 9, now.before(oldest + 1))]);
        let sweep = Sweep::over(&table, now, IDLE);
        assert_eq!((sweep.living, sweep.cleared), (2, 1));
        assert!(
            (0..=MAX_RING_ORDER)
                .all(|order| [living, kept].into_iter().all(|hash| sweep.names_slot(slot_index(hash, order), order)))
        );
        assert!(!sweep.names_slot(slot_index(dead, 0), 0) && !sweep.names_real(9));
        assert!(sweep.names_real(7) && sweep.names_real(8));
        assert_eq!(Sweep::over(&table, now, IDLE), Sweep { cleared: 0, ..sweep });
    }

    #[test]
    fn sweep_of_an_empty_table_names_nothing() {
        let sweep = Sweep::over(&table(&[]), Tick::of(0), IDLE);
        assert_eq!((sweep.living, sweep.cleared), (0, 0));
        assert!((0..RING_SLOTS).all(|slot| !sweep.names_slot(slot, 0)) && !sweep.names_real(0));
    }
}

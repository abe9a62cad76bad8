//! Indexes of reals and VIPs in the maps.

use std::{collections::BTreeMap, ops::RangeInclusive};

/// Hands out indexes, each to one holder. A freed index rests until all others have had their turn, so that
/// what still names it (a tracked flow, a counter on somebody's screen) meets no stranger.
#[derive(Clone, Debug)]
pub struct Ids<T> {
    range: RangeInclusive<u16>,
    next: u16,
    holders: BTreeMap<T, u16>,
}

impl<T: Ord + Clone> Ids<T> {
    /// Indexes from `range`, of which `holders` have theirs already.
    #[must_use]
    pub fn new(range: RangeInclusive<u16>, holders: BTreeMap<T, u16>) -> Self {
        let next = holders.values().max().map_or(*range.start(), |last| last.saturating_add(1));
        Self { range, next, holders }
    }

    /// The holder's index, a new one if it has none; `None` when all are held.
    pub fn take(&mut self, holder: &T) -> Option<u16> {
        if let Some(&id) = self.holders.get(holder) {
            return Some(id);
        }
        let (start, end) = (*self.range.start(), *self.range.end());
        let used: std::collections::BTreeSet<_> = self.holders.values().copied().collect();
        let from = if self.range.contains(&self.next) { self.next } else { start };
        let id = (from..=end).chain(start..from).find(|id| !used.contains(id))?;
        self.next = id.saturating_add(1);
        self.holders.insert(holder.clone(), id);
        Some(id)
    }

    /// The index of a holder.
    #[must_use]
    pub fn get(&self, holder: &T) -> Option<u16> {
        self.holders.get(holder).copied()
    }

    /// Takes the indexes of all holders but those to keep.
    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.holders.retain(|holder, _| keep(holder));
    }

    /// All holders with their indexes.
    pub fn iter(&self) -> impl Iterator<Item = (&T, u16)> {
        self.holders.iter().map(|(holder, &id)| (holder, id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn take_of_a_freed_index_waits_for_the_others() {
        let mut ids = Ids::new(1..=3, BTreeMap::new());
        assert_eq!((ids.take(&'a'), ids.take(&'b'), ids.take(&'a')), (Some(1), Some(2), Some(1)));
        ids.retain(|&holder| holder != 'a');
        assert_eq!((ids.take(&'c'), ids.take(&'d'), ids.take(&'e')), (Some(3), Some(1), None));
    }
}

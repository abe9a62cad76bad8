//! The checks under way, by number and by key.

use std::collections::HashMap;

use crate::{
    check::CheckKey,
    subject::{Path, Subject},
    time::Monotonic,
};

/// Numbers are given in the order of coming and never again, so that late answers cannot meet another check.
#[derive(Debug, Default)]
pub struct Roster {
    /// By number; `None`: gone.
    subjects: Vec<Option<Box<Subject>>>,
    /// Numbers in the order of the checks' keys, those that came since [`Self::sort`] left out.
    sorted: Vec<u32>,
    /// How many there were then, those that are gone included.
    settled: usize,
    /// The ways of those that are gone, and since when.
    gone: HashMap<u32, (Path, Monotonic)>,
}

impl Roster {
    /// How many numbers were given.
    #[must_use]
    pub fn given(&self) -> usize {
        self.subjects.len()
    }

    /// Adds a check; returns its number. `None`: out of numbers.
    pub fn push(&mut self, subject: Subject) -> Option<u32> {
        let number = u32::try_from(self.subjects.len()).ok()?;
        self.subjects.push(Some(Box::new(subject)));
        Some(number)
    }

    /// Removes a check. Its way is remembered: a late SYN-ACK is still reset.
    pub fn remove(&mut self, number: u32, now: Monotonic) {
        let slot = index(number).and_then(|index| self.subjects.get_mut(index));
        if let Some(Ok(path)) = slot.and_then(Option::take).map(|subject| subject.path) {
            self.gone.insert(number, (path, now));
        }
    }

    /// Forgets the ways of those that are gone for so long that the condition is false.
    pub fn retain_gone(&mut self, mut keep: impl FnMut(Monotonic) -> bool) {
        self.gone.retain(|_, (_, since)| keep(*since));
    }

    /// Has those that came found by their keys; of several with the same key the last stays.
    pub fn sort(&mut self, now: Monotonic) {
        let mut sorted = std::mem::take(&mut self.sorted);
        sorted.extend((0..).zip(&self.subjects).skip(self.settled).map(|(number, _)| number));
        sorted.retain(|number| self.get(*number).is_some());
        // Equal ones keep their order, that of coming.
        sorted.sort_by(|a, b| self.key(*a).cmp(&self.key(*b)));
        let mut twins = Vec::new();
        sorted.dedup_by(|second, first| {
            let equal = self.key(*first) == self.key(*second);
            if equal {
                std::mem::swap(first, second);
                twins.push(*second);
            }
            equal
        });
        (self.sorted, self.settled) = (sorted, self.subjects.len());
        for twin in twins {
            self.remove(twin, now);
        }
    }

    /// The number of a check that was there at the last [sort](Self::sort). `guess`: perhaps it is this.
    #[must_use]
    pub fn number(&self, key: &CheckKey, guess: u32) -> Option<u32> {
        if self.key(guess) == Some(key) {
            return Some(guess);
        }
        let at = self.sorted.binary_search_by(|number| self.key(*number).cmp(&Some(key))).ok()?;
        self.sorted.get(at).copied()
    }

    /// The check of this number.
    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Subject> {
        self.subjects.get(index(number)?)?.as_deref()
    }

    /// The same, to be changed; its key stays.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut Subject> {
        self.subjects.get_mut(index(number)?)?.as_deref_mut()
    }

    /// The way of a check, even if it is gone.
    #[must_use]
    pub fn path(&self, number: u32) -> Option<Path> {
        match self.get(number) {
            Some(subject) => subject.path.ok(),
            None => self.gone.get(&number).map(|(path, _)| *path),
        }
    }

    /// In the order of their coming.
    pub fn iter(&self) -> impl Iterator<Item = &Subject> {
        self.subjects.iter().flatten().map(Box::as_ref)
    }

    fn key(&self, number: u32) -> Option<&CheckKey> {
        self.get(number).map(|subject| &subject.check.key)
    }
}

fn index(number: u32) -> Option<usize> {
    usize::try_from(number).ok()
}

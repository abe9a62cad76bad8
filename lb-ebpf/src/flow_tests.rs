//! The bucket against a model that keeps what it is told, and its bits against their limits.

#![allow(clippy::cast_precision_loss, reason = "numbers far below 2⁵²")]

use super::*;
use crate::ring::MAX_RING_ORDER;
use proptest::prelude::*;
use std::{collections::HashSet, sync::atomic::Ordering::Relaxed};

const TICK_S: f64 = (1_u64 << Tick::SHIFT) as f64 / 1e9;

fn tick() -> impl Strategy<Value = Tick> {
    any::<u64>().prop_map(Tick::of)
}

fn real() -> impl Strategy<Value = RealId> {
    1..RealId::try_from(MAX_REALS).unwrap()
}

fn size() -> impl Strategy<Value = TableSize> {
    (TableSize::MIN.0..=TableSize::MAX.0).prop_map(TableSize)
}

fn entry_of(class: u8, hash: u64, age: u16, now: Tick, idle_s: u16) -> Entry {
    let longest = u16::try_from(longest_age(idle_s)).unwrap();
    let entry = |age: u16| Entry::new(hash, 1, now.before(age));
    match class {
        0 => entry(age % longest).seen(now.before(age % longest)),
        1 => entry(age % longest),
        2 => entry(longest + age % 64),
        _ => Entry::default(),
    }
}

fn bucket_of(entries: [Entry; WAYS]) -> Bucket {
    Bucket(entries.map(|entry| AtomicU64::new(entry.0)))
}

/// What makes an entry go first, told in words of its own: the class, then the age.
fn precedence(entry: Entry, now: Tick, idle_s: u16) -> (u8, u64) {
    let class = match (entry.is_some(), entry.lives(now, idle_s), entry.is_established()) {
        (false, ..) => return (3, 0),
        (_, false, _) => 2,
        (_, true, false) => 1,
        (_, true, true) => 0,
    };
    (class, entry.age(now))
}

proptest! {
    #[test]
    fn entry_packed_reads_back(hash: u64, order in 0..=MAX_RING_ORDER, real in real(), first in tick(), later in tick()) {
        let entry = Entry::new(hash, real, first);
        prop_assert!(entry.is_some() && entry.matches(hash) == 1 && !entry.is_established());
        prop_assert_eq!((entry.real(), entry.last_seen(), entry.slot_index(order)), (real, first, ring::slot_index(hash, order)));
        let seen = entry.seen(later);
        prop_assert!(seen.matches(hash) == 1 && seen.is_established());
        prop_assert_eq!((seen.real(), seen.last_seen(), seen.slot_index(order)), (real, later, ring::slot_index(hash, order)));
    }

    #[test]
    fn hashes_that_differ_in_a_bit_that_counts_are_told_apart(
        hash: u64, size in size(), bit in 0..64_u32, real in real(), now in tick(),
    ) {
        let lowest = Entry::HASH_SHIFT - size.0;
        let bit = lowest + bit % (64 - lowest);
        let other = hash ^ (1 << bit);
        let same_place = size.bucket_index(hash) == size.bucket_index(other);
        prop_assert!(!(same_place && Entry::new(hash, real, now).matches(other) == 1));
    }

    #[test]
    fn bucket_index_of_any_hash_is_inside_the_table(hash: u64, size in size()) {
        prop_assert!(size.bucket_index(hash) < size.buckets());
    }

    #[test]
    fn entry_and_its_bucket_tell_the_hash_as_far_as_they_hold_it(hash: u64, size in size(), real in real(), now in tick()) {
        let told = Entry::new(hash, real, now).hash(size.bucket_index(hash), size);
        prop_assert_eq!(told, hash >> (Entry::HASH_SHIFT - size.0) << (Entry::HASH_SHIFT - size.0));
    }

    #[test]
    fn bucket_of_a_larger_table_is_among_those_that_share_the_smaller_ones_number(hash: u64, small in size(), large in size()) {
        let (small, large) = (small.min(large), small.max(large));
        prop_assert_eq!(large.bucket_index(hash) >> (large.0 - small.0), small.bucket_index(hash));
    }

    #[test]
    fn table_has_the_entries_asked_for_and_less_than_twice_as_many(entries in TableSize::MIN.entries()..=TableSize::MAX.entries()) {
        let size = TableSize::for_entries(entries).unwrap();
        prop_assert!(size.entries() >= entries && size.entries() < 2 * entries);
        prop_assert_eq!(TableSize::of_buckets(size.buckets()), Some(size));
    }

    #[test]
    fn flow_silent_for_less_than_the_idle_time_lives(
        idle_s in 1..=u16::MAX, start: u64, part in 0.0..1.0_f64, ahead in 0..2_u64,
    ) {
        let start = start >> 1;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "nanoseconds of less than a day")]
        let silence = (f64::from(idle_s) * 1e9 * part) as u64;
        // Seen by a CPU whose clock was up to a tick ahead.
        let entry = Entry::new(0, 1, Tick::of(start + (ahead << Tick::SHIFT)));
        prop_assert!(entry.lives(Tick::of(start + silence), idle_s));
    }

    #[test]
    fn flow_silent_for_three_ticks_longer_is_dead_until_the_ticks_wrap(idle_s in 1..=u16::MAX, start: u64, more in 0..1800_u64) {
        let start = start >> 1;
        let silence = u64::from(idle_s) * 1_000_000_000 + (3 << Tick::SHIFT) + more * 1_000_000_000;
        prop_assert!(!Entry::new(0, 1, Tick::of(start)).lives(Tick::of(start + silence), idle_s));
    }

    #[test]
    fn find_returns_the_flows_own_place_whatever_else_is_there(
        hashes in prop::collection::hash_set(any::<u64>(), WAYS), way in 0..WAYS, now in tick(),
    ) {
        let entries: Vec<_> = hashes.iter().map(|&hash| Entry::new(hash, 7, now)).collect();
        let bucket = bucket_of(entries.try_into().unwrap());
        let hash = *hashes.iter().nth(way).unwrap();
        let first = hashes.iter().position(|other| (other ^ hash) >> Entry::HASH_SHIFT == 0);
        prop_assert_eq!(Some(bucket.find(hash)), first);
        let none = if hash >> Entry::HASH_SHIFT == 0 { 0 } else { WAYS };
        prop_assert_eq!(Bucket::default().find(hash), none);
    }

    #[test]
    fn entry_taken_over_is_there_unless_those_that_are_there_go_after_it(
        hash: u64, now in tick(), kinds in prop::array::uniform8((0..4_u8, any::<u16>(), any::<u64>())),
        class in 0..3_u8, age: u16,
    ) {
        let idle_s = u16::MAX;
        let bucket = bucket_of(kinds.map(|(class, age, hash)| entry_of(class, hash, age, now, idle_s)));
        let (before, entry) = (bucket.0.each_ref().map(|word| word.load(Relaxed)), entry_of(class, hash, age, now, idle_s));
        let first = (0..WAYS).map(|way| precedence(bucket.load(way), now, idle_s)).max().unwrap();
        bucket.take_over(hash, entry, now);
        let after = bucket.0.each_ref().map(|word| word.load(Relaxed));
        let changed = (0..WAYS).filter(|&way| before[way] != after[way]).count();
        prop_assert!(changed <= 1);
        if first >= precedence(entry, now, idle_s) {
            prop_assert!(after.contains(&entry.0));
        } else {
            prop_assert_eq!(before, after);
        }
        // Seen again later it is the newer.
        if after.contains(&entry.0) && entry.age(now) > 1 {
            let newer = entry.seen(now);
            bucket.take_over(hash, newer, now);
            bucket.take_over(hash, entry, now);
            prop_assert_eq!(bucket.load(bucket.find(hash)), newer);
        }
    }

    #[test]
    fn place_is_that_of_the_entry_that_goes_first(
        hash: u64, now in tick(), idle_s in 60..=u16::MAX,
        kinds in prop::array::uniform8((0..4_u8, any::<u16>(), any::<u64>())),
    ) {
        let bucket = bucket_of(kinds.map(|(class, age, hash)| entry_of(class, hash, age, now, idle_s)));
        let place = bucket.place(hash, now, idle_s);
        let goes = precedence(bucket.load(place.way), now, idle_s);
        let first = (0..WAYS).map(|way| precedence(bucket.load(way), now, idle_s)).max().unwrap();
        prop_assert_eq!(goes, first);
        prop_assert_eq!(place.evicts, bucket.load(place.way).lives(now, idle_s));
    }
}

#[test]
fn place_among_equals_differs_from_flow_to_flow() {
    let now = Tick::of(1 << 40);
    let bucket = bucket_of([Entry::new(0, 1, now); WAYS]);
    let ways: HashSet<_> = (0..WAYS as u64).map(|hash| bucket.place(hash, now, 900).way).collect();
    assert_eq!(ways.len(), WAYS, "newcomers would displace each other");
}

#[test]
fn table_sizes_outside_the_bounds_are_none() {
    assert_eq!(TableSize::for_entries(1), Some(TableSize::MIN));
    assert_eq!(TableSize::for_entries(TableSize::MAX.entries() + 1), None);
    let buckets = [0, 1, TableSize::MIN.buckets() / 2, TableSize::DEFAULT.buckets() + 1, TableSize::MAX.buckets() * 2];
    assert_eq!(buckets.map(TableSize::of_buckets), [None; 5]);
}

#[test]
fn longest_idle_time_leaves_an_hour_before_the_ticks_wrap() {
    let left = (Tick::MASK - longest_age(u16::MAX)) as f64 * TICK_S;
    assert!(left > 3600.0, "{left} s");
}

#[test]
fn flows_with_successive_addresses_and_ports_fill_buckets_as_random_ones_would() {
    let key = crate::hash::HashKey::from_seed(*b"a seed for tests");
    // As many flows as there are buckets: with randomness e⁻¹ of the buckets stay empty.
    for flow in [|n: u32| (n, 80), |n: u32| (7, n), |n: u32| (n / 512, n % 512)] {
        let hashes = (0..1 << TableSize::DEFAULT.0).map(|n: u32| {
            let (source, ports) = flow(n);
            crate::hash::flow_hash(&key, source.to_be(), 9, ports.to_be(), 6)
        });
        let used: HashSet<_> = hashes.map(|hash| TableSize::DEFAULT.bucket_index(hash)).collect();
        let empty = 1.0 - used.len() as f64 / TableSize::DEFAULT.buckets() as f64;
        assert!(empty < 0.42, "{empty} of the buckets are empty");
    }
}

//! Tracked flows: remembered only while the ring could still give another answer for them.
//!
//! The table is ours, not the kernel's LRU hash: cache lines ([`Bucket`]) of [`WAYS`] words, one word an entry; how many
//! is the operator's choice ([`TableSize`]). An entry is found by one load of a line and written by one store of a word.
//! It holds the top of the flow hash, and the bits below choose its bucket, from the highest on: so a table can be
//! copied to one of another size, and whoever reads it knows of each entry which slot it belongs to.

use crate::{
    real::MAX_REALS,
    ring::{self, RealId},
};
use core::sync::atomic::AtomicU64;

/// Entries in a bucket.
pub const WAYS: usize = 8;

/// How many buckets a table has: a power of two, of which this is the exponent.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableSize(u32);

impl TableSize {
    /// 8,192 entries, 64 KiB.
    pub const MIN: Self = Self(10);
    /// 1,048,576 entries, 8 MiB.
    pub const DEFAULT: Self = Self(17);
    /// 33,554,432 entries, 256 MiB.
    pub const MAX: Self = Self(22);

    /// The smallest table with at least so many entries; `None` if that is above [`TableSize::MAX`].
    #[must_use]
    pub const fn for_entries(entries: usize) -> Option<Self> {
        if entries > Self::MAX.entries() {
            return None;
        }
        let order = entries.div_ceil(WAYS).next_power_of_two().trailing_zeros();
        Some(if order < Self::MIN.0 { Self::MIN } else { Self(order) })
    }

    /// The size of a table of exactly so many buckets, if one can have them.
    #[must_use]
    pub const fn of_buckets(buckets: usize) -> Option<Self> {
        let order = buckets.trailing_zeros();
        if buckets.is_power_of_two() && order >= Self::MIN.0 && order <= Self::MAX.0 { Some(Self(order)) } else { None }
    }

    /// Cache lines, 64 bytes each.
    #[must_use]
    pub const fn buckets(self) -> usize {
        1 << self.0
    }

    /// Its memory.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.buckets() * size_of::<Bucket>()
    }

    /// Places for flows.
    #[must_use]
    pub const fn entries(self) -> usize {
        self.buckets() * WAYS
    }

    /// The bucket of a flow hash: the highest bits of those that the entry does not hold.
    #[must_use]
    #[inline(always)]
    pub const fn bucket_index(self, hash: u64) -> usize {
        // Masked for the verifier's sake, and for that of a size that nobody checked.
        ((hash & Entry::BELOW_HASH) >> (Entry::HASH_SHIFT.wrapping_sub(self.0) & 31)) as usize
    }
}

/// When a flow was seen: ticks of 2³⁴ ns (17 s) of `CLOCK_MONOTONIC_COARSE`, which wrap after 19.5 hours.
///
/// So coarse that each `flow_idle` that 16 bits of seconds express can be told, with more than an hour for a sweep to
/// find the entry before it would look young again; and that a busy flow's entry is written once in 17 s. A flow
/// is never forgotten early, only up to 34 s late.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick(u16);

impl Tick {
    const SHIFT: u32 = 34;
    const MASK: u64 = 0xfff;

    /// The tick of a time in nanoseconds.
    #[must_use]
    #[inline(always)]
    pub const fn of(monotonic_ns: u64) -> Self {
        Self::masked(monotonic_ns >> Self::SHIFT)
    }

    #[inline(always)]
    const fn masked(ticks: u64) -> Self {
        Self((ticks & Self::MASK) as u16)
    }

    /// So many ticks earlier.
    #[must_use]
    pub const fn before(self, ticks: u16) -> Self {
        Self::masked((self.0 as u64).wrapping_sub(ticks as u64))
    }

    /// Ticks since `then`, at least 1: the clock of the CPU that wrote `then` may be one tick ahead of this one's.
    #[inline(always)]
    const fn since(self, then: Self) -> u64 {
        (self.0 as u64 + 1).wrapping_sub(then.0 as u64) & Self::MASK
    }
}

/// The longest age, as [`Entry::age`] tells it, of a flow that was silent for less than so many seconds.
#[must_use]
#[inline(always)]
pub const fn longest_age(idle_s: u16) -> u64 {
    // One tick for the part of a tick that each end rounds off, one for the clocks' difference.
    ((idle_s as u64 * 1_000_000_000) >> Tick::SHIFT) + 2
}

/// One flow.
///
/// ```text
///  63 ............. 25  24           23 .... 12  11 .... 0
///  top of the flow hash  ESTABLISHED  real        last tick
///  (slot: 63 .. 50 .. 46)
/// ```
///
/// All zero: none. A flow's real is never 0, so no flow's entry is.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(pub u64);

impl Entry {
    const HASH_SHIFT: u32 = 25;
    const BELOW_HASH: u64 = (1 << Self::HASH_SHIFT) - 1;
    const ESTABLISHED: u64 = 1 << 24;
    const REAL_SHIFT: u32 = 12;
    const REAL_MASK: u64 = MAX_REALS as u64 - 1;

    /// A flow that goes to `real` and was seen for the first time.
    #[must_use]
    #[inline(always)]
    pub const fn new(hash: u64, real: RealId, now: Tick) -> Self {
        let real = (real as u64 & Self::REAL_MASK) << Self::REAL_SHIFT;
        Self(hash >> Self::HASH_SHIFT << Self::HASH_SHIFT | real | now.0 as u64)
    }

    /// The same flow, seen again with something else than a SYN.
    #[must_use]
    #[inline(always)]
    pub const fn seen(self, now: Tick) -> Self {
        Self(self.0 & !Tick::MASK | Self::ESTABLISHED | now.0 as u64)
    }

    /// The same flow, seen last so many ticks earlier.
    #[must_use]
    pub const fn older(self, ticks: u16) -> Self {
        Self(self.0 & !Tick::MASK | self.last_seen().before(ticks).0 as u64)
    }

    /// Whether there is one.
    #[must_use]
    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }

    /// 1 if it is that of a flow with this hash whose bucket this is, else 0.
    #[must_use]
    #[inline(always)]
    pub const fn matches(self, hash: u64) -> u64 {
        let difference = (self.0 ^ hash) >> Self::HASH_SHIFT;
        difference.wrapping_sub(1) >> 63
    }

    /// The flow's real.
    #[must_use]
    #[inline(always)]
    pub const fn real(self) -> RealId {
        ((self.0 >> Self::REAL_SHIFT) & Self::REAL_MASK) as RealId
    }

    /// The flow's hash as far as this entry and its bucket's number tell it, in a table of this size.
    #[must_use]
    pub const fn hash(self, bucket: usize, size: TableSize) -> u64 {
        self.0 & !Self::BELOW_HASH | (bucket as u64) << (Self::HASH_SHIFT - size.0)
    }

    /// The flow's slot in a ring of this order, whichever ring that is.
    #[must_use]
    pub const fn slot_index(self, order: u8) -> usize {
        ring::slot_index(self.0, order)
    }

    /// Whether it has been seen more than once.
    #[must_use]
    #[inline(always)]
    pub const fn is_established(self) -> bool {
        self.0 & Self::ESTABLISHED != 0
    }

    /// When it was seen last.
    #[must_use]
    #[inline(always)]
    pub const fn last_seen(self) -> Tick {
        Tick::masked(self.0)
    }

    /// Ticks since it was seen last, and one more. Compare with [`longest_age`].
    #[must_use]
    #[inline(always)]
    pub const fn age(self, now: Tick) -> u64 {
        now.since(self.last_seen())
    }

    /// The higher, the sooner it is given up: empty, expired, seen only once; within these by age.
    ///
    /// Computed without branches: no CPU can predict what is in a bucket, and the verifier would try each combination.
    #[inline(always)]
    const fn rank(self, now: Tick, longest_age: u64) -> u64 {
        let age = self.age(now);
        let seen_once = (!self.0 & Self::ESTABLISHED) >> Self::ESTABLISHED.trailing_zeros();
        let expired = longest_age.wrapping_sub(age) >> 32 & 1;
        let empty = (MAX_REALS as u64 - self.real() as u64) / MAX_REALS as u64;
        empty << 14 | expired << 13 | seen_once << 12 | age
    }

    /// Ranks from this one on are of entries that do not live.
    const LIVES_NOT: u64 = 1 << 13;

    /// Whether it may have been seen within `idle_s` seconds.
    #[must_use]
    #[inline(always)]
    pub const fn lives(self, now: Tick, idle_s: u16) -> bool {
        self.is_some() && self.age(now) <= longest_age(idle_s)
    }
}

/// One cache line of the table: all places where a flow may be.
///
/// All CPUs and user space share it without locks. An entry is one word, written by one store, so whoever reads it finds
/// a whole flow or none; no word says anything about another, so no order is asked for.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket([AtomicU64; WAYS]);

/// A place for a new entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its number in the bucket, below [`WAYS`].
    pub way: usize,
    /// A flow that still lives has it.
    pub evicts: bool,
}

impl Bucket {
    /// The words, for whoever changes an entry only if it is still the one that was read.
    #[must_use]
    pub const fn words(&self) -> &[AtomicU64; WAYS] {
        &self.0
    }

    /// The entry in a place (modulo [`WAYS`]).
    #[must_use]
    #[inline(always)]
    pub fn load(&self, way: usize) -> Entry {
        #[expect(unsafe_code, reason = "BPF has atomic loads, other than the plain one, only since instruction set v4")]
        // SAFETY: the pointer is the word's own; it is aligned, so that one instruction reads it.
        Entry(unsafe { self.word(way).as_ptr().read_volatile() })
    }

    /// Puts an entry in a place (modulo [`WAYS`]).
    #[inline(always)]
    pub fn store(&self, way: usize, entry: Entry) {
        #[expect(unsafe_code, reason = "as for the load")]
        // SAFETY: as for the load.
        unsafe {
            self.word(way).as_ptr().write_volatile(entry.0);
        }
    }

    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "below WAYS by the modulus")]
    fn word(&self, way: usize) -> &AtomicU64 {
        &self.0[way % WAYS]
    }

    /// Where the flow's entry is, living or not; [`WAYS`] when there is none.
    ///
    /// To one hash in 2³⁹ an empty place looks like its own; that is where its entry may be put, and its real is none.
    #[must_use]
    #[inline(always)]
    pub fn find(&self, hash: u64) -> usize {
        // Without branches: where it is, a CPU cannot predict, and the verifier need not try each place.
        let mut places = 1_u64 << WAYS;
        for way in 0..WAYS {
            places |= self.load(way).matches(hash) << way;
        }
        places.trailing_zeros() as usize
    }

    /// Takes the entry of another table over, of which packets wrote what they write here no longer: in place of what is
    /// here of the same flow, unless that was seen later, or else of an entry that is given up before it.
    pub fn take_over(&self, hash: u64, entry: Entry, now: Tick) {
        let age = |entry: Entry| entry.age(now);
        let way = match self.find(hash) {
            WAYS => self.place(hash, now, u16::MAX).way,
            way => way,
        };
        let here = self.load(way);
        let replaces = if here.matches(hash) == 1 {
            age(here) > age(entry) || (age(here) == age(entry) && here.real() != entry.real())
        } else {
            let longest_age = longest_age(u16::MAX);
            here.rank(now, longest_age) >= entry.rank(now, longest_age)
        };
        if replaces {
            self.store(way, entry);
        }
    }

    /// The place for a flow that has none: an empty one, or else that of an expired entry, or that of one that was seen
    /// only once (a flood of SYNs displaces itself), or that of the flow that was silent for longest.
    ///
    /// `idle_s` is that of the new flow's VIP. Among VIPs with different ones, a living entry of another may count as
    /// expired here; it is the older one all the same.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "below WAYS")]
    pub fn place(&self, hash: u64, now: Tick, idle_s: u16) -> Place {
        // Among equals one by the hash: were it always the same place, newcomers would displace each other.
        let turn = hash % WAYS as u64;
        let mut last = 0;
        for way in 0..WAYS {
            let rank = self.load(way).rank(now, longest_age(idle_s));
            last = larger(last, rank << WAYS.trailing_zeros() | (way as u64 ^ turn));
        }
        Place { way: ((last ^ turn) % WAYS as u64) as usize, evicts: last >> WAYS.trailing_zeros() < Entry::LIVES_NOT }
    }
}

crate::pod!(TableSize);

const _: () = assert!(size_of::<Bucket>() == 64 && size_of::<Entry>() == 8);
const _: () = assert!(Entry::REAL_MASK << Entry::REAL_SHIFT == 0xff_f000 && longest_age(u16::MAX) < 0xf00);

/// The larger of two numbers below 2³², without a branch: a compiler that knew it for a maximum would make one.
#[inline(always)]
const fn larger(a: u64, b: u64) -> u64 {
    let more = b.wrapping_sub(a);
    a + (more & !(more >> 32) & 0xffff_ffff)
}

#[cfg(test)]
#[path = "flow_tests.rs"]
mod tests;

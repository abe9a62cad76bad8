//! One VIP's ring: the Maglev ring over all admitted reals, patched where a real takes no new flows, and
//! the windows in which flows of changed slots keep their real. Pure; the algorithm is in docs/architecture.md.
//!
//! | event | `cur` | window |
//! |---|---|---|
//! | a real fails hard | its slots go to `up` | none: its flows are dead |
//! | its port closes, it drains | the same | `prev` = that real, which still serves established flows (closed UDP port: none) |
//! | it is back | its slots are its own again | none: flows born meanwhile have entries |
//! | admitted, removed, re-weighted | a new `all` | `prev` = the old `cur` on every slot that changed |
//! | it is back, or admitted, and starts slowly | its slots become its own a portion at a time | none more: flows of those that are not yet have entries |

use crate::maglev::{Candidate, Maglev};
use lb_ebpf::hash::splitmix64;
use lb_ebpf::ring::{MAX_RING_ORDER, RING_SLOTS, RealId, Ring as RingWords, Slot};
use siphasher::sip::SipHasher24;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    hash::Hasher,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// A configured real of this ring's VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its index, address and weight.
    pub candidate: Candidate,
    /// It has been up since it was configured: it is part of the ring, whether up or down now.
    pub admitted: bool,
    /// Whether new flows go to it.
    pub new_flows: NewFlows,
    /// Flows that it has may go on.
    pub serves: bool,
    /// So many in [`WHOLE`] of the slots that would be its own are: it has just begun to take new flows. While it takes them,
    /// this never shrinks; some other real that takes them has all of its own.
    pub portion: u8,
}

/// A portion that is all.
pub const WHOLE: u8 = 10;

/// Whether new flows go to a real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewFlows {
    /// They do.
    Take,
    /// Only if it was among the last that did, and none is left that does.
    Keep,
    /// Not even then: the operator has taken it out.
    Never,
}

/// The ring of one VIP.
#[derive(Clone, Debug)]
pub struct Ring {
    maglev: Maglev,
    order: u8,
    flow_idle: Duration,
    keep_last: bool,
    enough: usize,
    basis: Vec<Candidate>,
    takers: BTreeSet<RealId>,
    all: Arc<[RealId]>,
    slots: Vec<Entry>,
    /// Flows of some slot are looked up.
    looked_up: bool,
    window_until: Option<Instant>,
    /// Packets met it before this daemon came.
    adopted: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Entry {
    cur: RealId,
    prev: RealId,
    track: bool,
    lookup: bool,
    /// Not `TRACK` since the sweep under way began.
    rests: bool,
}

impl Entry {
    fn word(self) -> Slot {
        Slot::new(self.cur, self.prev, self.track, self.lookup)
    }
}

impl Ring {
    /// A ring of this order ([`crate::maglev::order_for`]) without reals.
    ///
    /// With `keep_last`, the last reals that took new flows go on doing so when none is left, or fewer than
    /// [`Ring::set_policy`] says. With `lookup`,
    /// entries of flows may live on every slot.
    #[must_use]
    pub fn new(maglev: &Maglev, order: u8, flow_idle: Duration, keep_last: bool, lookup: bool) -> Self {
        Self {
            maglev: maglev.clone(),
            order,
            flow_idle,
            keep_last,
            enough: 1,
            basis: Vec::new(),
            takers: BTreeSet::new(),
            all: vec![0; RING_SLOTS << order].into(),
            slots: vec![Entry { lookup, ..Entry::default() }; RING_SLOTS << order],
            looked_up: lookup,
            window_until: None,
            adopted: false,
        }
    }

    /// A ring that goes on where that of an earlier daemon stopped, with the same seed and order. When its window closes
    /// is not known, so it is as long again.
    #[must_use]
    pub fn adopt(
        maglev: &Maglev,
        flow_idle: Duration,
        keep_last: bool,
        parts: &[Box<RingWords>],
        now: Instant,
    ) -> Self {
        let order = (0..MAX_RING_ORDER).find(|&order| 1 << order >= parts.len()).unwrap_or(MAX_RING_ORDER);
        let mut ring = Self::new(maglev, order, flow_idle, keep_last, true);
        ring.adopted = true;
        let words = parts.iter().flat_map(|part| &part.slots);
        for (slot, word) in ring.slots.iter_mut().zip(words) {
            *slot = Entry { cur: word.cur(), prev: word.prev(), track: word.track(), lookup: true, rests: false };
        }
        // Which real a slot would have had with every real up is not known. Whatever it was, a window opens wherever the
        // new answer is, or may become, another than the one in use.
        ring.all = ring.slots.iter().map(|slot| slot.cur).collect();
        ring.takers = ring.current();
        ring.window_until = ring.slots.iter().any(|slot| slot.prev != 0).then(|| now + flow_idle);
        ring
    }

    /// Sees whether an adopted ring is the one over exactly these reals, those up that it names: then nothing about it
    /// is unknown. `TRACK` tells a real that is down from one that was never admitted.
    pub fn recognise(&mut self, candidates: &[Candidate]) -> bool {
        let basis = by_address(candidates.iter().copied());
        let takers = self.current();
        let all = self.maglev.build(&basis, self.order);
        let up: Vec<_> = basis.iter().filter(|c| takers.contains(&c.id)).copied().collect();
        let up = self.maglev.build(&up, self.order);
        let same = |(slot, (&all, &up)): (&Entry, (&RealId, &RealId))| {
            let taken = takers.contains(&all);
            slot.cur == if taken { all } else { up } && slot.track == (slot.prev != 0 || !taken)
        };
        if takers.is_empty() || !self.slots.iter().zip(all.iter().zip(&*up)).all(same) {
            return false;
        }
        (self.basis, self.takers, self.all) = (basis, takers, all);
        true
    }

    /// The reals that are to take new flows, as of the last update.
    #[must_use]
    pub fn takers(&self) -> &BTreeSet<RealId> {
        &self.takers
    }

    /// The reals that new flows go to.
    #[must_use]
    pub fn current(&self) -> BTreeSet<RealId> {
        self.slots.iter().map(|slot| slot.cur).filter(|id| *id != 0).collect()
    }

    /// Whether new flows go anywhere. Reals without weight may be takers, and have no slot.
    #[must_use]
    pub fn has_takers(&self) -> bool {
        self.slots.iter().any(|slot| slot.cur != 0)
    }

    /// Takes the policy of a new configuration; an open window keeps its end. While fewer reals than `enough` (at least one)
    /// take new flows, those that did go on if `keep_last` says so.
    pub fn set_policy(&mut self, flow_idle: Duration, keep_last: bool, enough: usize) {
        (self.flow_idle, self.keep_last, self.enough) = (flow_idle, keep_last, enough.max(1));
    }

    /// Brings the ring up to the members' state; true if a slot changed.
    ///
    /// With `quiet` no window is opened for a changed membership: no packet has met this ring yet, unless it was
    /// adopted.
    pub fn update(&mut self, members: &[Member], quiet: bool, now: Instant) -> bool {
        let quiet = quiet && !self.adopted;
        let basis = by_address(members.iter().filter(|m| m.admitted).map(|m| m.candidate));
        let taking: Vec<_> =
            members.iter().filter(|m| m.admitted && m.new_flows == NewFlows::Take && m.candidate.weight > 0).collect();
        let old_all = (basis != self.basis).then(|| {
            self.basis = basis;
            std::mem::replace(&mut self.all, self.maglev.build(&self.basis, self.order))
        });
        let taking: BTreeSet<_> = taking.iter().map(|m| m.candidate.id).collect();
        if taking.len() >= self.enough || !self.keep_last {
            self.takers = taking;
        } else {
            self.keep_takers(members, taking);
        }
        let takers: Vec<_> = self.basis.iter().filter(|c| self.takers.contains(&c.id)).copied().collect();
        let up = if takers == self.basis { self.all.clone() } else { self.maglev.build(&takers, self.order) };
        let serving: BTreeSet<_> = members.iter().filter(|m| m.serves).map(|m| m.candidate.id).collect();

        let portions = Portions::of(members, &self.takers);
        // The ring of those that take all that is theirs: what a real that starts slowly leaves is theirs too.
        let settled: Vec<_> = takers.iter().filter(|c| portions.are_whole(c.id)).copied().collect();
        let settled = if settled == takers { up.clone() } else { self.maglev.build(&settled, self.order) };

        let taken = Flags::of(&self.takers);
        let before = self.slots.clone();
        let mut opened = false;
        let candidates = self.all.iter().zip(up.iter().zip(&*settled));
        for (at, (slot, (&all, (&up, &settled)))) in self.slots.iter_mut().zip(candidates).enumerate() {
            let old = slot.cur;
            slot.cur = [all, up].into_iter().find(|&id| portions.has(id, at)).unwrap_or(settled);
            let moved = slot.cur != old;
            let opens = match &old_all {
                Some(old_all) => !quiet && (moved || old_all.get(at) != Some(&all)),
                // A real that takes new flows again finds those born meanwhile remembered.
                None => moved && serving.contains(&old) && !taken.has(old),
            };
            if opens && old != 0 {
                // The older `prev` stays: flows born since are tracked, those from before are its own.
                slot.prev = if slot.prev == 0 { old } else { slot.prev };
                opened = true;
            }
        }
        if opened {
            self.window_until = Some(now + self.flow_idle);
        }
        self.mark();
        self.slots != before
    }

    /// Too few reals are known to take new flows: the last that did go on, beside them. Of these the ones that were removed,
    /// or that the operator has taken out, do not; if that leaves none, which of the others lives nobody knows, so each is
    /// as good.
    fn keep_takers(&mut self, members: &[Member], taking: BTreeSet<RealId>) {
        let is_out = |m: &&Member| m.new_flows == NewFlows::Never;
        let out: BTreeSet<_> = members.iter().filter(is_out).map(|m| m.candidate.id).collect();
        self.takers.retain(|id| !out.contains(id));
        self.takers.extend(taking);
        if !self.basis.iter().any(|c| self.takers.contains(&c.id)) {
            self.takers = self.basis.iter().map(|c| c.id).filter(|id| !out.contains(id)).collect();
        }
    }

    /// Ends the window on the slots whose flows without an entry went to these reals; true if there was one.
    pub fn forget(&mut self, gone: &BTreeSet<RealId>) -> bool {
        let mut forgotten = false;
        for slot in self.slots.iter_mut().filter(|slot| gone.contains(&slot.prev)) {
            (slot.prev, forgotten) = (0, true);
        }
        if forgotten {
            self.mark();
        }
        forgotten
    }

    /// Closes the window if its time has come; true if a slot changed.
    pub fn close_window(&mut self, now: Instant) -> bool {
        if self.window_until.is_none_or(|until| now < until) {
            return false;
        }
        self.window_until = None;
        let before = self.slots.clone();
        for slot in &mut self.slots {
            slot.prev = 0;
        }
        self.mark();
        self.slots != before
    }

    /// Sets `TRACK` where the answer may still change back or a window is open, and `LOOKUP` with it.
    fn mark(&mut self) {
        for (slot, &all) in self.slots.iter_mut().zip(&*self.all) {
            slot.track = slot.prev != 0 || (all != 0 && slot.cur != all);
            slot.lookup |= slot.track;
            slot.rests &= !slot.track;
            self.looked_up |= slot.lookup;
        }
    }

    /// The table of tracked flows is going to be read, once packets meet the ring as it is now.
    pub fn begin_sweep(&mut self) {
        for slot in &mut self.slots {
            slot.rests = !slot.track;
        }
    }

    /// The table was read since [`Ring::begin_sweep`], and names these slots. Those of the others that were not `TRACK` at
    /// any time meanwhile have no entries and get none: their `LOOKUP` ends. True if there were any.
    pub fn end_sweep(&mut self, named: impl Fn(usize) -> bool) -> bool {
        let mut changed = false;
        self.looked_up = false;
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let ends = slot.rests && slot.lookup && !named(at);
            slot.lookup &= !ends;
            slot.rests = false;
            changed |= ends;
            self.looked_up |= slot.lookup;
        }
        changed
    }

    /// Whether flows of any slot are looked up.
    #[must_use]
    pub fn is_looked_up(&self) -> bool {
        self.looked_up
    }

    /// The reals that flows without an entry may be sent to.
    pub fn named(&self) -> impl Iterator<Item = RealId> {
        self.slots.iter().flat_map(|slot| [slot.cur, slot.prev])
    }

    /// When the open window closes.
    #[must_use]
    pub fn window_until(&self) -> Option<Instant> {
        self.window_until
    }

    /// The logarithm of the number of its parts: fixed when it was created, lest every flow had another slot.
    #[must_use]
    pub fn order(&self) -> u8 {
        self.order
    }

    /// Its number of slots.
    #[must_use]
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// The share of new flows that each real gets, 0 to 1; of those that get any.
    #[must_use]
    pub fn shares(&self) -> BTreeMap<RealId, f64> {
        let mut owned: HashMap<RealId, u32> = HashMap::new();
        for slot in self.slots.iter().filter(|slot| slot.cur != 0) {
            *owned.entry(slot.cur).or_default() += 1;
        }
        #[expect(clippy::cast_precision_loss, reason = "at most 262,144")]
        let size = self.size() as f64;
        owned.into_iter().map(|(id, owned)| (id, f64::from(owned) / size)).collect()
    }

    /// The words that the packet path reads, part by part.
    #[must_use]
    #[expect(clippy::large_stack_arrays, reason = "64 KiB, boxed at once")]
    pub fn words(&self) -> Vec<Box<RingWords>> {
        let part = |slots: &[Entry]| {
            let mut words = Box::new(RingWords { slots: [Slot::default(); RING_SLOTS] });
            for (word, slot) in words.slots.iter_mut().zip(slots) {
                *word = slot.word();
            }
            words
        };
        self.slots.chunks(RING_SLOTS).map(part).collect()
    }

    /// A digest of which address each slot gives to new flows: equal on nodes with the same seed,
    /// configuration, health and size of this ring, whatever their history. The size is that of the ring's creation.
    #[must_use]
    pub fn digest(&self, address_of: impl Fn(RealId) -> Option<IpAddr>) -> u64 {
        let mut hasher = SipHasher24::new_with_key(&self.maglev.seed());
        for slot in &self.slots {
            match address_of(slot.cur) {
                Some(IpAddr::V4(address)) => hasher.write(&address.octets()),
                Some(IpAddr::V6(address)) => hasher.write(&address.octets()),
                None => hasher.write_u8(0),
            }
        }
        hasher.finish()
    }
}

/// A set of reals that is asked of every slot.
struct Flags(Vec<bool>);

impl Flags {
    fn of(reals: &BTreeSet<RealId>) -> Self {
        let mut flags = vec![false; reals.last().map_or(0, |&last| usize::from(last) + 1)];
        for &id in reals {
            flags.get_mut(usize::from(id)).into_iter().for_each(|flag| *flag = true);
        }
        Self(flags)
    }

    fn has(&self, real: RealId) -> bool {
        self.0.get(usize::from(real)) == Some(&true)
    }
}

/// Of each real, the portion of its slots that is its own; none of one that takes no new flows.
struct Portions(Vec<u8>);

impl Portions {
    fn of(members: &[Member], takers: &BTreeSet<RealId>) -> Self {
        let mut of = vec![0; takers.last().map_or(0, |&last| usize::from(last) + 1)];
        for member in members.iter().filter(|member| takers.contains(&member.candidate.id)) {
            of.get_mut(usize::from(member.candidate.id)).into_iter().for_each(|of| *of = member.portion.min(WHOLE));
        }
        // Nobody is there who could take what they leave.
        if !of.contains(&WHOLE) {
            of.iter_mut().filter(|portion| **portion > 0).for_each(|portion| *portion = WHOLE);
        }
        Self(of)
    }

    fn get(&self, real: RealId) -> u8 {
        self.0.get(usize::from(real)).copied().unwrap_or(0)
    }

    fn are_whole(&self, real: RealId) -> bool {
        self.get(real) == WHOLE
    }

    /// Whether this slot is among those that are the real's own: a slot that once was stays so as the portion grows.
    fn has(&self, real: RealId, slot: usize) -> bool {
        let rank = || splitmix64(&mut (slot as u64)) % u64::from(WHOLE);
        match self.get(real) {
            0 => false,
            WHOLE => true,
            portion => rank() < u64::from(portion),
        }
    }
}

/// Candidates with weight, by address: what a ring is made of, compared to see whether it changed.
fn by_address(candidates: impl Iterator<Item = Candidate>) -> Vec<Candidate> {
    let mut candidates: Vec<_> = candidates.filter(|c| c.weight > 0).collect();
    candidates.sort_unstable_by_key(|c| c.address);
    candidates
}

#[cfg(test)]
#[path = "ring_tests.rs"]
mod tests;

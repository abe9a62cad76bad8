//! The ring against a model of the packet path: no flow may change its real while that real serves.

use super::*;
use lb_ebpf::ring::slot_index;
use proptest::prelude::*;
use std::{collections::HashMap, net::Ipv4Addr};

const SEED: [u8; 16] = *b"a seed for tests";
const IDLE: Duration = Duration::from_mins(15);

fn member(id: RealId) -> Member {
    let address = IpAddr::V4(Ipv4Addr::new(198, 18, 100, u8::try_from(id).unwrap()));
    Member {
        candidate: Candidate { id, address, weight: 100 },
        admitted: true,
        new_flows: NewFlows::Take,
        serves: true,
        portion: WHOLE,
    }
}

fn ring_of(members: &[Member], now: Instant) -> Ring {
    let mut ring = Ring::new(&Maglev::new(SEED), 0, IDLE, true, false);
    ring.update(members, true, now);
    ring
}

fn slots(ring: &Ring) -> Vec<Slot> {
    ring.words().iter().flat_map(|part| part.slots).collect()
}

#[test]
fn steady_ring_neither_tracks_nor_looks_up() {
    let ring = ring_of(&[member(1), member(2), member(3)], Instant::now());
    assert!(slots(&ring).iter().all(|s| s.cur() != 0 && s.prev() == 0 && !s.track() && !s.lookup()));
}

#[test]
fn ring_of_empty_slots_takes_nothing() {
    let now = Instant::now();
    let with = |change: fn(&mut Member)| {
        let mut members = [member(1), member(2)];
        members.iter_mut().for_each(change);
        ring_of(&members, now)
    };
    assert!(with(|_| {}).has_takers());
    let weightless = with(|m| m.candidate.weight = 0);
    assert!(!weightless.has_takers(), "no slot is theirs");
    assert!(!with(|m| m.new_flows = NewFlows::Never).has_takers());
    assert!(!with(|m| (m.admitted, m.new_flows) = (false, NewFlows::Keep)).has_takers(), "none was ever up");
    let mut members = [member(1), member(2)];
    let mut ring = ring_of(&members, now);
    for m in &mut members {
        (m.new_flows, m.serves) = (NewFlows::Keep, false);
    }
    ring.update(&members, false, now);
    assert!(ring.has_takers(), "the last are kept");
    for m in &mut members {
        m.new_flows = NewFlows::Never;
    }
    ring.update(&members, false, now);
    assert!(!ring.has_takers());
}

#[test]
fn hard_failure_moves_only_the_failed_reals_slots_and_recovery_restores_them() {
    let now = Instant::now();
    let mut members = [member(1), member(2), member(3)];
    let mut ring = ring_of(&members, now);
    let before = slots(&ring);
    (members[1].new_flows, members[1].serves) = (NewFlows::Keep, false);
    assert!(ring.update(&members, false, now));
    for (old, new) in before.iter().zip(slots(&ring)) {
        assert_eq!(old.cur() == 2, old.cur() != new.cur());
        assert_eq!((new.prev(), new.track()), (0, old.cur() == 2));
    }
    assert_eq!(ring.window_until(), None);
    members[1] = member(2);
    ring.update(&members, false, now);
    assert!(slots(&ring).iter().zip(&before).all(|(new, old)| new.cur() == old.cur() && !new.track()));
}

#[test]
fn closed_port_keeps_its_flows_for_a_window() {
    let now = Instant::now();
    let mut members = [member(1), member(2)];
    let mut ring = ring_of(&members, now);
    members[0].new_flows = NewFlows::Keep;
    ring.update(&members, false, now);
    assert!(slots(&ring).iter().all(|s| s.cur() == 2 && (s.prev() == 1) == s.track()));
    assert_eq!(ring.window_until(), Some(now + IDLE));
    assert!(!ring.close_window(now + IDLE / 2));
    assert!(ring.close_window(now + IDLE));
    assert!(slots(&ring).iter().all(|s| s.prev() == 0));
}

#[test]
fn change_inside_a_window_keeps_the_older_prev() {
    let now = Instant::now();
    let mut members = vec![member(1), member(2)];
    let mut ring = ring_of(&members, now);
    members.push(member(3));
    ring.update(&members, false, now);
    let first = slots(&ring);
    members.push(member(4));
    ring.update(&members, false, now + IDLE / 2);
    for (old, new) in first.iter().zip(slots(&ring)) {
        assert!(old.prev() == 0 || new.prev() == old.prev());
    }
    assert_eq!(ring.window_until(), Some(now + IDLE / 2 + IDLE));
}

#[test]
fn last_real_failing_is_kept_or_withdrawn_by_policy() {
    let now = Instant::now();
    for keep in [true, false] {
        let mut ring = Ring::new(&Maglev::new(SEED), 0, IDLE, keep, false);
        let mut members = [member(1)];
        ring.update(&members, true, now);
        (members[0].new_flows, members[0].serves) = (NewFlows::Keep, false);
        ring.update(&members, false, now);
        let owner = RealId::from(keep);
        assert!(slots(&ring).iter().all(|s| s.cur() == owner), "keep {keep}");
    }
}

#[test]
fn real_failing_below_what_is_enough_stays_and_one_that_is_back_joins() {
    let now = Instant::now();
    let mut members: Vec<_> = (1..=4).map(member).collect();
    let mut ring = ring_of(&members, now);
    ring.set_policy(IDLE, true, 3);
    let takers = |ring: &mut Ring, members: &[Member]| {
        ring.update(members, false, now);
        ring.current()
    };
    (members[0].new_flows, members[0].serves) = (NewFlows::Keep, false);
    assert_eq!(takers(&mut ring, &members), BTreeSet::from([2, 3, 4]));
    (members[1].new_flows, members[1].serves) = (NewFlows::Keep, false);
    (members[2].new_flows, members[2].serves) = (NewFlows::Keep, true);
    assert_eq!(takers(&mut ring, &members), BTreeSet::from([2, 3, 4]), "one that is up is not enough");
    (members[0].new_flows, members[0].serves) = (NewFlows::Take, true);
    assert_eq!(takers(&mut ring, &members), BTreeSet::from([1, 2, 3, 4]));
    members[3].new_flows = NewFlows::Never;
    assert_eq!(takers(&mut ring, &members), BTreeSet::from([1, 2, 3]), "what the operator says holds");
    members[3].new_flows = NewFlows::Take;
    members[2].new_flows = NewFlows::Take;
    assert_eq!(takers(&mut ring, &members), BTreeSet::from([1, 3, 4]), "three are enough");
    ring.set_policy(IDLE, false, 3);
    members[0].new_flows = NewFlows::Keep;
    assert_eq!(takers(&mut ring, &members), BTreeSet::from([3, 4]), "withdrawn: what comes goes to those that are up");
}

#[test]
fn last_real_that_took_flows_removed_leaves_the_ring_to_the_others() {
    let now = Instant::now();
    let mut members = [member(1), member(2), member(3)];
    let mut ring = ring_of(&members, now);
    for down in [1, 2, 0] {
        (members[down].new_flows, members[down].serves) = (NewFlows::Keep, false);
        ring.update(&members, false, now);
    }
    assert!(slots(&ring).iter().all(|s| s.cur() == 1), "the last one is kept");
    members[0].admitted = false;
    ring.update(&members, false, now);
    assert_eq!(ring.current(), BTreeSet::from([2, 3]));
}

#[test]
fn real_that_starts_slowly_gets_its_own_slots_back_step_by_step_without_a_window() {
    let now = Instant::now();
    let mut members: Vec<_> = (1..=4).map(member).collect();
    let mut ring = ring_of(&members, now);
    let own = |ring: &Ring| indexes(ring, |slot| slot.cur() == 1).into_iter().collect::<BTreeSet<_>>();
    let all = own(&ring);
    (members[0].new_flows, members[0].serves) = (NewFlows::Keep, false);
    ring.update(&members, false, now);
    (members[0].new_flows, members[0].serves) = (NewFlows::Take, true);
    let mut before = BTreeSet::new();
    for portion in 1..=WHOLE {
        members[0].portion = portion;
        assert!(ring.update(&members, false, now), "portion {portion}");
        let has = own(&ring);
        assert!(before.is_subset(&has) && has.is_subset(&all));
        #[expect(clippy::cast_precision_loss, reason = "at most 16,384")]
        let part = has.len() as f64 / all.len() as f64;
        assert!((part - f64::from(portion) / f64::from(WHOLE)).abs() < 0.03, "portion {portion}: {part}");
        let words = slots(&ring);
        let waiting = |&slot: &usize| words[slot].track() != has.contains(&slot);
        assert!(all.iter().all(waiting), "flows on the slots that it does not have yet are remembered");
        assert!(!ring.update(&members, false, now), "no swap without a step");
        before = has;
    }
    assert_eq!((before, ring.window_until()), (all, None));
}

#[test]
fn real_that_starts_slowly_gets_as_little_of_what_others_left() {
    let now = Instant::now();
    let mut members: Vec<_> = (1..=8).map(member).collect();
    let mut ring = ring_of(&members, now);
    for member in &mut members[..7] {
        (member.new_flows, member.serves) = (NewFlows::Keep, false);
    }
    ring.update(&members, false, now);
    (members[0].new_flows, members[0].serves, members[0].portion) = (NewFlows::Take, true, 1);
    ring.update(&members, false, now);
    let share = ring.shares()[&1];
    assert!((0.03..0.08).contains(&share), "half of the ring in the end, a tenth of that now: {share}");
}

#[test]
fn digest_depends_on_state_and_not_on_history() {
    let now = Instant::now();
    let address = |id: RealId| (id != 0).then(|| member(id).candidate.address);
    let straight = ring_of(&[member(1), member(2)], now);
    let mut members = vec![member(2), member(3), member(1)];
    let mut winding = ring_of(&members, now);
    members.remove(1);
    winding.update(&members, false, now);
    assert_eq!(winding.digest(address), straight.digest(address));
    assert_ne!(ring_of(&[member(1)], now).digest(address), straight.digest(address));
}

fn indexes(ring: &Ring, of: impl Fn(Slot) -> bool) -> Vec<usize> {
    slots(ring).iter().enumerate().filter(|(_, slot)| of(**slot)).map(|(at, _)| at).collect()
}

#[test]
fn sweep_ends_the_look_up_of_slots_without_entries_that_rest() {
    let now = Instant::now();
    let mut members = [member(1), member(2), member(3)];
    let mut ring = ring_of(&members, now);
    (members[1].new_flows, members[1].serves) = (NewFlows::Keep, false);
    ring.update(&members, false, now);
    let tracked = indexes(&ring, Slot::track);
    ring.begin_sweep();
    assert!(!ring.end_sweep(|_| false), "they may still change back");
    members[1] = member(2);
    ring.update(&members, false, now);
    ring.begin_sweep();
    assert!(ring.end_sweep(|slot| slot == tracked[0]));
    let looked_up = indexes(&ring, Slot::lookup);
    assert_eq!(looked_up, tracked[..1]);
}

#[test]
fn slot_that_was_tracked_during_a_sweep_is_looked_up_on() {
    let now = Instant::now();
    let mut members = [member(1), member(2)];
    let mut ring = ring_of(&members, now);
    ring.begin_sweep();
    for (new_flows, serves) in [(NewFlows::Keep, false), (NewFlows::Take, true)] {
        (members[1].new_flows, members[1].serves) = (new_flows, serves);
        ring.update(&members, false, now);
    }
    assert!(slots(&ring).iter().all(|slot| !slot.track()));
    assert!(!ring.end_sweep(|_| false), "flows may have been remembered after the table was read");
    assert!(ring.is_looked_up());
}

/// A pool with these weights, in a ring of the size that it is given by default.
fn pool(weights: &[u16]) -> (Vec<Member>, Ring) {
    let candidate = |(n, &weight): (u32, &u16)| {
        let address = IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + n));
        Candidate { id: RealId::try_from(n).unwrap(), address, weight }
    };
    let member =
        |candidate| Member { candidate, admitted: true, new_flows: NewFlows::Take, serves: true, portion: WHOLE };
    let members: Vec<_> = (1..).zip(weights).map(candidate).map(member).collect();
    let mut ring = Ring::new(&Maglev::new(SEED), crate::maglev::order_for(weights.iter().copied()), IDLE, true, false);
    ring.update(&members, true, Instant::now());
    (members, ring)
}

/// The largest deviation of a real's share from that of its weight among the members that take new flows, percent.
fn worst_deviation(members: &[Member], ring: &Ring) -> f64 {
    let takers = || members.iter().filter(|m| m.new_flows == NewFlows::Take).map(|m| m.candidate);
    let total: f64 = takers().map(|c| f64::from(c.weight)).sum();
    let shares = ring.shares();
    let deviation = |c: Candidate| (shares[&c.id] * total / f64::from(c.weight) - 1.0).abs() * 100.0;
    takers().map(deviation).fold(0.0, f64::max)
}

#[test]
fn ring_of_the_default_size_is_balanced() {
    for reals in [3, 10, 100, 1000] {
        let (members, ring) = pool(&vec![100; reals]);
        let worst = worst_deviation(&members, &ring);
        println!("{reals} equal reals, {} slots: worst deviation {worst:.2} %", ring.size());
        assert!(worst <= 2.0);
    }
    let (members, ring) = pool(&[10, 1, 10, 1, 10, 1, 10, 1, 10, 1]);
    let worst = worst_deviation(&members, &ring);
    println!("weights 1:10 among 10 reals, {} slots: worst deviation {worst:.2} %", ring.size());
    assert!(worst <= 2.0);
}

#[test]
fn slots_of_reals_that_fail_are_shared_out_evenly() {
    let (mut members, mut ring) = pool(&[100; 100]);
    for member in members.iter_mut().step_by(10) {
        (member.new_flows, member.serves) = (NewFlows::Keep, false);
    }
    ring.update(&members, false, Instant::now());
    let worst = worst_deviation(&members, &ring);
    println!("10 of 100 reals down, {} slots: worst deviation {worst:.2} %", ring.size());
    assert!(worst <= 6.0);
}

#[test]
fn one_real_of_many_failing_moves_its_own_slots_only() {
    for reals in [100, 1000] {
        let (mut members, mut ring) = pool(&vec![100; reals]);
        let before = slots(&ring);
        (members[7].new_flows, members[7].serves) = (NewFlows::Keep, false);
        ring.update(&members, false, Instant::now());
        for (old, new) in before.iter().zip(slots(&ring)) {
            assert_eq!(old.cur() == 8, old.cur() != new.cur());
        }
    }
}

/// What happens to the pool, or time that passes.
#[derive(Clone, Debug)]
enum Step {
    FailHard(u8),
    ClosePort(u8),
    Drain(u8),
    Disable(u8),
    Recover(u8),
    RecoverSlowly(u8),
    Admit(u8),
    AdmitSlowly(u8),
    /// Every portion grows.
    Grow(u8),
    Remove(u8),
    Weigh(u8, u16),
    Restart,
    BeginSweep,
    EndSweep,
    Pass(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let real = 0..8_u8;
    prop_oneof![
        real.clone().prop_map(Step::FailHard),
        real.clone().prop_map(Step::ClosePort),
        real.clone().prop_map(Step::Drain),
        real.clone().prop_map(Step::Disable),
        real.clone().prop_map(Step::Recover),
        real.clone().prop_map(Step::RecoverSlowly),
        real.clone().prop_map(Step::Admit),
        real.clone().prop_map(Step::AdmitSlowly),
        (1..5_u8).prop_map(Step::Grow),
        real.clone().prop_map(Step::Remove),
        (real, 1..200_u16).prop_map(|(r, w)| Step::Weigh(r, w)),
        Just(Step::Restart),
        Just(Step::BeginSweep),
        Just(Step::EndSweep),
        (1..800_u16).prop_map(Step::Pass),
        (1..800_u16).prop_map(Step::Pass),
    ]
}

/// The packet path in Rust: `lb-ebpf/src/bin/load_balancer/flows.rs`, entry for entry.
#[derive(Default)]
struct Path {
    entries: HashMap<u64, (RealId, Instant)>,
}

impl Path {
    fn packet(&mut self, slot: Slot, hash: u64, syn: bool, serves: impl Fn(RealId) -> bool, now: Instant) -> RealId {
        if !slot.lookup() {
            return slot.cur();
        }
        if let Some((real, seen)) = self.entries.get_mut(&hash)
            && !syn
            && now - *seen < IDLE
            && serves(*real)
        {
            *seen = now;
            return *real;
        }
        let choice = if !syn && serves(slot.prev()) { slot.prev() } else { slot.cur() };
        if slot.track() && choice != 0 {
            self.entries.insert(hash, (choice, now));
        } else {
            self.entries.remove(&hash);
        }
        choice
    }
}

struct Flow {
    hash: u64,
    real: RealId,
    next: Instant,
}

struct World {
    /// The slots that lived when the sweep under way began.
    sweep: Option<BTreeSet<usize>>,
    now: Instant,
    members: Vec<Member>,
    ring: Ring,
    path: Path,
    flows: Vec<Flow>,
    random: u64,
    moved: usize,
    packets: usize,
}

impl World {
    fn new(random: u64) -> Self {
        let now = Instant::now();
        let members: Vec<_> = (1..=5).map(member).collect();
        let ring = ring_of(&members, now);
        Self { sweep: None, now, members, ring, path: Path::default(), flows: Vec::new(), random, moved: 0, packets: 0 }
    }

    fn draw(&mut self, below: u64) -> u64 {
        lb_ebpf::hash::splitmix64(&mut self.random) % below
    }

    fn send(&mut self, hash: u64, syn: bool) -> RealId {
        let slot = self.ring.slots[slot_index(hash, self.ring.order())].word();
        let serving: BTreeSet<_> = self.members.iter().filter(|m| m.serves).map(|m| m.candidate.id).collect();
        self.packets += 1;
        self.path.packet(slot, hash, syn, |id| serving.contains(&id), self.now)
    }

    fn serves(&self, real: RealId) -> bool {
        self.members.iter().any(|m| m.candidate.id == real && m.serves)
    }

    /// Some flows begin; all others that are due send; gaps are anything below the idle bound.
    fn pass(&mut self, seconds: u16) {
        let end = self.now + Duration::from_secs(seconds.into());
        for _ in 0..20 {
            let hash = self.draw(u64::MAX);
            let real = self.send(hash, true);
            let taken_out = |m: &Member| m.candidate.id == real && m.new_flows == NewFlows::Never;
            assert!(!self.members.iter().any(taken_out), "a new flow to a real that the operator has taken out");
            let gap = self.draw(IDLE.as_secs());
            // The last real is kept though it is down: nothing is promised to what begins there.
            if self.serves(real) {
                self.flows.push(Flow { hash, real, next: self.now + Duration::from_secs(gap) });
            }
        }
        while let Some(at) =
            (0..self.flows.len()).filter(|&i| self.flows[i].next < end).min_by_key(|&i| self.flows[i].next)
        {
            self.now = self.now.max(self.flows[at].next);
            self.ring.close_window(self.now);
            let (hash, real) = (self.flows[at].hash, self.flows[at].real);
            let alive = self.serves(real);
            let gets = self.send(hash, false);
            if !alive {
                self.flows.swap_remove(at);
                continue;
            }
            self.moved += usize::from(gets != real);
            self.flows[at].next = self.now + Duration::from_secs(self.draw(IDLE.as_secs()));
        }
        self.now = end;
        self.ring.close_window(self.now);
    }

    fn apply(&mut self, step: &Step) {
        let at = |members: &[Member], r: u8| usize::from(r) % members.len().max(1);
        match *step {
            Step::Pass(seconds) => return self.pass(seconds),
            Step::Admit(r) => self.admit(r, WHOLE),
            Step::AdmitSlowly(r) => self.admit(r, 1),
            Step::RecoverSlowly(r) => {
                let at = at(&self.members, r);
                let begins = !self.ring.takers().contains(&self.members[at].candidate.id);
                self.health(r, NewFlows::Take, true);
                if begins {
                    self.members[at].portion = 1;
                }
            }
            Step::Grow(by) => self.members.iter_mut().for_each(|m| m.portion = WHOLE.min(m.portion + by)),
            // A removed real still serves the flows it has; see `reconcile`.
            Step::Remove(r) if self.members.iter().filter(|m| m.admitted).count() > 1 => {
                let at = at(&self.members, r);
                self.members[at].admitted = false;
            }
            Step::Remove(_) => {}
            Step::Weigh(r, weight) => {
                let at = at(&self.members, r);
                self.members[at].candidate.weight = weight;
            }
            Step::FailHard(r) => self.health(r, NewFlows::Keep, false),
            Step::ClosePort(r) => self.health(r, NewFlows::Keep, true),
            Step::Drain(r) => self.health(r, NewFlows::Never, true),
            Step::Disable(r) => self.health(r, NewFlows::Never, false),
            Step::Restart => self.restart(),
            // All that happens before its end is after the moment in which the table is read.
            Step::BeginSweep => {
                self.ring.begin_sweep();
                self.path.entries.retain(|_, (_, seen)| self.now - *seen < IDLE);
                self.sweep = Some(self.path.entries.keys().map(|&hash| slot_index(hash, self.ring.order())).collect());
            }
            Step::EndSweep => {
                if let Some(named) = self.sweep.take() {
                    self.ring.end_sweep(|slot| named.contains(&slot));
                }
            }
            Step::Recover(r) => self.health(r, NewFlows::Take, true),
        }
        self.settle();
        let members = self.members.clone();
        self.ring.update(&members, false, self.now);
    }

    fn admit(&mut self, r: u8, portion: u8) {
        let id = RealId::from(r) + 1;
        match self.members.iter_mut().find(|m| m.candidate.id == id) {
            Some(known) if known.serves && !known.admitted => (known.admitted, known.portion) = (true, portion),
            Some(_) => {}
            None => self.members.push(Member { portion, ..member(id) }),
        }
    }

    /// As the daemon has it: who takes no new flows, or alone, has no portion but all.
    fn settle(&mut self) {
        let takes = |m: &Member| m.admitted && m.new_flows == NewFlows::Take && m.candidate.weight > 0;
        self.members.iter_mut().filter(|m| !takes(m)).for_each(|m| m.portion = WHOLE);
        if !self.members.iter().any(|m| takes(m) && m.portion == WHOLE) {
            self.members.iter_mut().for_each(|m| m.portion = WHOLE);
        }
    }

    /// The next daemon has the words of the ring, knows a real as up that new flows go to, and admits no other
    /// unless it recognises the ring.
    fn restart(&mut self) {
        self.sweep = None;
        self.members.iter_mut().for_each(|m| m.portion = WHOLE);
        self.ring = Ring::adopt(&Maglev::new(SEED), IDLE, true, &self.ring.words(), self.now);
        let in_use = self.ring.current();
        let candidates: Vec<_> = self.members.iter().filter(|m| m.admitted).map(|m| m.candidate).collect();
        if self.ring.recognise(&candidates) {
            return;
        }
        for member in &mut self.members {
            let was_up = in_use.contains(&member.candidate.id);
            member.admitted &= member.new_flows == NewFlows::Take || was_up;
        }
        let inherited: Vec<_> = self
            .members
            .iter()
            .map(|m| match m.new_flows {
                NewFlows::Keep if m.admitted && in_use.contains(&m.candidate.id) => {
                    Member { new_flows: NewFlows::Take, ..*m }
                }
                _ => *m,
            })
            .collect();
        self.ring.update(&inherited, true, self.now);
    }

    fn health(&mut self, r: u8, new_flows: NewFlows, serves: bool) {
        let at = usize::from(r) % self.members.len();
        // Flows of a host that died are gone, whatever it answers later.
        let id = self.members[at].candidate.id;
        if !serves {
            self.flows.retain(|f| f.real != id);
        }
        (self.members[at].new_flows, self.members[at].serves) = (new_flows, serves);
    }
}

fn long() -> bool {
    std::env::var_os("LBD_TEST_LONG").is_some()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if long() { 400 } else { 24 }, max_shrink_iters: 6000, ..ProptestConfig::default() })]
    #[test]
    fn flow_sending_within_the_idle_bound_never_changes_its_real_while_it_serves(
        seed: u64,
        steps in prop::collection::vec(step(), 1..60),
    ) {
        let mut world = World::new(seed);
        world.pass(300);
        for step in &steps {
            world.apply(step);
        }
        world.pass(1800);
        prop_assert!(world.packets > 40, "only {} packets", world.packets);
        prop_assert_eq!(world.moved, 0, "of {} packets", world.packets);
    }
}

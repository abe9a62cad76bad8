use super::*;
use proptest::prelude::*;
use std::net::Ipv4Addr;

const HOLD_DOWN: Duration = Duration::from_secs(5);

fn address(last: u8) -> IpAddr {
    Ipv4Addr::new(198, 19, 10, last).into()
}

fn wishes(wishes: &[(u8, Wish)]) -> Event {
    Event::Wishes(wishes.iter().map(|&(last, wish)| (address(last), wish)).collect())
}

fn left(routes: &[u8]) -> Plan {
    Plan::new(HOLD_DOWN, routes.iter().map(|&last| address(last)).collect())
}

#[test]
fn route_comes_when_the_data_plane_has_settled_and_goes_at_once() {
    let (mut plan, now) = (left(&[]), Instant::now());
    assert_eq!(plan.apply(wishes(&[(1, Wish::Announce)]), now), [Step::Settle(1)]);
    assert_eq!(plan.state(address(1), now), Some(RouteState::Pending));
    assert_eq!(plan.apply(Event::Settled(1), now), [Step::Add(address(1))]);
    assert_eq!(plan.state(address(1), now), Some(RouteState::Announced));
    assert_eq!(plan.apply(wishes(&[(1, Wish::Withdraw)]), now), [Step::Delete(address(1))]);
    assert_eq!(plan.state(address(1), now), Some(RouteState::Withdrawn));
    assert_eq!(plan.state(address(2), now), None);
}

#[test]
fn hold_down_begins_anew_with_each_recovery() {
    let (mut plan, start) = (left(&[1]), Instant::now());
    plan.apply(wishes(&[(1, Wish::Keep)]), start);
    for second in [1, 3] {
        plan.apply(wishes(&[(1, Wish::Withdraw)]), start);
        let again = start + Duration::from_secs(second);
        assert!(matches!(plan.apply(wishes(&[(1, Wish::Announce)]), again)[..], [Step::Settle(_)]));
        plan.apply(Event::Settled(9), again);
        assert_eq!(plan.state(address(1), again), Some(RouteState::Held(again + HOLD_DOWN)));
        assert_eq!(plan.apply(Event::Tick, again + HOLD_DOWN / 2), []);
    }
    assert_eq!(plan.apply(Event::Tick, start + Duration::from_secs(3) + HOLD_DOWN), [Step::Add(address(1))]);
}

#[test]
fn routes_of_an_earlier_daemon_stay_unless_they_are_not_configured() {
    let (mut plan, now) = (left(&[1, 2, 3]), Instant::now());
    assert_eq!(
        plan.apply(wishes(&[(1, Wish::Keep), (2, Wish::Keep), (4, Wish::Keep)]), now),
        [Step::Delete(address(3))]
    );
    assert_eq!(plan.state(address(1), now), Some(RouteState::Announced));
    assert_eq!(plan.state(address(4), now), Some(RouteState::Pending));
    let learnt = [(1, Wish::Announce), (2, Wish::Withdraw), (4, Wish::Announce)];
    assert_eq!(plan.apply(wishes(&learnt), now), [Step::Settle(1), Step::Delete(address(2))]);
    assert_eq!(plan.apply(Event::Settled(1), now), [Step::Add(address(4))]);
}

#[test]
fn what_others_do_to_routes_is_told_and_mended() {
    let (mut plan, now) = (left(&[1]), Instant::now());
    plan.apply(wishes(&[(1, Wish::Keep)]), now);
    plan.apply(wishes(&[(1, Wish::Announce)]), now);
    assert!(!plan.is_news(address(1), true, true) && plan.is_news(address(1), true, false));
    assert!(plan.is_news(address(2), true, true) && !plan.is_news(address(2), false, true));
    let steps = plan.apply(Event::Listed([address(2)].into()), now);
    let (one, two) = (address(1), address(2));
    assert_eq!(steps, [Step::Vanished(one), Step::Appeared(two), Step::Delete(two), Step::Add(one)]);
}

#[test]
fn refused_step_is_tried_again_after_a_while() {
    let (mut plan, now) = (left(&[]), Instant::now());
    plan.apply(wishes(&[(1, Wish::Announce)]), now);
    plan.apply(Event::Settled(1), now);
    assert_eq!(plan.apply(Event::Refused(address(1)), now), []);
    assert_eq!(plan.state(address(1), now), Some(RouteState::Refused));
    assert_eq!(plan.apply(Event::Tick, now + RETRY / 2), []);
    assert_eq!(plan.apply(Event::Tick, now + RETRY), [Step::Add(address(1))]);
}

#[test]
fn route_that_the_kernel_does_not_delete_is_not_withdrawn() {
    for wished in [&[(1, Wish::Withdraw)][..], &[]] {
        let (mut plan, now) = (left(&[1]), Instant::now());
        plan.apply(wishes(&[(1, Wish::Keep)]), now);
        assert_eq!(plan.apply(wishes(wished), now), [Step::Delete(address(1))]);
        assert_eq!(plan.apply(Event::Refused(address(1)), now), []);
        assert_eq!(plan.state(address(1), now), Some(RouteState::Stays));
        assert_eq!(plan.routes().collect::<Vec<_>>(), [address(1)]);
        assert_eq!(plan.apply(Event::Tick, now + RETRY), [Step::Delete(address(1))]);
        assert!(plan.state(address(1), now).is_none_or(|state| state == RouteState::Withdrawn));
        assert_eq!(plan.routes().next(), None);
    }
}

/// What a run is made of; times in tenths of a second.
#[derive(Clone, Debug)]
enum Act {
    Wish(u8, Option<Wish>),
    Settle,
    Wait(u64),
    /// Somebody toggles a route of ours, and the kernel tells.
    Meddle(u8),
    /// The kernel refuses the next step.
    Refuse,
}

fn act() -> impl Strategy<Value = Act> {
    let wish = prop_oneof![Just(Wish::Withdraw), Just(Wish::Announce)];
    prop_oneof![
        4 => (0..4u8, proptest::option::weighted(0.9, wish)).prop_map(|(last, wish)| Act::Wish(last, wish)),
        2 => Just(Act::Settle),
        2 => (1..80u64).prop_map(Act::Wait),
        1 => (0..5u8).prop_map(Act::Meddle),
        1 => Just(Act::Refuse),
    ]
}

/// The world around the plan: what is wished, since when, and the kernel's table.
struct World {
    plan: Plan,
    now: Instant,
    wishes: BTreeMap<IpAddr, Wish>,
    /// When each began to be able to serve, and whether it was able to before.
    serves: BTreeMap<IpAddr, (Instant, bool)>,
    /// Those that began to since the data plane has settled last.
    unsettled: BTreeSet<IpAddr>,
    kernel: BTreeSet<IpAddr>,
    refuse: bool,
}

impl World {
    fn new(left: &BTreeSet<u8>) -> Self {
        let kernel: BTreeSet<_> = left.iter().map(|&last| address(last)).collect();
        let plan = Plan::new(HOLD_DOWN, kernel.clone());
        let (wishes, serves, unsettled) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { plan, now: Instant::now(), wishes, serves, unsettled, kernel, refuse: false }
    }

    fn act(&mut self, act: &Act) {
        match act {
            Act::Wish(last, wish) => {
                self.wish(address(*last), *wish);
                self.event(Event::Wishes(self.wishes.clone()));
            }
            Act::Settle => {
                self.unsettled.clear();
                self.event(Event::Settled(u64::MAX));
            }
            Act::Wait(tenths) => {
                self.now += Duration::from_millis(100 * tenths);
                self.event(Event::Tick);
            }
            Act::Meddle(last) => {
                let (address, there) = (address(*last), self.kernel.contains(&address(*last)));
                if there {
                    self.kernel.remove(&address)
                } else {
                    self.kernel.insert(address)
                };
                if self.plan.is_news(address, true, !there) {
                    self.event(Event::Listed(self.kernel.clone()));
                }
            }
            Act::Refuse => self.refuse = true,
        }
    }

    fn wish(&mut self, address: IpAddr, wish: Option<Wish>) {
        let before = self.wishes.get(&address).copied();
        if let Some(wish) = wish {
            self.wishes.insert(address, wish);
        } else {
            self.wishes.remove(&address);
            self.serves.remove(&address);
        }
        if wish == Some(Wish::Announce) && before != wish {
            let again = self.serves.contains_key(&address);
            self.serves.insert(address, (self.now, again));
            self.unsettled.insert(address);
        }
    }

    fn event(&mut self, event: Event) {
        for step in self.plan.apply(event, self.now) {
            let (Step::Add(address) | Step::Delete(address)) = step else { continue };
            if std::mem::take(&mut self.refuse) {
                self.plan.apply(Event::Refused(address), self.now);
                continue;
            }
            if step == Step::Delete(address) {
                assert!(self.kernel.remove(&address), "{address} is not there to be deleted");
                assert!(!self.may_be_there(address), "{address} was withdrawn for no reason");
            } else {
                assert!(self.kernel.insert(address), "{address} is there already");
                assert!(self.may_be_there(address), "{address} was announced too early");
            }
        }
    }

    /// It can serve, packets meet it, and if it could before it has for long enough.
    fn may_be_there(&self, address: IpAddr) -> bool {
        let serves = self.wishes.get(&address) == Some(&Wish::Announce) && !self.unsettled.contains(&address);
        let held = |&(since, again): &(Instant, bool)| !again || self.now >= since + HOLD_DOWN;
        serves && self.serves.get(&address).is_some_and(held)
    }
}

proptest! {
    #[test]
    fn routes_are_those_that_may_be_there_whatever_happens(acts in proptest::collection::vec(act(), 1..60)) {
        let mut world = World::new(&BTreeSet::new());
        for act in &acts {
            world.act(act);
        }
        // What was refused is tried again; then nothing is left to be done.
        world.refuse = false;
        world.act(&Act::Wait(10));
        for &address in &world.kernel {
            prop_assert!(world.may_be_there(address), "{address} is announced");
        }
        world.act(&Act::Settle);
        world.act(&Act::Wait(50));
        let serve = |wishes: &BTreeMap<IpAddr, Wish>| -> BTreeSet<IpAddr> {
            wishes.iter().filter(|(_, wish)| **wish == Wish::Announce).map(|(&address, _)| address).collect()
        };
        prop_assert_eq!(serve(&world.wishes), world.kernel);
    }

    #[test]
    fn start_touches_no_route_that_is_right(left in proptest::collection::btree_set(0..6u8, 0..6), serve in proptest::collection::btree_set(0..4u8, 0..4)) {
        let mut world = World::new(&left);
        world.wishes = (0..4).map(|last| (address(last), Wish::Keep)).collect();
        let before = world.kernel.clone();
        let configured: BTreeSet<_> = world.wishes.keys().copied().collect();
        let steps = world.plan.apply(Event::Wishes(world.wishes.clone()), world.now);
        prop_assert!(steps.iter().all(|step| matches!(step, Step::Delete(address) if !configured.contains(address))));
        let learnt = (0..4).map(|last| (address(last), if serve.contains(&last) { Wish::Announce } else { Wish::Withdraw }));
        let steps = world.plan.apply(Event::Wishes(learnt.collect()), world.now);
        let serve: BTreeSet<_> = serve.iter().map(|&last| address(last)).collect();
        let right = |step: &Step| match step {
            Step::Delete(address) => before.contains(address) && !serve.contains(address),
            Step::Settle(_) => true,
            Step::Add(_) | Step::Vanished(_) | Step::Appeared(_) => false,
        };
        prop_assert!(steps.iter().all(right), "{:?}", steps);
        let added = world.plan.apply(Event::Settled(u64::MAX), world.now);
        let missing: Vec<_> = serve.difference(&before).map(|&address| Step::Add(address)).collect();
        prop_assert_eq!(added, missing);
    }
}

//! What a VIP does with what its checks say: enough reals or not, reals that come and go, reals
//! that start slowly.

use crate::{
    config::Config,
    model::{Admin, VipState},
    nexthop::NextHop,
    notice::Notice,
    reconcile::{Core, Event, Inheritance, Op},
    service::{Service, Standing},
};
use hc_prober::{Severity, State};
use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

const UP: State = State::Up;
const HARD: State = State::Down(Severity::Hard);

/// A daemon with one VIP over some reals, at a time that the test lets pass.
struct World {
    core: Core,
    now: Instant,
    /// What it has told.
    told: Vec<Notice>,
    /// How often a ring was swapped.
    swaps: usize,
}

fn address(real: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 100, real).into()
}

/// These settings of the VIP, and these reals.
fn config(settings: &str, reals: &[(u8, u16)]) -> Config {
    Config::parse("lbd.toml", &config_text(settings, reals)).unwrap()
}

fn config_text(settings: &str, reals: &[(u8, u16)]) -> String {
    let mut text = "[node]\ninterface = \"eth0\"\n[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"tcp\"\nport = 80\n\
                    check = { kind = \"tcp\" }\n"
        .to_owned();
    writeln!(text, "{settings}").unwrap();
    for (real, weight) in reals {
        writeln!(text, "[[vip.real]]\naddress = \"{}\"\nweight = {weight}", address(*real)).unwrap();
    }
    text
}

impl World {
    /// Every real is up.
    fn running(settings: &str, reals: u8) -> Self {
        let reals: Vec<_> = (1..=reals).map(|real| (real, 100)).collect();
        let now = Instant::now();
        let (core, ops) = Core::start(config(settings, &reals), Inheritance::default(), now);
        let mut world = Self { core, now, told: Vec::new(), swaps: 0 };
        world.take(ops);
        let source = Ipv4Addr::new(198, 18, 221, 11).into();
        let hop = NextHop { ifindex: 2, mtu: 1500, source_mac: [2; 6], dest_mac: [4; 6], source };
        world.event(Event::NextHops(reals.iter().map(|(real, _)| (address(*real), hop)).collect()));
        for (real, _) in reals {
            world.verdict(real, UP);
        }
        world
    }

    fn event(&mut self, event: Event) {
        let ops = self.core.apply(event, self.now);
        self.take(ops);
    }

    fn take(&mut self, ops: Vec<Op>) {
        for op in ops {
            match op {
                Op::Tell(notice) => self.told.push(notice),
                Op::Ring(..) => self.swaps += 1,
                _ => {}
            }
        }
    }

    fn verdict(&mut self, real: u8, state: State) {
        let key = self.service().check_keys(address(real)).next().unwrap();
        self.event(Event::Verdict(key, state));
    }

    fn administer(&mut self, real: u8, admin: Admin) {
        let place = (self.service().config.key(), address(real));
        self.event(Event::Administered(place, admin));
    }

    /// Lets time pass, in the daemon's ticks.
    fn pass(&mut self, seconds: f64) {
        let end = self.now + Duration::from_secs_f64(seconds);
        while self.now < end {
            self.now += Duration::from_millis(100).min(end - self.now);
            self.event(Event::Tick);
        }
    }

    /// Falls, and its checks pass again after a second.
    fn flap(&mut self, real: u8) {
        self.verdict(real, HARD);
        self.pass(1.0);
        self.verdict(real, UP);
    }

    fn service(&self) -> &Service {
        self.core.services().next().unwrap()
    }

    fn standing(&self, real: u8) -> &Standing {
        self.service().standing(address(real)).unwrap()
    }

    fn share(&self, real: u8) -> f64 {
        self.service().ring.shares().get(&self.standing(real).id).copied().unwrap_or(0.0)
    }

    /// The reals that new flows go to.
    fn takers(&self) -> Vec<u8> {
        (1..=u8::MAX).filter(|&real| self.service().has(address(real)) && self.share(real) > 0.0).collect()
    }

    fn states(&self) -> Vec<VipState> {
        let state = |notice: &Notice| match notice {
            Notice::Vip { after, .. } => Some(*after),
            Notice::Held { .. } | Notice::Released { .. } => None,
        };
        self.told.iter().filter_map(state).collect()
    }
}

#[test]
fn vip_below_min_healthy_keeps_its_reals_and_says_so_until_enough_are_back() {
    let mut world = World::running("min_healthy = 2", 3);
    world.verdict(1, HARD);
    assert_eq!((world.takers(), world.service().state()), (vec![2, 3], VipState::Serving));
    world.verdict(2, HARD);
    assert_eq!((world.takers(), world.service().state()), (vec![2, 3], VipState::Kept));
    world.verdict(1, UP);
    assert_eq!((world.takers(), world.service().state()), (vec![1, 3], VipState::Serving));
    assert_eq!(world.states(), [VipState::Serving, VipState::Kept, VipState::Serving]);
}

#[test]
fn vip_below_min_healthy_is_unable_where_it_is_withdrawn_and_serves_with_what_is_left() {
    let mut world = World::running("min_healthy = \"60%\"\nall_down = \"withdraw\"", 3);
    world.verdict(1, HARD);
    world.verdict(2, HARD);
    assert_eq!((world.takers(), world.service().state()), (vec![3], VipState::Unable));
    world.verdict(3, HARD);
    assert_eq!((world.takers(), world.service().serving()), (vec![], 0));
    for real in 1..=2 {
        world.verdict(real, UP);
    }
    assert_eq!(world.states(), [VipState::Serving, VipState::Unable, VipState::Serving]);
}

#[test]
fn reals_that_the_operator_has_taken_out_do_not_serve_and_leave_all_the_same() {
    let mut world = World::running("min_healthy = 3", 3);
    world.administer(1, Admin::Draining);
    assert_eq!((world.takers(), world.service().state()), (vec![2, 3], VipState::Kept));
    world.verdict(2, HARD);
    assert_eq!(world.takers(), [2, 3], "its checks no longer take one out");
    world.administer(1, Admin::Enabled);
    world.verdict(2, UP);
    assert_eq!((world.takers(), world.service().state()), (vec![1, 2, 3], VipState::Serving));
}

#[test]
fn vip_can_serve_while_a_slot_has_a_real_or_one_that_drains_finishes() {
    let mut world = World::running("", 2);
    assert!(world.service().can_serve());
    world.event(Event::Configured(config("", &[(1, 0), (2, 0)])));
    assert!(!world.service().can_serve(), "no real has weight");

    let mut world = World::running("", 2);
    (1..=2).for_each(|real| world.verdict(real, HARD));
    assert!(world.service().can_serve(), "the last are kept");
    (1..=2).for_each(|real| world.administer(real, Admin::Draining));
    assert!(!world.service().can_serve(), "those that drain are dead");
    world.verdict(1, UP);
    assert!(world.service().can_serve(), "one that drains finishes what it has");
    (1..=2).for_each(|real| world.administer(real, Admin::Disabled));
    assert!(!world.service().can_serve());
}

#[test]
fn vip_whose_reals_cannot_be_reached_does_not_serve() {
    let mut world = World::running("", 1);
    assert!(world.core.can_serve(world.service()));
    // Another real, to which no way is known.
    world.event(Event::Configured(config("", &[(7, 100)])));
    world.verdict(7, UP);
    assert!(world.service().can_serve() && !world.core.can_serve(world.service()));
}

#[test]
fn vip_none_of_whose_reals_was_ever_up_is_unable() {
    let now = Instant::now();
    let (mut core, _) = Core::start(config("", &[(1, 100)]), Inheritance::default(), now);
    let key = core.services().next().unwrap().check_keys(address(1)).next().unwrap();
    let ops = core.apply(Event::Verdict(key, HARD), now);
    let told = ops.iter().find_map(|op| if let Op::Tell(Notice::Vip { after, .. }) = op { Some(*after) } else { None });
    assert_eq!(told, Some(VipState::Unable));
}

#[test]
fn removed_vip_is_cleared_after_the_table_without_it_is_told() {
    /// The order in which table and clearing are told.
    fn order(ops: &[Op]) -> Vec<String> {
        let what = |op: &Op| match op {
            Op::Vips(_) => Some("table".to_owned()),
            Op::Vacate(index) => Some(format!("ring {index}")),
            Op::ClearCount(index) => Some(format!("count {index}")),
            _ => None,
        };
        ops.iter().filter_map(what).collect()
    }
    let of_port = |port| {
        let one = config_text("", &[(1, 100)]).replace("port = 80", &format!("port = {port}"));
        Config::parse("lbd.toml", &one).unwrap()
    };
    let now = Instant::now();
    let (key, other) = (of_port(80).vips()[0].key(), of_port(81).vips()[0].key());
    let inheritance = Inheritance { vips: [(key, 5), (other, 6)].into(), ..Inheritance::default() };
    let (mut core, ops) = Core::start(of_port(80), inheritance, now);
    assert_eq!(order(&ops), [""; 0], "packets meet the earlier table until the first round is over");
    let check = core.services().next().unwrap().check_keys(address(1)).next().unwrap();
    let ops = core.apply(Event::Verdict(check, UP), now);
    assert_eq!(order(&ops), ["table", "ring 6", "count 6"]);
    let ops = core.apply(Event::Configured(of_port(82)), now);
    assert_eq!(order(&ops), ["table", "ring 5", "count 5"]);
}

const HOLD: &str = "hold_down = \"30s\"\nflap_limit = 2";

#[test]
fn real_that_falls_too_often_is_held_down_for_longer_each_time_and_serves_what_it_has() {
    let mut world = World::running(HOLD, 3);
    for _ in 0..2 {
        world.flap(1);
        assert_eq!(world.takers(), [1, 2, 3]);
    }
    for hold in [30.0, 60.0] {
        world.flap(1);
        assert_eq!((world.takers(), world.standing(1).state), (vec![2, 3], State::Down(Severity::Soft)));
        assert!(world.standing(1).serves().tcp, "its checks pass");
        world.pass(hold - 0.2);
        assert_eq!(world.takers(), [2, 3]);
        world.pass(0.3);
        assert_eq!((world.takers(), world.standing(1).state), (vec![1, 2, 3], UP));
    }
    let (key, real) = (world.service().config.key(), address(1));
    let told: Vec<_> = world.told.iter().filter(|notice| !matches!(notice, Notice::Vip { .. })).copied().collect();
    let held = |flaps, s| Notice::Held { vip: key, real, flaps, hold: Duration::from_secs(s) };
    let released = Notice::Released { vip: key, real, early: false };
    assert_eq!(told, [held(3, 30), released, held(4, 60), released]);
    assert_eq!(world.standing(1).flaps.total(), 4);
    world.verdict(1, State::Down(Severity::Soft));
    world.verdict(1, UP);
    assert_eq!(world.takers(), [2, 3], "held after a closed port just so");
    world.pass(120.1);
    assert_eq!(world.takers(), [1, 2, 3]);
    world.pass(600.0);
    world.flap(1);
    assert_eq!(world.takers(), [1, 2, 3], "the falls of ten minutes ago are forgiven");
}

#[test]
fn real_that_fails_while_it_is_held_begins_anew_and_has_not_fallen() {
    let mut world = World::running(HOLD, 2);
    (0..3).for_each(|_| world.flap(1));
    world.pass(20.0);
    world.verdict(1, HARD);
    assert_eq!((world.standing(1).flaps.held_until(), world.standing(1).serves().tcp), (None, false));
    world.verdict(1, UP);
    world.pass(20.0);
    assert_eq!(world.takers(), [2]);
    world.pass(10.1);
    assert_eq!((world.takers(), world.standing(1).flaps.total()), (vec![1, 2], 3));
}

#[test]
fn real_that_is_needed_is_not_held_down() {
    let mut world = World::running(HOLD, 2);
    (0..3).for_each(|_| world.flap(1));
    assert_eq!(world.takers(), [2]);
    world.verdict(2, HARD);
    assert_eq!((world.takers(), world.standing(1).state), (vec![1], UP));
    let early = |notice: &Notice| matches!(notice, Notice::Released { early: true, .. });
    assert_eq!(world.told.iter().filter(|notice| early(notice)).count(), 1);
    (0..5).for_each(|_| world.flap(1));
    assert_eq!(world.takers(), [1], "no other is up");
}

#[test]
fn common_failures_hold_down_no_more_reals_than_leave_half() {
    let mut world = World::running(HOLD, 10);
    for round in 1..=3 {
        (1..=10).for_each(|real| world.verdict(real, HARD));
        for real in 1..=10 {
            world.pass(1.0);
            world.verdict(real, UP);
            let serve = if round == 3 { real.min(5) } else { real };
            assert_eq!(world.takers(), (1..=serve).collect::<Vec<_>>(), "round {round}");
        }
    }
    world.verdict(1, HARD);
    assert_eq!(world.takers(), (2..=10).collect::<Vec<_>>(), "four of ten are less than half");
}

#[test]
fn reload_leaves_a_held_real_held_and_a_removed_one_is_forgiven() {
    let mut world = World::running(HOLD, 2);
    (0..3).for_each(|_| world.flap(1));
    let until = world.standing(1).flaps.held_until();
    world.event(Event::Configured(config(HOLD, &[(1, 100), (2, 150)])));
    assert_eq!((world.standing(1).flaps.held_until(), world.takers()), (until, vec![2]));
    world.event(Event::Configured(config(HOLD, &[(2, 150)])));
    world.event(Event::Configured(config(HOLD, &[(1, 100), (2, 150)])));
    assert_eq!((world.standing(1).flaps.total(), world.standing(1).state), (0, State::Init));
    world.verdict(1, UP);
    assert_eq!(world.takers(), [1, 2]);
}

#[test]
fn hold_ends_earlier_when_a_reload_makes_it_shorter_or_the_operator_enables_the_real() {
    let mut world = World::running(HOLD, 2);
    let reload = |world: &mut World, hold: &str| {
        let settings = HOLD.replace("30s", hold);
        world.event(Event::Configured(config(&settings, &[(1, 100), (2, 100)])));
    };
    (0..3).for_each(|_| world.flap(1));
    world.pass(5.0);
    reload(&mut world, "90s");
    reload(&mut world, "10s");
    world.pass(4.8);
    assert_eq!(world.takers(), [2]);
    world.pass(0.3);
    assert_eq!(world.takers(), [1, 2]);
    world.flap(1);
    assert_eq!(world.takers(), [2]);
    reload(&mut world, "0s");
    assert_eq!((world.takers(), world.standing(1).state), (vec![1, 2], UP), "nothing is held down any more");
    reload(&mut world, "30s");
    world.flap(1);
    assert_eq!(world.takers(), [2]);
    world.administer(1, Admin::Enabled);
    assert_eq!((world.takers(), world.standing(1).state), (vec![1, 2], UP));
    assert_eq!(world.standing(1).flaps.total(), 5, "what it costs next is not forgiven");
}

#[test]
fn reals_that_serve_are_counted_before_the_first_round_is_over() {
    let now = Instant::now();
    let (mut core, _) = Core::start(config("", &[(1, 100), (2, 100)]), Inheritance::default(), now);
    let key = core.services().next().unwrap().check_keys(address(1)).next().unwrap();
    core.apply(Event::Verdict(key, UP), now);
    let service = core.services().next().unwrap();
    assert_eq!((service.state(), service.serving()), (VipState::Starting, 1));
}

const SLOW: &str = "slow_start = \"9s\"\nflow_idle = \"1h\"";

/// The share of a real, as a part of what it has in the end.
fn part(world: &World, real: u8, whole: f64) -> String {
    format!("{:.1}", world.share(real) / whole)
}

#[test]
fn real_that_is_back_gets_its_share_in_ten_steps_and_each_is_one_swap() {
    let mut world = World::running(SLOW, 3);
    let whole = world.share(1);
    assert!(whole > 0.3, "nobody starts slowly with the daemon");
    world.verdict(1, HARD);
    world.verdict(1, UP);
    let swaps = world.swaps;
    let mut parts = vec![part(&world, 1, whole)];
    for _ in 0..10 {
        world.pass(1.0);
        parts.push(part(&world, 1, whole));
    }
    assert_eq!(parts.join(" "), "0.1 0.2 0.3 0.4 0.5 0.6 0.7 0.8 0.9 1.0 1.0");
    assert_eq!(world.swaps - swaps, 9);
    assert_eq!(world.service().ring.window_until(), None, "its host was gone: no flow is to be kept");
}

#[test]
fn real_that_is_new_enabled_or_weighs_again_starts_slowly_and_opens_one_window() {
    let mut world = World::running(SLOW, 3);
    let begins = |world: &World, real| (0.01..0.06).contains(&world.share(real));
    let reals = |weight| [(1, 100), (2, 100), (3, 100), (4, weight)];
    world.event(Event::Configured(config(SLOW, &reals(100))));
    assert_eq!(world.takers(), [1, 2, 3], "before its first verdict");
    world.verdict(4, UP);
    assert!(begins(&world, 4));
    let window = world.service().ring.window_until();
    assert!(window.is_some());
    world.pass(9.1);
    assert_eq!((part(&world, 4, 0.25).as_str(), world.service().ring.window_until()), ("1.0", window));

    world.administer(4, Admin::Draining);
    world.administer(4, Admin::Enabled);
    assert!(begins(&world, 4));
    world.pass(9.1);
    for weight in [0, 100] {
        world.event(Event::Configured(config(SLOW, &reals(weight))));
    }
    assert!(begins(&world, 4));
    world.event(Event::Configured(config("flow_idle = \"1h\"", &reals(100))));
    assert_eq!(part(&world, 4, 0.25), "1.0", "the configuration says that nobody starts slowly any more");
}

#[test]
fn portion_of_a_slow_start_does_not_shrink_when_that_is_to_take_longer() {
    let mut world = World::running(SLOW, 3);
    let whole = world.share(1);
    world.verdict(1, HARD);
    world.verdict(1, UP);
    world.pass(4.05);
    assert_eq!(part(&world, 1, whole), "0.5");
    let reals = [(1, 100), (2, 100), (3, 100)];
    world.event(Event::Configured(config("slow_start = \"90s\"\nflow_idle = \"1h\"", &reals)));
    assert_eq!(part(&world, 1, whole), "0.5");
    world.pass(45.0);
    assert_eq!(part(&world, 1, whole), "0.5");
    world.pass(2.0);
    assert_eq!(part(&world, 1, whole), "0.6");
    world.pass(40.0);
    assert_eq!(part(&world, 1, whole), "1.0");
}

#[test]
fn real_without_others_that_could_take_what_it_leaves_does_not_start_slowly() {
    let mut world = World::running(&format!("{SLOW}\nmin_healthy = 2"), 3);
    let whole = world.share(1);
    for real in 1..=3 {
        world.verdict(real, HARD);
    }
    // 2 and 3 are kept: they have never left, and 1 would share with the dead.
    world.verdict(1, UP);
    assert_eq!(part(&world, 1, whole), "1.0");
    world.verdict(2, UP);
    assert_eq!((world.takers(), world.standing(2).ramp_until(Duration::ZERO)), (vec![1, 2], None));
    world.verdict(3, UP);
    assert!((0.01..0.06).contains(&world.share(3)), "two others are settled");
}

#[test]
fn no_real_gets_more_than_twice_its_part_when_all_come_back_one_after_another() {
    let mut world = World::running(SLOW, 10);
    (1..=10).for_each(|real| world.verdict(real, HARD));
    for real in 1..=10_u8 {
        world.verdict(real, UP);
        let largest = world.service().ring.shares().into_values().fold(0.0, f64::max);
        assert!(largest < 1.1 / f64::from(real.min(5)), "{real} are back: one has {largest:.2}");
    }
    assert!(world.share(10) < 0.02, "five others have half of the weight: it starts slowly");
    world.verdict(1, HARD);
    assert!(world.share(10) > 0.09, "four others do not");
}

#[test]
fn half_of_the_weight_is_not_half_of_the_reals() {
    let reals = [(1, 1000), (2, 100), (3, 100)];
    let mut world = World::running(SLOW, 3);
    world.event(Event::Configured(config(SLOW, &reals)));
    world.verdict(1, HARD);
    world.verdict(1, UP);
    assert!(world.share(1) > 0.8, "two small ones do not carry what the large one does");
    world.verdict(3, HARD);
    world.verdict(3, UP);
    assert!(world.share(3) < 0.02);
}

#[test]
fn real_without_weight_that_a_restart_finds_is_not_admitted_by_it() {
    let world = World::running("", 2);
    let service = world.service();
    let inheritance = Inheritance {
        attached: true,
        reals: std::collections::BTreeMap::new(),
        hash_key: lb_ebpf::hash::HashKey::from_seed(world.core.config().node().seed()),
        vips: [(service.config.key(), service.index)].into(),
        rings: [(service.index, service.ring.words())].into(),
    };
    let (core, _) = Core::start(config("", &[(1, 100), (2, 100), (3, 0)]), inheritance, world.now);
    let admitted: Vec<_> =
        core.services().next().unwrap().configured().map(|(_, standing)| standing.admitted).collect();
    assert_eq!(admitted, [true, true, false]);
}

#[test]
fn real_gets_no_new_flow_before_its_checks_pass_whatever_else_changes() {
    let mut world = World::running("", 2);
    let reals = |weight| config("", &[(1, 100), (2, 100), (3, weight)]);
    // New, without weight, with some again, drained and enabled: nobody has heard of it yet.
    for weight in [100, 0, 100] {
        world.event(Event::Configured(reals(weight)));
        assert_eq!(world.takers(), [1, 2]);
    }
    for admin in [Admin::Draining, Admin::Enabled, Admin::Disabled, Admin::Enabled] {
        world.administer(3, admin);
        assert_eq!(world.takers(), [1, 2]);
    }
    world.verdict(3, HARD);
    assert_eq!(world.takers(), [1, 2]);
    world.verdict(3, UP);
    assert_eq!(world.takers(), [1, 2, 3]);
    // It fails while it is out, in each of the ways.
    world.administer(3, Admin::Disabled);
    world.verdict(3, HARD);
    world.administer(3, Admin::Enabled);
    assert_eq!(world.takers(), [1, 2]);
    world.event(Event::Configured(reals(0)));
    world.event(Event::Configured(reals(100)));
    assert_eq!(world.takers(), [1, 2]);
    // None of those that are left is better known: still not one that never passed.
    world.event(Event::Configured(config("", &[(1, 100), (2, 100), (4, 100)])));
    for real in 1..=2 {
        world.verdict(real, HARD);
    }
    assert_eq!(world.takers(), [2], "the last one is kept");
    world.administer(2, Admin::Draining);
    assert_eq!(world.takers(), [1], "down as it is, it was up once");
}

//! Events in, operations out: what a daemon writes when it starts over another's work, and what a reload keeps.

use super::*;
use hc_prober::Severity;
use std::fmt::Write as _;

const NOW: fn() -> Instant = Instant::now;

/// One VIP a port, each over the reals with these last octets, all checked at port 80.
fn config(vips: &[(u16, &[u8])], outer_source: bool) -> Config {
    let source = if outer_source { "outer_source = \"198.18.221.11\"\n" } else { "" };
    let mut text = format!("[node]\ninterface = \"eth0\"\n{source}");
    for (port, reals) in vips {
        writeln!(text, "[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"tcp\"\nport = {port}").unwrap();
        text += "check = { kind = \"tcp\", port = 80 }\n";
        for real in *reals {
            writeln!(text, "[[vip.real]]\naddress = \"{}\"", address(*real)).unwrap();
        }
    }
    Config::parse("lbd.toml", &text).unwrap()
}

fn address(real: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 100, real)
}

fn hop(source: u8) -> NextHop {
    let source = Ipv4Addr::new(198, 18, 221, source);
    NextHop { ifindex: 2, mtu: 1500, source_mac: [2; 6], dest_mac: [4; 6], source }
}

fn verdict(core: &mut Core, real: u8, state: State) -> Vec<Op> {
    let key = core.services().next().unwrap().check_key(address(real).into());
    core.apply(Event::Verdict(key, state), NOW())
}

/// A daemon that is attached, with these verdicts of its reals, and the last ring that it wrote.
struct Running {
    core: Core,
    ring: Box<RingWords>,
}

fn running(config: &Config, verdicts: &[(u8, State)]) -> Running {
    let (mut core, mut ops) = Core::start(config.clone(), Inheritance::default(), NOW());
    let hops = verdicts.iter().map(|(real, _)| (address(*real), hop(11))).collect();
    ops.extend(core.apply(Event::NextHops(hops), NOW()));
    for &(real, state) in verdicts {
        ops.extend(verdict(&mut core, real, state));
    }
    assert_eq!(core.phase(), Phase::Running);
    Running { core, ring: rings(&ops).pop().unwrap() }
}

/// What such a daemon leaves when it dies.
fn left_by(dead: &Running) -> Inheritance {
    let service = dead.core.services().next().unwrap();
    Inheritance {
        reals: dead.core.written.clone(),
        hash_key: HashKey::from_seed(dead.core.config.node().seed()),
        vips: BTreeMap::from([(service.config.key(), service.index)]),
        rings: BTreeMap::from([(service.index, dead.ring.clone())]),
    }
}

fn rings(ops: &[Op]) -> Vec<Box<RingWords>> {
    ops.iter().filter_map(|op| if let Op::Ring(_, ring) = op { Some(ring.clone()) } else { None }).collect()
}

fn reals(ops: &[Op]) -> Vec<(RealId, RealEntry)> {
    ops.iter().filter_map(|op| if let Op::Real(id, entry) = op { Some((*id, *entry)) } else { None }).collect()
}

fn shares(core: &Core) -> Vec<(bool, f64)> {
    let service = core.services().next().unwrap();
    service.configured().map(|(_, s)| (s.state == State::Up, service.ring.share(s.id))).collect()
}

const UP: State = State::Up;
const SOFT: State = State::Down(Severity::Soft);
const HARD: State = State::Down(Severity::Hard);

#[test]
fn start_over_anothers_work_writes_no_real_and_changes_no_answer() {
    let config = config(&[(80, &[1, 2, 3])], true);
    let dead = running(&config, &[(1, UP), (2, UP), (3, UP)]);
    let (mut core, ops) = Core::start(config, left_by(&dead), NOW());
    assert!(reals(&ops).is_empty(), "the attached program reads this map: {ops:?}");
    let ops = core.apply(Event::NextHops((1..=3).map(|real| (address(real), hop(11))).collect()), NOW());
    assert!(reals(&ops).is_empty());
    assert!((1..=3).all(|real| reals(&verdict(&mut core, real, UP)).is_empty()));
    assert_eq!(core.phase(), Phase::Running);
    let ring = core.services().next().unwrap().ring.words();
    assert!(ring.slots.iter().zip(&dead.ring.slots).all(|(new, old)| new.cur() == old.cur() && new.prev() == 0));
}

#[test]
fn start_with_a_real_down_opens_a_window_where_the_answer_changes() {
    let config = config(&[(80, &[1, 2, 3])], true);
    let dead = {
        let mut dead = running(&config, &[(1, UP), (2, UP), (3, UP)]);
        let ops = verdict(&mut dead.core, 2, HARD);
        Running { ring: rings(&ops).pop().unwrap(), ..dead }
    };
    let (mut core, _) = Core::start(config, left_by(&dead), NOW());
    for (real, state) in [(1, UP), (2, HARD), (3, UP)] {
        verdict(&mut core, real, state);
    }
    let ring = core.services().next().unwrap().ring.words();
    let moved = ring.slots.iter().zip(&dead.ring.slots).filter(|(new, old)| new.cur() != old.cur());
    let mut count = 0;
    for (new, old) in moved {
        assert!(new.prev() == old.cur() && new.track() && new.lookup());
        count += 1;
    }
    assert!(count > 0, "a ring over two reals is not one over three of which one is down");
}

#[test]
fn start_with_a_closed_port_goes_on_serving_its_flows() {
    let config = config(&[(80, &[1, 2])], true);
    let mut dead = running(&config, &[(1, UP), (2, UP)]);
    dead.ring = rings(&verdict(&mut dead.core, 2, SOFT)).pop().unwrap();
    let (mut core, ops) = Core::start(config, left_by(&dead), NOW());
    assert!(reals(&ops).is_empty());
    assert_eq!(shares(&core), [(true, 1.0), (false, 0.0)]);
    assert!(reals(&verdict(&mut core, 2, SOFT)).is_empty(), "it served and serves TCP");
    let ops = verdict(&mut core, 2, HARD);
    assert!(matches!(reals(&ops)[..], [(_, RealEntry { serves: 0, .. })]), "{ops:?}");
}

#[test]
fn start_without_a_real_of_the_last_configuration_leaves_its_flows_to_it() {
    let dead = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    let (mut core, ops) = Core::start(config(&[(80, &[1])], true), left_by(&dead), NOW());
    assert!(reals(&ops).is_empty());
    assert!(reals(&verdict(&mut core, 1, UP)).is_empty());
    let ring = core.services().next().unwrap().ring.words();
    let (one, two) = (core.reals.get(&address(1).into()).unwrap(), core.reals.get(&address(2).into()).unwrap());
    let kept = |(new, old): (&lb_ebpf::ring::Slot, &lb_ebpf::ring::Slot)| {
        new.cur() == one && (old.cur() == one || new.prev() == two)
    };
    assert!(ring.slots.iter().zip(&dead.ring.slots).all(kept));
}

#[test]
fn start_with_another_seed_takes_no_ring_over() {
    let dead = running(&config(&[(80, &[1])], true), &[(1, UP)]);
    let inheritance = Inheritance { hash_key: HashKey::from_seed([7; 16]), ..left_by(&dead) };
    let (core, _) = Core::start(config(&[(80, &[1])], true), inheritance, NOW());
    assert_eq!(shares(&core), [(false, 0.0)]);
}

#[test]
fn soft_down_serves_established_tcp_until_it_is_hard_down() {
    let Running { mut core, .. } = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    let ops = verdict(&mut core, 2, SOFT);
    assert!(matches!(reals(&ops)[..], [(_, RealEntry { serves: SERVES_TCP, .. })]), "{ops:?}");
    let ops = verdict(&mut core, 2, HARD);
    assert!(matches!(reals(&ops)[..], [(_, RealEntry { serves: 0, .. })]), "{ops:?}");
}

#[test]
fn real_removed_and_configured_again_is_admitted_by_its_next_verdict() {
    let both = config(&[(80, &[1, 2])], true);
    let Running { mut core, .. } = running(&both, &[(1, UP), (2, UP)]);
    let ops = core.apply(Event::Configured(config(&[(80, &[1])], true)), NOW());
    assert!(reals(&ops).is_empty(), "it goes on serving what it has");
    core.apply(Event::Configured(both), NOW());
    assert_eq!(shares(&core), [(true, 1.0), (false, 0.0)]);
    verdict(&mut core, 2, UP);
    let [(_, first), (up, second)] = shares(&core)[..] else { panic!() };
    assert!(up && first > 0.4 && second > 0.4);
}

#[test]
fn vip_that_shares_a_check_has_its_verdict_at_once() {
    let Running { mut core, .. } = running(&config(&[(80, &[1])], true), &[(1, UP)]);
    core.apply(Event::Configured(config(&[(80, &[1]), (443, &[1])], true)), NOW());
    assert!(
        core.services()
            .all(|service| service.configured().all(|(_, s)| s.state == UP && service.ring.share(s.id) > 0.9))
    );
}

#[test]
fn probes_follow_the_source_address_of_the_route() {
    for (outer_source, planned) in [(false, 1), (true, 0)] {
        let Running { mut core, .. } = running(&config(&[(80, &[1])], outer_source), &[(1, UP)]);
        let ops = core.apply(Event::NextHops(vec![(address(1), hop(12))]), NOW());
        assert_eq!(ops.iter().filter(|op| matches!(op, Op::Checks(_))).count(), planned);
    }
}

//! Events in, operations out: what a daemon writes when it starts over another's work, and what a reload keeps.

use super::*;
use crate::config::OuterSource;
use hc_prober::Severity;
use lb_ebpf::{
    flow::{Bucket, Entry, TableSize, Tick},
    ring::{RING_SLOTS, Slot},
};
use std::fmt::Write as _;

const NOW: fn() -> Instant = Instant::now;

/// One TCP VIP a port, each over the reals with these last octets, all checked at port 80.
fn config(vips: &[(u16, &[u8])], outer_source: bool) -> Config {
    let vips: Vec<_> = vips.iter().map(|&(port, reals)| ("tcp", port, 80, reals)).collect();
    config_of(&vips, outer_source)
}

/// One VIP each of a protocol and a port, checked at the second port.
fn config_of(vips: &[(&str, u16, u16, &[u8])], outer_source: bool) -> Config {
    config_from(vips, outer_source.then_some("198.18.221.11"))
}

/// The same with this outer source.
fn config_from(vips: &[(&str, u16, u16, &[u8])], outer_source: Option<&str>) -> Config {
    let source = outer_source.map(|source| format!("outer_source = \"{source}\"\n")).unwrap_or_default();
    let mut text = format!("[node]\ninterface = \"eth0\"\n{source}");
    for (protocol, port, check, reals) in vips {
        writeln!(text, "[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"{protocol}\"\nport = {port}").unwrap();
        writeln!(text, "check = {{ kind = \"{protocol}\", port = {check} }}").unwrap();
        for real in *reals {
            writeln!(text, "[[vip.real]]\naddress = \"{}\"", address(*real)).unwrap();
        }
    }
    Config::parse("lbd.toml", &text).unwrap()
}

fn address(real: u8) -> IpAddr {
    Ipv4Addr::new(198, 18, 100, real).into()
}

fn hop(source: u8) -> NextHop {
    let source = Ipv4Addr::new(198, 18, 221, source).into();
    NextHop { ifindex: 2, mtu: 1500, source_mac: [2; 6], dest_mac: [4; 6], source }
}

fn verdict(core: &mut Core, real: u8, state: State) -> Vec<Op> {
    let port = service(core, None).config.key().port;
    verdict_on(core, port, real, state)
}

/// A verdict of the check of a real of the VIP with this port.
fn verdict_on(core: &mut Core, port: u16, real: u8, state: State) -> Vec<Op> {
    let key = service(core, Some(port)).check_keys(address(real)).next().unwrap();
    core.apply(Event::Verdict(key, state), NOW())
}

/// The VIP with this port, or the first one.
fn service(core: &Core, port: Option<u16>) -> &Service {
    core.services().find(|service| port.is_none_or(|port| service.config.key().port == port)).unwrap()
}

fn id(core: &Core, real: u8) -> RealId {
    core.reals.get(&address(real)).unwrap()
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
        let keys: BTreeSet<_> = core.services().map(|s| s.check_keys(address(real)).next().unwrap()).collect();
        for key in keys {
            ops.extend(core.apply(Event::Verdict(key, state), NOW()));
        }
    }
    assert_eq!(core.phase(), Phase::Running);
    Running { core, ring: rings(&ops).pop().unwrap() }
}

/// What such a daemon leaves when it dies.
fn left_by(dead: &Running) -> Inheritance {
    let service = dead.core.services().next().unwrap();
    Inheritance {
        attached: true,
        reals: dead.core.written.clone(),
        hash_key: HashKey::from_seed(dead.core.config.node().seed()),
        vips: BTreeMap::from([(service.config.key(), service.index)]),
        rings: BTreeMap::from([(service.index, vec![dead.ring.clone()])]),
    }
}

fn share(service: &Service, id: RealId) -> f64 {
    service.ring.shares().get(&id).copied().unwrap_or(0.0)
}

/// Of a ring of one part.
fn words(service: &Service) -> Box<RingWords> {
    service.ring.words().pop().unwrap()
}

fn rings(ops: &[Op]) -> Vec<Box<RingWords>> {
    ops.iter().filter_map(|op| if let Op::Ring(_, ring) = op { Some(ring.clone()) } else { None }).collect()
}

fn reals(ops: &[Op]) -> Vec<(RealId, RealEntry)> {
    ops.iter().filter_map(|op| if let Op::Real(id, entry) = op { Some((*id, *entry)) } else { None }).collect()
}

fn shares(core: &Core) -> Vec<(bool, f64)> {
    let service = core.services().next().unwrap();
    service.configured().map(|(_, s)| (s.state == State::Up, share(service, s.id))).collect()
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
    let ring = words(core.services().next().unwrap());
    assert!(ring.slots.iter().zip(&dead.ring.slots).all(|(new, old)| new.cur() == old.cur() && new.prev() == 0));
}

#[test]
fn start_with_a_real_down_goes_on_with_the_same_ring() {
    let config = config(&[(80, &[1, 2, 3])], true);
    let mut dead = running(&config, &[(1, UP), (2, UP), (3, UP)]);
    dead.ring = rings(&verdict(&mut dead.core, 2, HARD)).pop().unwrap();
    let (mut core, _) = Core::start(config, left_by(&dead), NOW());
    let digest = |core: &Core| core.digest(service(core, None));
    for (real, state) in [(1, UP), (2, HARD), (3, UP)] {
        verdict(&mut core, real, state);
        assert_eq!(digest(&core), digest(&dead.core));
    }
    let ring = words(service(&core, None));
    let same = |(new, old): (&Slot, &Slot)| (new.cur(), new.prev(), new.track()) == (old.cur(), 0, old.track());
    assert!(ring.slots.iter().zip(&dead.ring.slots).all(same));
    // Its slots are its own again, and flows born meanwhile have entries.
    verdict(&mut core, 2, UP);
    verdict(&mut dead.core, 2, UP);
    assert_eq!(digest(&core), digest(&dead.core));
    assert_eq!(service(&core, None).ring.window_until(), None);
}

#[test]
fn start_with_a_real_that_was_never_up_admits_it_with_a_window() {
    let config = config(&[(80, &[1, 2])], true);
    let dead = running(&config, &[(1, UP), (2, HARD)]);
    let (mut core, _) = Core::start(config, left_by(&dead), NOW());
    verdict(&mut core, 1, UP);
    assert_eq!(service(&core, None).ring.window_until(), None);
    verdict(&mut core, 2, UP);
    let (one, two) = (id(&core, 1), id(&core, 2));
    let ring = words(service(&core, None));
    assert!(ring.slots.iter().any(|slot| slot.cur() == two));
    assert!(ring.slots.iter().all(|slot| slot.cur() == one || slot.prev() == one));
}

#[test]
fn start_with_every_check_failing_keeps_the_ring() {
    let config = config(&[(80, &[1, 2])], true);
    let dead = running(&config, &[(1, UP), (2, UP)]);
    let (mut core, _) = Core::start(config, left_by(&dead), NOW());
    for (real, state) in [(1, HARD), (2, HARD)] {
        verdict(&mut core, real, state);
    }
    assert_eq!(core.phase(), Phase::Running);
    let last = service(&core, None).ring.current();
    assert!(!last.is_empty());
    verdict(&mut core, 1, UP);
    verdict(&mut core, 2, UP);
    assert_eq!(core.digest(service(&core, None)), dead.core.digest(service(&dead.core, None)));
}

#[test]
fn start_with_a_closed_port_goes_on_serving_its_flows() {
    let config = config(&[(80, &[1, 2])], true);
    let mut dead = running(&config, &[(1, UP), (2, UP)]);
    dead.ring = rings(&verdict(&mut dead.core, 2, SOFT)).pop().unwrap();
    let (mut core, ops) = Core::start(config, left_by(&dead), NOW());
    assert!(reals(&ops).is_empty());
    assert_eq!(shares(&core), [(true, 1.0), (false, 0.0)]);
    assert!(reals(&verdict(&mut core, 2, SOFT)).is_empty(), "it served and serves its connections");
    let ops = verdict(&mut core, 2, HARD);
    assert!(matches!(reals(&ops)[..], [(_, RealEntry { serves: 0, .. })]), "{ops:?}");
}

#[test]
fn start_without_a_real_of_the_last_configuration_leaves_its_flows_to_it() {
    let dead = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    let (mut core, ops) = Core::start(config(&[(80, &[1])], true), left_by(&dead), NOW());
    assert!(reals(&ops).is_empty());
    assert!(reals(&verdict(&mut core, 1, UP)).is_empty());
    let ring = words(core.services().next().unwrap());
    let (one, two) = (id(&core, 1), id(&core, 2));
    let kept = |(new, old): (&Slot, &Slot)| new.cur() == one && (old.cur() == one || new.prev() == two);
    assert!(ring.slots.iter().zip(&dead.ring.slots).all(kept));
}

#[test]
fn start_with_another_seed_takes_no_ring_over() {
    let dead = running(&config(&[(80, &[1])], true), &[(1, UP)]);
    let inheritance = Inheritance { hash_key: HashKey::from_seed([7; 16]), ..left_by(&dead) };
    let (core, _) = Core::start(config(&[(80, &[1])], true), inheritance, NOW());
    assert_eq!(shares(&core), [(false, 0.0)]);
}

/// What a VIP with these `ring_slots` is warned of: the slots that it has and those that it would have.
fn warned(ops: &[Op]) -> Vec<(usize, usize)> {
    let warned = |op: &Op| if let Op::OtherRingSize(_, slots, wanted) = op { Some((*slots, *wanted)) } else { None };
    ops.iter().filter_map(warned).collect()
}

#[test]
fn ring_of_another_size_than_a_new_one_is_told_at_start_and_reload() {
    let config_of = |slots: &str| {
        let vip = "[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"tcp\"\nport = 80\ncheck.kind = \"tcp\"";
        let text = format!("[node]\ninterface = \"eth0\"\n{vip}\n{slots}\n[[vip.real]]\naddress = \"198.18.100.1\"");
        Config::parse("lbd.toml", &text).unwrap()
    };
    let (plain, larger) = (config_of(""), config_of("ring_slots = 65536"));
    let (core, ops) = Core::start(larger.clone(), Inheritance::default(), NOW());
    assert_eq!((service(&core, None).ring.size(), warned(&ops)), (65_536, vec![]));
    let mut dead = running(&plain, &[(1, UP)]);
    assert_eq!(warned(&dead.core.apply(Event::Configured(plain.clone()), NOW())), []);
    assert_eq!(warned(&dead.core.apply(Event::Configured(larger.clone()), NOW())), [(16_384, 65_536)]);
    let (core, ops) = Core::start(larger, left_by(&dead), NOW());
    assert_eq!(service(&core, None).ring.size(), 16_384, "its flows have their slots");
    assert_eq!(warned(&ops), [(16_384, 65_536)]);
}

#[test]
fn soft_down_serves_established_tcp_until_it_is_hard_down() {
    let Running { mut core, .. } = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    let ops = verdict(&mut core, 2, SOFT);
    assert!(reals(&ops).is_empty(), "{ops:?}");
    assert_eq!(core.written.get(&id(&core, 2)).unwrap().serves, SERVES_TCP);
    let ops = verdict(&mut core, 2, HARD);
    assert!(matches!(reals(&ops)[..], [(_, RealEntry { serves: 0, .. })]), "{ops:?}");
}

#[test]
fn datagrams_leave_a_real_that_is_down_for_them_whatever_it_is_to_tcp() {
    let config = config_of(&[("tcp", 80, 80, &[1, 2]), ("udp", 53, 53, &[1, 2])], true);
    for state in [SOFT, HARD] {
        let Running { mut core, .. } = running(&config, &[(1, UP), (2, UP)]);
        assert_eq!(core.written.get(&id(&core, 2)).unwrap().serves, SERVES_TCP | SERVES_UDP);
        let ops = verdict_on(&mut core, 53, 2, state);
        assert!(matches!(reals(&ops)[..], [(_, RealEntry { serves: SERVES_TCP, .. })]), "{ops:?}");
        let ring = rings(&ops).pop().unwrap();
        assert!(ring.slots.iter().all(|slot| slot.cur() == id(&core, 1) && slot.prev() == 0));
        assert_eq!(service(&core, Some(53)).ring.window_until(), None);
    }
}

#[test]
fn real_of_tcp_vips_alone_serves_no_datagrams() {
    let Running { core, .. } = running(&config(&[(80, &[1])], true), &[(1, UP)]);
    assert_eq!(core.written.get(&id(&core, 1)).unwrap().serves, SERVES_TCP);
}

#[test]
fn removed_real_is_asked_for_by_the_vips_that_still_check_it() {
    let config = |reals: &[u8]| config_of(&[("udp", 53, 53, reals), ("udp", 123, 123, &[1, 2])], true);
    let Running { mut core, .. } = running(&config(&[1, 2]), &[(1, UP), (2, UP)]);
    core.apply(Event::Configured(config(&[1])), NOW());
    let two = id(&core, 2);
    assert_eq!(core.written.get(&two).unwrap().serves, SERVES_UDP);
    verdict_on(&mut core, 123, 2, HARD);
    assert_eq!(core.written.get(&two).unwrap().serves, 0, "nobody would ever learn that it is back for port 53");
}

#[test]
fn real_down_in_a_window_gets_no_datagram_that_has_no_entry() {
    // Another VIP of the same reals stays up, so the packet path is told that they serve.
    let config = |reals: &[u8]| config_of(&[("udp", 53, 53, reals), ("udp", 123, 123, &[1, 2])], true);
    let Running { mut core, .. } = running(&config(&[1, 2]), &[(1, UP), (2, UP)]);
    core.apply(Event::Configured(config(&[1, 2, 3])), NOW());
    let ring = rings(&verdict_on(&mut core, 53, 3, UP)).pop().unwrap();
    let (one, two) = (id(&core, 1), id(&core, 2));
    assert!([one, two].iter().all(|&real| ring.slots.iter().any(|slot| slot.prev() == real)));
    let ring = rings(&verdict_on(&mut core, 53, 2, SOFT)).pop().unwrap();
    assert!(ring.slots.iter().all(|slot| slot.prev() != two && slot.cur() != two));
    assert!(ring.slots.iter().any(|slot| slot.prev() == one), "the others' windows stay open");
    assert_eq!(core.written.get(&two).unwrap().serves, SERVES_UDP);
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
        core.services().all(|service| service.configured().all(|(_, s)| s.state == UP && share(service, s.id) > 0.9))
    );
}

/// The VIPs' ports in the last table of these operations.
fn published(ops: &[Op]) -> Option<Vec<u16>> {
    let mut tables =
        ops.iter().filter_map(|op| if let Op::Vips(table) = op { Some(vip_table::read(table)) } else { None });
    tables.next_back().map(|vips| vips.keys().map(|key| key.port).collect())
}

#[test]
fn first_round_writes_each_ring_once_with_the_attachment() {
    let config = config(&[(80, &[1, 2]), (81, &[1, 2])], true);
    let (mut core, mut ops) = Core::start(config, Inheritance::default(), NOW());
    ops.extend(verdict(&mut core, 1, UP));
    assert!(rings(&ops).is_empty() && published(&ops).is_none());
    let ops = verdict(&mut core, 2, UP);
    assert!(
        matches!(
            ops[..],
            [Op::Real(..), Op::Ring(0, _), Op::Ring(16, _), Op::Vips(_), Op::Attach, Op::Tell(_), Op::Tell(_)]
        ),
        "{ops:?}"
    );
}

#[test]
fn vip_added_by_a_reload_is_published_after_its_first_round_without_a_window() {
    let before = config_of(&[("udp", 53, 53, &[1, 2])], true);
    let after = config_of(&[("udp", 53, 53, &[1, 2]), ("udp", 123, 123, &[1, 2])], true);
    let Running { mut core, .. } = running(&before, &[(1, UP), (2, UP)]);
    let mut ops = core.apply(Event::Configured(after), NOW());
    ops.extend(verdict_on(&mut core, 123, 1, UP));
    assert!(rings(&ops).is_empty() && published(&ops).is_none(), "no real may get all of it: {ops:?}");
    let ops = verdict_on(&mut core, 123, 2, UP);
    let [ring] = &rings(&ops)[..] else { panic!("{ops:?}") };
    assert!(ring.slots.iter().all(|slot| slot.cur() != 0 && slot.prev() == 0 && !slot.track()));
    assert_eq!(published(&ops), Some(vec![53, 123]));
}

#[test]
fn vip_added_by_a_reload_is_published_when_its_patience_ends() {
    let after = config_of(&[("tcp", 80, 80, &[1]), ("tcp", 81, 81, &[1, 2])], true);
    let Running { mut core, .. } = running(&config(&[(80, &[1])], true), &[(1, UP)]);
    core.apply(Event::Configured(after), NOW());
    assert!(published(&verdict_on(&mut core, 81, 1, UP)).is_none());
    let ops = core.apply(Event::Tick, NOW() + Duration::from_mins(1));
    assert_eq!((published(&ops), rings(&ops).len()), (Some(vec![80, 81]), 1));
    assert!(core.apply(Event::Tick, NOW() + Duration::from_mins(2)).is_empty());
}

#[test]
fn vip_removed_by_a_reload_leaves_the_table_and_no_other_ring_is_written() {
    let both = config(&[(80, &[1]), (81, &[1])], true);
    let Running { mut core, .. } = running(&both, &[(1, UP)]);
    let ops = core.apply(Event::Configured(config(&[(80, &[1])], true)), NOW());
    assert_eq!((published(&ops), rings(&ops).len()), (Some(vec![80]), 0));
    let ops = core.apply(Event::Configured(config(&[(80, &[1])], true)), NOW());
    assert!(published(&ops).is_none(), "nothing changed");
}

#[test]
fn real_without_an_index_is_named_and_the_others_serve() {
    let held = |id: RealId| {
        let other = Ipv4Addr::from_bits(0x0a00_0000 + u32::from(id));
        (id, RealEntry::ipip(Ipv4Addr::UNSPECIFIED, other, None, SERVES_TCP))
    };
    // One index is free; the others are held by reals that may still have flows.
    let inheritance =
        Inheritance { reals: (2..RealId::try_from(MAX_REALS).unwrap()).map(held).collect(), ..Inheritance::default() };
    let (mut core, ops) = Core::start(config(&[(80, &[1, 2])], true), inheritance, NOW());
    let named = ops.iter().find_map(|op| if let Op::NoIndex(reals) = op { Some(reals.clone()) } else { None });
    assert_eq!(named, Some(vec![address(2)]));
    let ops = verdict(&mut core, 1, UP);
    assert!(matches!(ops[..], [Op::Real(1, _), Op::Ring(..), Op::Vips(_), Op::Attach, Op::Tell(_)]));
}

#[test]
fn probes_follow_the_source_address_of_the_route() {
    for (outer_source, planned) in [(None, 1), (Some("198.18.221.11"), 0), (Some("198.18.222.0/28"), 1)] {
        let config = config_from(&[("tcp", 80, 80, &[1])], outer_source);
        let Running { mut core, .. } = running(&config, &[(1, UP)]);
        let ops = core.apply(Event::NextHops(vec![(address(1), hop(12))]), NOW());
        assert_eq!(ops.iter().filter(|op| matches!(op, Op::Checks(_))).count(), planned);
    }
}

#[test]
fn real_is_sent_to_from_the_whole_prefix() {
    let config = config_from(&[("tcp", 80, 80, &[1])], Some("198.18.222.0/28"));
    let Running { core, .. } = running(&config, &[(1, UP)]);
    let source: OuterSource = "198.18.222.0/28".parse().unwrap();
    let expected =
        RealEntry::ipip(source, Ipv4Addr::new(198, 18, 100, 1), Some(&link_layer(&hop(11), None)), SERVES_TCP);
    assert_eq!(core.written[&id(&core, 1)], expected);
}

#[test]
fn ipv6_real_is_sent_to_from_its_routes_source_or_the_configured_one() {
    let (real, own, named) = ("fd00:101::10", "fd00:221::11", "fd00:221::99");
    for (line, source, planned) in [("", own, 1), ("outer_source6 = \"fd00:221::99\"\n", named, 0)] {
        let text = format!(
            "[node]\ninterface = \"lo\"\nouter_source = \"198.18.221.11\"\n{line}[[vip]]\naddress = \"198.19.10.1\"\n\
             protocol = \"tcp\"\nport = 80\ncheck = {{ kind = \"tcp\" }}\n[[vip.real]]\naddress = \"{real}\"\n"
        );
        let (mut core, ops) = Core::start(Config::parse("", &text).unwrap(), Inheritance::default(), NOW());
        let [source, own, real] = [source, own, real].map(|text| text.parse::<Ipv6Addr>().unwrap());
        assert!(ops.iter().any(|op| matches!(op, Op::Resolve(reals) if reals[..] == [IpAddr::from(real)])));
        let first = NextHop { source: own.into(), ..hop(11) };
        core.apply(Event::NextHops(vec![(real.into(), first)]), NOW());
        assert_eq!(core.written[&1], RealEntry::ip6(source, real, Some(&link_layer(&first, None)), 0));
        let moved = NextHop { source: "fd00:221::12".parse().unwrap(), ..first };
        let ops = core.apply(Event::NextHops(vec![(real.into(), moved)]), NOW());
        assert_eq!(ops.iter().filter(|op| matches!(op, Op::Checks(_))).count(), planned);
    }
}

const LATER: fn(u64) -> Instant = |s| NOW() + Duration::from_secs(s);

/// A sweep over a table with these entries: the slot and the real of each.
fn sweep_of(entries: &[(usize, RealId)]) -> Sweep {
    let mut table = Vec::new();
    table.resize_with(TableSize::MIN.buckets(), Bucket::default);
    for (at, &(slot, real)) in entries.iter().enumerate() {
        table[at].store(0, Entry::new((slot as u64) << 50, real, Tick::of(0)));
    }
    Sweep::over(&table, Tick::of(0), 900)
}

fn sweeps(ops: &[Op]) -> usize {
    ops.iter().filter(|op| matches!(op, Op::Sweep(900))).count()
}

#[test]
fn sweep_is_asked_for_only_while_flows_may_be_remembered() {
    let Running { mut core, .. } = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    assert_eq!(sweeps(&core.apply(Event::Tick, LATER(100))), 0);
    verdict(&mut core, 2, HARD);
    verdict(&mut core, 2, UP);
    assert_eq!(sweeps(&core.apply(Event::Tick, LATER(20))), 0, "not yet");
    assert_eq!(sweeps(&core.apply(Event::Tick, LATER(40))), 1);
    assert_eq!(sweeps(&core.apply(Event::Tick, LATER(400))), 0, "one is under way");
    core.apply(Event::NotSwept, LATER(400));
    assert_eq!(sweeps(&core.apply(Event::Tick, LATER(401))), 0, "the failed one left it at that");
}

#[test]
fn sweep_ends_the_look_up_where_nothing_lives() {
    let Running { mut core, .. } = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    verdict(&mut core, 2, HARD);
    let ring = rings(&verdict(&mut core, 2, UP)).pop().unwrap();
    let looked_up: Vec<_> = (0..RING_SLOTS).filter(|&at| ring.slots[at].lookup()).collect();
    assert!(looked_up.len() > 1000);
    core.apply(Event::Tick, LATER(40));
    let ops = core.apply(Event::Swept(sweep_of(&[(looked_up[7], 1)])), LATER(40));
    let ring = rings(&ops).pop().unwrap();
    assert_eq!(ring.slots.iter().filter(|slot| slot.lookup()).count(), 1);
    assert!(ring.slots[looked_up[7]].lookup());
    core.apply(Event::Tick, LATER(80));
    let ops = core.apply(Event::Swept(sweep_of(&[])), LATER(80));
    assert!(rings(&ops)[0].slots.iter().all(|slot| !slot.lookup()));
    assert_eq!(sweeps(&core.apply(Event::Tick, LATER(800))), 0, "the steady state again");
}

#[test]
fn removed_real_gives_its_index_back_when_no_ring_and_no_flow_names_it() {
    let Running { mut core, .. } = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    let two = id(&core, 2);
    let swept = |core: &mut Core, at: u64, entries: &[(usize, RealId)]| {
        assert_eq!(sweeps(&core.apply(Event::Tick, LATER(at))), 1);
        core.apply(Event::Swept(sweep_of(entries)), LATER(at))
    };
    core.apply(Event::Configured(config(&[(80, &[1])], true)), NOW());
    assert!(reals(&swept(&mut core, 40, &[])).is_empty(), "the window's slots name it");
    assert!(reals(&swept(&mut core, 1000, &[(5, two)])).is_empty(), "a flow names it");
    let ops = swept(&mut core, 1040, &[]);
    assert_eq!(reals(&ops), [(two, RealEntry::default())]);
    assert!(ops.iter().any(|op| matches!(op, Op::Resolve(reals) if reals[..] == [address(1)])));
    assert_eq!(core.reals().count(), 1);
}

#[test]
fn real_configured_during_a_sweep_keeps_its_index() {
    let both = config(&[(80, &[1, 2])], true);
    let one = config(&[(80, &[1])], true);
    let Running { mut core, .. } = running(&both, &[(1, UP), (2, UP)]);
    core.apply(Event::Configured(one.clone()), NOW());
    assert_eq!(sweeps(&core.apply(Event::Tick, LATER(1000))), 1);
    for config in [&both, &one] {
        core.apply(Event::Configured(config.clone()), LATER(1001));
    }
    assert!(reals(&core.apply(Event::Swept(sweep_of(&[])), LATER(1002))).is_empty());
    assert_eq!(core.reals().count(), 2);
}

#[test]
fn mtu_that_a_router_tells_is_the_reals_until_it_is_old() {
    let Running { mut core, .. } = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    let told = TooBig { source: "198.18.221.11".parse().unwrap(), real: address(1), mtu: 1400 };
    let mtus = |core: &Core| [1, 2].map(|real| core.mtu(address(real)).unwrap());
    let foreign = TooBig { source: "198.18.221.12".parse().unwrap(), ..told };
    for ignored in [foreign, TooBig { real: address(9), ..told }, TooBig { mtu: 1500, ..told }] {
        assert!(core.apply(Event::TooBig(ignored), NOW()).is_empty(), "{ignored:?}");
    }
    assert_eq!(reals(&core.apply(Event::TooBig(told), NOW())).len(), 1);
    assert_eq!(mtus(&core), [1400, 1500]);
    assert!(core.apply(Event::TooBig(told), NOW()).is_empty(), "it is known");
    core.apply(Event::NextHops(vec![(address(1), hop(11))]), NOW());
    assert_eq!(mtus(&core), [1400, 1500], "a next hop learnt again says nothing of the path");
    assert_eq!(reals(&core.apply(Event::Tick, LATER(601))).len(), 1);
    assert_eq!(mtus(&core), [1500, 1500]);
}

#[test]
fn real_is_up_when_all_its_checks_pass_and_as_bad_as_the_worst() {
    let text = "[node]\ninterface = \"lo\"\n[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"tcp\"\nport = 80\n\
                check = [{ kind = \"tcp\" }, { kind = \"icmp\" }]\n[[vip.real]]\naddress = \"198.18.100.1\"\n";
    let (mut core, ops) = Core::start(Config::parse("", text).unwrap(), Inheritance::default(), NOW());
    let asked =
        ops.iter().find_map(|op| if let Op::Checks(checks) = op { Some(checks.clone()) } else { None }).unwrap();
    let [tcp, icmp] = [0, 1].map(|n: usize| asked[n].key.clone());
    let mut step = |key: &CheckKey, state| {
        core.apply(Event::Verdict(key.clone(), state), NOW());
        (core.phase(), core.services().next().unwrap().configured().next().unwrap().1.state)
    };
    assert_eq!(step(&tcp, UP), (Phase::Starting, State::Init), "the other check has come to no verdict yet");
    assert_eq!(step(&icmp, UP), (Phase::Running, UP));
    assert_eq!(step(&tcp, SOFT), (Phase::Running, SOFT));
    assert_eq!(step(&icmp, HARD), (Phase::Running, HARD));
    assert_eq!(step(&tcp, UP), (Phase::Running, HARD));
    assert_eq!(step(&icmp, UP), (Phase::Running, UP));
}

fn administer(core: &mut Core, real: u8, admin: Admin) -> Vec<Op> {
    let vip = service(core, None).config.key();
    core.apply(Event::Administered((vip, address(real)), admin), NOW())
}

#[test]
fn drained_real_gets_no_new_flows_and_keeps_those_it_has() {
    let mut core = running(&config(&[(80, &[1, 2, 3])], true), &[(1, UP), (2, UP), (3, UP)]).core;
    let before = words(service(&core, None));
    let ops = administer(&mut core, 2, Admin::Draining);
    let (two, [after]) = (id(&core, 2), rings(&ops).try_into().unwrap());
    assert_eq!(reals(&ops), [], "it goes on serving");
    for (old, new) in before.slots.iter().zip(&after.slots) {
        if old.cur() == two {
            assert!(new.cur() != two && new.prev() == two && new.track());
        } else {
            assert_eq!((new.cur(), new.prev()), (old.cur(), 0));
        }
    }
    // Its health is another matter.
    assert_eq!(rings(&verdict(&mut core, 2, SOFT)).len() + rings(&verdict(&mut core, 2, UP)).len(), 0);
    assert!(administer(&mut core, 2, Admin::Draining).is_empty(), "said twice");
    let [enabled] = rings(&administer(&mut core, 2, Admin::Enabled)).try_into().unwrap();
    assert!(before.slots.iter().zip(&enabled.slots).all(|(old, new)| old.cur() == new.cur()));
}

#[test]
fn disabled_real_serves_nothing_while_its_checks_pass() {
    let mut core = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]).core;
    let ops = administer(&mut core, 2, Admin::Disabled);
    let two = id(&core, 2);
    assert!(matches!(reals(&ops)[..], [(id, entry)] if id == two && entry.serves == 0));
    assert!(rings(&ops)[0].slots.iter().all(|slot| slot.cur() != two && slot.prev() != two));
    verdict(&mut core, 2, HARD);
    assert_eq!(reals(&verdict(&mut core, 2, UP)), [], "a verdict does not enable it");
    let ops = administer(&mut core, 2, Admin::Enabled);
    assert!(matches!(reals(&ops)[..], [(id, entry)] if id == two && entry.serves == SERVES_TCP));
}

#[test]
fn real_that_is_drained_is_not_kept_as_the_last() {
    let mut core = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]).core;
    verdict(&mut core, 2, HARD);
    administer(&mut core, 1, Admin::Draining);
    assert_eq!(shares(&core), [(true, 0.0), (false, 1.0)], "the other may live, whatever its checks say");
    administer(&mut core, 2, Admin::Disabled);
    assert!(service(&core, None).ring.current().is_empty());
    administer(&mut core, 1, Admin::Enabled);
    assert_eq!(shares(&core), [(true, 1.0), (false, 0.0)]);
}

#[test]
fn drained_real_is_so_after_a_reload_and_enabled_when_it_was_gone() {
    let all = config(&[(80, &[1, 2])], true);
    let mut core = running(&all, &[(1, UP), (2, UP)]).core;
    administer(&mut core, 2, Admin::Draining);
    core.apply(Event::Configured(config(&[(80, &[1, 2, 3])], true)), NOW());
    assert!(!service(&core, None).ring.current().contains(&id(&core, 2)));
    core.apply(Event::Configured(config(&[(80, &[1])], true)), NOW());
    core.apply(Event::Configured(all), NOW());
    verdict(&mut core, 2, UP);
    assert!(service(&core, None).ring.current().contains(&id(&core, 2)));
}

#[test]
fn disabled_real_that_is_removed_serves_nothing() {
    let mut core = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]).core;
    administer(&mut core, 2, Admin::Disabled);
    let ops = core.apply(Event::Configured(config(&[(80, &[1])], true)), NOW());
    assert!(reals(&ops).iter().all(|(_, entry)| entry.serves == 0), "{ops:?}");
    assert_eq!(core.written.get(&id(&core, 2)).unwrap().serves, 0);
}

#[test]
fn verdict_up_makes_a_real_serve_that_an_earlier_daemon_died_disabling() {
    let dead = running(&config(&[(80, &[1, 2])], true), &[(1, UP), (2, UP)]);
    let mut left = left_by(&dead);
    // The entry was written, the ring not yet.
    left.reals.get_mut(&id(&dead.core, 2)).unwrap().serves = 0;
    let (mut core, _) = Core::start(config(&[(80, &[1, 2])], true), left, NOW());
    verdict(&mut core, 1, UP);
    verdict(&mut core, 2, UP);
    assert_eq!(core.written.get(&id(&core, 2)).unwrap().serves, SERVES_TCP);
}

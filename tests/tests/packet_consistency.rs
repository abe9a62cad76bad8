//! The promise, on the real program and the real maps, with the rings that lbd's own core gives them: a flow that sends a
//! packet at least every `flow_idle` never changes its real while that real serves.
//!
//! Time is the test's: before each packet all entries are made as old as it says. Events fall at random, most of
//! them into open windows; nothing is remembered beforehand.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::large_stack_arrays,
    clippy::cast_precision_loss,
    reason = "a helper that fails fails its test"
)]

use aya::programs::{TestRun as _, TestRunOptions};
use etherparse::PacketBuilder;
use hc_prober::{Severity, State};
use lb_ebpf::{
    counter::FlowEvent,
    flow::{TableSize, WAYS},
    hash::{HashKey, flow_hash, splitmix64},
    real::RealEntry,
    ring::{RealId, Ring, RingRef, Slot},
};
use lbd::{
    config::{Config, Protocol, VipKey},
    data_plane::{DataPlane, tick_now},
    nexthop::NextHop,
    reconcile::{Core, Event, Inheritance, Op, Phase},
    sweep::Sweep,
};
use nix::time::{ClockId, clock_gettime};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 1);
/// Protocol and port of each VIP.
const VIPS: [(Protocol, &str, u16); 2] = [(Protocol::Tcp, "tcp", 80), (Protocol::Udp, "udp", 53)];
/// Addresses that reals may have: the last octet is up to this.
const REALS: u8 = 16;
const CLIENT_PORT: u16 = 40_000;
/// The ingress interface of a test run, loopback: the reals are reached by it, so packets are transmitted.
const INGRESS: u32 = 1;
const XDP_TX: u32 = 3;

const SECOND: u64 = 1_000_000_000;
const IDLE: u64 = 300 * SECOND;
const TICK: u64 = 1 << 34;
/// How often the daemon looks at the time; in truth more often.
const DAEMON_TICK: u64 = 20 * SECOND;
const EVENTS: usize = 200;
/// A real that is drained has weight 0; enabled, it climbs from the first step to full weight by doubling.
const FULL_WEIGHT: u16 = 100;
const FIRST_STEP: u16 = 10;

const UP: State = State::Up;
const SOFT: State = State::Down(Severity::Soft);
const HARD: State = State::Down(Severity::Hard);

/// How rings reach the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    /// As the core gives them.
    Faithful,
    /// A later change overwrites the `prev` of an earlier one.
    PrevOverwritten,
}

/// A flow of one of the VIPs.
#[derive(Clone, Copy, Debug)]
struct Flow {
    vip: usize,
    client: u32,
    hash: u64,
    /// The last octet of its real; 0 before its first packet.
    real: u8,
    /// Its last packet left an entry in the table.
    remembered: bool,
    /// Packets until it ends.
    left: u64,
}

#[derive(Debug, Default)]
struct Findings {
    packets: u64,
    moved: usize,
    /// Moved flows whose entries were gone since their last packets, so evicted.
    forgotten: usize,
    dropped: usize,
    /// First packets of flows that met a real that was gone.
    refused: usize,
    events: BTreeMap<&'static str, usize>,
    events_in_windows: usize,
    /// Shares of the live flows that were remembered, one an event.
    tracked: Vec<f64>,
    sweeps: usize,
    swept: usize,
    evicted: u64,
}

struct World {
    data_plane: DataPlane,
    directory: PathBuf,
    core: Core,
    feed: Feed,
    /// What is configured: the last octet of each real and its weight.
    pool: BTreeMap<u8, u16>,
    states: BTreeMap<(usize, u8), State>,
    /// The reals that serve no flow of a VIP.
    dead: BTreeSet<(usize, u8)>,
    /// What is in the maps.
    reals: BTreeMap<RealId, RealEntry>,
    rings: BTreeMap<u32, Box<Ring>>,
    sweep: Option<Sweep>,
    began: Instant,
    now: u64,
    /// Ticks that the test's time is ahead of the kernel's.
    ahead: u64,
    /// Whether each bucket may hold entries.
    touched: Vec<bool>,
    flows: Vec<Flow>,
    /// When flows send next, by the second: a heap of a million takes longer than the program under test.
    queue: BTreeMap<u64, Vec<(u64, usize)>>,
    clients: u32,
    random: u64,
    frames: [Vec<u8>; 3],
    key: HashKey,
    findings: Findings,
}

fn address(real: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 100, real)
}

fn config(pool: &BTreeMap<u8, u16>) -> Config {
    let mut text = String::from("[node]\ninterface = \"lo\"\nouter_source = \"198.18.221.11\"\n");
    text += "[defaults]\nflow_idle = \"5m\"\nslow_start = \"4m\"\n";
    for (_, protocol, port) in VIPS {
        write!(text, "[[vip]]\naddress = \"{VIP}\"\nprotocol = \"{protocol}\"\nport = {port}\n").unwrap();
        writeln!(text, "check = {{ kind = \"{protocol}\" }}").unwrap();
        for (&real, weight) in pool {
            writeln!(text, "[[vip.real]]\naddress = \"{}\"\nweight = {weight}", address(real)).unwrap();
        }
    }
    Config::parse("lbd.toml", &text).unwrap()
}

/// A SYN, another TCP segment, a datagram.
fn frames() -> [Vec<u8>; 3] {
    let ip = || PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4([0; 4], VIP.octets(), 61);
    let [mut syn, mut ack, mut datagram] = [const { Vec::new() }; 3];
    ip().tcp(CLIENT_PORT, 80, 7, 1024).syn().write(&mut syn, &[]).unwrap();
    ip().tcp(CLIENT_PORT, 80, 7, 1024).ack(9).write(&mut ack, &[]).unwrap();
    ip().udp(CLIENT_PORT, 53).write(&mut datagram, b"query").unwrap();
    [syn, ack, datagram]
}

fn kernel_ticks() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).unwrap();
    (now.tv_sec().unsigned_abs() * SECOND + now.tv_nsec().unsigned_abs()) / TICK
}

impl World {
    fn new(feed: Feed, flows: usize, table: TableSize, random: u64) -> Self {
        let directory = PathBuf::from(format!("/sys/fs/bpf/lbd-consistency-test-{}-{feed:?}", std::process::id()));
        let pool: BTreeMap<_, _> = (1..=8).map(|real| (real, FULL_WEIGHT)).collect();
        let began = Instant::now();
        let config = config(&pool);
        let key = HashKey::from_seed(config.node().seed());
        let (core, ops) = Core::start(config, Inheritance::default(), began);
        let mut world = Self {
            data_plane: DataPlane::load(&directory, table).unwrap(),
            directory,
            core,
            feed,
            states: BTreeMap::new(),
            dead: BTreeSet::new(),
            pool,
            reals: BTreeMap::new(),
            rings: BTreeMap::new(),
            sweep: None,
            began,
            now: 0,
            ahead: 0,
            touched: vec![false; table.buckets()],
            flows: Vec::new(),
            queue: BTreeMap::new(),
            clients: 0,
            random,
            frames: frames(),
            key,
            findings: Findings::default(),
        };
        world.carry_out(ops);
        for real in 1..=8 {
            world.verdicts(real, UP);
        }
        assert_eq!(world.core.phase(), Phase::Running);
        for at in 0..flows {
            let flow = world.new_flow();
            world.flows.push(flow);
            let first = world.draw(IDLE);
            world.sends_next(first, at);
        }
        world
    }

    fn draw(&mut self, below: u64) -> u64 {
        splitmix64(&mut self.random) % below
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = self.draw(from.len().max(1) as u64);
        from.get(usize::try_from(at).unwrap()).copied()
    }

    fn new_flow(&mut self) -> Flow {
        let vip = usize::from(self.draw(4) == 0);
        let left = 1 + self.draw(60);
        let (destination, protocol) = (VIPS[vip].2, if vip == 0 { 6 } else { 17 });
        let ports = [CLIENT_PORT.to_be_bytes(), destination.to_be_bytes()].concat();
        let ports = u32::from_ne_bytes(ports.try_into().unwrap());
        self.clients += 1;
        let hash = flow_hash(&self.key, self.clients.to_be(), u32::from_ne_bytes(VIP.octets()), ports, protocol);
        Flow { vip, client: self.clients, hash, real: 0, remembered: false, left }
    }

    // What the daemon does.

    fn apply(&mut self, event: Event) {
        let ops = self.core.apply(event, self.began + Duration::from_nanos(self.now));
        self.carry_out(ops);
    }

    fn carry_out(&mut self, ops: Vec<Op>) {
        let mut swapped = BTreeMap::new();
        let (mut sweep, mut resolve) = (None, Vec::new());
        for op in ops {
            match op {
                Op::Real(id, entry) => {
                    self.data_plane.set_real(id, entry).unwrap();
                    self.reals.insert(id, entry);
                }
                Op::Ring(place, ring) => drop(swapped.insert(place, ring)),
                Op::Vips(table) => self.data_plane.swap_vips(&table).unwrap(),
                Op::Vacate(index) | Op::ClearCount(index) => panic!("no VIP is removed: {index}"),
                Op::Resolve(reals) => resolve = reals,
                Op::Sweep(longest_idle_s) => sweep = Some(longest_idle_s),
                Op::NoIndex(reals) => panic!("no index for {reals:?}"),
                Op::Checks(_) | Op::OtherRingSize(..) | Op::Tell(_) | Op::Attach => {}
            }
        }
        for (place, ring) in &mut swapped {
            if self.feed == Feed::PrevOverwritten {
                self.rings.get(place).inspect(|before| overwrite_prev(before, ring));
            }
            self.rings.insert(*place, ring.clone());
        }
        assert!(self.data_plane.swap_rings(&swapped).is_empty());
        if let Some(longest_idle_s) = sweep {
            self.synchronise();
            let sweep = Sweep::over(self.data_plane.flows().buckets(), tick_now().unwrap(), longest_idle_s);
            self.findings.sweeps += 1;
            self.findings.swept += sweep.cleared;
            // The daemon hears of it later.
            self.sweep = Some(sweep);
        }
        if !resolve.is_empty() {
            let source = Ipv4Addr::new(198, 18, 221, 11);
            let hop =
                NextHop { ifindex: INGRESS, mtu: 1500, source_mac: [2; 6], dest_mac: [4; 6], source: source.into() };
            self.apply(Event::NextHops(resolve.into_iter().map(|real| (real, hop)).collect()));
        }
    }

    /// The same verdict of all checks of a real.
    fn verdicts(&mut self, real: u8, state: State) {
        for vip in 0..VIPS.len() {
            self.verdict(vip, real, state);
        }
    }

    fn verdict(&mut self, vip: usize, real: u8, state: State) {
        let (protocol, _, port) = VIPS[vip];
        let key = VipKey { address: VIP.into(), protocol, port };
        let service = self.core.services().find(|service| service.config.key() == key).unwrap();
        let check = service.check_keys(IpAddr::V4(address(real))).next().unwrap();
        // Flows of a host that died are gone, whatever it answers later. To UDP a closed port is as good as no host.
        if state == HARD || (state == SOFT && protocol == Protocol::Udp) {
            self.dead.insert((vip, real));
            self.end_flows(vip, real);
        } else if state == UP {
            self.dead.remove(&(vip, real));
        }
        self.states.insert((vip, real), state);
        self.apply(Event::Verdict(check, state));
    }

    fn end_flows(&mut self, vip: usize, real: u8) {
        for at in 0..self.flows.len() {
            if self.flows[at].vip == vip && self.flows[at].real == real {
                self.flows[at] = self.new_flow();
            }
        }
    }

    /// The next daemon has what is in the maps.
    fn restart(&mut self) {
        let in_use = |(&id, &entry): (&RealId, &RealEntry)| entry.address().map(|_| (id, entry));
        let vips: BTreeMap<_, _> = self.core.services().map(|s| (s.config.key(), s.index)).collect();
        let parts = |index: u16| {
            let places = (0..).map(move |part| RingRef::new(index, 0).place(part));
            places.map_while(|place| self.rings.get(&place).cloned()).take(lb_ebpf::ring::RING_PARTS).collect()
        };
        let inheritance = Inheritance {
            attached: true,
            reals: self.reals.iter().filter_map(in_use).collect(),
            hash_key: self.key,
            rings: vips.values().map(|&index| (index, parts(index))).collect(),
            vips,
        };
        self.sweep = None;
        let now = self.began + Duration::from_nanos(self.now);
        let (core, ops) = Core::start(config(&self.pool), inheritance, now);
        self.core = core;
        self.carry_out(ops);
        let states: Vec<_> = self.states.iter().map(|(&(vip, real), &state)| (vip, real, state)).collect();
        for (vip, real, state) in states {
            if self.pool.contains_key(&real) {
                self.verdict(vip, real, state);
            }
        }
    }

    fn configure(&mut self) {
        self.apply(Event::Configured(config(&self.pool)));
    }

    fn weigh(&mut self, real: u8, weight: u16) {
        self.pool.insert(real, weight);
        self.configure();
    }

    // What befalls the pool.

    fn event(&mut self) {
        let window = self.core.services().any(|service| service.ring.window_until().is_some());
        let vip = usize::from(self.draw(3) == 0);
        let among = |world: &Self, wanted: &dyn Fn(Option<&State>) -> bool| -> Vec<u8> {
            world.pool.keys().copied().filter(|&real| wanted(world.states.get(&(vip, real)))).collect()
        };
        let takes_new = |world: &Self, vip, real| world.states.get(&(vip, real)) == Some(&UP) && world.pool[&real] > 0;
        let up: Vec<_> = self.pool.keys().copied().filter(|&real| takes_new(self, vip, real)).collect();
        // Those that can be spared by every VIP.
        let fewest = (0..VIPS.len()).map(|vip| self.pool.keys().filter(|&&real| takes_new(self, vip, real)).count());
        let spares = fewest.min().unwrap() > 3;
        let others = among(self, &|state| state != Some(&UP));
        let all: Vec<_> = self.pool.keys().copied().collect();
        let weighing = |world: &Self, wanted: &dyn Fn(u16) -> bool| -> Vec<u8> {
            world.pool.iter().filter(|&(_, &weight)| wanted(weight)).map(|(&real, _)| real).collect()
        };
        let drained = weighing(self, &|weight| weight == 0);
        let light = weighing(self, &|weight| (1..FULL_WEIGHT).contains(&weight));
        let spare: Vec<_> = (1..=REALS).filter(|real| !self.pool.contains_key(real)).collect();
        let what = match self.draw(24) {
            0..3 if up.len() > 3 => self.pick(&up).map(|real| {
                self.verdict(vip, real, HARD);
                "host gone"
            }),
            3..6 if up.len() > 3 => self.pick(&up).map(|real| {
                self.verdict(vip, real, SOFT);
                "port closed"
            }),
            6 => self.pick(&all).filter(|_| up.len() > 3).map(|real| {
                self.verdicts(real, HARD);
                "host gone for all"
            }),
            7..12 => self.pick(&others).map(|real| {
                self.verdict(vip, real, UP);
                "up"
            }),
            12..14 => self.pick(&spare).map(|real| {
                self.weigh(real, FULL_WEIGHT);
                "added"
            }),
            14..16 if all.len() > 5 && up.len() > 3 => self.pick(&all).map(|real| {
                self.pool.remove(&real);
                self.states.retain(|(_, other), _| *other != real);
                self.configure();
                "removed"
            }),
            16..19 => self.pick(&all).map(|real| {
                let weight = 20 + u16::try_from(self.draw(180)).unwrap();
                self.weigh(real, weight);
                "re-weighted"
            }),
            20 if spares => self.pick(&all).map(|real| {
                self.weigh(real, 0);
                "drained"
            }),
            21 => self.pick(&drained).map(|real| {
                self.weigh(real, FIRST_STEP);
                "enabled"
            }),
            22..24 => self.pick(&light).map(|real| {
                self.weigh(real, (self.pool[&real] * 2).min(FULL_WEIGHT));
                "ramp step"
            }),
            19 => {
                self.restart();
                Some("lbd restarted")
            }
            _ => None,
        };
        let Some(what) = what else { return self.event() };
        *self.findings.events.entry(what).or_default() += 1;
        self.findings.events_in_windows += usize::from(window);
    }

    // What flows do.

    /// Lets time pass until then: flows send, the daemon looks at the time.
    fn pass_until(&mut self, end: u64) {
        let end = end.next_multiple_of(SECOND);
        while self.now < end {
            let until = end.min((self.now / DAEMON_TICK + 1) * DAEMON_TICK);
            while let Some(second) = self.queue.first_entry()
                && *second.key() < until / SECOND
            {
                let mut due = second.remove();
                due.sort_unstable();
                for (at, flow) in due {
                    self.now = at;
                    self.send(flow);
                    // Most gaps come close to the bound. None is below a second: that which is under way is sorted.
                    let gap = if self.draw(4) == 0 { self.draw(IDLE) } else { IDLE / 2 + self.draw(IDLE / 2) };
                    self.sends_next(at + gap.max(SECOND), flow);
                }
            }
            self.now = until;
            if let Some(sweep) = self.sweep.take() {
                self.apply(Event::Swept(sweep));
            }
            self.apply(Event::Tick);
        }
    }

    fn sends_next(&mut self, at: u64, flow: usize) {
        self.queue.entry(at / SECOND).or_default().push((at, flow));
    }

    fn send(&mut self, at: usize) {
        self.synchronise();
        let flow = self.flows[at];
        self.touched[self.data_plane.flows().size().bucket_index(flow.hash)] = true;
        let was_there = self.is_remembered(&flow);
        let gets = self.forward(&flow);
        self.flows[at].remembered = self.is_remembered(&flow);
        self.findings.packets += 1;
        match (flow.real, gets) {
            (_, None) => self.findings.dropped += 1,
            // While lbd starts again, packets meet the rings of the last one: it tries again.
            (0, Some(real)) if self.dead.contains(&(flow.vip, real)) => self.findings.refused += 1,
            (0, Some(real)) => self.flows[at].real = real,
            (before, Some(real)) if before != real => {
                self.findings.moved += 1;
                self.findings.forgotten += usize::from(flow.remembered && !was_there);
                self.flows[at].real = real;
            }
            _ => {}
        }
        self.flows[at].left -= 1;
        if self.flows[at].left == 0 {
            self.flows[at] = self.new_flow();
        }
    }

    /// The last octet of the real that a flow's next packet goes to.
    fn forward(&mut self, flow: &Flow) -> Option<u8> {
        let frame = &mut self.frames[if flow.vip == 1 { 2 } else { usize::from(flow.real != 0) }];
        frame[26..30].copy_from_slice(&flow.client.to_be_bytes());
        let mut out = [0; 128];
        let options = TestRunOptions { data_in: Some(frame), data_out: Some(&mut out), ..TestRunOptions::default() };
        let result = self.data_plane.xdp().unwrap().test_run(options).unwrap();
        (result.return_value == XDP_TX).then_some(out[33])
    }

    /// Makes all entries as old as the test's time says.
    fn synchronise(&mut self) {
        let ahead = (self.now / TICK).wrapping_sub(kernel_ticks());
        let passed = u16::try_from(ahead.wrapping_sub(self.ahead) & 0xfff).unwrap();
        if ahead == self.ahead {
            return;
        }
        self.ahead = ahead;
        let buckets = self.data_plane.flows().buckets();
        for (bucket, touched) in buckets.iter().zip(&mut self.touched).filter(|(_, touched)| **touched) {
            *touched = false;
            for way in 0..WAYS {
                let entry = bucket.load(way);
                if entry.is_some() {
                    bucket.store(way, entry.older(passed));
                    *touched = true;
                }
            }
        }
    }

    fn is_remembered(&self, flow: &Flow) -> bool {
        self.data_plane.flows().bucket(flow.hash).find(flow.hash) < WAYS
    }

    fn tracked_share(&self) -> f64 {
        let tracked = self.flows.iter().filter(|flow| self.is_remembered(flow)).count();
        tracked as f64 / self.flows.len() as f64
    }
}

/// What a daemon would do that forgets which real the flows from before the first change have.
fn overwrite_prev(before: &Ring, ring: &mut Ring) {
    for (old, slot) in before.slots.iter().zip(&mut ring.slots) {
        let prev = match (slot.prev(), slot.cur() == old.cur(), old.prev()) {
            (0, ..) => 0,
            (_, false, _) => old.cur(),
            (prev, true, 0) => prev,
            (_, true, overwritten) => overwritten,
        };
        *slot = Slot::new(slot.cur(), prev, slot.track(), slot.lookup());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.data_plane.detach().unwrap();
        std::fs::remove_dir(&self.directory).unwrap();
    }
}

fn run(feed: Feed, flows: usize, table: TableSize, seed: u64) -> Findings {
    // In a debug build a table of VIPs goes over the stack several times.
    let body = move || {
        let mut world = World::new(feed, flows, table, seed);
        // Every flow has sent: from here on each of them has a real.
        world.pass_until(IDLE);
        for _ in 0..EVENTS {
            world.event();
            // Now and then all windows close.
            let gap = if world.draw(12) == 0 { IDLE + world.draw(IDLE) } else { world.draw(IDLE / 4) };
            world.pass_until(world.now + gap);
            let share = world.tracked_share();
            world.findings.tracked.push(share);
        }
        world.pass_until(world.now + 2 * IDLE);
        world.findings.evicted = world.data_plane.flow_events(FlowEvent::Evict).unwrap();
        std::mem::take(&mut world.findings)
    };
    let findings = thread::Builder::new().stack_size(64 << 20).spawn(body).unwrap().join().unwrap();
    let tracked = &findings.tracked;
    let mean = tracked.iter().sum::<f64>() / tracked.len() as f64;
    let most = tracked.iter().copied().fold(0.0, f64::max);
    let Findings { packets, moved, forgotten, .. } = &findings;
    println!(
        "{feed:?}: {flows} flows at a time, {packets} packets, {moved} moved, {forgotten} of them evicted before from a \
         table of {}",
        table.entries()
    );
    println!("events: {:?}, {} of {EVENTS} in open windows", findings.events, findings.events_in_windows);
    println!("tracked: {:.1} % of the flows, at most {:.1} %", mean * 100.0, most * 100.0);
    println!("{} first packets to a real that was gone, {} dropped", findings.refused, findings.dropped);
    println!("{} evicted; {} sweeps cleared {} entries", findings.evicted, findings.sweeps, findings.swept);
    findings
}

fn is_long() -> bool {
    std::env::var_os("LBD_TEST_LONG").is_some()
}

/// A run in which every kind of event comes, and the table is put to use.
fn faithful(flows: usize, entries: usize) -> Findings {
    let findings = run(Feed::Faithful, flows, TableSize::for_entries(entries).unwrap(), 1);
    let kinds: BTreeSet<_> = findings.events.keys().collect();
    assert_eq!(kinds.len(), 11, "events of every kind: {kinds:?}");
    assert!(findings.events_in_windows > EVENTS / 2);
    assert_eq!(findings.dropped, 0);
    assert!(findings.tracked.iter().any(|&share| share > 0.05));
    assert!(findings.swept > 0);
    findings
}

/// All million flows, or a part of them in the same part of the table.
fn part() -> usize {
    if is_long() { 1 } else { 128 }
}

#[test]
fn flow_sending_within_the_idle_bound_never_changes_its_real_while_it_serves() {
    let findings = faithful(1_000_000 / part(), (16 << 20) / part());
    assert_eq!((findings.moved, findings.evicted), (0, 0));
}

/// A million flows, of which two thirds are remembered at a time beside those that ended a moment ago, are more than
/// buckets of eight hold in a table for as many.
#[test]
fn flow_moves_only_if_a_full_table_gave_up_its_entry() {
    let findings = faithful(1_000_000 / part(), (1 << 20) / part());
    assert!(findings.evicted > 0, "the table was not full");
    assert_eq!(findings.moved, findings.forgotten);
    assert!(findings.forgotten as u64 <= findings.evicted);
}

#[test]
fn flows_move_if_a_second_change_overwrites_prev() {
    let moved = [Feed::Faithful, Feed::PrevOverwritten].map(|feed| run(feed, 1_000, TableSize::DEFAULT, 2).moved);
    assert!(moved[0] == 0 && moved[1] > 0, "the test above would not see a flow that moves: {moved:?}");
}

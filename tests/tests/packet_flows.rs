//! The table of tracked flows through the real XDP program: what is remembered, for how long, and what goes first.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::expect_used,
    clippy::large_stack_arrays,
    reason = "a helper that fails fails its test"
)]

use etherparse::PacketBuilder;
use lb_ebpf::{
    counter::FlowEvent,
    flow::{Bucket, Entry, TableSize, Tick, WAYS, longest_age},
    hash::{HashKey, flow_hash},
    real::{NextHop, RealEntry, SERVES_TCP, SERVES_UDP},
    ring::{RING_SLOTS, RealId, Ring, Slot, slot_index},
    vip::HashBy,
};
use lbd::{
    config::{Protocol, VipKey, VipMiss},
    data_plane::{Program, XdpAction, tick_now},
    maglev::{Candidate, Maglev},
    ring::{self, Member, NewFlows, WHOLE},
    sweep::Sweep,
    vip_table::{self, Row},
};
use std::{
    net::{IpAddr, Ipv4Addr},
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

const VIP: [u8; 4] = [198, 19, 10, 1];
const SEED: [u8; 16] = *b"a seed for tests";
const IDLE_S: u16 = 900;
const REALS: RealId = 9;
/// The ingress interface of a test run, loopback: the reals are reached by it, so packets are transmitted.
const INGRESS: u32 = 1;

fn real_address(id: RealId) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 100, u8::try_from(id).unwrap())
}

/// A flow by its client; to the VIP's TCP port 80.
#[derive(Clone, Copy)]
struct Flow(u32);

impl Flow {
    fn hash(self) -> u64 {
        let ports = u32::from_ne_bytes([0x9c, 0x40, 0, 80]);
        flow_hash(&HashKey::from_seed(SEED), self.0.to_be(), u32::from_ne_bytes(VIP), ports, 6)
    }

    fn frame(self, syn: bool) -> Vec<u8> {
        let ip = PacketBuilder::ethernet2([2; 6], [4; 6]).ipv4(self.0.to_be_bytes(), VIP, 61);
        let tcp = ip.tcp(0x9c40, 80, 7, 1024);
        let mut frame = Vec::new();
        (if syn { tcp.syn() } else { tcp.ack(9) }).write(&mut frame, &[]).unwrap();
        frame
    }

    /// Flows of the same bucket as this one, with other clients.
    fn neighbours(self) -> impl Iterator<Item = Flow> {
        (1..).map(Flow).filter(move |flow| flow.0 != self.0 && bucket(flow.hash()) == bucket(self.hash()))
    }
}

fn bucket(hash: u64) -> usize {
    TableSize::DEFAULT.bucket_index(hash)
}

const FLOW: Flow = Flow(0xc612_0a0a);

/// A loaded program with one VIP over nine reals.
struct Table {
    program: Program,
}

impl Table {
    fn new() -> Self {
        let mut program = Program::load().expect("loading the program needs root");
        let key = VipKey { address: Ipv4Addr::from(VIP).into(), protocol: Protocol::Tcp, port: 80 };
        let row = Row {
            key,
            index: 0,
            ring_order: 0,
            flow_idle: Duration::from_secs(IDLE_S.into()),
            hash: HashBy::FiveTuple,
        };
        program.swap_vips(&vip_table::build(&[row], SEED, VipMiss::Drop)).unwrap();
        let hop =
            NextHop { ifindex: INGRESS, device_mtu: 1500, mtu: 1500, source_mac: [2; 6], destination_mac: [4; 6] };
        for id in 1..=REALS {
            let entry = RealEntry::ipip(real_address(0), real_address(id), Some(&hop), SERVES_TCP | SERVES_UDP);
            program.set_real(id, entry).unwrap();
        }
        Self { program }
    }

    /// All slots alike.
    fn ring(&mut self, slot: Slot) {
        self.program.swap_ring(0, &Box::new(Ring { slots: [slot; RING_SLOTS] })).unwrap();
    }

    /// Sends one packet; returns the real that it went to.
    fn send(&mut self, frame: &[u8]) -> RealId {
        let ran = self.program.test_run(frame).unwrap();
        assert_eq!(ran.action, XdpAction::Transmit);
        RealId::from(ran.frame[33])
    }

    fn syn(&mut self, flow: Flow) -> RealId {
        self.send(&flow.frame(true))
    }

    fn ack(&mut self, flow: Flow) -> RealId {
        self.send(&flow.frame(false))
    }

    fn bucket(&self, flow: Flow) -> &Bucket {
        self.program.flows().bucket(flow.hash())
    }

    fn entry(&self, flow: Flow) -> Option<Entry> {
        let bucket = self.bucket(flow);
        Some(bucket.find(flow.hash())).filter(|&way| way < WAYS).map(|way| bucket.load(way))
    }

    /// Lets time pass for the one flow.
    fn age(&self, flow: Flow, ticks: u64) {
        let bucket = self.bucket(flow);
        let way = bucket.find(flow.hash());
        bucket.store(way, bucket.load(way).older(u16::try_from(ticks).unwrap()));
    }

    fn events(&self) -> Vec<(FlowEvent, u64)> {
        let count = |&event| (event, self.program.flow_events(event).unwrap());
        FlowEvent::ALL.iter().map(count).filter(|(_, count)| *count != 0).collect()
    }

    /// Entries in the whole table.
    fn entries(&self) -> usize {
        let words = self.program.flows().buckets().iter().flat_map(Bucket::words);
        words.filter(|word| word.load(Ordering::Relaxed) != 0).count()
    }
}

fn now() -> Tick {
    tick_now().unwrap()
}

const TRACKED: fn(RealId) -> Slot = |cur| Slot::new(cur, 0, true, true);
const LOOKED_UP: fn(RealId) -> Slot = |cur| Slot::new(cur, 0, false, true);

#[test]
fn flow_is_remembered_only_where_its_slot_is_tracked() {
    let mut table = Table::new();
    table.ring(LOOKED_UP(1));
    table.syn(FLOW);
    table.ack(FLOW);
    assert_eq!((table.entry(FLOW), table.entries()), (None, 0));
    table.ring(TRACKED(1));
    table.syn(FLOW);
    let entry = table.entry(FLOW).unwrap();
    assert_eq!((entry.real(), entry.slot_index(0), entry.is_established()), (1, slot_index(FLOW.hash(), 0), false));
    assert_eq!(table.entries(), 1);
    let events = [(FlowEvent::MissSyn, 2), (FlowEvent::MissTcp, 1), (FlowEvent::Insert, 1)];
    assert_eq!(table.events(), events);
}

#[test]
fn hit_keeps_the_real_and_the_flow_alive() {
    let mut table = Table::new();
    table.ring(TRACKED(1));
    table.syn(FLOW);
    table.ring(LOOKED_UP(2));
    for _ in 0..3 {
        table.age(FLOW, longest_age(IDLE_S) - 2);
        assert_eq!(table.ack(FLOW), 1);
        let entry = table.entry(FLOW).unwrap();
        assert!(entry.is_established() && entry.age(now()) <= 2, "{entry:?}");
    }
    assert_eq!(table.program.flow_events(FlowEvent::Hit).unwrap(), 3);
}

#[test]
fn flow_silent_for_too_long_is_not_found() {
    let mut table = Table::new();
    table.ring(TRACKED(1));
    table.syn(FLOW);
    table.ring(LOOKED_UP(2));
    table.age(FLOW, longest_age(IDLE_S));
    assert_eq!(table.ack(FLOW), 2);
}

#[test]
fn syn_forgets_what_was_remembered_of_the_last_connection() {
    let mut table = Table::new();
    table.ring(TRACKED(1));
    table.syn(FLOW);
    table.ring(LOOKED_UP(2));
    assert_eq!(table.syn(FLOW), 2);
    assert_eq!((table.entry(FLOW), table.ack(FLOW)), (None, 2));
}

#[test]
fn syn_of_a_remembered_flow_takes_its_own_place_again() {
    let mut table = Table::new();
    table.ring(TRACKED(1));
    table.syn(FLOW);
    table.ack(FLOW);
    table.ring(TRACKED(2));
    table.syn(FLOW);
    let entry = table.entry(FLOW).unwrap();
    assert_eq!((entry.real(), entry.is_established(), table.entries()), (2, false, 1));
}

/// A bucket full of living flows that differ only in what the test makes of them.
fn full_bucket(table: &mut Table) -> Vec<Flow> {
    table.ring(TRACKED(1));
    let flows: Vec<_> = FLOW.neighbours().take(WAYS).collect();
    for &flow in &flows {
        table.syn(flow);
        table.ack(flow);
    }
    assert!(flows.iter().all(|&flow| table.entry(flow).is_some_and(Entry::is_established)));
    assert_eq!(table.program.flow_events(FlowEvent::Evict).unwrap(), 0);
    flows
}

/// The flows that are not remembered any more once one more is.
fn displaced(table: &mut Table, flows: &[Flow]) -> Vec<usize> {
    table.syn(FLOW);
    assert!(table.entry(FLOW).is_some());
    (0..flows.len()).filter(|&at| table.entry(flows[at]).is_none()).collect()
}

#[test]
fn full_bucket_gives_up_the_flow_that_was_silent_for_longest() {
    let mut table = Table::new();
    let flows = full_bucket(&mut table);
    for (at, &flow) in flows.iter().enumerate() {
        table.age(flow, if at == 5 { 20 } else { 2 });
    }
    assert_eq!(displaced(&mut table, &flows), [5]);
    assert_eq!(table.program.flow_events(FlowEvent::Evict).unwrap(), 1);
}

#[test]
fn full_bucket_gives_up_flows_of_which_only_a_syn_was_seen_before_older_ones() {
    let mut table = Table::new();
    let flows = full_bucket(&mut table);
    table.age(flows[2], 20);
    table.syn(flows[6]);
    assert_eq!(displaced(&mut table, &flows), [6]);
    assert_eq!(table.program.flow_events(FlowEvent::Evict).unwrap(), 1);
}

#[test]
fn full_bucket_gives_up_expired_flows_first_and_that_is_no_eviction() {
    let mut table = Table::new();
    let flows = full_bucket(&mut table);
    table.age(flows[3], longest_age(IDLE_S));
    table.syn(flows[6]);
    assert_eq!(displaced(&mut table, &flows), [3]);
    assert_eq!(table.program.flow_events(FlowEvent::Evict).unwrap(), 0);
}

#[test]
fn sweep_of_the_real_table_clears_the_silent_and_names_the_others() {
    let mut table = Table::new();
    let flows = full_bucket(&mut table);
    table.age(flows[0], longest_age(IDLE_S) + 2);
    let sweep = Sweep::over(table.program.flows().buckets(), now(), IDLE_S);
    assert_eq!((sweep.living, sweep.cleared), (WAYS - 1, 1));
    assert!(table.entry(flows[0]).is_none());
    assert!(flows[1..].iter().all(|flow| sweep.names_slot(slot_index(flow.hash(), 0), 0)) && sweep.names_real(1));
    assert_eq!((0..RING_SLOTS).filter(|&slot| sweep.names_slot(slot, 0)).count(), WAYS - 1);
    assert!(!sweep.names_real(2));
}

fn members() -> Vec<Member> {
    let member = |id| Member {
        candidate: Candidate { id, address: IpAddr::V4(real_address(id)), weight: 100 },
        admitted: true,
        new_flows: NewFlows::Take,
        serves: true,
        portion: WHOLE,
    };
    (1..=REALS).map(member).collect()
}

#[test]
fn flood_of_syns_with_every_real_up_inserts_nothing() {
    let mut table = Table::new();
    let mut ring = ring::Ring::new(&Maglev::new(SEED), 0, Duration::from_secs(IDLE_S.into()), true, false);
    ring.update(&members(), true, Instant::now());
    table.program.swap_ring(0, &ring.words()[0]).unwrap();
    let flows = if std::env::var_os("LBD_TEST_LONG").is_some() { 10_000_000 } else { 10_000 };
    let mut frame = FLOW.frame(true);
    for flow in 0..flows {
        frame[26..30].copy_from_slice(&u32::to_be_bytes(flow));
        table.send(&frame);
    }
    assert_eq!((table.events(), table.entries()), (Vec::new(), 0));
    println!("{flows} SYNs, 0 entries");
}

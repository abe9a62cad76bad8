//! The bench object in the kernel: its maps filled for one row, its runs timed and their counters checked.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, ArrayOfMaps, Map, MapData, MapError, PerCpuArray},
    programs::{TestRun as _, TestRunOptions, Xdp},
};
use lb_ebpf::{
    bench::{PACKETS_PER_RUN, Traffic},
    counter::{Counter, FlowEvent, Reason, flow_event_index, reason_index},
    hash::{HashKey, flow_hash},
    objects::BENCH_PACKET,
    real::{NextHop, RealEntry, SERVES_TCP, SERVES_UDP},
    ring::{Ring, RingRef, slot_index},
    vip::VipTable,
};
use lbd::{
    config::{HashBy, Protocol, VipKey, VipMiss},
    vip_table,
};

use crate::rows::{Kind, REALS, Row, SEED, TCP_VIPS, Timed, UDP_VIP, ip6, real_address, ring, vip_address};

/// The ingress interface of a test run, loopback: the reals are reached by it, so packets are transmitted.
const INGRESS: u32 = 1;
const FLOW_IDLE: Duration = Duration::from_mins(15);
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;

/// A loaded program with its maps filled.
pub(crate) struct Harness {
    row: Row,
    frame: Vec<u8>,
    ring: Box<Ring>,
    counts: PerCpuArray<MapData, Counter>,
    traffic: Array<MapData, Traffic>,
    ebpf: Ebpf,
}

/// What one call of [`Harness::run`] found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Round {
    /// Nanoseconds a packet, the harness included.
    pub(crate) ns: f64,
    /// Packets.
    pub(crate) packets: u64,
    /// Packets whose flow was remembered.
    pub(crate) hits: u64,
    /// Packets whose flow was remembered from then on.
    pub(crate) inserts: u64,
}

/// The program's own counters.
struct Counts {
    reasons: Vec<u64>,
    events: Vec<u64>,
}

impl Harness {
    /// Loads a fresh object, so with fresh maps, and fills them.
    pub(crate) fn load(row: &Row) -> Result<Self> {
        let mut ebpf = EbpfLoader::new().load(BENCH_PACKET).context("loading the bench object")?;
        xdp(&mut ebpf, row)?.load().context("loading a bench program")?;
        let mut harness = Self {
            row: *row,
            frame: row.frame()?,
            ring: ring(row.tracked_every),
            counts: take(&mut ebpf, "COUNTS")?,
            traffic: take(&mut ebpf, "TRAFFIC")?,
            ebpf,
        };
        harness.fill()?;
        Ok(harness)
    }

    fn fill(&mut self) -> Result<()> {
        let mut vips: ArrayOfMaps<_, Array<MapData, VipTable>> = take(&mut self.ebpf, "VIPS")?;
        vips.set(0, &filled(vip_table(self.row.ip6).as_ref())?, 0)?;
        let mut rings: ArrayOfMaps<_, Array<MapData, Ring>> = take(&mut self.ebpf, "RINGS")?;
        for vip in (self.row.vip()..).take(usize::from(self.row.vips)) {
            rings.set(RingRef::new(vip, 0).place(0), &filled(self.ring.as_ref())?, 0)?;
        }
        let mut reals: Array<_, RealEntry> = take(&mut self.ebpf, "REALS")?;
        let hop =
            NextHop { ifindex: INGRESS, device_mtu: 1500, mtu: 1500, source_mac: [2; 6], destination_mac: [4; 6] };
        for id in 1..=REALS {
            let (source, real, serves) = (real_address(0), real_address(id), SERVES_TCP | SERVES_UDP);
            let entry = if self.row.ip6 {
                RealEntry::ip6(ip6(source), ip6(real), Some(&hop), serves)
            } else {
                RealEntry::ipip(source, real, Some(&hop), serves)
            };
            reals.set(u32::from(id), entry, 0)?;
        }
        Ok(())
    }

    /// From now on flows are visited from the first on, in steps of `stride` (odd).
    pub(crate) fn visit(&mut self, stride: u32) -> Result<()> {
        self.traffic.set(0, self.row.traffic(stride), 0).context("setting the traffic")
    }

    /// Times so many packets (rounded up to whole runs).
    ///
    /// # Errors
    /// The kernel refuses, or the program's counters do not say what these packets must have made them say.
    pub(crate) fn run(&mut self, packets: u32) -> Result<Round> {
        let per_run = if self.row.timed == Timed::FloorPass { 1 } else { PACKETS_PER_RUN };
        let repeat = packets.div_ceil(per_run);
        let (before, traffic) = (self.counts()?, self.traffic.get(&0, 0)?);
        let options = TestRunOptions { data_in: Some(&self.frame), repeat, ..TestRunOptions::default() };
        let result = xdp(&mut self.ebpf, &self.row)?.test_run(options).context("running a bench program")?;
        let counted = self.counts()?.since(&before);
        let round = Round {
            ns: result.duration.as_secs_f64() * 1e9 / f64::from(per_run),
            packets: u64::from(repeat) * u64::from(per_run),
            hits: counted.event(FlowEvent::Hit),
            inserts: counted.event(FlowEvent::Insert),
        };
        let made = self.traffic.get(&0, 0)?.packets - traffic.packets;
        self.check(&traffic, &counted, made, round.packets, result.return_value)
            .with_context(|| format!("{}: this is not the path that was to be measured", self.row.name))?;
        Ok(round)
    }

    fn check(&self, traffic: &Traffic, counted: &Counts, made: u64, packets: u64, action: u32) -> Result<()> {
        let (expected_action, expected_made, reason) = match self.row.timed {
            Timed::FloorPass => (XDP_PASS, 0, None),
            Timed::FloorTx => (XDP_TX, packets, None),
            Timed::Path(Reason::Forwarded) => (XDP_TX, packets, Some(Reason::Forwarded)),
            Timed::Path(reason) => (XDP_PASS, packets, Some(reason)),
        };
        ensure!(action == expected_action, "XDP action {action}, not {expected_action}");
        ensure!(made == expected_made, "{made} packets made, not {expected_made}");
        for &each in Reason::ALL {
            let (found, expected) = (counted.reason(each), if Some(each) == reason { packets } else { 0 });
            ensure!(found == expected, "{found} packets counted as {}, not {expected}", each.code());
        }
        let asked = [FlowEvent::Hit, FlowEvent::MissSyn, FlowEvent::MissTcp, FlowEvent::MissUdp];
        let asked: u64 = asked.into_iter().map(|event| counted.event(event)).sum();
        let expected = if reason.is_some() { self.lookups(traffic, packets) } else { 0 };
        ensure!(asked == expected, "{asked} packets of slots that are looked up, not {expected}");
        Ok(())
    }

    /// How many of the next packets belong to slots that are looked up.
    #[expect(clippy::indexing_slicing, reason = "a slot's index is below the ring's size by construction")]
    fn lookups(&self, traffic: &Traffic, packets: u64) -> u64 {
        if self.row.tracked_every == 0 {
            return 0;
        }
        let key = HashKey::from_seed(SEED);
        let slots = (traffic.packets..traffic.packets + packets).map(|number| {
            let tuple = traffic.tuple(number);
            let hash = flow_hash(&key, tuple.source, tuple.destination, tuple.ports, self.row.protocol());
            self.ring.slots[slot_index(hash, 0)]
        });
        slots.map(|slot| u64::from(slot.lookup())).sum()
    }

    fn counts(&self) -> Result<Counts> {
        let packets = |index| -> Result<u64> {
            let cpus = self.counts.get(&index, 0).context("reading a counter")?;
            Ok(cpus.iter().map(|counter| counter.packets).sum())
        };
        Ok(Counts {
            reasons: Reason::ALL.iter().map(|&reason| packets(reason_index(reason))).collect::<Result<_>>()?,
            events: FlowEvent::ALL.iter().map(|&event| packets(flow_event_index(event))).collect::<Result<_>>()?,
        })
    }
}

impl Counts {
    fn since(&self, before: &Self) -> Self {
        let difference = |now: &[u64], then: &[u64]| now.iter().zip(then).map(|(now, then)| now - then).collect();
        Self { reasons: difference(&self.reasons, &before.reasons), events: difference(&self.events, &before.events) }
    }

    fn reason(&self, reason: Reason) -> u64 {
        Reason::ALL.iter().zip(&self.reasons).find(|(each, _)| **each == reason).map_or(0, |(_, count)| *count)
    }

    fn event(&self, event: FlowEvent) -> u64 {
        FlowEvent::ALL.iter().zip(&self.events).find(|(each, _)| **each == event).map_or(0, |(_, count)| *count)
    }
}

fn vip_table(of_ip6: bool) -> Box<VipTable> {
    let address = |number| if of_ip6 { ip6(vip_address(number)).into() } else { vip_address(number).into() };
    let row = |number, index, protocol, port| vip_table::Row {
        key: VipKey { address: address(number), protocol, port },
        index,
        ring_order: 0,
        flow_idle: FLOW_IDLE,
        hash: HashBy::FiveTuple,
    };
    let tcp = (0..TCP_VIPS).map(|number| row(number, u16::from(number), Protocol::Tcp, 80));
    let rows: Vec<_> = tcp.chain([row(0, UDP_VIP, Protocol::Udp, 53)]).collect();
    vip_table::build(&rows, SEED, VipMiss::Drop)
}

fn xdp<'a>(ebpf: &'a mut Ebpf, row: &Row) -> Result<&'a mut Xdp> {
    let name = match row.timed {
        Timed::FloorPass => "floor_pass",
        Timed::FloorTx => "floor_tx",
        Timed::Path(_) if row.ip6 => "packets6",
        Timed::Path(_) if row.kind == Kind::Error => "errors",
        Timed::Path(_) => "packets",
    };
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name} in the bench object"))?.try_into()?)
}

fn take<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    Ok(ebpf.take_map(name).with_context(|| format!("no map {name} in the bench object"))?.try_into()?)
}

/// An inner map with its one value. The kernel keeps it for as long as the outer map names it.
fn filled<T: aya::Pod>(value: &T) -> Result<Array<MapData, T>, MapError> {
    let mut inner = Array::create(1, 0)?;
    inner.set(0, value, 0)?;
    Ok(inner)
}

//! The daemon's one owner of state: events in, map operations out. Pure, so that any sequence of events can be
//! replayed; `daemon` feeds it and carries out what it returns.

use crate::{
    config::{Config, Vip, VipKey},
    ids::Ids,
    nexthop::NextHop,
    ring::Ring,
    service::{Serves, Service, check_key},
    vip_table::{self, Row},
};
use hc_prober::{Check, CheckKey, State, Timing};
use lb_ebpf::{
    real::{self, MAX_REALS, RealEntry, SERVES_TCP, SERVES_UDP},
    ring::{RealId, Ring as RingWords},
    vip::{MAX_VIPS, VipTable},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A configuration was loaded.
    Configured(Config),
    /// A check came to a verdict.
    Verdict(CheckKey, State),
    /// These reals' next hops are known. One whose next hop is not is left out: the last one stays in use.
    NextHops(Vec<(Ipv4Addr, NextHop)>),
    /// Time passed.
    Tick,
}

/// Something to do, in this order.
#[derive(Clone, Debug)]
pub enum Op {
    /// Write a real.
    Real(RealId, RealEntry),
    /// Swap a VIP's ring.
    Ring(u16, Box<RingWords>),
    /// Swap the table of VIPs.
    Vips(Box<VipTable>),
    /// Probe exactly these.
    Checks(Vec<Check>),
    /// Keep exactly these reals' next hops up to date.
    Resolve(Vec<Ipv4Addr>),
    /// Packets may come: every check has its first verdict, or has had the time for it.
    Attach,
}

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first round of checks runs; no packet meets these maps before it is over, or at this time.
    Starting(Instant),
    /// The data plane is attached.
    Running,
}

/// The state of everything.
#[derive(Clone, Debug)]
pub struct Core {
    config: Config,
    services: BTreeMap<VipKey, Service>,
    reals: Ids<IpAddr>,
    hops: BTreeMap<IpAddr, NextHop>,
    vips: Ids<VipKey>,
    written: BTreeMap<RealId, RealEntry>,
    phase: Phase,
    /// Flows of an earlier daemon may be in the map.
    adopted: bool,
}

impl Core {
    /// Takes the first configuration. `known` are the reals of an earlier daemon whose maps live on.
    #[must_use]
    pub fn start(config: Config, known: BTreeMap<IpAddr, RealId>, now: Instant) -> (Self, Vec<Op>) {
        let last_real = u16::try_from(MAX_REALS - 1).unwrap_or(u16::MAX);
        let last_vip = u16::try_from(MAX_VIPS - 1).unwrap_or(u16::MAX);
        let patience = config.vips().iter().map(first_verdict_within).max().unwrap_or_default();
        let mut core = Self {
            config: config.clone(),
            services: BTreeMap::new(),
            adopted: !known.is_empty(),
            reals: Ids::new(1..=last_real, known),
            hops: BTreeMap::new(),
            vips: Ids::new(0..=last_vip, BTreeMap::new()),
            written: BTreeMap::new(),
            phase: Phase::Starting(now + patience),
        };
        let ops = core.apply(Event::Configured(config), now);
        (core, ops)
    }

    /// Takes an event and says what is to be done.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Op> {
        let mut ops = match event {
            Event::Configured(config) => self.configure(config, now),
            Event::Verdict(key, state) => self.verdict(&key, state, now),
            Event::NextHops(hops) => {
                self.hops.extend(hops.into_iter().map(|(real, hop)| (IpAddr::V4(real), hop)));
                self.write_reals()
            }
            Event::Tick => self.close_windows(now),
        };
        ops.extend(self.finish_start(now));
        ops
    }

    fn configure(&mut self, config: Config, now: Instant) -> Vec<Op> {
        self.services.retain(|key, _| config.vip(key).is_some());
        self.vips.retain(|key| config.vip(key).is_some());
        let mut rings = Vec::new();
        for vip in config.vips() {
            rings.extend(self.configure_vip(vip, &config, now));
        }
        self.config = config;
        let mut ops = self.write_reals();
        ops.extend(rings);
        ops.push(Op::Vips(self.vip_table()));
        ops.push(Op::Checks(self.checks()));
        ops.push(Op::Resolve(self.reals.iter().filter_map(|(real, _)| ipv4(*real)).collect()));
        ops
    }

    /// Numbers are bounded by the configuration's limits; what finds no index all the same is left out.
    fn configure_vip(&mut self, vip: &Vip, config: &Config, now: Instant) -> Option<Op> {
        for real in vip.reals() {
            self.reals.take(&real.address);
        }
        let index = self.vips.take(&vip.key())?;
        let is_new = !self.services.contains_key(&vip.key());
        let keep_last = vip.on_all_down() == crate::config::OnAllDown::Keep;
        let service = self.services.entry(vip.key()).or_insert_with(|| {
            let ring = Ring::new(config.node().seed(), vip.flow_idle(), keep_last, self.adopted);
            Service::new(vip.clone(), index, ring)
        });
        service.ring.set_policy(vip.flow_idle(), keep_last);
        service.configure(vip.clone(), |real| self.reals.get(&real));
        let quiet = is_new || self.phase != Phase::Running;
        let changed = service.refresh(quiet, now);
        (changed || is_new).then(|| Op::Ring(index, service.ring.words()))
    }

    fn verdict(&mut self, key: &CheckKey, state: State, now: Instant) -> Vec<Op> {
        let quiet = self.phase != Phase::Running;
        let mut rings = Vec::new();
        for service in self.services.values_mut() {
            if service.check_key(key.real) == *key && service.verdict(key.real, state) && service.refresh(quiet, now) {
                rings.push(Op::Ring(service.index, service.ring.words()));
            }
        }
        // A real must serve before a ring names it, and a ring must have left it before it serves no more:
        // both orders are safe, since the path asks `serves` only of flows that a real already has.
        let mut ops = self.write_reals();
        ops.extend(rings);
        ops
    }

    fn close_windows(&mut self, now: Instant) -> Vec<Op> {
        let closed = self.services.values_mut().filter_map(|s| {
            let changed = s.ring.close_window(now);
            changed.then(|| Op::Ring(s.index, s.ring.words()))
        });
        closed.collect()
    }

    /// Attaches once every check has a verdict, or has had the time for one.
    fn finish_start(&mut self, now: Instant) -> Option<Op> {
        let Phase::Starting(patience) = self.phase else { return None };
        if now < patience && self.services.values().any(Service::awaits_verdicts) {
            return None;
        }
        self.phase = Phase::Running;
        Some(Op::Attach)
    }

    /// The reals whose entry is not what the map holds.
    fn write_reals(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        for (&address, id) in self.reals.iter() {
            let Some(real) = ipv4(address) else { continue };
            let hop = self.hops.get(&address);
            let source = self.config.node().outer_source().or(hop.map(|h| h.source)).unwrap_or(Ipv4Addr::UNSPECIFIED);
            let entry = RealEntry::ipip(source, real, hop.map(link_layer).as_ref(), self.serves(address));
            if self.written.insert(id, entry) != Some(entry) {
                ops.push(Op::Real(id, entry));
            }
        }
        ops
    }

    /// A real serves while any of its VIPs says so: a flow of another VIP that is sent to it all the same is
    /// one that it has, and that would be dead elsewhere too.
    fn serves(&self, real: IpAddr) -> u32 {
        self.services.values().map(|s| s.serves(real)).fold(0, |flags, Serves { tcp, udp }| {
            flags | if tcp { SERVES_TCP } else { 0 } | if udp { SERVES_UDP } else { 0 }
        })
    }

    fn vip_table(&self) -> Box<VipTable> {
        let row = |s: &Service| Row { key: s.config.key(), index: s.index, flow_idle: s.config.flow_idle() };
        let rows: Vec<_> = self.services.values().map(row).collect();
        vip_table::build(&rows, self.config.node().seed(), self.config.node().vip_miss())
    }

    /// One check a real, VIP, kind and port: identical ones are shared, with the timing of the first VIP.
    fn checks(&self) -> Vec<Check> {
        let mut seen = BTreeSet::new();
        let mut checks = Vec::new();
        for vip in self.config.vips() {
            for real in vip.reals() {
                let key = check_key(vip, real.address);
                if seen.insert(key.clone()) {
                    checks.push(Check { key, timing: timing(vip) });
                }
            }
        }
        checks
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The VIPs in service, by key.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    /// How far the start is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// All reals that have an index, removed ones that still finish flows included.
    pub fn reals(&self) -> impl Iterator<Item = (IpAddr, RealId)> {
        self.reals.iter().map(|(&address, id)| (address, id))
    }

    /// The digest of a VIP's ring.
    #[must_use]
    pub fn digest(&self, service: &Service) -> u64 {
        let addresses: BTreeMap<RealId, IpAddr> = self.reals().map(|(address, id)| (id, address)).collect();
        service.ring.digest(|id| addresses.get(&id).copied())
    }
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn link_layer(hop: &NextHop) -> real::NextHop {
    real::NextHop {
        ifindex: hop.ifindex,
        mtu: u16::try_from(hop.mtu).unwrap_or(u16::MAX),
        source_mac: hop.source_mac,
        destination_mac: hop.dest_mac,
    }
}

fn timing(vip: &Vip) -> Timing {
    let timing = vip.timing();
    Timing {
        interval: timing.interval,
        timeout: timing.timeout,
        fast_interval: timing.fast_interval,
        rise: timing.rise.into(),
        fall: timing.fall.into(),
    }
}

/// By when a check that says anything at all has come to its first verdict: at worst its results alternate
/// once, and its first probe waits for its place in the interval.
fn first_verdict_within(vip: &Vip) -> Duration {
    let timing = vip.timing();
    let probes = u32::from(timing.rise) + u32::from(timing.fall);
    timing.interval * 2 + timing.fast_interval * probes + timing.timeout
}

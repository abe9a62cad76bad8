//! The daemon's one owner of state: events in, map operations out. Pure, so that any sequence of events can be
//! replayed; `daemon` feeds it and carries out what it returns.

use crate::{
    admin::Place,
    config::{Config, Node, Protocol, Vip, VipKey, VipMiss},
    ids::Ids,
    maglev::Maglev,
    model::Admin,
    nexthop::NextHop,
    notice::Notice,
    path_mtu::{PathMtus, TooBig},
    ring::Ring,
    service::{Serves, Service, Standing, check_keys},
    sweep::Sweep,
    vip_table::{self, Row},
};
use hc_prober::{Check, CheckKey, State, Timing};
use lb_ebpf::{
    hash::HashKey,
    real::{self, MAX_REALS, RealEntry, SERVES_TCP, SERVES_UDP},
    ring::{RealId, Ring as RingWords},
    vip::{MAX_VIPS, VipTable},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

/// How long entries of silent flows, and what they keep, outlive them at most.
const SWEEP_AT_LEAST_EVERY: Duration = Duration::from_secs(30);

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A configuration was loaded.
    Configured(Config),
    /// A check came to a verdict.
    Verdict(CheckKey, State),
    /// The operator has said something of a real of a VIP.
    Administered(Place, Admin),
    /// These reals' next hops are known. One whose next hop is not is left out: the last one stays in use.
    NextHops(Vec<(IpAddr, NextHop)>),
    /// A router said that a packet to a real was too big.
    TooBig(TooBig),
    /// The table of tracked flows was swept, as [`Op::Sweep`] asked.
    Swept(Sweep),
    /// The sweep failed.
    NotSwept,
    /// Time passed.
    Tick,
}

/// Something to do, in this order.
#[derive(Clone, Debug)]
pub enum Op {
    /// Write a real.
    Real(RealId, RealEntry),
    /// Swap a part of a VIP's ring, at its place in the map.
    Ring(u32, Box<RingWords>),
    /// Swap the table of VIPs.
    Vips(Box<VipTable>),
    /// Clear the ring of the VIP that had this index, which no other has: the table that was told before does not name it.
    Vacate(u16),
    /// Clear the counter of the VIP that had this index; another may have it by now.
    ClearCount(u16),
    /// Probe exactly these.
    Checks(Vec<Check>),
    /// Keep exactly these reals' next hops up to date.
    Resolve(Vec<IpAddr>),
    /// Say that there is no index left for these reals: they get no traffic.
    NoIndex(Vec<IpAddr>),
    /// Say that this VIP's ring has another number of slots (the first) than it would have if it were created now.
    OtherRingSize(VipKey, usize, usize),
    /// Say this.
    Tell(Notice),
    /// Packets may come: the first round of checks is over.
    Attach,
    /// When packets meet all of the above, sweep the table of tracked flows. So many seconds may a flow be silent.
    Sweep(u16),
}

/// How far the daemon is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The first round of checks runs: no packet meets these maps before it is over.
    Starting,
    /// The data plane is attached.
    Running,
}

/// What packets still meet: the work of an earlier daemon. Empty if there was none.
#[derive(Clone, Debug, Default)]
pub struct Inheritance {
    /// Packets of some device do meet it: what is pinned may be of a device that is gone.
    pub attached: bool,
    /// The reals in the map that both daemons use.
    pub reals: BTreeMap<RealId, RealEntry>,
    /// Key of the hash that gives a flow its slot.
    pub hash_key: HashKey,
    /// The VIPs and the index of each.
    pub vips: BTreeMap<VipKey, u16>,
    /// The rings, in parts, by the index of their VIP.
    pub rings: BTreeMap<u16, Vec<Box<RingWords>>>,
}

/// The state of everything.
#[derive(Clone, Debug)]
pub struct Core {
    config: Config,
    maglev: Maglev,
    services: BTreeMap<VipKey, Service>,
    reals: Ids<IpAddr>,
    hops: BTreeMap<IpAddr, NextHop>,
    path_mtus: PathMtus,
    vips: Ids<VipKey>,
    /// Indexes of removed VIPs that the table may name until it is told anew.
    vacated: BTreeSet<u16>,
    written: BTreeMap<RealId, RealEntry>,
    /// The last verdict of each configured check.
    verdicts: BTreeMap<CheckKey, State>,
    phase: Phase,
    /// The table of VIPs as it was swapped in last.
    table: Option<(Vec<Row>, VipMiss)>,
    /// Flows of an earlier daemon may be in the map.
    adopted: bool,
    /// When the tracked flows are to be swept next.
    next_sweep: Option<Instant>,
    /// While they are: the removed reals that no ring has named since it began.
    sweeping: Option<BTreeSet<RealId>>,
    /// Until the first configuration has taken them over.
    inherited_rings: BTreeMap<u16, Vec<Box<RingWords>>>,
}

impl Core {
    /// Takes the first configuration and goes on where an earlier daemon stopped: reals and VIPs keep their indexes,
    /// reals that took new flows take them until their checks say otherwise, and flows keep their reals.
    #[must_use]
    pub fn start(config: Config, inheritance: Inheritance, now: Instant) -> (Self, Vec<Op>) {
        let last_real = u16::try_from(MAX_REALS - 1).unwrap_or(u16::MAX);
        let last_vip = u16::try_from(MAX_VIPS - 1).unwrap_or(u16::MAX);
        let same_slots = inheritance.hash_key == HashKey::from_seed(config.node().seed());
        let address = |(&id, entry): (&RealId, &RealEntry)| Some((entry.address()?, id));
        let holders = inheritance.reals.iter().filter_map(address).collect();
        let mut core = Self {
            config: config.clone(),
            // The seed cannot change on reload.
            maglev: Maglev::new(config.node().seed()),
            services: BTreeMap::new(),
            adopted: !inheritance.reals.is_empty(),
            reals: Ids::new(1..=last_real, holders),
            hops: BTreeMap::new(),
            path_mtus: PathMtus::default(),
            vips: Ids::new(0..=last_vip, inheritance.vips),
            vacated: BTreeSet::new(),
            written: inheritance.reals,
            verdicts: BTreeMap::new(),
            phase: Phase::Starting,
            table: None,
            next_sweep: None,
            sweeping: None,
            // With another seed a flow has another slot.
            inherited_rings: if same_slots { inheritance.rings } else { BTreeMap::new() },
        };
        let ops = core.apply(Event::Configured(config), now);
        core.inherited_rings.clear();
        (core, ops)
    }

    /// Takes an event and says what is to be done.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Op> {
        let mut ops = match event {
            Event::Configured(config) => self.configure(config, now),
            Event::Verdict(key, state) => self.verdict(&key, state, now),
            Event::Administered(place, admin) => self.administer(place, admin, now),
            Event::NextHops(hops) => self.next_hops(hops),
            // Anybody may send any number of them: no more is done than they ask for.
            Event::TooBig(told) => return self.too_big(&told, now).into_iter().collect(),
            Event::Swept(sweep) => self.swept(&sweep),
            Event::NotSwept => {
                self.sweeping = None;
                Vec::new()
            }
            Event::Tick => {
                let mut ops = self.close_windows(now);
                ops.extend(self.advance(now));
                ops.extend(self.forget_path_mtus(now));
                ops
            }
        };
        ops.extend(self.publish(now));
        ops.extend(self.services.values_mut().flat_map(Service::news).map(Op::Tell));
        // Last: what the rings are now packets must meet before the sweep.
        ops.extend(self.sweep(now));
        ops
    }

    fn configure(&mut self, config: Config, now: Instant) -> Vec<Op> {
        // What was removed may be back, and removed again before the sweep that is under way ends.
        self.sweeping.iter_mut().for_each(BTreeSet::clear);
        self.services.retain(|key, _| config.vip(key).is_some());
        let gone = self.vips.iter().filter(|(key, _)| config.vip(key).is_none());
        self.vacated.extend(gone.map(|(_, index)| index));
        self.vips.retain(|key| config.vip(key).is_some());
        let checks = checks(&config);
        // The prober begins a check that was left out for a while from scratch.
        let keys: BTreeSet<_> = checks.iter().map(|check| &check.key).collect();
        self.verdicts.retain(|key, _| keys.contains(key));
        let orphans = self.orphans();
        let real = |vip: &Vip| vip.reals().iter().map(|real| real.address).collect::<Vec<_>>();
        let reals: BTreeSet<_> = config.vips().iter().flat_map(real).collect();
        let left_out: Vec<_> = reals.into_iter().filter(|real| self.reals.take(real).is_none()).collect();
        let mut rings = Vec::new();
        for vip in config.vips() {
            rings.extend(self.configure_vip(vip, &orphans, now));
        }
        self.config = config;
        let mut ops = self.write_reals();
        ops.extend(rings);
        if !left_out.is_empty() {
            ops.push(Op::NoIndex(left_out));
        }
        ops.extend(self.other_ring_sizes());
        ops.push(Op::Checks(checks));
        ops.push(self.resolve());
        ops
    }

    fn other_ring_sizes(&self) -> impl Iterator<Item = Op> {
        let sizes = self.services.values().map(|s| (s.config.key(), s.ring.size(), s.ring_size_wanted()));
        sizes.filter(|(_, size, wanted)| size != wanted).map(|(vip, size, wanted)| Op::OtherRingSize(vip, size, wanted))
    }

    /// A real without an index is left out. There are as many indexes of VIPs as a configuration may have VIPs.
    fn configure_vip(&mut self, vip: &Vip, orphans: &BTreeMap<IpAddr, Serves>, now: Instant) -> Vec<Op> {
        let Some(index) = self.vips.take(&vip.key()) else { return Vec::new() };
        let keep_last = vip.on_all_down() == crate::config::OnAllDown::Keep;
        let service = self.services.entry(vip.key()).or_insert_with(|| {
            let flow_idle = vip.flow_idle();
            let ring = match self.inherited_rings.get(&index) {
                Some(parts) => Ring::adopt(&self.maglev, flow_idle, keep_last, parts, now),
                None => Ring::new(
                    &self.maglev,
                    vip.ring_order(),
                    flow_idle,
                    keep_last,
                    self.adopted || self.phase == Phase::Running,
                ),
            };
            Service::new(vip.clone(), index, ring, now + first_verdict_within(vip))
        });
        service.ring.set_policy(vip.flow_idle(), keep_last, vip.min_healthy());
        let reals = &self.reals;
        service
            .configure(vip.clone(), |real| Some((reals.get(&real)?, orphans.get(&real).copied().unwrap_or_default())));
        // A check may be another VIP's already, or that of a real that is back: then its verdict will not come again.
        for real in vip.reals() {
            if let Some(state) = overall(&self.verdicts, service.check_keys(real.address)) {
                service.verdict(real.address, state, now);
            }
        }
        if service.refresh(now) { swap_ring(service).collect() } else { Vec::new() }
    }

    fn verdict(&mut self, key: &CheckKey, state: State, now: Instant) -> Vec<Op> {
        let mut rings = Vec::new();
        let asks = |service: &Service| service.check_keys(key.real).any(|asked| asked == *key);
        if self.services.values().any(asks) {
            self.verdicts.insert(key.clone(), state);
        }
        for service in self.services.values_mut().filter(|service| asks(service)) {
            let Some(state) = overall(&self.verdicts, service.check_keys(key.real)) else { continue };
            // In a first round the ring is built once, when it is over.
            if service.verdict(key.real, state, now) && service.is_published() && service.refresh(now) {
                rings.extend(swap_ring(service));
            }
        }
        // A real must serve before a ring names it, and a ring must have left it before it serves no more:
        // both orders are safe, since the path asks `serves` only of flows that a real already has.
        let real = self.reals.get(&key.real).and_then(|id| self.write_real(key.real, id));
        real.into_iter().chain(rings).collect()
    }

    /// Health and the operator's word are two things; new flows go where both allow it.
    fn administer(&mut self, (vip, real): Place, admin: Admin, now: Instant) -> Vec<Op> {
        let Some(service) = self.services.get_mut(&vip) else { return Vec::new() };
        if !service.administer(real, admin, now) {
            return Vec::new();
        }
        let rings: Vec<_> =
            if service.is_published() && service.refresh(now) { swap_ring(service).collect() } else { Vec::new() };
        let entry = self.reals.get(&real).and_then(|id| self.write_real(real, id));
        entry.into_iter().chain(rings).collect()
    }

    fn close_windows(&mut self, now: Instant) -> Vec<Op> {
        let closed =
            self.services.values_mut().filter_map(|s| (s.ring.close_window(now) && s.is_published()).then_some(s));
        closed.flat_map(|s| swap_ring(s)).collect()
    }

    /// Brings the VIPs up to this time that it has changed something for.
    fn advance(&mut self, now: Instant) -> Vec<Op> {
        let due = self.services.values_mut().filter(|service| service.is_due(now));
        due.filter_map(|service| service.refresh(now).then_some(service))
            .flat_map(|service| swap_ring(service))
            .collect()
    }

    /// Lets packets meet the VIPs whose first round of checks is over; those of the start together, with the attachment.
    /// Until then a VIP's ring is nobody's business, so it is written once.
    fn publish(&mut self, now: Instant) -> Vec<Op> {
        let starting = self.phase == Phase::Starting;
        if starting && self.services.values().any(|s| !s.is_published() && !s.is_ready(now)) {
            return Vec::new();
        }
        let mut ops = Vec::new();
        for service in self.services.values_mut().filter(|s| !s.is_published() && s.is_ready(now)) {
            service.publish(now);
            ops.extend(swap_ring(service));
        }
        ops.extend(self.vip_table());
        ops.extend(self.vacate());
        if starting {
            self.phase = Phase::Running;
            ops.push(Op::Attach);
        }
        ops
    }

    /// What removed VIPs had: after the table that does not name them.
    fn vacate(&mut self) -> Vec<Op> {
        if self.vacated.is_empty() {
            return Vec::new();
        }
        let taken: BTreeSet<_> = self.vips.iter().map(|(_, index)| index).collect();
        let vacated = std::mem::take(&mut self.vacated);
        let rings = vacated.difference(&taken).map(|&index| Op::Vacate(index));
        rings.chain(vacated.iter().map(|&index| Op::ClearCount(index))).collect()
    }

    /// Begins a sweep when its time has come, if there is anything to be found out.
    fn sweep(&mut self, now: Instant) -> Option<Op> {
        if self.phase == Phase::Starting || self.sweeping.is_some() {
            return None;
        }
        if self.next_sweep.is_some_and(|at| now < at) {
            return None;
        }
        if !self.is_to_be_swept() {
            self.next_sweep = None;
            return None;
        }
        let idle = || self.services.values().map(|s| s.config.flow_idle());
        let period = idle().min().map_or(SWEEP_AT_LEAST_EVERY, |idle| (idle / 4).min(SWEEP_AT_LEAST_EVERY));
        if self.next_sweep.is_none() {
            self.next_sweep = Some(now + period);
            return None;
        }
        let longest_idle_s = idle().max().map_or(0, vip_table::seconds);
        self.next_sweep = Some(now + period);
        self.sweeping = Some(self.leaving());
        self.services.values_mut().for_each(|s| s.ring.begin_sweep());
        Some(Op::Sweep(longest_idle_s))
    }

    /// Ends the look-up of slots without entries, and frees the indexes of removed reals that nothing names any more.
    fn swept(&mut self, sweep: &Sweep) -> Vec<Op> {
        let Some(unnamed) = self.sweeping.take() else { return Vec::new() };
        let mut ops = Vec::new();
        for service in self.services.values_mut() {
            let order = service.ring.order();
            if service.ring.end_sweep(|slot| sweep.names_slot(slot, order)) && service.is_published() {
                ops.extend(swap_ring(service));
            }
        }
        let freed: BTreeMap<_, _> = self
            .reals
            .iter()
            .filter(|(_, id)| unnamed.contains(id) && !sweep.names_real(*id))
            .map(|(&r, id)| (r, id))
            .collect();
        if freed.is_empty() {
            return ops;
        }
        self.reals.retain(|real| !freed.contains_key(real));
        for (&real, &id) in &freed {
            self.services.values_mut().for_each(|s| s.forget(real));
            self.hops.remove(&real);
            self.written.remove(&id);
            ops.push(Op::Real(id, RealEntry::default()));
        }
        ops.push(self.resolve());
        ops
    }

    /// Whether flows of any slot are looked up, or a removed real has its index still.
    fn is_to_be_swept(&self) -> bool {
        self.services.values().any(|s| s.ring.is_looked_up()) || !self.unconfigured().is_empty()
    }

    fn unconfigured(&self) -> BTreeSet<RealId> {
        let unconfigured = |(real, _): &(&IpAddr, RealId)| {
            let mut standings = self.services.values().filter_map(|service| service.standing(**real));
            !standings.any(|standing| standing.configured)
        };
        self.reals.iter().filter(unconfigured).map(|(_, id)| id).collect()
    }

    /// The reals that no VIP has and no ring names: once no flow is remembered that goes to them, they are gone.
    fn leaving(&self) -> BTreeSet<RealId> {
        let mut leaving = self.unconfigured();
        if !leaving.is_empty() {
            let mut named = vec![false; MAX_REALS];
            for id in self.services.values().flat_map(|service| service.ring.named()) {
                named.get_mut(usize::from(id)).into_iter().for_each(|named| *named = true);
            }
            leaving.retain(|&id| named.get(usize::from(id)) == Some(&false));
        }
        leaving
    }

    fn resolve(&self) -> Op {
        Op::Resolve(self.reals.iter().map(|(&real, _)| real).collect())
    }

    /// A next hop stays in use while the kernel knows no other. Where a real is probed from the address that its route
    /// prefers, in the outer header or only in the inner one, the probes must follow that address.
    fn next_hops(&mut self, hops: Vec<(IpAddr, NextHop)>) -> Vec<Op> {
        let mut moved = false;
        for (real, hop) in hops {
            let before = self.hops.insert(real, hop);
            let is_other = |before: NextHop| (before.ifindex, before.dest_mac) != (hop.ifindex, hop.dest_mac);
            if before.is_some_and(is_other) {
                self.path_mtus.forget(&real);
            }
            moved |= self.config.node().is_source_routed(real) && before.is_some_and(|b| b.source != hop.source);
        }
        let mut ops = self.write_reals();
        if moved {
            ops.push(Op::Checks(checks(&self.config)));
        }
        ops
    }

    /// A word about a packet that we may have sent: to one of our reals, from an address that we send to it from.
    fn too_big(&mut self, told: &TooBig, now: Instant) -> Option<Op> {
        let id = self.reals.get(&told.real)?;
        let hop = self.hops.get(&told.real)?;
        let is_ours = self.config.node().sends_from(told.source, hop.source) && u32::from(told.mtu) < hop.mtu;
        (is_ours && self.path_mtus.tell(told, now)).then(|| self.write_real(told.real, id)).flatten()
    }

    fn forget_path_mtus(&mut self, now: Instant) -> Vec<Op> {
        let reals = &self.reals;
        if self.path_mtus.retain(now, |real| reals.get(real).is_some()) { self.write_reals() } else { Vec::new() }
    }

    /// Reals that no VIP knows and the flows that they serve: an earlier daemon's, and those of VIPs that are gone.
    fn orphans(&self) -> BTreeMap<IpAddr, Serves> {
        let orphans = self.reals.iter().filter(|(real, _)| self.serves(**real).is_none());
        orphans.filter_map(|(&real, id)| Some((real, serves_of(self.written.get(&id)?.serves)))).collect()
    }

    /// The reals whose entry is not what the map holds.
    fn write_reals(&mut self) -> Vec<Op> {
        let reals: Vec<_> = self.reals().collect();
        reals.into_iter().filter_map(|(address, id)| self.write_real(address, id)).collect()
    }

    /// A real, if its entry is not what the map holds.
    fn write_real(&mut self, address: IpAddr, id: RealId) -> Option<Op> {
        let known = self.written.get(&id).copied();
        let serves = match (self.serves(address), known) {
            (Some(serves), _) => flags_of(serves),
            (None, known) => known.map_or(0, |entry| entry.serves),
        };
        let entry = match (self.hops.get(&address), known) {
            // An earlier daemon knew the way.
            (None, Some(entry)) => RealEntry { serves, ..entry },
            (hop, _) => real_entry(self.config.node(), address, hop, self.path_mtus.of(&address), serves),
        };
        (self.written.insert(id, entry) != Some(entry)).then_some(Op::Real(id, entry))
    }

    /// A real serves a protocol while any VIP of it says so: a flow of another VIP that is sent to it all the same is one
    /// that it has, and that, with TCP, would be dead elsewhere too. VIPs that it was removed from are asked only if it
    /// has no other of that protocol: nobody checks it for them any more. `None`: no VIP knows it.
    fn serves(&self, real: IpAddr) -> Option<Serves> {
        let known: Vec<_> =
            self.services.values().filter_map(|s| Some((s.config.key().protocol, s.standing(real)?))).collect();
        let said = |protocol| {
            let of_it: Vec<_> = known.iter().filter(|(p, _)| *p == protocol).map(|(_, s)| s).collect();
            let checked = of_it.iter().any(|s| s.configured);
            of_it.iter().filter(|s| s.configured == checked).any(|s| s.serves() != Serves::default())
        };
        (!known.is_empty()).then(|| Serves { tcp: said(Protocol::Tcp), udp: said(Protocol::Udp) })
    }

    /// The table of the VIPs that packets meet, if it is another than the last one.
    fn vip_table(&mut self) -> Option<Op> {
        let row = |s: &Service| Row {
            key: s.config.key(),
            index: s.index,
            ring_order: s.ring.order(),
            flow_idle: s.config.flow_idle(),
            hash: s.config.hash(),
        };
        let rows: Vec<_> = self.services.values().filter(|s| s.is_published()).map(row).collect();
        let (node, new) = (self.config.node(), Some((rows, self.config.node().vip_miss())));
        if new == self.table {
            return None;
        }
        self.table = new;
        self.table.as_ref().map(|(rows, miss)| Op::Vips(vip_table::build(rows, node.seed(), *miss)))
    }

    /// The largest packet that gets to a real whole, in bytes from the outer IP header on; `None` while there is no way.
    #[must_use]
    pub fn mtu(&self, real: IpAddr) -> Option<u16> {
        let entry = self.written.get(&self.reals.get(&real)?)?;
        (entry.mtu > 0).then_some(entry.mtu)
    }

    /// The timing of a check, and whether it has been up: before this daemon too, if the ring that it took over says so.
    #[must_use]
    pub fn check(&self, key: &CheckKey) -> Option<(Timing, bool)> {
        let known = |service: &Service| {
            let (_, timing) = check_keys(&service.config, key.real).find(|(asked, _)| asked == key)?;
            let admitted = service.standing(key.real).is_some_and(|standing| standing.admitted);
            service.has(key.real).then_some((timing, admitted))
        };
        // As `checks` has it: the timing of the first VIP.
        self.services().filter_map(known).reduce(|(timing, up), (_, also)| (timing, up || also))
    }

    /// The check that decides on a real of a VIP: of equally grave verdicts the first in the configuration.
    #[must_use]
    pub fn decisive(&self, service: &Service, real: IpAddr) -> Option<CheckKey> {
        let gravity = |key: &CheckKey| self.verdicts.get(key).copied().unwrap_or_default().gravity();
        let keys: Vec<_> = service.check_keys(real).collect();
        keys.into_iter().rev().max_by_key(gravity)
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

    /// Whether clients of a service are served: it can serve, and packets find the way to a real that takes them or finishes
    /// what it has.
    #[must_use]
    pub fn can_serve(&self, service: &Service) -> bool {
        let reached = |standing: &Standing| self.written.get(&standing.id).is_some_and(|entry| entry.mtu != 0);
        service.can_serve() && service.configured().any(|(_, standing)| service.uses(standing) && reached(standing))
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

fn swap_ring(service: &Service) -> impl Iterator<Item = Op> {
    service.ring_parts().map(|(place, words)| Op::Ring(place, words))
}

/// One check a real, VIP, kind and port: identical ones are shared, with the timing of the first VIP.
fn checks(config: &Config) -> Vec<Check> {
    let mut seen = BTreeSet::new();
    let mut checks = Vec::new();
    for vip in config.vips() {
        for real in vip.reals() {
            let new = check_keys(vip, real.address).filter(|(key, _)| seen.insert(key.clone()));
            checks.extend(new.map(|(key, timing)| Check { key, timing }));
        }
    }
    checks
}

fn flags_of(Serves { tcp, udp }: Serves) -> u16 {
    (if tcp { SERVES_TCP } else { 0 }) | (if udp { SERVES_UDP } else { 0 })
}

fn serves_of(flags: u16) -> Serves {
    Serves { tcp: flags & SERVES_TCP != 0, udp: flags & SERVES_UDP != 0 }
}

/// What the packet path needs to know of a real. Without a next hop its packets are dropped, and counted.
fn real_entry(node: &Node, real: IpAddr, hop: Option<&NextHop>, path_mtu: Option<u16>, serves: u16) -> RealEntry {
    let next_hop = hop.map(|hop| link_layer(hop, path_mtu));
    match real {
        IpAddr::V4(real) => {
            let routed = match hop.map(|hop| hop.source) {
                Some(IpAddr::V4(source)) => source,
                Some(IpAddr::V6(_)) | None => Ipv4Addr::UNSPECIFIED,
            };
            RealEntry::ipip(node.outer_source().unwrap_or(routed.into()), real, next_hop.as_ref(), serves)
        }
        IpAddr::V6(real) => {
            let routed = match hop.map(|hop| hop.source) {
                Some(IpAddr::V6(source)) => source,
                Some(IpAddr::V4(_)) | None => Ipv6Addr::UNSPECIFIED,
            };
            RealEntry::ip6(node.outer_source6().unwrap_or(routed), real, next_hop.as_ref(), serves)
        }
    }
}

fn link_layer(hop: &NextHop, path_mtu: Option<u16>) -> real::NextHop {
    let mtu = u16::try_from(hop.mtu).unwrap_or(u16::MAX);
    real::NextHop {
        ifindex: hop.ifindex,
        device_mtu: mtu,
        mtu: path_mtu.map_or(mtu, |path| path.min(mtu)),
        source_mac: hop.source_mac,
        destination_mac: hop.dest_mac,
    }
}

/// By when all checks that say anything at all have come to their first verdicts: at worst results alternate once, and a
/// first probe waits for its place in the interval.
fn first_verdict_within(vip: &Vip) -> Duration {
    let within = |timing: &Timing| {
        let probes = timing.rise + timing.fall;
        timing.interval * 2 + timing.fast_interval * probes + timing.timeout
    };
    vip.checks().iter().map(|(_, timing)| within(timing)).max().unwrap_or_default()
}

/// The verdict on a real of which all these checks must pass: the gravest. `None`: there is none yet, since one of them has
/// come to none and no other fails.
fn overall(verdicts: &BTreeMap<CheckKey, State>, checks: impl Iterator<Item = CheckKey>) -> Option<State> {
    let verdict = |key| verdicts.get(&key).copied().unwrap_or_default();
    checks.map(verdict).max_by_key(|state| state.gravity()).filter(|state| *state != State::Init)
}

#[cfg(test)]
#[path = "reconcile_tests.rs"]
mod tests;

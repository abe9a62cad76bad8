//! Random changes of configuration and orders, and what the maps hold after them, in a form that does not depend on how
//! it came about.

use crate::common::Service;
use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapError, PerCpuArray};
use lb_ebpf::{
    counter::{Counter, vip_index},
    hash::splitmix64,
    real::{MAX_REALS, RealEntry},
    ring::{MAX_RINGS, RING_PARTS, RealId, Ring, RingRef, Slot},
    vip::{MAX_VIPS, VipTable},
};
use lbd::{config::VipKey, model::Admin, vip_table};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

/// The VIP that clients use; it and its first real are always there.
const MAIN: (Ipv4Addr, &str, u16) = (tests::lab::VIP, "tcp", 80);
const PORTS: [u16; 3] = [0, 53, 8080];
const WEIGHTS: [u16; 4] = [0, 50, 100, 200];
/// Of all VIPs.
const POLICIES: [&str; 4] =
    ["slow_start = \"1s\"", "slow_start = \"3s\"", "slow_start = \"0s\"", "hold_down = \"5s\"\nflap_limit = 0"];

type Vip = (Ipv4Addr, &'static str, u16);

/// What an operator has said so far.
pub(crate) struct Operator<'a> {
    service: &'a Service,
    vips: BTreeMap<Vip, BTreeMap<IpAddr, u16>>,
    policy: &'static str,
    random: u64,
    /// What was done, and how often.
    pub(crate) done: BTreeMap<&'static str, usize>,
}

impl<'a> Operator<'a> {
    pub(crate) fn new(service: &'a Service, seed: u64) -> Self {
        let reals = service.lab.reals().iter().map(|real| (IpAddr::from(real.addr()), 100));
        let (vips, policy) = ([(MAIN, reals.collect())].into(), POLICIES[0]);
        let operator = Self { service, vips, policy, random: seed, done: BTreeMap::new() };
        operator.reload();
        operator
    }

    fn draw(&mut self, below: usize) -> usize {
        usize::try_from(splitmix64(&mut self.random) % below as u64).unwrap()
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.draw(from.len())]
    }

    /// One that exists, or one whose address nobody has.
    fn any_real(&mut self) -> IpAddr {
        let subnet = 101 + u8::try_from(self.draw(3)).unwrap();
        Ipv4Addr::new(198, 18, subnet, self.pick(&[10, 10, 10, 77])).into()
    }

    fn file(&self) -> String {
        let lb = self.service.lab.lb().addr();
        let mut text = format!("[node]\ninterface = \"eth0\"\nouter_source = \"{lb}\"\n[defaults]\n");
        text += "interval = \"500ms\"\ntimeout = \"500ms\"\nfall = 2\nflow_idle = \"1s\"\n";
        writeln!(text, "{}", self.policy).unwrap();
        for ((address, protocol, port), reals) in &self.vips {
            writeln!(text, "[[vip]]\naddress = \"{address}\"\nprotocol = \"{protocol}\"\nport = {port}").unwrap();
            writeln!(text, "check = {{ kind = \"tcp\", port = 80, target = \"{}\" }}", MAIN.0).unwrap();
            for (real, weight) in reals {
                writeln!(text, "[[vip.real]]\naddress = \"{real}\"\nweight = {weight}").unwrap();
            }
        }
        text
    }

    fn write(&self, text: &str) {
        fs::write(self.service.lab.lbd().config, text).unwrap();
    }

    fn reload(&self) {
        self.write(&self.file());
        self.service.lbctl(&["reload"]).unwrap();
    }

    /// A file that lbd must refuse; the good one is there again afterwards.
    fn reload_badly(&mut self) {
        let good = self.file();
        let bad = match self.draw(3) {
            0 => good.replace("port = 80", "port = 80\ncolour = \"red\""),
            1 => good.replace("[node]", "[node"),
            _ => good.replace("weight = ", "weight = 70000"),
        };
        self.write(&bad);
        self.service.lbctl(&["reload"]).unwrap_err();
        self.write(&good);
    }

    /// One change, at random.
    pub(crate) fn change(&mut self) {
        let vips: Vec<Vip> = self.vips.keys().copied().collect();
        let others: Vec<Vip> = vips.iter().copied().filter(|vip| *vip != MAIN).collect();
        let (vip, real) = (self.pick(&vips), self.any_real());
        let reals: Vec<_> = self.vips[&vip].keys().copied().collect();
        let own = self.pick(&reals);
        // Clients always have one.
        let is_first = |vip, real| vip == MAIN && real == IpAddr::from(Ipv4Addr::new(198, 18, 101, 10));
        let what = match self.draw(13) {
            0..2 => {
                let address = Ipv4Addr::new(198, 19, 10, 1 + u8::try_from(self.draw(4)).unwrap());
                let vip = (address, self.pick(&["tcp", "udp"]), self.pick(&PORTS));
                let weight = self.pick(&WEIGHTS);
                self.vips.entry(vip).or_insert_with(|| [(real, weight)].into());
                "VIP added"
            }
            2 if !others.is_empty() => {
                let vip = self.pick(&others);
                self.vips.remove(&vip);
                "VIP removed"
            }
            3 if !others.is_empty() => {
                let (address, protocol, port) = self.pick(&others);
                let reals = self.vips.remove(&(address, protocol, port)).unwrap();
                let port = self.pick(&PORTS);
                self.vips.insert((address, protocol, port), reals);
                "port changed"
            }
            4..6 => {
                let weight = self.pick(&WEIGHTS);
                let weight = if is_first(vip, real) { 100 } else { weight };
                let before = self.vips.get_mut(&vip).unwrap().insert(real, weight);
                if before.is_some() { "real weighed" } else { "real added" }
            }
            6 if self.vips[&vip].len() > 1 && !is_first(vip, own) => {
                self.vips.get_mut(&vip).unwrap().remove(&own);
                "real removed"
            }
            7 => {
                self.reload_badly();
                "bad file"
            }
            12 => {
                self.policy = self.pick(&POLICIES);
                "policy changed"
            }
            8..12 if !is_first(vip, own) => self.order(vip, own),
            _ => return self.change(),
        };
        self.reload();
        *self.done.entry(what).or_default() += 1;
    }

    /// Connections of clients are not cut off: a real of their VIP is drained.
    fn order(&mut self, vip: Vip, real: IpAddr) -> &'static str {
        let order = if vip == MAIN { Admin::Draining } else { self.pick(&[Admin::Draining, Admin::Disabled]) };
        let (verb, what) = match self.pick(&[order, order, Admin::Enabled]) {
            Admin::Draining => ("drain", "drained"),
            Admin::Disabled => ("disable", "disabled"),
            Admin::Enabled => ("enable", "enabled"),
        };
        // Of TCP and UDP, if it has both.
        let (address, _, port) = vip;
        let both = |protocol| self.vips.get(&(address, protocol, port)).is_some_and(|reals| reals.contains_key(&real));
        assert!(both("tcp") || both("udp"));
        self.service.lbctl(&["real", verb, &real.to_string(), "--vip", &format!("{address}:{port}")]).unwrap();
        what
    }
}

/// A slot: who gets new flows, who those from before a change, and whether flows are remembered.
type Meaning = (Option<IpAddr>, Option<IpAddr>, bool);

/// What packets meet, by addresses. Indexes of VIPs and reals are left out, and so is `LOOKUP`, which stands until a sweep finds
/// that no flow is remembered on its slot: that is the past of the flows, not of the configuration.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Canonical {
    /// Of each VIP how long its flows may be silent, how they are hashed, and its slots.
    vips: BTreeMap<VipKey, (u16, u16, Vec<Meaning>)>,
    /// The addresses and services of the table.
    table: BTreeSet<String>,
    /// Of each real that a ring names: how it is reached.
    reals: BTreeMap<IpAddr, String>,
}

/// The maps that are pinned there.
pub(crate) struct Maps {
    table: Box<VipTable>,
    rings: BTreeMap<u32, Box<Ring>>,
    reals: BTreeMap<RealId, RealEntry>,
}

fn open<T: TryFrom<Map, Error = MapError>>(pins: &Path, name: &str) -> T {
    Map::from_map_data(MapData::from_pin(pins.join(name)).unwrap()).unwrap().try_into().unwrap()
}

impl Maps {
    pub(crate) fn read(pins: &Path) -> Self {
        let vips: ArrayOfMaps<MapData, Array<MapData, VipTable>> = open(pins, "VIPS");
        let rings: ArrayOfMaps<MapData, Array<MapData, Ring>> = open(pins, "RINGS");
        let reals: Array<MapData, RealEntry> = open(pins, "REALS");
        let part = |place| Some((place, Box::new(rings.get(&place, 0).ok()?.get(&0, 0).unwrap())));
        let real =
            |id: RealId| Some((id, reals.get(&u32::from(id), 0).unwrap())).filter(|(_, e)| e.address().is_some());
        Self {
            table: Box::new(vips.get(&0, 0).unwrap().get(&0, 0).unwrap()),
            rings: (0..u32::try_from(MAX_RINGS * RING_PARTS).unwrap()).filter_map(part).collect(),
            reals: (1..RealId::try_from(MAX_REALS).unwrap()).filter_map(real).collect(),
        }
    }

    /// The places that hold something of no VIP that is there.
    pub(crate) fn left_over(&self) -> Vec<u32> {
        let vips = vip_table::read(&self.table);
        let of = |ring: RingRef| (0..1 << ring.order()).map(move |part| ring.place(part));
        let places: BTreeSet<u32> = vips.values().flat_map(|entry| of(entry.ring)).collect();
        let is_empty = |ring: &Ring| ring.slots.iter().all(|slot| *slot == Slot::default());
        let others = self.rings.iter().filter(|(place, ring)| !places.contains(place) && !is_empty(ring));
        others.map(|(&place, _)| place).collect()
    }

    /// The indexes of no VIP that is there whose counters are not nought.
    pub(crate) fn counts_left_over(&self, pins: &Path) -> Vec<u16> {
        let counts: PerCpuArray<MapData, Counter> = open(pins, "COUNTS");
        let vips: BTreeSet<u16> = vip_table::read(&self.table).values().map(|entry| entry.vip).collect();
        let others = (0..u16::try_from(MAX_VIPS).unwrap()).filter(|index| !vips.contains(index));
        let counted = |index: &u16| counts.get(&vip_index(*index), 0).unwrap().iter().any(|count| count.packets > 0);
        others.filter(counted).collect()
    }

    pub(crate) fn canonical(&self) -> Canonical {
        let address = |id: RealId| self.reals.get(&id).and_then(RealEntry::address);
        let slots = |entry: &lb_ebpf::vip::VipEntry| -> Vec<Meaning> {
            let parts = (0..1 << entry.ring.order()).flat_map(|part| self.rings[&entry.ring.place(part)].slots);
            parts.map(|slot| (address(slot.cur()), address(slot.prev()), slot.track())).collect()
        };
        let vips: BTreeMap<_, _> = vip_table::read(&self.table)
            .into_iter()
            .map(|(key, entry)| (key, (entry.flow_idle_s, entry.hash, slots(&entry))))
            .collect();
        let named: BTreeSet<IpAddr> =
            vips.values().flat_map(|(_, _, slots)| slots).flat_map(|(cur, prev, _)| [*cur, *prev]).flatten().collect();
        // A real goes on serving flows of VIPs that it was removed from.
        let way = |entry: &RealEntry| format!("{:?}", RealEntry { serves: 0, ..*entry });
        let reals =
            self.reals.values().filter_map(|entry| Some((entry.address().filter(|a| named.contains(a))?, way(entry))));
        let table = self.table.entries().map(|e| format!("{} {:?}", self.table.address(e), e.key)).collect();
        Canonical { reals: reals.collect(), table, vips }
    }
}

//! VIPs with equal rings share their memory, and nothing else: whatever happens to one of them, the kernel's maps hold for
//! each VIP what its own ring says. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::large_stack_arrays,
    reason = "a helper that fails fails its test"
)]

use aya::maps::{Array, ArrayOfMaps, Map, MapData, MapInfo, MapType};
use hc_prober::{Severity, State};
use lb_ebpf::{
    hash::splitmix64,
    ring::{MAX_RINGS, RING_PARTS, RING_SLOTS, Ring, RingRef, Slot},
    vip::VipTable,
};
use lbd::{
    config::Config,
    data_plane::{Program, tick_now},
    reconcile::{Core, Event, Inheritance, Op, Phase},
    sweep::Sweep,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    net::Ipv4Addr,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

const UP: State = State::Up;
const SOFT: State = State::Down(Severity::Soft);
const HARD: State = State::Down(Severity::Hard);

type Outer = ArrayOfMaps<MapData, Array<MapData, Ring>>;

/// In a debug build a table of VIPs goes over the stack several times. One test at a time: they look at the maps that this
/// process has open.
fn run<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> T {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    thread::Builder::new().stack_size(64 << 20).spawn(body).unwrap().join().unwrap()
}

/// The descriptors of maps that this process has: the map's id, and what the kernel charges for it, bytes.
fn open_maps() -> BTreeMap<u32, (u32, u64)> {
    let info = |entry: fs::DirEntry| {
        // That of the directory itself is closed again.
        let text = fs::read_to_string(entry.path()).ok()?;
        let field = |name| Some(text.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
        let map = (field("map_id:")?.parse().unwrap(), field("memlock:")?.parse().unwrap());
        Some((entry.file_name().to_str().unwrap().parse().unwrap(), map))
    };
    fs::read_dir("/proc/self/fdinfo").unwrap().filter_map(|entry| info(entry.unwrap())).collect()
}

/// The program and the kernel's view of its map of rings.
struct World {
    program: Program,
    outer: Outer,
    vips: ArrayOfMaps<MapData, Array<MapData, VipTable>>,
}

impl World {
    fn new() -> Self {
        let mut program = Program::load().unwrap();
        let ids = program.xdp().unwrap().info().unwrap().map_ids().unwrap().unwrap();
        let of_maps = |entries: usize| {
            let shape = |info: MapInfo| (info.map_type().unwrap(), info.max_entries() as usize);
            let is_it = |id: &&u32| shape(MapInfo::from_id(**id).unwrap()) == (MapType::ArrayOfMaps, entries);
            Map::from_map_data(MapData::from_id(*ids.iter().find(is_it).unwrap()).unwrap()).unwrap()
        };
        let outer = of_maps(MAX_RINGS * RING_PARTS).try_into().unwrap();
        Self { outer, vips: of_maps(1).try_into().unwrap(), program }
    }

    fn held(&self, place: u32) -> Box<Ring> {
        Box::new(self.outer.get(&place, 0).unwrap().get(&0, 0).unwrap())
    }

    /// The inner maps that these places name, and what each costs.
    fn inner_maps(&self, places: impl IntoIterator<Item = u32>) -> BTreeMap<u32, u64> {
        let others = open_maps();
        let inner = |place| {
            let _inner = self.outer.get(&place, 0).unwrap();
            open_maps().into_iter().filter(|(descriptor, _)| !others.contains_key(descriptor)).collect::<Vec<_>>()
        };
        places.into_iter().flat_map(inner).map(|(_, map)| map).collect()
    }

    /// What the kernel charges for all maps, bytes, with rings at these places.
    fn footprint(&self, places: impl IntoIterator<Item = u32>) -> u64 {
        let _vips = self.vips.get(&0, 0).unwrap();
        let mut maps: BTreeMap<u32, u64> = open_maps().into_values().collect();
        maps.extend(self.inner_maps(places));
        maps.values().sum()
    }
}

fn part_of(real: u16) -> Box<Ring> {
    Box::new(Ring { slots: [Slot::new(real, 0, false, false); RING_SLOTS] })
}

#[test]
fn places_with_equal_parts_name_one_map_and_each_holds_what_it_was_given_last() {
    run(|| {
        let mut world = World::new();
        let (mut random, mut given) = (3, BTreeMap::new());
        for round in 0..60 {
            // A few contents, so that places meet and part; a place that is swapped alone is another way through.
            let places = if round % 4 == 0 { 1 } else { 1 + splitmix64(&mut random) % 12 };
            let mut swapped = BTreeMap::new();
            for _ in 0..places {
                let (place, real) = (splitmix64(&mut random) % 20, splitmix64(&mut random) % 5);
                swapped.insert(u32::try_from(place).unwrap(), part_of(u16::try_from(real).unwrap()));
            }
            assert!(world.program.swap_rings(&swapped).is_empty());
            given.extend(swapped);
            for (&place, part) in &given {
                assert!(world.held(place) == *part, "round {round}, place {place}");
            }
            let contents: BTreeSet<_> = given.values().map(|part| part.slots[0].cur()).collect();
            assert_eq!(world.inner_maps(given.keys().copied()).len(), contents.len(), "round {round}");
        }
    });
}

fn address(real: u16) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xc612_6400 + u32::from(real))
}

/// VIPs by their ports, each with its reals and their weights.
type Pools = BTreeMap<u16, BTreeMap<u16, u16>>;

fn config(pools: &Pools) -> Config {
    let mut text = "[node]\ninterface = \"lo\"\nouter_source = \"198.18.221.11\"\n".to_owned();
    for (port, reals) in pools {
        write!(text, "[[vip]]\naddress = \"198.19.10.1\"\nprotocol = \"tcp\"\nport = {port}\n").unwrap();
        text += "check = { kind = \"tcp\" }\n";
        for (&real, weight) in reals {
            writeln!(text, "[[vip.real]]\naddress = \"{}\"\nweight = {weight}", address(real)).unwrap();
        }
    }
    Config::parse("lbd.toml", &text).unwrap()
}

/// lbd's core over the real maps.
struct Daemon {
    world: World,
    core: Core,
    began: Instant,
    now: Duration,
}

impl Daemon {
    /// All reals up.
    fn start(pools: &Pools) -> Self {
        let began = Instant::now();
        let (core, ops) = Core::start(config(pools), Inheritance::default(), began);
        let mut daemon = Self { world: World::new(), core, began, now: Duration::ZERO };
        daemon.carry_out(ops);
        for (&port, reals) in pools {
            for &real in reals.keys() {
                daemon.verdict(port, real, UP);
            }
        }
        assert_eq!(daemon.core.phase(), Phase::Running);
        daemon
    }

    fn apply(&mut self, event: Event) {
        let ops = self.core.apply(event, self.began + self.now);
        self.carry_out(ops);
    }

    fn carry_out(&mut self, ops: Vec<Op>) {
        let sweep = ops.iter().find_map(|op| if let Op::Sweep(idle_s) = op { Some(*idle_s) } else { None });
        self.world.program.carry_out(ops).unwrap();
        if let Some(idle_s) = sweep {
            let swept = Sweep::over(self.world.program.flows().buckets(), tick_now().unwrap(), idle_s);
            self.apply(Event::Swept(swept));
        }
    }

    fn verdict(&mut self, port: u16, real: u16, state: State) {
        let service = self.core.services().find(|service| service.config.key().port == port).unwrap();
        let check = service.check_keys(address(real).into()).next().unwrap();
        self.apply(Event::Verdict(check, state));
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.apply(Event::Tick);
    }

    /// The parts of every VIP's own ring, by their places.
    fn rings(&self) -> BTreeMap<u32, Box<Ring>> {
        let parts = self.core.services().flat_map(|service| {
            let ring = RingRef::new(service.index, service.ring.order());
            (0..).map(move |part| ring.place(part)).zip(service.ring.words())
        });
        parts.collect()
    }

    /// Checks that the kernel holds each VIP's own ring; returns how many parts there are and how many differ.
    fn check(&self, step: &str) -> (usize, usize) {
        let rings = self.rings();
        for (&place, part) in &rings {
            assert!(self.world.held(place) == *part, "{step}: part {place}");
        }
        let contents: BTreeSet<Vec<u32>> =
            rings.values().map(|part| part.slots.iter().map(|slot| slot.0).collect()).collect();
        assert_eq!(self.world.inner_maps(rings.keys().copied()).len(), contents.len(), "{step}");
        (rings.len(), contents.len())
    }
}

#[test]
fn kernel_holds_each_vips_own_ring_after_any_event() {
    run(|| {
        let same: BTreeMap<_, _> = (1..=8).map(|real| (real, 100)).collect();
        // Rings of four parts.
        let coarse = BTreeMap::from([(1, 1), (2, 100), (3, 100), (4, 100)]);
        let mut pools: Pools = (80..84).map(|port| (port, same.clone())).collect();
        pools.extend([(84, coarse.clone()), (85, coarse), (86, BTreeMap::from([(1, 1), (2, 1)]))]);
        let mut daemon = Daemon::start(&pools);
        let start = daemon.check("start");
        assert_eq!(start, (4 + 2 * 4 + 1, 1 + 4 + 1));
        let (mut random, mut shared) = (7, BTreeSet::new());
        for step in 0..80 {
            let mut draw = |below: u16| u16::try_from(splitmix64(&mut random) % u64::from(below)).unwrap();
            let port = 80 + draw(7);
            let pool = &pools[&port];
            let real = *pool.keys().nth(usize::from(draw(pool.len().try_into().unwrap()))).unwrap();
            let what = match draw(10) {
                // What befalls one VIP's check of a real, or the checks of all.
                0..3 => {
                    daemon.verdict(port, real, [HARD, SOFT][usize::from(draw(2))]);
                    "down"
                }
                3..5 => {
                    daemon.verdict(port, real, UP);
                    "up"
                }
                5..7 => {
                    let state = [HARD, SOFT, UP][usize::from(draw(3))];
                    let having = pools.iter().filter(|(_, pool)| pool.contains_key(&real)).map(|(&port, _)| port);
                    having.for_each(|port| daemon.verdict(port, real, state));
                    "the same for all"
                }
                7 => {
                    let weight = [50, 100, 100][usize::from(draw(3))];
                    (80..84).for_each(|port| *pools.get_mut(&port).unwrap().get_mut(&(1 + real % 8)).unwrap() = weight);
                    daemon.apply(Event::Configured(config(&pools)));
                    "re-weighted"
                }
                _ => {
                    daemon.pass(Duration::from_secs(u64::from(draw(1000))));
                    "time"
                }
            };
            shared.insert(daemon.check(&format!("step {step}, {what} at {port}")));
        }
        println!("parts, and those that differ: {shared:?}");
        // All come together again, with everything up, one weight and no window.
        (80..84).for_each(|port| drop(pools.insert(port, same.clone())));
        daemon.apply(Event::Configured(config(&pools)));
        for (&port, reals) in &pools {
            for &real in reals.keys() {
                daemon.verdict(port, real, UP);
            }
        }
        for _ in 0..4 {
            daemon.pass(Duration::from_mins(16));
        }
        assert_eq!(daemon.check("end"), start);
        assert!(shared.iter().any(|&(_, differ)| differ > start.1), "they never parted: {shared:?}");
    });
}

const VIPS: u16 = 64;
const REALS: u16 = 1000;

/// Map memory of the VIPs over these reals each, bytes, the table of tracked flows included: with every real up, when half
/// of the VIPs' checks have found a real of theirs gone, and when all have.
fn footprints(reals_of: impl Fn(u16) -> std::ops::Range<u16> + Send + 'static) -> [u64; 3] {
    run(move || {
        let pools = (0..VIPS).map(|vip| (80 + vip, reals_of(vip).map(|real| (real, 100)).collect())).collect();
        let mut daemon = Daemon::start(&pools);
        let footprint = |daemon: &Daemon| daemon.world.footprint(daemon.rings().into_keys());
        let mut footprints = [footprint(&daemon), 0, 0];
        let began = Instant::now();
        for (footprints, half) in footprints[1..].iter_mut().zip([0..VIPS / 2, VIPS / 2..VIPS]) {
            half.for_each(|vip| daemon.verdict(80 + vip, reals_of(vip).start, HARD));
            *footprints = footprint(&daemon);
        }
        println!("{VIPS} verdicts, one after another: {:?}", began.elapsed());
        footprints
    })
}

#[test]
fn maps_of_64_vips_and_1000_reals_take_less_than_64_megabytes() {
    let same = footprints(|_| 1..REALS + 1);
    let shared_out = footprints(|vip| (1 + vip * (REALS / 4) / 16)..(1 + (vip + 1) * (REALS / 4) / 16));
    println!("{VIPS} VIPs, all up, a real of half of them down, of all: {same:?} bytes with the same {REALS} reals,");
    println!("{shared_out:?} bytes with the {REALS} shared out among them");
    assert!(same.into_iter().chain(shared_out).all(|bytes| bytes <= 64_000_000));
}

//! 2,000 checks while ports, hosts and VIPs come and go at random: every verdict that must change does, in time, and no
//! other; at the end nothing is left over. Needs root; `LBD_TEST_LONG` goes on for ten minutes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::redundant_closure_for_method_calls,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a helper that fails fails its test; any bits of a random number will do"
)]

use aya::programs::ProgramInfo;
use hc_prober::{Check, CheckKey, Kind, Prober, Settings, Severity, State, Timing, Transition};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use std::{
    collections::HashMap,
    fs,
    net::{IpAddr, Ipv4Addr, TcpListener},
    path::Path,
    thread,
    time::{Duration, Instant, SystemTime},
};
use tests::lab::{Host, Lab, LabConfig, VIP, wait_for};
use tokio::sync::mpsc::UnboundedReceiver;

const REALS: usize = 10;
const PORTS: std::ops::Range<u16> = 20_000..20_200;

const TIMING: Timing = Timing {
    interval: Duration::from_secs(1),
    timeout: Duration::from_secs(1),
    fast_interval: Duration::from_millis(200),
    rise: 2,
    fall: 2,
};

/// `fall × 1.1 × interval + timeout + 0.3 s` is 3.5 s, and as much again: this is about which verdicts change, not how fast.
const BOUND: Duration = Duration::from_secs(7);
/// What was published in time may be read later.
const GRACE: Duration = Duration::from_secs(2);
/// From one fault, or its end, to the next.
const STEP: Duration = Duration::from_millis(150);

/// How long faults are injected: with what comes before and after, a minute.
fn duration() -> Duration {
    Duration::from_secs(if std::env::var_os("LBD_TEST_LONG").is_some() { 600 } else { 35 })
}

/// What comes out of SplitMix64: the same in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        lb_ebpf::hash::splitmix64(&mut self.0) as usize % n
    }
}

/// A check: the index of its real, and a port.
type Place = (usize, u16);

/// A real, and what is wrong with it.
struct Real<'a> {
    host: &'a Host,
    router: &'a Host,
    listeners: HashMap<u16, TcpListener>,
    cut_off: bool,
    without_vip: bool,
}

impl<'a> Real<'a> {
    fn new(host: &'a Host, router: &'a Host) -> Self {
        let mut real = Self { host, router, listeners: HashMap::new(), cut_off: false, without_vip: false };
        real.open(PORTS);
        real
    }

    fn open(&mut self, ports: impl IntoIterator<Item = u16> + Send) {
        let host = self.host;
        let bind = || {
            host.enter().unwrap();
            let bind = |port| (port, TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap());
            ports.into_iter().map(bind).collect::<Vec<_>>()
        };
        self.listeners.extend(thread::scope(|scope| scope.spawn(bind).join()).unwrap());
    }

    fn toggle_port(&mut self, port: u16) {
        if self.listeners.remove(&port).is_none() {
            self.open([port]);
        }
    }

    fn toggle_link(&mut self) {
        self.cut_off = !self.cut_off;
        let to = if self.cut_off { "down" } else { "up" };
        self.router.run(&format!("ip link set to-{} {to}", self.host.name())).unwrap();
    }

    fn toggle_vip(&mut self) {
        self.without_vip = !self.without_vip;
        let what = if self.without_vip { "del" } else { "add" };
        self.host.run(&format!("ip addr {what} {VIP}/32 dev lo")).unwrap();
    }

    /// What a check of this port must find.
    fn truth(&self, port: u16) -> State {
        if self.cut_off || self.without_vip {
            State::Down(Severity::Hard)
        } else if self.listeners.contains_key(&port) {
            State::Up
        } else {
            State::Down(Severity::Soft)
        }
    }
}

/// A verdict that must change.
#[derive(Clone, Copy, Debug)]
struct Expected {
    to: State,
    from: SystemTime,
    until: SystemTime,
}

/// The reals, the verdicts as they were told, and those that must be told.
struct Soak<'a> {
    reals: Vec<Real<'a>>,
    told: HashMap<Place, State>,
    expected: HashMap<Place, Expected>,
    transitions: UnboundedReceiver<Transition>,
    /// Verdicts that changed, and how long the slowest took.
    seen: usize,
    slowest: Duration,
}

impl<'a> Soak<'a> {
    fn new(lab: &'a Lab, transitions: UnboundedReceiver<Transition>) -> Self {
        let reals = lab.reals().iter().map(|real| Real::new(real, lab.router())).collect();
        let told = places().map(|place| (place, State::Init)).collect();
        Self { reals, told, expected: HashMap::new(), transitions, seen: 0, slowest: Duration::ZERO }
    }

    /// Changes something on a real, and expects the verdicts to follow.
    fn change(&mut self, real: usize, change: impl FnOnce(&mut Real<'_>)) {
        let from = SystemTime::now();
        change(&mut self.reals[real]);
        self.expect(real, from);
    }

    fn expect(&mut self, real: usize, from: SystemTime) {
        let until = SystemTime::now() + BOUND;
        for place in PORTS.map(|port| (real, port)) {
            let to = self.reals[real].truth(place.1);
            if self.told[&place] != to {
                self.expected.insert(place, Expected { to, from, until });
            }
        }
    }

    fn is_settled(&self, real: usize) -> bool {
        !self.expected.keys().any(|place| place.0 == real)
    }

    /// Reads what the prober has told, and holds it against what it must.
    fn listen(&mut self) {
        while let Ok(Transition { key, from, to, at, reason, detail, .. }) = self.transitions.try_recv() {
            let place = place(self, &key);
            let context = format!("{place:?} from {from:?} to {to:?}: {reason} {detail:?}");
            let expected = self.expected.remove(&place).unwrap_or_else(|| panic!("uncalled for: {context}"));
            assert_eq!((from, to), (self.told[&place], expected.to), "{context}");
            assert!(at <= expected.until, "late: {context}, {:?} after the bound", at.duration_since(expected.until));
            self.slowest = self.slowest.max(at.duration_since(expected.from).unwrap_or_default());
            self.told.insert(place, to);
            self.seen += 1;
        }
        let overdue = SystemTime::now() - GRACE;
        let missing: Vec<_> = self.expected.iter().filter(|(_, expected)| expected.until < overdue).collect();
        assert!(missing.is_empty(), "not told: {missing:?}");
    }

    /// Until all that is expected has been told.
    fn settle(&mut self) {
        while !self.expected.is_empty() {
            self.listen();
            thread::sleep(STEP / 10);
        }
    }

    /// A fault, or the end of one, on a real whose verdicts are settled.
    fn step(&mut self, random: &mut Random) {
        let real = random.below(REALS);
        if !self.is_settled(real) {
            return;
        }
        let Real { cut_off, without_vip, .. } = self.reals[real];
        match random.below(10) {
            // What makes no difference to a verdict teaches nothing: only one fault of the whole real at a time.
            0 if !without_vip => self.change(real, |real| real.toggle_link()),
            1 if !cut_off => self.change(real, |real| real.toggle_vip()),
            2.. if !cut_off && !without_vip => {
                let port = PORTS.start + random.below(PORTS.len()) as u16;
                self.change(real, |real| real.toggle_port(port));
            }
            _ if cut_off => self.change(real, |real| real.toggle_link()),
            _ => self.change(real, |real| real.toggle_vip()),
        }
    }

    fn heal(&mut self) {
        for real in 0..REALS {
            self.change(real, |real| {
                if real.cut_off {
                    real.toggle_link();
                }
                if real.without_vip {
                    real.toggle_vip();
                }
                let closed: Vec<_> = PORTS.filter(|port| !real.listeners.contains_key(port)).collect();
                real.open(closed);
            });
        }
    }
}

fn places() -> impl Iterator<Item = Place> {
    (0..REALS).flat_map(|real| PORTS.map(move |port| (real, port)))
}

fn place(soak: &Soak<'_>, key: &CheckKey) -> Place {
    let real = soak.reals.iter().position(|real| IpAddr::from(real.host.addr()) == key.real).unwrap();
    let Kind::Tcp { port } = key.kind else { panic!("{key:?}") };
    (real, port)
}

/// Resident memory of this process, KiB.
fn memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// What this process has open, by descriptor.
fn open_files() -> HashMap<String, String> {
    let entries = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap());
    let target = |entry: &fs::DirEntry| fs::read_link(entry.path()).ok().map(|target| target.display().to_string());
    entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, target(&entry)?))).collect()
}

/// The kernel's ids of the BPF programs that this process holds.
fn bpf_programs() -> Vec<u32> {
    let programs = open_files().into_iter().filter(|(_, target)| target == "anon_inode:bpf-prog");
    let id = |(fd, _): (String, String)| {
        let info = fs::read_to_string(Path::new("/proc/self/fdinfo").join(fd)).unwrap();
        info.lines().find_map(|line| line.strip_prefix("prog_id:")?.trim().parse().ok()).unwrap()
    };
    programs.map(id).collect()
}

fn start(lab: &Lab) -> (Prober, UnboundedReceiver<Transition>) {
    let start = || {
        lab.lb().enter().unwrap();
        Prober::start(Settings::new(vec!["eth0".into()]).unwrap()).unwrap()
    };
    thread::scope(|scope| scope.spawn(start).join()).unwrap()
}

#[test]
fn verdicts_follow_random_failures_and_nothing_is_left_over() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let lab = Lab::up(&LabConfig { name: format!("soak-{}", std::process::id()), reals: REALS }).unwrap();
    lab.provision().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (prober, transitions) = start(&lab);
    let programs = bpf_programs();
    assert!(!programs.is_empty(), "the capture");
    let mut soak = Soak::new(&lab, transitions);
    let address = |real: usize| lab.reals()[real].addr();
    let key = |(real, port)| CheckKey::new(address(real).into(), VIP.into(), Kind::Tcp { port });
    prober.set_checks(places().map(|place| Check { key: key(place), timing: TIMING }).collect());
    (0..REALS).for_each(|real| soak.expect(real, SystemTime::now()));
    soak.settle();

    let (began, files, mut resident) = (Instant::now(), open_files().len(), None);
    let mut random = Random(7);
    while began.elapsed() < duration() {
        // What grows once has grown after a fifth of the long run: two minutes, all that a prober remembers.
        if began.elapsed() > duration() / 5 {
            resident = resident.or_else(|| Some(memory()));
        }
        soak.step(&mut random);
        soak.listen();
        thread::sleep(STEP);
    }
    soak.settle();
    soak.heal();
    soak.settle();

    assert!(soak.told.values().all(|state| *state == State::Up) && soak.told.len() == 2_000);
    let grown = memory().saturating_sub(resident.unwrap());
    println!("{} verdicts changed, the slowest after {:?}; {grown} KiB more", soak.seen - 2_000, soak.slowest);
    assert!(soak.seen > 2_000 + 500, "that was no soak");
    // Shorter than the minute for which probes are remembered, the memory of those still grows: 32 bytes each.
    assert!(grown < 8_192, "{grown} KiB more resident memory");
    assert_eq!(open_files().len(), files, "files: {:#?}", open_files());
    println!("{:?}", runtime.block_on(prober.counters()));
    prober.shutdown();
    for real in lab.reals() {
        assert_eq!(real.run("ss -Htan state syn-recv").unwrap(), "", "half-open on {}", real.name());
    }
    assert_eq!(bpf_programs(), []);
    // The kernel frees a program a grace period after its last user.
    let gone = || Ok(programs.iter().all(|id| !is_loaded(*id)).then_some(()));
    wait_for("the capture to be gone", Duration::from_secs(5), gone).unwrap();
}

fn is_loaded(id: u32) -> bool {
    aya::programs::loaded_programs().filter_map(Result::ok).any(|info: ProgramInfo| info.id() == id)
}

//! lbd as a service: with four capabilities and no more, under a service manager, by its unit. Needs root, and
//! systemd-analyze.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod common;

use common::{Requests, SOON, Service, TIMING, thread};
use lbd::model::{Health, HistoryRow, ProberState};
use nix::{
    sys::{
        ptrace,
        signal::Signal,
        wait::{WaitPidFlag, waitpid},
    },
    time::{ClockId, clock_gettime},
};
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    os::unix::net::UnixDatagram,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};
use tests::lab::{Error, Lab, LabConfig, LbdStart, binary, run, wait_for};

const UNIT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../lbd/package/lbd.service");

/// The values of a key of the unit, all its lines together.
fn unit(key: &str) -> Vec<String> {
    let unit = fs::read_to_string(UNIT).unwrap();
    let lines = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
}

/// Root that has these capabilities and can get no others.
fn with_capabilities<'a>(names: impl IntoIterator<Item = &'a String>) -> LbdStart {
    let mut set = "-all".to_owned();
    for name in names {
        write!(set, ",+{}", name.strip_prefix("CAP_").unwrap().to_lowercase()).unwrap();
    }
    let wrapper = ["setpriv", "--no-new-privs", "--bounding-set", &set, "--inh-caps", &set, "--ambient-caps", &set];
    LbdStart { wrapper: wrapper.map(str::to_owned).to_vec(), ..LbdStart::default() }
}

fn log(lab: &Lab) -> String {
    fs::read_to_string(lab.lbd().log).unwrap()
}

/// The VIP of all tests, and two others over the same reals, whose rings have four parts and are equal.
fn three_vips(service: &Service, weight: u16) -> String {
    let config = service.lab.lbd_config_of(TIMING, &[(1, 100), (2, 100), (3, weight)]);
    let vip = &config[config.find("[[vip]]").unwrap()..];
    let other = |port: u16| {
        let port = format!("port = {port}\nring_slots = 65536\n");
        vip.replace("port = 80\n", &port).replace("\"tcp\" }", "\"icmp\" }")
    };
    format!("{config}\n{}\n{}", other(81), other(82))
}

/// How many different parts of rings lbd holds.
fn ring_parts(service: &Service) -> usize {
    let directory = format!("/proc/{}/fdinfo", service.lbd.pid());
    let files = fs::read_dir(directory).unwrap().filter_map(|file| fs::read_to_string(file.unwrap().path()).ok());
    let is_part = |text: &String| text.lines().any(|line| line == "value_size:\t65536");
    let id = |text: String| text.lines().find(|line| line.starts_with("map_id:")).unwrap().to_owned();
    files.filter(is_part).map(id).collect::<BTreeSet<_>>().len()
}

#[test]
fn lbd_with_its_four_capabilities_takes_over_reloads_and_is_taken_over() {
    let four = unit("CapabilityBoundingSet");
    assert_eq!(four, ["CAP_BPF", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON"]);
    assert_eq!(unit("AmbientCapabilities"), four);
    let how = with_capabilities(&four);

    // One with all of root's powers came before.
    let mut service = Service::with("four", 3, 3, &["--leave-attached"]);
    let clients = [Requests::start(&service), Requests::start(&service)];
    service.end(Signal::SIGTERM);
    service.restart_so(&how);
    let status = fs::read_to_string(format!("/proc/{}/status", service.lbd.pid())).unwrap();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    assert_eq!(effective, "000000c000003000");

    let reload = |service: &Service, weight| {
        fs::write(service.lab.lbd().config, three_vips(service, weight)).unwrap();
        service.lbctl(&["reload"]).unwrap();
    };
    let all_up =
        |service: &Service| service.wait_for("all to be UP", |rows| rows.iter().all(|r| r.state == Health::Up));
    reload(&service, 100);
    assert_eq!(all_up(&service).len(), 9);
    // Both rings change, part by part, and their VIPs share them.
    for weight in [300, 100] {
        reload(&service, weight);
        let rings = service.status().rings;
        assert_eq!((rings[1].size, &rings[1].digest), (65_536, &rings[2].digest));
        assert_eq!(ring_parts(&service), 1 + 4);
    }
    let digest = service.status().rings[1].digest.clone();
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        service.end(signal);
        service.restart_so(&how);
        all_up(&service);
        assert_eq!(ring_parts(&service), 1 + 4);
        assert_eq!(service.status().rings[1].digest, digest, "{signal}");
    }
    let log = log(&service.lab);
    assert_eq!(log.matches("taking over from an earlier lbd").count(), 3, "{log}");
    assert!(!log.contains(" ERROR ") && !log.contains("os error 1"), "{log}");
    clients.into_iter().for_each(Requests::finish_without_failure);

    // What is left attached is taken away without a daemon.
    let pins = service.lab.lbd().pins;
    let detach = || run(Command::new(binary("lbd").unwrap()).args(["detach", "--bpffs"]).arg(&pins));
    assert!(matches!(detach(), Err(Error::Failed { stderr, .. }) if stderr.contains("a running lbd")));
    service.end(Signal::SIGTERM);
    assert_eq!(detach().unwrap(), "detached; interfaces: 1\n");
    assert_eq!(fs::read_dir(&pins).unwrap().count(), 0);
    assert!(!service.lab.lb().run("ip -d link show eth0").unwrap().contains("prog/xdp"));
}

#[test]
fn lbd_without_one_of_its_capabilities_says_which_and_what_for() {
    let lab = Lab::up(&LabConfig { name: format!("e{}-fewer", std::process::id()), reals: 1 }).unwrap();
    let (four, config) = (unit("CapabilityBoundingSet"), lab.lbd_config(""));
    for missing in &four {
        let how = with_capabilities(four.iter().filter(|name| *name != missing));
        let mut lbd = lab.spawn_lbd(&config, &how, &[]).unwrap();
        assert_eq!(lbd.wait(SOON).unwrap().code(), Some(1), "{missing}");
        let said = log(&lab);
        let last = said.lines().last().unwrap();
        assert!(last.starts_with(&format!("lbd: missing {missing} (to ")), "{last}");
    }
}

/// What the service manager waits for `WATCHDOG=1`.
const PATIENCE: Duration = Duration::from_secs(3);

/// What lbd tells the service manager, as it comes.
struct Manager {
    socket: UnixDatagram,
}

impl Manager {
    fn bind(path: &Path) -> Self {
        Self { socket: UnixDatagram::bind(path).unwrap() }
    }

    /// The next message, by then.
    fn next(&self, within: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(within)).unwrap();
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    }

    /// All messages up to the first with this line, which is among them.
    fn until(&self, line: &str) -> Vec<String> {
        let (mut messages, deadline) = (Vec::new(), Instant::now() + SOON);
        while !messages.last().is_some_and(|message: &String| has(message, line)) {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            messages.push(self.next(left).unwrap_or_else(|| panic!("no {line} after {messages:?}")));
        }
        messages
    }

    /// Pulses come, each before the patience for it is at its end.
    fn keeps_the_watchdog_quiet(&self, when: &str) {
        self.until("WATCHDOG=1");
        for _ in 0..2 {
            let began = Instant::now();
            self.until("WATCHDOG=1");
            assert!(began.elapsed() < PATIENCE, "{when}: {:?}", began.elapsed());
        }
    }

    /// What comes within this time.
    fn during(&self, time: Duration) -> Vec<String> {
        let deadline = Instant::now() + time;
        let left = || Some(deadline.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero());
        std::iter::from_fn(|| self.next(left()?)).collect()
    }
}

fn has(message: &str, line: &str) -> bool {
    message.lines().any(|said| said.starts_with(line))
}

fn count(messages: &[String], line: &str) -> usize {
    messages.iter().filter(|message| has(message, line)).count()
}

fn monotonic_us() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1_000
}

#[test]
fn service_manager_is_told_what_is_so_and_nothing_while_checks_or_the_daemon_stand_still() {
    let mut service = Service::with("notify", 1, 1, &[]);
    service.end(Signal::SIGTERM);
    let socket = service.lab.lb().dir().join("notify.sock");
    let manager = Manager::bind(&socket);
    let environment =
        [("NOTIFY_SOCKET", socket.display().to_string()), ("WATCHDOG_USEC", PATIENCE.as_micros().to_string())];
    let environment = environment.map(|(name, value)| (name.to_owned(), value)).to_vec();
    let config = fs::read_to_string(service.lab.lbd().config).unwrap();
    let how = LbdStart { environment, ..LbdStart::default() };
    service.lbd = service.lab.start_lbd_so(&config, &how, &[]).unwrap();

    let start = manager.until("READY=1");
    // The link is pinned, and packets find a ring: the first request succeeds.
    service.link();
    service.requests(1);
    let (ready, before) = start.split_last().unwrap();
    assert!(has(ready, "STATUS=running: VIPs: 1, reals up: 1 of 1"), "{ready}");
    assert!(has(&before[0], "EXTEND_TIMEOUT_USEC=30000000") && has(&before[0], "STATUS=starting"), "{before:?}");

    let asked = monotonic_us();
    service.lbctl(&["reload"]).unwrap();
    let reload = manager.until("READY=1");
    let reloading = reload.iter().find(|message| has(message, "RELOADING=1")).unwrap();
    let at = reloading.lines().find_map(|line| line.strip_prefix("MONOTONIC_USEC=")).unwrap().parse().unwrap();
    assert!((asked..monotonic_us()).contains(&at), "{asked} {reloading}");

    fs::write(service.lab.lbd().config, "colour = \"red\"\n").unwrap();
    service.lbd.signal(Signal::SIGHUP).unwrap();
    let refused = manager.until("READY=1");
    assert_eq!(count(&refused, "RELOADING=1"), 1, "{refused:?}");
    let status = refused.last().unwrap();
    assert!(status.contains("last reload refused: "), "{status}");

    manager.keeps_the_watchdog_quiet("running");
    // Stops this one thread; should the test fail, it goes on when ours ends.
    let prober = thread(service.lbd.pid(), "prober");
    ptrace::attach(prober).unwrap();
    waitpid(prober, Some(WaitPidFlag::__WALL)).unwrap();
    let stalled = || Ok((service.status().prober.state == ProberState::Stalled).then_some(()));
    wait_for("the prober to be stalled", SOON, stalled).unwrap();
    // What was said before it was.
    manager.during(Duration::from_millis(200));
    let said = manager.during(PATIENCE);
    assert!(count(&said, "WATCHDOG=1") == 0 && count(&said, "STATUS=") <= 1, "{said:?}");
    ptrace::detach(prober, None).unwrap();
    manager.keeps_the_watchdog_quiet("goes on");

    service.lbd.signal(Signal::SIGSTOP).unwrap();
    manager.during(Duration::from_millis(200));
    assert_eq!(manager.during(PATIENCE), [""; 0]);
    service.lbd.signal(Signal::SIGCONT).unwrap();
    manager.keeps_the_watchdog_quiet("continued");

    service.lbd.signal(Signal::SIGTERM).unwrap();
    manager.until("STOPPING=1");
    assert!(service.lbd.wait(SOON).unwrap().success());
}

#[test]
fn unit_is_what_systemd_takes_and_hardened() {
    // Where a package would put them.
    let root = tempfile::tempdir().unwrap();
    let unit = root.path().join("lbd.service");
    let programs = binary("lbd").unwrap().parent().unwrap().display().to_string();
    fs::write(&unit, fs::read_to_string(UNIT).unwrap().replace("/usr/sbin/", &format!("{programs}/"))).unwrap();
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(&unit)
        .output()
        .expect("systemd-analyze (Debian: systemd)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    // Of 100.
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--threshold=25", "--no-pager"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&security.stdout);
    println!("{}", said.lines().rfind(|line| !line.is_empty()).unwrap_or_default());
    assert!(security.status.success(), "{said}");
}

#[test]
fn real_that_is_kept_although_it_is_down_is_not_shown_as_up_by_the_next_daemon() {
    let mut service = Service::with("kept", 1, 1, &["--leave-attached"]);
    service.lab.real(1).unwrap().nginx().quit().unwrap();
    let since = service.wait_for_state(1, Health::Down).since;
    service.end(Signal::SIGKILL);
    let config = fs::read_to_string(service.lab.lbd().config).unwrap();
    service.lbd = service.lab.start_lbd(&config, &["--leave-attached"]).unwrap();
    // Not checked by this daemon yet, and then.
    for _ in 0..2 {
        let row = service.row(1);
        assert_eq!((row.state, row.since), (Health::Down, since), "{row:?}");
        assert!(row.share > 0.99, "{row:?}");
        assert_eq!(service.status().vips[0].reals_up, 0);
        service.wait_until_attached();
    }
    service.lab.real(1).unwrap().nginx().start().unwrap();
    service.wait_for_state(1, Health::Up);
}

#[test]
fn what_was_known_of_reals_outlives_the_daemon_and_the_maps() {
    let mut service = Service::with("known", 2, 2, &["--leave-attached"]);
    service.lab.real(2).unwrap().nginx().quit().unwrap();
    service.wait_for_state(2, Health::Down);
    let explained = || Ok(service.find_row(2)?.filter(|row| row.why.is_some()));
    wait_for("the diagnosis", SOON, explained).unwrap();
    let (one, two) = (service.row(1), service.row(2));
    let history = |service: &Service| -> Vec<HistoryRow> {
        serde_json::from_str(&service.lbctl(&["real", "history", "-o", "json"]).unwrap()).unwrap()
    };
    let before = history(&service);
    assert_eq!(before.len(), 3);

    // The second time the host has lost its maps, as after a reboot.
    for reboot in [false, true] {
        service.end(Signal::SIGKILL);
        if reboot {
            run(Command::new(binary("lbd").unwrap()).args(["detach", "--bpffs"]).arg(service.lab.lbd().pins)).unwrap();
        }
        let config = fs::read_to_string(service.lab.lbd().config).unwrap();
        service.lbd = service.lab.start_lbd(&config, &["--leave-attached"]).unwrap();
        if !reboot {
            // Not checked by this daemon yet, but up, as it was.
            let row = service.row(1);
            assert_eq!((row.state, row.since), (Health::Up, one.since));
        }
        service.wait_until_attached();
        service.wait_for_state(2, Health::Down);
        assert_eq!(service.requests(20)[1], 0, "a real that was down gets nothing before it has passed");
        let rows = [service.row(1), service.row(2)];
        assert_eq!(rows.map(|row| (row.state, row.since)), [(Health::Up, one.since), (Health::Down, two.since)]);
        assert_eq!(history(&service), before, "reboot: {reboot}");
    }
    service.lab.real(2).unwrap().nginx().start().unwrap();
    assert!(service.wait_for_state(2, Health::Up).since > two.since);
    assert_eq!(history(&service).len(), 4);
}

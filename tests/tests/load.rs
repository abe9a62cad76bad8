//! Whatever becomes of lbd, clients under load notice nothing: kept-alive connections, downloads and a stream of new
//! connections, while it is killed, upgraded and reloaded. Needs root, and wrk. `LBD_TEST_LONG=1`: in full size.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod common;

use common::{Download, SOON, Service, TIMING};
use lbd::model::Health;
use nix::sys::signal::Signal;
use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};
use tests::lab::{Host, LbdStart, Load, LoadConfig, Running, VIP, binary};

/// How often each thing happens, and under how much load.
struct Size {
    kills: usize,
    upgrades: usize,
    other_reloads: usize,
    own_reloads: usize,
    swapping: Duration,
    kept_alive: usize,
}

/// Each of the three downloads, one MiB a second: they outlast everything, and are cut when the last thing has happened.
const DOWNLOAD_MIB: u64 = 256;

const SIZE: Size =
    Size { kills: 1, upgrades: 2, other_reloads: 3, own_reloads: 4, swapping: Duration::from_secs(1), kept_alive: 50 };
const FULL: Size = Size {
    kills: 20,
    upgrades: 20,
    other_reloads: 50,
    own_reloads: 50,
    swapping: Duration::from_mins(1),
    kept_alive: 200,
};

/// Connections that stay open, with a request 20 times a second on each.
struct KeptAlive {
    wrk: Running,
    output: PathBuf,
}

impl KeptAlive {
    fn start(client: &Host, connections: usize) -> Self {
        let (script, output) = (client.dir().join("pause.lua"), client.dir().join("wrk.out"));
        fs::write(&script, "function delay() return 50 end\n").unwrap();
        let mut wrk = client.command("wrk");
        wrk.args(["-t", "2", "-c", &connections.to_string(), "-d", "1h", "--timeout", "5s", "-s"]).arg(&script);
        wrk.arg(format!("http://{VIP}/")).stdout(File::create(&output).unwrap());
        Self { wrk: Running::start(&mut wrk).unwrap(), output }
    }

    /// Ends it and requires that nothing failed; how many requests there were.
    fn finish_without_failure(mut self) -> u64 {
        self.wrk.signal(Signal::SIGINT).unwrap();
        assert!(self.wrk.wait(SOON).unwrap().success());
        let said = fs::read_to_string(&self.output).unwrap();
        // wrk tells of errors only if there are any.
        assert!(!said.contains("Socket errors") && !said.contains("Non-2xx"), "{said}");
        let requests = said.lines().find_map(|line| line.trim().split_once(" requests in"));
        requests.unwrap_or_else(|| panic!("{said}")).0.parse().unwrap()
    }
}

/// A counter of TCP in a host's `/proc/net/snmp`.
fn tcp(host: &Host, name: &str) -> u64 {
    let text = host.run("cat /proc/net/snmp").unwrap();
    let [names, values] = [0, 1].map(|n| text.lines().filter_map(|line| line.strip_prefix("Tcp: ")).nth(n).unwrap());
    let mut row = names.split(' ').zip(values.split(' '));
    row.find(|(found, _)| *found == name).unwrap().1.parse().unwrap()
}

/// Connections that the client lost, and segments that reals knew nothing of.
fn resets(service: &Service) -> Vec<u64> {
    let client = ["EstabResets", "AttemptFails"].map(|name| tcp(service.lab.client(), name));
    client.into_iter().chain(service.lab.reals().iter().map(|real| tcp(real, "OutRsts"))).collect()
}

/// Reloads the VIP with this weight of its third real; beside it another VIP with this weight, or none.
fn reload(service: &Service, weight: u16, other: Option<u16>) {
    let config = |weight| service.lab.lbd_config_of(TIMING, &[(1, 100), (2, 100), (3, weight)]);
    let mut text = config(weight);
    if let Some(other) = other {
        let vip = config(other);
        text +=
            &vip[vip.find("[[vip]]").unwrap()..].replace("port = 80\n", "port = 81\n").replace("tcp\" }", "icmp\" }");
    }
    fs::write(service.lab.lbd().config, text).unwrap();
    service.lbctl(&["reload"]).unwrap();
}

/// Another build: the same code in another file.
fn builds(service: &Service) -> [LbdStart; 2] {
    ["one", "two"].map(|name| {
        let program = service.lab.lb().dir().join(format!("lbd-{name}"));
        fs::copy(binary("lbd").unwrap(), &program).unwrap();
        OpenOptions::new().append(true).open(&program).unwrap().write_all(name.as_bytes()).unwrap();
        LbdStart { program: Some(program), ..LbdStart::default() }
    })
}

/// Does something so many times and says how long each took on average.
fn times(number: usize, what: &str, mut act: impl FnMut(usize)) {
    let began = Instant::now();
    (0..number).for_each(&mut act);
    println!("{number} × {what}: {:?} each", began.elapsed() / u32::try_from(number).unwrap());
}

#[test]
fn clients_notice_neither_kills_nor_upgrades_nor_reloads() {
    let size = if std::env::var_os("LBD_TEST_LONG").is_some() { FULL } else { SIZE };
    let mut service = Service::with("load", 3, 3, &["--leave-attached"]);
    let wrk = KeptAlive::start(service.lab.client(), size.kept_alive);
    let every = Duration::from_millis(50);
    let new: Load = service.lab.client().load(VIP, LoadConfig { workers: 4, interval: every, timeout: every * 100 });
    let mut downloads: Vec<Download> = (1..=3).map(|real| service.download_from(real, DOWNLOAD_MIB)).collect();
    let before = resets(&service);

    times(size.kills, "kill -9 and start", |_| {
        service.end(Signal::SIGKILL);
        service.restart();
    });
    let builds = builds(&service);
    times(size.upgrades, "upgrade", |n| {
        service.end(Signal::SIGTERM);
        service.restart_so(&builds[n % 2]);
    });
    times(size.other_reloads, "reload that changes another VIP", |n| {
        reload(&service, 100, [Some(100), Some(300), None][n % 3]);
    });
    times(size.own_reloads, "reload that re-weights this VIP", |n| reload(&service, [300, 100][n % 2], None));
    let (began, mut swaps) = (Instant::now(), 0);
    while began.elapsed() < size.swapping {
        reload(&service, [300, 100][swaps % 2], None);
        swaps += 1;
        std::thread::sleep((began + Duration::from_millis(100) * u32::try_from(swaps).unwrap()) - Instant::now());
    }
    println!("{swaps} ring swaps in {:?}", began.elapsed());

    downloads.iter().for_each(Download::goes_on);
    assert!(downloads.iter_mut().all(Download::runs), "the downloads have seen all of it");
    assert_eq!(resets(&service), before, "client: EstabResets, AttemptFails; each real: OutRsts");
    let new = new.stop().unwrap();
    let failed: Vec<_> = new.iter().filter(|request| request.answer.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), new.len());
    let requests = wrk.finish_without_failure();
    assert!((1..=3).all(|real| service.row(real).state == Health::Up));
    let log = fs::read_to_string(service.lab.lbd().log).unwrap();
    assert!(!log.contains("after=DOWN") && !log.contains(" ERROR "), "{log}");
    println!("{requests} requests on {} kept connections, {} on new ones, none failed", size.kept_alive, new.len());
}

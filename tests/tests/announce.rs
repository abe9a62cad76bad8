//! VIPs that can serve are announced, and only they: by a route that real BIRD reads and tells a router. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::redundant_closure_for_method_calls,
    reason = "a helper that fails fails its test"
)]

mod common;

use common::SOON;
use hc_prober::claim;
use lbd::model::{HistoryRow, Route, VipRow};
use nix::sys::signal::Signal;
use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Command,
    sync::mpsc,
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tests::lab::{Host, Lab, LabConfig, LbdStart, LoadConfig, Running, VIP, binary, run, wait_for};

const TIMING: &str = "interval = \"200ms\"\nfast_interval = \"100ms\"\ntimeout = \"200ms\"\nrise = 1\nfall = 2";
const HOLD_DOWN: Duration = Duration::from_secs(1);

/// The VIP announced by route, and withdrawn when all reals are down.
fn config(lab: &Lab, announce: &str) -> String {
    lab.lbd_config(&format!("{TIMING}\nall_down = \"withdraw\"\nannounce = [\"route\"]\n\n[announce]\n{announce}"))
}

fn lab(test: &str, reals: usize) -> Lab {
    Lab::up(&LabConfig { name: format!("a{}-{test}", std::process::id()), reals }).unwrap()
}

fn lbctl(lab: &Lab, lb: &Host, words: &[&str]) -> tests::lab::Result<String> {
    run(Command::new(binary("lbctl")?).arg("--socket").arg(lab.lbd_on(lb).socket).args(words))
}

fn vip(lab: &Lab, lb: &Host) -> VipRow {
    let rows: Vec<VipRow> = serde_json::from_str(&lbctl(lab, lb, &["vip", "list", "-o", "json"]).unwrap()).unwrap();
    rows.into_iter().next().unwrap()
}

fn wait_for_route(lab: &Lab, lb: &Host, route: Option<Route>) {
    wait_for(&format!("the route to be {route:?}"), SOON, || Ok((vip(lab, lb).route == route).then_some(()))).unwrap();
}

/// What is in the table, a line a route.
fn table(lb: &Host) -> Vec<String> {
    let shown = lb.run("ip route show table 199").unwrap();
    shown.lines().map(|line| line.trim().to_owned()).collect()
}

/// The first round of checks is over, and packets meet the rings.
fn wait_for_start(lab: &Lab, lb: &Host) {
    let running = || Ok(lbctl(lab, lb, &["status"])?.contains("running for").then_some(()));
    wait_for("the start", SOON, running).unwrap();
}

const OURS: &str = "blackhole 198.19.10.1 proto 199";
const FOREIGN: &str = "blackhole 198.19.10.77 proto static";

fn said(lab: &Lab, text: &str) {
    let log = lab.lbd().log;
    wait_for(text, SOON, || Ok(fs::read_to_string(&log).unwrap_or_default().contains(text).then_some(()))).unwrap();
}

/// `ip monitor route` on a host, line by line as it comes.
struct Monitor {
    _ip: Running,
    lines: mpsc::Receiver<String>,
}

impl Monitor {
    /// When this returns, nothing goes unseen any more.
    fn start(host: &Host) -> Self {
        let mut command = host.command("ip");
        command.args(["-ts", "monitor", "route"]).env("TZ", "UTC").stdout(std::process::Stdio::piped());
        let mut ip = Running::start(&mut command).unwrap();
        let output = BufReader::new(ip.child().unwrap().stdout.take().unwrap());
        let (told, lines) = mpsc::channel();
        std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| told.send(line)));
        let monitor = Self { _ip: ip, lines };
        let began = Instant::now();
        while monitor.seen(Duration::from_millis(20)).is_empty() {
            assert!(began.elapsed() < SOON, "ip monitor shows nothing");
            host.run("ip route add blackhole 198.19.99.99 table 9999").unwrap();
            host.run("ip route del blackhole 198.19.99.99 table 9999").unwrap();
        }
        // What was added to see whether it sees is no news.
        while !monitor.seen(Duration::from_millis(50)).is_empty() {}
        monitor
    }

    /// What came within this time.
    fn seen(&self, within: Duration) -> Vec<String> {
        let first = self.lines.recv_timeout(within).ok();
        first.into_iter().chain(self.lines.try_iter()).collect()
    }

    /// Waits for a line about the VIP that is, or is not, a deletion; when it came.
    fn wait_for_vip(&self, deleted: bool) -> String {
        let is_it = |line: &String| line.contains(&VIP.to_string()) && line.contains("Deleted") == deleted;
        let began = Instant::now();
        while let Ok(line) = self.lines.recv_timeout(SOON.saturating_sub(began.elapsed())) {
            if is_it(&line) {
                return line[1..line.find(']').unwrap()].to_owned() + "Z";
            }
        }
        panic!("no word of the VIP's route (deleted: {deleted})");
    }
}

#[test]
fn route_is_there_while_the_vip_can_serve_and_outlives_the_daemon() {
    let lab = lab("route", 1);
    lab.provision().unwrap();
    let (lb, real) = (lab.lb(), lab.real(1).unwrap());
    let address = real.addr().to_string();
    // One of somebody else; one of ours that is not configured; one that nobody serves yet.
    for route in [FOREIGN, "blackhole 198.19.10.99 proto 199", OURS] {
        lb.run(&format!("ip route add table 199 {route}")).unwrap();
    }
    let monitor = Monitor::start(lb);
    let text = config(&lab, "hold_down = \"1s\"\nlinger = \"300ms\"");
    let mut lbd = lab.start_lbd(&text, &[]).unwrap();
    monitor.wait_for_vip(true);
    monitor.wait_for_vip(false);
    wait_for_route(&lab, lb, Some(Route::Announced));
    assert_eq!(table(lb), [OURS, FOREIGN]);

    lb.run(&format!("ip route del table 199 {OURS}")).unwrap();
    said(&lab, "somebody deleted the route of an announced VIP");
    wait_for("the route to be back", SOON, || Ok((table(lb) == [OURS, FOREIGN]).then_some(()))).unwrap();
    lb.run("ip route add table 199 blackhole 198.19.10.98 proto 199").unwrap();
    said(&lab, "somebody added a route with the protocol number of the announced VIPs");
    wait_for("the route to be gone", SOON, || Ok((table(lb) == [OURS, FOREIGN]).then_some(()))).unwrap();
    lb.run("ip route replace table 199 blackhole 198.19.10.1 proto static").unwrap();
    wait_for_route(&lab, lb, Some(Route::Refused));
    said(&lab, "table 199 has a route to 198.19.10.1 of another protocol");
    assert_eq!(table(lb), ["blackhole 198.19.10.1 proto static", FOREIGN]);
    lb.run("ip route del table 199 blackhole 198.19.10.1 proto static").unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));

    real.nginx().stop().unwrap();
    wait_for_route(&lab, lb, Some(Route::Withdrawn));
    assert_eq!(table(lb), [FOREIGN]);
    let mended = Instant::now();
    real.nginx().start().unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));
    assert!(mended.elapsed() >= HOLD_DOWN, "{:?}", mended.elapsed());

    // One that drains finishes what it has; one that is disabled has nothing.
    lbctl(&lab, lb, &["real", "drain", &address]).unwrap();
    assert_eq!((vip(&lab, lb).route, vip(&lab, lb).serving), (Some(Route::Announced), true));
    lbctl(&lab, lb, &["real", "disable", &address]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Withdrawn));
    lbctl(&lab, lb, &["real", "enable", &address]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));

    // The operator's word for the node: nothing is announced, whatever becomes of lbd; then at once.
    let said = lbctl(&lab, lb, &["node", "standby", "--reason", "new switch"]).unwrap();
    assert!(said.starts_with("standby for ") && said.ends_with(" (new switch)\n"), "{said}");
    assert_eq!((vip(&lab, lb).route, table(lb)), (Some(Route::Withdrawn), vec![FOREIGN.to_owned()]));
    lab.client().http_get(&format!("http://{VIP}/")).unwrap();
    // The same daemon has a hold-down of minutes meanwhile: whether that is kept is told from whether it is not.
    let patient = text.replace("hold_down = \"1s\"", "hold_down = \"5m\"");
    assert_ne!(patient, text);
    fs::write(lab.lbd().config, &patient).unwrap();
    lbctl(&lab, lb, &["reload"]).unwrap();
    lbctl(&lab, lb, &["node", "active"]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));
    lbctl(&lab, lb, &["real", "disable", &address]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Withdrawn));
    lbctl(&lab, lb, &["real", "enable", &address]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Held));
    assert_eq!(table(lb), [FOREIGN]);
    lbctl(&lab, lb, &["node", "standby", "--reason", "new switch"]).unwrap();
    lbd.signal(Signal::SIGKILL).unwrap();
    lbd.wait(SOON).unwrap();
    lbd = lab.start_lbd(&text, &[]).unwrap();
    wait_for_start(&lab, lb);
    assert!(lbctl(&lab, lb, &["status"]).unwrap().contains("(new switch)"));
    assert_eq!(table(lb), [FOREIGN]);
    lbctl(&lab, lb, &["node", "active"]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));

    // Not to be announced any more; then anew, which is held up by nothing.
    let paths = lab.lbd();
    fs::write(&paths.config, text.replace("[\"route\"]", "[]")).unwrap();
    let said = lbctl(&lab, lb, &["reload"]).unwrap();
    assert!(said.contains("~ vip 198.19.10.1:80/tcp: announce changed"), "{said}");
    assert_eq!((vip(&lab, lb).route, table(lb)), (None, vec![FOREIGN.to_owned()]));
    fs::write(&paths.config, text.replace("linger", "table = 200\nlinger")).unwrap();
    let refused = lbctl(&lab, lb, &["reload"]).unwrap_err().to_string();
    assert!(refused.contains("[announce]: table and protocol cannot change on reload"), "{refused}");
    fs::write(&paths.config, &text).unwrap();
    lbctl(&lab, lb, &["reload"]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));

    let withdraw = || {
        let mut command = lb.command(binary("lbd").unwrap());
        command.arg("withdraw").arg("--config").arg(&paths.config).arg("--socket").arg(&paths.socket);
        run(&mut command)
    };
    let refused = withdraw().unwrap_err().to_string();
    assert!(refused.contains("would announce the VIPs again: stop it first"), "{refused}");

    // Nobody hears of a crash and what follows.
    monitor.seen(Duration::from_millis(50));
    for _ in 0..2 {
        lbd.signal(Signal::SIGKILL).unwrap();
        lbd.wait(SOON).unwrap();
        assert_eq!(table(lb), [OURS, FOREIGN]);
        lbd = lab.start_lbd(&text, &[]).unwrap();
        wait_for_start(&lab, lb);
    }
    wait_for_route(&lab, lb, Some(Route::Announced));
    assert_eq!(monitor.seen(Duration::from_millis(50)), Vec::<String>::new());

    lbd.signal(Signal::SIGKILL).unwrap();
    lbd.wait(SOON).unwrap();
    assert_eq!(withdraw().unwrap(), "withdrawn: 198.19.10.1\n");
    assert_eq!((withdraw().unwrap().as_str(), table(lb)), ("", vec![FOREIGN.to_owned()]));

    let lbd = lab.start_lbd(&text, &[]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));
    assert!(lbd.stop().unwrap().success());
    assert_eq!(table(lb), [FOREIGN]);
}

/// What `lbd withdraw` says with these words.
fn withdraw(lab: &Lab, words: &[&str]) -> tests::lab::Result<String> {
    let mut command = lab.lb().command(binary("lbd")?);
    run(command.arg("withdraw").arg("--socket").arg(lab.lbd().socket).args(words))
}

#[test]
fn nothing_is_announced_where_no_device_has_the_program() {
    let lab = lab("gone", 1);
    lab.provision().unwrap();
    let lb = lab.lb();
    let text = config(&lab, "hold_down = \"0s\"");
    lb.run("ip link add spare type veth peer name other").unwrap();
    let on_spare = text.replace("interface = \"eth0\"", "interface = [\"eth0\", \"spare\"]");
    assert_ne!(on_spare, text);

    // One of two devices goes: packets come by the other. Both go: the daemon withdraws and ends.
    let mut lbd = lab.start_lbd(&on_spare, &[]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));
    lb.run("ip link del spare").unwrap();
    said(&lab, "the device that XDP was attached to is gone");
    assert_eq!(table(lb), [OURS]);
    lb.run("ip link del eth0").unwrap();
    assert!(!lbd.wait(SOON).unwrap().success());
    assert_eq!(table(lb), Vec::<String>::new());

    // What is pinned is of devices that are gone: a route that is found goes before the first round of checks is over.
    for line in [
        "link add eth0 type veth peer name other".to_owned(),
        format!("addr add {}/24 dev eth0", lb.addr()),
        "link set eth0 up".to_owned(),
        format!("route add table 199 {OURS}"),
    ] {
        lb.run(&format!("ip {line}")).unwrap();
    }
    let slow =
        text.replace(TIMING, "interval = \"60s\"\nfast_interval = \"60s\"\ntimeout = \"30s\"\nrise = 1\nfall = 2");
    assert_ne!(slow, text);
    let monitor = Monitor::start(lb);
    let _lbd = lab.start_lbd(&slow, &[]).unwrap();
    monitor.wait_for_vip(true);
    assert!(!lbctl(&lab, lb, &["status"]).unwrap().contains("running for"));
}

#[test]
fn end_is_heard_twice_and_leaves_what_it_is_told_to_leave() {
    let lab = lab("end", 1);
    lab.provision().unwrap();
    let lb = lab.lb();
    let text = config(&lab, "hold_down = \"0s\"\nlinger = \"1m\"");
    let mut lbd = lab.start_lbd(&text, &["--leave-attached"]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));

    // Nobody else adds or deletes there.
    let mut second = lb.command(binary("lbd").unwrap());
    second.args(["withdraw", "--table", "199", "--protocol", "199", "--socket", "/nowhere"]);
    let refused = run(&mut second).unwrap_err().to_string();
    assert!(refused.contains("has protocol 199 in table 199: stop it first"), "{refused}");
    lbd.signal(Signal::SIGTERM).unwrap();
    assert!(lbd.wait(SOON).unwrap().success());
    assert_eq!(table(lb), [OURS], "with --leave-attached routes stay");

    // Whatever becomes of the configuration.
    fs::write(lab.lbd().config, "nonsense").unwrap();
    let path = lab.lbd().config;
    assert!(withdraw(&lab, &["--config", path.to_str().unwrap()]).is_err());
    assert_eq!(withdraw(&lab, &["--table", "199", "--protocol", "199"]).unwrap(), "withdrawn: 198.19.10.1\n");
    assert!(withdraw(&lab, &["--table", "254", "--protocol", "199"]).is_err());

    // While it lingers it answers; a second signal ends that.
    let mut lbd = lab.start_lbd(&text, &[]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));
    lbd.signal(Signal::SIGTERM).unwrap();
    wait_for_route(&lab, lb, Some(Route::Withdrawn));
    assert_eq!(table(lb), Vec::<String>::new());
    lab.client().http_get(&format!("http://{VIP}/")).unwrap();
    lbd.signal(Signal::SIGTERM).unwrap();
    assert!(lbd.wait(SOON).unwrap().success());

    // A node of which it is not known whether it was taken out does not announce on a guess.
    let node = lab.lbd().state.join("node.json");
    fs::write(&node, "{").unwrap();
    let mut lbd = lab.spawn_lbd(&text, &LbdStart::default(), &[]).unwrap();
    assert!(!lbd.wait(SOON).unwrap().success());
    said(&lab, "whether this node was on standby is not known");
    // What it says to put there is understood.
    fs::write(&node, r#"{"version": 1, "state": "standby", "reason": null, "since": null}"#).unwrap();
    let _lbd = lab.start_lbd(&text, &[]).unwrap();
    wait_for_start(&lab, lb);
    lbctl(&lab, lb, &["node", "active"]).unwrap();
    wait_for_route(&lab, lb, Some(Route::Announced));
    // Standby that cannot be kept is carried out, and said.
    fs::create_dir(node.with_extension("json.new")).unwrap();
    let said = lbctl(&lab, lb, &["node", "standby"]).unwrap_err().to_string();
    assert!(said.contains("on standby, but not kept"), "{said}");
    assert_eq!(table(lb), Vec::<String>::new());
    let said = lbctl(&lab, lb, &["node", "active"]).unwrap_err().to_string();
    assert!(said.contains("not kept, so not done"), "{said}");
}

/// Starts BIRD on a host with one of the examples of docs/.
fn bird(host: &Host, config: &str) -> Running {
    let [conf, log, socket, pid] = ["conf", "log", "ctl", "pid"].map(|kind| host.dir().join(format!("bird.{kind}")));
    fs::write(&conf, config).unwrap();
    let mut command = host.command("bird");
    command.arg("-f").arg("-c").arg(conf).arg("-s").arg(socket).arg("-P").arg(pid);
    Running::start(command.stderr(File::create(log).unwrap())).unwrap()
}

const NODE: &str = include_str!("../../docs/examples/bird-node.conf");
const ROUTER: &str = include_str!("../../docs/examples/bird-router.conf");

/// The router's way to the VIP.
fn ways(router: &Host) -> String {
    router.run(&format!("ip route show {VIP}")).unwrap()
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

/// How long a router takes to know: from the verdict, as `lbctl real history` tells it, to the router's FIB. The numbers
/// are printed, not judged.
#[test]
fn router_hears_of_a_verdict_through_bird() {
    let lab = lab("bird", 1);
    lab.provision().unwrap();
    let (lb, router, real) = (lab.lb(), lab.router(), lab.real(1).unwrap());
    router.run("ip route del 198.19.10.0/24").unwrap();
    let _birds = [bird(lb, NODE), bird(router, ROUTER)];
    let _lbd = lab.start_lbd(&config(&lab, "hold_down = \"0s\""), &[]).unwrap();
    let via = || Ok(ways(router).contains("via 198.18.221.11").then_some(()));
    wait_for("the router to know the VIP", Duration::from_secs(20), via).unwrap();
    lab.client().http_get(&format!("http://{VIP}/")).unwrap();

    let monitor = Monitor::start(router);
    let (mut withdrawn, mut announced) = (Vec::new(), Vec::new());
    for _ in 0..if std::env::var_os("LBD_TEST_LONG").is_some() { 100 } else { 8 } {
        real.nginx().stop().unwrap();
        withdrawn.push(since_verdict(&lab, &monitor.wait_for_vip(true)));
        real.nginx().start().unwrap();
        announced.push(since_verdict(&lab, &monitor.wait_for_vip(false)));
    }
    lab.client().http_get(&format!("http://{VIP}/")).unwrap();
    for (what, all) in [("withdrawn", withdrawn), ("announced", announced)] {
        let (count, worst) = (all.len(), all.iter().max().copied().unwrap());
        println!("verdict to the router's FIB, {what}: median {:?}, worst {worst:?} of {count}", median(all));
    }
}

/// From the last verdict to this moment.
fn since_verdict(lab: &Lab, at: &str) -> Duration {
    let rows = lbctl(lab, lab.lb(), &["real", "history", "-o", "json"]).unwrap();
    let rows: Vec<HistoryRow> = serde_json::from_str(&rows).unwrap();
    let verdict = rows.last().unwrap().at;
    let seen = parsed_as(&verdict, at);
    Duration::try_from(seen.duration_since(verdict)).unwrap()
}

fn parsed_as<T: std::str::FromStr<Err: std::fmt::Debug>>(_: &T, text: &str) -> T {
    text.parse().unwrap()
}

/// A download of some seconds over one connection.
struct Download {
    port: u16,
    real: String,
    body: JoinHandle<io::Result<u64>>,
}

const DOWNLOAD: u64 = 5 << 20;

impl Download {
    /// Returns when the body begins.
    fn start(client: &Host) -> Self {
        let (client, (told, begun)) = (client.clone(), mpsc::channel());
        let body = std::thread::spawn(move || {
            client.enter().unwrap();
            let mut stream = TcpStream::connect((VIP, 80))?;
            stream.set_read_timeout(Some(SOON))?;
            write!(stream, "GET /big?rate=1m HTTP/1.0\r\nRange: bytes=0-{}\r\n\r\n", DOWNLOAD - 1)?;
            let mut reader = BufReader::new(&stream);
            let mut real = String::new();
            loop {
                let mut line = String::new();
                reader.read_line(&mut line)?;
                if let Some(name) = line.strip_prefix("X-Real: ") {
                    name.trim().clone_into(&mut real);
                } else if line == "\r\n" {
                    break;
                }
            }
            told.send((stream.local_addr()?.port(), real)).unwrap();
            io::copy(&mut reader.take(2 * DOWNLOAD), &mut io::sink())
        });
        let (port, real) = begun.recv_timeout(SOON).unwrap();
        Self { port, real, body }
    }
}

/// Load balancers that an ECMP router spreads flows over.
struct Nodes {
    lab: Lab,
    lbds: Vec<Running>,
    birds: Vec<Running>,
    _router: Running,
    configs: [String; 2],
}

impl Nodes {
    fn up() -> Self {
        let mut lab = lab("nodes", 3);
        lab.add_second_lb().unwrap();
        let (lb, lb2, router) = (lab.lb(), lab.lb2().unwrap(), lab.router());
        for real in lab.reals() {
            let mut apply = lab.realsrv_setup(real, "apply").unwrap();
            run(apply.args(["--lb-source", &lb2.addr().to_string()])).unwrap();
        }
        router.run("ip route del 198.19.10.0/24").unwrap();
        router.run("sysctl -qw net.ipv4.fib_multipath_hash_policy=1").unwrap();
        let first = config(&lab, "hold_down = \"0s\"\nlinger = \"500ms\"");
        let second = first.replace(&lb.addr().to_string(), &lb2.addr().to_string());
        let birds = vec![bird(lb, NODE), bird(lb2, &NODE.replace("198.18.221.", "198.18.231."))];
        let router = bird(router, ROUTER);
        let configs = [first, second];
        let lbds = [lb, lb2].iter().zip(&configs).map(|(lb, text)| lab.start_lbd_on(lb, text, &[]).unwrap()).collect();
        let nodes = Self { lab, lbds, birds, _router: router, configs };
        nodes.wait_for_ways([true, true]);
        nodes
    }

    /// Waits until the router has these nodes as next hops, and no other.
    fn wait_for_ways(&self, wanted: [bool; 2]) {
        let ways = || {
            let shown = ways(self.lab.router());
            let known = ["198.18.221.11", "198.18.231.11"].map(|lb| shown.contains(&format!("via {lb} ")));
            Ok((known == wanted).then_some(()))
        };
        wait_for("the router's ways to the VIP", Duration::from_secs(20), ways).unwrap();
    }

    fn digests(&self) -> [String; 2] {
        [self.lab.lb(), self.lab.lb2().unwrap()].map(|lb| vip(&self.lab, lb).digest)
    }

    /// Which of the nodes the router sends a flow to.
    fn node_of(&self, port: u16) -> usize {
        let way = format!(
            "ip route get {VIP} from {} iif to-client ipproto tcp sport {port} dport 80",
            self.lab.client().addr()
        );
        usize::from(self.lab.router().run(&way).unwrap().contains("via 198.18.231.11 "))
    }
}

#[test]
fn node_that_stops_or_dies_breaks_no_established_connection() {
    let mut nodes = Nodes::up();
    let [first, second] = nodes.digests();
    assert_eq!(first, second, "both nodes have the same ring");
    let client = nodes.lab.client().clone();

    // A stop that is meant: nobody notices, new connections included.
    let load = LoadConfig { workers: 2, interval: Duration::from_millis(10), timeout: Duration::from_secs(3) };
    let requests = client.load(VIP, load);
    let downloads: Vec<_> = (0..8).map(|_| Download::start(&client)).collect();
    assert!(nodes.lbds.pop().unwrap().stop().unwrap().success());
    nodes.wait_for_ways([true, false]);
    let lb2 = nodes.lab.lb2().unwrap();
    nodes.lbds.push(nodes.lab.start_lbd_on(lb2, &nodes.configs[1], &[]).unwrap());
    nodes.wait_for_ways([true, true]);
    all_end_well(&nodes.lab, downloads, "stopped and started");
    let requests = requests.stop().unwrap();
    let failed: Vec<_> = requests.iter().filter(|request| request.answer.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), requests.len());
    println!("a node stopped and started again: {} new connections, none failed", requests.len());

    // The cable is pulled, and whatever runs there is gone.
    let requests = client.load(VIP, load);
    let downloads: Vec<_> = (0..16).map(|_| Download::start(&client)).collect();
    let of_first = downloads.iter().filter(|download| nodes.node_of(download.port) == 0).count();
    assert!((1..16).contains(&of_first), "the router spreads flows over both nodes");
    nodes.lab.router().run("ip link set to-lb down").unwrap();
    for process in [nodes.lbds.remove(0), nodes.birds.remove(0)] {
        process.signal(Signal::SIGKILL).unwrap();
    }
    nodes.wait_for_ways([false, true]);
    all_end_well(&nodes.lab, downloads, "dead");
    let requests = requests.stop().unwrap();
    let failed = requests.iter().filter(|request| request.answer.is_err()).count();
    println!("a node dead: of 16 downloads {of_first} were its; {failed} of {} new connections failed", requests.len());
}

/// Load balancers on one link with the router, and keepalived on each of them.
struct OneLink {
    lab: Lab,
    _lbds: Vec<Running>,
    keepaliveds: Vec<Running>,
}

impl OneLink {
    /// The router reaches the VIP on a bridge, `br0`, that both load balancers have an `eth1` on.
    fn up() -> Self {
        let mut lab = lab("link", 2);
        lab.add_second_lb().unwrap();
        let (router, lbs) = (lab.router(), [lab.lb(), lab.lb2().unwrap()]);
        for real in lab.reals() {
            let mut apply = lab.realsrv_setup(real, "apply").unwrap();
            run(apply.args(["--lb-source", &lbs[1].addr().to_string()])).unwrap();
        }
        let pass = router.dir().join("xdp_pass.o");
        for line in [
            "link add br0 type bridge",
            "link set br0 up",
            "route del 198.19.10.0/24",
            "addr add 198.19.10.254/24 dev br0",
        ] {
            router.run(&format!("ip {line}")).unwrap();
        }
        for (lb, host) in lbs.iter().zip(11..) {
            let port = format!("link-{}", lb.name());
            router.run(&format!("ip link add {port} type veth peer name eth1 netns {}", lb.namespace())).unwrap();
            router.run(&format!("ip link set {port} master br0 up")).unwrap();
            router.run(&format!("ip link set dev {port} xdpdrv object {} section xdp", pass.display())).unwrap();
            lb.run(&format!("ip addr add 198.18.241.{host}/24 dev eth1")).unwrap();
            lb.run("ip link set eth1 up").unwrap();
        }
        let start = |lb: &Host| {
            let text = lab.lbd_config(&format!("{TIMING}\nannounce = [\"arp\"]"));
            let text = text.replace(&lab.lb().addr().to_string(), &lb.addr().to_string());
            lab.start_lbd_on(lb, &text.replace("\"eth0\"", "[\"eth0\", \"eth1\"]"), &[]).unwrap()
        };
        let daemons = lbs.map(start).into();
        Self { lab, _lbds: daemons, keepaliveds: Vec::new() }
    }

    /// Starts keepalived on a load balancer: its notifications are the example of docs/.
    fn keepalived(&mut self, lb: usize, priority: u8) {
        let lb = [self.lab.lb(), self.lab.lb2().unwrap()][lb];
        let lbctl = format!("{} --socket {}", binary("lbctl").unwrap().display(), self.lab.lbd_on(lb).socket.display());
        let example = include_str!("../../docs/examples/keepalived.conf");
        let text = example.replace("/usr/bin/lbctl", &lbctl).replace("priority 100", &format!("priority {priority}"));
        let [conf, log, pid, vrrp] =
            ["conf", "log", "pid", "vrrp"].map(|kind| lb.dir().join(format!("keepalived.{kind}")));
        fs::write(&conf, text).unwrap();
        let mut command = lb.command("keepalived");
        command.args(["--dont-fork", "--vrrp", "--log-console", "--use-file"]).arg(conf);
        command.arg("--pid").arg(pid).arg("--vrrp_pid").arg(vrrp);
        let log = File::create(log).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.keepaliveds.push(Running::start(&mut command).unwrap());
    }

    /// Which load balancer answers the router's question for the VIP's Ethernet address.
    fn answers(&self) -> Option<usize> {
        let mac = |host: &Host, device: &str| -> claim::Mac {
            let shown = host.run(&format!("ip -o link show {device}")).unwrap();
            let text = shown.split_once("link/ether ").unwrap().1;
            let bytes: Vec<_> = text[..17].split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
            bytes.try_into().unwrap()
        };
        let (router, ours) = (self.lab.router().clone(), mac(self.lab.router(), "br0"));
        let macs = [self.lab.lb(), self.lab.lb2().unwrap()].map(|lb| mac(lb, "eth1"));
        let ask = move || {
            router.enter().unwrap();
            let link = claim::Link { interface: nix::net::if_::if_nametoindex("br0").unwrap(), mac: ours };
            claim::ask(link, [198, 19, 10, 254].into(), VIP.into(), Duration::from_millis(200), |_| true).unwrap()
        };
        let claimant = std::thread::spawn(ask).join().unwrap();
        claimant.map(|mac| macs.iter().position(|of_lb| *of_lb == mac).unwrap())
    }

    fn wait_for_answers_of(&self, lb: usize) {
        let answers = || Ok((self.answers() == Some(lb)).then_some(()));
        wait_for("the VIP to be answered for", Duration::from_secs(20), answers).unwrap();
    }
}

#[test]
fn vip_on_a_flat_link_is_where_keepalived_says() {
    let mut link = OneLink::up();
    let client = link.lab.client().clone();
    let lbs = [link.lab.lb().clone(), link.lab.lb2().unwrap().clone()];
    for lb in &lbs {
        wait_for_start(&link.lab, lb);
        assert_eq!((vip(&link.lab, lb).serving, vip(&link.lab, lb).answers), (true, Some(false)));
    }
    assert_eq!(link.answers(), None, "nobody has said yet who is active");
    link.keepalived(0, 150);
    link.wait_for_answers_of(0);
    link.keepalived(1, 100);
    let standby = || Ok(lbctl(&link.lab, &lbs[1], &["status"])?.contains("standby for").then_some(()));
    wait_for("the second to be on standby", SOON, standby).unwrap();
    assert_eq!(link.answers(), Some(0));

    let load = LoadConfig { workers: 2, interval: Duration::from_millis(10), timeout: Duration::from_secs(3) };
    let requests = client.load(VIP, load);
    let downloads: Vec<_> = (0..8).map(|_| Download::start(&client)).collect();
    link.lab.router().run("ip link set link-lb down").unwrap();
    link.wait_for_answers_of(1);
    all_end_well(&link.lab, downloads, "off the link");
    link.lab.router().run("ip link set link-lb up").unwrap();
    link.wait_for_answers_of(0);
    let silent = || Ok((vip(&link.lab, &lbs[1]).answers == Some(false)).then_some(()));
    wait_for("the second to be silent", SOON, silent).unwrap();
    let requests = requests.stop().unwrap();
    let failed = requests.iter().filter(|request| request.answer.is_err()).count();
    println!("off the link and back: {failed} of {} new connections failed", requests.len());
    client.http_get(&format!("http://{VIP}/")).unwrap();
}

/// Every download comes to its end, whole, on the connection that it began on.
fn all_end_well(lab: &Lab, downloads: Vec<Download>, what: &str) {
    let count = downloads.len();
    for Download { port, real, body } in downloads {
        let outcome = body.join().unwrap();
        assert_eq!(
            outcome.as_ref().ok(),
            Some(&DOWNLOAD),
            "from {real} to port {port}: {outcome:?}, {}",
            ways(lab.router())
        );
    }
    println!("a node {what}: {count} downloads, none broken");
}

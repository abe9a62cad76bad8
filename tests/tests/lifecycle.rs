//! What lbd may do, or what may become of it, while clients are served: restart, crash, reload. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{DETECTION, Download, Outcome, Requests, SOON, Service, slowest, thread};
use lb_ebpf::{counter::Reason, real::RealEntry};
use lbd::model::{Health, Stats};
use nix::sys::{
    ptrace,
    signal::Signal,
    wait::{WaitPidFlag, waitpid},
};
use std::{fs, time::Instant};
use tests::lab::{Error, binary, run, wait_for};

/// How many requests make sure that something goes on.
const SOME: usize = 20;

fn stats(service: &Service) -> Stats {
    serde_json::from_str(&service.lbctl(&["stats", "-o", "json"]).unwrap()).unwrap()
}

/// Packets for the VIP that the LB dropped for want of a real or of the way to it.
fn dropped(service: &Service) -> u64 {
    let reasons = stats(service).reasons;
    let code = |reason: Reason| reason.code();
    let wanted = [code(Reason::DropNoReal), code(Reason::DropNoNextHop)];
    reasons.iter().filter(|row| wanted.contains(&row.reason.as_str())).map(|row| row.packets).sum()
}

#[test]
fn lbd_stopped_or_killed_leaves_traffic_flowing_and_the_next_one_takes_over() {
    let mut service = Service::with("adopt", 3, 3, &["--leave-attached"]);
    let (link, mut program) = service.link();
    let clients = [Requests::start(&service), Requests::start(&service)];
    let mut downloads: Vec<Download> = (1..=3).map(|real| service.download_from(real, 20)).collect();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let before = stats(&service).vips[0].packets;
        service.lbd.signal(signal).unwrap();
        service.lbd.wait(SOON).unwrap();
        assert!(service.lbctl(&["status"]).is_err(), "nobody is there to answer");
        clients[0].wait_for_more(SOME);
        assert_eq!(service.link(), (link, program), "{signal}: the old program runs on");
        service.restart();
        clients[0].wait_for_more(SOME);
        let (same, new) = service.link();
        assert!(same == link && new != program, "{signal}: the link stays, the program is another");
        program = new;
        assert!((1..=3).all(|real| service.row(real).state == Health::Up), "{signal}");
        let after = stats(&service).vips[0].packets;
        assert!(after >= before + SOME as u64 * 4, "{signal}: the counters count on: {before}, {after}");
    }
    assert!(downloads.iter_mut().all(Download::runs), "the downloads have seen all of it");
    for download in downloads {
        assert_eq!(download.finish(), 20 << 20);
    }
    clients.into_iter().for_each(Requests::finish_without_failure);
    assert_eq!(dropped(&service), 0);
}

#[test]
fn reload_that_the_data_plane_has_not_taken_yet_is_not_lost_with_the_end() {
    let mut service = Service::with("last-word", 2, 2, &["--leave-attached"]);
    // Stops this one thread; should the test fail, it goes on when ours ends.
    let data_plane = thread(service.lbd.pid(), "data-plane");
    ptrace::attach(data_plane).unwrap();
    waitpid(data_plane, Some(WaitPidFlag::__WALL)).unwrap();
    service.configure(&[(1, 100), (2, 0)]);
    service.lbctl(&["reload"]).unwrap();
    service.lbd.signal(Signal::SIGTERM).unwrap();
    let ends = || Ok(fs::read_to_string(service.lab.lbd().log).unwrap().contains("stays attached").then_some(()));
    wait_for("lbd to begin its end", SOON, ends).unwrap();
    ptrace::detach(data_plane, None).expect("lbd waits for its data plane");
    assert!(service.lbd.wait(SOON).unwrap().success());
    assert_eq!(service.requests(40)[1], 0);
    let log = fs::read_to_string(service.lab.lbd().log).unwrap();
    assert!(!log.contains(" ERROR "), "{log}");
}

#[test]
fn download_from_a_real_that_quits_outlives_a_crash_of_lbd() {
    let mut service = Service::with("quit-crash", 3, 3, &["--leave-attached"]);
    let mut download = service.download_from(2, 15);
    service.lab.real(2).unwrap().nginx().quit().unwrap();
    service.wait_for_state(2, Health::Down);
    service.lbd.signal(Signal::SIGKILL).unwrap();
    service.lbd.wait(SOON).unwrap();
    service.restart();
    service.wait_for_state(2, Health::Down);
    assert_eq!(service.requests(40)[1], 0);
    assert!(download.runs());
    assert_eq!(download.finish(), 15 << 20);
}

#[test]
fn reload_adds_weighs_and_removes_reals_without_a_failed_request() {
    let service = Service::with("reload", 4, 3, &[]);
    let clients = [Requests::start(&service), Requests::start(&service)];
    let downloads: Vec<Download> = (1..=3).map(|real| service.download_from(real, 12)).collect();

    service.configure(&[(1, 100), (2, 100), (3, 100), (4, 100)]);
    service.lbd.signal(Signal::SIGHUP).unwrap();
    let row = service.wait_for_state(4, Health::Up);
    assert!(row.share > 0.2, "{row:?}");
    assert!(service.requests(60)[3] > 0);

    service.configure(&[(1, 100), (2, 100), (3, 300), (4, 100)]);
    let said = service.lbctl(&["reload"]).unwrap();
    assert!(said.contains("weight 100 -> 300"), "{said}");
    assert!(service.row(3).share > 0.45, "{:?}", service.row(3));

    service.configure(&[(1, 100), (3, 300), (4, 100)]);
    let said = service.lbctl(&["reload"]).unwrap();
    assert!(said.starts_with("- vip"), "{said}");
    assert!(service.find_row(2).unwrap().is_none());
    assert_eq!(service.requests(60)[1], 0);

    // It comes back like a new one.
    service.configure(&[(1, 100), (2, 100), (3, 300), (4, 100)]);
    service.lbctl(&["reload"]).unwrap();
    let row = service.wait_for_state(2, Health::Up);
    assert!(row.share > 0.1, "{row:?}");

    for download in downloads {
        assert_eq!(download.finish(), 12 << 20);
    }
    clients.into_iter().for_each(Requests::finish_without_failure);
    assert_eq!(dropped(&service), 0);
}

#[test]
fn reload_of_a_bad_file_changes_nothing_and_says_which_line() {
    let mut service = Service::with("bad", 1, 1, &[]);
    let path = service.lab.lbd().config;
    let good = fs::read_to_string(&path).unwrap();
    let before = (service.status().config.revision, service.row(1).share);
    fs::write(&path, good.replace("port = 80", "port = 80\ncolour = \"red\"")).unwrap();
    let line = good.lines().position(|line| line == "port = 80").unwrap() + 2;

    let error = service.lbctl(&["reload"]).unwrap_err();
    let Error::Failed { status, stderr, .. } = &error else { panic!("{error}") };
    assert_eq!(status.code(), Some(1));
    assert!(stderr.contains(&format!("lbd.toml:{line}:")) && stderr.contains("colour"), "{stderr}");

    service.lbd.signal(Signal::SIGHUP).unwrap();
    let refusals = || fs::read_to_string(service.lab.lbd().log).unwrap().matches("reload refused").count();
    wait_for("the second refusal", SOON, || Ok((refusals() == 2).then_some(()))).unwrap();
    let config = service.status().config;
    assert_eq!((config.revision, service.row(1).share), before);
    assert!(config.last_reload_error.is_some_and(|error| error.contains("colour")));
    assert!(service.lbd.exited().unwrap().is_none());
    service.requests(5);

    fs::write(&path, good).unwrap();
    assert!(service.lbctl(&["reload"]).unwrap().contains("nothing changed"));
    assert!(service.status().config.last_reload_error.is_none());
}

#[test]
fn real_that_quits_gracefully_finishes_its_downloads_and_gets_no_new_connection() {
    let service = Service::with("quit", 3, 3, &[]);
    let clients = [Requests::start(&service), Requests::start(&service)];
    let downloads: Vec<Download> = [1, 2, 2, 2, 3].into_iter().map(|real| service.download_from(real, 12)).collect();
    clients[0].wait_for_more(SOME);
    let quit = Instant::now();
    service.lab.real(2).unwrap().nginx().quit().unwrap();
    let row = service.wait_for_state(2, Health::Down);
    let detected = Instant::now();
    assert_eq!(row.reason, "PORT_CLOSED");
    clients[0].wait_for_more(5 * SOME);
    let established = downloads.len();
    for download in downloads {
        assert_eq!(download.finish(), 12 << 20);
    }
    for client in clients {
        let outcomes = client.finish();
        let refused: Vec<_> = outcomes.iter().filter(|outcome| outcome.real.is_err()).collect();
        let meanwhile = |outcome: &&Outcome| outcome.began + outcome.took > quit && outcome.began < detected;
        assert!(refused.iter().all(meanwhile), "{refused:#?}");
        // nginx has closed the connection; nobody waited.
        assert!(slowest(&outcomes) < DETECTION, "{:?}", slowest(&outcomes));
        println!("{} requests, {} refused before detection, none after", outcomes.len(), refused.len());
    }
    println!("{established} downloads, none broken; detected after {:?}", detected - quit);
}

#[test]
fn real_down_softly_and_then_cut_off_serves_no_flow_any_more() {
    let service = Service::with("soft-hard", 3, 3, &[]);
    let _download = service.download_from(2, 60);
    let map = aya::maps::MapData::from_pin(service.lab.pins().join("REALS")).unwrap();
    let reals = aya::maps::Array::<_, RealEntry>::try_from(aya::maps::Map::from_map_data(map).unwrap()).unwrap();
    let address = service.lab.real(2).unwrap().addr();
    let serves = || {
        (1..16).filter_map(|id| reals.get(&id, 0).ok()).find(|e| e.address() == Some(address.into())).unwrap().serves
    };
    service.lab.real(2).unwrap().nginx().quit().unwrap();
    service.wait_for_state(2, Health::Down);
    assert_eq!(serves(), lb_ebpf::real::SERVES_TCP);
    service.lab.router().run("ip link set to-real2 down").unwrap();
    wait_for("the window to close", DETECTION, || Ok((serves() == 0).then_some(()))).unwrap();
    assert_eq!(service.row(2).reason, "TIMEOUT");
    assert_eq!(service.requests(20)[1], 0);
}

#[test]
fn router_with_another_mac_is_followed_by_packets_and_probes() {
    let service = Service::with("mac", 2, 2, &[]);
    let client = Requests::start(&service);
    client.wait_for_more(SOME);
    service.lab.router().run("ip link set to-lb address 02:00:00:00:aa:01").unwrap();
    service.lab.lb().run("ip neigh flush dev eth0").unwrap();
    client.wait_for_more(5 * SOME);
    for real in 1..=2 {
        service.wait_for_state(real, Health::Up);
    }
    let outcomes = client.finish();
    let log = fs::read_to_string(service.lab.lbd().log).unwrap();
    println!(
        "{} requests, the slowest in {:?}; {} verdicts of DOWN",
        outcomes.len(),
        slowest(&outcomes),
        log.matches("after=DOWN").count()
    );
    // TCP asks again for what was lost until the neighbour was found.
    let failed: Vec<_> = outcomes.iter().filter(|outcome| outcome.real.is_err()).collect();
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn second_lbd_on_the_same_pins_is_refused_and_named_the_first() {
    let service = Service::with("twice", 1, 1, &[]);
    let paths = service.lab.lbd();
    let mut second = service.lab.lb().command(binary("lbd").unwrap());
    second.args(["run", "--config"]).arg(&paths.config).arg("--socket").arg(service.lab.lb().dir().join("second.sock"));
    second.arg("--state-dir").arg(&paths.state).arg("--bpffs").arg(&paths.pins);
    let error = run(&mut second).unwrap_err();
    let Error::Failed { stderr, .. } = &error else { panic!("{error}") };
    assert!(stderr.contains(&format!("a running lbd (pid {}) has it", service.status().pid)), "{stderr}");
    service.requests(5);
}

#[test]
fn lbd_that_cannot_attach_to_one_interface_attaches_to_none_and_leaves_no_pin() {
    let mut service = Service::with("undo", 1, 1, &[]);
    service.lbd.signal(Signal::SIGTERM).unwrap();
    service.lbd.wait(SOON).unwrap();
    let (lab, paths) = (&service.lab, service.lab.lbd());
    // The driver of the second one has no XDP.
    let config = fs::read_to_string(&paths.config).unwrap();
    let config = config.replace("interface = \"eth0\"", "interface = [\"eth0\", \"lo\"]");
    let mut lbd = lab.start_lbd(&config, &[]).unwrap();
    assert!(!lbd.wait(SOON).unwrap().success());
    let said = fs::read_to_string(&paths.log).unwrap();
    assert!(said.contains("attach XDP to lo: `bpf_link_create` failed: Operation not supported"), "{said}");
    assert!(!lab.lb().run("ip -d link show eth0").unwrap().contains("prog/xdp"));
    assert_eq!(fs::read_dir(lab.pins()).unwrap().count(), 0);
}

//! The main job, end to end: requests through the VIP, failures of one real at a time, and recovery. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::float_cmp,
    reason = "a helper that fails fails its test"
)]

use lbd::model::{Health, RealRow};
use std::{
    process::Command,
    time::{Duration, Instant},
};
use tests::lab::{Host, Lab, LabConfig, Result, Running, run, wait_for};

const TIMING: &str = "interval = \"500ms\"\ntimeout = \"500ms\"\nfall = 2";
/// `fall × 1.1 × interval + timeout + 0.3 s`, and as much again: this asserts that it happens, benches say how fast.
const DETECTION: Duration = Duration::from_millis(2 * (1_100 + 500 + 300));

/// A lab in service: three provisioned reals, lbd running, every real up.
struct Service {
    lab: Lab,
    lbd: Running,
}

impl Service {
    fn up(test: &str) -> Self {
        let lab = Lab::up(&LabConfig { name: format!("e{}-{test}", std::process::id()), reals: 3 }).unwrap();
        lab.provision().unwrap();
        let lbd = lab.start_lbd(&lab.lbd_config(TIMING)).unwrap();
        let service = Self { lab, lbd };
        for real in 1..=3 {
            service.wait_for_state(real, Health::Up);
        }
        let attached = || Ok(service.lbctl(&["status"])?.contains("running for").then_some(()));
        wait_for("lbd to attach", Duration::from_secs(5), attached).unwrap();
        service
    }

    fn lbctl(&self, words: &[&str]) -> Result<String> {
        run(self.lab.lbctl()?.args(words))
    }

    fn row(&self, real: usize) -> Result<RealRow> {
        let rows: Vec<RealRow> = serde_json::from_str(&self.lbctl(&["real", "list", "-o", "json"])?).unwrap();
        let address = self.lab.real(real)?.addr();
        Ok(rows.into_iter().find(|row| row.real == address).unwrap())
    }

    fn wait_for_state(&self, real: usize, state: Health) -> RealRow {
        let what = format!("real{real} to be {state:?}");
        wait_for(&what, Duration::from_secs(5) + DETECTION, || Ok((self.row(real)?.state == state).then_some(())))
            .unwrap();
        self.row(real).unwrap()
    }

    /// One request; the name of the real that answered.
    fn request(&self) -> Result<String> {
        Ok(self.lab.client().http_get(&format!("http://{}/", self.lab.vip()))?.trim().to_owned())
    }

    /// Requests that must all succeed; how many each real answered.
    fn requests(&self, number: usize) -> [usize; 3] {
        let mut answered = [0; 3];
        for _ in 0..number {
            let name = self.request().unwrap();
            answered[name.strip_prefix("real").unwrap().parse::<usize>().unwrap() - 1] += 1;
        }
        answered
    }

    /// Breaks real 2, waits until it is down and out of the ring, checks the others, mends it, waits until it is back.
    fn real2_fails(&self, break_it: impl FnOnce(&Host), reason: &str, mend_it: impl FnOnce(&Host)) {
        let real2 = self.lab.real(2).unwrap();
        break_it(real2);
        let broken = Instant::now();
        let row = self.wait_for_state(2, Health::Down);
        assert!(broken.elapsed() < DETECTION, "detected after {:?}", broken.elapsed());
        assert_eq!((row.reason.as_str(), row.share), (reason, 0.0));
        assert_eq!(self.requests(40)[1], 0, "no request goes to a real that is down");
        mend_it(real2);
        let row = self.wait_for_state(2, Health::Up);
        assert!(row.share > 0.3, "its share is its own again: {}", row.share);
        let answered = self.requests(60);
        assert!(answered.iter().all(|&n| n > 0), "{answered:?}");
    }
}

#[test]
fn requests_through_the_vip_are_answered_by_every_real() {
    let service = Service::up("web");
    let answered = service.requests(60);
    assert!(answered.iter().all(|&n| n > 0), "{answered:?}");
}

#[test]
fn real_with_its_port_closed_leaves_the_ring_and_returns() {
    let service = Service::up("port");
    service.real2_fails(|real| real.nginx().stop().unwrap(), "PORT_CLOSED", |real| real.nginx().start().unwrap());
}

#[test]
fn real_without_the_vip_leaves_the_ring_and_returns() {
    let service = Service::up("vip");
    let vip = service.lab.vip();
    let address = |verb: &str| format!("ip addr {verb} {vip}/32 dev lo");
    service.real2_fails(
        |real| drop(real.run(&address("del")).unwrap()),
        "TIMEOUT",
        |real| drop(real.run(&address("add")).unwrap()),
    );
}

#[test]
fn real_that_is_cut_off_leaves_the_ring_and_returns() {
    let service = Service::up("cut");
    let router = service.lab.router();
    let link = |state: &str| drop(router.run(&format!("ip link set to-real2 {state}")).unwrap());
    service.real2_fails(|_| link("down"), "TIMEOUT", |_| link("up"));
}

#[test]
fn real_without_decapsulation_leaves_the_ring_and_returns() {
    let service = Service::up("decap");
    let setup = |real: &Host, verb| drop(run(&mut service.lab.realsrv_setup(real, verb).unwrap()).unwrap());
    let failing = service.lab.real(2).unwrap();
    setup(failing, "remove");
    let row = service.wait_for_state(2, Health::Down);
    assert_eq!(row.share, 0.0);
    assert_eq!(service.requests(40)[1], 0);
    setup(failing, "apply");
    service.wait_for_state(2, Health::Up);
}

#[test]
fn download_outlives_the_failure_of_another_real() {
    let service = Service::up("long");
    let url = format!("http://{}/big?rate=4m", service.lab.vip());
    let mut curl = service.lab.client().command("curl");
    curl.args(["-sS", "-o", "/dev/null", "-r", "0-16777215", "-D", "-", "-w", "%{size_download}", &url]);
    let download = std::thread::spawn(move || curl.output());
    let logged = |real: &Host| real.run("ss -Htn state established sport = 80").is_ok_and(|s| !s.trim().is_empty());
    let serving = || Ok((1..=3).find(|&n| service.lab.real(n).is_ok_and(logged)));
    wait_for("the download to begin", Duration::from_secs(5), serving).unwrap();
    let other = (1..=3).find(|&n| !logged(service.lab.real(n).unwrap())).unwrap();
    service.lab.real(other).unwrap().nginx().stop().unwrap();
    service.wait_for_state(other, Health::Down);
    let output = download.join().unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.ends_with("16777216"), "{text}");
}

#[test]
fn lbd_terminated_detaches_and_leaves_no_pin() {
    let Service { lab, lbd } = Service::up("end");
    let links = lab.lb().run("ip -d link show eth0").unwrap();
    assert!(links.contains("xdp"), "{links}");
    assert!(lbd.stop().unwrap().success());
    let links = lab.lb().run("ip -d link show eth0").unwrap();
    assert!(!links.contains("prog/xdp"), "{links}");
    let pins = std::fs::read_dir(lab.pins()).map_or(0, Iterator::count);
    assert_eq!(pins, 0);
    assert!(run(Command::new("ls").arg(lab.lbd().socket)).is_err(), "the socket is gone");
}

//! The main job, end to end: requests through the VIP, failures of one real at a time, and recovery. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::float_cmp,
    reason = "a helper that fails fails its test"
)]

mod common;

use common::{DETECTION, SOON, Service};
use lbd::model::Health;
use nix::sys::signal::Signal;
use std::{process::Command, time::Instant};
use tests::lab::{Host, run};

/// Breaks real 2, waits until it is down and out of the ring, checks the others, mends it, waits until it is back.
fn real2_fails(service: &Service, break_it: impl FnOnce(&Host), reason: &str, mend_it: impl FnOnce(&Host)) {
    let real2 = service.lab.real(2).unwrap();
    break_it(real2);
    let broken = Instant::now();
    let row = service.wait_for_state(2, Health::Down);
    assert!(broken.elapsed() < DETECTION, "detected after {:?}", broken.elapsed());
    assert_eq!((row.reason.as_str(), row.share), (reason, 0.0));
    assert_eq!(service.requests(40)[1], 0, "no request goes to a real that is down");
    mend_it(real2);
    let row = service.wait_for_state(2, Health::Up);
    assert!(row.share > 0.3, "its share is its own again: {}", row.share);
    let answered = service.requests(60);
    assert!(answered[..3].iter().all(|&n| n > 0), "{answered:?}");
}

#[test]
fn requests_through_the_vip_are_answered_by_every_real() {
    let service = Service::up("web");
    let answered = service.requests(60);
    assert!(answered[..3].iter().all(|&n| n > 0), "{answered:?}");
}

#[test]
fn real_with_its_port_closed_leaves_the_ring_and_returns() {
    let service = Service::up("port");
    real2_fails(&service, |real| real.nginx().stop().unwrap(), "PORT_CLOSED", |real| real.nginx().start().unwrap());
}

#[test]
fn real_without_the_vip_leaves_the_ring_and_returns() {
    let service = Service::up("vip");
    let vip = service.lab.vip();
    let address = |verb: &str| format!("ip addr {verb} {vip}/32 dev lo");
    real2_fails(
        &service,
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
    real2_fails(&service, |_| link("down"), "TIMEOUT", |_| link("up"));
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
    let download = service.download(4);
    let other = (1..=3).find(|&n| n != download.real).unwrap();
    service.lab.real(other).unwrap().nginx().stop().unwrap();
    service.wait_for_state(other, Health::Down);
    assert_eq!(download.finish(), 4 << 20);
}

#[test]
fn lbd_terminated_detaches_and_leaves_no_pin() {
    let mut service = Service::up("end");
    let links = service.lab.lb().run("ip -d link show eth0").unwrap();
    assert!(links.contains("xdp"), "{links}");
    service.lbd.signal(Signal::SIGTERM).unwrap();
    assert!(service.lbd.wait(SOON).unwrap().success());
    let links = service.lab.lb().run("ip -d link show eth0").unwrap();
    assert!(!links.contains("prog/xdp"), "{links}");
    let pins = std::fs::read_dir(service.lab.pins()).map_or(0, Iterator::count);
    assert_eq!(pins, 0);
    assert!(run(Command::new("ls").arg(service.lab.lbd().socket)).is_err(), "the socket is gone");
}

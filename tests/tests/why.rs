//! Reals broken in several ways, and what lbd finds out about each by itself, and when it is asked. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{DETECTION, SOON, Service};
use lbd::model::{Health, RealRow, WhyRow};
use std::{fs, time::Duration};
use tests::lab::{Error, Host, wait_for};

/// Each of the questions to a silent real is awaited for the check's timeout, with some time for ports and programs.
const DIAGNOSIS: Duration = Duration::from_secs(10);

/// Breaks real 2, and waits until lbd has found out why it is down; asks as well; mends it, and waits until it is up.
fn found(service: &Service, code: &str, break_it: impl FnOnce(&Host), mend_it: impl FnOnce(&Host)) -> WhyRow {
    let real2 = service.lab.real(2).unwrap();
    break_it(real2);
    service.wait_for_state(2, Health::Down);
    let why = || Ok(service.find_row(2)?.filter(|row| row.why.is_some()));
    let row = wait_for("the diagnosis", DIAGNOSIS, why).unwrap();
    assert_eq!((row.state, row.why.as_deref()), (Health::Down, Some(code)));
    assert!([1, 3].iter().all(|&n| service.row(n).why.is_none()), "nothing is wrong with the others");
    let asked = ask(service, 2);
    assert_eq!((asked.state, asked.finding.code.as_str()), (Health::Down, code), "{asked:?}");
    mend_it(real2);
    assert_eq!(service.wait_for_state(2, Health::Up).why, None);
    asked
}

fn ask(service: &Service, real: usize) -> WhyRow {
    let real = service.lab.real(real).unwrap().addr().to_string();
    let vip = format!("{}:80", service.lab.vip());
    let rows: Vec<WhyRow> =
        serde_json::from_str(&service.lbctl(&["real", "why", &real, "--vip", &vip, "-o", "json"]).unwrap()).unwrap();
    <[WhyRow; 1]>::try_from(rows).unwrap().into_iter().next().unwrap()
}

#[test]
fn real_that_is_down_is_asked_why_once_a_transition_and_on_demand() {
    let service = Service::up("why");
    let (vip, router) = (service.lab.vip(), service.lab.router());
    let address = |real: &Host, verb| drop(real.run(&format!("ip addr {verb} {vip}/32 dev lo")).unwrap());
    let link = |state| drop(router.run(&format!("ip link set to-real2 {state}")).unwrap());

    let asked = found(&service, "VIP_NOT_LOCAL", |real| address(real, "del"), |real| address(real, "add"));
    assert_eq!(asked.finding.mend, Some(format!("realsrv-setup apply --vip {vip}")));
    assert!(asked.finding.evidence.len() >= 2, "{asked:?}");
    found(&service, "PORT_CLOSED", |real| real.nginx().stop().unwrap(), |real| real.nginx().start().unwrap());
    found(&service, "HOST_DOWN", |_| link("down"), |_| link("up"));

    let log = fs::read_to_string(service.lab.lbd().log).unwrap();
    for code in ["VIP_NOT_LOCAL", "PORT_CLOSED", "HOST_DOWN"] {
        let told = log.lines().filter(|line| line.contains(" diagnosis ") && line.contains(code)).count();
        // Once by itself, and once because somebody asked.
        assert_eq!(told, 2, "{code}: {log}");
    }
}

#[test]
fn real_that_is_up_or_unknown_is_answered_for() {
    let service = Service::with("why-up", 1, 1, &[]);
    let asked = ask(&service, 1);
    assert_eq!((asked.state, asked.finding.code.as_str()), (Health::Up, "OK"), "{asked:?}");
    let real = service.lab.real(1).unwrap().addr().to_string();
    let text = service.lbctl(&["real", "why", &real]).unwrap();
    assert!(text.starts_with(&format!("{}:80/tcp {real} UP\nOK: nothing is wrong\n", service.lab.vip())), "{text}");

    let refused = |words: &[&str]| {
        let error = service.lbctl(words).unwrap_err();
        let Error::Failed { status, stderr, .. } = &error else { panic!("{error}") };
        (status.code(), stderr.trim().to_owned())
    };
    let none = "lbctl: no VIP has the real 198.18.0.99".to_owned();
    assert_eq!(refused(&["real", "why", "198.18.0.99"]), (Some(1), none));
    let other = format!("lbctl: that VIP does not have the real {real}, or is none");
    assert_eq!(refused(&["real", "why", &real, "--vip", "198.19.99.1"]), (Some(1), other));
    assert_eq!(refused(&["real", "why", "real1"]).0, Some(2), "usage");
}

/// Many more than are asked at a time: none is waited for where it matters.
#[test]
fn diagnoses_of_many_delay_no_verdict() {
    let service = Service::with("why-many", 8, 8, &[]);
    for n in 1..=8 {
        service.lab.router().run(&format!("ip link set to-real{n} down")).unwrap();
    }
    let began = std::time::Instant::now();
    let all = |so: fn(&RealRow) -> bool| move |rows: &[RealRow]| rows.iter().all(so);
    service.wait_for("every real to be DOWN", all(|row| row.state == Health::Down));
    assert!(began.elapsed() < DETECTION, "detected after {:?}", began.elapsed());
    let known = || Ok((1..=8).all(|n| service.row(n).why.as_deref() == Some("HOST_DOWN")).then_some(()));
    wait_for("every diagnosis", SOON + DIAGNOSIS, known).unwrap();
}

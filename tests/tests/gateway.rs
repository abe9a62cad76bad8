//! A fault of our side is no real's failure; and where our side is sound, reals fail in time, however many. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{DETECTION, SOON, Service};
use lbd::model::{Health, HistoryRow, ProberState};
use std::{
    fs,
    time::{Duration, Instant},
};
use tests::lab::{binary, wait_for};

#[test]
fn silent_gateway_leaves_the_verdicts_as_they_are() {
    let service = Service::up("gateway");
    let (lab, router) = (&service.lab, service.lab.router());
    let state_is = |state| {
        let is = || Ok((service.status().prober.state == state).then_some(()));
        wait_for("the prober's state", Duration::from_secs(20), is).unwrap();
    };
    // Whatever comes from the load balancer, ARP too.
    for rule in [
        "add table netdev fault".to_owned(),
        "add chain netdev fault in { type filter hook ingress device to-lb priority 0; policy drop; }".to_owned(),
    ] {
        let mut nft = router.command("nft");
        tests::lab::run(nft.args(rule.split_whitespace())).unwrap();
    }
    state_is(ProberState::CutOff);
    let fault = service.status().prober.fault.unwrap();
    assert!(fault.starts_with("the gateway ") && fault.ends_with(" does not answer"), "{fault}");
    let sent = service.status().prober.sent;
    // Each real has been silent for longer than it takes to be DOWN.
    let more = || Ok((service.status().prober.sent >= sent + 3 * 6).then_some(()));
    wait_for("more probes", Duration::from_secs(20), more).unwrap();
    assert_eq!((1..=3).map(|real| service.row(real).state).collect::<Vec<_>>(), [Health::Up; 3]);
    let mut check = lab.lb().command(binary("hc-prober").unwrap());
    let real = lab.real(1).unwrap().addr().to_string();
    check.args(["check", "--tcp", "80", "--vip", &lab.vip().to_string(), "--real", &real]);
    let output = check.output().unwrap();
    let line = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(3), "{line}");
    assert!(line.starts_with("UNKNOWN NOT_SENT") && line.contains("does not answer"), "{line}");

    tests::lab::run(router.command("nft").args(["delete", "table", "netdev", "fault"])).unwrap();
    state_is(ProberState::Running);
    assert_eq!((1..=3).map(|real| service.row(real).state).collect::<Vec<_>>(), [Health::Up; 3]);
    let rows: Vec<HistoryRow> =
        serde_json::from_str(&service.lbctl(&["real", "history", "-o", "json"]).unwrap()).unwrap();
    assert!(rows.iter().all(|row| row.after == Health::Up), "{rows:?}");
    let log = || fs::read_to_string(lab.lbd().log).unwrap();
    let said = || Ok((log().contains("nothing is answered") && log().contains("sends probes again")).then_some(()));
    wait_for("the log", SOON, said).unwrap();
}

/// Waits until the prober is so.
fn wait_for_state(service: &Service, state: ProberState) {
    let is = || Ok((service.status().prober.state == state).then_some(()));
    wait_for("the prober's state", Duration::from_secs(20), is).unwrap();
}

/// Waits until each real would have failed, were its silence believed; all must be up.
fn reals_stay_up(service: &Service) {
    let tried = || {
        let prober = service.status().prober;
        prober.sent + prober.send_errors
    };
    let before = tried();
    // Twice as many as make three reals fail.
    wait_for("more probes", Duration::from_secs(20), || Ok((tried() >= before + 3 * 4).then_some(()))).unwrap();
    assert_eq!((1..=3).map(|real| service.row(real).state).collect::<Vec<_>>(), [Health::Up; 3]);
}

#[test]
fn interface_without_a_link_or_down_leaves_the_verdicts_as_they_are() {
    let service = Service::up("link");
    let (lb, router) = (service.lab.lb(), service.lab.router());
    router.run("ip link set to-lb down").unwrap();
    wait_for_state(&service, ProberState::CutOff);
    assert_eq!(service.status().prober.fault.as_deref(), Some("the interface eth0 has no link"));
    reals_stay_up(&service);
    let text = service.lbctl(&["status"]).unwrap();
    assert!(text.contains("CUT OFF: the interface eth0 has no link; "), "{text}");
    router.run("ip link set to-lb up").unwrap();
    // The router's went with its device.
    router.run(&format!("ip route add 198.19.10.0/24 via {}", lb.addr())).unwrap();
    wait_for_state(&service, ProberState::Running);
    service.requests(10);

    // Its routes go with it.
    lb.run("ip link set eth0 down").unwrap();
    wait_for_state(&service, ProberState::NotSending);
    let fault = service.status().prober.fault.unwrap();
    assert!(fault.starts_with("sending failed: "), "{fault}");
    reals_stay_up(&service);
    lb.run("ip link set eth0 up").unwrap();
    lb.run(&format!("ip route add default via {}", router_address(&service))).unwrap();
    wait_for_state(&service, ProberState::Running);
    service.requests(10);
    assert_eq!(service.status().prober.fault, None);
}

/// That on the LB's link.
fn router_address(service: &Service) -> std::net::Ipv4Addr {
    let [a, b, c, _] = service.lab.lb().addr().octets();
    std::net::Ipv4Addr::new(a, b, c, 1)
}

#[test]
fn most_reals_failing_at_once_behind_a_sound_gateway_are_down_in_time() {
    let service = Service::up("most");
    let router = service.lab.router();
    for real in [2, 3] {
        router.run(&format!("ip link set to-real{real} down")).unwrap();
    }
    let broken = Instant::now();
    for real in [2, 3] {
        service.wait_for_state(real, Health::Down);
    }
    assert!(broken.elapsed() < DETECTION, "{:?}", broken.elapsed());
    assert_eq!(service.requests(20), [20, 0, 0, 0]);
    // And the last one, so that nobody answers any more but the gateway.
    router.run("ip link set to-real1 down").unwrap();
    service.wait_for_state(1, Health::Down);
    assert_eq!(service.status().prober.state, ProberState::Running);
}

//! A gateway that does not answer is no real's failure, if all of them are behind it. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{SOON, Service};
use lbd::model::{Health, HistoryRow, ProberState};
use std::{fs, time::Duration};
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

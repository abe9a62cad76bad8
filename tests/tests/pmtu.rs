//! Packets that no longer fit once encapsulated: a client that is told sends smaller ones. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::Service;
use lbd::model::Stats;
use tests::lab::run;

const BODY: usize = 1 << 20;

#[test]
fn upload_of_full_sized_segments_succeeds_by_pmtu_messages_alone() {
    let service = Service::with("pmtu", 1, 1, &[]);
    let lab = &service.lab;
    let real = lab.real(1).unwrap();
    // The real announces the MSS of its own link, so the client's segments fill 1,500 bytes.
    run(lab.realsrv_setup(real, "apply").unwrap().args(["--mss", "off"])).unwrap();
    let body = lab.client().dir().join("body");
    std::fs::write(&body, vec![7; BODY]).unwrap();
    let upload = format!(
        "curl -sS --fail --max-time 30 -H Expect: --data-binary @{} http://{}/upload",
        body.display(),
        lab.vip()
    );
    assert_eq!(lab.client().run(&upload).unwrap(), format!("real1 received {BODY} bytes\n"));

    let stats: Stats = serde_json::from_str(&service.lbctl(&["stats", "-o", "json"]).unwrap()).unwrap();
    let told = stats.reasons.iter().find(|reason| reason.reason == "too_big_reply").unwrap().packets;
    assert!(told > 0, "{:?}", stats.reasons);
    let route = lab.client().run(&format!("ip route get {}", lab.vip())).unwrap();
    assert!(route.contains("mtu 1480"), "{route}");
}

//! The proof by packet: what it proves, what it says when it fails, and that nothing of it stays. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod lab;

use std::{
    net::TcpListener,
    process::Stdio,
    time::{Duration, Instant},
};

use lab::{Lab, VIP, VIP6, within};
use serde_json::Value;

const APPLY: &str = "apply --decap ebpf --vip 198.19.10.1,fd00:19:10::1";

/// Runs the tool, whose proof must fail; the codes of its findings, and all it said.
#[track_caller]
fn unproven(lab: &Lab, arguments: &str) -> (Vec<String>, Value) {
    let output = lab.setup(&format!("{arguments} -o json"));
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["verified"], false);
    let codes =
        report["findings"].as_array().unwrap().iter().map(|finding| finding["code"].as_str().unwrap().to_owned());
    (codes.collect(), report)
}

#[test]
fn apply_proves_vips_of_both_families_and_leaves_nothing_behind() {
    let lab = Lab::new();
    lab.setup_exits(&format!("{APPLY} --no-verify"), 0);
    let unproven = lab.snapshot();
    let report = lab.setup_json(APPLY);
    assert_eq!((&report["verified"], &report["changed"]), (&Value::Bool(true), &Value::Bool(false)), "{report}");
    lab.assert_as(&unproven);
    // Echo and SYN for each VIP.
    assert_eq!(lab.counter("decapsulated"), 4);
    assert_eq!(lab.counter("bad_source"), 0);
}

#[test]
fn proof_is_left_out_when_told_so() {
    let lab = Lab::new();
    let report = lab.setup_json(&format!("{APPLY} --no-verify"));
    assert!(report.get("verified").is_none(), "{report}");
    assert_eq!(lab.counter("decapsulated"), 0);
    assert!(lab.setup_json("check").get("verified").is_none());
    assert_eq!(lab.counter("decapsulated"), 0);
    assert_eq!(lab.setup_json("check --verify")["verified"], true);
}

/// Also where a load balancer may put IPv4 into IPv6: three ways, two packets each.
#[test]
fn proof_comes_from_the_load_balancers_addresses() {
    let lab = Lab::new();
    let report = lab.setup_json(&format!("{APPLY} --lb-source 198.18.1.0/24,fd00:18:1::77"));
    assert_eq!(report["verified"], true, "{report}");
    assert_eq!((lab.counter("decapsulated"), lab.counter("bad_source")), (6, 0));
}

#[test]
fn proof_under_every_reverse_path_filter_succeeds() {
    for filter in 0..3 {
        let lab = Lab::new();
        lab.in_real(&format!("echo {filter} > /proc/sys/net/ipv4/conf/all/rp_filter"));
        lab.in_real(&format!("echo {filter} > /proc/sys/net/ipv4/conf/eth0/rp_filter"));
        assert_eq!(lab.setup_json(APPLY)["verified"], true, "rp_filter={filter}");
        assert_eq!(lab.counter("decapsulated"), 4, "rp_filter={filter}");
    }
}

#[test]
fn listening_service_is_given_its_connection_back() {
    let lab = Lab::new();
    let listeners = within(&lab.real, || {
        // Any address: the VIPs are not there yet.
        [TcpListener::bind("0.0.0.0:8080").unwrap(), TcpListener::bind("[::]:8081").unwrap()]
    });
    for port in [8080, 8081] {
        assert_eq!(lab.setup_json(&format!("{APPLY} --verify-port {port}"))["verified"], true);
    }
    assert_eq!(lab.in_real("ss -Htan state syn-recv"), "");
    drop(listeners);
}

#[test]
fn vip_that_is_gone_is_not_local() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    lab.in_real(&format!("ip addr del {VIP}/32 dev lo; ip addr del {VIP6}/128 dev lo"));
    let (codes, report) = unproven(&lab, "check --verify");
    assert_eq!(codes, ["VIP_NOT_LOCAL", "VIP_NOT_LOCAL"], "{report}");
    assert_eq!(report["differs"], true);
}

#[test]
fn decapsulator_that_is_gone_is_missing() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    lab.in_real("tc filter del dev eth0 ingress");
    assert_eq!(unproven(&lab, "check --verify").0, ["DECAP_MISSING", "DECAP_MISSING"]);
}

/// Nothing of this is what `apply` looks at: only a packet tells. And what was applied stays.
#[test]
fn filter_of_somebody_else_is_found_by_packet_only() {
    const TABLE: &str = "nft add table inet t; nft add chain inet t c '{ type filter hook input priority 0; }'; \
                         nft add rule inet t c";
    let lab = Lab::new();
    for (rule, arguments, code) in [
        ("ip daddr 198.19.10.1 drop", APPLY, "VIP_SILENT"),
        ("ip saddr 192.0.2.0/24 drop", APPLY, "DECAP_SILENT"),
        ("ip daddr 198.19.10.1 meta l4proto icmp drop", APPLY, "ECHO_SILENT"),
        ("ip daddr 198.19.10.1 tcp dport 443 drop", "apply --verify-port 443", "SERVICE_SILENT"),
    ] {
        lab.in_real(&format!("{TABLE} {rule}"));
        let (codes, report) = unproven(&lab, arguments);
        assert_eq!(codes, [code], "{report}");
        let finding = &report["findings"][0];
        assert_eq!(finding["vip"], VIP.to_string());
        assert!(finding["evidence"][0].as_str().unwrap().contains("on eth0"), "{finding}");
        let text = lab.setup_exits(arguments, 1);
        assert!(text.contains(code) && text.contains("mend "), "{text}");
        lab.setup_exits("check", 0);
        lab.in_real("nft delete table inet t");
    }
    assert_eq!(lab.setup_json("apply")["verified"], true);
}

#[test]
fn silence_of_a_port_that_nobody_named_is_a_warning() {
    let lab = Lab::new();
    lab.in_real(
        "nft add table inet t; nft add chain inet t c '{ type filter hook input priority 0; }'; \
         nft add rule inet t c tcp dport 80 drop",
    );
    let report = lab.setup_json(APPLY);
    assert_eq!(report["verified"], true);
    assert!(report["warnings"].to_string().contains("198.19.10.1 answers no SYN to port 80"), "{report}");
}

#[test]
fn load_balancers_of_the_wrong_family_cannot_reach_the_vip() {
    let lab = Lab::new();
    let (codes, report) = unproven(&lab, "apply --decap ebpf --vip fd00:19:10::1 --lb-source 198.18.1.1");
    assert_eq!(codes, ["DECAP_MISSING"]);
    assert!(report["findings"][0]["text"].as_str().unwrap().contains("--lb-source"), "{report}");
}

/// While it waits for an answer that does not come, it is killed: nothing of it stays, whether another run follows or
/// not.
#[test]
fn killed_proof_leaves_nothing() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    let before = lab.snapshot();
    for then in ["", "check --verify"] {
        lab.in_real(
            "nft add table inet t; nft add chain inet t c '{ type filter hook input priority 0; }'; \
             nft add rule inet t c ip daddr 198.19.10.1 drop",
        );
        let mut proof = lab.command("check --verify").stdout(Stdio::null()).spawn().unwrap();
        eventually(|| lab.in_real("ip -o link; ip route").contains("192.0.2.1 dev lbproof"), "the proof began");
        proof.kill().unwrap();
        proof.wait().unwrap();
        lab.in_real("nft delete table inet t");
        if then.is_empty() {
            eventually(|| lab.snapshot() == before, "the kernel took everything away");
        } else {
            lab.setup_exits(then, 0);
            lab.assert_as(&before);
        }
    }
}

/// Two proofs at a time would share the way back to their client: the second says so.
#[test]
fn proof_beside_another_names_the_obstacle() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    lab.in_real("ip link add other type veth peer name rehto; ip link set other up; ip route add 192.0.2.1 dev other");
    let (codes, report) = unproven(&lab, "check --verify");
    assert_eq!(codes, ["UNKNOWN"]);
    assert!(report["findings"][0]["text"].as_str().unwrap().contains("192.0.2.1"), "{report}");
    assert!(!lab.in_real("ip link").contains("lbproof"));
}

#[track_caller]
fn eventually(mut holds: impl FnMut() -> bool, what: &str) {
    let end = Instant::now() + Duration::from_secs(5);
    while !holds() {
        assert!(Instant::now() < end, "not within five seconds: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

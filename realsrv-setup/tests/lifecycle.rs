//! `plan`, `apply`, `check` and `remove` on real namespaces: what they say, what they leave. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod lab;

use std::process::Command;

use lab::{CLIENT, Lab, OTHER_VIP, REAL, VIP, echo, echo_reply_from, ipip};
use socket2::Protocol;

const APPLY: &str = "apply --decap ebpf --vip 198.19.10.1";

#[test]
fn remove_restores_everything_apply_changed() {
    let lab = Lab::new();
    let before = lab.snapshot();
    lab.setup_exits("plan --decap ebpf --vip 198.19.10.1", 2);
    lab.assert_as(&before);
    lab.setup_exits(APPLY, 0);
    assert_ne!(lab.snapshot(), before);
    let removed = lab.setup_json("remove");
    assert_eq!(removed["changed"], true);
    lab.assert_as(&before);
    assert_eq!(lab.setup_json("remove")["changed"], false);
    assert!(!lab.state_dir().join("journal.json").exists());
}

#[test]
fn second_apply_changes_nothing_and_says_so() {
    let lab = Lab::new();
    assert_eq!(lab.setup_json(APPLY)["changed"], true);
    let after = lab.snapshot();
    let again = lab.setup_json(APPLY);
    assert_eq!(again["changed"], false);
    assert!(again["items"].as_array().unwrap().iter().all(|item| item["state"] == "ok"), "{again}");
    lab.assert_as(&after);
    lab.setup_exits("plan", 0);
    lab.setup_exits("check", 0);
}

#[test]
fn vips_come_and_go_and_shared_items_stay_for_the_last() {
    let lab = Lab::new();
    let before = lab.snapshot();
    lab.setup_exits(APPLY, 0);
    lab.setup_exits(&format!("apply --vip {OTHER_VIP}"), 0);
    for vip in [VIP, OTHER_VIP] {
        assert!(lab.exchange(ipip(CLIENT, &echo(vip)), Protocol::ICMPV4, echo_reply_from(vip)).is_some());
    }
    lab.setup_exits(&format!("remove --vip {VIP}"), 0);
    lab.setup_exits("check", 0);
    lab.no_answer(ipip(CLIENT, &echo(VIP)), Protocol::ICMPV4, echo_reply_from(VIP));
    assert!(lab.exchange(ipip(CLIENT, &echo(OTHER_VIP)), Protocol::ICMPV4, echo_reply_from(OTHER_VIP)).is_some());
    lab.setup_exits(&format!("remove --vip {OTHER_VIP}"), 0);
    lab.assert_as(&before);
}

#[test]
fn remove_of_an_unknown_vip_changes_nothing() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    let after = lab.snapshot();
    assert_eq!(lab.setup_json("remove --vip 198.19.10.77")["changed"], false);
    lab.assert_as(&after);
}

#[test]
fn what_was_there_before_survives() {
    let lab = Lab::new();
    lab.in_real(&format!("ip addr add {VIP}/32 dev lo"));
    lab.in_real("tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress pref 7 bpf bytecode '1,6 0 0 0'");
    lab.in_real("echo 2 > /proc/sys/net/ipv4/conf/all/arp_announce");
    let before = lab.snapshot();
    lab.setup_exits(APPLY, 0);
    lab.setup_exits("remove", 0);
    lab.assert_as(&before);
}

#[test]
fn a_value_changed_since_is_reported_and_left() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    lab.in_real("echo 2 > /proc/sys/net/ipv4/conf/all/arp_ignore");
    let removed = lab.setup_json("remove");
    let left: Vec<_> = removed["items"].as_array().unwrap().iter().filter(|item| item["state"] == "left").collect();
    assert_eq!(left.len(), 1, "{removed}");
    assert_eq!(left[0]["item"], "sysctl net.ipv4.conf.all.arp_ignore");
    assert_eq!(lab.in_real("cat /proc/sys/net/ipv4/conf/all/arp_ignore").trim(), "2");
}

#[test]
fn a_qdisc_that_others_use_by_now_is_left() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    lab.in_real("tc filter add dev eth0 egress pref 7 bpf bytecode '1,6 0 0 0'");
    assert!(lab.setup_exits("remove", 0).contains("left      qdisc clsact on eth0"));
    assert!(lab.in_real("tc filter show dev eth0 egress").contains("pref 7"));
}

#[test]
fn drift_is_named_by_check_and_mended_by_apply() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    for drift in [
        format!("ip addr del {VIP}/32 dev lo"),
        "tc qdisc del dev eth0 clsact".to_owned(),
        "tc filter del dev eth0 egress".to_owned(),
        "ip link set eth0 mtu 1400".to_owned(),
        "ip addr add 198.18.1.3/24 dev eth0".to_owned(),
        "echo 0 > /proc/sys/net/ipv4/conf/all/arp_ignore".to_owned(),
    ] {
        lab.in_real(&drift);
        assert!(lab.setup_exits("check", 2).contains("differs"), "{drift}");
        lab.setup_exits("apply", 0);
        lab.setup_exits("check", 0);
    }
}

#[test]
fn remove_after_drift_restores_the_rest() {
    let lab = Lab::new();
    let before = lab.snapshot();
    lab.setup_exits(APPLY, 0);
    lab.in_real(&format!("tc qdisc del dev eth0 clsact; ip addr del {VIP}/32 dev lo"));
    lab.setup_exits("remove", 0);
    lab.assert_as(&before);
}

/// Every refusal names the object, and nothing is changed, not even the state directory.
#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let lab = Lab::new();
    lab.in_real("ip link add other type veth peer name peer; ip link set other up");
    lab.in_real("ip addr add 198.18.5.1/24 dev other; tc qdisc add dev other ingress");
    lab.in_real("ip addr add 198.19.77.1/24 dev lo; ip link add deaf type veth peer name deafer");
    let before = lab.snapshot();
    for (arguments, code, says) in [
        ("apply --interface eth0", 1, "no VIP"),
        ("apply --interface eth0 --vip 198.18.1.2", 1, "198.18.1.2 is an address of eth0"),
        ("apply --interface eth0 --vip 198.19.77.1", 1, "on lo as 198.19.77.1/24"),
        ("apply --interface eth9 --vip 198.19.10.1", 1, "no device \"eth9\""),
        ("apply --interface lo --vip 198.19.10.1", 1, "lo does not carry Ethernet"),
        ("apply --vip 198.19.10.1", 1, "other has an ingress qdisc"),
        ("apply --vip 224.0.0.1", 2, "multicast"),
        ("apply --vip 127.0.0.1", 2, "loopback"),
        ("apply --vip fd00::1/64", 2, "not an IP address"),
        ("apply --vip 198.19.10.1 --mss 99", 2, "no MSS"),
        ("apply --vip 198.19.10.1 --decap gre", 2, "auto, ipip or ebpf"),
        ("apply --vip 198.19.10.1 --lb-source 198.18.0.1/16", 2, "host bits zero"),
        ("plan --vip 224.0.0.1", 1, "multicast"),
        ("check --no-such-option", 1, "unexpected argument"),
        ("check", 1, "no VIP"),
    ] {
        assert!(lab.setup_exits(arguments, code).contains(says), "{arguments}: no {says:?}");
    }
    lab.assert_as(&before);
    lab.in_real("echo 4 > /proc/sys/net/ipv4/conf/deaf/arp_ignore");
    assert!(lab.setup_exits("apply --interface eth0 --vip 198.19.10.1", 1).contains("deaf has arp_ignore=4"));
    assert!(!lab.state_dir().exists());
}

#[test]
fn a_filter_of_others_at_our_place_is_refused() {
    let lab = Lab::new();
    lab.in_real("tc qdisc add dev eth0 clsact; tc filter add dev eth0 ingress pref 19522 bpf bytecode '1,6 0 0 0'");
    let before = lab.snapshot();
    assert!(lab.setup_exits(APPLY, 1).contains("already has the filter"));
    lab.assert_as(&before);
}

#[test]
fn without_privilege_apply_says_so() {
    let lab = Lab::new();
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", lab.real))
        .args(["setpriv", "--bounding-set=-all", "--inh-caps=-all", env!("CARGO_BIN_EXE_realsrv-setup")])
        .args(APPLY.split(' '))
        .arg("--state-dir")
        .arg(lab.state_dir())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CAP_NET_ADMIN"));
}

#[test]
fn a_second_run_at_the_same_time_is_refused() {
    let lab = Lab::new();
    std::fs::create_dir(lab.state_dir()).unwrap();
    let directory = std::fs::File::open(lab.state_dir()).unwrap();
    directory.lock().unwrap();
    assert!(lab.setup_exits(APPLY, 1).contains("another realsrv-setup"));
}

#[test]
fn a_journal_that_cannot_be_read_is_refused() {
    let lab = Lab::new();
    std::fs::create_dir(lab.state_dir()).unwrap();
    std::fs::write(lab.state_dir().join("journal.json"), "{\"intent\":").unwrap();
    for command in [APPLY, "remove", "plan"] {
        assert!(lab.setup_exits(command, 1).contains("journal.json"), "{command}");
    }
}

#[test]
fn a_journal_of_another_namespace_is_refused() {
    let [lab, other] = [Lab::new(), Lab::new()];
    lab.setup_exits(APPLY, 0);
    let state = lab.state_dir();
    for command in [APPLY, "remove", "check"] {
        let text = other.setup_exits(&format!("{command} --state-dir {}", state.display()), 1);
        assert!(text.contains("another network namespace"), "{text}");
    }
}

#[test]
fn forwarding_is_warned_about() {
    let lab = Lab::new();
    lab.in_real("echo 1 > /proc/sys/net/ipv4/ip_forward");
    assert!(lab.setup_exits(APPLY, 0).contains("warning   net.ipv4.ip_forward"));
}

/// Only where this kernel has no tunnel; with one, the VM test takes it.
#[test]
fn ipip_where_the_kernel_has_none_is_refused() {
    let lab = Lab::new();
    let has = Command::new("modprobe").args(["--dry-run", "--quiet", "ipip"]).status().is_ok_and(|code| code.success());
    if has || lab.in_real("ls /sys/class/net").contains("tunl0") {
        eprintln!("SKIPPED: this kernel has ipip");
        return;
    }
    assert!(lab.setup_exits("apply --decap ipip --vip 198.19.10.1", 1).contains("no ipip"));
    assert!(lab.setup_exits("apply --vip 198.19.10.1", 0).contains("lb_decap on eth0"));
    assert!(lab.in_real("ip addr").contains(&REAL.to_string()));
}

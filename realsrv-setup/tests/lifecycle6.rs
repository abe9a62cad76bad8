//! `plan`, `apply`, `check` and `remove` for IPv6 VIPs, alone and beside IPv4 ones, on real namespaces. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod lab;

use lab::{Lab, OTHER_VIP6, REAL6, VIP, VIP6, echo_reply6_from, echo6, in_ipv6};

const APPLY: &str = "apply --decap ebpf --vip fd00:19:10::1";

#[test]
fn remove_restores_everything_apply_changed() {
    let lab = Lab::new();
    let before = lab.snapshot();
    lab.setup_exits("plan --decap ebpf --vip fd00:19:10::1", 2);
    lab.assert_as(&before);
    lab.setup_exits(APPLY, 0);
    let address = lab.in_real("ip -6 addr show dev lo");
    assert!(address.contains("fd00:19:10::1/128 scope global nodad deprecated"), "{address}");
    assert_eq!(lab.setup_json("remove")["changed"], true);
    lab.assert_as(&before);
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

/// An IPv6 real has no use for what silences ARP.
#[test]
fn ipv4_settings_are_touched_for_ipv4_vips_only() {
    let lab = Lab::new();
    let ipv4 = || lab.in_real("grep -r . /proc/sys/net/ipv4 2>/dev/null || true");
    let before = ipv4();
    lab.setup_exits(APPLY, 0);
    assert_eq!(ipv4(), before);
}

#[test]
fn the_last_vip_of_a_family_takes_along_what_only_that_family_needed() {
    let lab = Lab::new();
    let before = lab.snapshot();
    lab.setup_exits(APPLY, 0);
    // Programs are loaded afresh: their numbers differ.
    let without_programs =
        || -> Vec<_> { lab.snapshot().into_iter().filter(|line| !line.contains("direct-action not_in_hw")).collect() };
    let alone = without_programs();
    lab.setup_exits(&format!("apply --vip {VIP},{OTHER_VIP6}"), 0);
    assert_eq!(lab.in_real("cat /proc/sys/net/ipv4/conf/all/arp_ignore").trim(), "1");
    lab.setup_exits("check", 0);
    lab.setup_exits(&format!("remove --vip {VIP},{OTHER_VIP6}"), 0);
    lab.setup_exits("check", 0);
    assert_eq!(without_programs(), alone);
    assert!(lab.exchange6(in_ipv6(etherparse::ip_number::IPV6, &echo6(VIP6)), echo_reply6_from(VIP6)).is_some());
    lab.setup_exits(&format!("remove --vip {VIP6}"), 0);
    lab.assert_as(&before);
}

#[test]
fn what_was_there_before_survives() {
    let lab = Lab::new();
    lab.in_real(&format!("ip addr add {VIP6}/128 dev lo; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit"));
    let before = lab.snapshot();
    lab.setup_exits(APPLY, 0);
    lab.setup_exits("remove", 0);
    lab.assert_as(&before);
}

#[test]
fn drift_is_named_by_check_and_mended_by_apply() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    for (drift, named) in [
        (format!("ip addr del {VIP6}/128 dev lo"), "address fd00:19:10::1/128 on lo"),
        ("echo 1000 > /proc/sys/net/ipv6/icmp/ratelimit".to_owned(), "sysctl net.ipv6.icmp.ratelimit"),
        ("tc filter del dev eth0 ingress".to_owned(), "tc programs"),
        ("ip link set eth0 mtu 1400".to_owned(), "lb_clamp 1300 (IPv6)"),
        ("ip addr add fd00:18:1::3/64 dev eth0 nodad".to_owned(), "host 198.18.1.2 fd00:18:1::2 fd00:18:1::3"),
    ] {
        lab.in_real(&drift);
        let text = lab.setup_exits("check", 2);
        assert!(text.lines().any(|line| line.starts_with("differs") && line.contains(named)), "{drift}: {text}");
        lab.setup_exits("apply", 0);
        lab.setup_exits("check", 0);
    }
}

/// Link-local addresses are nobody's tunnel's end, and temporary ones change every day: neither is drift.
#[test]
fn addresses_that_come_and_go_are_no_drift() {
    let lab = Lab::new();
    lab.in_real("ip addr add fd00:18:2::3/64 dev eth0 nodad");
    lab.setup_exits(APPLY, 0);
    lab.in_real("ip addr add fe80::77/64 dev eth0 nodad");
    lab.in_real("echo 2 > /proc/sys/net/ipv6/conf/eth0/use_tempaddr");
    lab.in_real("ip addr change fd00:18:2::3/64 dev eth0 nodad mngtmpaddr valid_lft 3600 preferred_lft 1800");
    let addresses = lab.in_real(
        "for i in $(seq 50); do ip -6 addr show dev eth0 | grep -q temporary && break; sleep 0.1; done; \
         ip -6 addr show dev eth0",
    );
    assert!(addresses.contains("temporary"), "the test itself: {addresses}");
    lab.setup_exits("check", 0);
}

/// Every refusal names the object, and nothing is changed, not even the state directory.
#[test]
fn what_cannot_be_is_refused_and_nothing_changes() {
    let lab = Lab::new();
    lab.in_real("ip addr add fd00:19:77::1/64 dev lo nodad");
    let before = lab.snapshot();
    for (arguments, code, says) in [
        (format!("apply --vip {REAL6}"), 1, "fd00:18:1::2 is an address of eth0"),
        ("apply --vip fd00:19:77::1".to_owned(), 1, "on lo as fd00:19:77::1/64: a VIP is a /128"),
        ("apply --vip fe80::1".to_owned(), 2, "link-local"),
        ("apply --vip ff02::1".to_owned(), 2, "multicast"),
        ("apply --vip ::1".to_owned(), 2, "loopback"),
        ("apply --vip ::ffff:198.19.10.1".to_owned(), 2, "IPv4-mapped"),
        ("apply --vip fd00:19::1 --lb-source fd00::1/64".to_owned(), 2, "host bits zero"),
    ] {
        assert!(lab.setup_exits(&arguments, code).contains(says), "{arguments}: no {says:?}");
    }
    lab.assert_as(&before);
    lab.in_real("echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
    assert!(lab.setup_exits(APPLY, 1).contains("IPv6 is disabled on lo"));
    assert!(!lab.state_dir().exists());
}

#[test]
fn forwarding_is_warned_about() {
    let lab = Lab::new();
    lab.in_real("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding");
    assert!(lab.setup_exits(APPLY, 0).contains("warning   net.ipv6.conf.all.forwarding"));
}

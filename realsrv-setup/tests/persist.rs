//! `apply --persist`: the files below another root than `/`. Needs root, and systemd-analyze.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod lab;

use std::{fs, process::Command};

use lab::Lab;

const UNIT: &str = "etc/systemd/system/realsrv-setup.service";
const ENABLED: &str = "etc/systemd/system/multi-user.target.wants/realsrv-setup.service";
const SYSCTLS: &str = "etc/sysctl.d/90-realsrv-setup.conf";

fn apply(lab: &Lab) -> String {
    format!("apply --decap ebpf --vip 198.19.10.1,fd00:19:10::1 --persist --root {}", lab.root().display())
}

fn read(lab: &Lab, path: &str) -> String {
    fs::read_to_string(lab.root().join(path)).unwrap()
}

#[test]
fn files_come_with_apply_and_go_with_remove() {
    let lab = Lab::new();
    let before = lab.snapshot();
    assert_eq!(lab.setup_json(&apply(&lab))["changed"], true);
    assert_eq!(lab.setup_json(&apply(&lab))["changed"], false);
    // What is not named stays as it was.
    assert_eq!(lab.setup_json("apply")["changed"], false);
    lab.setup_exits("check", 0);
    assert!(read(&lab, SYSCTLS).lines().any(|line| line == "net/ipv4/conf/all/arp_ignore = 1"));
    assert_eq!(read(&lab, ENABLED), read(&lab, UNIT));
    lab.setup_exits("remove", 0);
    lab.assert_as(&before);
}

#[test]
fn unit_is_what_systemd_takes() {
    let lab = Lab::new();
    lab.setup_exits(&apply(&lab), 0);
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .arg(lab.root().join(UNIT))
        .output()
        .expect("systemd-analyze (Debian: systemd)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
}

/// A namespace that knows nothing, as after boot: the unit's own command makes a real of it.
#[test]
fn command_of_the_unit_makes_an_unconfigured_host_a_real() {
    let lab = Lab::new();
    lab.setup_exits(&format!("{} --lb-source 198.18.1.1,fd00:18:1::1", apply(&lab)), 0);
    let unit = read(&lab, UNIT);
    let start = unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap();
    let (program, arguments) = start.split_once(' ').unwrap();
    assert_eq!(program, env!("CARGO_BIN_EXE_realsrv-setup"));
    let intended = lab.snapshot();
    // What a reboot takes away; the state directory and the files stay.
    lab.in_real(
        "ip addr del 198.19.10.1/32 dev lo; ip addr del fd00:19:10::1/128 dev lo; tc qdisc del dev eth0 clsact",
    );
    lab.in_real("cd /proc/sys/net/ipv4; echo 0 > conf/all/arp_ignore; echo 0 > conf/all/arp_announce");
    lab.in_real("cd /proc/sys/net; echo 1000 > ipv4/icmp_ratelimit; echo 1000 > ipv6/icmp/ratelimit");
    let report = lab.setup_json(arguments);
    assert_eq!((report["changed"].as_bool(), report["verified"].as_bool()), (Some(true), Some(true)), "{report}");
    // The programs are loaded afresh; otherwise all is the same.
    let same = |snapshot: &std::collections::BTreeSet<String>| {
        snapshot.iter().filter(|line| !line.contains("bpf chain")).cloned().collect::<Vec<_>>()
    };
    assert_eq!(same(&lab.snapshot()), same(&intended));
    lab.setup_exits("check", 0);
}

#[test]
fn vip_that_is_removed_does_not_come_back_at_boot() {
    let lab = Lab::new();
    let before = lab.snapshot();
    lab.setup_exits(&apply(&lab), 0);
    assert!(read(&lab, UNIT).contains("fd00:19:10::1"));
    lab.setup_exits("remove --vip fd00:19:10::1", 0);
    assert!(!read(&lab, UNIT).contains("fd00:19:10::1"));
    assert!(!read(&lab, SYSCTLS).contains("net/ipv6"));
    lab.setup_exits("check", 0);
    lab.setup_exits("remove --vip 198.19.10.1", 0);
    lab.assert_as(&before);
}

#[test]
fn drift_of_each_file_is_named_by_check_and_mended_by_apply() {
    let lab = Lab::new();
    let before = lab.snapshot();
    lab.setup_exits(&apply(&lab), 0);
    for path in [UNIT, ENABLED, SYSCTLS] {
        let file = lab.root().join(path);
        fs::remove_file(&file).unwrap();
        assert!(lab.setup_exits("check", 2).contains(&format!("differs   file {}: absent", file.display())));
        lab.setup_exits("apply", 0);
        fs::remove_file(&file).unwrap();
        fs::write(&file, "# mine\n").unwrap();
        assert!(lab.setup_exits("check", 2).contains(&format!("differs   file {}: differs", file.display())));
        lab.setup_exits("apply", 0);
        lab.setup_exits("check", 0);
    }
    lab.setup_exits("remove", 0);
    lab.assert_as(&before);
}

#[test]
fn file_of_somebody_else_comes_back_and_one_changed_since_stays() {
    let lab = Lab::new();
    let file = lab.root().join(SYSCTLS);
    fs::write(&file, "net/ipv4/ip_forward = 0\n").unwrap();
    let before = lab.snapshot();
    lab.setup_exits(&apply(&lab), 0);
    lab.setup_exits("remove", 0);
    lab.assert_as(&before);
    lab.setup_exits(&apply(&lab), 0);
    fs::write(&file, "# mine\n").unwrap();
    assert!(lab.setup_exits("remove", 0).contains(&format!("left      file {}", file.display())));
    assert_eq!(read(&lab, SYSCTLS), "# mine\n");
}

#[test]
fn root_without_systemd_is_named_and_everything_rolled_back() {
    let lab = Lab::new();
    fs::remove_dir_all(lab.root().join("etc/systemd")).unwrap();
    let before = lab.snapshot();
    let text = lab.setup_exits(&apply(&lab), 1);
    assert!(text.contains(UNIT.rsplit_once('/').unwrap().0) && text.contains("as it was before"), "{text}");
    lab.assert_as(&before);
}

#[test]
fn persistence_is_taken_away_again_and_the_rest_stays() {
    let lab = Lab::new();
    lab.setup_exits("apply --decap ebpf --vip 198.19.10.1,fd00:19:10::1", 0);
    let applied = lab.snapshot();
    lab.setup_exits(&apply(&lab), 0);
    assert_eq!(lab.setup_json("apply --no-persist")["changed"], true);
    lab.assert_as(&applied);
    assert_eq!(lab.setup_json("apply")["changed"], false);
    assert!(lab.setup_exits("apply --persist --no-persist", 2).contains("cannot be used with"));
    lab.setup_exits("check", 0);
}

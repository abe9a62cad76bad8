//! The Debian package of lbd under a real systemd, with clients that never stop: installed, started, reloaded, killed,
//! upgraded, stopped and purged. `suite_package` builds the two revisions. Needs root, and mmdebstrap once.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod machine;

use machine::Machine;
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tests::lab::{Lab, LabConfig, LoadConfig, VIP, wait_for};

const TIMING: &str = "interval = \"500ms\"\ntimeout = \"500ms\"\nfall = 2";
const SOON: Duration = Duration::from_mins(1);

/// What a package may leave behind.
const FILES: &str = "find /usr /etc /var/lib -xdev -not -path '/var/lib/dpkg/*' -not -path '/var/lib/systemd/*' | sort";

/// The package of a revision.
fn package(revision: u32) -> PathBuf {
    let name = format!("lbd_{}-{revision}_amd64.deb", env!("CARGO_PKG_VERSION"));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/package-test").join(name);
    assert!(path.is_file(), "{} is missing: ./run test package builds it", path.display());
    path
}

fn show(machine: &Machine, property: &str) -> String {
    machine.succeeds(&format!("systemctl show --value --property={property} lbd")).trim().to_owned()
}

/// Waits until systemd has started lbd so many times again at least, and it is in service.
fn wait_for_restart(machine: &Machine, number: usize) {
    let again = || {
        let is_back = show(machine, "NRestarts").parse::<usize>().unwrap() >= number;
        Ok((is_back && show(machine, "ActiveState") == "active").then_some(()))
    };
    wait_for("systemd to start lbd again", SOON, again).unwrap();
}

#[test]
fn package_serves_under_systemd_with_all_its_hardening_and_no_request_fails() {
    let lab = Lab::up(&LabConfig { name: format!("u{}", std::process::id()), reals: 2 }).unwrap();
    lab.provision().unwrap();
    let mut machine = Machine::new("unit");
    for revision in 1..=2 {
        fs::copy(package(revision), machine.path(&format!("root/{revision}.deb"))).unwrap();
    }
    let file = machine.path("etc/lbd/lbd.toml");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let config = |second: u16| fs::write(&file, lab.lbd_config_of(TIMING, &[(1, 100), (2, second)])).unwrap();
    config(100);
    fs::create_dir_all(machine.path("etc/systemd/system/lbd.service.d")).unwrap();
    fs::write(machine.path("etc/systemd/system/lbd.service.d/test.conf"), "[Service]\nWatchdogSec=10s\n").unwrap();
    machine.boot(&lab);
    let before = machine.succeeds(FILES);
    machine.succeeds("dpkg --install /root/1.deb");
    assert_eq!(machine.run("systemctl is-active lbd").stdout, b"inactive\n", "there is no configuration by installing");
    for page in ["lbd", "lbd-run", "lbctl", "lbctl-real", "hc-prober"] {
        assert!(machine.succeeds(&format!("zcat /usr/share/man/man8/{page}.8.gz")).contains(".SH SYNOPSIS"), "{page}");
    }
    let said =
        machine.succeeds("systemd-analyze verify --man=no --recursive-errors=no /usr/lib/systemd/system/lbd.service");
    assert_eq!(said, "");

    // When this returns, packets are served.
    machine.succeeds("systemctl start lbd");
    lab.client().http_get(&format!("http://{VIP}/")).unwrap();
    assert!(machine.succeeds("lbctl status").contains("running for"));
    assert_eq!(show(&machine, "StatusText"), "running: VIPs: 1, reals up: 2 of 2");
    let status = machine.succeeds("cat /proc/$(systemctl show --value --property=MainPID lbd)/status");
    for line in ["CapEff:\t000000c000003000", "CapBnd:\t000000c000003000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.lines().any(|said| said == line), "{line}: {status}");
    }

    let every = Duration::from_millis(20);
    let load = lab.client().load(VIP, LoadConfig { workers: 2, interval: every, timeout: Duration::from_secs(5) });
    config(300);
    machine.succeeds("systemctl reload lbd");
    let lists = machine.succeeds("lbctl real list");
    assert!(lists.contains("300"), "{lists}");
    fs::write(&file, "colour = \"red\"\n").unwrap();
    assert!(!machine.run("systemctl reload lbd").status.success());
    assert!(machine.journal().contains("colour"), "{}", machine.journal());
    assert_eq!(show(&machine, "ActiveState"), "active");
    config(300);

    machine.succeeds("systemctl kill --kill-whom=main --signal=KILL lbd");
    wait_for_restart(&machine, 1);
    assert!(machine.journal().contains("code=killed, status=9/KILL"), "{}", machine.journal());
    // Nobody has stopped it by systemctl.
    machine.succeeds("kill $(systemctl show --value --property=MainPID lbd)");
    wait_for_restart(&machine, 2);
    // One that hangs: the watchdog ends it.
    machine.succeeds("systemctl kill --kill-whom=main --signal=STOP lbd");
    wait_for_restart(&machine, 3);
    assert!(machine.journal().contains("Watchdog timeout"), "{}", machine.journal());
    // One that refuses the configuration takes over from nobody, and is installed all the same.
    let pid = show(&machine, "MainPID");
    fs::write(&file, "colour = \"red\"\n").unwrap();
    let said = machine.succeeds("dpkg --install /root/2.deb");
    assert!(said.contains("colour") && said.contains("the one before runs on"), "{said}");
    assert_eq!(show(&machine, "MainPID"), pid);
    config(300);
    machine.succeeds("dpkg --install /root/2.deb");
    assert!(show(&machine, "ActiveState") == "active" && show(&machine, "MainPID") != pid);

    // The data plane outlives the daemon, until it is told.
    machine.succeeds("systemctl stop lbd");
    lab.client().http_get(&format!("http://{VIP}/")).unwrap();
    let requests = load.stop().unwrap();
    let failed: Vec<_> = requests.iter().filter(|request| request.answer.is_err()).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), requests.len());
    println!("{} requests, none failed", requests.len());
    let said = machine.succeeds("dpkg --purge lbd");
    assert!(said.contains("detached; interfaces: 1\n"), "{said}");
    assert!(!lab.lb().run("ip -d link show eth0").unwrap().contains("prog/xdp"));
    let journal = machine.journal();
    assert!(!journal.contains("not permitted") && !journal.contains("Permission denied"), "{journal}");
    assert_eq!(machine.succeeds(FILES), before);
}

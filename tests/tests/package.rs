//! The Debian package of `realsrv-setup` on a clean Debian 12: installed, used, upgraded, removed, purged. `suite_package`
//! builds the two revisions. Needs root, and mmdebstrap once.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

#[path = "../../realsrv-setup/tests/lab/mod.rs"]
mod lab;
#[allow(dead_code, reason = "nothing boots here")]
mod machine;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use lab::{CLIENT, Lab, VIP, VIP6, command, echo, echo_reply_from, ipip};
use machine::debian;
use socket2::Protocol;

const STATE: &str = "var/lib/realsrv-setup";
const UNIT: &str = "usr/lib/systemd/system/realsrv-setup.service";

/// A Debian of its own in the network namespace of the lab's real.
struct Host {
    lab: Lab,
    root: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let host = Self { lab: Lab::new(), root: tempfile::tempdir().unwrap() };
        succeeds(Command::new("tar").arg("-xf").arg(debian()).arg("-C").arg(host.root.path()));
        for revision in 1..=2 {
            let package = package(revision);
            fs::copy(&package, host.path("root").join(package.file_name().unwrap())).unwrap();
        }
        host
    }

    fn path(&self, below: &str) -> PathBuf {
        self.root.path().join(below)
    }

    /// Runs a script on this host, in a mount namespace that ends with it.
    fn run(&self, script: &str) -> Output {
        let root = self.root.path().display();
        let mounts = format!("mount -t proc proc {root}/proc && mount -t sysfs sysfs {root}/sys");
        let enter = format!("{mounts} && exec chroot {root} /bin/sh -ec \"$1\"");
        let mut shell = command(&self.lab.real, "unshare");
        shell.args(["--mount", "sh", "-c", &enter, "sh", script]);
        shell.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("DEBIAN_FRONTEND", "noninteractive");
        shell.output().unwrap()
    }

    #[track_caller]
    fn succeeds(&self, script: &str) -> String {
        let output = self.run(script);
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{script}: {text}");
        text
    }

    #[track_caller]
    fn install(&self, revision: u32) {
        self.succeeds(&format!("dpkg --install /root/{}", package(revision).file_name().unwrap().display()));
    }

    #[track_caller]
    fn apply(&self) {
        let said = self.succeeds(&format!("realsrv-setup apply --decap ebpf --vip {VIP},{VIP6} --persist"));
        assert!(said.contains("every VIP answers through the tunnel"), "{said}");
    }

    fn answers(&self) -> bool {
        self.lab.exchange(ipip(CLIENT, &echo(VIP)), Protocol::ICMPV4, echo_reply_from(VIP)).is_some()
    }

    /// Every file, with its contents' hash; not what dpkg notes of its own doings.
    fn files(&self) -> BTreeSet<String> {
        let text = self.succeeds(
            "find / -xdev -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' -type f -exec md5sum {} + ; \
             find / -xdev -not -path '/var/lib/dpkg/*' -not -type f -printf '%p %y %l\\n'",
        );
        text.lines().map(str::to_owned).collect()
    }
}

/// The package of a revision, newest version.
fn package(revision: u32) -> PathBuf {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/package-test");
    let name = format!("realsrv-setup_{}-{revision}_amd64.deb", env!("CARGO_PKG_VERSION"));
    let path = directory.join(name);
    assert!(path.is_file(), "{} is missing: ./run test package builds it", path.display());
    path
}

#[track_caller]
fn succeeds(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[track_caller]
fn assert_same(before: &BTreeSet<String>, now: &BTreeSet<String>) {
    let [gone, new] = [before - now, now - before];
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
}

#[test]
fn package_brings_program_manual_completions_and_a_unit_that_systemd_takes() {
    let host = Host::new();
    host.install(1);
    assert!(host.succeeds("realsrv-setup --version").contains(env!("CARGO_PKG_VERSION")));
    for page in ["", "-plan", "-apply", "-check", "-remove"] {
        let page = host.succeeds(&format!("zcat /usr/share/man/man8/realsrv-setup{page}.8.gz"));
        assert!(
            page.contains(".SH SYNOPSIS") && page.contains("\\-\\-vip") || page.contains(".SH SUBCOMMANDS"),
            "{page}"
        );
    }
    let offered = "COMP_WORDS=(realsrv-setup apply --lb-) COMP_CWORD=2; _realsrv__setup realsrv-setup --lb- apply; \
                   echo ${COMPREPLY[*]}";
    let bash = format!(". /usr/share/bash-completion/completions/realsrv-setup; {offered}");
    assert_eq!(host.succeeds(&format!("bash -ec '{bash}'")).trim(), "--lb-source");
    for shell in ["zsh/vendor-completions/_realsrv-setup", "fish/vendor_completions.d/realsrv-setup.fish"] {
        host.succeeds(&format!("grep -q lb-source /usr/share/{shell}"));
    }
    let said = host.succeeds(&format!("systemd-analyze verify --man=no --recursive-errors=no /{UNIT}"));
    assert_eq!(said, "");
    // Nothing is applied by installing.
    assert!(!host.path(STATE).exists());
}

#[test]
fn upgrade_leaves_the_host_as_it_is() {
    let host = Host::new();
    host.install(1);
    host.apply();
    let applied = host.lab.snapshot();
    host.install(2);
    assert!(host.succeeds("dpkg-query -W realsrv-setup").contains("-2"));
    host.lab.assert_as(&applied);
    assert!(host.answers());
    host.succeeds("realsrv-setup check --verify");
}

#[test]
fn remove_and_purge_undo_the_host() {
    let host = Host::new();
    let (before, files) = (host.lab.snapshot(), host.files());
    for how in ["remove", "purge"] {
        host.install(1);
        host.apply();
        assert!(host.answers());
        let said = host.succeeds(&format!("dpkg --{how} realsrv-setup"));
        assert!(said.contains("restored  address 198.19.10.1/32 on lo"), "{said}");
        host.lab.assert_as(&before);
    }
    // Removed first, purged later: only the directory of the journal was left.
    host.install(1);
    host.apply();
    host.succeeds("dpkg --remove realsrv-setup");
    assert!(!host.path(STATE).join("journal.json").exists());
    host.succeeds("dpkg --purge realsrv-setup");
    assert_same(&files, &host.files());
}

#[test]
fn package_stays_while_the_host_cannot_be_undone() {
    let host = Host::new();
    host.install(1);
    host.apply();
    let journal = host.path(STATE).join("journal.json");
    let noted = fs::read(&journal).unwrap();
    fs::write(&journal, "{").unwrap();
    assert!(!host.run("dpkg --purge realsrv-setup").status.success());
    assert!(host.succeeds("realsrv-setup --version").contains(env!("CARGO_PKG_VERSION")));
    assert!(host.answers());
    fs::write(&journal, noted).unwrap();
    host.succeeds("dpkg --purge realsrv-setup");
}

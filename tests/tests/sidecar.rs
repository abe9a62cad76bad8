//! `hc-prober run` beside a load balancer that is not ours: what it prints, and the command that it runs. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

use std::{
    fs::{self, File},
    path::PathBuf,
    time::Duration,
};

use nix::sys::signal::Signal;
use serde_json::Value;
use tests::lab::{Lab, LabConfig, Running, VIP, binary, wait_for};

const SOON: Duration = Duration::from_secs(20);

struct Sidecar {
    lab: Lab,
    file: PathBuf,
    process: Running,
}

impl Sidecar {
    /// Three reals; of the first two each is checked in two ways. The command writes what it is told into a file.
    fn up(test: &str) -> Self {
        let lab = Lab::up(&LabConfig { name: format!("s{}-{test}", std::process::id()), reals: 3 }).unwrap();
        lab.provision().unwrap();
        let file = lab.lb().dir().join("hc-prober.toml");
        fs::write(&file, configuration(&lab, 2)).unwrap();
        let mut run = lab.lb().command(binary("hc-prober").unwrap());
        run.args(["run", "--config"]).arg(&file);
        let [output, log] = ["changes", "log"].map(|name| File::create(lab.lb().dir().join(name)).unwrap());
        let process = Running::start(run.stdout(output).stderr(log)).unwrap();
        Self { lab, file, process }
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.lab.lb().dir().join(name)).unwrap_or_default()
    }

    /// The last line about a real, once it is so.
    fn wait_for(&self, real: usize, state: &str, reason: &str) -> Value {
        let address = self.lab.real(real).unwrap().addr().to_string();
        let last = || {
            let lines = self.text("changes");
            let mut changes = lines.lines().rev().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let last = changes.find(|change| change["real"] == address.as_str());
            Ok(last.filter(|change| change["state"] == state && change["reason"] == reason))
        };
        wait_for(&format!("real{real} to be {state} {reason}"), SOON, last).unwrap()
    }

    /// The command has been run with these words, and for nothing since.
    fn told(&self, words: &str) {
        wait_for(words, SOON, || Ok((self.text("told").lines().last() == Some(words)).then_some(()))).unwrap();
    }
}

impl Drop for Sidecar {
    /// What it said goes with the lab.
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("hc-prober said:\n{}{}", self.text("changes"), self.text("log"));
        }
    }
}

/// The command writes three of its words to a file; the shell's text is fixed, what changes are its arguments.
fn configuration(lab: &Lab, reals: usize) -> String {
    let told = lab.lb().dir().join("told");
    let command =
        ["sh", "-c", r#"echo "$2 $3 $4" >>"$1""#, "sh", &told.to_string_lossy(), "{server}", "{state}", "{weight}"];
    let real =
        |number| format!("[[vip.real]]\naddress = \"{}\"\nweight = {number}\n", lab.real(number).unwrap().addr());
    format!(
        "[on_change]\ncommand = {command:?}\n[defaults]\ninterval = \"300ms\"\ntimeout = \"300ms\"\nfall = 2\n\
         [[vip]]\naddress = \"{VIP}\"\nprotocol = \"tcp\"\nport = 80\ncheck = [{{ kind = \"tcp\" }}, {{ kind = \"icmp\" }}]\n{}",
        (1..=reals).map(real).collect::<String>()
    )
}

#[test]
fn each_change_is_a_line_and_a_command() {
    let mut sidecar = Sidecar::up("lines");
    for real in [1, 2] {
        let up = sidecar.wait_for(real, "UP", "L4OK");
        assert_eq!((up["before"].as_str(), up["weight"].as_u64()), (Some("INIT"), Some(real as u64)), "{up}");
    }
    let real1 = sidecar.lab.real(1).unwrap().clone();
    real1.nginx().stop().unwrap();
    let down = sidecar.wait_for(1, "DOWN", "PORT_CLOSED");
    assert_eq!((down["severity"].as_str(), down["weight"].as_u64()), (Some("soft"), Some(0)), "{down}");
    sidecar.told("198.18.101.10:80 DOWN 0");
    real1.nginx().start().unwrap();
    sidecar.wait_for(1, "UP", "L4OK");
    sidecar.told("198.18.101.10:80 UP 1");
    // Of a host that is gone the checks end one after the other: soft is never what is said last.
    real1.run("ip link set eth0 down").unwrap();
    let gone = sidecar.wait_for(1, "DOWN", "TIMEOUT");
    assert_eq!(gone["severity"].as_str(), Some("hard"), "{gone}");

    // A bad file changes nothing, a good one only what it says.
    let before = sidecar.text("changes");
    fs::write(&sidecar.file, "vip = 3").unwrap();
    sidecar.process.signal(Signal::SIGHUP).unwrap();
    wait_for("the reload to be refused", SOON, || Ok(sidecar.text("log").contains("reload refused").then_some(())))
        .unwrap();
    fs::write(&sidecar.file, configuration(&sidecar.lab, 3)).unwrap();
    sidecar.process.signal(Signal::SIGHUP).unwrap();
    sidecar.wait_for(3, "UP", "L4OK");
    sidecar.told("198.18.103.10:80 UP 3");
    let after = sidecar.text("changes");
    assert_eq!(after.strip_prefix(&before).unwrap().lines().count(), 1, "only the new real changed: {after}");

    sidecar.process.signal(Signal::SIGTERM).unwrap();
    assert!(sidecar.process.wait(SOON).unwrap().success());
}

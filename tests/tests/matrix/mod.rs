//! Starting states of a host by what is done to it: a table with a cell for each, all printed.

#![allow(dead_code, reason = "each test binary uses a part of it")]

mod starts;

use std::{
    collections::BTreeSet,
    env, fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use serde_json::Value;
pub(crate) use starts::{Needs, STARTS, Start};

use crate::{
    lab::{CLIENT, CLIENT6, Lab, VIP, VIP6},
    traffic::{self, Traffic},
};

/// What is done, in this order.
/// `breaks`: one thing after the other is broken, named by `check`, and mended by `apply`.
const ACTS: [&str; 9] = ["apply", "probes", "traffic", "again", "check", "breaks", "traffic", "remove", "as before"];

/// What one may do to what `apply` did: the item that `check` must name, and the script. `DEV` is the device.
const BREAKS: [(&str, &str); 17] = [
    ("address 198.19.10.1/32 on lo", "ip addr del 198.19.10.1/32 dev lo"),
    ("address fd00:19:10::1/128 on lo", "ip addr del fd00:19:10::1/128 dev lo"),
    ("sysctl net.ipv4.conf.all.arp_ignore", "echo 0 > /proc/sys/net/ipv4/conf/all/arp_ignore"),
    ("sysctl net.ipv4.conf.all.arp_announce", "echo 1 > /proc/sys/net/ipv4/conf/all/arp_announce"),
    ("sysctl net.ipv4.icmp_ratelimit", "echo 500 > /proc/sys/net/ipv4/icmp_ratelimit"),
    ("sysctl net.ipv6.icmp.ratelimit", "echo 500 > /proc/sys/net/ipv6/icmp/ratelimit"),
    ("qdisc clsact on DEV", "tc qdisc del dev DEV clsact"),
    ("tc programs", "tc filter del dev DEV ingress pref 19522"),
    ("tc programs", "tc filter del dev DEV egress pref 19522"),
    ("link tunl0", "ip link set tunl0 down"),
    ("link ip6tnl0", "ip link set ip6tnl0 down"),
    ("sysctl net.ipv4.conf.tunl0.rp_filter", "echo 1 > /proc/sys/net/ipv4/conf/tunl0/rp_filter"),
    ("address 127.0.0.42/32 on tunl0", "ip addr del 127.0.0.42/32 dev tunl0"),
    ("module ipip", "modprobe -r ipip"),
    ("module ip6_tunnel", "modprobe -r ip6_tunnel"),
    ("file ROOT/etc/sysctl.d/90-realsrv-setup.conf", "rm ROOT/etc/sysctl.d/90-realsrv-setup.conf"),
    (
        "file ROOT/etc/systemd/system/realsrv-setup.service",
        "echo '# mine' > ROOT/etc/systemd/system/realsrv-setup.service",
    ),
];

/// One line of the table.
struct Row {
    start: &'static str,
    decap: &'static str,
    cells: Vec<String>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<29} {:<5}", self.start, self.decap)?;
        self.cells.iter().try_for_each(|cell| write!(f, " {cell:<9}"))
    }
}

/// Goes through the starts that `wanted` picks, each with the decapsulators of `decaps`. In a long run all starts
/// that the kernel can be in (the most in one of our own), both, and every break; else `decaps[0]`, and two breaks in turn.
pub(crate) fn run(own_kernel: bool, wanted: impl Fn(&Start) -> bool, decaps: &[&'static str]) {
    let long = env::var_os("LBD_TEST_LONG").is_some();
    let mut rows = Vec::new();
    let starts = STARTS.iter().filter(|start| (own_kernel || start.needs == Needs::Nothing) && (long || wanted(start)));
    for (number, start) in starts.enumerate() {
        let decaps = start.decap.map_or(decaps.to_vec(), |only| vec![only]);
        for decap in decaps.into_iter().take(if long { usize::MAX } else { 1 }) {
            rows.push(row(start, own_kernel, decap, |applicable| {
                if long {
                    (0..applicable).collect()
                } else {
                    [number, number + applicable / 2].map(|n| n % applicable).into()
                }
            }));
        }
    }
    println!("\n{:<29} {:<5} {}", "start", "decap", ACTS.map(|act| format!("{act:<9}")).join(" "));
    for row in &rows {
        println!("{row}");
    }
    println!("{} cells\n", rows.len() * ACTS.len());
    assert!(rows.iter().all(|row| row.cells.iter().all(|cell| cell.starts_with("ok"))), "not all cells are ok");
}

fn row(start: &Start, own_kernel: bool, decap: &'static str, choose: impl Fn(usize) -> BTreeSet<usize>) -> Row {
    let mut row = Row { start: start.name, decap, cells: Vec::new() };
    let lab = Lab::new();
    let _held = start.prepare(&lab, own_kernel);
    let before = snapshot(&lab);
    let _traffic = Traffic::start(&lab);
    let mut case = Case { lab: &lab, start, decap, before, applied: Value::Null, breaks: Vec::new() };
    for act in ACTS {
        let done = row.cells.iter().all(|cell| cell.starts_with("ok"));
        let cell = if done { case.cell(act, &choose) } else { "-".to_owned() };
        row.cells.push(cell);
    }
    row
}

/// A start on which is acted.
struct Case<'a> {
    lab: &'a Lab,
    start: &'a Start,
    decap: &'static str,
    before: BTreeSet<String>,
    applied: Value,
    breaks: Vec<(String, String)>,
}

impl Case<'_> {
    /// What to write into the cell of `act`. The panic of what failed has been printed.
    fn cell(&mut self, act: &str, choose: &impl Fn(usize) -> BTreeSet<usize>) -> String {
        println!("{} {}: {act}", self.start.name, self.decap);
        let acted = catch_unwind(AssertUnwindSafe(|| match act {
            "apply" => self.apply(),
            "probes" => traffic::probe(self.lab),
            "traffic" => traffic::flow(self.lab),
            "again" => self.unchanged("apply"),
            "check" => self.unchanged("check"),
            "breaks" => {
                self.breaks = self.choose(choose);
                self.breaks.iter().for_each(|broken| self.name_and_mend(broken));
            }
            "remove" => self.remove(),
            _ => self.as_before(),
        }));
        match acted {
            Err(_) => "FAILED".to_owned(),
            Ok(()) if act == "breaks" => format!("ok {}", self.breaks.len()),
            Ok(()) => "ok".to_owned(),
        }
    }

    fn apply(&mut self) {
        let root = self.lab.root();
        let arguments = format!(
            "apply --decap {} --vip {VIP},{VIP6} --lb-source {CLIENT},{CLIENT6} --persist --root {}",
            self.decap,
            root.display()
        );
        self.applied = self.lab.setup_json(&arguments);
        assert_eq!((&self.applied["changed"], &self.applied["verified"]), (&Value::Bool(true), &Value::Bool(true)));
        let by_program = self.applied["items"].to_string().contains("lb_decap");
        assert_eq!(by_program, self.start.by_program(self.decap), "who decapsulates: {}", self.applied);
    }

    fn unchanged(&self, command: &str) {
        let applied = snapshot(self.lab);
        let report = self.lab.setup_json(command);
        let key = if command == "apply" { "changed" } else { "differs" };
        assert_eq!(report[key], false, "{report}");
        assert_as(self.lab, &applied);
    }

    /// Of what the first `apply` did: what was so before, and was then undone by somebody, would not come back.
    fn choose(&self, choose: &impl Fn(usize) -> BTreeSet<usize>) -> Vec<(String, String)> {
        let items = self.applied["items"].as_array().unwrap();
        let changed: BTreeSet<_> =
            items.iter().filter(|item| item["state"] == "changed").map(|item| item["item"].as_str().unwrap()).collect();
        let root = self.lab.root().display().to_string();
        let here = |text: &str| text.replace("DEV", self.start.device).replace("ROOT", &root);
        let all = BREAKS.map(|(item, script)| (here(item), here(script)));
        let possible = |(item, script): &(String, String)| {
            let ingress_is_empty =
                !self.applied["items"].to_string().contains("lb_guard") && !self.start.by_program(self.decap);
            changed.contains(item.as_str()) && !(ingress_is_empty && script.contains("ingress"))
        };
        let applicable: Vec<_> = all.into_iter().filter(possible).collect();
        choose(applicable.len()).into_iter().map(|n| applicable[n].clone()).collect()
    }

    fn name_and_mend(&self, (item, script): &(String, String)) {
        self.lab.in_real(script);
        let text = self.lab.setup_exits("check", 2);
        assert!(text.contains(&format!("differs   {item}:")), "{script}: {item} is not named: {text}");
        assert_eq!(self.lab.setup_json("apply")["changed"], true, "{script}");
        self.lab.setup_exits("check", 0);
    }

    fn remove(&self) {
        let text = self.lab.setup_exits("remove", 0);
        assert!(!text.contains("left "), "{text}");
    }

    fn as_before(&self) {
        assert_as(self.lab, &self.before);
        assert!(!self.lab.state_dir().join("journal.json").exists());
    }
}

/// Beside what the lab looks at: neighbour settings, packet filters and the modules of tunnels.
fn snapshot(lab: &Lab) -> BTreeSet<String> {
    let more = lab.in_real(
        "ip ntable; command -v nft >/dev/null && nft list ruleset; \
         grep -E '^(ipip|ip6_tunnel) ' /proc/modules || true",
    );
    // How many use a module, and counters of the moment.
    let lasting = |line: &&str| !line.contains("refcnt") && !line.contains("last_flush");
    let more = more.lines().filter(lasting).map(str::to_owned);
    lab.snapshot().into_iter().chain(more).collect()
}

#[track_caller]
fn assert_as(lab: &Lab, before: &BTreeSet<String>) {
    let now = snapshot(lab);
    let [gone, new] = [before - &now, &now - before];
    assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
}

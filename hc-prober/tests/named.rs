//! Named probes against the servers they are for, and targets behind the real. Needs root, `dnsmasq` and `chronyd`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, a panic is the message"
)]

mod common;

use std::{
    fs,
    net::TcpListener,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use common::{LB, LB_6, Net, PAIRS, Pair, VIP, VIP_6, inside};

/// Longer than a server takes to start on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on the real; ended on drop.
struct Server(Child);

impl Server {
    /// Returns when it has bound both VIPs.
    fn start(net: &Net, port: u16, command: &[&str]) -> Self {
        let mut child = Command::new("nsenter");
        child.arg(format!("--net=/run/netns/{}", net.real)).args(command).stdout(Stdio::null());
        let server = Self(child.spawn().unwrap());
        let filter = format!("sport = :{port}");
        let end = Instant::now() + PATIENCE;
        while Net::run(&net.real, &["ss", "-Hlun", &filter]).lines().count() < 2 {
            assert!(Instant::now() < end, "{command:?} does not serve");
            std::thread::sleep(Duration::from_millis(10));
        }
        server
    }

    /// Knows `example.org` and, without anybody to ask, refuses what it does not know.
    fn dns(net: &Net) -> Self {
        let listen = [format!("--listen-address={VIP}"), format!("--listen-address={VIP_6}")];
        let fixed = ["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--bind-interfaces"];
        let more = ["--pid-file=", "--user=root", "--local=/local.test/", "--host-record=example.org,198.19.7.1"];
        let all: Vec<_> =
            ["dnsmasq"].into_iter().chain(fixed).chain(more).chain(listen.iter().map(String::as_str)).collect();
        Self::start(net, 53, &all)
    }

    /// Never asks anybody, and never touches this host's clock.
    fn ntp(net: &Net, local: &str) -> Self {
        let [config, pid] =
            ["conf", "pid"].map(|kind| std::env::temp_dir().join(format!("{}-chrony.{kind}", net.real)));
        let text =
            format!("bindaddress {VIP}\nbindaddress {VIP_6}\nallow\ncmdport 0\npidfile {}\n{local}\n", pid.display());
        fs::write(&config, text).unwrap();
        let server = Self::start(net, 123, &["chronyd", "-d", "-x", "-u", "root", "-f", config.to_str().unwrap()]);
        for file in [config, pid] {
            fs::remove_file(file).unwrap();
        }
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Exit code and first line of a check.
fn check(net: &Net, pair: Pair, arguments: &str) -> (Option<i32>, String) {
    let output = net.command(pair, arguments).output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[track_caller]
fn assert_check(net: &Net, arguments: &str, code: i32, parts: &[&str]) {
    for pair in PAIRS {
        let (found, line) = check(net, pair, arguments);
        assert_eq!(found, Some(code), "{pair:?} {arguments}: {line}");
        assert!(parts.iter().all(|part| line.contains(part)), "{pair:?} {arguments}: {line}");
    }
}

#[test]
fn dns_server_is_up_while_it_answers_the_question() {
    let net = Net::new();
    let dns = |name| format!("--udp 53 --probe dns --timeout 500ms --query {name}");
    assert_check(&net, &dns("example.org"), 2, &["DOWN PORT_CLOSED udp", "dns example.org A"]);
    let server = Server::dns(&net);
    assert_check(&net, &dns("example.org"), 0, &["UP L4OK udp", "dns example.org A"]);
    assert_check(&net, &dns("nosuch.local.test"), 0, &["UP L4OK"]);
    assert_check(&net, &dns("example.net"), 2, &["DOWN MISMATCH", "DNS REFUSED"]);
    drop(server);
    assert_check(&net, &dns("example.org"), 2, &["DOWN PORT_CLOSED"]);
}

#[test]
fn ntp_server_is_up_while_it_has_the_time() {
    let net = Net::new();
    let server = Server::ntp(&net, "local stratum 8");
    assert_check(&net, "--udp 123 --probe ntp", 0, &["UP L4OK udp", "ntp through"]);
    drop(server);
    let _lost = Server::ntp(&net, "");
    assert_check(&net, "--udp 123 --probe ntp", 2, &["DOWN MISMATCH", "is not synchronised"]);
}

/// The VIPs in a namespace behind the real, as a container has them.
struct Behind<'a> {
    net: &'a Net,
    name: String,
}

impl<'a> Behind<'a> {
    fn new(net: &'a Net) -> Self {
        let behind = Self { net, name: format!("{}-behind", net.real) };
        let Self { name, .. } = &behind;
        let real = &net.real;
        net.remove_vip();
        let host = |words: &str| drop(Net::run(real, &words.split_whitespace().collect::<Vec<_>>()));
        let status = Command::new("ip").args(["netns", "add", name]).status().unwrap();
        assert!(status.success());
        let inner = |words: &str| drop(Net::run(name, &words.split_whitespace().collect::<Vec<_>>()));
        host(&format!("ip link add b0 type veth peer name b1 netns {name}"));
        host("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv6.conf.b0.accept_dad=0");
        inner("sysctl -qw net.ipv6.conf.b1.accept_dad=0");
        for (side, device, number) in [(real, "b0", 1), (name, "b1", 2)] {
            for words in [
                format!("ip link set {device} up"),
                format!("ip addr add 198.18.8.{number}/30 dev {device}"),
                format!("ip addr add fd00:8::{number}/64 dev {device} nodad"),
            ] {
                Net::run(side, &words.split_whitespace().collect::<Vec<_>>());
            }
        }
        host(&format!("ip route add {VIP} via 198.18.8.2"));
        host(&format!("ip route add {VIP_6} via fd00:8::2"));
        inner("ip link set lo up");
        inner(&format!("ip addr add {VIP}/32 dev lo"));
        inner(&format!("ip addr add {VIP_6}/128 dev lo nodad"));
        inner(&format!("ip route add {LB} via 198.18.8.1 advmss 1400"));
        inner(&format!("ip route add {LB_6} via fd00:8::1 advmss 1380"));
        behind
    }
}

impl Drop for Behind<'_> {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).status();
        let _ = self.net;
    }
}

#[test]
fn vip_behind_the_real_is_reached_with_as_many_hops_as_it_takes() {
    let net = Net::new();
    let behind = Behind::new(&net);
    let _listeners = inside(&behind.name, || {
        [VIP.into(), VIP_6.into()].map(|vip: std::net::IpAddr| TcpListener::bind((vip, 80)).unwrap())
    });
    for kind in ["--icmp", "--tcp 80"] {
        assert_check(&net, kind, 2, &["DOWN UNREACHABLE", "it forwards"]);
        assert_check(&net, &format!("{kind} --hops 2"), 0, &["UP L"]);
    }
    assert_check(&net, "--tcp 81 --hops 2", 2, &["DOWN PORT_CLOSED"]);
    for pair in PAIRS {
        let output = net.subcommand("diagnose", pair, "--tcp 80 --hops 2 -o json").output().unwrap();
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&found["code"], &found["check"]["hops"]), (&"OK".into(), &2.into()), "{found}");
    }
    let half_open = Net::run(&behind.name, &["ss", "-Htan", "state", "syn-recv"]);
    assert_eq!(half_open, "", "the resets get there too");
}

//! Checks through a real tunnel, answered by a real kernel. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, a panic is the message"
)]

mod common;
mod wire;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as SocketAddress, UnixListener},
    },
    process::{Output, Stdio},
    time::Duration,
};

use common::{LB, LB_6, Net, PAIRS, Pair, REAL, V4, V6, VIP, VIP_6, inside};
use hc_prober::{Check, CheckKey, Kind, Prober, Reason, Settings, Severity, State, Timing, Transition};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{runtime::Runtime, sync::mpsc::UnboundedReceiver, time::timeout};
use wire::Wire;

const TIMING: Timing = Timing {
    interval: Duration::from_millis(200),
    timeout: Duration::from_millis(200),
    fast_interval: Duration::from_millis(50),
    rise: 2,
    fall: 2,
};

/// Longer than any transition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

/// The service of both VIPs.
fn listen(net: &Net) -> [TcpListener; 2] {
    inside(&net.real, || {
        [IpAddr::from(VIP), IpAddr::from(VIP_6)].map(|vip| {
            let listener = TcpListener::bind((vip, 80)).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        })
    })
}

fn check((real, target): Pair, kind: Kind) -> Check {
    Check { key: CheckKey::new(real, target, kind), timing: TIMING }
}

fn start(net: &Net) -> (Prober, UnboundedReceiver<Transition>) {
    inside(&net.lb, || Prober::start(Settings::new(vec!["v0".into()]).unwrap()).unwrap())
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

async fn next(transitions: &mut UnboundedReceiver<Transition>) -> Transition {
    timeout(PATIENCE, transitions.recv()).await.expect("no transition in time").expect("the prober has ended")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A counter of `/proc/net/snmp` in a namespace.
fn snmp(namespace: &str, protocol: &str, name: &str) -> u64 {
    let text = Net::run(namespace, &["cat", "/proc/net/snmp"]);
    let mut rows = text.lines().filter(|line| line.starts_with(&format!("{protocol}:")));
    let (names, values) = (rows.next().unwrap(), rows.next().unwrap());
    let at = names.split_whitespace().position(|column| column == name).unwrap();
    values.split_whitespace().nth(at).unwrap().parse().unwrap()
}

fn half_open(net: &Net) -> String {
    Net::run(&net.real, &["ss", "-Htan", "state", "syn-recv"])
}

#[test]
fn one_shot_says_by_its_exit_code_what_it_found() {
    let net = Net::new();
    let _listeners = listen(&net);
    for (arguments, code, reason) in [
        ("--icmp", 0, "UP L3OK"),
        ("--tcp 80", 0, "UP L4OK"),
        ("--tcp 81", 2, "DOWN PORT_CLOSED"),
        ("--udp 53", 2, "DOWN PORT_CLOSED"),
        ("--tcp 81 --exit-codes keepalived", 1, "DOWN PORT_CLOSED"),
        ("--icmp --interface nosuch", 3, ""),
        ("--icmp --interface nosuch --exit-codes keepalived", 0, ""),
        ("--icmp --no-such-option", 3, ""),
        ("--icmp --no-such-option --exit-codes keepalived", 3, ""),
    ] {
        for pair in PAIRS {
            let output = net.command(pair, arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(code), "{pair:?} {arguments}: {output:?}");
            assert!(stdout(&output).starts_with(reason), "{pair:?} {arguments}: {output:?}");
            assert_eq!(output.stderr.is_empty(), !reason.is_empty(), "{pair:?} {arguments}: {output:?}");
        }
    }
}

#[test]
fn ipv6_within_ipv4_is_refused_with_what_is_allowed() {
    let net = Net::new();
    let output = net.command((V4.0, V6.1), "--icmp").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("reached through an IPv6 tunnel only") && error.contains("allowed is"), "{error}");
}

/// The real has no way back to the addresses that the routes prefer: it can answer the given ones only, inside the tunnel
/// and, once it does not decapsulate, outside.
#[test]
fn sources_given_are_those_of_inner_and_outer_header() {
    let mut net = Net::new();
    for (preferred, given) in [(LB.to_string(), "198.18.7.77"), (LB_6.to_string(), "fd01:7::77")] {
        Net::run(&net.lb, &["ip", "addr", "add", given, "dev", "v0", "nodad"]);
        Net::run(&net.real, &["ip", "route", "add", given, "dev", "v1"]);
        Net::run(&net.real, &["ip", "route", "add", "blackhole", &preferred]);
    }
    let given = "--icmp --timeout 300ms --source 198.18.7.77 --source fd01:7::77";
    for pair in PAIRS {
        assert_eq!(net.command(pair, "--icmp --timeout 300ms").output().unwrap().status.code(), Some(2), "{pair:?}");
        let output = net.command(pair, given).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{pair:?}: {output:?}");
    }
    net.remove_decap();
    for pair in PAIRS {
        let output = net.command(pair, given).output().unwrap();
        assert!(stdout(&output).contains("no decapsulation there"), "{pair:?}: {output:?}");
    }
}

#[test]
fn thousand_tcp_checks_leave_nothing_behind() {
    let net = Net::new();
    let listeners = listen(&net);
    for pair in PAIRS {
        let resets = snmp(&net.lb, "Tcp", "OutRsts");
        let output = net.command(pair, "--tcp 80 --count 1000 --rate 0 -o json").output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((&result["passed"], &result["counters"]["resets"]), (&1000.into(), &1000.into()), "{result}");
        assert_eq!(half_open(&net), "");
        for listener in &listeners {
            assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "the service saw a connection");
        }
        assert_eq!(snmp(&net.lb, "Tcp", "OutRsts"), resets, "the kernel sent a RST of its own");
    }
}

#[test]
fn prober_follows_the_real_through_its_faults() {
    PAIRS.into_iter().for_each(follow);
}

fn follow(pair: Pair) {
    let mut net = Net::new();
    let listeners = listen(&net);
    let (prober, mut transitions) = start(&net);
    runtime().block_on(async {
        prober.set_checks(vec![check(pair, Kind::Tcp { port: 80 })]);
        let up = next(&mut transitions).await;
        assert_eq!((up.from, up.to, up.reason), (State::Init, State::Up, Reason::L4Ok));

        drop(listeners);
        let closed = next(&mut transitions).await;
        assert_eq!((closed.to, closed.reason), (State::Down(Severity::Soft), Reason::PortClosed));

        let _listeners = listen(&net);
        assert_eq!(next(&mut transitions).await.to, State::Up);

        net.remove_vip();
        let gone = next(&mut transitions).await;
        assert_eq!(gone.to, State::Down(Severity::Hard), "{gone:?}");

        net.add_vip();
        assert_eq!(next(&mut transitions).await.to, State::Up);

        net.remove_decap();
        let bare = next(&mut transitions).await;
        assert_eq!((bare.to, bare.reason), (State::Down(Severity::Hard), Reason::Timeout));
        let (detail, real) = (bare.detail.unwrap_or_default(), pair.0);
        assert_eq!(detail, format!("protocol unreachable from {real} quoting the tunnel: no decapsulation there"));

        let status = prober.status().await;
        assert_eq!((status.len(), status[0].state), (1, State::Down(Severity::Hard)));
        assert!(status[0].last_run.is_some() && status[0].rtt.is_none(), "nothing answers any more");
        let counters = prober.counters().await;
        assert!(counters.evidence > 0 && counters.forged == 0, "{counters:?}");
    });
    prober.shutdown();
    assert_eq!(half_open(&net), "");
}

#[test]
fn every_kind_comes_up_and_a_one_shot_beside_disturbs_nobody() {
    let net = Net::new();
    let _listeners = listen(&net);
    let services = inside(&net.real, || [V4.1, V6.1].map(|vip| UdpSocket::bind((vip, 53)).unwrap()));
    let (prober, mut transitions) = start(&net);
    runtime().block_on(async {
        let silent = Kind::Udp { port: 53, payload: Vec::new(), expect: None, require_reply: false };
        let kinds = [Kind::Icmp, Kind::Tcp { port: 80 }, silent];
        let checks = PAIRS.iter().flat_map(|pair| kinds.clone().map(|kind| check(*pair, kind)));
        prober.set_checks(checks.collect());
        for _ in 0..PAIRS.len() * kinds.len() {
            assert_eq!(next(&mut transitions).await.to, State::Up);
        }
        let before = prober.counters().await;
        let output = net.check("--tcp 80 --count 300 --rate 0");
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let after = prober.counters().await;
        assert_eq!((after.forged, after.late), (before.forged, before.late));
        assert!(prober.status().await.iter().all(|status| status.state == State::Up));
        assert!(transitions.try_recv().is_err());
    });
    drop(services);
}

#[test]
fn spoofed_answers_on_every_port_change_no_state() {
    [V4, V6].into_iter().for_each(withstand);
}

fn withstand(pair: Pair) {
    let net = Net::new();
    let _listeners = listen(&net);
    let (prober, mut transitions) = start(&net);
    runtime().block_on(async {
        prober.set_checks(vec![check(pair, Kind::Tcp { port: 80 })]);
        assert_eq!(next(&mut transitions).await.to, State::Up);
        inside(&net.real, move || if pair == V4 { spoof() } else { spoof6() });
        let counters = timeout(PATIENCE, async {
            loop {
                let counters = prober.counters().await;
                if counters.forged >= 3 * 3512 {
                    return counters;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let counters = counters.await.expect("not all forgeries were counted");
        assert_eq!(counters.forged, 3 * 3512, "{counters:?}");
        assert!(transitions.try_recv().is_err());
        let status = prober.status().await;
        assert_eq!((status[0].state, status[0].fall), (State::Up, 0));
    });
}

/// A SYN-ACK, a RST and an ICMP error from the VIP to every port of the prober, with a guessed sequence number.
fn spoof() {
    use etherparse::PacketBuilder;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    let ip = |from: [u8; 4], to: [u8; 4]| PacketBuilder::ipv4(from, to, 64);
    let (us, vip) = (LB.octets(), VIP.octets());
    for port in hc_prober::settings::DAEMON_PORTS {
        let mut packets = vec![Vec::new(); 4];
        ip(vip, us).tcp(80, port, 1, 1000).syn().ack(1000).write(&mut packets[0], &[]).unwrap();
        ip(vip, us).tcp(80, port, 1, 0).rst().ack(1000).write(&mut packets[1], &[]).unwrap();
        ip(us, vip).tcp(port, 80, 999, 1000).syn().write(&mut packets[3], &[]).unwrap();
        let quoted = packets[3][..28].to_vec();
        ip(REAL.octets(), us).icmpv4_raw(3, 1, [0; 4]).write(&mut packets[2], &quoted).unwrap();
        for packet in &packets[..3] {
            socket.send_to(packet, &SocketAddr::from((LB, 0)).into()).unwrap();
        }
    }
}

fn spoof6() {
    use etherparse::PacketBuilder;
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    let ip = |from: [u8; 16], to: [u8; 16]| PacketBuilder::ipv6(from, to, 64);
    let (us, vip) = (LB_6.octets(), VIP_6.octets());
    for port in hc_prober::settings::DAEMON_PORTS {
        let mut packets = vec![Vec::new(); 4];
        ip(vip, us).tcp(80, port, 1, 1000).syn().ack(1000).write(&mut packets[0], &[]).unwrap();
        ip(vip, us).tcp(80, port, 1, 0).rst().ack(1000).write(&mut packets[1], &[]).unwrap();
        ip(us, vip).tcp(port, 80, 999, 1000).syn().write(&mut packets[3], &[]).unwrap();
        let quoted = packets[3].clone();
        ip(vip, us).icmpv6_raw(1, 3, [0; 4]).write(&mut packets[2], &quoted).unwrap();
        for packet in &packets[..3] {
            socket.send_to(packet, &SocketAddr::from((LB_6, 0)).into()).unwrap();
        }
    }
}

#[test]
fn ports_taken_are_refused_to_a_second_prober() {
    let net = Net::new();
    let first = start(&net);
    let second = inside(&net.lb, || Prober::start(Settings::new(vec!["v0".into()]).unwrap()).map(drop));
    assert!(second.unwrap_err().to_string().contains("61000-64511"));
    drop(first);
    drop(start(&net));
}

/// As keepalived runs them: a dead real must not stay in because many are checked at a time.
#[test]
fn many_one_shots_at_a_time_all_find_the_real_dead() {
    let net = Net::new();
    net.remove_vip();
    let start = |_| net.command(V4, "--icmp").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let running: Vec<_> = (0..40).map(start).collect();
    for child in running {
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
    }
}

#[test]
fn one_shots_wait_for_ports_and_for_no_longer_than_agreed() {
    use hc_prober::settings::SINGLE_PORTS;
    let net = Net::new();
    let taken = inside(&net.lb, || {
        let name = |port| SocketAddress::from_abstract_name(format!("hc-prober/ports/{port}")).unwrap();
        SINGLE_PORTS.map(|port| UnixListener::bind_addr(&name(port)).unwrap()).collect::<Vec<_>>()
    });
    let output = net.check("--icmp --timeout 100ms");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("claim the source ports"), "{output:?}");
    let waiting =
        net.command(V4, "--icmp --timeout 10s").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Whether it has looked already or not: it must end well.
    std::thread::sleep(Duration::from_millis(200));
    drop(taken);
    let output = waiting.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

/// A queue of ours that drops everything: our fault, which proves nothing about the real.
#[test]
fn probe_dropped_by_our_own_queue_counts_as_not_sent() {
    let net = Net::new();
    // A known neighbour: no packet waits for ARP instead.
    Net::run(&net.lb, &["ip", "neigh", "replace", &REAL.to_string(), "lladdr", "02:00:00:00:00:01", "dev", "v0"]);
    Net::run(&net.lb, &["tc", "qdisc", "add", "dev", "v0", "root", "pfifo", "limit", "0"]);
    let output = net.check("--icmp");
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(stdout(&output).starts_with("UNKNOWN NOT_SENT"), "{output:?}");
}

/// Somebody's `ping` of the VIP may have an identifier in our range.
#[test]
fn echo_reply_of_a_foreign_ping_reaches_it() {
    use etherparse::{Icmpv4Slice, PacketBuilder};
    let net = Net::new();
    Net::run(&net.lb, &["ip", "route", "add", &VIP.to_string(), "via", &REAL.to_string()]);
    let (prober, mut transitions) = start(&net);
    runtime().block_on(async {
        prober.set_checks(vec![check(V4, Kind::Icmp)]);
        assert_eq!(next(&mut transitions).await.to, State::Up);
    });
    let id = *hc_prober::settings::DAEMON_PORTS.start();
    let echoed = inside(&net.lb, move || {
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut echo = Vec::new();
        let builder = PacketBuilder::ipv4(LB.octets(), VIP.octets(), 64).icmpv4_echo_request(id, 1);
        builder.write(&mut echo, b"ping").unwrap();
        socket.send_to(&echo[20..], &SocketAddr::from((VIP, 0)).into()).unwrap();
        loop {
            let mut buffer = [0; 256];
            let length = std::io::Read::read(&mut &socket, &mut buffer).expect("no reply");
            let icmp = Icmpv4Slice::from_slice(&buffer[20..length]).unwrap();
            if icmp.payload() == b"ping" {
                return true;
            }
        }
    });
    assert!(echoed);
}

/// The real's reply comes with a tag; here it is made by hand, from a probe that was taken off the wire.
#[test]
fn replies_with_a_vlan_tag_are_answers() {
    let mut net = Net::new();
    net.remove_decap();
    for pair in [V4, V6] {
        let wire = inside(&net.real, Wire::open);
        let real = std::thread::spawn(move || wire.answer_tagged());
        let output = net.command(pair, "--icmp").output().unwrap();
        assert!(stdout(&output).starts_with("UP L3OK"), "{output:?}");
        real.join().unwrap();
    }
}

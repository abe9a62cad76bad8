//! Checks through a real tunnel, answered by a real kernel. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, a panic is the message"
)]

mod common;

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr as SocketAddress, UnixListener},
    },
    process::{Output, Stdio},
    time::Duration,
};

use common::{LB, Net, REAL, VIP, inside};
use hc_prober::{Check, CheckKey, Kind, Prober, Reason, Settings, Severity, State, Timing, Transition};
use tokio::{runtime::Runtime, sync::mpsc::UnboundedReceiver, time::timeout};

const TIMING: Timing = Timing {
    interval: Duration::from_millis(200),
    timeout: Duration::from_millis(200),
    fast_interval: Duration::from_millis(50),
    rise: 2,
    fall: 2,
};

/// Longer than any transition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);

fn listen(net: &Net) -> TcpListener {
    inside(&net.real, || {
        let listener = TcpListener::bind((VIP, 80)).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    })
}

fn check(kind: Kind) -> Check {
    Check { key: CheckKey { real: IpAddr::V4(REAL), target: IpAddr::V4(VIP), kind }, timing: TIMING }
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
    let _listener = listen(&net);
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
        let output = net.check(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments}: {output:?}");
        assert!(stdout(&output).starts_with(reason), "{arguments}: {output:?}");
        assert_eq!(output.stderr.is_empty(), !reason.is_empty(), "{arguments}: {output:?}");
    }
}

#[test]
fn thousand_tcp_checks_leave_nothing_behind() {
    let net = Net::new();
    let listener = listen(&net);
    let resets = snmp(&net.lb, "Tcp", "OutRsts");
    let output = net.check("--tcp 80 --count 1000 --rate 0 -o json");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&result["passed"], &result["counters"]["resets"]), (&1000.into(), &1000.into()), "{result}");
    assert_eq!(half_open(&net), "");
    assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "the service saw a connection");
    assert_eq!(snmp(&net.lb, "Tcp", "OutRsts"), resets, "the kernel sent a RST of its own");
}

#[test]
fn prober_follows_the_real_through_its_faults() {
    let mut net = Net::new();
    let listener = listen(&net);
    let (prober, mut transitions) = start(&net);
    runtime().block_on(async {
        prober.set_checks(vec![check(Kind::Tcp { port: 80 })]);
        let up = next(&mut transitions).await;
        assert_eq!((up.from, up.to, up.reason), (State::Init, State::Up, Reason::L4Ok));

        drop(listener);
        let closed = next(&mut transitions).await;
        assert_eq!((closed.to, closed.reason), (State::Down(Severity::Soft), Reason::PortClosed));

        let _listener = listen(&net);
        assert_eq!(next(&mut transitions).await.to, State::Up);

        net.remove_vip();
        let gone = next(&mut transitions).await;
        assert_eq!(gone.to, State::Down(Severity::Hard), "{gone:?}");

        net.add_vip();
        assert_eq!(next(&mut transitions).await.to, State::Up);

        net.remove_decap();
        let bare = next(&mut transitions).await;
        assert_eq!((bare.to, bare.reason), (State::Down(Severity::Hard), Reason::Timeout));
        let detail = bare.detail.unwrap_or_default();
        assert_eq!(detail, format!("protocol unreachable from {REAL} quoting the tunnel: no decapsulation there"));

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
    let _listener = listen(&net);
    let udp = inside(&net.real, || std::net::UdpSocket::bind((VIP, 53)).unwrap());
    let (prober, mut transitions) = start(&net);
    runtime().block_on(async {
        let silent = Kind::Udp { port: 53, payload: Vec::new(), expect: None, require_reply: false };
        prober.set_checks([Kind::Icmp, Kind::Tcp { port: 80 }, silent].map(check).to_vec());
        for _ in 0..3 {
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
    drop(udp);
}

#[test]
fn spoofed_answers_on_every_port_change_no_state() {
    let net = Net::new();
    let _listener = listen(&net);
    let (prober, mut transitions) = start(&net);
    runtime().block_on(async {
        prober.set_checks(vec![check(Kind::Tcp { port: 80 })]);
        assert_eq!(next(&mut transitions).await.to, State::Up);
        inside(&net.real, spoof);
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
    use socket2::{Domain, Protocol, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    let to = SocketAddr::from((LB, 0)).into();
    let ip = |from: Ipv4Addr, to: Ipv4Addr| PacketBuilder::ipv4(from.octets(), to.octets(), 64);
    for port in hc_prober::settings::DAEMON_PORTS {
        let mut packets = vec![Vec::new(); 4];
        ip(VIP, LB).tcp(80, port, 1, 1000).syn().ack(1000).write(&mut packets[0], &[]).unwrap();
        ip(VIP, LB).tcp(80, port, 1, 0).rst().ack(1000).write(&mut packets[1], &[]).unwrap();
        ip(LB, VIP).tcp(port, 80, 999, 1000).syn().write(&mut packets[3], &[]).unwrap();
        let quoted = packets[3][..28].to_vec();
        ip(REAL, LB).icmpv4_raw(3, 1, [0; 4]).write(&mut packets[2], &quoted).unwrap();
        for packet in &packets[..3] {
            socket.send_to(packet, &to).unwrap();
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
    let start = |_| net.command("--icmp").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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
    let waiting = net.command("--icmp --timeout 10s").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
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
    use socket2::{Domain, Protocol, Socket, Type};
    let net = Net::new();
    Net::run(&net.lb, &["ip", "route", "add", &VIP.to_string(), "via", &REAL.to_string()]);
    let (prober, mut transitions) = start(&net);
    runtime().block_on(async {
        prober.set_checks(vec![check(Kind::Icmp)]);
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

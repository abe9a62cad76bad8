//! Reals broken in each way, and what is found wrong with them. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, a panic is the message"
)]

mod common;

use std::{
    any::Any,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use common::{LB, Net, PAIRS, Pair, REAL, REAL_6, V4, V6, inside};
use socket2::{Domain, Protocol, Socket, Type};

/// What is wrong with the real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    MssTooBig,
    MtuBlackhole,
    ArpLeak,
    PortClosed,
    ServiceSilent,
    VipMissing,
    VipMissingForwarding,
    DecapMissing,
    TunnelFiltered,
    HostDown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Icmp,
    Tcp,
    Udp,
}

impl Kind {
    fn arguments(self) -> &'static str {
        match self {
            Self::Icmp => "--icmp --timeout 250ms -o json",
            Self::Tcp => "--tcp 80 --timeout 250ms -o json",
            Self::Udp => "--udp 53 --require-reply --timeout 250ms -o json",
        }
    }
}

/// What keeps a fault, or the service, going.
type Kept = Vec<Box<dyn Any>>;

/// The state by one failed probe, how bad, and the code. `Err`: why there is no such cell.
///
/// Left out everywhere: strict `rp_filter`, which a packet that stays on its device passes, as it does with decapsulation by
/// eBPF; IPv6 has none. A tunnel device that is down: there is none here.
type Expected = Result<(&'static str, Option<&'static str>, &'static str), &'static str>;

fn expected(fault: Fault, kind: Kind, pair: Pair) -> Expected {
    let down = |severity, code| Ok(("DOWN", Some(severity), code));
    match (fault, kind) {
        (Fault::ArpLeak, _) => Ok(("UP", None, "ARP_LEAK")),
        (Fault::MtuBlackhole, _) => Ok(("UP", None, "MTU_BLACKHOLE")),
        (Fault::MssTooBig, Kind::Tcp) => Ok(("UP", None, "MSS_TOO_BIG")),
        (Fault::None | Fault::MssTooBig, _) => Ok(("UP", None, "OK")),
        (Fault::PortClosed | Fault::ServiceSilent, Kind::Icmp) => Err("an echo has no port"),
        (Fault::PortClosed, Kind::Tcp | Kind::Udp) => down("soft", "PORT_CLOSED"),
        (Fault::ServiceSilent, Kind::Tcp | Kind::Udp) => down("hard", "SERVICE_SILENT"),
        (Fault::VipMissingForwarding, _) if pair == V6 => Err("this host forwards IPv4 only"),
        (Fault::VipMissing | Fault::VipMissingForwarding, _) => down("hard", "VIP_NOT_LOCAL"),
        (Fault::DecapMissing, _) => down("hard", "DECAP_MISSING"),
        (Fault::TunnelFiltered, _) => down("hard", "DECAP_SILENT"),
        (Fault::HostDown, _) => down("hard", "HOST_DOWN"),
    }
}

/// All cells of a fault, those of a pair at the same time.
fn broken(fault: Fault) {
    let mut net = if fault == Fault::MtuBlackhole { Net::narrow() } else { Net::new() };
    let _kept = cause(&mut net, fault);
    for pair in PAIRS {
        thread::scope(|scope| {
            for kind in [Kind::Icmp, Kind::Tcp, Kind::Udp] {
                let net = &net;
                scope.spawn(move || cell(net, fault, kind, pair));
            }
        });
    }
}

fn cell(net: &Net, fault: Fault, kind: Kind, pair: Pair) {
    let Ok((state, severity, code)) = expected(fault, kind, pair) else { return };
    let cell = format!("{fault:?} {kind:?} {pair:?}");
    let (exit, check) = ask(net, "check", pair, kind);
    assert_eq!((exit, &check["state"]), (if state == "UP" { 0 } else { 2 }, &state.into()), "{cell}: {check}");
    assert_eq!(check["severity"].as_str(), severity, "{cell}: {check}");
    let (exit, diagnosis) = ask(net, "diagnose", pair, kind);
    assert_eq!(diagnosis["code"], code, "{cell}: {diagnosis}");
    assert_eq!(exit, if code == "OK" { 0 } else { 2 }, "{cell}");
    if fault == Fault::None {
        let evidence = diagnosis["evidence"].as_array().unwrap();
        let silent = "who has the VIP, on the real's link: silent";
        assert!(evidence.iter().any(|line| line == silent), "the real itself was found there, {cell}: {diagnosis}");
    }
}

fn ask(net: &Net, subcommand: &str, pair: Pair, kind: Kind) -> (i32, serde_json::Value) {
    let output = net.subcommand(subcommand, pair, kind.arguments()).output().unwrap();
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    (output.status.code().unwrap(), json)
}

fn cause(net: &mut Net, fault: Fault) -> Kept {
    match fault {
        Fault::PortClosed => return Vec::new(),
        Fault::ServiceSilent => return silent_services(net),
        Fault::None => net.leave_room(),
        // Linux announces what its own device takes.
        Fault::MssTooBig | Fault::MtuBlackhole => {}
        Fault::ArpLeak => net.leak(),
        Fault::VipMissing => net.remove_vip(),
        Fault::VipMissingForwarding => {
            Net::run(&net.real, &["sysctl", "-qw", "net.ipv4.ip_forward=1"]);
            Net::run(&net.real, &["ip", "route", "add", "default", "via", &LB.to_string()]);
            net.remove_vip();
        }
        Fault::DecapMissing => net.remove_decap(),
        Fault::TunnelFiltered => {
            net.remove_decap();
            return deaf_tunnels(net);
        }
        Fault::HostDown => {
            for address in [format!("{REAL}/30"), format!("{REAL_6}/64")] {
                Net::run(&net.real, &["ip", "addr", "del", &address, "dev", "v1"]);
            }
            return Vec::new();
        }
    }
    if matches!(fault, Fault::VipMissing | Fault::VipMissingForwarding) {
        return Vec::new();
    }
    services(net)
}

/// A listener and an echo server on both VIPs.
fn services(net: &Net) -> Kept {
    let vips = [V4.1, V6.1];
    let listeners = inside(&net.real, move || vips.map(|vip| TcpListener::bind((vip, 80)).unwrap()));
    let sockets = inside(&net.real, move || vips.map(|vip| UdpSocket::bind((vip, 53)).unwrap()));
    vec![Box::new(listeners), Box::new(sockets.map(Echo::start))]
}

/// A listener whose backlog is full, and a socket that nobody reads from, on both VIPs.
fn silent_services(net: &Net) -> Kept {
    let full = |vip: IpAddr| {
        let socket = Socket::new(Domain::for_address((vip, 80).into()), Type::STREAM, Some(Protocol::TCP)).unwrap();
        socket.bind(&SocketAddr::from((vip, 80)).into()).unwrap();
        // One connection more than this waits to be accepted.
        socket.listen(0).unwrap();
        (socket, TcpStream::connect((vip, 80)).unwrap())
    };
    let sockets = inside(&net.real, move || [V4.1, V6.1].map(|vip| (full(vip), UdpSocket::bind((vip, 53)).unwrap())));
    vec![Box::new(sockets)]
}

/// Sockets that take the tunnels' packets from the kernel and do nothing with them: as if a filter had dropped them.
fn deaf_tunnels(net: &Net) -> Kept {
    let raw = |domain, protocol| Socket::new(domain, Type::RAW, Some(Protocol::from(protocol))).unwrap();
    let sockets = inside(&net.real, move || {
        [
            raw(Domain::IPV4, libc::IPPROTO_IPIP),
            raw(Domain::IPV6, libc::IPPROTO_IPIP),
            raw(Domain::IPV6, libc::IPPROTO_IPV6),
        ]
    });
    vec![Box::new(sockets)]
}

/// Sends datagrams back, until it is dropped.
struct Echo {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    fn start(socket: UdpSocket) -> Self {
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 1500];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((length, from)) = socket.recv_from(&mut buffer) {
                    socket.send_to(&buffer[..length], from).unwrap();
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

#[test]
fn nothing_wrong_is_found_ok() {
    broken(Fault::None);
}

#[test]
fn mss_too_big_is_found_though_the_check_passes() {
    broken(Fault::MssTooBig);
}

#[test]
fn mtu_blackhole_is_found_though_the_check_passes() {
    broken(Fault::MtuBlackhole);
}

#[test]
fn arp_leak_is_found_though_the_check_passes() {
    broken(Fault::ArpLeak);
}

#[test]
fn port_closed_is_found() {
    broken(Fault::PortClosed);
}

#[test]
fn service_silent_is_found() {
    broken(Fault::ServiceSilent);
}

#[test]
fn vip_missing_is_found() {
    broken(Fault::VipMissing);
}

#[test]
fn vip_missing_on_a_host_that_forwards_is_found() {
    broken(Fault::VipMissingForwarding);
}

#[test]
fn decap_missing_is_found() {
    broken(Fault::DecapMissing);
}

#[test]
fn tunnel_filtered_is_found() {
    broken(Fault::TunnelFiltered);
}

#[test]
fn host_down_is_found() {
    broken(Fault::HostDown);
}

#[test]
fn service_that_answers_otherwise_is_a_mismatch() {
    let net = Net::new();
    let _kept = services(&net);
    let otherwise = (2, "DOWN", Some("soft"), "MISMATCH", "MISMATCH");
    for (arguments, expected) in [
        ("--payload 6869 --expect 6869", (0, "UP", None, "L4OK", "OK")),
        ("--payload 6869 --expect 6869ff", otherwise),
        ("--payload 6869 --expect 6868 --require-reply", otherwise),
    ] {
        for pair in PAIRS {
            let ask = |subcommand| {
                let arguments = format!("--udp 53 --timeout 250ms -o json {arguments}");
                let output = net.subcommand(subcommand, pair, &arguments).output().unwrap();
                let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                (output.status.code().unwrap(), json)
            };
            let ((exit, check), (exit_too, diagnosis)) = (ask("check"), ask("diagnose"));
            let word = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
            let [state, reason] = [&check["state"], &check["reason"]].map(word);
            let found = (exit, &*state, check["severity"].as_str(), &*reason, &*word(&diagnosis["code"]));
            assert_eq!((found, exit_too), (expected, expected.0), "{pair:?} {arguments}: {check} {diagnosis}");
        }
    }
}

#[test]
fn tunnel_that_worked_before_makes_rp_filter_suspect() {
    let mut net = Net::new();
    let _kept = cause(&mut net, Fault::TunnelFiltered);
    for (pair, code) in PAIRS.into_iter().zip(["RPF_SUSPECT", "RPF_SUSPECT", "DECAP_SILENT"]) {
        let output = net.subcommand("diagnose", pair, "--icmp --timeout 250ms --decap-worked").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.starts_with(&format!("{code}: ")), "{text}");
        assert!(text.ends_with(&format!("\nmend: realsrv-setup check --vip {}\n", pair.1)), "{text}");
    }
}

#[test]
fn what_cannot_be_asked_is_no_verdict() {
    let net = Net::new();
    for arguments in ["--icmp --interface nosuch", "--icmp --no-such-option"] {
        let output = net.subcommand("diagnose", V4, arguments).output().unwrap();
        assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(3), true), "{output:?}");
    }
    let output = net.subcommand("diagnose", (V4.0, V6.1), "--icmp").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
}

//! What a host off the path can send to the prober: packets with the right addresses and ports, and packets of any kind.
//! None of them is a verdict. Needs root; `LBD_TEST_LONG` sends as many as the numbers in the documentation say.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a helper that fails fails its test; any bits of a random number will do"
)]

mod common;

use common::{Service, TIMING};
use etherparse::{IcmpEchoHeader, Icmpv4Type, Icmpv6Type, IpHeaders, IpNumber, PacketBuilder, PacketBuilderStep};
use lbd::model::{Health, ProberStatus, RealRow};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tests::lab::{Lab, Running, VIP, VIP6};

/// Packets a second: no more than the capture's ring can take, so that each is looked at.
const RATE: u64 = 20_000;

fn packets(short: u64, long: u64) -> u64 {
    if std::env::var_os("LBD_TEST_LONG").is_some() { long } else { short }
}

/// raw(7): the IP header is the sender's.
const IPPROTO_RAW: i32 = 255;

/// What comes out of SplitMix64: the same in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        lb_ebpf::hash::splitmix64(&mut self.0)
    }

    fn u32(&mut self) -> u32 {
        (self.next() >> 32) as u32
    }

    fn u16(&mut self) -> u16 {
        (self.next() >> 48) as u16
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// A source port, or identifier, that a probe may have.
    fn port(&mut self) -> u16 {
        let ports = hc_prober::settings::DAEMON_PORTS;
        ports.start() + self.u16() % (ports.end() - ports.start() + 1)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

/// What the UDP service is asked; it sends it back, and nothing else is right.
const QUESTION: &str = "7768656e206973206974";
const PORTS: [u16; 2] = [80, 53];

/// Who is to be deceived.
#[derive(Clone, Copy)]
struct Target {
    lb: Ipv4Addr,
    lb6: Ipv6Addr,
}

impl Target {
    fn is_v6(random: &mut Random) -> bool {
        random.below(2) == 1
    }

    fn answer(self, v6: bool) -> PacketBuilderStep<IpHeaders> {
        if v6 {
            PacketBuilder::ipv6(VIP6.octets(), self.lb6.octets(), 64)
        } else {
            PacketBuilder::ipv4(VIP.octets(), self.lb.octets(), 64)
        }
    }

    fn probe(self, v6: bool) -> PacketBuilderStep<IpHeaders> {
        if v6 {
            PacketBuilder::ipv6(self.lb6.octets(), VIP6.octets(), 1)
        } else {
            PacketBuilder::ipv4(self.lb.octets(), VIP.octets(), 1)
        }
    }
}

fn write(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    fill(&mut bytes);
    bytes
}

/// An answer as the VIP would send it, or an error as a router would, save for what only the prober can know.
fn forged(random: &mut Random, target: Target) -> Vec<u8> {
    let v6 = Target::is_v6(random);
    let (port, number, payload) = (random.port(), random.u32(), random.bytes(16));
    let builder = target.answer(v6);
    let echo = IcmpEchoHeader { id: port, seq: random.u16() };
    write(|bytes| match random.below(4) {
        0 => builder.tcp(80, port, random.u32(), 29_200).syn().ack(number).write(bytes, &[]).unwrap(),
        1 => builder.tcp(80, port, 0, 0).rst().ack(number).write(bytes, &[]).unwrap(),
        2 if v6 => builder.icmpv6(Icmpv6Type::EchoReply(echo)).write(bytes, &payload).unwrap(),
        2 => builder.icmpv4(Icmpv4Type::EchoReply(echo)).write(bytes, &payload).unwrap(),
        _ => {
            let quoted = quoted(random, target, v6);
            // Host and port unreachable: of UDP the first would be a hard failure, the second a soft one.
            let n = random.below(2);
            if v6 {
                builder.icmpv6_raw(1, [3, 4][n], [0; 4]).write(bytes, &quoted)
            } else {
                builder.icmpv4_raw(3, [1, 3][n], [0; 4]).write(bytes, &quoted)
            }
            .unwrap();
        }
    })
}

/// A probe as it might have been: TCP, UDP, or the echo request alongside, with some identification or flow label.
fn quoted(random: &mut Random, target: Target, v6: bool) -> Vec<u8> {
    let (port, number, tag) = (random.port(), random.u32(), random.u32());
    let builder = target.probe(v6);
    let mut probe = write(|bytes| match random.below(3) {
        0 => builder.tcp(port, 80, number, 64_240).syn().write(bytes, &[]).unwrap(),
        1 => builder.udp(port, 53).write(bytes, &number.to_be_bytes()).unwrap(),
        _ if v6 => builder.icmpv6_echo_request(port, number as u16).write(bytes, &number.to_be_bytes()).unwrap(),
        _ => builder.icmpv4_echo_request(port, number as u16).write(bytes, &number.to_be_bytes()).unwrap(),
    });
    let [_, label, high, low] = tag.to_be_bytes();
    if v6 {
        probe[1..4].copy_from_slice(&[label & 0x0f, high, low]);
    } else {
        probe[4..6].copy_from_slice(&[high, low]);
    }
    probe
}

/// Of what a forger sends some bytes changed, or nothing but noise behind an IP header that leads to us.
fn mutated(random: &mut Random, target: Target) -> Vec<u8> {
    if random.below(4) == 0 {
        let v6 = Target::is_v6(random);
        let protocol = IpNumber([1, 4, 6, 17, 41, 44, 58][random.below(7)]);
        let len = random.below(120);
        let noise = random.bytes(len);
        return write(|bytes| target.answer(v6).write(bytes, protocol, &noise).unwrap());
    }
    let mut bytes = forged(random, target);
    let (header, destination) = if bytes[0] >> 4 == 6 { (40, 24..40) } else { (20, 16..20) };
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        // The kernel that sends it would refuse another version, and route another destination elsewhere.
        if at != 0 && !destination.contains(&at) {
            bytes[at] = random.next() as u8;
        }
    }
    if random.below(4) == 0 {
        bytes.truncate(header + random.below(bytes.len() - header + 1));
    }
    bytes
}

/// A datagram from the UDP service, with another answer than the right one: the port is all that has to be guessed.
fn datagram(random: &mut Random, target: Target) -> Vec<u8> {
    let (v6, port, payload) = (Target::is_v6(random), random.port(), random.bytes(8));
    write(|bytes| target.answer(v6).udp(53, port).write(bytes, &payload).unwrap())
}

/// Makes the next packet.
type Make = fn(&mut Random, Target) -> Vec<u8>;

/// Sends from the router, which is off the path of nothing: what it cannot forge nobody can.
fn flood(service: &Service, number: u64, seed: u64, make: Make) -> JoinHandle<u64> {
    let (router, lb) = (service.lab.router().clone(), service.lab.lb());
    let target = Target { lb: lb.addr(), lb6: lb.addr6() };
    std::thread::spawn(move || {
        router.enter().unwrap();
        let raw = |domain| Socket::new(domain, Type::RAW, Some(Protocol::from(IPPROTO_RAW))).unwrap();
        let to = |address: IpAddr| SocketAddr::from((address, 0)).into();
        let v4 = (raw(Domain::IPV4), to(target.lb.into()));
        let v6 = (raw(Domain::IPV6), to(target.lb6.into()));
        let (mut random, began) = (Random(seed), Instant::now());
        let mut sent = 0;
        for n in 0..number {
            let packet = make(&mut random, target);
            let (socket, to) = if packet[0] >> 4 == 6 { &v6 } else { &v4 };
            // What is malformed the sending kernel may refuse itself.
            sent += u64::from(socket.send_to(&packet, to).is_ok());
            let due = Duration::from_micros(n * 1_000_000 / RATE);
            if let Some(early) = due.checked_sub(began.elapsed()) {
                std::thread::sleep(early);
            }
        }
        sent
    })
}

/// VIPs of both families, each with a TCP and a UDP service, over three reals of which the first is silent: its probes wait
/// for an answer at any time.
fn deceived(test: &str) -> (Service, Vec<Running>) {
    let service = Service::dual(test, 3, |lab| {
        let vip = |v6: bool, port: u16| {
            let address = |v4: Ipv4Addr, of6: Ipv6Addr| if v6 { IpAddr::from(of6) } else { v4.into() };
            let (protocol, check) = match port {
                80 => ("tcp", "kind = \"tcp\"".to_owned()),
                _ => ("udp", format!("kind = \"udp\", payload = \"{QUESTION}\", expect = \"{QUESTION}\"")),
            };
            let real = |real: &tests::lab::Host| {
                format!("[[vip.real]]\naddress = \"{}\"\n", address(real.addr(), real.addr6()))
            };
            let reals: String = lab.reals().iter().map(real).collect();
            let vip = address(VIP, VIP6);
            format!(
                "[[vip]]\naddress = \"{vip}\"\nprotocol = \"{protocol}\"\nport = {port}\ncheck = {{ {check} }}\n{reals}"
            )
        };
        let both = |v6| PORTS.map(|port| vip(v6, port)).concat();
        [both(false), both(true)].concat()
    });
    let echoes = [2, 3].map(|real| udp_echoes(&service.lab, real)).into_iter().flatten().collect();
    service.lab.real(1).unwrap().run("ip link set eth0 down").unwrap();
    let silent = [IpAddr::from(service.lab.reals()[0].addr()), service.lab.reals()[0].addr6().into()];
    // And known why: afterwards nothing is looked into any more.
    service.wait_for("real1 alone to be down", |rows| {
        let is_so = |row: &RealRow| {
            let (is_silent, now) = (silent.contains(&row.real), (row.state, row.reason.as_str()));
            now == if is_silent { (Health::Down, "TIMEOUT") } else { (Health::Up, "L4OK") }
                && row.why.is_some() == is_silent
        };
        rows.len() == 12 && rows.iter().all(is_so)
    });
    (service, echoes)
}

fn udp_echoes(lab: &Lab, real: usize) -> [Running; 2] {
    [IpAddr::from(VIP), VIP6.into()].map(|vip| {
        let mut echo = lab.real(real).unwrap().command(env!("CARGO_BIN_EXE_udp_echo"));
        Running::start(echo.arg(SocketAddr::new(vip, 53).to_string()).stdout(std::process::Stdio::null())).unwrap()
    })
}

fn transitions(service: &Service) -> usize {
    fs::read_to_string(service.lab.lbd().log).unwrap().matches("transition").count()
}

/// The daemon's resident memory, KiB.
fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// What a flood left behind.
struct Flood {
    /// As many packets the kernel took.
    sent: u64,
    before: ProberStatus,
    after: ProberStatus,
    /// Transitions meanwhile.
    transitions: usize,
    /// KiB of resident memory that came meanwhile.
    grown: u64,
}

impl Flood {
    /// What the prober rejected: what proves nothing, and what came for a probe that had its result.
    fn rejected(&self) -> [u64; 2] {
        [self.after.forged - self.before.forged, self.after.late - self.before.late]
    }
}

/// The flood, and what the prober counted of it.
fn flooded(service: &Service, number: u64, make: Make) -> Flood {
    // A first part of the flood, so that what grows once has grown.
    flood(service, number / 10, 1, make).join().unwrap();
    let (before, had) = (service.status(), transitions(service));
    let resident = memory(before.pid);

    let sent = flood(service, number, 7, make).join().unwrap();

    let after = service.status();
    let grown = memory(after.pid).saturating_sub(resident);
    let flood =
        Flood { sent, before: before.prober, after: after.prober, transitions: transitions(service) - had, grown };
    let Flood { transitions, grown, after, .. } = &flood;
    println!(
        "{sent} sent, {:?} forged and late, {transitions} transitions, {grown} KiB more, {after:?}",
        flood.rejected()
    );
    flood
}

#[test]
fn answers_with_the_right_addresses_and_ports_are_no_verdict() {
    let (service, _echoes) = deceived("forged");
    let flood = flooded(&service, packets(20_000, 1_000_000), forged);
    assert_eq!(flood.transitions, 0, "{TIMING}");
    assert!(flood.grown < 4096, "{} KiB more resident memory", flood.grown);
    // An error about a UDP probe is known by 16 or 20 bits: of a million, one may be right, of a probe long answered.
    let [forged, late] = flood.rejected();
    assert!(
        forged + late >= flood.sent && late <= 3,
        "each must have been looked at: {forged} + {late} of {}",
        flood.sent
    );
}

#[test]
fn packets_of_any_kind_at_the_capture_change_nothing() {
    let (service, _echoes) = deceived("mutated");
    let flood = flooded(&service, packets(60_000, 10_000_000), mutated);
    assert_eq!(flood.transitions, 0, "{TIMING}");
    assert!(flood.grown < 4096, "{} KiB more resident memory", flood.grown);
    let [forged, _] = flood.rejected();
    assert!(forged > flood.sent / 10, "few came so far: {forged} of {}", flood.sent);
}

/// Whoever guesses the port is heard, but `expect` keeps a dead service from coming up; see docs/prober.md for the odds.
#[test]
fn datagrams_that_are_not_expected_bring_no_service_up_and_take_none_down() {
    let (service, _echoes) = deceived("datagram");
    let health = || -> Vec<_> { service.wait_for("", |_| true).iter().map(|row| row.state).collect() };
    let before = health();
    let flood = flooded(&service, packets(60_000, 1_000_000), datagram);
    assert_eq!(health(), before);
    let [forged, _] = flood.rejected();
    // A minute's probes of three reals use so many of the 3,512 ports.
    assert!(forged > flood.sent / 2 && forged < flood.sent, "{forged} of {}", flood.sent);
}

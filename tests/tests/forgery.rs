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
use etherparse::{IpNumber, PacketBuilder, icmpv4::DestUnreachableHeader};
use lbd::model::{Health, ProberStatus, RealRow};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tests::lab::VIP;

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

/// An answer as the VIP would send it, or an error as a router would, save for what only the prober can know.
fn forged(random: &mut Random, lb: Ipv4Addr) -> Vec<u8> {
    let from_vip = || PacketBuilder::ipv4(VIP.octets(), lb.octets(), 64);
    let mut bytes = Vec::new();
    let (port, number, payload) = (random.port(), random.u32(), random.bytes(16));
    match random.below(4) {
        0 => from_vip().tcp(80, port, random.u32(), 29_200).syn().ack(number).write(&mut bytes, &[]),
        1 => from_vip().tcp(80, port, 0, 0).rst().ack(number).write(&mut bytes, &[]),
        2 => from_vip().icmpv4_echo_reply(port, random.u16()).write(&mut bytes, &payload),
        _ => {
            let mut probe = Vec::new();
            let quoted = PacketBuilder::ipv4(lb.octets(), VIP.octets(), 1).tcp(port, 80, number, 64_240).syn();
            quoted.write(&mut probe, &[]).unwrap();
            let header = DestUnreachableHeader::Port;
            from_vip().icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(header)).write(&mut bytes, &probe)
        }
    }
    .unwrap();
    bytes
}

/// Of what a forger sends some bytes changed, or nothing but noise behind an IP header that leads to us.
fn mutated(random: &mut Random, lb: Ipv4Addr) -> Vec<u8> {
    if random.below(4) == 0 {
        let protocol = IpNumber([1, 4, 6, 17][random.below(4)]);
        let (mut bytes, len) = (Vec::new(), random.below(120));
        let noise = random.bytes(len);
        PacketBuilder::ipv4(VIP.octets(), lb.octets(), 64).write(&mut bytes, protocol, &noise).unwrap();
        return bytes;
    }
    let mut bytes = forged(random, lb);
    for _ in 0..=random.below(6) {
        let at = random.below(bytes.len());
        // The kernel that sends it would refuse another version, and route another destination elsewhere.
        if at != 0 && !(16..20).contains(&at) {
            bytes[at] = random.next() as u8;
        }
    }
    bytes.truncate(20 + random.below(bytes.len() - 19));
    bytes
}

/// Sends from the router, which is off the path of nothing: what it cannot forge nobody can.
fn flood(service: &Service, number: u64, make: fn(&mut Random, Ipv4Addr) -> Vec<u8>) -> JoinHandle<u64> {
    let (router, lb) = (service.lab.router().clone(), service.lab.lb().addr());
    std::thread::spawn(move || {
        router.enter().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(IPPROTO_RAW))).unwrap();
        let (to, mut random, began) = (SocketAddr::from((lb, 0)).into(), Random(7), Instant::now());
        let mut sent = 0;
        for n in 0..number {
            // What is malformed the sending kernel may refuse itself.
            sent += u64::from(socket.send_to(&make(&mut random, lb), &to).is_ok());
            let due = Duration::from_micros(n * 1_000_000 / RATE);
            if let Some(early) = due.checked_sub(began.elapsed()) {
                std::thread::sleep(early);
            }
        }
        sent
    })
}

fn states(service: &Service) -> Vec<(Health, String)> {
    (1..=3).map(|real| service.row(real)).map(|RealRow { state, reason, .. }| (state, reason)).collect()
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

/// One real down, two up; then the flood; what the prober counted of it.
fn unmoved_by(test: &str, number: u64, make: fn(&mut Random, Ipv4Addr) -> Vec<u8>) -> (u64, ProberStatus) {
    let service = Service::up(test);
    // Silent, so that its probes wait for an answer at any time.
    service.lab.real(1).unwrap().run("ip link set eth0 down").unwrap();
    service.wait_for_state(1, Health::Down);
    let before = (states(&service), transitions(&service), service.status());
    // A first part of the flood, so that what grows once has grown.
    flood(&service, number / 10, make).join().unwrap();
    let resident = memory(before.2.pid);

    let sent = flood(&service, number, make).join().unwrap();

    let after = service.status();
    assert_eq!((states(&service), transitions(&service)), (before.0, before.1), "{TIMING}");
    let grown = memory(after.pid).saturating_sub(resident);
    assert!(grown < 4096, "{grown} KiB more resident memory");
    println!("{sent} sent, {:?}, {grown} KiB more", after.prober);
    (sent, after.prober)
}

#[test]
fn answers_with_the_right_addresses_and_ports_are_no_verdict() {
    let (sent, prober) = unmoved_by("forged", packets(20_000, 1_000_000), forged);
    assert!(prober.forged >= sent, "each must have been looked at: {} of {sent}", prober.forged);
}

#[test]
fn packets_of_any_kind_at_the_capture_change_nothing() {
    let (sent, prober) = unmoved_by("mutated", packets(60_000, 10_000_000), mutated);
    assert!(prober.forged > sent / 10, "few came so far: {} of {sent}", prober.forged);
}

//! The engine against answers made by hand: genuine, forged, late and repeated ones.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, a panic is the message"
)]

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
    ops::RangeInclusive,
    time::Duration,
};

use etherparse::{IpHeaders, NetSlice, PacketBuilder, PacketBuilderStep, SlicedPacket, TransportSlice};
use hc_prober::{
    Check, CheckKey, Counters, Kind, OuterSource, Reason, Severity, State, Timing,
    ends::Ends,
    engine::{Engine, Output, Planned},
    finding::Detail,
    named::{Named, Query, QueryType},
    subject::{Path, Tunnel},
    time::Monotonic,
};
use proptest::prelude::*;

const US: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const REAL: Ipv4Addr = Ipv4Addr::new(198, 18, 101, 10);
const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 1);
const US_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
const REAL_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x101, 0, 0, 0, 0, 0, 0x10);
const VIP_6: Ipv6Addr = Ipv6Addr::new(0xfd19, 0x10, 0, 0, 0, 0, 0, 1);

const INNER: Ends = Ends::V4 { source: US, destination: VIP };
const INNER_6: Ends = Ends::V6 { source: US_6, destination: VIP_6 };
const TUNNEL_6: Tunnel = Tunnel::V6 { source: US_6, real: REAL_6 };

fn tunnel() -> Tunnel {
    Tunnel::V4 { source: US.into(), real: REAL }
}

/// Everything that the data plane encapsulates: IPv4 in IPv4, IPv4 in IPv6, IPv6 in IPv6.
fn paths() -> [Path; 3] {
    [(tunnel(), INNER), (TUNNEL_6, INNER), (TUNNEL_6, INNER_6)].map(|(tunnel, inner)| Path {
        tunnel: Some(tunnel),
        inner,
        hops: NonZeroU8::MIN,
    })
}

const MS: Duration = Duration::from_millis(1);

const TIMING: Timing = Timing {
    interval: Duration::from_secs(2),
    timeout: Duration::from_secs(1),
    fast_interval: Duration::from_millis(200),
    rise: 2,
    fall: 3,
};

/// An engine with one check, its clock, and the packets it has sent.
struct Bench {
    engine: Engine,
    now: Monotonic,
    out: Output,
    sent: Vec<Vec<u8>>,
    path: Path,
}

/// The inner packet of one that was sent.
#[derive(Clone, Debug)]
struct Probe {
    port: u16,
    to: u16,
    sequence: u32,
    payload: Vec<u8>,
    inner: Vec<u8>,
    /// The outer header, as it is.
    outer: Vec<u8>,
    outer_source: IpAddr,
    inner_ends: Ends,
    reset: bool,
    echo: bool,
}

fn udp(require_reply: bool, expect: Option<&[u8]>) -> Kind {
    Kind::Udp { port: 53, payload: b"q".to_vec(), expect: expect.map(<[u8]>::to_vec), require_reply }
}

impl Bench {
    fn new(kind: Kind) -> Self {
        Self::on_ports(kind, 61000..=61999)
    }

    fn of(path: Path, kind: Kind) -> Self {
        Self::made(path, kind, 61000..=61999)
    }

    fn on_ports(kind: Kind, ports: RangeInclusive<u16>) -> Self {
        Self::made(Path { tunnel: Some(tunnel()), inner: INNER, hops: NonZeroU8::MIN }, kind, ports)
    }

    fn made(path: Path, kind: Kind, ports: RangeInclusive<u16>) -> Self {
        let mut bench = Self {
            engine: Engine::new(&[9; 16], ports),
            now: Monotonic(1_000_000_000),
            out: Output::default(),
            sent: Vec::new(),
            path,
        };
        bench.set(vec![kind]);
        bench
    }

    fn set(&mut self, kinds: Vec<Kind>) {
        let path = self.path;
        let key = |kind| CheckKey::new(path.real(), path.inner.destination(), kind);
        let plan = |kind| Planned { check: Check { key: key(kind), timing: TIMING }, path: Ok(path) };
        self.engine.set_checks(kinds.into_iter().map(plan).collect(), self.now);
    }

    /// Lets time pass, a millisecond at a time, until `condition` holds.
    fn until(&mut self, condition: impl Fn(&Self) -> bool) {
        for _ in 0..20_000 {
            if condition(self) {
                return;
            }
            self.now = self.now + MS;
            self.engine.poll(self.now, self.now, &mut self.out);
            self.collect();
        }
        panic!("not within 20 s");
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        self.until(|bench| bench.now >= end);
    }

    fn collect(&mut self) {
        self.sent.extend(self.out.packets.iter().map(|packet| packet.bytes.to_vec()));
        self.out.packets.clear();
    }

    /// The next probe that is sent.
    fn probe(&mut self) -> Probe {
        let before = self.sent.len();
        self.until(|bench| bench.sent.len() > before);
        decode(&self.sent[before])
    }

    fn receive(&mut self, packet: &[u8]) {
        self.engine.receive(packet, self.now, &mut self.out);
        self.collect();
    }

    fn state(&self) -> State {
        self.engine.subjects().next().unwrap().machine.state
    }

    fn counters(&self) -> Counters {
        self.engine.counters()
    }

    /// Brings the check UP by answering probes.
    fn up(&mut self) {
        while self.state() != State::Up {
            let probe = self.probe();
            self.receive(&syn_ack(&probe, probe.sequence.wrapping_add(1)));
        }
    }
}

fn decode(bytes: &[u8]) -> Probe {
    let (outer, inner) = bytes.split_at(if bytes[0] >> 4 == 4 { 20 } else { 40 });
    let outer_source = addresses(&SlicedPacket::from_ip(bytes).unwrap()).source();
    let packet = SlicedPacket::from_ip(inner).unwrap();
    let inner_ends = addresses(&packet);
    assert!([IpAddr::V4(US), IpAddr::V6(US_6)].contains(&inner_ends.source()));
    let (port, to, sequence, payload, reset, echo) = match packet.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            (tcp.source_port(), tcp.destination_port(), tcp.sequence_number(), Vec::new(), tcp.rst(), false)
        }
        TransportSlice::Udp(udp) => {
            (udp.source_port(), udp.destination_port(), 0, udp.payload().to_vec(), false, false)
        }
        TransportSlice::Icmpv4(icmp) => {
            let [a, b, c, d] = icmp.bytes5to8();
            let (id, sequence) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            (id, 0, u32::from(sequence), icmp.payload().to_vec(), false, true)
        }
        TransportSlice::Icmpv6(icmp) => {
            let [a, b, c, d] = icmp.bytes5to8();
            let (id, sequence) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
            (id, 0, u32::from(sequence), icmp.payload().to_vec(), false, true)
        }
        TransportSlice::Igmp(_) => panic!("IGMP"),
    };
    let (inner, outer) = (inner.to_vec(), outer.to_vec());
    Probe { port, to, sequence, payload, inner, outer, outer_source, inner_ends, reset, echo }
}

fn addresses(packet: &SlicedPacket<'_>) -> Ends {
    match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            Ends::V4 { source: ip.header().source_addr(), destination: ip.header().destination_addr() }
        }
        NetSlice::Ipv6(ip) => {
            Ends::V6 { source: ip.header().source_addr(), destination: ip.header().destination_addr() }
        }
        NetSlice::Arp(_) => panic!("ARP"),
    }
}

fn ip(ends: Ends) -> PacketBuilderStep<IpHeaders> {
    match ends {
        Ends::V4 { source, destination } => PacketBuilder::ipv4(source.octets(), destination.octets(), 64),
        Ends::V6 { source, destination } => PacketBuilder::ipv6(source.octets(), destination.octets(), 64),
    }
}

fn syn_ack(probe: &Probe, acknowledgement: u32) -> Vec<u8> {
    let builder = ip(probe.inner_ends.reversed()).tcp(probe.to, probe.port, 7, 1000).syn().ack(acknowledgement);
    write(|bytes| builder.write(bytes, &[]).unwrap())
}

fn reset(probe: &Probe, acknowledgement: u32) -> Vec<u8> {
    let builder = ip(probe.inner_ends.reversed()).tcp(probe.to, probe.port, 0, 0).rst().ack(acknowledgement);
    write(|bytes| builder.write(bytes, &[]).unwrap())
}

fn datagram(probe: &Probe, payload: &[u8]) -> Vec<u8> {
    let builder = ip(probe.inner_ends.reversed()).udp(probe.to, probe.port);
    write(|bytes| builder.write(bytes, payload).unwrap())
}

fn echo_reply(probe: &Probe, payload: &[u8]) -> Vec<u8> {
    let sequence = u16::try_from(probe.sequence).unwrap();
    let builder = ip(probe.inner_ends.reversed());
    write(|bytes| match probe.inner_ends {
        Ends::V4 { .. } => builder.icmpv4_echo_reply(probe.port, sequence).write(bytes, payload).unwrap(),
        Ends::V6 { .. } => builder.icmpv6_echo_reply(probe.port, sequence).write(bytes, payload).unwrap(),
    })
}

/// Type and code of each family's errors.
#[derive(Clone, Copy, Debug)]
struct Error {
    v4: (u8, u8),
    v6: (u8, u8),
}

const HOST_UNREACHABLE: Error = Error { v4: (3, 1), v6: (1, 3) };
const PROTOCOL_UNREACHABLE: Error = Error { v4: (3, 2), v6: (4, 1) };
const PORT_UNREACHABLE: Error = Error { v4: (3, 3), v6: (1, 4) };
const PROHIBITED: Error = Error { v4: (3, 13), v6: (1, 1) };
const TIME_EXCEEDED: Error = Error { v4: (11, 0), v6: (3, 0) };

/// An ICMP error of the quoted packet's family that quotes its header and 8 bytes more.
fn icmp_error(from: IpAddr, error: Error, quoted: &[u8]) -> Vec<u8> {
    write(|bytes| match from {
        IpAddr::V4(from) => {
            let builder =
                PacketBuilder::ipv4(from.octets(), US.octets(), 64).icmpv4_raw(error.v4.0, error.v4.1, [0; 4]);
            builder.write(bytes, &quoted[..28]).unwrap();
        }
        IpAddr::V6(from) => {
            let builder = PacketBuilder::ipv6(from.octets(), US_6.octets(), 64);
            builder.icmpv6_raw(error.v6.0, error.v6.1, [0; 4]).write(bytes, &quoted[..48]).unwrap();
        }
    })
}

/// Of the family of `ends`: the router on the way back, or the real itself.
fn real_of(ends: Ends) -> IpAddr {
    match ends {
        Ends::V4 { .. } => REAL.into(),
        Ends::V6 { .. } => REAL_6.into(),
    }
}

fn write(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = Vec::new();
    fill(&mut bytes);
    bytes
}

#[test]
fn tcp_answered_comes_up_and_each_syn_ack_is_reset() {
    for path in paths() {
        let mut bench = Bench::of(path, Kind::Tcp { port: 80 });
        bench.up();
        let resets = bench.sent.iter().map(|packet| decode(packet)).filter(|probe| probe.reset).count();
        assert_eq!((resets, bench.counters().passed, bench.counters().resets), (2, 2, 2));
        let (_, change) = &bench.out.transitions[0];
        assert_eq!((change.from, change.to, change.reason), (State::Init, State::Up, Reason::L4Ok));
    }
}

#[test]
fn tcp_reset_counts_at_once_and_makes_soft_down() {
    for path in paths() {
        let mut bench = Bench::of(path, Kind::Tcp { port: 80 });
        bench.up();
        let start = bench.now;
        while bench.state() == State::Up {
            let probe = bench.probe();
            bench.receive(&reset(&probe, probe.sequence.wrapping_add(1)));
        }
        assert_eq!(bench.state(), State::Down(Severity::Soft));
        // One interval at most until the first failure, then two fast ones: no timeout is waited for.
        let bound = TIMING.interval.mul_f64(1.1) + 2 * TIMING.fast_interval.mul_f64(1.1) + 3 * MS;
        assert!(bench.now.since(start) <= bound, "{:?}", bench.now.since(start));
    }
}

#[test]
fn soft_down_that_falls_silent_is_told_as_hard_down() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    bench.up();
    let down = |bench: &Bench, severity| bench.state() == State::Down(severity);
    while !down(&bench, Severity::Soft) {
        let probe = bench.probe();
        bench.receive(&reset(&probe, probe.sequence.wrapping_add(1)));
    }
    let start = bench.now;
    bench.out.transitions.clear();
    bench.until(|bench| down(bench, Severity::Hard));
    let [(_, change)] = &bench.out.transitions[..] else { panic!("{:?}", bench.out.transitions) };
    assert_eq!((change.from, change.to), (State::Down(Severity::Soft), State::Down(Severity::Hard)));
    assert_eq!(change.reason, Reason::Timeout);
    let bound = TIMING.interval.mul_f64(1.1) * 3 + TIMING.timeout;
    assert!(bench.now.since(start) <= bound, "{:?}", bench.now.since(start));
}

#[test]
fn silence_is_detected_within_fall_probes_and_one_timeout() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    bench.up();
    let start = bench.now;
    bench.until(|bench| bench.state() != State::Up);
    assert_eq!(bench.state(), State::Down(Severity::Hard));
    let bound = TIMING.interval.mul_f64(1.1) * 3 + TIMING.timeout;
    assert!(bench.now.since(start) <= bound, "{:?}", bench.now.since(start));
    assert_eq!(bench.counters().timeout, 3);
}

#[test]
fn forged_answers_change_nothing_and_are_counted() {
    for path in paths() {
        let mut bench = Bench::of(path, Kind::Tcp { port: 80 });
        bench.up();
        let probe = bench.probe();
        let sent = bench.sent.len();
        let mut quoted = probe.inner.clone();
        // The last byte of the sequence number.
        let header = if matches!(path.inner, Ends::V4 { .. }) { 20 } else { 40 };
        quoted[header + 7] ^= 1;
        let forgeries = [
            syn_ack(&probe, probe.sequence),
            syn_ack(&probe, probe.sequence.wrapping_add(2)),
            reset(&probe, 0),
            icmp_error(probe.inner_ends.destination(), HOST_UNREACHABLE, &quoted),
            // Never sent from this port.
            syn_ack(&Probe { port: probe.port ^ 1, ..probe.clone() }, probe.sequence.wrapping_add(1)),
        ];
        for forgery in &forgeries {
            bench.receive(forgery);
        }
        assert_eq!(bench.counters().forged, forgeries.len() as u64);
        assert_eq!((bench.state(), bench.sent.len()), (State::Up, sent), "no verdict, and no RST either");
        bench.receive(&syn_ack(&probe, probe.sequence.wrapping_add(1)));
        assert_eq!(bench.counters().passed, 3, "the genuine answer still counts");
    }
}

/// A UDP header quotes nothing secret: the inner header's identification or flow label is the proof.
#[test]
fn udp_error_without_our_tag_is_forged() {
    for path in paths() {
        let mut bench = Bench::of(path, udp(true, None));
        let probe = bench.probe();
        let mut quoted = probe.inner.clone();
        quoted[if matches!(path.inner, Ends::V4 { .. }) { 5 } else { 3 }] ^= 1;
        bench.receive(&icmp_error(probe.inner_ends.destination(), PORT_UNREACHABLE, &quoted));
        assert_eq!((bench.counters().forged, bench.counters().port_closed), (1, 0));
        bench.receive(&icmp_error(probe.inner_ends.destination(), PORT_UNREACHABLE, &probe.inner));
        assert_eq!((bench.counters().forged, bench.counters().port_closed), (1, 1));
    }
}

#[test]
fn forged_answers_do_not_bring_a_check_up() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    for _ in 0..10 {
        let probe = bench.probe();
        bench.receive(&syn_ack(&probe, probe.sequence ^ 0x8000_0000));
    }
    bench.pass(TIMING.timeout);
    assert!(matches!(bench.state(), State::Down(Severity::Hard)));
    assert_eq!(bench.counters().forged, 10);
}

#[test]
fn icmp_error_about_the_probe_is_a_failure_at_once() {
    for path in paths() {
        let mut bench = Bench::of(path, Kind::Tcp { port: 80 });
        let probe = bench.probe();
        bench.receive(&icmp_error(real_of(path.inner), TIME_EXCEEDED, &probe.inner));
        assert_eq!(bench.counters().unreachable, 1);
        let detail = bench.engine.subjects().next().unwrap().detail;
        let expected = format!("time exceeded from {}", real_of(path.inner));
        assert!(detail.unwrap().to_string().contains(&expected));
    }
}

#[test]
fn icmp_error_about_the_tunnel_explains_silence_and_decides_nothing() {
    for path in paths() {
        let mut bench = Bench::of(path, Kind::Icmp);
        let probe = bench.probe();
        let (real, quoted) = (path.real(), [probe.outer, probe.inner].concat());
        bench.receive(&icmp_error(real, PROTOCOL_UNREACHABLE, &quoted));
        assert_eq!((bench.counters().evidence, bench.state()), (1, State::Init));
        assert_eq!(bench.counters().unreachable, 0);
        bench.pass(TIMING.timeout);
        let detail = bench.engine.subjects().next().unwrap().detail.unwrap();
        assert!(matches!(detail, Detail::Outer(_)));
        let text = format!("protocol unreachable from {real} quoting the tunnel: no decapsulation there");
        assert_eq!(detail.to_string(), text);
    }
}

/// A prefix of four.
const SOURCES: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(198, 18, 222, 0)),
    IpAddr::V4(Ipv4Addr::new(198, 18, 222, 1)),
    IpAddr::V4(Ipv4Addr::new(198, 18, 222, 2)),
    IpAddr::V4(Ipv4Addr::new(198, 18, 222, 3)),
];

fn from_prefix(kinds: Vec<Kind>) -> Bench {
    let source: OuterSource = "198.18.222.0/30".parse().unwrap();
    let mut bench = Bench::of(
        Path { tunnel: Some(Tunnel::V4 { source, real: REAL }), inner: INNER, hops: NonZeroU8::MIN },
        Kind::Icmp,
    );
    bench.set(Vec::new());
    bench.set(kinds);
    bench
}

#[test]
fn probes_of_a_check_take_the_outer_sources_in_turn() {
    let mut bench = from_prefix(vec![Kind::Tcp { port: 80 }]);
    let probes: Vec<_> = (0..9).map(|_| bench.probe().outer_source).collect();
    let start = SOURCES.iter().position(|source| *source == probes[0]).unwrap();
    let expected: Vec<_> = SOURCES.iter().cycle().skip(start).take(9).copied().collect();
    assert_eq!(probes, expected);
}

#[test]
fn checks_begin_at_different_outer_sources() {
    let mut bench = from_prefix((80..84).map(|port| Kind::Tcp { port }).collect());
    bench.pass(TIMING.interval);
    let mut first = HashMap::new();
    for probe in bench.sent.iter().map(|packet| decode(packet)) {
        first.entry(probe.to).or_insert(probe.outer_source);
    }
    assert_eq!(first.len(), 4, "{first:?}");
    assert_eq!(first.values().collect::<HashSet<_>>().len(), 4, "{first:?}");
}

#[test]
fn reset_and_echo_alongside_leave_from_the_outer_source_of_their_probe() {
    let mut bench = from_prefix(vec![Kind::Tcp { port: 80 }]);
    for _ in 0..5 {
        let probe = bench.probe();
        bench.receive(&syn_ack(&probe, probe.sequence.wrapping_add(1)));
        let reset = decode(bench.sent.last().unwrap());
        assert!(reset.reset && reset.outer_source == probe.outer_source);
    }
    assert_eq!(bench.counters().passed, 5, "answers are known by the inner packet alone");
    let mut bench = from_prefix(vec![udp(false, None)]);
    for _ in 0..5 {
        let [probe, echo] = with_companion(&mut bench);
        assert_eq!(echo.outer_source, probe.outer_source);
    }
}

#[test]
fn syn_ack_repeated_is_reset_again_even_after_the_check_is_gone() {
    for path in paths() {
        let mut bench = Bench::of(path, Kind::Tcp { port: 80 });
        let probe = bench.probe();
        let answer = syn_ack(&probe, probe.sequence.wrapping_add(1));
        bench.receive(&answer);
        bench.receive(&answer);
        bench.set(Vec::new());
        bench.pass(Duration::from_secs(15));
        bench.receive(&answer);
        let counters = bench.counters();
        assert_eq!((counters.passed, counters.resets, counters.repeated), (1, 3, 2));
        let again = decode(bench.sent.last().unwrap());
        assert!(again.reset && again.port == probe.port && again.sequence == probe.sequence.wrapping_add(1));
    }
}

#[test]
fn answer_after_the_timeout_is_late_and_changes_nothing() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    let probe = bench.probe();
    bench.pass(TIMING.timeout + MS);
    let before = bench.engine.subjects().next().unwrap().machine;
    bench.receive(&syn_ack(&probe, probe.sequence.wrapping_add(1)));
    assert_eq!(bench.engine.subjects().next().unwrap().machine, before);
    assert_eq!((bench.counters().late, bench.counters().resets, bench.counters().passed), (1, 1, 0));
}

#[test]
fn probe_is_not_given_up_while_its_answer_may_wait_to_be_received() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    let probe = bench.probe();
    let (sent_at, arrived) = (bench.now, bench.now + 10 * MS);
    bench.now = sent_at + 2 * TIMING.timeout;
    // A flood: only what arrived up to now has been looked at.
    bench.engine.poll(bench.now, sent_at + 5 * MS, &mut bench.out);
    assert_eq!(bench.counters().timeout, 0);
    bench.engine.receive(&syn_ack(&probe, probe.sequence.wrapping_add(1)), arrived, &mut bench.out);
    assert_eq!((bench.counters().passed, bench.counters().late), (1, 0));
}

#[test]
fn stall_is_followed_by_one_probe_of_each_check_some_at_a_time() {
    let mut bench = Bench::new(Kind::Icmp);
    let ports = 1..=3000;
    let count = ports.len();
    bench.set(ports.map(|port| Kind::Tcp { port }).collect());
    bench.now = bench.now + Duration::from_mins(1);
    let mut polls = 0;
    while bench.engine.poll(bench.now, bench.now, &mut bench.out) {
        let sent = bench.out.packets.iter().len();
        bench.out.packets.clear();
        polls += 1;
        assert!(sent <= 256 && polls < 20, "{sent} in poll {polls}");
    }
    assert_eq!(bench.counters().sent, u64::try_from(count).unwrap());
}

#[test]
fn results_count_in_the_order_of_sending() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    let first = bench.probe();
    let second = bench.probe();
    bench.receive(&reset(&second, second.sequence.wrapping_add(1)));
    assert_eq!(bench.engine.subjects().next().unwrap().machine.fall, 0, "the first has no result yet");
    bench.receive(&syn_ack(&first, first.sequence.wrapping_add(1)));
    let machine = bench.engine.subjects().next().unwrap().machine;
    assert_eq!((machine.rise, machine.fall), (0, 1), "a pass, then a failure");
}

#[test]
fn udp_silence_passes_only_with_the_echo() {
    for path in paths() {
        let mut bench = Bench::of(path, udp(false, None));
        let before = bench.sent.len();
        bench.until(|bench| bench.sent.len() >= before + 2);
        let echo = decode(&bench.sent[before + 1]);
        assert!(echo.echo);
        bench.receive(&echo_reply(&echo, &echo.payload.clone()));
        bench.pass(TIMING.timeout + MS);
        assert!(bench.counters().passed >= 1 && bench.counters().late == 0);
        let mut deaf = Bench::of(path, udp(false, None));
        deaf.until(|bench| bench.state() != State::Init);
        assert_eq!(deaf.state(), State::Down(Severity::Hard));
    }
}

/// The next probe and the echo request alongside it.
fn with_companion(bench: &mut Bench) -> [Probe; 2] {
    let before = bench.sent.len();
    bench.until(|bench| bench.sent.len() >= before + 2);
    let [probe, echo] = [0, 1].map(|n| decode(&bench.sent[before + n]));
    assert!(!probe.echo && echo.echo);
    [probe, echo]
}

#[test]
fn udp_probe_is_not_decided_by_an_error_about_the_echo_alongside() {
    for path in paths() {
        let mut bench = Bench::of(path, udp(false, None));
        let [probe, echo] = with_companion(&mut bench);
        bench.receive(&icmp_error(real_of(path.inner), PROHIBITED, &echo.inner));
        assert_eq!((bench.counters().evidence, bench.counters().unreachable), (1, 0));
        bench.receive(&datagram(&probe, b"answer"));
        assert_eq!(bench.counters().passed, 1, "the datagram itself was answered");
        let [_, echo] = with_companion(&mut bench);
        bench.receive(&icmp_error(real_of(path.inner), PROHIBITED, &echo.inner));
        bench.pass(TIMING.timeout + MS);
        let detail = bench.engine.subjects().next().unwrap().detail.unwrap();
        let text = format!("administratively prohibited from {} quoting the probe", real_of(path.inner));
        assert_eq!(detail.to_string(), text);
    }
}

#[test]
fn udp_reply_unexpected_is_a_mismatch_and_silence_fails_if_a_reply_is_required() {
    for path in paths() {
        let mut bench = Bench::of(path, udp(true, Some(b"yes")));
        let probe = bench.probe();
        bench.receive(&datagram(&probe, b"no"));
        assert_eq!(bench.counters().mismatch, 0, "the right one may still come");
        bench.receive(&datagram(&probe, b"yes"));
        assert_eq!((bench.counters().mismatch, bench.counters().passed), (0, 1));
        let probe = bench.probe();
        bench.receive(&datagram(&probe, b"no"));
        bench.pass(TIMING.timeout + MS);
        assert_eq!(bench.counters().mismatch, 1);
        let probe = bench.probe();
        bench.receive(&datagram(&probe, b"yes, sir"));
        assert_eq!(bench.counters().passed, 2);
        bench.pass(3 * TIMING.timeout);
        assert!(bench.counters().timeout > 0);
    }
}

#[test]
fn udp_port_unreachable_makes_soft_down_and_held_back_errors_do_not_bring_it_up() {
    for path in paths() {
        let mut bench = Bench::of(path, udp(false, None));
        // The real answers every echo, and one error a second (icmp_ratelimit).
        let (mut seen, mut last_error) = (0, None::<Monotonic>);
        for _ in 0..10_000 {
            bench.now = bench.now + MS;
            bench.engine.poll(bench.now, bench.now, &mut bench.out);
            bench.collect();
            while seen < bench.sent.len() {
                let probe = decode(&bench.sent[seen]);
                seen += 1;
                if probe.echo {
                    bench.receive(&echo_reply(&probe, &probe.payload.clone()));
                } else if last_error.is_none_or(|at| bench.now.since(at) >= Duration::from_secs(1)) {
                    last_error = Some(bench.now);
                    bench.receive(&icmp_error(probe.inner_ends.destination(), PORT_UNREACHABLE, &probe.inner));
                }
            }
        }
        assert_eq!(bench.state(), State::Down(Severity::Soft));
        assert_eq!(bench.out.transitions.len(), 1, "{:?}", bench.out.transitions);
    }
}

/// A real whose kernel answers every echo and rations its errors: `net/ipv4/inetpeer.c`, `inet_peer_xrlim_allow`.
struct Rationed {
    bench: Bench,
    seen: usize,
    tokens: Duration,
    last: Monotonic,
    /// Ports from here on are closed.
    closed_from: u16,
}

const CLOSED_FROM: u16 = 2000;

impl Rationed {
    /// Silent checks: of ports that are open, and of ports from [`CLOSED_FROM`] on, which are closed.
    fn new(open: u16, closed: u16) -> Self {
        let mut bench = Bench::new(Kind::Icmp);
        let kind = |port| Kind::Udp { port, payload: Vec::new(), expect: None, require_reply: false };
        bench.set((1000..1000 + open).chain(CLOSED_FROM..CLOSED_FROM + closed).map(kind).collect());
        let last = bench.now;
        Self { bench, seen: 0, tokens: Duration::from_secs(6), last, closed_from: CLOSED_FROM }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.bench.now + time;
        while self.bench.now < end {
            self.bench.now = self.bench.now + MS;
            self.bench.engine.poll(self.bench.now, self.bench.now, &mut self.bench.out);
            self.bench.collect();
            while let Some(probe) = self.bench.sent.get(self.seen).map(|bytes| decode(bytes)) {
                self.seen += 1;
                if probe.echo {
                    self.bench.receive(&echo_reply(&probe, &probe.payload.clone()));
                } else if probe.to >= self.closed_from && self.grants_error() {
                    self.bench.receive(&icmp_error(probe.inner_ends.destination(), PORT_UNREACHABLE, &probe.inner));
                }
            }
        }
    }

    fn grants_error(&mut self) -> bool {
        const RATE: Duration = Duration::from_secs(1);
        self.tokens = (self.tokens + self.bench.now.since(self.last)).min(6 * RATE);
        self.last = self.bench.now;
        let granted = self.tokens >= RATE;
        self.tokens = self.tokens.checked_sub(RATE).unwrap_or(self.tokens);
        granted
    }

    /// Ports and states.
    fn states(&self) -> Vec<(u16, State)> {
        let port = |kind: &Kind| if let Kind::Udp { port, .. } = kind { *port } else { 0 };
        self.bench.engine.subjects().map(|subject| (port(&subject.check.key.kind), subject.machine.state)).collect()
    }
}

#[test]
fn udp_ports_closed_are_all_down_though_the_real_rations_its_errors() {
    let mut real = Rationed::new(0, 10);
    real.pass(Duration::from_mins(2));
    assert!(real.states().iter().all(|(_, state)| *state == State::Down(Severity::Soft)), "{:?}", real.states());
    real.pass(Duration::from_mins(10));
    let transitions = &real.bench.out.transitions;
    assert!(transitions.iter().all(|(_, change)| change.to == State::Down(Severity::Soft)), "{transitions:?}");
    assert_eq!(transitions.len(), 10);
}

#[test]
fn udp_port_silent_comes_up_beside_closed_ones() {
    for (closed, within) in [(0, 5), (1, 30), (5, 120)] {
        let mut real = Rationed::new(1, closed);
        real.pass(Duration::from_secs(within));
        for (port, state) in real.states() {
            let expected = if port < CLOSED_FROM { State::Up } else { State::Down(Severity::Soft) };
            assert_eq!(state, expected, "port {port}, {closed} closed");
        }
    }
}

#[test]
fn udp_port_that_opens_comes_up_again() {
    let mut real = Rationed::new(0, 1);
    real.pass(Duration::from_secs(30));
    assert_eq!(real.bench.state(), State::Down(Severity::Soft));
    real.closed_from = u16::MAX;
    real.pass(Duration::from_secs(10));
    assert_eq!(real.bench.state(), State::Up);
}

#[test]
fn probe_that_cannot_be_sent_proves_nothing_and_says_why() {
    let mut bench = Bench::new(Kind::Icmp);
    let key = bench.engine.subjects().next().unwrap().check.key.clone();
    let check = Check { key, timing: TIMING };
    bench.engine.set_checks(vec![Planned { check, path: Err(Detail::NoRoute(101)) }], bench.now);
    bench.pass(Duration::from_secs(5));
    let subject = bench.engine.subjects().next().unwrap();
    assert_eq!((subject.machine.state, subject.last_run), (State::Init, None));
    assert!(subject.detail.unwrap().to_string().starts_with("no route to the real"));
    assert_eq!((bench.counters().sent, bench.sent.len()), (0, 0));
    assert!(bench.counters().unknown > 0);
}

/// Attempts in `time`; the clock stands still within each `poll`, which must return.
fn attempts(bench: &mut Bench, time: Duration) -> u64 {
    let before = bench.counters().unknown;
    bench.pass(time);
    bench.counters().unknown - before
}

/// So many attempts are due in `time` while a verdict is pending.
fn due_within(time: Duration) -> RangeInclusive<u64> {
    let often = |interval: Duration| u64::try_from(time.as_millis() / interval.as_millis()).unwrap();
    often(TIMING.fast_interval.mul_f64(1.1)) - 1..=often(TIMING.fast_interval.mul_f64(0.9)) + 1
}

#[test]
fn route_lost_while_a_verdict_is_pending_is_retried_at_the_fast_interval() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    bench.up();
    let probe = bench.probe();
    bench.receive(&reset(&probe, probe.sequence.wrapping_add(1)));
    let key = bench.engine.subjects().next().unwrap().check.key.clone();
    let check = Check { key, timing: TIMING };
    bench.engine.set_checks(vec![Planned { check, path: Err(Detail::NoRoute(101)) }], bench.now);
    let time = Duration::from_secs(5);
    let attempts = attempts(&mut bench, time);
    assert!(due_within(time).contains(&attempts), "{attempts}");
    assert_eq!(bench.state(), State::Up);
}

#[test]
fn ports_all_in_use_are_retried_at_the_fast_interval() {
    // The only port awaits its answer for the whole timeout.
    let mut bench = Bench::on_ports(Kind::Tcp { port: 80 }, 61000..=61000);
    bench.probe();
    let time = TIMING.timeout.mul_f64(0.9);
    let attempts = attempts(&mut bench, time);
    assert!(due_within(time).contains(&attempts), "{attempts}");
    assert_eq!(bench.counters().no_port, attempts);
}

#[test]
fn interval_made_shorter_holds_at_once() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    bench.up();
    let key = bench.engine.subjects().next().unwrap().check.key.clone();
    let path = bench.engine.subjects().next().unwrap().path;
    let set = |bench: &mut Bench, interval| {
        let check = Check { key: key.clone(), timing: Timing { interval, ..TIMING } };
        bench.engine.set_checks(vec![Planned { check, path }], bench.now);
    };
    set(&mut bench, Duration::from_mins(10));
    let probe = bench.probe();
    bench.receive(&syn_ack(&probe, probe.sequence.wrapping_add(1)));
    set(&mut bench, Duration::from_secs(1));
    let before = bench.now;
    bench.probe();
    assert!(bench.now.since(before) <= Duration::from_secs(1) + MS);
}

#[test]
fn path_found_again_is_taken_by_the_next_probe() {
    let mut bench = Bench::new(Kind::Icmp);
    let subject = bench.engine.subjects().next().unwrap();
    let found = Planned { check: subject.check.clone(), path: subject.path };
    bench.engine.set_path(&Planned { path: Err(Detail::NoRoute(101)), ..found.clone() });
    bench.pass(Duration::from_secs(3));
    assert_eq!(bench.sent.len(), 0);
    bench.engine.set_path(&found);
    bench.probe();
}

#[test]
fn checks_set_again_keep_their_state() {
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    bench.up();
    bench.set(vec![Kind::Tcp { port: 80 }, Kind::Icmp]);
    let states: Vec<State> = bench.engine.subjects().map(|subject| subject.machine.state).collect();
    assert_eq!(states, [State::Up, State::Init]);
}

proptest! {
    #[test]
    fn any_captured_bytes_change_no_verdict(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 20..80), 1..50)) {
        let mut bench = Bench::new(Kind::Tcp { port: 80 });
        bench.up();
        for mut packet in packets {
            let probe_like = syn_ack(&decode(&bench.sent[0]), u32::from(packet[0]));
            packet[..20].copy_from_slice(&probe_like[..20]);
            bench.receive(&packet);
        }
        prop_assert_eq!(bench.state(), State::Up);
        prop_assert_eq!(bench.counters().passed, 2);
    }
}

fn dns() -> Kind {
    Kind::Named { port: 53, probe: Named::Dns(Query::new("example.org", QueryType::A).unwrap()) }
}

/// What a server makes of a query.
fn answered(probe: &Probe, rcode: u8) -> Vec<u8> {
    let mut message = probe.payload.clone();
    (message[2], message[3]) = (0x81, 0x80 | rcode);
    message
}

#[test]
fn dns_answer_with_another_id_is_forged_and_the_right_one_still_counts() {
    for path in paths() {
        let mut bench = Bench::of(path, dns());
        while bench.state() != State::Up {
            let probe = bench.probe();
            let genuine = answered(&probe, 0);
            let mut forged = genuine.clone();
            forged[1] ^= 1;
            bench.receive(&datagram(&probe, &forged));
            bench.receive(&datagram(&probe, &genuine));
        }
        let Counters { passed, forged, late, .. } = bench.counters();
        assert_eq!((passed, forged, late), (2, 2, 0));
    }
}

#[test]
fn dns_answers_that_are_none_make_soft_down_at_once_and_silence_hard_down() {
    let mut bench = Bench::new(dns());
    while bench.state() == State::Init {
        let probe = bench.probe();
        bench.receive(&datagram(&probe, &answered(&probe, 2)));
        assert_eq!(bench.engine.awaited(), 0, "nothing more is awaited");
    }
    assert_eq!(bench.state(), State::Down(Severity::Soft));
    let (_, change) = &bench.out.transitions[0];
    assert_eq!((change.reason, change.detail), (Reason::Mismatch, Some(Detail::Rcode(2))));
    bench.until(|bench| bench.state() == State::Down(Severity::Hard));
    assert!(bench.sent.iter().all(|packet| !decode(packet).echo), "no echo alongside: silence means down");
}

#[test]
fn ntp_reply_to_another_request_is_forged() {
    let mut bench = Bench::new(Kind::Named { port: 123, probe: Named::Ntp });
    while bench.state() != State::Up {
        let probe = bench.probe();
        let reply = |originate: &[u8]| {
            let mut reply = vec![0; 48];
            (reply[0], reply[1]) = (0b00_100_100, 2);
            reply[24..32].copy_from_slice(originate);
            datagram(&probe, &reply)
        };
        bench.receive(&reply(&[1; 8]));
        bench.receive(&reply(&probe.payload[40..48]));
    }
    assert_eq!((bench.counters().passed, bench.counters().forged), (2, 2));
}

/// A target behind the real: probes and resets have to get that far.
#[test]
fn hops_are_those_of_probe_and_reset() {
    for path in paths() {
        let mut bench = Bench::of(Path { hops: NonZeroU8::new(3).unwrap(), ..path }, Kind::Tcp { port: 80 });
        bench.up();
        let hops = |packet: &Vec<u8>| {
            let inner = decode(packet).inner;
            if inner[0] >> 4 == 4 { inner[8] } else { inner[7] }
        };
        assert_eq!(bench.sent.iter().map(hops).collect::<Vec<_>>(), [3; 4]);
    }
}

#[test]
fn silence_beyond_a_fault_of_our_side_is_no_failure_unless_others_are_answered() {
    let fault = Detail::Gateway([198, 18, 0, 254].into());
    let mut bench = Bench::new(Kind::Tcp { port: 80 });
    bench.up();
    bench.engine.set_fault(Some(fault), bench.now);
    bench.pass(Duration::from_secs(15));
    assert_eq!((bench.state(), bench.engine.is_cut_off()), (State::Up, true));
    let subject = bench.engine.subjects().next().unwrap();
    assert_eq!((subject.detail, subject.machine.fall), (Some(fault), 0));

    // What left before the gateway came back may still be lost.
    bench.probe();
    bench.engine.set_fault(None, bench.now);
    bench.pass(TIMING.timeout + MS);
    assert_eq!((bench.state(), bench.engine.is_cut_off()), (State::Up, false));
    bench.engine.set_fault(Some(fault), bench.now);

    bench.set(vec![Kind::Tcp { port: 80 }, Kind::Tcp { port: 81 }]);
    while bench.state() == State::Up {
        let probe = bench.probe();
        if probe.to == 81 && !probe.reset {
            bench.receive(&syn_ack(&probe, probe.sequence.wrapping_add(1)));
        }
        assert!(bench.now < Monotonic(120_000_000_000), "never DOWN");
    }
    assert_eq!(bench.state(), State::Down(Severity::Hard));
}

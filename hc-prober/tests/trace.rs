//! Packets of checks in a file, with what the prober made of them. The last test needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "in a test, a panic is the message"
)]

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, TcpListener},
    num::NonZeroU8,
    time::{Duration, SystemTime},
};

use common::{Net, PAIRS, V4, VIP, VIP_6, inside};
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use hc_prober::{
    Check, CheckKey, Kind, Timing,
    ends::Ends,
    engine::{Engine, Output, Planned},
    subject::{Path, Tunnel},
    time::Monotonic,
    trace::{Tracer, write},
};
use pcap_file::pcapng::{Block, PcapNgReader, blocks::enhanced_packet::EnhancedPacketOption};

const US: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const REAL: Ipv4Addr = Ipv4Addr::new(198, 18, 101, 10);
const TARGET: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 1);
const MS: Duration = Duration::from_millis(1);

/// An engine with one TCP check, and a tracer that is shown all it does, as the driver would.
struct Bench {
    engine: Engine,
    tracer: Tracer,
    out: Output,
    number: u32,
    now: Monotonic,
}

impl Bench {
    fn new(tracer: Tracer) -> Self {
        let inner = Ends::V4 { source: US, destination: TARGET };
        let tunnel = Some(Tunnel::V4 { source: US.into(), real: REAL });
        let path = Ok(Path { tunnel, inner, hops: NonZeroU8::MIN });
        let key = CheckKey::new(REAL.into(), TARGET.into(), Kind::Tcp { port: 80 });
        let mut engine = Engine::new(&[9; 16], 61_000..=61_999);
        let now = Monotonic(1_000_000_000);
        let number = engine.add(Planned { check: Check { key, timing: Timing::default() }, path }, now).unwrap();
        Self { engine, tracer, out: Output::default(), number, now }
    }

    /// The source port and sequence number of the probe that leaves now.
    fn probe(&mut self) -> (u16, u32) {
        self.engine.launch(self.number, self.now, &mut self.out);
        let packet = self.out.packets.iter().last().unwrap().bytes[20..].to_vec();
        self.turn();
        let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ip(&packet).unwrap().transport else { panic!() };
        (tcp.source_port(), tcp.sequence_number())
    }

    fn syn_ack(&mut self, port: u16, acknowledgement: u32) {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(TARGET.octets(), US.octets(), 64).tcp(80, port, 7, 1000);
        builder.syn().ack(acknowledgement).write(&mut bytes, &[]).unwrap();
        self.now = self.now + MS;
        self.tracer.receive(&mut self.engine, &bytes, self.now, &mut self.out);
        self.turn();
    }

    fn time_out(&mut self) {
        self.now = self.now + Timing::default().timeout + MS;
        self.engine.poll(self.now, self.now, &mut self.out);
        self.turn();
    }

    fn turn(&mut self) {
        for packet in self.out.packets.iter() {
            self.tracer.sent(&packet, |_| None, self.now);
        }
        self.tracer.found(&self.out.findings, &self.engine);
        self.out.clear();
    }

    fn comments(&self) -> Vec<String> {
        let records = self.tracer.trace(self.number).map(|trace| trace.records.iter());
        records.into_iter().flatten().map(|record| record.comment.clone()).collect()
    }
}

#[test]
fn packets_are_commented_with_what_became_of_them() {
    let mut bench = Bench::new(Tracer::default());
    let key = bench.engine.check(bench.number).unwrap().key.clone();
    bench.tracer.ask(bench.number, &key, Monotonic(u64::MAX), 0);
    let (port, sequence) = bench.probe();
    bench.syn_ack(port, sequence);
    bench.syn_ack(port, sequence.wrapping_add(1));
    bench.syn_ack(port, sequence.wrapping_add(1));
    bench.probe();
    bench.time_out();
    let expected = [
        "probe 0: SYN; passed: L4OK after 2.000 ms",
        "forged: it does not give back what only the probe's receiver knows; not believed",
        "answer to probe 0: passed: L4OK after 2.000 ms",
        "RST, so that nothing is left behind",
        "the same SYN-ACK again: the RST was lost; answered by another",
        "RST, so that nothing is left behind",
        "probe 1: SYN; failed, hard: TIMEOUT",
    ];
    assert_eq!(bench.comments(), expected);

    let mut file = Vec::new();
    let wall = |at: Monotonic| SystemTime::UNIX_EPOCH + at.since(Monotonic::default());
    write(&[bench.tracer.trace(bench.number).unwrap().clone()], wall, &mut file).unwrap();
    let packets = read(&file);
    assert_eq!(packets.iter().map(|packet| packet.comment.as_str()).collect::<Vec<_>>(), expected);
    let ms: Vec<_> = packets.iter().map(|packet| packet.at.as_millis()).collect();
    assert_eq!(ms, [1000, 1001, 1002, 1002, 1003, 1003, 1003]);
    assert_eq!(packets.iter().filter(|packet| packet.inbound).count(), 3);
}

#[test]
fn check_that_fails_is_traced_until_it_has_passed_for_a_while() {
    let mut bench = Bench::new(Tracer::of_failures());
    bench.probe();
    assert!(bench.tracer.is_idle() && bench.comments().is_empty());
    bench.time_out();
    for _ in 0..5 {
        let (port, sequence) = bench.probe();
        bench.syn_ack(port, sequence.wrapping_add(1));
    }
    // Not the first, which nobody knew would fail, and none after the third in a row that passed.
    let comments = bench.comments();
    bench.tracer.rest(bench.now);
    assert!(bench.tracer.is_idle(), "nothing is looked at any more");
    let probes: Vec<_> = comments.iter().filter(|comment| comment.contains("SYN;")).cloned().collect();
    assert_eq!(probes, [1, 2, 3].map(|serial| format!("probe {serial}: SYN; passed: L4OK after 1.000 ms")));
    bench.probe();
    bench.time_out();
    bench.probe();
    bench.time_out();
    assert_eq!(bench.comments().last().unwrap(), "probe 7: SYN; failed, hard: TIMEOUT", "it goes on where it ended");
    assert_eq!(bench.comments()[0], comments[0]);
}

/// A packet of a file.
struct Packet {
    bytes: Vec<u8>,
    comment: String,
    inbound: bool,
    at: Duration,
}

fn read(file: &[u8]) -> Vec<Packet> {
    let mut reader = PcapNgReader::new(file).unwrap();
    let mut packets = Vec::new();
    while let Some(block) = reader.next_block() {
        let Block::EnhancedPacket(packet) = block.unwrap() else { continue };
        let [EnhancedPacketOption::Comment(comment), EnhancedPacketOption::Flags(flags)] = &packet.options[..] else {
            panic!("{packet:?}")
        };
        let (comment, inbound) = (comment.to_string(), flags & 3 == 1);
        packets.push(Packet { bytes: packet.data.to_vec(), comment, inbound, at: packet.timestamp });
    }
    packets
}

#[test]
fn one_shot_writes_its_packets_as_they_were_on_the_wire() {
    let net = Net::new();
    let _listeners =
        inside(&net.real, || [IpAddr::from(VIP), IpAddr::from(VIP_6)].map(|vip| TcpListener::bind((vip, 80)).unwrap()));
    let path = std::env::temp_dir().join(format!("{}.pcapng", net.lb));
    let file = path.to_str().unwrap();
    for pair in PAIRS {
        let output = net.command(pair, &format!("--tcp 80 --pcap {file}")).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.is_empty()), (Some(0), true), "{output:?}");
        let packets = read(&std::fs::read(&path).unwrap());
        let directions: Vec<_> = packets.iter().map(|packet| packet.inbound).collect();
        assert_eq!(directions, [false, true, false], "SYN, SYN-ACK, RST");
        assert!(packets.is_sorted_by_key(|packet| packet.at));
        for packet in &packets {
            let destination: IpAddr = match SlicedPacket::from_ip(&packet.bytes).unwrap().net.unwrap() {
                NetSlice::Ipv4(ip) => ip.header().destination_addr().into(),
                NetSlice::Ipv6(ip) => ip.header().destination_addr().into(),
                NetSlice::Arp(_) => panic!("ARP"),
            };
            assert_eq!(destination == pair.0, !packet.inbound, "what is sent is in its tunnel: {}", packet.comment);
        }
    }
    std::fs::remove_file(&path).unwrap();
    let output = net.command(V4, "--tcp 80 --pcap /nosuch/file").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("write /nosuch/file: No such file"), "{output:?}");
}

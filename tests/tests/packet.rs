//! Packets through the real XDP program with `BPF_PROG_TEST_RUN`: what goes in, which verdict, what comes out.
//! `etherparse`, which shares no code with the program, builds what goes in and reads what comes out.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    clippy::large_stack_arrays,
    reason = "a helper that fails fails its test"
)]

use aya::programs::{TestRun as _, TestRunOptions};
use etherparse::{
    Icmpv4Type, IpNumber, Ipv4Slice, NetSlice, PacketBuilder, SlicedPacket, TransportSlice, checksum::Sum16BitWords,
};
use lb_ebpf::{
    counter::{FlowEvent, Reason, real_index, vip_index},
    hash::{HashKey, flow_hash},
    real::{NextHop, RealEntry, SERVES_TCP, SERVES_UDP},
    ring::{RING_SLOTS, RealId, Ring, RingRef, Slot, slot_index},
};
use lbd::{
    config::{Protocol, VipKey, VipMiss},
    data_plane::DataPlane,
    vip_table::{self, Row},
};
use proptest::prelude::*;
use std::{
    cell::RefCell,
    collections::BTreeSet,
    net::Ipv4Addr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

const CLIENT: [u8; 4] = [198, 18, 10, 10];
const VIP: [u8; 4] = [198, 19, 10, 1];
const OTHER: [u8; 4] = [198, 19, 10, 2];
const LB: Ipv4Addr = Ipv4Addr::new(198, 18, 221, 11);
const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
const SEED: [u8; 16] = *b"a seed for tests";
/// The ingress interface of a test run: loopback.
const INGRESS: u32 = 1;
const IDLE: Duration = Duration::from_mins(15);

const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;
const XDP_TX: u32 = 3;
const XDP_REDIRECT: u32 = 4;

fn real_address(id: RealId) -> Ipv4Addr {
    Ipv4Addr::new(198, 18, 100 + u8::try_from(id).unwrap(), 10)
}

/// A loaded program with one TCP and one UDP VIP on port 80 and 53, and TCP on all ports of another address.
struct Path {
    data_plane: DataPlane,
    directory: PathBuf,
}

impl Path {
    fn new(unmatched: VipMiss) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = PathBuf::from(format!("/sys/fs/bpf/lbd-packet-test-{}-{number}", std::process::id()));
        let mut data_plane = DataPlane::load(&directory).expect("loading the program needs root");
        let row = |index, address: [u8; 4], protocol, port| Row {
            key: VipKey { address: Ipv4Addr::from(address).into(), protocol, port },
            index,
            ring_order: 0,
            flow_idle: IDLE,
        };
        let rows = [row(0, VIP, Protocol::Tcp, 80), row(1, VIP, Protocol::Udp, 53), row(2, OTHER, Protocol::Tcp, 0)];
        data_plane.swap_vips(&vip_table::build(&rows, SEED, unmatched)).unwrap();
        let mut path = Self { data_plane, directory };
        for id in 1..=3 {
            path.real(id, SERVES_TCP | SERVES_UDP);
        }
        for vip in 0..3 {
            path.ring(vip, |slot| Slot::new(1 + RealId::try_from(slot % 3).unwrap(), 0, false, false));
        }
        path
    }

    fn hop() -> NextHop {
        NextHop { ifindex: INGRESS, mtu: 1500, source_mac: LB_MAC, destination_mac: GATEWAY_MAC }
    }

    fn real(&mut self, id: RealId, serves: u32) {
        let entry = RealEntry::ipip(LB, real_address(id), Some(&Self::hop()), serves);
        self.data_plane.set_real(id, entry).unwrap();
    }

    fn ring(&mut self, vip: u16, slot: impl Fn(usize) -> Slot) {
        let mut ring = Box::new(Ring { slots: [Slot::default(); RING_SLOTS] });
        for (at, word) in ring.slots.iter_mut().enumerate() {
            *word = slot(at);
        }
        self.data_plane.swap_ring(RingRef::new(vip, 0).place(0), &ring).unwrap();
    }

    /// Runs one packet; returns the XDP action, the packet as it leaves and the one reason that was counted.
    fn run(&mut self, packet: &[u8]) -> (u32, Vec<u8>, Reason) {
        let before = self.reasons();
        let mut out = vec![0; packet.len() + 256];
        let mut options = TestRunOptions::new();
        options.data_in = Some(packet);
        options.data_out = Some(&mut out);
        let result = self.data_plane.xdp().unwrap().test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        let counted: Vec<_> = self.reasons().into_iter().zip(before).filter(|(now, then)| now.1 != then.1).collect();
        let [((reason, now), (_, then))] = counted.as_slice() else { panic!("one reason a packet, not {counted:?}") };
        assert_eq!(now - then, 1);
        (result.return_value, out, *reason)
    }

    fn reasons(&self) -> Vec<(Reason, u64)> {
        Reason::ALL.iter().map(|&r| (r, self.data_plane.reason(r).unwrap().packets)).collect()
    }

    fn flow_events(&self, event: FlowEvent) -> u64 {
        self.data_plane.flow_events(event).unwrap()
    }

    /// Runs a packet that must be forwarded; returns the real that it went to.
    fn forward(&mut self, packet: &[u8]) -> RealId {
        let (action, out, reason) = self.run(packet);
        assert_eq!((action, reason), (XDP_TX, Reason::Forwarded));
        let outer = ipv4(&out);
        let id = RealId::from(outer.header().destination()[2]) - 100;
        assert_eq!(outer.header().destination_addr(), real_address(id));
        id
    }
}

impl Drop for Path {
    fn drop(&mut self) {
        self.data_plane.detach().unwrap();
        std::fs::remove_dir(&self.directory).unwrap();
    }
}

fn builder(destination: [u8; 4]) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    PacketBuilder::ethernet2(ROUTER_MAC, LB_MAC).ipv4(CLIENT, destination, 61)
}

fn write(step: etherparse::PacketBuilderStep<etherparse::TcpHeader>, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    step.write(&mut packet, payload).unwrap();
    packet
}

fn tcp(destination: [u8; 4], source_port: u16, port: u16) -> Vec<u8> {
    write(builder(destination).tcp(source_port, port, 7, 1024).ack(9), b"GET / HTTP/1.1\r\n\r\n")
}

fn syn(destination: [u8; 4], source_port: u16, port: u16) -> Vec<u8> {
    write(builder(destination).tcp(source_port, port, 7, 1024).syn(), b"")
}

fn udp(destination: [u8; 4], source_port: u16, port: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    builder(destination).udp(source_port, port).write(&mut packet, payload).unwrap();
    packet
}

fn echo(destination: [u8; 4], id: u16, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    builder(destination).icmpv4_echo_request(id, 3).write(&mut packet, payload).unwrap();
    packet
}

/// Changes bytes of the IPv4 header and mends its checksum.
fn patched(mut packet: Vec<u8>, at: usize, bytes: &[u8]) -> Vec<u8> {
    packet[at..at + bytes.len()].copy_from_slice(bytes);
    let len = usize::from(packet[14] & 0xf) * 4;
    if len >= 20 && packet.len() >= 14 + len {
        packet[24..26].fill(0);
        let sum = Sum16BitWords::new().add_slice(&packet[14..14 + len]).ones_complement().to_be();
        packet[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The outermost IPv4 header, after checking that its checksum is right.
fn ipv4(packet: &[u8]) -> Ipv4Slice<'_> {
    let Some(NetSlice::Ipv4(ip)) = SlicedPacket::from_ethernet(packet).unwrap().net else { panic!("no IPv4") };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    ip
}

#[test]
fn tcp_for_vip_leaves_inside_ipip_for_a_real() {
    let mut path = Path::new(VipMiss::Drop);
    let packet = tcp(VIP, 40_000, 80);
    let (action, out, reason) = path.run(&packet);
    assert_eq!((action, reason), (XDP_TX, Reason::Forwarded));
    assert_eq!(out[..12], [GATEWAY_MAC, LB_MAC].concat());
    let outer = ipv4(&out);
    let outer = outer.header();
    assert_eq!((outer.source_addr(), outer.protocol(), outer.ttl()), (LB, IpNumber::IPV4, 64));
    assert_eq!(usize::from(outer.total_len()), packet.len() - 14 + 20);
    assert_eq!(out[34..], packet[14..], "the inner packet is untouched");
}

#[test]
fn outer_header_copies_tos_df_and_id() {
    let mut path = Path::new(VipMiss::Drop);
    for (tos, flags) in [(0x00, 0x00), (0xb9, 0x40), (0x03, 0x00), (0xff, 0x40)] {
        let packet = patched(patched(tcp(VIP, 1, 80), 15, &[tos]), 18, &[0xab, 0xcd, flags, 0]);
        let (_, out, _) = path.run(&packet);
        ipv4(&out);
        assert_eq!((out[15], &out[18..22]), (tos, &[0xab, 0xcd, flags, 0][..]));
    }
}

#[test]
fn outer_length_leaves_out_ethernet_padding() {
    let mut path = Path::new(VipMiss::Drop);
    let mut packet = syn(VIP, 1, 80);
    let ip_len = packet.len() - 14;
    packet.resize(60, 0);
    let (_, out, _) = path.run(&packet);
    assert_eq!(usize::from(ipv4(&out).header().total_len()), ip_len + 20);
}

#[test]
fn flow_goes_where_its_slot_says() {
    let mut path = Path::new(VipMiss::Drop);
    let key = HashKey::from_seed(SEED);
    for port in 1..200_u16 {
        let ports = u32::from_ne_bytes([port.to_be_bytes(), 80_u16.to_be_bytes()].concat().try_into().unwrap());
        let hash = flow_hash(&key, u32::from_ne_bytes(CLIENT), u32::from_ne_bytes(VIP), ports, 6);
        let expected = 1 + RealId::try_from(slot_index(hash, 0) % 3).unwrap();
        assert_eq!(path.forward(&tcp(VIP, port, 80)), expected);
        assert_eq!(path.forward(&syn(VIP, port, 80)), expected);
    }
}

#[test]
fn udp_and_any_port_vips_are_matched() {
    let mut path = Path::new(VipMiss::Drop);
    path.forward(&udp(VIP, 4000, 53, b"query"));
    path.forward(&tcp(OTHER, 4000, 1));
    path.forward(&tcp(OTHER, 4000, 65_535));
}

#[test]
fn counters_of_vip_and_real_grow_with_the_packet() {
    let mut path = Path::new(VipMiss::Drop);
    let packet = udp(VIP, 4000, 53, b"query");
    let id = path.forward(&packet);
    for index in [vip_index(1), real_index(id)] {
        let counter = path.data_plane.counter(index).unwrap();
        assert_eq!((counter.packets, counter.bytes), (1, packet.len() as u64));
    }
}

#[test]
fn packet_over_the_mtu_once_encapsulated_is_dropped() {
    let mut path = Path::new(VipMiss::Drop);
    path.forward(&udp(VIP, 1, 53, &[0; 1500 - 20 - 20 - 8]));
    let (action, _, reason) = path.run(&udp(VIP, 1, 53, &[0; 1500 - 20 - 20 - 8 + 1]));
    assert_eq!((action, reason), (XDP_DROP, Reason::DropTooBig));
}

#[test]
fn real_behind_another_interface_is_redirected_to() {
    let mut path = Path::new(VipMiss::Drop);
    let hop = NextHop { ifindex: INGRESS + 1, ..Path::hop() };
    for id in 1..=3 {
        path.data_plane.set_real(id, RealEntry::ipip(LB, real_address(id), Some(&hop), SERVES_TCP)).unwrap();
    }
    let (action, _, reason) = path.run(&tcp(VIP, 1, 80));
    assert_eq!((action, reason), (XDP_REDIRECT, Reason::Redirected));
}

#[test]
fn real_without_next_hop_and_empty_ring_drop_with_their_reasons() {
    let mut path = Path::new(VipMiss::Drop);
    for id in 1..=3 {
        path.data_plane.set_real(id, RealEntry::ipip(LB, real_address(id), None, SERVES_TCP)).unwrap();
    }
    assert_eq!(path.run(&tcp(VIP, 1, 80)).2, Reason::DropNoNextHop);
    path.ring(0, |_| Slot::default());
    assert_eq!(path.run(&tcp(VIP, 1, 80)).2, Reason::DropNoReal);
}

#[test]
fn what_is_not_for_a_vip_passes_untouched() {
    let mut path = Path::new(VipMiss::Drop);
    let elsewhere = [198, 18, 221, 11];
    let fragment = patched(tcp(elsewhere, 1, 80), 20, &[0x20, 0]);
    let options = patched(tcp(elsewhere, 1, 80), 14, &[0x46]);
    let mut ipv6 = Vec::new();
    PacketBuilder::ethernet2(ROUTER_MAC, LB_MAC).ipv6([1; 16], [2; 16], 64).udp(1, 2).write(&mut ipv6, b"x").unwrap();
    let arp = [&[0xff; 6][..], &ROUTER_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
    let runt = tcp(VIP, 1, 80)[..33].to_vec();
    for packet in [tcp(elsewhere, 1, 80), echo(elsewhere, 1, b"x"), fragment, options, ipv6, arp, runt] {
        let (action, out, reason) = path.run(&packet);
        assert!(action == XDP_PASS && out == packet, "{reason:?}");
        assert!(matches!(reason, Reason::PassNotVip | Reason::PassNotIpv4), "{reason:?}");
    }
}

#[test]
fn unknown_port_of_a_vip_is_dropped_or_passed_by_configuration() {
    let packet = tcp(VIP, 1, 81);
    let (action, _, reason) = Path::new(VipMiss::Drop).run(&packet);
    assert_eq!((action, reason), (XDP_DROP, Reason::DropUnmatched));
    let (action, out, reason) = Path::new(VipMiss::Pass).run(&packet);
    assert_eq!((action, reason, out), (XDP_PASS, Reason::PassUnmatched, packet));
}

#[test]
fn odd_headers_for_a_vip_are_dropped_each_with_its_reason() {
    let mut path = Path::new(VipMiss::Drop);
    let packet = tcp(VIP, 1, 80);
    let total_len = u16::try_from(packet.len() - 14).unwrap();
    for (what, packet, expected) in [
        ("first fragment", patched(packet.clone(), 20, &[0x20, 0]), Reason::DropFragment),
        ("later fragment", patched(packet.clone(), 20, &[0, 1]), Reason::DropFragment),
        ("options", patched(packet.clone(), 14, &[0x46]), Reason::DropOptions),
        ("short header length", patched(packet.clone(), 14, &[0x44]), Reason::DropMalformed),
        ("version 5", patched(packet.clone(), 14, &[0x55]), Reason::DropMalformed),
        ("longer than the frame", patched(packet.clone(), 16, &(total_len + 1).to_be_bytes()), Reason::DropMalformed),
        ("shorter than its headers", patched(packet.clone(), 16, &39_u16.to_be_bytes()), Reason::DropMalformed),
        ("shorter than IPv4", patched(packet.clone(), 16, &19_u16.to_be_bytes()), Reason::DropMalformed),
        ("cut off", packet[..14 + 20 + 4].to_vec(), Reason::DropMalformed),
        ("GRE", patched(packet.clone(), 23, &[47]), Reason::DropUnmatched),
    ] {
        let (action, _, reason) = path.run(&packet);
        assert_eq!((action, reason), (XDP_DROP, expected), "{what}");
    }
}

#[test]
fn icmp_other_than_echo_request_passes() {
    let mut path = Path::new(VipMiss::Drop);
    let mut packet = Vec::new();
    builder(VIP).icmpv4_echo_reply(1, 2).write(&mut packet, b"x").unwrap();
    let (action, out, reason) = path.run(&packet);
    assert_eq!((action, reason, out), (XDP_PASS, Reason::PassIcmp, packet));
}

fn remembering(cur: RealId, prev: RealId) -> impl Fn(usize) -> Slot {
    move |_| Slot::new(cur, prev, true, true)
}

#[test]
fn tracked_flow_keeps_its_real_when_the_slot_changes() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(0, remembering(1, 0));
    assert_eq!(path.forward(&syn(VIP, 7, 80)), 1);
    path.ring(0, remembering(2, 0));
    assert_eq!(path.forward(&tcp(VIP, 7, 80)), 1, "remembered");
    assert_eq!(path.forward(&tcp(VIP, 8, 80)), 2, "not remembered");
    assert_eq!(path.flow_events(FlowEvent::Hit), 1);
    assert_eq!(path.forward(&syn(VIP, 7, 80)), 2, "a new connection on the same ports");
    assert_eq!(path.forward(&tcp(VIP, 7, 80)), 2);
}

#[test]
fn window_sends_flows_without_entry_to_prev_and_syns_to_cur() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(0, remembering(2, 1));
    assert_eq!(path.forward(&tcp(VIP, 7, 80)), 1);
    assert_eq!(path.forward(&syn(VIP, 8, 80)), 2);
    path.ring(0, |_| Slot::new(2, 0, false, true));
    assert_eq!(path.forward(&tcp(VIP, 7, 80)), 1, "remembered after the window");
}

#[test]
fn real_that_serves_no_more_loses_its_flows_to_cur() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(0, remembering(1, 0));
    path.forward(&syn(VIP, 7, 80));
    path.ring(0, remembering(2, 1));
    path.real(1, SERVES_UDP);
    assert_eq!(path.forward(&tcp(VIP, 7, 80)), 2);
    assert_eq!(path.forward(&tcp(VIP, 9, 80)), 2, "prev no longer serves TCP");
}

#[test]
fn steady_slots_touch_no_flow_table() {
    let mut path = Path::new(VipMiss::Drop);
    for port in 1..50 {
        path.forward(&syn(VIP, port, 80));
        path.forward(&tcp(VIP, port, 80));
    }
    assert!(FlowEvent::ALL.iter().all(|&event| path.flow_events(event) == 0));
}

#[test]
fn echo_for_a_vip_is_answered_with_valid_checksums_for_every_input() {
    let mut path = Path::new(VipMiss::Drop);
    // Identifiers and payloads around the places where a carry is lost; all-ones and all-zero sums.
    let payloads: [&[u8]; 5] = [b"", b"\xff\xff", b"\xf7\xfe", b"abcdefg", &[0xff; 64]];
    for id in [0, 1, 0x07ff, 0x0800, 0xf7fa, 0xf7fb, 0xf7fc, 0xf7fd, 0xfffe, 0xffff] {
        for payload in payloads {
            let request = echo(VIP, id, payload);
            let (action, out, reason) = path.run(&request);
            assert_eq!((action, reason, out.len()), (XDP_TX, Reason::EchoReply, request.len()));
            assert_eq!((&out[..6], &out[6..12]), (&request[6..12], &request[..6]));
            let ip = ipv4(&out).header().to_header();
            assert_eq!((ip.source, ip.destination, ip.time_to_live), (VIP, CLIENT, 64));
            let Some(TransportSlice::Icmpv4(icmp)) = SlicedPacket::from_ethernet(&out).unwrap().transport else {
                panic!("no ICMP");
            };
            assert!(matches!(icmp.icmp_type(), Icmpv4Type::EchoReply(e) if e.id == id && e.seq == 3));
            assert_eq!(Sum16BitWords::new().add_slice(&out[34..]).ones_complement(), 0, "id {id:#x} {payload:x?}");
        }
    }
}

fn long() -> bool {
    std::env::var_os("LBD_TEST_LONG").is_some()
}

/// A valid packet with a few bytes changed anywhere and cut anywhere.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let seeds =
        vec![tcp(VIP, 1, 80), syn(VIP, 2, 80), udp(VIP, 3, 53, &[7; 90]), echo(VIP, 4, &[9; 40]), tcp(OTHER, 5, 9)];
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6);
    (prop::sample::select(seeds), changes, prop::option::of(14..60_usize)).prop_map(|(mut packet, changes, cut)| {
        for (at, byte) in changes {
            let at = at.index(packet.len());
            packet[at] = byte;
        }
        packet.truncate(cut.unwrap_or(packet.len()).max(14));
        packet
    })
}

#[test]
fn mutated_packets_get_a_verdict_and_only_well_formed_ones_leave() {
    let path = RefCell::new(Path::new(VipMiss::Drop));
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: if long() { 200_000 } else { 3_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let seen = RefCell::new(BTreeSet::new());
    let outcome = runner.run(&mutated(), |packet| {
        let (action, out, reason) = path.borrow_mut().run(&packet);
        seen.borrow_mut().insert(reason.code());
        match reason {
            Reason::Forwarded => {
                prop_assert_eq!(action, XDP_TX);
                let outer = ipv4(&out);
                prop_assert_eq!(outer.header().protocol(), IpNumber::IPV4);
                prop_assert_eq!(&out[34..], &packet[14..]);
            }
            Reason::EchoReply => prop_assert_eq!((action, out.len()), (XDP_TX, packet.len())),
            _ if action == XDP_PASS => prop_assert_eq!(out, packet),
            _ => prop_assert_eq!(action, XDP_DROP),
        }
        Ok(())
    });
    outcome.unwrap();
    assert!(seen.borrow().len() >= 6, "the mutations reach only {seen:?}");
}

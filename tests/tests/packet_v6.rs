//! IPv6 packets through the real XDP program, and IPv4 packets to reals of IPv6.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod packets;

use lb_ebpf::{
    counter::{FlowEvent, Reason},
    hash::{HashKey, flow_hash},
    ring::{RealId, slot_index},
};
use lbd::config::{Protocol, VipMiss};
use packets::{
    ANY_PORT6, CLIENT, CLIENT6, GATEWAY_MAC, LB6, Path, REALS6, SEED, VIP, VIP6, XDP_DROP, XDP_PASS, XDP_TX,
    build::{
        ACK, DESTINATION_OPTIONS, HOP_BY_HOP, ICMPV6, Ip4, Ip6, LB_MAC, ROUTING, SYN, TCP, UDP, fragment, frame, icmp6,
        padding, tcp, udp,
    },
    echo6, remembering, sent, service, steady, tcp4, tcp6, udp6,
};
use std::{collections::BTreeSet, net::Ipv6Addr};

fn words(address: Ipv6Addr) -> [u32; 4] {
    let [a, b, c, d] = *address.octets().as_chunks().0 else { panic!("16 bytes") };
    [a, b, c, d].map(u32::from_ne_bytes)
}

#[test]
fn tcp_for_vip_leaves_inside_ip6_for_a_real() {
    let mut path = Path::new(VipMiss::Drop);
    let sent = path.forward(&tcp6(VIP6, (40_000, 80), ACK));
    assert_eq!(sent.macs, [GATEWAY_MAC, LB_MAC]);
    assert_eq!((sent.source, sent.ttl), (LB6.into(), 64));
    assert!(REALS6.contains(&sent.real));
}

#[test]
fn ip4_vip_with_reals_of_ip6_sends_ip4_inside_ip6() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(service(VIP, Protocol::Tcp), |slot| steady(4 + RealId::try_from(slot % 3).unwrap()));
    for tos in [0x00, 0xb9, 0xff] {
        let sent = path.forward(&Ip4 { tos, ..Ip4::new(CLIENT, VIP) }.packet(TCP, &tcp((1, 80), ACK, b"x")));
        assert_eq!((sent.source, sent.ttl, sent.tos), (LB6.into(), 64, tos));
    }
}

#[test]
fn ip6_vip_with_reals_of_ip4_has_no_real() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(service(VIP6, Protocol::Tcp), |_| steady(1));
    assert_eq!(path.reason(&tcp6(VIP6, (1, 80), ACK)), Reason::DropNoReal);
}

#[test]
fn outer_header_copies_the_traffic_class_and_labels_the_flow() {
    let mut path = Path::new(VipMiss::Drop);
    let mut labels = BTreeSet::new();
    for port in 1..=100 {
        let with = |traffic_class, flow_label| {
            Ip6 { traffic_class, flow_label, ..Ip6::new(CLIENT6, VIP6) }.packet(TCP, &tcp((port, 80), ACK, b""))
        };
        let one = path.forward(&with(0xb9, 0));
        let other = path.forward(&with(0x03, 0xf_ffff));
        assert_eq!((one.tos, other.tos), (0xb9, 0x03));
        assert_eq!(one.flow_label, other.flow_label, "of one flow");
        labels.insert(one.flow_label.unwrap());
    }
    assert!(labels.len() > 95, "flows have labels of their own: {}", labels.len());
    assert!(labels.iter().any(|label| *label >= 1 << 19), "all 20 bits are used");
}

#[test]
fn flow_goes_where_its_slot_says() {
    let mut path = Path::new(VipMiss::Drop);
    let key = HashKey::from_seed(SEED);
    for port in 1..200_u16 {
        let ports = u32::from_ne_bytes([port.to_be_bytes(), 80_u16.to_be_bytes()].concat().try_into().unwrap());
        let hash = flow_hash(&key, words(CLIENT6), words(VIP6), ports, TCP);
        let expected = 4 + RealId::try_from(slot_index(hash, 0) % 3).unwrap();
        assert_eq!(path.forward(&tcp6(VIP6, (port, 80), ACK)).real, expected);
    }
}

#[test]
fn udp_and_any_port_vips_are_matched_and_other_addresses_are_not() {
    let mut path = Path::new(VipMiss::Drop);
    path.forward(&udp6(VIP6, (4000, 53), b"query"));
    path.forward(&tcp6(ANY_PORT6, (4000, 1), ACK));
    let [high @ .., low] = VIP6.segments();
    for n in (0..1000).filter(|n| ![1, 2, 3].contains(n)) {
        let mut segments = [0; 8];
        segments[..7].copy_from_slice(&high);
        segments[7] = low ^ 1 ^ n;
        let frame = frame(&tcp6(Ipv6Addr::from(segments), (1, 80), ACK));
        let (action, out, reason) = path.run(&frame);
        assert_eq!((action, reason), (XDP_PASS, Reason::PassNotVip));
        assert_eq!(out, frame);
    }
}

#[test]
fn extension_headers_up_to_the_bound_are_looked_through() {
    let mut path = Path::new(VipMiss::Drop);
    let plain = path.forward(&tcp6(VIP6, (7, 80), ACK)).real;
    let ip = Ip6::new(CLIENT6, VIP6);
    let chains = [
        vec![padding(HOP_BY_HOP, 8)],
        vec![padding(HOP_BY_HOP, 64)],
        vec![padding(HOP_BY_HOP, 64), padding(DESTINATION_OPTIONS, 16), padding(ROUTING, 24)],
        vec![padding(HOP_BY_HOP, 64), padding(DESTINATION_OPTIONS, 64), padding(ROUTING, 64), padding(60, 64)],
    ];
    for extensions in chains {
        let packet = Ip6 { extensions, ..ip.clone() }.packet(TCP, &tcp((7, 80), ACK, b"x"));
        assert_eq!(path.forward(&packet).real, plain);
    }
    let five = vec![padding(DESTINATION_OPTIONS, 8); 5];
    for extensions in [vec![padding(HOP_BY_HOP, 72)], five] {
        let packet = Ip6 { extensions, ..ip.clone() }.packet(TCP, &tcp((7, 80), ACK, b"x"));
        assert_eq!(path.reason(&packet), Reason::DropExtension);
    }
}

#[test]
fn syn_behind_extension_headers_is_a_syn() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(service(VIP6, Protocol::Tcp), remembering(5, 4));
    let ip = Ip6 { extensions: vec![padding(HOP_BY_HOP, 8)], ..Ip6::new(CLIENT6, VIP6) };
    assert_eq!(path.forward(&ip.packet(TCP, &tcp((7, 80), SYN, b""))).real, 5);
    assert_eq!(path.forward(&ip.packet(TCP, &tcp((8, 80), ACK, b""))).real, 4);
    assert_eq!((path.flow_events(FlowEvent::MissSyn), path.flow_events(FlowEvent::MissTcp)), (1, 1));
}

#[test]
fn tracked_flow_keeps_its_real_when_the_slot_changes() {
    let mut path = Path::new(VipMiss::Drop);
    let ring = service(VIP6, Protocol::Tcp);
    path.ring(ring, remembering(4, 0));
    assert_eq!(path.forward(&tcp6(VIP6, (7, 80), SYN)).real, 4);
    path.ring(ring, remembering(5, 0));
    assert_eq!(path.forward(&tcp6(VIP6, (7, 80), ACK)).real, 4, "remembered");
    assert_eq!(path.forward(&tcp6(VIP6, (8, 80), ACK)).real, 5, "not remembered");
}

#[test]
fn odd_headers_for_a_vip_are_dropped_each_with_its_reason() {
    let mut path = Path::new(VipMiss::Drop);
    let ip = Ip6::new(CLIENT6, VIP6);
    let segment = tcp((1, 80), ACK, b"x");
    let packet = ip.packet(TCP, &segment);
    let with = |at: usize, bytes: &[u8]| {
        let mut packet = packet.clone();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let behind = |extension| Ip6 { extensions: vec![extension], ..ip.clone() }.packet(TCP, &segment);
    let len = u16::try_from(segment.len()).unwrap();
    for (what, packet, expected) in [
        ("first fragment", behind(fragment(0, true)), Reason::DropFragment),
        ("later fragment", behind(fragment(8, false)), Reason::DropFragment),
        ("longer than the frame", with(4, &(len + 1).to_be_bytes()), Reason::DropMalformed),
        ("shorter than its headers", with(4, &19_u16.to_be_bytes()), Reason::DropMalformed),
        ("cut off", packet[..50].to_vec(), Reason::DropMalformed),
        ("GRE", ip.packet(47, &[0; 40]), Reason::DropUnmatched),
        ("no next header", ip.packet(59, &[0; 40]), Reason::DropUnmatched),
        ("unknown port", ip.packet(UDP, &udp((1, 80), b"")), Reason::DropUnmatched),
    ] {
        let (action, _, reason) = path.run(&frame(&packet));
        assert_eq!((action, reason), (XDP_DROP, expected), "{what}");
    }
    // The version contradicts the EtherType.
    let mut version = frame(&packet);
    version[14] = 0x40;
    assert_eq!(path.run(&version).2, Reason::DropMalformed);
}

#[test]
fn echo_for_a_vip_is_answered_with_valid_checksums_for_every_input() {
    let mut path = Path::new(VipMiss::Drop);
    let payloads: [&[u8]; 6] = [b"", b"\0\0", b"\xff\xff", b"\x7f\xfe", b"abcdefg", &[0xff; 64]];
    for high in 0..=u16::from(u8::MAX) {
        for (low, payload) in [0_u16, 1, 0x7f, 0x80, 0xfe, 0xff].into_iter().zip(payloads) {
            let rest: [u8; 4] = [(high << 8 | low).to_be_bytes(), [0, 0]].concat().try_into().unwrap();
            let request = frame(&echo6(VIP6, rest, payload));
            let (action, out, reason) = path.run(&request);
            assert_eq!((action, reason, out.len()), (XDP_TX, Reason::EchoReply, request.len()));
            assert_eq!((&out[..6], &out[6..12]), (&request[6..12], &request[..6]));
            let reply = sent::icmp(&out);
            assert_eq!((reply.source, reply.destination, reply.ttl), (VIP6.into(), CLIENT6.into(), 64));
            let message = icmp6(&Ip6::new(VIP6, CLIENT6), [129, 0], rest, payload);
            assert_eq!(out[54..], message, "{rest:x?} {payload:x?}");
        }
    }
}

/// An identifier for which the reply's sum is all ones: its checksum is 0, never 0xffff.
#[test]
fn echo_reply_whose_words_add_up_to_all_ones_has_checksum_0() {
    let mut path = Path::new(VipMiss::Drop);
    let reply = |id: u16| {
        let [a, b] = id.to_be_bytes();
        icmp6(&Ip6::new(VIP6, CLIENT6), [129, 0], [a, b, 0, 0], b"")
    };
    let id = (0..=u16::MAX).find(|&id| reply(id)[2..4] == [0, 0]).unwrap();
    let [a, b] = id.to_be_bytes();
    let (_, out, _) = path.run(&frame(&echo6(VIP6, [a, b, 0, 0], b"")));
    assert_eq!(out[54..], reply(id));
}

#[test]
fn echo_behind_extension_headers_is_dropped() {
    let mut path = Path::new(VipMiss::Drop);
    let ip = Ip6 { extensions: vec![padding(HOP_BY_HOP, 8)], ..Ip6::new(CLIENT6, VIP6) };
    let request = ip.packet(ICMPV6, &icmp6(&ip, [128, 0], [0; 4], b"x"));
    assert_eq!(path.reason(&request), Reason::DropExtension);
}

#[test]
fn both_families_are_counted_and_kept_apart() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(service(VIP, Protocol::Tcp), |_| steady(1));
    path.ring(service(VIP6, Protocol::Tcp), |_| steady(4));
    path.forward(&tcp4(VIP, (1, 80), ACK));
    path.forward(&tcp6(VIP6, (1, 80), ACK));
    for index in [1, 4].map(lb_ebpf::counter::real_index) {
        assert_eq!(path.program.counter(index).unwrap().packets, 1);
    }
}

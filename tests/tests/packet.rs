//! IPv4 packets through the real XDP program: what goes in, which verdict, what comes out.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod packets;

use lb_ebpf::{
    counter::{FlowEvent, Reason, real_index, vip_index},
    hash::{HashKey, flow_hash},
    real::{NextHop, SERVES_TCP, SERVES_UDP},
    ring::{RealId, Slot, slot_index},
};
use lbd::config::{Protocol, VipMiss};
use packets::{
    ANY_PORT, CLIENT, CLIENT6, ELSEWHERE, ELSEWHERE6, GATEWAY_MAC, INGRESS, LB, Path, SEED, VIP, XDP_DROP, XDP_PASS,
    XDP_REDIRECT, XDP_TX,
    build::{self, ACK, DF, Ip4, Ip6, LB_MAC, MF, ROUTER_MAC, SYN, TCP, UDP, frame, tcp, udp},
    echo4, real_address, remembering, sent, service, steady, tcp4, udp4,
};
use std::collections::HashSet;

#[test]
fn tcp_for_vip_leaves_inside_ipip_for_a_real() {
    let mut path = Path::new(VipMiss::Drop);
    let sent = path.forward(&tcp4(VIP, (40_000, 80), ACK));
    assert_eq!(sent.macs, [GATEWAY_MAC, LB_MAC]);
    assert_eq!((sent.source, sent.ttl), (LB.into(), 64));
    assert!(real_address(sent.real).is_ipv4());
}

#[test]
fn outer_header_copies_tos_and_df() {
    let mut path = Path::new(VipMiss::Drop);
    for (tos, fragment) in [(0x00, 0), (0xb9, DF), (0x03, 0), (0xff, DF)] {
        let ip = Ip4 { tos, fragment, ..Ip4::new(CLIENT, VIP) };
        let sent = path.forward(&ip.packet(TCP, &tcp((1, 80), ACK, b"")));
        assert_eq!((sent.tos, sent.df_and_id.unwrap().0), (tos, fragment == DF));
    }
}

/// RFC 6864 §4.3: what may be fragmented needs an ID of its own.
#[test]
fn outer_id_of_what_may_be_fragmented_is_never_the_last_ones() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(service(VIP, Protocol::Tcp), |_| steady(1));
    let packet = Ip4 { fragment: 0, id: 0, ..Ip4::new(CLIENT, VIP) }.packet(TCP, &tcp((1, 80), ACK, b""));
    let ids: HashSet<u16> = (0..1000).map(|_| path.forward(&packet).df_and_id.unwrap().1).collect();
    assert_eq!(ids.len(), 1000);
}

#[test]
fn outer_length_leaves_out_ethernet_padding() {
    let mut path = Path::new(VipMiss::Drop);
    let packet = Ip4::new(CLIENT, VIP).packet(TCP, &tcp((1, 80), SYN, b""));
    let mut padded = frame(&packet);
    padded.resize(60, 0);
    let (_, out, _) = path.run(&padded);
    assert_eq!(sent::encapsulated(&out).inner, packet);
}

#[test]
fn flow_goes_where_its_slot_says() {
    let mut path = Path::new(VipMiss::Drop);
    let key = HashKey::from_seed(SEED);
    let [client, vip] = [CLIENT, VIP].map(|address| u32::from_ne_bytes(address.octets()));
    for port in 1..200_u16 {
        let ports = u32::from_ne_bytes([port.to_be_bytes(), 80_u16.to_be_bytes()].concat().try_into().unwrap());
        let expected = 1 + RealId::try_from(slot_index(flow_hash(&key, client, vip, ports, TCP), 0) % 3).unwrap();
        assert_eq!(path.forward(&tcp4(VIP, (port, 80), ACK)).real, expected);
        assert_eq!(path.forward(&tcp4(VIP, (port, 80), SYN)).real, expected);
    }
}

#[test]
fn udp_and_any_port_vips_are_matched() {
    let mut path = Path::new(VipMiss::Drop);
    path.forward(&udp4(VIP, (4000, 53), b"query"));
    path.forward(&tcp4(ANY_PORT, (4000, 1), ACK));
    path.forward(&tcp4(ANY_PORT, (4000, 65_535), ACK));
}

#[test]
fn counters_of_vip_and_real_grow_with_the_packet() {
    let mut path = Path::new(VipMiss::Drop);
    let packet = udp4(VIP, (4000, 53), b"query");
    let id = path.forward(&packet).real;
    for index in [vip_index(service(VIP, Protocol::Udp)), real_index(id)] {
        let counter = path.program.counter(index).unwrap();
        assert_eq!((counter.packets, counter.bytes), (1, frame(&packet).len() as u64));
    }
}

#[test]
fn real_behind_another_interface_is_redirected_to() {
    let mut path = Path::new(VipMiss::Drop);
    path.reals_by(Some(&NextHop { ifindex: INGRESS + 1, ..Path::hop() }));
    let (action, _, reason) = path.run(&frame(&tcp4(VIP, (1, 80), ACK)));
    assert_eq!((action, reason), (XDP_REDIRECT, Reason::Redirected));
}

#[test]
fn real_without_next_hop_and_empty_ring_drop_with_their_reasons() {
    let mut path = Path::new(VipMiss::Drop);
    path.reals_by(None);
    assert_eq!(path.reason(&tcp4(VIP, (1, 80), ACK)), Reason::DropNoNextHop);
    path.ring(service(VIP, Protocol::Tcp), |_| Slot::default());
    assert_eq!(path.reason(&tcp4(VIP, (1, 80), ACK)), Reason::DropNoReal);
}

#[test]
fn what_is_not_for_a_vip_passes_untouched() {
    let mut path = Path::new(VipMiss::Drop);
    let to = Ip4::new(CLIENT, ELSEWHERE);
    let segment = tcp((1, 80), ACK, b"x");
    let arp = [&[0xff; 6][..], &ROUTER_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &[0; 20]].concat();
    for frame in [
        frame(&to.packet(TCP, &segment)),
        frame(&echo4(ELSEWHERE, [0, 1, 0, 2], b"x")),
        frame(&Ip4 { fragment: MF, ..to.clone() }.packet(TCP, &segment)),
        frame(&Ip4 { options: vec![1; 4], ..to.clone() }.packet(TCP, &segment)),
        frame(&Ip6::new(CLIENT6, ELSEWHERE6).packet(UDP, &udp((1, 2), b"x"))),
        frame(&to.packet(TCP, &segment)[..19]),
        frame(&[0x60]),
        arp,
    ] {
        let (action, out, reason) = path.run(&frame);
        assert!(action == XDP_PASS && out == frame, "{reason:?}");
        assert!(matches!(reason, Reason::PassNotVip | Reason::PassNotIp), "{reason:?}");
    }
}

#[test]
fn unknown_port_of_a_vip_is_dropped_or_passed_by_configuration() {
    let frame = frame(&tcp4(VIP, (1, 81), ACK));
    let (action, _, reason) = Path::new(VipMiss::Drop).run(&frame);
    assert_eq!((action, reason), (XDP_DROP, Reason::DropUnmatched));
    let (action, out, reason) = Path::new(VipMiss::Pass).run(&frame);
    assert_eq!((action, reason, out), (XDP_PASS, Reason::PassUnmatched, frame));
}

#[test]
fn odd_headers_for_a_vip_are_dropped_each_with_its_reason() {
    let mut path = Path::new(VipMiss::Drop);
    let ip = Ip4::new(CLIENT, VIP);
    let segment = tcp((1, 80), ACK, b"x");
    let packet = ip.packet(TCP, &segment);
    let with = |at: usize, bytes: &[u8]| {
        let mut packet = packet.clone();
        packet[at..at + bytes.len()].copy_from_slice(bytes);
        packet
    };
    let len = u16::try_from(packet.len()).unwrap();
    for (what, packet, expected) in [
        ("first fragment", Ip4 { fragment: MF, ..ip.clone() }.packet(TCP, &segment), Reason::DropFragment),
        ("later fragment", Ip4 { fragment: 1, ..ip.clone() }.packet(TCP, &segment), Reason::DropFragment),
        ("options", Ip4 { options: vec![1; 8], ..ip.clone() }.packet(TCP, &segment), Reason::DropOptions),
        ("short header length", with(0, &[0x44]), Reason::DropMalformed),
        ("version 5", with(0, &[0x55]), Reason::DropMalformed),
        ("longer than the frame", with(2, &(len + 1).to_be_bytes()), Reason::DropMalformed),
        ("shorter than its headers", with(2, &39_u16.to_be_bytes()), Reason::DropMalformed),
        ("shorter than IPv4", with(2, &19_u16.to_be_bytes()), Reason::DropMalformed),
        ("cut off", packet[..24].to_vec(), Reason::DropMalformed),
        ("GRE", ip.packet(47, &[0; 40]), Reason::DropUnmatched),
    ] {
        let (action, _, reason) = path.run(&frame(&packet));
        assert_eq!((action, reason), (XDP_DROP, expected), "{what}");
    }
}

#[test]
fn tracked_flow_keeps_its_real_when_the_slot_changes() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(0, remembering(1, 0));
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), SYN)).real, 1);
    path.ring(0, remembering(2, 0));
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), ACK)).real, 1, "remembered");
    assert_eq!(path.forward(&tcp4(VIP, (8, 80), ACK)).real, 2, "not remembered");
    assert_eq!(path.flow_events(FlowEvent::Hit), 1);
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), SYN)).real, 2, "a new connection on the same ports");
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), ACK)).real, 2);
}

#[test]
fn window_sends_flows_without_entry_to_prev_and_syns_to_cur() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(0, remembering(2, 1));
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), ACK)).real, 1);
    assert_eq!(path.forward(&tcp4(VIP, (8, 80), SYN)).real, 2);
    path.ring(0, |_| Slot::new(2, 0, false, true));
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), ACK)).real, 1, "remembered after the window");
}

#[test]
fn real_that_serves_no_more_loses_its_flows_to_cur() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(0, remembering(1, 0));
    path.forward(&tcp4(VIP, (7, 80), SYN));
    path.ring(0, remembering(2, 1));
    path.real(1, Some(&Path::hop()), SERVES_UDP);
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), ACK)).real, 2);
    assert_eq!(path.forward(&tcp4(VIP, (9, 80), ACK)).real, 2, "prev no longer serves TCP");
    path.real(1, Some(&Path::hop()), SERVES_TCP);
    assert_eq!(path.forward(&tcp4(VIP, (9, 80), ACK)).real, 2, "remembered");
}

#[test]
fn flow_that_lost_its_real_does_not_return_to_it() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(0, remembering(1, 0));
    path.forward(&tcp4(VIP, (7, 80), SYN));
    path.ring(0, |_| Slot::new(2, 0, false, true));
    path.real(1, Some(&Path::hop()), 0);
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), ACK)).real, 2);
    path.real(1, Some(&Path::hop()), SERVES_TCP);
    assert_eq!(path.forward(&tcp4(VIP, (7, 80), ACK)).real, 2, "its new real serves");
}

#[test]
fn steady_slots_touch_no_flow_table() {
    let mut path = Path::new(VipMiss::Drop);
    for port in 1..50 {
        path.forward(&tcp4(VIP, (port, 80), SYN));
        path.forward(&tcp4(VIP, (port, 80), ACK));
    }
    assert!(FlowEvent::ALL.iter().all(|&event| path.flow_events(event) == 0));
}

#[test]
fn echo_for_a_vip_is_answered_with_valid_checksums_for_every_input() {
    let mut path = Path::new(VipMiss::Drop);
    // Identifiers and payloads around the places where a carry is lost; all-ones and all-zero sums.
    let payloads: [&[u8]; 7] = [b"", b"\0\0", b"\xff\xff", b"\xf7\xfe", b"\xf7\xff", b"abcdefg", &[0xff; 64]];
    for id in [0, 1, 0x07ff, 0x0800, 0xf7fa, 0xf7fb, 0xf7fc, 0xf7fd, 0xf7fe, 0xf7ff, 0xfffe, 0xffff_u16] {
        for (sequence, payload) in [0_u16, 3].into_iter().flat_map(|n| payloads.map(|payload| (n, payload))) {
            let rest: [u8; 4] = [id.to_be_bytes(), sequence.to_be_bytes()].concat().try_into().unwrap();
            let request = frame(&echo4(VIP, rest, payload));
            let (action, out, reason) = path.run(&request);
            assert_eq!((action, reason, out.len()), (XDP_TX, Reason::EchoReply, request.len()));
            assert_eq!((&out[..6], &out[6..12]), (&request[6..12], &request[..6]));
            let reply = sent::icmp(&out);
            assert_eq!((reply.source, reply.destination, reply.ttl), (VIP.into(), CLIENT.into(), 64));
            assert_eq!((reply.type_and_code, reply.rest_of_header, &reply.data[..]), ([0, 0], rest, payload));
            let canonical = build::icmp([0, 0], rest, payload);
            // Only where nothing is known of the message may 0xffff stand for 0.
            let either = rest == [0; 4] && canonical[2..4] == [0, 0] && out[36..38] == [0xff, 0xff];
            assert!(out[34..] == canonical || either, "{rest:x?} {payload:x?}");
        }
    }
}

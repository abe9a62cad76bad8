//! Every reason is reached; no packet, however odd, makes the program send what is malformed or touch what is not a VIP's.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod packets;

use hc_prober::claim::{self, Question};
use lb_ebpf::{
    answer::{Asked, answer},
    counter::{Action, Reason},
    real::NextHop,
    ring::Slot,
};
use lbd::config::{Protocol, VipMiss};
use packets::{
    ANY_PORT, BY_SOURCE6, CLIENT, CLIENT6, ELSEWHERE, ELSEWHERE6, INGRESS, Path, VIP, VIP6, XDP_DROP, XDP_PASS, XDP_TX,
    build::{
        ACK, DESTINATION_OPTIONS, HOP_BY_HOP, ICMP, ICMPV6, Ip4, Ip6, LB_MAC, MF, ROUTER_MAC, SYN, TCP, frame, icmp,
        icmp6, padding, tagged, tcp,
    },
    echo4, echo6, long, sent, service, tcp4, tcp6, udp4, udp6,
};
use proptest::prelude::*;
use std::{cell::RefCell, collections::BTreeSet};

#[test]
fn every_reason_is_reached() {
    let mut path = Path::new(VipMiss::Drop);
    let mut passing = Path::new(VipMiss::Pass);
    let segment = tcp((7, 80), ACK, b"");
    let ip = Ip4::new(CLIENT, VIP);
    let ip6 = Ip6 { extensions: vec![padding(DESTINATION_OPTIONS, 72)], ..Ip6::new(CLIENT6, VIP6) };
    let plain = frame(&tcp4(VIP, (7, 80), ACK));
    let large = udp4(VIP, (7, 53), &[0; 1472]);
    let timestamp = frame(&ip.packet(ICMP, &icmp([13, 0], [0; 4], &[0; 12])));
    let mut reached = vec![
        path.run(&plain).2,
        path.reason(&echo4(VIP, [0; 4], b"")),
        path.run(&[0; 60]).2,
        path.reason(&tcp4(ELSEWHERE, (7, 80), ACK)),
        passing.run(&timestamp).2,
        passing.reason(&tcp4(VIP, (7, 81), ACK)),
        path.reason(&tcp4(VIP, (7, 81), ACK)),
        path.reason(&Ip4 { fragment: MF, ..ip.clone() }.packet(TCP, &segment)),
        path.reason(&Ip4 { options: vec![1; 4], ..ip.clone() }.packet(TCP, &segment)),
        path.reason(&ip.packet(TCP, &segment[..10])),
        path.reason(&Ip4 { fragment: 0, ..ip.clone() }.packet(TCP, &tcp((7, 80), ACK, &[0; 1480]))),
        path.run_without_headroom(&plain).2,
        path.run(&timestamp).2,
        path.reason(&ip6.packet(TCP, &segment)),
        path.reason(&large),
    ];
    reached.extend((0..2000).map(|_| path.reason(&large)).find(|reason| *reason == Reason::DropTooBigLimited));
    path.reals_by(None);
    reached.push(path.run(&plain).2);
    path.reals_by(Some(&NextHop { ifindex: INGRESS + 1, ..Path::hop() }));
    reached.push(path.run(&plain).2);
    path.ring(service(VIP, Protocol::Tcp), |_| Slot::default());
    reached.push(path.run(&plain).2);
    let asked = Question { mac: ROUTER_MAC, from: CLIENT.into(), of: VIP.into() };
    path.program.answer(&[(Asked::new(INGRESS, VIP.into()), answer(LB_MAC))].into()).unwrap();
    reached.push(path.run(&claim::frame(&asked).unwrap()).2);
    let sorted = |reasons: &[Reason]| reasons.iter().map(|reason| reason.code()).collect::<BTreeSet<_>>();
    assert_eq!(sorted(&reached), sorted(Reason::ALL));
}

/// Well-formed packets of every kind.
fn samples() -> Vec<Vec<u8>> {
    let extensions = vec![padding(HOP_BY_HOP, 16), padding(DESTINATION_OPTIONS, 8)];
    let ip6 = Ip6 { extensions, ..Ip6::new(CLIENT6, VIP6) };
    let quote = Ip4 { options: vec![1; 8], ..Ip4::new(VIP, CLIENT) }.packet(TCP, &tcp((80, 7), ACK, b""));
    let quote6 = Ip6::new(VIP6, CLIENT6).packet(TCP, &tcp((80, 7), ACK, b""));
    let packets = [
        tcp4(VIP, (1, 80), ACK),
        tcp4(ANY_PORT, (5, 9), SYN),
        udp4(VIP, (3, 53), &[7; 90]),
        udp4(VIP, (3, 53), &[7; 1472]),
        echo4(VIP, [0, 4, 0, 1], &[9; 40]),
        Ip4::new(CLIENT, VIP).packet(ICMP, &icmp([3, 4], [0, 0, 5, 0], &quote)),
        tcp6(VIP6, (1, 80), ACK),
        udp6(VIP6, (3, 53), &[7; 1452]),
        udp6(BY_SOURCE6, (3, 53), &[7; 90]),
        echo6(VIP6, [0, 4, 0, 1], &[9; 40]),
        ip6.packet(TCP, &tcp((7, 80), SYN, b"")),
        ip6.packet(ICMPV6, &icmp6(&ip6, [2, 0], [0, 0, 5, 0], &quote6)),
    ];
    let frames: Vec<_> = packets.iter().map(|packet| frame(packet)).collect();
    let tagged = frames
        .iter()
        .flat_map(|frame| [tagged(&[(0x8100, 100)], frame), tagged(&[(0x88a8, 100), (0x8100, 200)], frame)]);
    tagged.chain(frames.clone()).collect()
}

/// How many tags the frame has in front of an IP packet.
fn tags(frame: &[u8]) -> usize {
    let tags = frame[12..].chunks_exact(4).take_while(|tag| [[0x81, 0x00], [0x88, 0xa8]].contains(&[tag[0], tag[1]]));
    tags.take(2).count()
}

/// Checks what became of a frame.
fn verdict_is_right(path: &mut Path, frame: &[u8]) -> Reason {
    let (action, out, reason) = path.run(frame);
    let tags = 4 * tags(frame);
    let untagged = |frame: &[u8]| [&frame[..12], &frame[12 + tags..]].concat();
    match reason.action() {
        Action::Pass => assert!(action == XDP_PASS && out == frame, "{reason:?}"),
        Action::Drop => assert_eq!(action, XDP_DROP),
        Action::Transmit | Action::Redirect => assert_eq!(action, XDP_TX),
    }
    if matches!(reason, Reason::EchoReply | Reason::TooBigReply) {
        assert_eq!(out[12..12 + tags], frame[12..12 + tags]);
    }
    match reason {
        Reason::Forwarded => {
            let sent = sent::encapsulated(&out);
            assert!(frame[14 + tags..].starts_with(&sent.inner) && sent.inner.len() >= 28);
        }
        Reason::EchoReply => assert_eq!(out.len(), frame.len()),
        Reason::TooBigReply => {
            let error = sent::icmp(&untagged(&out));
            assert!(frame[14 + tags..].starts_with(&error.data));
        }
        _ => {}
    }
    reason
}

#[test]
fn packet_cut_off_anywhere_gets_a_verdict() {
    let mut path = Path::new(VipMiss::Drop);
    for sample in samples() {
        // A test run wants an Ethernet header.
        for len in 14..sample.len().min(200) {
            let reason = verdict_is_right(&mut path, &sample[..len]);
            assert_ne!(reason, Reason::Forwarded, "{len} of {} bytes", sample.len());
        }
    }
}

#[test]
fn packet_whose_lengths_were_cut_as_well_gets_a_verdict() {
    let mut path = Path::new(VipMiss::Drop);
    for sample in samples() {
        let at = 14 + 4 * tags(&sample);
        let is_ip6 = sample[at] >> 4 == 6;
        for len in at + if is_ip6 { 40 } else { 20 }..sample.len().min(300) {
            let mut frame = sample[..len].to_vec();
            let (place, value) = if is_ip6 { (at + 4, len - at - 40) } else { (at + 2, len - at) };
            frame[place..place + 2].copy_from_slice(&u16::try_from(value).unwrap().to_be_bytes());
            verdict_is_right(&mut path, &frame);
        }
    }
}

#[test]
fn frames_elsewhere_with_any_bytes_pass_untouched() {
    let path = RefCell::new(Path::new(VipMiss::Drop));
    let to4 = Ip4::new(CLIENT, ELSEWHERE).packet(TCP, &[0; 80]);
    let to6 = Ip6::new(CLIENT6, ELSEWHERE6).packet(TCP, &[0; 80]);
    // All bytes but the addresses.
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..30);
    let frames = (prop::sample::select(vec![(to4, 16..20), (to6, 24..40)]), changes).prop_map(
        |((mut packet, keep), changes)| {
            for (at, byte) in changes {
                let at = at.index(packet.len());
                if !keep.contains(&at) {
                    packet[at] = byte;
                }
            }
            packet
        },
    );
    let outcome = runner().run(&frames, |packet| {
        let ethertype = if packet.len() == 100 { [8, 0] } else { [0x86, 0xdd] };
        let frame = [&[2; 12][..], &ethertype, &packet].concat();
        let (action, out, reason) = path.borrow_mut().run(&frame);
        prop_assert_eq!((action, reason), (XDP_PASS, Reason::PassNotVip));
        prop_assert_eq!(out, frame);
        Ok(())
    });
    outcome.unwrap();
}

/// A sample with a few bytes changed anywhere and cut anywhere.
fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let changes = prop::collection::vec((0..120_usize, any::<u8>()), 0..6);
    (prop::sample::select(samples()), changes, prop::option::weighted(0.2, 14..120_usize)).prop_map(
        |(mut frame, changes, cut)| {
            for (at, byte) in changes {
                if let Some(place) = frame.get_mut(at) {
                    *place = byte;
                }
            }
            frame.truncate(cut.unwrap_or(frame.len()).max(14));
            frame
        },
    )
}

fn runner() -> proptest::test_runner::TestRunner {
    proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: if long() { 200_000 } else { 5_000 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })
}

#[test]
fn mutated_packets_get_a_verdict_and_only_well_formed_ones_leave() {
    let path = RefCell::new(Path::new(VipMiss::Drop));
    let seen = RefCell::new(BTreeSet::new());
    let outcome = runner().run(&mutated(), |frame| {
        let reason = verdict_is_right(&mut path.borrow_mut(), &frame);
        seen.borrow_mut().insert(reason.code());
        Ok(())
    });
    outcome.unwrap();
    assert!(seen.borrow().len() >= 11, "the mutations reach only {seen:?}");
}

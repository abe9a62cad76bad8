//! Tagged frames through the real XDP program: the same as without tags, which stay on what is answered or passed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod packets;

use lb_ebpf::{counter::Reason, real::NextHop};
use lbd::config::VipMiss;
use packets::{
    ELSEWHERE, ELSEWHERE6, INGRESS, Path, VIP, VIP6, XDP_DROP, XDP_PASS, XDP_REDIRECT, XDP_TX,
    build::{ACK, frame, tagged},
    echo4, echo6, sent, tcp4, tcp6, udp4, udp6,
};

const TAG: (u16, u16) = (0x8100, 0x2064);
const SERVICE_TAG: (u16, u16) = (0x88a8, 0x0fff);
const TAGS: [&[(u16, u16)]; 3] = [&[TAG], &[SERVICE_TAG, TAG], &[TAG, TAG]];

/// The frame without its tags, after checking that they are these.
fn untagged(tags: &[(u16, u16)], frame: &[u8]) -> Vec<u8> {
    let without = [&frame[..12], &frame[12 + 4 * tags.len()..]].concat();
    assert_eq!(frame, tagged(tags, &without));
    without
}

#[test]
fn tagged_frame_leaves_as_without_tags() {
    let mut path = Path::new(VipMiss::Drop);
    for packet in [tcp4(VIP, (7, 80), ACK), tcp6(VIP6, (7, 80), ACK)] {
        let plain = path.forward(&packet);
        for tags in TAGS {
            let (action, out, reason) = path.run(&tagged(tags, &frame(&packet)));
            assert_eq!((action, reason), (XDP_TX, Reason::Forwarded));
            let sent = sent::encapsulated(&out);
            assert_eq!((sent.inner, sent.real, sent.macs), (packet.clone(), plain.real, plain.macs));
        }
    }
}

#[test]
fn tagged_echo_and_too_big_are_answered_on_their_vlan() {
    let mut path = Path::new(VipMiss::Drop);
    let echoes = [echo4(VIP, [1, 2, 3, 4], b"x"), echo6(VIP6, [1, 2, 3, 4], b"x")];
    let large = [udp4(VIP, (7, 53), &[0; 1472]), udp6(VIP6, (7, 53), &[0; 1452])];
    for tags in TAGS {
        for (packets, expected) in [(&echoes, Reason::EchoReply), (&large, Reason::TooBigReply)] {
            for packet in packets {
                let request = frame(packet);
                let (action, out, reason) = path.run(&tagged(tags, &request));
                assert_eq!((action, reason), (XDP_TX, expected));
                let out = untagged(tags, &out);
                assert_eq!((&out[..6], &out[6..12]), (&request[6..12], &request[..6]));
                sent::icmp(&out);
            }
        }
    }
}

#[test]
fn tagged_frame_that_is_not_for_a_vip_passes_untouched() {
    let mut path = Path::new(VipMiss::Pass);
    let three_tags = tagged(&[TAG, TAG, TAG], &frame(&tcp4(VIP, (7, 80), ACK)));
    let mut frames = vec![three_tags.clone(), tagged(&[TAG], &[&[2; 12][..], &[8, 6], &[0; 28]].concat())];
    for tags in TAGS {
        for packet in [tcp4(ELSEWHERE, (7, 80), ACK), tcp6(ELSEWHERE6, (7, 80), ACK), tcp4(VIP, (7, 81), ACK)] {
            frames.push(tagged(tags, &frame(&packet)));
        }
    }
    // Tags and nothing behind them.
    frames.extend((14..22).map(|len| three_tags[..len].to_vec()));
    for frame in frames {
        let (action, out, reason) = path.run(&frame);
        assert_eq!((action, out), (XDP_PASS, frame), "{reason:?}");
    }
}

#[test]
fn tagged_frame_is_dropped_for_the_same_reasons() {
    let mut path = Path::new(VipMiss::Drop);
    for tags in TAGS {
        for packet in [tcp4(VIP, (7, 81), ACK), tcp6(VIP6, (7, 81), ACK)] {
            let (action, _, reason) = path.run(&tagged(tags, &frame(&packet)));
            assert_eq!((action, reason), (XDP_DROP, Reason::DropUnmatched));
        }
    }
}

#[test]
fn redirected_frame_leaves_untagged() {
    let mut path = Path::new(VipMiss::Drop);
    path.reals_by(Some(&NextHop { ifindex: INGRESS + 1, ..Path::hop() }));
    let packet = tcp4(VIP, (7, 80), ACK);
    let (action, out, reason) = path.run(&tagged(&[TAG], &frame(&packet)));
    assert_eq!((action, reason), (XDP_REDIRECT, Reason::Redirected));
    assert_eq!(sent::encapsulated(&out).inner, packet);
}

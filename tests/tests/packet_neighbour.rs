//! Questions for a VIP's Ethernet address through the real XDP program: ARP, neighbour solicitations.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod packets;

use hc_prober::claim::{Question, announcement, claimant, frame};
use lb_ebpf::{
    answer::{Asked, answer},
    counter::Reason,
};
use lbd::config::VipMiss;
use packets::{
    CLIENT, CLIENT6, INGRESS, Path, VIP, VIP6, XDP_PASS, XDP_TX,
    build::{LB_MAC, ROUTER_MAC, tagged},
};
use std::net::{IpAddr, Ipv6Addr};

fn path(addresses: &[(u32, IpAddr)]) -> Path {
    let mut path = Path::new(VipMiss::Drop);
    let answers = addresses.iter().map(|&(at, address)| (Asked::new(at, address), answer(LB_MAC)));
    path.program.answer(&answers.collect()).unwrap();
    path
}

fn questions() -> [Question; 2] {
    let question = |from: IpAddr, of: IpAddr| Question { mac: ROUTER_MAC, from, of };
    [question(CLIENT.into(), VIP.into()), question(CLIENT6.into(), VIP6.into())]
}

/// An answer to the question, of our Ethernet address, to whom it concerns.
fn is_answer(question: &Question, sent: &[u8]) -> bool {
    if question.of.is_ipv6() {
        let packet = etherparse::SlicedPacket::from_ethernet(sent).unwrap();
        let Some(etherparse::NetSlice::Ipv6(ip)) = packet.net else { return false };
        let message = etherparse::Icmpv6Slice::from_slice(ip.payload().payload).unwrap();
        let header = ip.header();
        assert!(message.is_checksum_valid(header.source(), header.destination()), "{sent:02x?}");
        assert_eq!(message.slice()[4], 0x60, "solicited, override");
        assert_eq!((IpAddr::from(header.destination_addr()), header.hop_limit()), (question.from, 255));
    } else {
        assert_eq!((&sent[32..38], &sent[38..42]), (&ROUTER_MAC[..], &CLIENT.octets()[..]));
    }
    sent[..6] == ROUTER_MAC && claimant(question, sent) == Some(LB_MAC)
}

#[test]
fn question_for_an_address_is_answered_on_its_link_while_it_is_to_be() {
    let mut path = path(&[(INGRESS, VIP.into()), (INGRESS, VIP6.into())]);
    for question in questions() {
        let bytes = frame(&question).unwrap();
        let (action, sent, reason) = path.run(&bytes);
        assert_eq!((action, reason), (XDP_TX, Reason::NeighbourReply));
        assert!(is_answer(&question, &sent), "{sent:02x?}");
        let tags = [(0x8100, 7)];
        let (action, with_tag, reason) = path.run(&tagged(&tags, &bytes));
        assert_eq!((action, reason, with_tag), (XDP_TX, Reason::NeighbourReply, tagged(&tags, &sent)));
    }
    let [arp, nd] = questions().map(|question| frame(&question).unwrap());
    path.program.silence(&[(Asked::new(INGRESS, VIP6.into()), answer(LB_MAC))].into()).unwrap();
    assert_eq!((path.run(&arp).0, path.run(&nd).0), (XDP_PASS, XDP_TX));
    path.program.silence(&std::collections::BTreeMap::new()).unwrap();
    assert_eq!(path.run(&nd).0, XDP_PASS);
}

#[test]
fn unicast_solicitation_without_an_option_is_answered() {
    let mut path = path(&[(INGRESS, VIP6.into())]);
    let [_, question] = questions();
    let mut bytes = frame(&question).unwrap();
    bytes.truncate(14 + 40 + 24);
    bytes[14 + 5] = 24;
    bytes[..6].copy_from_slice(&LB_MAC);
    bytes[14 + 24..14 + 40].copy_from_slice(&VIP6.octets());
    let (action, sent, _) = path.run(&bytes);
    assert_eq!((action, sent.len()), (XDP_TX, bytes.len()));
    assert!(is_answer(&question, &sent), "{sent:02x?}");
}

#[test]
fn what_is_no_question_for_an_address_that_is_answered_for_passes_as_it_came() {
    let elsewhere: IpAddr = [198, 19, 10, 99].into();
    let mut path = path(&[(INGRESS + 1, VIP.into()), (INGRESS + 1, VIP6.into()), (INGRESS, elsewhere)]);
    let mut frames: Vec<_> = questions().iter().map(|question| frame(question).unwrap()).collect();
    // Of addresses that are answered for: an announcement, a reply, and one that is cut short.
    let to_elsewhere = frame(&Question { of: elsewhere, ..questions()[0] }).unwrap();
    let mut reply = to_elsewhere.clone();
    reply[21] = 2;
    frames.extend([announcement(ROUTER_MAC, elsewhere), reply, to_elsewhere[..40].to_vec()]);
    for bytes in &frames {
        let (action, same, reason) = path.run(bytes);
        assert_eq!((action, &same), (XDP_PASS, bytes), "{reason:?}");
        assert_ne!(reason, Reason::NeighbourReply);
    }
}

#[test]
fn solicitation_that_is_none_of_ours_passes() {
    let mut path = path(&[(INGRESS, VIP6.into())]);
    let [_, question] = questions();
    let good = frame(&question).unwrap();
    let with = |at: usize, value: &[u8]| {
        let mut bytes = good.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        bytes
    };
    // From a router; an advertisement; to find a duplicate; with another option; shorter than it says.
    let none = [with(21, &[254]), with(54, &[136]), with(22, &Ipv6Addr::UNSPECIFIED.octets()), with(78, &[14, 1])];
    for bytes in none.iter().map(Vec::as_slice).chain([&good[..80]]) {
        let (action, same, _) = path.run(bytes);
        assert_eq!((action, same.as_slice()), (XDP_PASS, bytes));
    }
}

#[test]
fn question_with_a_byte_changed_is_answered_soundly_or_left_as_it_is() {
    let mut path = path(&[(INGRESS, VIP.into()), (INGRESS, VIP6.into())]);
    for good in questions().iter().map(|question| frame(question).unwrap()) {
        for (at, value) in (0..good.len()).flat_map(|at| [0, 1, 0x7f, 0xff].map(|value| (at, value))) {
            let mut bytes = good.clone();
            bytes[at] = value;
            match path.run(&bytes) {
                (XDP_TX, sent, Reason::NeighbourReply) => {
                    assert_eq!((sent.len(), &sent[..6], &sent[6..12]), (bytes.len(), &bytes[6..12], &LB_MAC[..]));
                }
                (XDP_PASS, same, _) => assert_eq!(same, bytes),
                (action, _, reason) => panic!("{action} {reason:?} of byte {at} = {value}"),
            }
        }
    }
}

use super::*;
use std::net::{Ipv4Addr, Ipv6Addr};

const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 221, 1);
const LB: Ipv4Addr = Ipv4Addr::new(198, 18, 221, 11);
const REAL: Ipv4Addr = Ipv4Addr::new(198, 18, 101, 10);

fn ip4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, len: u16) -> Vec<u8> {
    let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0];
    header[2..4].copy_from_slice(&len.to_be_bytes());
    header.extend(source.octets());
    header.extend(destination.octets());
    header
}

/// A router's frag-needed about an outer packet of 1,500 bytes, of which it quotes no more than it must (RFC 792).
fn frag_needed(mtu: u16) -> Vec<u8> {
    let [high, low] = mtu.to_be_bytes();
    let quoted = [ip4(LB, REAL, 4, 1500), vec![0x45, 0, 0x05, 0xc8, 0, 0, 0x40, 0]].concat();
    [ip4(ROUTER, LB, 1, 56), vec![3, 4, 0, 0, 0, 0, high, low], quoted].concat()
}

fn packet_too_big(mtu: u32) -> Vec<u8> {
    let mut message = vec![2, 0, 0, 0];
    message.extend(mtu.to_be_bytes());
    message.extend([0x60, 0, 0, 0, 0x05, 0xb4, 41, 64]);
    message.extend("fd00:221::11".parse::<Ipv6Addr>().unwrap().octets());
    message.extend("fd00:101::10".parse::<Ipv6Addr>().unwrap().octets());
    message
}

#[test]
fn frag_needed_about_an_outer_packet_is_understood() {
    let told = TooBig { source: LB.into(), real: REAL.into(), mtu: 1400 };
    assert_eq!(parse4(&frag_needed(1400)), Some(told));
    assert_eq!(parse4(&frag_needed(100)), Some(TooBig { mtu: MIN4, ..told }), "no smaller one is believed");
}

#[test]
fn packet_too_big_about_an_outer_packet_is_understood() {
    let [source, real] = ["fd00:221::11", "fd00:101::10"].map(|address| address.parse().unwrap());
    assert_eq!(parse6(&packet_too_big(1400)), Some(TooBig { source, real, mtu: 1400 }));
    let least = parse6(&packet_too_big(1280)).unwrap().mtu;
    assert_eq!(least - 40, 1280, "a client can be told no less than 1,280");
    assert_eq!(parse6(&packet_too_big(1279)), None);
    assert_eq!(parse6(&packet_too_big(1500)), None, "the packet was no larger");
}

/// What is wrong, and where a byte of the message would have to be another.
#[test]
fn message_that_says_nothing_of_our_packets_is_ignored() {
    for (what, at, byte) in [
        ("another type", 20, 11),
        ("another code", 21, 3),
        ("a quoted packet that is in no tunnel", 28 + 9, 6),
        ("one that routers may fragment", 28 + 6, 0),
        ("one that was not too big", 28 + 2, 0x01),
    ] {
        let mut message = frag_needed(1400);
        message[at] = byte;
        assert_eq!(parse4(&message), None, "{what}");
    }
    assert_eq!(parse4(&frag_needed(0)), None, "RFC 792 knows no MTU");
    assert_eq!(parse6(&[&[1], &packet_too_big(1400)[1..]].concat()), None);
}

#[test]
fn message_cut_anywhere_is_no_message() {
    for (message, parse) in
        [(frag_needed(1400), parse4 as fn(&[u8]) -> Option<TooBig>), (packet_too_big(1400), parse6 as _)]
    {
        let header = message.len() - if parse(&message[..message.len() - 1]).is_some() { 8 } else { 0 };
        assert!((0..header).all(|len| parse(&message[..len]).is_none()));
    }
}

#[test]
fn smallest_mtu_counts_until_nobody_repeats_it() {
    let (mut mtus, now) = (PathMtus::default(), Instant::now());
    let told = |mtu| TooBig { source: LB.into(), real: REAL.into(), mtu };
    assert!(mtus.tell(&told(1400), now));
    assert!(!mtus.tell(&told(1450), now) && mtus.tell(&told(1300), now));
    assert!(!mtus.tell(&told(1300), now + LIFETIME / 2), "the same again, for longer");
    assert!(!mtus.retain(now + LIFETIME, |_| true));
    assert_eq!(mtus.of(&REAL.into()), Some(1300));
    assert!(mtus.retain(now + LIFETIME * 3 / 2, |_| true));
    assert_eq!(mtus.of(&REAL.into()), None);
}

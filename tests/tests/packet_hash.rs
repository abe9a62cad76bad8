//! By what a VIP spreads its flows, fragments of those that need no ports, and counters of new connections.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod packets;

use lb_ebpf::{counter::Reason, ring::RealId, syn::SynCounter};
use lbd::config::{Protocol, VipMiss};
use packets::{
    BY_SOURCE, BY_SOURCE_PORT, BY_SOURCE6, CLIENT, CLIENT6, Path, REALS, VIP, VIP6,
    build::{ACK, Ip4, Ip6, MF, SYN, TCP, UDP, fragment, tcp, udp},
    remembering, service, steady, tcp4, tcp6, udp4,
};
use std::{collections::BTreeSet, net::Ipv4Addr};

fn from(client: u8, vip: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    let [a, b, c, _] = CLIENT.octets();
    Ip4::new(Ipv4Addr::new(a, b, c, client), vip).packet(TCP, &tcp(ports, ACK, b""))
}

#[test]
fn source_hash_keeps_all_flows_of_a_client_on_one_real() {
    let mut path = Path::new(VipMiss::Drop);
    let mut reals = BTreeSet::new();
    for client in 1..100 {
        let of_client: BTreeSet<RealId> =
            (1..20).map(|n| path.forward(&from(client, BY_SOURCE, (n, 8000 + n))).real).collect();
        assert_eq!(of_client.len(), 1);
        reals.extend(of_client);
    }
    assert_eq!(reals, REALS.collect(), "clients are spread");
    let of_client: BTreeSet<RealId> =
        (1..20).map(|n| path.forward(&tcp6(BY_SOURCE6, (n, 8000 + n), ACK)).real).collect();
    assert_eq!(of_client.len(), 1);
}

#[test]
fn source_port_hash_keeps_a_client_on_one_real_for_each_port() {
    let mut path = Path::new(VipMiss::Drop);
    let mut reals = BTreeSet::new();
    for port in 8000..8100 {
        let of_port: BTreeSet<RealId> =
            (1..20).map(|n| path.forward(&from(1, BY_SOURCE_PORT, (n, port))).real).collect();
        assert_eq!(of_port.len(), 1);
        reals.extend(of_port);
    }
    assert_eq!(reals, REALS.collect(), "ports are spread");
}

#[test]
fn flows_of_a_client_hashed_by_source_are_tracked_one_by_one() {
    let mut path = Path::new(VipMiss::Drop);
    let ring = service(BY_SOURCE, Protocol::Tcp);
    path.ring(ring, remembering(1, 0));
    path.forward(&tcp4(BY_SOURCE, (7, 80), SYN));
    path.ring(ring, remembering(2, 0));
    assert_eq!(path.forward(&tcp4(BY_SOURCE, (8, 80), SYN)).real, 2, "a new connection");
    assert_eq!(path.forward(&tcp4(BY_SOURCE, (7, 80), ACK)).real, 1, "the old one");
}

/// A datagram in two fragments, and whole.
fn fragments4(vip: Ipv4Addr, client: u8) -> [Vec<u8>; 3] {
    let ip = |fragment| Ip4 { fragment, ..Ip4::new(Ipv4Addr::new(198, 18, 10, client), vip) };
    let datagram = udp((7, 53), &[1; 80]);
    [ip(MF).packet(UDP, &datagram[..48]), ip(6).packet(UDP, &datagram[48..]), ip(0).packet(UDP, &datagram)]
}

fn fragments6(client: u16) -> [Vec<u8>; 3] {
    let mut segments = CLIENT6.segments();
    segments[7] = client;
    let ip = |extensions| Ip6 { extensions, ..Ip6::new(segments.into(), BY_SOURCE6) };
    let datagram = udp((7, 53), &[1; 80]);
    [
        ip(vec![fragment(0, true)]).packet(UDP, &datagram[..48]),
        ip(vec![fragment(6, false)]).packet(UDP, &datagram[48..]),
        ip(vec![]).packet(UDP, &datagram),
    ]
}

#[test]
fn fragments_of_an_all_ports_vip_hashed_by_source_follow_their_datagram() {
    let mut path = Path::new(VipMiss::Drop);
    for client in 1..100 {
        for fragments in [fragments4(BY_SOURCE, client), fragments6(client.into())] {
            let reals = fragments.map(|packet| path.forward(&packet).real);
            assert!(reals.iter().all(|real| *real == reals[0]), "{reals:?}");
        }
    }
}

#[test]
fn fragments_follow_a_tracked_datagram() {
    let mut path = Path::new(VipMiss::Drop);
    let ring = service(BY_SOURCE, Protocol::Udp);
    path.ring(ring, remembering(1, 0));
    path.forward(&udp4(BY_SOURCE, (7, 53), b"whole"));
    path.ring(ring, remembering(2, 0));
    assert_eq!(fragments4(BY_SOURCE, 10).map(|packet| path.forward(&packet).real), [1; 3]);
}

#[test]
fn fragments_of_other_vips_are_dropped() {
    let mut path = Path::new(VipMiss::Pass);
    let [first, later, _] = fragments4(VIP, 1);
    let by_port = Ip4 { fragment: MF, ..Ip4::new(CLIENT, BY_SOURCE_PORT) }.packet(TCP, &tcp((1, 2), ACK, &[0; 8]));
    let ip6 = Ip6 { extensions: vec![fragment(0, true)], ..Ip6::new(CLIENT6, VIP6) };
    // 255 is how the table names an address, and that of this one hashes by source.
    let no_protocol = Ip4 { fragment: MF, ..Ip4::new(CLIENT, BY_SOURCE) }.packet(255, &[0; 16]);
    for packet in [first, later, by_port, no_protocol, ip6.packet(TCP, &tcp((1, 80), ACK, &[0; 8]))] {
        assert_eq!(path.reason(&packet), Reason::DropFragment);
    }
}

#[test]
fn syns_are_counted_by_real_and_repeated_ones_recognised() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(service(VIP, Protocol::Tcp), |_| steady(2));
    for port in 1..=100 {
        path.forward(&tcp4(VIP, (port, 80), SYN));
        path.forward(&tcp4(VIP, (port, 80), ACK));
    }
    assert_eq!(path.program.syns(2).unwrap().syns, 100);
    let before = path.program.syns(2).unwrap().repeated;
    assert!(before <= 2, "different flows seldom look alike: {before}");
    for port in 1..=10 {
        path.forward(&tcp4(VIP, (port, 80), SYN));
    }
    let SynCounter { syns, repeated } = path.program.syns(2).unwrap();
    // A test run may move to another CPU, which has a sketch of its own.
    assert!(syns == 110 && (1..=10).contains(&(repeated - before)), "{repeated}");
    assert_eq!(path.program.syns(1).unwrap(), SynCounter::default());
}

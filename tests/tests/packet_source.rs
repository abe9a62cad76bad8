//! The outer source: one address, or a prefix into which flows are hashed.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod packets;

use lb_ebpf::{
    hash::{HashKey, flow_hash},
    real::{RealEntry, SERVES_TCP, SERVES_UDP},
    ring::{MAX_RING_ORDER, RealId, slot_index},
    source::OuterSource,
};
use lbd::config::VipMiss;
use packets::{
    CLIENT, Path, REALS, SEED, VIP,
    build::{ACK, DF, Ip4, SYN, TCP, tcp},
    real_address, udp4,
};
use std::{
    collections::{BTreeMap, HashSet},
    net::{IpAddr, Ipv4Addr},
};

/// The program with this outer source.
fn path(source: &str) -> Path {
    let mut path = Path::new(VipMiss::Drop);
    let source: OuterSource = source.parse().unwrap();
    for id in REALS {
        let IpAddr::V4(address) = real_address(id) else { panic!("the reals of IPv4") };
        let entry = RealEntry::ipip(source, address, Some(&Path::hop()), SERVES_TCP | SERVES_UDP);
        path.program.set_real(id, entry).unwrap();
    }
    path
}

/// Segments of one flow a port, whose outer headers differ in all that the checksum covers.
fn segment(port: u16, flags: u8) -> Vec<u8> {
    let fragment = if port.is_multiple_of(3) { 0 } else { DF };
    let ip = Ip4 { tos: port.to_be_bytes()[1], fragment, ..Ip4::new(CLIENT, VIP) };
    ip.packet(TCP, &tcp((port, 80), flags, &vec![0; usize::from(port % 64)]))
}

/// The real and the outer source of a packet that is forwarded. Reading it asserts the outer checksum.
fn sent(path: &mut Path, packet: &[u8]) -> (RealId, IpAddr) {
    let sent = path.forward(packet);
    (sent.real, sent.source)
}

#[test]
fn flows_of_each_real_spread_evenly_over_the_whole_prefix() {
    const FLOWS: u16 = 6000;
    for (prefix, first) in [("198.18.222.0/28", [198, 18, 222, 0]), ("198.18.255.240/28", [198, 18, 255, 240])] {
        let mut path = path(prefix);
        let mut flows: BTreeMap<(RealId, IpAddr), u16> = BTreeMap::new();
        for port in 1..=FLOWS {
            *flows.entry(sent(&mut path, &segment(port, ACK))).or_default() += 1;
        }
        let addresses = (0..16).map(|n| IpAddr::from(Ipv4Addr::from_bits(Ipv4Addr::from(first).to_bits() + n)));
        let expected: Vec<_> = addresses.flat_map(|address| REALS.map(move |id| (id, address))).collect();
        assert!(expected.iter().all(|place| flows.contains_key(place)) && flows.len() == expected.len(), "{flows:?}");
        // 125 in each place, with a standard deviation of 11.
        assert!(flows.values().all(|&count| (80..=170).contains(&count)), "{flows:?}");
    }
}

#[test]
fn flow_always_has_the_same_outer_source() {
    let mut path = path("198.18.222.0/24");
    for port in 1..500 {
        let first = sent(&mut path, &segment(port, SYN));
        assert!((0..3).all(|_| sent(&mut path, &segment(port, ACK)) == first));
        let datagram = sent(&mut path, &udp4(VIP, (port, 53), b"query"));
        assert_eq!(sent(&mut path, &udp4(VIP, (port, 53), b"another query")), datagram);
    }
}

#[test]
fn largest_prefix_varies_both_bytes() {
    const FLOWS: u16 = 2000;
    let mut path = path("198.18.0.0/16");
    let sources: HashSet<_> = (1..=FLOWS).map(|port| sent(&mut path, &segment(port, ACK)).1).collect();
    // Of 65,536 that are drawn from 2,000 times, 1,970 different ones are to be expected.
    assert!(sources.len() > 1940, "{}", sources.len());
    let halves = |source: &IpAddr| if let IpAddr::V4(source) = source { source.octets() } else { panic!("not IPv4") };
    assert!(sources.iter().all(|source| halves(source)[..2] == [198, 18]));
    for byte in [2, 3] {
        assert!(sources.iter().map(|source| halves(source)[byte]).collect::<HashSet<_>>().len() > 250);
    }
}

/// Flows that share a slot even of the largest ring, by client and port.
fn flows_of_one_slot() -> impl Iterator<Item = (Ipv4Addr, u16)> {
    let key = HashKey::from_seed(SEED);
    let clients = (0..).map(|n| Ipv4Addr::from_bits(CLIENT.to_bits() + n));
    let flows = clients.flat_map(|client| (1..=u16::MAX).map(move |port| (client, port)));
    flows.filter(move |(client, port)| {
        let [client, vip] = [client, &VIP].map(|address| u32::from_ne_bytes(address.octets()));
        let ports = u32::from_ne_bytes([port.to_be_bytes(), 80_u16.to_be_bytes()].concat().try_into().unwrap());
        slot_index(flow_hash(&key, client, vip, ports, TCP), MAX_RING_ORDER) == 4711
    })
}

/// All flows of a real have slots of that real, so the bits that choose the slot must not choose the source.
#[test]
fn flows_of_one_slot_differ_in_every_bit_of_the_prefix() {
    let mut path = path("198.18.0.0/16");
    let source = |(client, port)| {
        let packet = Ip4::new(client, VIP).packet(TCP, &tcp((port, 80), ACK, b""));
        if let IpAddr::V4(source) = path.forward(&packet).source { source.to_bits() } else { panic!("not IPv4") }
    };
    let sources: Vec<u32> = flows_of_one_slot().take(40).map(source).collect();
    let differing = sources.iter().fold(0, |bits, source| bits | (source ^ sources[0]));
    assert_eq!(differing, 0xffff);
    assert!(sources.iter().collect::<HashSet<_>>().len() >= 39, "{sources:x?}");
}

#[test]
fn single_address_is_the_source_of_every_flow() {
    let mut path = path("198.18.222.13");
    let sources: HashSet<_> = (1..500).map(|port| sent(&mut path, &segment(port, ACK)).1).collect();
    assert_eq!(sources, HashSet::from([Ipv4Addr::new(198, 18, 222, 13).into()]));
}

//! ICMP through the real XDP program: errors about a VIP's replies follow their flow, packets that are too big are told.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a helper that fails fails its test")]

mod packets;

use lb_ebpf::{
    counter::{FlowEvent, Reason},
    rate::{BURST, RATE},
    real::NextHop,
    ring::RealId,
};
use lbd::config::{Protocol, VipMiss};
use packets::{
    BY_SOURCE, CLIENT, CLIENT6, ELSEWHERE, ELSEWHERE6, Path, VIP, VIP6, XDP_DROP, XDP_PASS, XDP_TX,
    build::{
        ACK, DESTINATION_OPTIONS, FIN, ICMP, ICMPV6, Ip4, Ip6, SYN, TCP, UDP, frame, icmp, icmp6, padding, tcp, udp,
    },
    remembering, sent, service, steady, tcp4, tcp6, udp4, udp6,
};
use std::{
    net::{Ipv4Addr, Ipv6Addr},
    time::Instant,
};

/// Errors of RFC 792 and RFC 4443, by type and code.
const ERRORS4: [[u8; 2]; 4] = [[3, 1], [3, 4], [11, 0], [12, 0]];
const ERRORS6: [[u8; 2]; 5] = [[1, 0], [1, 4], [2, 0], [3, 0], [4, 1]];

const ROUTER: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// An error from a router about a packet from a VIP.
fn error4(vip: Ipv4Addr, type_and_code: [u8; 2], quote: &[u8]) -> Vec<u8> {
    Ip4::new(ROUTER, vip).packet(ICMP, &icmp(type_and_code, [0, 0, 5, 0], quote))
}

fn error6(vip: Ipv6Addr, type_and_code: [u8; 2], quote: &[u8]) -> Vec<u8> {
    let ip = Ip6::new(ROUTER6, vip);
    ip.packet(ICMPV6, &icmp6(&ip, type_and_code, [0, 0, 5, 0], quote))
}

/// What a real replied to the client from this VIP and port.
fn reply4(vip: Ipv4Addr, ports: (u16, u16)) -> Vec<u8> {
    Ip4::new(vip, CLIENT).packet(TCP, &tcp(ports, ACK, &[0; 1400]))
}

fn reply6(vip: Ipv6Addr, ports: (u16, u16)) -> Vec<u8> {
    Ip6::new(vip, CLIENT6).packet(TCP, &tcp(ports, ACK, &[0; 1400]))
}

#[test]
fn error_about_a_reply_goes_to_the_flows_real() {
    let mut path = Path::new(VipMiss::Drop);
    for port in 1000..2000 {
        let real = path.forward(&tcp4(VIP, (port, 80), ACK)).real;
        assert_eq!(path.forward(&error4(VIP, [3, 4], &reply4(VIP, (80, port))[..28])).real, real);
        let real = path.forward(&tcp6(VIP6, (port, 80), ACK)).real;
        assert_eq!(path.forward(&error6(VIP6, [2, 0], &reply6(VIP6, (80, port))[..1232])).real, real);
    }
}

#[test]
fn error_of_every_type_is_forwarded_for_udp_as_well() {
    let mut path = Path::new(VipMiss::Drop);
    let real = path.forward(&udp4(VIP, (7, 53), b"query")).real;
    let reply = Ip4::new(VIP, CLIENT).packet(UDP, &udp((53, 7), b"answer"));
    for type_and_code in ERRORS4 {
        assert_eq!(path.forward(&error4(VIP, type_and_code, &reply)).real, real);
    }
    let real = path.forward(&udp6(VIP6, (7, 53), b"query")).real;
    let reply = Ip6::new(VIP6, CLIENT6).packet(UDP, &udp((53, 7), b"answer"));
    for type_and_code in ERRORS6 {
        assert_eq!(path.forward(&error6(VIP6, type_and_code, &reply)).real, real);
    }
}

#[test]
fn quoted_options_are_looked_through() {
    let mut path = Path::new(VipMiss::Drop);
    let real = path.forward(&tcp4(VIP, (7, 80), ACK)).real;
    for words in 1..=10 {
        let ip = Ip4 { options: vec![1; words * 4], ..Ip4::new(VIP, CLIENT) };
        let quote = ip.packet(TCP, &tcp((80, 7), ACK, b""));
        assert_eq!(path.forward(&error4(VIP, [11, 0], &quote[..28 + words * 4])).real, real);
        assert_eq!(path.reason(&error4(VIP, [11, 0], &quote[..27 + words * 4])), Reason::DropMalformed);
    }
}

#[test]
fn quoted_extension_headers_are_looked_through() {
    let mut path = Path::new(VipMiss::Drop);
    let real = path.forward(&tcp6(VIP6, (7, 80), ACK)).real;
    for count in 1..=4 {
        let ip = Ip6 { extensions: vec![padding(DESTINATION_OPTIONS, 64); count], ..Ip6::new(VIP6, CLIENT6) };
        let quote = ip.packet(TCP, &tcp((80, 7), ACK, b""));
        let least = 40 + 64 * count + 8;
        assert_eq!(path.forward(&error6(VIP6, [3, 0], &quote[..least])).real, real);
        assert_eq!(path.reason(&error6(VIP6, [3, 0], &quote[..least - 1])), Reason::DropMalformed);
    }
}

#[test]
fn error_follows_a_tracked_flow_and_is_not_remembered() {
    let mut path = Path::new(VipMiss::Drop);
    let ring = service(VIP, Protocol::Tcp);
    path.ring(ring, remembering(1, 0));
    path.forward(&tcp4(VIP, (7, 80), SYN));
    path.ring(ring, remembering(2, 0));
    let error = |port| error4(VIP, [3, 4], &reply4(VIP, (80, port))[..28]);
    assert_eq!(path.forward(&error(7)).real, 1, "the flow's");
    assert_eq!(path.forward(&error(8)).real, 2, "nobody's");
    assert_eq!(path.flow_events(FlowEvent::Insert), 1, "the flow's own");
}

#[test]
fn error_about_a_flow_hashed_by_source_follows_it() {
    let mut path = Path::new(VipMiss::Drop);
    let real = path.forward(&tcp4(BY_SOURCE, (7, 443), ACK)).real;
    assert_eq!(path.forward(&error4(BY_SOURCE, [3, 4], &reply4(BY_SOURCE, (443, 7))[..28])).real, real);
}

/// Errors that name no flow of the VIP they are sent to.
fn errors_about_nothing() -> Vec<Vec<u8>> {
    let later = Ip4 { fragment: 100, ..Ip4::new(VIP, CLIENT) }.packet(TCP, &tcp((80, 7), ACK, b""));
    vec![
        error4(VIP, [3, 4], &reply4(VIP, (81, 7))[..28]),
        error4(VIP, [3, 4], &reply4(ELSEWHERE, (80, 7))[..28]),
        error4(VIP, [3, 4], &Ip4::new(VIP, CLIENT).packet(ICMP, &icmp([0, 0], [0; 4], b""))),
        error4(VIP, [3, 4], &later),
        error6(VIP6, [2, 0], &reply6(VIP6, (81, 7))[..80]),
        error6(VIP6, [2, 0], &reply6(ELSEWHERE6, (80, 7))[..80]),
    ]
}

/// ICMP that is no error and no echo request.
fn other_icmp() -> Vec<Vec<u8>> {
    let ip6 = Ip6::new(CLIENT6, VIP6);
    vec![
        Ip4::new(CLIENT, VIP).packet(ICMP, &icmp([0, 0], [0, 1, 0, 2], b"x")),
        Ip4::new(CLIENT, VIP).packet(ICMP, &icmp([13, 0], [0, 1, 0, 2], &[0; 12])),
        Ip4::new(CLIENT, VIP).packet(ICMP, &icmp([8, 1], [0, 1, 0, 2], b"x")),
        ip6.packet(ICMPV6, &icmp6(&ip6, [129, 0], [0, 1, 0, 2], b"x")),
        ip6.packet(ICMPV6, &icmp6(&ip6, [138, 0], [0; 4], &VIP6.octets())),
    ]
}

#[test]
fn echo_that_would_be_answered_to_many_is_dropped() {
    let mut path = Path::new(VipMiss::Drop);
    let groups4 = [[224, 0, 0, 1], [255; 4], [127, 0, 0, 1], [0; 4]].map(Ipv4Addr::from);
    let from4 = |source| Ip4::new(source, VIP).packet(ICMP, &icmp([8, 0], [0, 1, 0, 2], b"x"));
    let groups6 = [Ipv6Addr::LOCALHOST, Ipv6Addr::UNSPECIFIED, Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1)];
    let from6 = |source| {
        let ip6 = Ip6::new(source, VIP6);
        ip6.packet(ICMPV6, &icmp6(&ip6, [128, 0], [0, 1, 0, 2], b"x"))
    };
    let mut frames: Vec<_> = groups4.map(from4).into_iter().chain(groups6.map(from6)).map(|p| frame(&p)).collect();
    for packet in [from4(CLIENT), from6(CLIENT6)] {
        let mut to_all = frame(&packet);
        to_all[..6].fill(0xff);
        frames.push(to_all);
    }
    for frame in frames {
        let (action, _, reason) = path.run(&frame);
        assert_eq!((action, reason), (XDP_DROP, Reason::DropIcmp));
    }
}

#[test]
fn neighbour_discovery_for_a_vip_passes_untouched() {
    let mut path = Path::new(VipMiss::Drop);
    let ip6 = Ip6::new(CLIENT6, VIP6);
    for kind in 133..=137 {
        let solicitation = frame(&ip6.packet(ICMPV6, &icmp6(&ip6, [kind, 0], [0; 4], &VIP6.octets())));
        let (action, out, reason) = path.run(&solicitation);
        assert_eq!((action, reason, out), (XDP_PASS, Reason::PassIcmp, solicitation));
    }
}

#[test]
fn other_icmp_for_a_vip_is_dropped_or_passed_by_configuration() {
    let (mut dropping, mut passing) = (Path::new(VipMiss::Drop), Path::new(VipMiss::Pass));
    for packet in [errors_about_nothing(), other_icmp()].concat() {
        let frame = frame(&packet);
        let (action, _, reason) = dropping.run(&frame);
        assert_eq!((action, reason), (XDP_DROP, Reason::DropIcmp));
        let (action, out, reason) = passing.run(&frame);
        assert_eq!((action, reason, out), (XDP_PASS, Reason::PassIcmp, frame));
    }
}

#[test]
fn error_with_a_quote_cut_short_is_malformed() {
    let mut path = Path::new(VipMiss::Drop);
    for len in 0..28 {
        assert_eq!(path.reason(&error4(VIP, [3, 4], &reply4(VIP, (80, 7))[..len])), Reason::DropMalformed);
    }
    for len in 0..48 {
        assert_eq!(path.reason(&error6(VIP6, [2, 0], &reply6(VIP6, (80, 7))[..len])), Reason::DropMalformed);
    }
}

/// The MTU behind the outer header: `payload` bytes of UDP fit, one more does not.
#[test]
fn packet_over_the_mtu_is_answered_with_frag_needed_from_the_vip() {
    let mut path = Path::new(VipMiss::Drop);
    for (outer, first_real) in [(20, 1), (40, 4)] {
        path.ring(service(VIP, Protocol::Udp), |_| steady(first_real));
        let fits = 1500 - outer;
        path.forward(&udp4(VIP, (1, 53), &vec![7; fits - 28]));
        let packet = udp4(VIP, (1, 53), &vec![7; fits - 28 + 1]);
        let request = frame(&packet);
        let (action, out, reason) = path.run(&request);
        assert_eq!((action, reason), (XDP_TX, Reason::TooBigReply));
        assert_eq!((&out[..6], &out[6..12]), (&request[6..12], &request[..6]));
        let error = sent::icmp(&out);
        assert_eq!((error.source, error.destination, error.ttl), (VIP.into(), CLIENT.into(), 64));
        assert_eq!(error.type_and_code, [3, 4]);
        assert_eq!(error.rest_of_header[..2], [0, 0], "RFC 1191 §4");
        assert_eq!(error.rest_of_header[2..], u16::try_from(fits).unwrap().to_be_bytes());
        assert!(error.len <= 576, "RFC 1812 §4.3.2.3");
        assert!(error.data.len() >= 28 && packet.starts_with(&error.data));
    }
}

#[test]
fn packet_over_the_mtu_is_answered_with_packet_too_big_from_the_vip() {
    let mut path = Path::new(VipMiss::Drop);
    path.forward(&udp6(VIP6, (1, 53), &[7; 1460 - 48]));
    for payload in [1460 - 48 + 1, 1500 - 48, 2000] {
        let packet = udp6(VIP6, (1, 53), &vec![7; payload]);
        let (action, out, reason) = path.run(&frame(&packet));
        assert_eq!((action, reason), (XDP_TX, Reason::TooBigReply));
        let error = sent::icmp(&out);
        assert_eq!((error.source, error.destination, error.ttl), (VIP6.into(), CLIENT6.into(), 64));
        assert_eq!((error.type_and_code, error.rest_of_header), ([2, 0], 1460_u32.to_be_bytes()));
        assert_eq!(error.len, 1280, "RFC 4443 §3.2: as much as fits into the least MTU");
        assert!(packet.starts_with(&error.data));
    }
}

#[test]
fn small_packet_over_a_smaller_mtu_is_quoted_as_rfc_792_wants() {
    let mut path = Path::new(VipMiss::Drop);
    path.reals_by(Some(&NextHop { mtu: 300, ..Path::hop() }));
    let packet = udp4(VIP, (1, 53), &[7; 300]);
    let (_, out, reason) = path.run(&frame(&packet));
    assert_eq!(reason, Reason::TooBigReply);
    let error = sent::icmp(&out);
    assert_eq!((error.rest_of_header, error.data), ([0, 0, 1, 24], packet[..28].to_vec()));
}

#[test]
fn too_big_is_not_told_where_it_must_not_be() {
    let mut path = Path::new(VipMiss::Drop);
    let large = [7; 1500 - 28];
    let datagram = udp((1, 53), &large);
    let error = error4(VIP, [3, 4], &reply4(VIP, (80, 7))[..1440]);
    assert_eq!(path.forward(&error).real, path.forward(&tcp4(VIP, (7, 80), FIN)).real, "it fits");
    let no_hosts = [[0, 0, 0, 0], [127, 0, 0, 1], [224, 0, 0, 1], [255, 255, 255, 255]].map(Ipv4Addr::from);
    let mut packets: Vec<_> = no_hosts.into_iter().map(|client| Ip4::new(client, VIP).packet(UDP, &datagram)).collect();
    let no_hosts = ["::", "::1", "ff02::1"].map(|address| address.parse::<Ipv6Addr>().unwrap());
    packets.extend(no_hosts.into_iter().map(|client| Ip6::new(client, VIP6).packet(UDP, &datagram)));
    packets.push(Ip4 { fragment: 0, ..Ip4::new(CLIENT, VIP) }.packet(UDP, &datagram));
    packets.push(error4(VIP, [3, 4], &Ip4::new(VIP, CLIENT).packet(TCP, &tcp((80, 7), ACK, &[0; 1420]))));
    for packet in packets {
        let (action, _, reason) = path.run(&frame(&packet));
        assert_eq!((action, reason), (XDP_DROP, Reason::DropTooBig));
    }
}

/// A router beyond the device has told of a narrow hop: what may be fragmented is for that router to fragment.
#[test]
fn datagram_that_may_be_fragmented_is_sent_over_a_narrow_path() {
    let mut path = Path::new(VipMiss::Drop);
    path.reals_by(Some(&NextHop { mtu: 1400, ..Path::hop() }));
    let fragmentable =
        |len: usize| Ip4 { fragment: 0, ..Ip4::new(CLIENT, VIP) }.packet(UDP, &udp((1, 53), &vec![7; len - 28]));
    let whole = |len: usize| udp4(VIP, (1, 53), &vec![7; len - 28]);
    assert_eq!(path.reason(&whole(1380)), Reason::Forwarded);
    assert_eq!(path.reason(&whole(1381)), Reason::TooBigReply);
    assert_eq!(path.reason(&fragmentable(1381)), Reason::Forwarded);
    assert_eq!(path.reason(&fragmentable(1480)), Reason::Forwarded);
    assert_eq!(path.reason(&fragmentable(1481)), Reason::DropTooBig);
}

/// No IPv6 host may be told less than 1280 (RFC 8200 §5).
#[test]
fn mtu_below_the_least_of_ip6_is_not_told() {
    let mut path = Path::new(VipMiss::Drop);
    path.reals_by(Some(&NextHop { mtu: 1280 + 40, ..Path::hop() }));
    assert_eq!(path.reason(&udp6(VIP6, (1, 53), &[7; 1280 - 48 + 1])), Reason::TooBigReply);
    path.reals_by(Some(&NextHop { mtu: 1280 + 39, ..Path::hop() }));
    assert_eq!(path.reason(&udp6(VIP6, (1, 53), &[7; 1280 - 48])), Reason::DropTooBig);
}

#[test]
fn too_big_is_told_at_a_bounded_rate() {
    let mut path = Path::new(VipMiss::Drop);
    let packet = udp4(VIP, (1, 53), &[7; 1473]);
    let began = Instant::now();
    let told = (0..2000).map(|_| match path.reason(&packet) {
        Reason::TooBigReply => 1,
        Reason::DropTooBigLimited => 0,
        reason => panic!("{reason:?}"),
    });
    let told: u64 = told.sum();
    // Each CPU has a bucket, and a test run may move to another one; the clock goes in steps of up to 10 ms.
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    let milliseconds = u64::try_from(began.elapsed().as_millis()).unwrap() + 11;
    let most = cpus * (BURST + RATE * milliseconds / 1000);
    assert!((BURST..=most).contains(&told), "{told} of 2000 told, at most {most}");
}

#[test]
fn error_reaches_the_flows_real_of_another_family() {
    let mut path = Path::new(VipMiss::Drop);
    path.ring(service(VIP, Protocol::Tcp), |slot| steady(4 + RealId::try_from(slot % 3).unwrap()));
    let real = path.forward(&tcp4(VIP, (7, 80), ACK)).real;
    assert_eq!(path.forward(&error4(VIP, [3, 4], &reply4(VIP, (80, 7))[..28])).real, real);
}

//! Real packets through the eBPF decapsulator that `apply` installs. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod lab;

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    net::{Ipv4Addr, TcpListener, UdpSocket},
    time::{Duration, Instant},
};

use etherparse::{IpFragOffset, IpNumber, Ipv4Header, TcpHeader, TcpOptionElement};
use lab::{CLIENT, Lab, REAL, VIP, echo, echo_reply_from, ipip, packet_socket, syn, unreachable, with_header, within};
use realsrv_setup::{
    observed::{Config, Program},
    plan::Programs,
    system::programs,
};
use socket2::Protocol;

const APPLY: &str = "apply --no-verify --decap ebpf --vip 198.19.10.1";
const PROTOCOL_UNREACHABLE: u8 = 2;

#[test]
fn echo_to_vip_through_tunnel_is_answered_from_vip() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    let answer = lab.exchange(ipip(CLIENT, &echo(VIP)), Protocol::ICMPV4, echo_reply_from(VIP));
    assert!(answer.is_some());
    assert_eq!(lab.counter("decapsulated"), 1);
}

#[test]
fn echo_to_host_address_through_tunnel_is_answered() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    let answer = lab.exchange(ipip(CLIENT, &echo(REAL)), Protocol::ICMPV4, echo_reply_from(REAL));
    assert!(answer.is_some());
}

#[test]
fn echo_without_tunnel_to_host_passes_untouched() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    assert!(lab.exchange(echo(REAL), Protocol::ICMPV4, echo_reply_from(REAL)).is_some());
    assert_eq!(lab.counter("decapsulated"), 0);
}

/// Also with reverse path filtering at its strictest: the packet stays on its device.
#[test]
fn echo_under_strict_rp_filter_is_answered() {
    let lab = Lab::new();
    lab.in_real("echo 1 > /proc/sys/net/ipv4/conf/all/rp_filter; echo 1 > /proc/sys/net/ipv4/conf/eth0/rp_filter");
    lab.setup_exits(APPLY, 0);
    assert!(lab.exchange(ipip(CLIENT, &echo(VIP)), Protocol::ICMPV4, echo_reply_from(VIP)).is_some());
}

/// The answer to a SYN through the tunnel.
fn syn_ack(lab: &Lab) -> Vec<u8> {
    let listener = within(&lab.real, || TcpListener::bind((VIP, 80)).unwrap());
    let wanted = |packet: &[u8]| Ipv4Header::from_slice(packet).is_ok_and(|(ip, _)| ip.source == VIP.octets());
    let packet = lab.exchange(ipip(CLIENT, &syn(VIP, 80, 1460)), Protocol::TCP, wanted).expect("a SYN-ACK");
    drop(listener);
    let header = tcp(&packet);
    assert!(header.syn && header.ack);
    packet
}

fn tcp(packet: &[u8]) -> TcpHeader {
    let payload = Ipv4Header::from_slice(packet).unwrap().1;
    TcpHeader::from_slice(payload).unwrap().0
}

fn mss(packet: &[u8]) -> u16 {
    let option = tcp(packet).options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
        _ => None,
    });
    option.expect("an MSS option")
}

/// The MSS that a SYN-ACK announces; its checksum must be right.
fn announced_mss(lab: &Lab) -> u16 {
    let packet = syn_ack(lab);
    let ip = Ipv4Header::from_slice(&packet).unwrap().0;
    let header = tcp(&packet);
    assert_eq!(header.checksum, header.calc_checksum_ipv4(&ip, &[]).unwrap());
    mss(&packet)
}

#[test]
fn syn_ack_from_vip_leaves_room_for_the_outer_header() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    assert_eq!(announced_mss(&lab), 1440);
    assert_eq!(lab.counter("mss_clamped"), 1);
}

/// A checksum left to the device covers the pseudo header only: the option must change and that sum must not.
#[test]
fn syn_ack_with_partial_checksum_keeps_it() {
    let lab = Lab::new();
    lab.in_real("ethtool -K eth0 tx on");
    lab.setup_exits(APPLY, 0);
    let packet = syn_ack(&lab);
    assert_eq!(mss(&packet), 1440);
    let ip = Ipv4Header::from_slice(&packet).unwrap().0;
    let words = [ip.source, ip.destination].concat();
    let words = words.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum: u32 = words.sum::<u32>() + 6 + u32::from(ip.payload_len().unwrap());
    let folded = (sum & 0xffff) + (sum >> 16);
    assert_eq!(u32::from(tcp(&packet).checksum), folded);
}

#[test]
fn syn_ack_with_fixed_mss_announces_it() {
    let lab = Lab::new();
    lab.setup_exits(&format!("{APPLY} --mss 1200"), 0);
    assert_eq!(announced_mss(&lab), 1200);
}

#[test]
fn syn_ack_with_clamp_off_announces_the_devices() {
    let lab = Lab::new();
    lab.setup_exits(&format!("{APPLY} --mss off"), 0);
    assert_eq!(announced_mss(&lab), 1460);
}

/// What is not decapsulated is answered as without a tunnel, and counted by its reason.
#[track_caller]
fn refused(lab: &Lab, packet: Vec<u8>, counter: &str) {
    let answer = lab.exchange(packet, Protocol::ICMPV4, unreachable(PROTOCOL_UNREACHABLE));
    assert!(answer.is_some(), "no protocol unreachable");
    assert_eq!(lab.counter(counter), 1, "{counter}");
    assert_eq!(lab.counter("decapsulated"), 0);
}

#[test]
fn tunnel_from_another_source_is_refused() {
    let lab = Lab::new();
    lab.setup_exits(&format!("{APPLY} --lb-source 198.18.1.16/28"), 0);
    // Dropped: were it passed on, a kernel tunnel beside the program would take it.
    lab.no_answer(ipip(CLIENT, &echo(VIP)), Protocol::ICMPV4, unreachable(PROTOCOL_UNREACHABLE));
    assert_eq!((lab.counter("bad_source"), lab.counter("decapsulated")), (1, 0));
}

#[test]
fn tunnel_from_an_allowed_source_is_decapsulated() {
    let lab = Lab::new();
    lab.setup_exits(&format!("{APPLY} --lb-source 198.18.1.16/28,198.18.1.0/29"), 0);
    assert!(lab.exchange(ipip(CLIENT, &echo(VIP)), Protocol::ICMPV4, echo_reply_from(VIP)).is_some());
}

#[test]
fn inner_destination_not_ours_is_refused() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    refused(&lab, ipip(CLIENT, &echo(Ipv4Addr::new(198, 19, 99, 99))), "not_ours");
}

#[test]
fn tunnel_within_the_tunnel_is_refused() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    refused(&lab, ipip(CLIENT, &ipip(CLIENT, &echo(VIP))), "malformed");
}

#[test]
fn inner_longer_than_the_packet_is_refused() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    let mut inner = echo(VIP);
    // Total length, high octet.
    inner[2] = 5;
    refused(&lab, ipip(CLIENT, &inner), "malformed");
}

#[test]
fn inner_shorter_than_a_header_is_refused() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    refused(&lab, ipip(CLIENT, &echo(VIP)[..19]), "malformed");
}

#[test]
fn fragment_of_a_tunnel_packet_is_not_decapsulated() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    let inner = echo(VIP);
    let length = inner.len().try_into().unwrap();
    let mut outer = Ipv4Header::new(length, 64, IpNumber::IPV4, CLIENT.octets(), REAL.octets()).unwrap();
    outer.dont_fragment = false;
    outer.identification = 9;
    outer.more_fragments = true;
    outer.fragment_offset = IpFragOffset::ZERO;
    lab.no_answer(with_header(&outer, &inner), Protocol::ICMPV4, echo_reply_from(VIP));
    assert_eq!(lab.counter("fragment"), 1);
}

/// IPIP from the client to any destination.
fn ipip_to(destination: Ipv4Addr) -> Vec<u8> {
    let inner = echo(VIP);
    let length = inner.len().try_into().unwrap();
    let outer = Ipv4Header::new(length, 64, IpNumber::IPV4, CLIENT.octets(), destination.octets()).unwrap();
    with_header(&outer, &inner)
}

/// Beside a kernel tunnel the guard drops what comes from elsewhere, to whichever of the host's addresses. This kernel
/// may have no tunnel: then what passes is answered by protocol unreachable.
#[test]
fn guard_drops_other_sources_and_passes_allowed_ones() {
    for (source, passes) in [("198.18.1.0/29", true), ("198.18.9.0/24", false)] {
        let lab = Lab::new();
        lab.in_real(&format!("ip addr add {VIP}/32 dev lo"));
        let config = Config {
            hosts: [REAL.into()].into(),
            vips: [VIP.into()].into(),
            sources: [source.parse().unwrap()].into(),
            ..Config::default()
        };
        let wanted = Programs { slots: [("eth0".to_owned(), Program::Guard)].into(), config };
        within(&lab.real, move || {
            aya::programs::tc::qdisc_add_clsact("eth0").unwrap();
            programs::install(&wanted, &BTreeMap::new(), &BTreeMap::new()).unwrap();
        });
        for destination in [REAL, VIP] {
            let packet = ipip_to(destination);
            let answer = unreachable(PROTOCOL_UNREACHABLE);
            if passes {
                assert!(lab.exchange(packet, Protocol::ICMPV4, answer).is_some(), "{destination}");
            } else {
                lab.no_answer(packet, Protocol::ICMPV4, answer);
            }
        }
    }
}

/// Without the setting the kernel answers one a second, and a burst of six.
#[test]
fn udp_to_a_closed_port_is_refused_each_time_at_fifty_a_second() {
    let lab = Lab::new();
    lab.setup_exits(APPLY, 0);
    lab.in_client(&format!("ip route add {VIP}/32 via {REAL}"));
    assert_eq!(refused_at_fifty_a_second(&lab, Duration::from_secs(1)), 50);
    lab.in_real("echo 1000 > /proc/sys/net/ipv4/icmp_ratelimit");
    assert!(
        refused_at_fifty_a_second(&lab, Duration::from_millis(100)) < 25,
        "the test itself: with the kernel's own setting most are not answered"
    );
}

/// How many of 50 datagrams, each within `patience`.
fn refused_at_fifty_a_second(lab: &Lab, patience: Duration) -> usize {
    within(&lab.client, move || {
        let socket = UdpSocket::bind((CLIENT, 0)).unwrap();
        socket.connect((VIP, 9)).unwrap();
        socket.set_read_timeout(Some(patience)).unwrap();
        let refused = || {
            let began = Instant::now();
            // What was refused before is told here, too, where it came late.
            let sent = socket.send(b"x");
            let refused =
                sent.and_then(|_| socket.recv(&mut [0; 8])).is_err_and(|e| e.kind() == ErrorKind::ConnectionRefused);
            std::thread::sleep(Duration::from_millis(20).saturating_sub(began.elapsed()));
            refused
        };
        std::iter::repeat_with(refused).take(50).filter(|refused| *refused).count()
    })
}

/// An ARP request for the VIP must stay unanswered, and none may be sent with the VIP as its sender.
#[test]
fn arp_for_the_vip_is_silent_both_ways() {
    let lab = Lab::new();
    // Before: the VIP on lo is answered for, with 3 as well, since it is of scope global. It is not ours, and must
    // survive.
    lab.in_real(&format!("ip addr add {VIP}/32 dev lo; echo 3 > /proc/sys/net/ipv4/conf/all/arp_ignore"));
    lab.in_client(&format!("ip route add {VIP}/32 dev veth0"));
    assert!(neighbour_of_client(&lab).contains("lladdr"), "the test itself: without silence there is an answer");
    lab.setup_exits(APPLY, 0);
    assert!(neighbour_of_client(&lab).contains("FAILED"));

    let senders = arp_senders_while(&lab, || {
        lab.in_real("ip neigh flush all");
        let socket = within(&lab.real, || UdpSocket::bind((VIP, 0)).unwrap());
        socket.send_to(b"x", (CLIENT, 9)).unwrap();
    });
    assert_eq!(senders, [REAL]);
    lab.setup_exits("remove", 0);
    assert_eq!(lab.in_real("cat /proc/sys/net/ipv4/conf/all/arp_ignore").trim(), "3");
    assert!(lab.in_real("ip addr show dev lo").contains(&VIP.to_string()));
}

/// What the client's kernel found out about the VIP's link-layer address.
fn neighbour_of_client(lab: &Lab) -> String {
    lab.in_client("ip neigh flush all");
    let socket = within(&lab.client, || UdpSocket::bind((CLIENT, 0)).unwrap());
    let _ = socket.send_to(b"x", (VIP, 9));
    // Three probes, a second apart.
    lab.in_client(&format!(
        "for i in $(seq 80); do state=$(ip neigh show {VIP}); \
         case $state in *FAILED*|*lladdr*) break;; esac; sleep 0.1; done; echo $state"
    ))
}

/// The sender of the first ARP request that the client sees after `act`.
fn arp_senders_while(lab: &Lab, act: impl FnOnce()) -> Vec<Ipv4Addr> {
    use std::io::Read as _;
    const REQUEST: [u8; 2] = [0, 1];
    let mut socket = within(&lab.client, || packet_socket(libc::ETH_P_ARP));
    socket.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    act();
    let mut packet = [0; 64];
    loop {
        // RFC 826: operation at 6, sender protocol address at 14.
        let length = socket.read(&mut packet).expect("an ARP request from the real");
        let from_real = length >= 28 && packet[6..8] == REQUEST && packet[24..28] == CLIENT.octets();
        if from_real {
            return vec![Ipv4Addr::new(packet[14], packet[15], packet[16], packet[17])];
        }
    }
}

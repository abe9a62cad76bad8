//! Real packets of both families through the eBPF decapsulator that `apply` installs, the outer header IPv6. Needs
//! root.
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
    io::Read as _,
    net::{IpAddr, Ipv6Addr, TcpListener, UdpSocket},
    time::Duration,
};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader, TcpOptionElement, ip_number};
use lab::{
    CLIENT6, LINK_LOCAL_REAL, Lab, REAL6, VIP, VIP6, echo, echo_reply_from, echo_reply6_from, echo6, in_ipv6,
    packet_socket, syn, syn6, to_ipv6, unrecognized_next_header, within,
};
use realsrv_setup::{
    observed::{Config, Filter, Hook, Program, Slot},
    plan::Programs,
    run::Host as _,
    system::{System, programs},
};
use socket2::Protocol;

const APPLY: &str = "apply --no-verify --decap ebpf --vip fd00:19:10::1";
const OPTIONS: IpNumber = ip_number::IPV6_DEST_OPTIONS;
const IPV6: IpNumber = ip_number::IPV6;
const IPV4: IpNumber = ip_number::IPV4;

/// A real with the VIP of each family.
fn dual(options: &str) -> Lab {
    let lab = Lab::new();
    lab.setup_exits(&format!("{APPLY},{VIP} {options}"), 0);
    lab
}

/// One destination options header of padding, then `next` and its packet.
fn after_options(next: IpNumber, packet: &[u8]) -> Vec<u8> {
    const PAD_N: [u8; 6] = [1, 4, 0, 0, 0, 0];
    [&[next.0, 0][..], &PAD_N, packet].concat()
}

#[test]
fn echo_to_vip_through_tunnel_is_answered_from_vip() {
    let lab = dual("");
    assert!(lab.exchange6(in_ipv6(IPV6, &echo6(VIP6)), echo_reply6_from(VIP6)).is_some());
    assert_eq!(lab.counter("decapsulated"), 1);
}

#[test]
fn echo_to_ipv4_vip_through_ipv6_tunnel_is_answered_from_vip() {
    let lab = dual("");
    let answer = lab.exchange(in_ipv6(IPV4, &echo(VIP)), Protocol::ICMPV4, echo_reply_from(VIP));
    assert!(answer.is_some());
    assert_eq!(lab.counter("decapsulated"), 1);
}

/// Where the address family changes, the packet's protocol in the kernel does, and so must the frame's.
#[test]
fn ipv4_out_of_ipv6_is_ipv4_to_captures_as_well() {
    let lab = dual("");
    let mut capture = within(&lab.real, || packet_socket(libc::ETH_P_IP));
    capture.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert!(lab.exchange(in_ipv6(IPV4, &echo(VIP)), Protocol::ICMPV4, echo_reply_from(VIP)).is_some());
    let mut packet = [0; 2048];
    let length = capture.read(&mut packet).expect("the decapsulated packet");
    assert_eq!(packet[..length], echo(VIP));
}

const ECT_0: u8 = 2;
const CE: u8 = 3;

fn marked(mut packet: Vec<u8>, ecn: u8) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        packet[1] |= ecn << 4;
        return packet;
    }
    let (mut header, payload) = Ipv4Header::from_slice(&packet).unwrap();
    header.ecn = ecn.try_into().unwrap();
    lab::with_header(&header, payload)
}

/// What a router on the way to the real marked, the receiver must learn (RFC 6040 section 4.2).
#[test]
fn congestion_marked_on_the_outer_header_reaches_the_inner_packet() {
    let lab = dual("");
    let arrives = |packet: Vec<u8>, ethertype, wanted: Vec<u8>| {
        let mut capture = within(&lab.real, move || packet_socket(ethertype));
        capture.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        within(&lab.client, move || lab::send(&packet));
        let mut buffer = [0; 2048];
        // Neighbour discovery may come between.
        loop {
            let length = capture.read(&mut buffer).expect("the decapsulated packet");
            if buffer[..length] == wanted {
                break;
            }
        }
    };
    let (ecn4, ecn6) = (|ecn| marked(echo(VIP), ecn), |ecn| marked(echo6(VIP6), ecn));
    for (outer, inner) in [(0, ECT_0), (ECT_0, 0), (CE, ECT_0), (CE, CE)] {
        let after = if outer == CE { CE } else { inner };
        arrives(marked(lab::ipip(lab::CLIENT, &ecn4(inner)), outer), libc::ETH_P_IP, ecn4(after));
        arrives(marked(in_ipv6(IPV4, &ecn4(inner)), outer), libc::ETH_P_IP, ecn4(after));
        arrives(marked(in_ipv6(IPV6, &ecn6(inner)), outer), libc::ETH_P_IPV6, ecn6(after));
    }
    assert_eq!((lab.counter("decapsulated"), lab.counter("failed")), (12, 0));
}

#[test]
fn congestion_that_the_inner_packet_cannot_tell_drops_it() {
    let lab = dual("");
    let ipv4 = [marked(lab::ipip(lab::CLIENT, &echo(VIP)), CE), marked(in_ipv6(IPV4, &echo(VIP)), CE)];
    for packet in ipv4 {
        lab.no_answer(packet, Protocol::ICMPV4, echo_reply_from(VIP));
    }
    lab.no_answer6(marked(in_ipv6(IPV6, &echo6(VIP6)), CE), echo_reply6_from(VIP6));
    assert_eq!((lab.counter("decapsulated"), lab.counter("failed")), (0, 3));
}

#[test]
fn echo_to_host_address_through_tunnel_is_answered() {
    let lab = dual("");
    assert!(lab.exchange6(in_ipv6(IPV6, &echo6(REAL6)), echo_reply6_from(REAL6)).is_some());
}

#[test]
fn echo_without_tunnel_passes_untouched() {
    let lab = dual("--lb-source fd00:18:9::/64");
    assert!(lab.exchange6(echo6(REAL6), echo_reply6_from(REAL6)).is_some());
    let with_options = to_ipv6(REAL6, OPTIONS, &after_options(ip_number::IPV6_ICMP, &echo6(REAL6)[40..]));
    assert!(lab.exchange6(with_options, echo_reply6_from(REAL6)).is_some());
    assert_eq!((lab.counter("decapsulated"), lab.counter("bad_source")), (0, 0));
}

/// The SYN-ACK to a SYN through the tunnel, which may be of either family.
fn syn_ack(lab: &Lab, packet: Vec<u8>, vip: IpAddr) -> Vec<u8> {
    let _listener = within(&lab.real, move || TcpListener::bind((vip, 80)).unwrap());
    let answer = match vip {
        IpAddr::V4(vip) => lab.exchange(packet, Protocol::TCP, move |packet| {
            Ipv4Header::from_slice(packet).is_ok_and(|(ip, _)| ip.source == vip.octets())
        }),
        IpAddr::V6(vip) => lab.exchange6(packet, move |packet| {
            Ipv6Header::from_slice(packet)
                .is_ok_and(|(ip, _)| ip.source == vip.octets() && ip.next_header == ip_number::TCP)
        }),
    };
    answer.expect("a SYN-ACK")
}

fn mss(tcp: &TcpHeader) -> u16 {
    assert!(tcp.syn && tcp.ack);
    let option = tcp.options_iterator().find_map(|option| match option {
        Ok(TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
        _ => None,
    });
    option.expect("an MSS option")
}

/// The MSS that the IPv6 VIP announces; the checksum must be right.
fn announced_mss(lab: &Lab) -> u16 {
    let packet = syn_ack(lab, in_ipv6(IPV6, &syn6(VIP6, 80, 1440)), VIP6.into());
    let (ip, payload) = Ipv6Header::from_slice(&packet).unwrap();
    let tcp = TcpHeader::from_slice(payload).unwrap().0;
    assert_eq!(tcp.checksum, tcp.calc_checksum_ipv6(&ip, &[]).unwrap());
    mss(&tcp)
}

#[test]
fn syn_ack_from_vip_leaves_room_for_both_ipv6_headers() {
    let lab = dual("");
    assert_eq!(announced_mss(&lab), 1400);
    assert_eq!(lab.counter("mss_clamped"), 1);
}

#[test]
fn syn_ack_with_fixed_mss_announces_it_and_off_the_devices() {
    assert_eq!(announced_mss(&dual("--mss 1200")), 1200);
    assert_eq!(announced_mss(&dual("--mss off")), 1440);
}

/// What the device is to sum up covers the pseudo header only: the option must change and that sum must not.
#[test]
fn syn_ack_with_partial_checksum_keeps_it() {
    let lab = Lab::new();
    lab.in_real("ethtool -K eth0 tx on");
    lab.setup_exits(APPLY, 0);
    let packet = syn_ack(&lab, in_ipv6(IPV6, &syn6(VIP6, 80, 1440)), VIP6.into());
    let (ip, payload) = Ipv6Header::from_slice(&packet).unwrap();
    let tcp = TcpHeader::from_slice(payload).unwrap().0;
    assert_eq!(mss(&tcp), 1400);
    let words = [ip.source, ip.destination].concat();
    let words = words.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
    let sum = words.sum::<u32>() + 6 + u32::from(ip.payload_length);
    let folded = (sum & 0xffff) + (sum >> 16);
    assert_eq!(u32::from(tcp.checksum), (folded & 0xffff) + (folded >> 16));
}

#[test]
fn ipv4_vip_leaves_room_for_an_ipv6_header_where_a_load_balancer_may_send_one() {
    let announced = |lab: &Lab, packet| {
        let packet = syn_ack(lab, packet, VIP.into());
        mss(&TcpHeader::from_slice(Ipv4Header::from_slice(&packet).unwrap().1).unwrap().0)
    };
    let lab = dual(&format!("--lb-source {CLIENT6}"));
    assert_eq!(announced(&lab, in_ipv6(IPV4, &syn(VIP, 80, 1460))), 1420);
    let lab = dual("");
    assert_eq!(announced(&lab, lab::ipip(lab::CLIENT, &syn(VIP, 80, 1460))), 1440);
}

/// What is not decapsulated is answered as without a tunnel, and counted by its reason.
#[track_caller]
fn refused(packet: Vec<u8>, counter: &str) {
    let lab = dual("");
    assert!(lab.exchange6(packet, unrecognized_next_header).is_some(), "no parameter problem");
    assert_eq!(lab.counter(counter), 1, "{counter}");
    assert_eq!(lab.counter("decapsulated"), 0);
}

#[test]
fn inner_destination_not_ours_is_refused() {
    refused(in_ipv6(IPV6, &echo6(Ipv6Addr::new(0xfd00, 0x19, 99, 0, 0, 0, 0, 9))), "not_ours");
}

#[test]
fn ipv4_inner_destination_not_ours_is_refused() {
    refused(in_ipv6(IPV4, &echo([198, 19, 99, 99].into())), "not_ours");
}

#[test]
fn tunnel_within_the_tunnel_is_refused() {
    refused(in_ipv6(IPV6, &in_ipv6(IPV6, &echo6(VIP6))), "malformed");
}

#[test]
fn inner_longer_than_the_packet_is_refused() {
    let mut inner = echo6(VIP6);
    // Payload length, high octet.
    inner[4] = 5;
    refused(in_ipv6(IPV6, &inner), "malformed");
}

#[test]
fn inner_shorter_than_a_header_is_refused() {
    refused(in_ipv6(IPV6, &echo6(VIP6)[..39]), "malformed");
}

#[test]
fn inner_of_another_version_than_announced_is_refused() {
    refused(in_ipv6(IPV6, &echo(VIP)), "malformed");
    refused(in_ipv6(IPV4, &echo6(VIP6)), "malformed");
}

#[test]
fn outer_extension_headers_are_left_to_the_kernel() {
    refused(in_ipv6(OPTIONS, &after_options(IPV6, &echo6(VIP6))), "malformed");
}

/// A fragment header of the first, or a later, of some fragments.
fn fragment(next: IpNumber, offset: u8, more: bool, payload: &[u8]) -> Vec<u8> {
    let header = [next.0, 0, 0, offset << 3 | u8::from(more), 0, 0, 0, 9];
    in_ipv6(ip_number::IPV6_FRAGMENTATION_HEADER, &[&header[..], payload].concat())
}

/// The kernel puts the packet together behind the program; without a tunnel of its own it has no use for it.
#[test]
fn fragments_of_a_tunnel_packet_are_left_to_the_kernel() {
    let lab = dual("");
    let inner = echo6(VIP6);
    let (first, second) = inner.split_at(24);
    lab.no_answer6(fragment(IPV6, 0, true, first), echo_reply6_from(VIP6));
    let reassembled = lab.exchange6(fragment(IPV6, 3, false, second), unrecognized_next_header);
    assert!(reassembled.is_some());
    assert_eq!((lab.counter("fragment"), lab.counter("decapsulated")), (2, 0));
}

#[test]
fn tunnel_from_another_source_is_dropped_however_it_is_wrapped() {
    // Of IPv4 only: then nobody may tunnel in IPv6.
    let lab = dual("--lb-source 198.18.1.0/24");
    let inner = echo6(VIP6);
    let options =
        |count: usize| (0..count).fold(after_options(IPV6, &inner), |inner, _| after_options(OPTIONS, &inner));
    let wrapped = [
        in_ipv6(IPV6, &inner),
        in_ipv6(IPV4, &echo(VIP)),
        in_ipv6(OPTIONS, &options(0)),
        // Longer than what is followed.
        in_ipv6(OPTIONS, &options(8)),
        fragment(IPV6, 0, true, &inner[..24]),
        fragment(OPTIONS, 0, true, &options(0)[..24]),
        // Ends before the header that tells what follows.
        fragment(OPTIONS, 0, true, &options(1)[..8]),
    ];
    let count = wrapped.len() as u64;
    for packet in wrapped {
        lab.no_answer6(packet, |packet| unrecognized_next_header(packet) || echo_reply6_from(VIP6)(packet));
    }
    // The rest of the last: passed, since nothing but the dropped one tells what it is.
    lab.no_answer6(fragment(OPTIONS, 1, false, &options(1)[8..]), unrecognized_next_header);
    assert_eq!((lab.counter("bad_source"), lab.counter("decapsulated")), (count, 0));
}

#[test]
fn tunnel_from_an_allowed_source_is_decapsulated() {
    let lab = dual("--lb-source 198.18.9.0/24,fd00:18:9::/64,fd00:18:1::/64");
    assert!(lab.exchange6(in_ipv6(IPV6, &echo6(VIP6)), echo_reply6_from(VIP6)).is_some());
}

/// Beside a kernel tunnel the guard drops what comes from elsewhere, to whichever of the host's addresses. This kernel
/// may have no tunnel: then what passes is answered by parameter problem.
#[test]
fn guard_drops_other_sources_and_passes_allowed_ones() {
    for (source, passes) in [("fd00:18:1::/64", true), ("::/128", false), ("0.0.0.0/0", false)] {
        let lab = Lab::new();
        let config = Config {
            hosts: [REAL6.into()].into(),
            vips: [VIP6.into()].into(),
            sources: [source.parse().unwrap()].into(),
            ..Config::default()
        };
        let wanted = Programs { slots: [("eth0".to_owned(), Program::Guard)].into(), config: config.clone() };
        within(&lab.real, move || {
            aya::programs::tc::qdisc_add_clsact("eth0").unwrap();
            programs::install(&wanted, &BTreeMap::new(), &BTreeMap::new()).unwrap();
        });
        let noticed = within(&lab.real, || System::new().unwrap().observe().unwrap().filters);
        let slot = Slot { device: "eth0".to_owned(), hook: Hook::Ingress };
        assert_eq!(noticed[&slot], Filter::Ours { program: Program::Guard, config: config.seen_by(Program::Guard) });
        let packet = in_ipv6(IPV6, &echo6(VIP6));
        if passes {
            assert!(lab.exchange6(packet, unrecognized_next_header).is_some(), "{source}");
        } else {
            lab.no_answer6(packet, unrecognized_next_header);
        }
    }
}

/// Neighbour solicitations that the client sees from the real: who asks (the source of the packet), and for what.
fn solicitations_while(lab: &Lab, act: impl FnOnce()) -> Vec<Ipv6Addr> {
    const SOLICITATION: u8 = 135;
    let mut socket = within(&lab.client, || packet_socket(libc::ETH_P_IPV6));
    act();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut buffer = [0; 2048];
    loop {
        let length = socket.read(&mut buffer).expect("a neighbour solicitation from the real");
        let Ok((ip, icmp)) = Ipv6Header::from_slice(&buffer[..length]) else { continue };
        if ip.next_header == ip_number::IPV6_ICMP && icmp.first() == Some(&SOLICITATION) {
            return vec![ip.source.into()];
        }
    }
}

/// What the client's kernel finds out about the VIP's link-layer address.
fn neighbour_of_client(lab: &Lab) -> String {
    lab.in_client("ip -6 neigh flush all");
    let socket = within(&lab.client, || UdpSocket::bind((CLIENT6, 0)).unwrap());
    let _ = socket.send_to(b"x", (VIP6, 9));
    // Three probes, a second apart.
    lab.in_client(&format!(
        "for i in $(seq 80); do state=$(ip -6 neigh show {VIP6}); \
         case $state in *FAILED*|*lladdr*) break;; esac; sleep 0.1; done; echo $state"
    ))
}

/// A solicitation for the VIP must stay unanswered, and none may be sent with the VIP as its source. Nothing has to be
/// set for that, except that nobody else made a device answer.
#[test]
fn ndp_for_the_vip_is_silent_both_ways() {
    let lab = Lab::new();
    lab.in_client(&format!("ip -6 route add {VIP6}/128 dev veth0"));
    lab.in_real("echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; echo 1 > /proc/sys/net/ipv6/conf/all/proxy_ndp");
    lab.in_real(&format!("ip addr add {VIP6}/128 dev lo nodad; ip -6 neigh add proxy {VIP6} dev eth0"));
    assert!(neighbour_of_client(&lab).contains("lladdr"), "the test itself: a proxy entry makes the real answer");
    let refusal = lab.setup_exits(APPLY, 1);
    assert!(refusal.contains(&format!("ip -6 neigh del proxy {VIP6} dev eth0")), "{refusal}");

    lab.in_real(&format!("ip -6 neigh del proxy {VIP6} dev eth0"));
    lab.setup_exits(APPLY, 0);
    assert!(neighbour_of_client(&lab).contains("FAILED"));

    let senders = solicitations_while(&lab, || {
        lab.in_real("ip -6 neigh flush all");
        let socket = within(&lab.real, || UdpSocket::bind((VIP6, 0)).unwrap());
        socket.send_to(b"x", (CLIENT6, 9)).unwrap();
    });
    // The link-local address asks for whoever has no address on the device.
    assert_eq!(senders, [LINK_LOCAL_REAL]);
}

/// Where the host's own address is on `lo` too, nothing but its age tells it from the VIP (RFC 6724 section 5, rule 3).
#[test]
fn vip_is_not_chosen_as_a_source() {
    let lab = Lab::new();
    let host = "fd00:18:7::1";
    lab.in_real(&format!("ip addr del {REAL6}/64 dev eth0; ip addr add {host}/128 dev lo"));
    lab.in_real("ip -6 route add fd00:19::/32 dev eth0");
    lab.setup_exits(APPLY, 0);
    // The VIP has the longer common prefix.
    let route = lab.in_real("ip -6 route get fd00:19:10::99");
    assert!(route.contains(&format!("src {host}")), "{route}");
}

/// The time between errors is a setting of its own.
#[test]
fn udp_to_a_closed_port_is_refused_each_time() {
    let lab = dual("");
    lab.in_client(&format!("ip -6 route add {VIP6}/128 via {REAL6}"));
    let answered = within(&lab.client, || {
        let socket = UdpSocket::bind((CLIENT6, 0)).unwrap();
        socket.connect((VIP6, 9)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let refused = || {
            socket.send(b"x").unwrap();
            let refused = socket.recv(&mut [0; 8]).is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused);
            // The rate that a UDP check may have: 50 a second.
            std::thread::sleep(Duration::from_millis(20));
            refused
        };
        std::iter::repeat_with(refused).take(50).filter(|refused| *refused).count()
    });
    assert_eq!(answered, 50);
}

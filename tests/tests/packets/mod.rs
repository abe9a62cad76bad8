//! The real XDP program, with VIPs and reals of both families, under `BPF_PROG_TEST_RUN`.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::expect_used,
    clippy::large_stack_arrays,
    reason = "a helper that fails fails its test"
)]

pub(crate) mod build;
pub(crate) mod sent;

use aya::programs::{TestRun as _, TestRunOptions};
use build::LB_MAC;
use lb_ebpf::{
    counter::{FlowEvent, Reason},
    real::{NextHop, RealEntry, SERVES_TCP, SERVES_UDP},
    ring::{RING_SLOTS, RealId, Ring, RingRef, Slot},
};
use lbd::{
    config::{HashBy, Protocol, VipKey, VipMiss},
    data_plane::Program,
    vip_table::{self, Row},
};
use sent::{Encapsulated, encapsulated};
use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 10, 10);
/// TCP port 80, UDP port 53.
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 1);
/// TCP, all ports.
pub(crate) const ANY_PORT: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 2);
/// TCP and UDP, all ports, hashed by source.
pub(crate) const BY_SOURCE: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 3);
/// TCP, all ports, hashed by source and the VIP's port.
pub(crate) const BY_SOURCE_PORT: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 4);
pub(crate) const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 18, 221, 11);

pub(crate) const CLIENT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 10, 0, 0, 0, 0, 10);
/// The same as [`VIP`], in IPv6; and so on.
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 19, 0, 0, 0, 0, 1);
pub(crate) const ANY_PORT6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 19, 0, 0, 0, 0, 2);
pub(crate) const BY_SOURCE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 19, 0, 0, 0, 0, 3);
pub(crate) const ELSEWHERE6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 221, 0, 0, 0, 0, 11);

pub(crate) const LB: Ipv4Addr = Ipv4Addr::new(198, 18, 221, 11);
pub(crate) const LB6: Ipv6Addr = ELSEWHERE6;
pub(crate) const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
pub(crate) const SEED: [u8; 16] = *b"a seed for tests";
/// The ingress interface of a test run: loopback.
pub(crate) const INGRESS: u32 = 1;

pub(crate) const XDP_DROP: u32 = 1;
pub(crate) const XDP_PASS: u32 = 2;
pub(crate) const XDP_TX: u32 = 3;
pub(crate) const XDP_REDIRECT: u32 = 4;

/// The reals of IPv4 are 1 to 3, those of IPv6 are 4 to 6.
pub(crate) const REALS: std::ops::RangeInclusive<RealId> = 1..=3;
pub(crate) const REALS6: std::ops::RangeInclusive<RealId> = 4..=6;

/// Services in the order of their indexes, each with its own ring.
const SERVICES: [(IpAddr, Protocol, u16, HashBy); 11] = [
    (IpAddr::V4(VIP), Protocol::Tcp, 80, HashBy::FiveTuple),
    (IpAddr::V4(VIP), Protocol::Udp, 53, HashBy::FiveTuple),
    (IpAddr::V4(ANY_PORT), Protocol::Tcp, 0, HashBy::FiveTuple),
    (IpAddr::V4(BY_SOURCE), Protocol::Tcp, 0, HashBy::Source),
    (IpAddr::V4(BY_SOURCE), Protocol::Udp, 0, HashBy::Source),
    (IpAddr::V4(BY_SOURCE_PORT), Protocol::Tcp, 0, HashBy::SourcePort),
    (IpAddr::V6(VIP6), Protocol::Tcp, 80, HashBy::FiveTuple),
    (IpAddr::V6(VIP6), Protocol::Udp, 53, HashBy::FiveTuple),
    (IpAddr::V6(ANY_PORT6), Protocol::Tcp, 0, HashBy::FiveTuple),
    (IpAddr::V6(BY_SOURCE6), Protocol::Tcp, 0, HashBy::Source),
    (IpAddr::V6(BY_SOURCE6), Protocol::Udp, 0, HashBy::Source),
];

/// The index of a service, and of its ring.
pub(crate) fn service(address: impl Into<IpAddr>, protocol: Protocol) -> u16 {
    let address = address.into();
    let at = SERVICES.iter().position(|&(a, p, ..)| (a, p) == (address, protocol));
    u16::try_from(at.unwrap()).unwrap()
}

pub(crate) fn real_address(id: RealId) -> IpAddr {
    if REALS.contains(&id) {
        Ipv4Addr::new(198, 18, 100 + u8::try_from(id).unwrap(), 10).into()
    } else {
        Ipv6Addr::new(0x2001, 0xdb8, 0x100 + id, 0, 0, 0, 0, 10).into()
    }
}

/// The loaded program.
pub(crate) struct Path {
    pub(crate) program: Program,
}

impl Path {
    pub(crate) fn new(unmatched: VipMiss) -> Self {
        let mut path = Self { program: Program::load().expect("loading the program needs root") };
        let rows: Vec<_> = (0..).zip(SERVICES).map(row).collect();
        path.program.swap_vips(&vip_table::build(&rows, SEED, unmatched)).unwrap();
        for id in REALS.chain(REALS6) {
            path.real(id, Some(&Self::hop()), SERVES_TCP | SERVES_UDP);
        }
        for (index, (address, ..)) in (0..).zip(SERVICES) {
            let first = if address.is_ipv4() { *REALS.start() } else { *REALS6.start() };
            path.ring(index, |slot| steady(first + RealId::try_from(slot % 3).unwrap()));
        }
        path
    }

    pub(crate) fn hop() -> NextHop {
        NextHop { ifindex: INGRESS, device_mtu: 1500, mtu: 1500, source_mac: LB_MAC, destination_mac: GATEWAY_MAC }
    }

    pub(crate) fn real(&mut self, id: RealId, hop: Option<&NextHop>, serves: u16) {
        let entry = match real_address(id) {
            IpAddr::V4(address) => RealEntry::ipip(LB, address, hop, serves),
            IpAddr::V6(address) => RealEntry::ip6(LB6, address, hop, serves),
        };
        self.program.set_real(id, entry).unwrap();
    }

    /// Gives every real this next hop.
    pub(crate) fn reals_by(&mut self, hop: Option<&NextHop>) {
        for id in REALS.chain(REALS6) {
            self.real(id, hop, SERVES_TCP | SERVES_UDP);
        }
    }

    pub(crate) fn ring(&mut self, index: u16, slot: impl Fn(usize) -> Slot) {
        let mut ring = Box::new(Ring { slots: [Slot::default(); RING_SLOTS] });
        for (at, word) in ring.slots.iter_mut().enumerate() {
            *word = slot(at);
        }
        self.program.swap_ring(RingRef::new(index, 0).place(0), &ring).unwrap();
    }

    /// Runs one frame; returns the XDP action, the frame as it leaves and the one reason that was counted.
    pub(crate) fn run(&mut self, frame: &[u8]) -> (u32, Vec<u8>, Reason) {
        self.run_with(frame, None)
    }

    /// The same with so little room in front of the frame that no header fits: the rest is taken by metadata.
    pub(crate) fn run_without_headroom(&mut self, frame: &[u8]) -> (u32, Vec<u8>, Reason) {
        // Of the 256 bytes of a test run; the kernel keeps 40 of them for itself.
        const METADATA: u32 = 200;
        let with_metadata = [&[0; METADATA as usize], frame].concat();
        let end = u32::try_from(with_metadata.len()).unwrap();
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context: Vec<u8> = [METADATA, end, 0, 0, 0, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        self.run_with(&with_metadata, Some(&context))
    }

    fn run_with(&mut self, data: &[u8], context: Option<&[u8]>) -> (u32, Vec<u8>, Reason) {
        let before = self.reasons();
        let mut out = vec![0; data.len() + 256];
        let mut options = TestRunOptions::new();
        (options.data_in, options.ctx_in, options.data_out) = (Some(data), context, Some(out.as_mut_slice()));
        let result = self.program.xdp().unwrap().test_run(options).unwrap();
        out.truncate(result.data_size_out as usize);
        let counted: Vec<_> = self.reasons().into_iter().zip(before).filter(|(now, then)| now.1 != then.1).collect();
        let [((reason, now), (_, then))] = counted.as_slice() else { panic!("one reason a packet, not {counted:?}") };
        assert_eq!(now - then, 1);
        (result.return_value, out, *reason)
    }

    fn reasons(&self) -> Vec<(Reason, u64)> {
        Reason::ALL.iter().map(|&r| (r, self.program.reason(r).unwrap().packets)).collect()
    }

    pub(crate) fn flow_events(&self, event: FlowEvent) -> u64 {
        self.program.flow_events(event).unwrap()
    }

    /// Runs an IP packet that must be forwarded, untouched inside what leaves.
    pub(crate) fn forward(&mut self, packet: &[u8]) -> Encapsulated {
        let (action, out, reason) = self.run(&build::frame(packet));
        assert_eq!((action, reason), (XDP_TX, Reason::Forwarded));
        let sent = encapsulated(&out);
        assert_eq!(sent.inner, packet, "the inner packet is untouched");
        sent
    }

    /// Runs an IP packet that must not be forwarded.
    pub(crate) fn reason(&mut self, packet: &[u8]) -> Reason {
        self.run(&build::frame(packet)).2
    }
}

fn row((index, (address, protocol, port, hash)): (u16, (IpAddr, Protocol, u16, HashBy))) -> Row {
    Row { key: VipKey { address, protocol, port }, index, ring_order: 0, flow_idle: Duration::from_mins(15), hash }
}

/// A slot that remembers nothing.
pub(crate) fn steady(real: RealId) -> Slot {
    Slot::new(real, 0, false, false)
}

/// Slots whose flows are remembered.
pub(crate) fn remembering(cur: RealId, prev: RealId) -> impl Fn(usize) -> Slot {
    move |_| Slot::new(cur, prev, true, true)
}

pub(crate) fn long() -> bool {
    std::env::var_os("LBD_TEST_LONG").is_some()
}

/// A TCP segment from the client to a VIP, in IPv4 and in IPv6.
pub(crate) fn tcp4(vip: Ipv4Addr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    build::Ip4::new(CLIENT, vip).packet(build::TCP, &build::tcp(ports, flags, b"GET / HTTP/1.1\r\n\r\n"))
}

pub(crate) fn tcp6(vip: Ipv6Addr, ports: (u16, u16), flags: u8) -> Vec<u8> {
    build::Ip6::new(CLIENT6, vip).packet(build::TCP, &build::tcp(ports, flags, b"GET / HTTP/1.1\r\n\r\n"))
}

/// A UDP datagram from the client to a VIP.
pub(crate) fn udp4(vip: Ipv4Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    build::Ip4::new(CLIENT, vip).packet(build::UDP, &build::udp(ports, payload))
}

pub(crate) fn udp6(vip: Ipv6Addr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    build::Ip6::new(CLIENT6, vip).packet(build::UDP, &build::udp(ports, payload))
}

/// An echo request from the client.
pub(crate) fn echo4(vip: Ipv4Addr, id_and_sequence: [u8; 4], payload: &[u8]) -> Vec<u8> {
    build::Ip4::new(CLIENT, vip).packet(build::ICMP, &build::icmp([8, 0], id_and_sequence, payload))
}

pub(crate) fn echo6(vip: Ipv6Addr, id_and_sequence: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let ip = build::Ip6::new(CLIENT6, vip);
    ip.packet(build::ICMPV6, &build::icmp6(&ip, [128, 0], id_and_sequence, payload))
}

//! What is measured in the packet path: the rows and the packets they are made of. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use etherparse::{Icmpv4Type, PacketBuilder, icmpv4::DestUnreachableHeader};
use lb_ebpf::{
    bench::{Traffic, address6},
    counter::Reason,
    net::{ICMP_LEN, IPV4_LEN, TCP, UDP},
    ring::{RING_SLOTS, RealId, Ring, Slot},
};
use lbd::maglev::{self, Candidate};

/// The node's seed in all benches.
pub(crate) const SEED: [u8; 16] = *b"a seed for bench";
/// Reals in every ring.
pub(crate) const REALS: RealId = 100;
/// TCP VIPs, on port 80; each has a ring.
pub(crate) const TCP_VIPS: u8 = 16;
/// Index of the UDP VIP, on port 53 of the first address, and of its ring.
pub(crate) const UDP_VIP: u16 = TCP_VIPS as u16;

const FIRST_VIP: [u8; 4] = [198, 19, 10, 1];
const ELSEWHERE: [u8; 4] = [198, 18, 221, 11];
const FRAME_LEN: usize = 64;

/// One line of the results.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    /// Its name in tables and JSON: stable.
    pub(crate) name: &'static str,
    /// What runs.
    pub(crate) timed: Timed,
    /// Whether packets, VIPs and reals are of IPv6.
    pub(crate) ip6: bool,
    /// What is sent.
    pub(crate) kind: Kind,
    /// How many flows.
    pub(crate) flows: Flows,
    /// Over how many VIPs they are spread: a power of two up to [`TCP_VIPS`].
    pub(crate) vips: u8,
    /// Flows of every so-manieth slot are tracked and looked up; 0: of none.
    pub(crate) tracked_every: usize,
}

/// The program that is timed, and the reason that its packets must be counted under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timed {
    /// A bare `XDP_PASS`.
    FloorPass,
    /// A bare `adjust_head` under the harness.
    FloorTx,
    /// The load balancer's path.
    Path(Reason),
}

/// A kind of packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP, ACK set.
    Tcp,
    /// TCP, only SYN set.
    Syn,
    /// UDP.
    Udp,
    /// An ICMP error, fragmentation needed, about a TCP segment that the VIP sent.
    Error,
}

/// How many flows the packets belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flows {
    /// So many: a power of two.
    Live(u32),
    /// A new one each packet.
    New,
}

const TCP_1FLOW: Row = Row {
    name: "v4-tcp-1flow",
    timed: Timed::Path(Reason::Forwarded),
    ip6: false,
    kind: Kind::Tcp,
    flows: Flows::Live(1),
    vips: 1,
    tracked_every: 0,
};
const TCP_512K: Row = Row { name: "v4-tcp-512k", flows: Flows::Live(512 << 10), ..TCP_1FLOW };
const UDP_1FLOW: Row = Row { name: "v4-udp-1flow", kind: Kind::Udp, ..TCP_1FLOW };
const SYN_NEW: Row = Row { name: "v4-syn-new", kind: Kind::Syn, flows: Flows::New, ..TCP_1FLOW };
const TCP6_1FLOW: Row = Row { name: "v6-tcp-1flow", ip6: true, ..TCP_1FLOW };

/// All rows, the floors first.
pub(crate) const ROWS: [Row; 17] = [
    Row { name: "floor-pass", timed: Timed::FloorPass, ..TCP_1FLOW },
    Row { name: "floor-tx", timed: Timed::FloorTx, ..TCP_1FLOW },
    TCP_1FLOW,
    Row { name: "v4-tcp-64k", flows: Flows::Live(64 << 10), ..TCP_1FLOW },
    TCP_512K,
    UDP_1FLOW,
    Row { name: "v4-udp-512k", kind: Kind::Udp, ..TCP_512K },
    SYN_NEW,
    TCP6_1FLOW,
    Row { name: "v6-tcp-512k", flows: Flows::Live(512 << 10), ..TCP6_1FLOW },
    Row { name: "v6-non-vip", timed: Timed::Path(Reason::PassNotVip), ..TCP6_1FLOW },
    Row { name: "non-vip", timed: Timed::Path(Reason::PassNotVip), ..TCP_1FLOW },
    Row { name: "icmp-error", kind: Kind::Error, ..TCP_1FLOW },
    Row { name: "vips16-512k", vips: TCP_VIPS, ..TCP_512K },
    Row { name: "v4-tcp-tracked-2pct-512k", tracked_every: 50, ..TCP_512K },
    Row { name: "v4-tcp-tracked-100pct-512k", tracked_every: 1, ..TCP_512K },
    Row { name: "v4-syn-new-tracked-100pct", tracked_every: 1, ..SYN_NEW },
];

/// The address of a VIP by its number, from 0.
pub(crate) fn vip_address(number: u8) -> Ipv4Addr {
    let [a, b, c, d] = FIRST_VIP;
    Ipv4Addr::new(a, b, c, d + number)
}

/// What stands for an address in packets of IPv6.
pub(crate) fn ip6(address: Ipv4Addr) -> Ipv6Addr {
    let words = address6(u32::from_ne_bytes(address.octets()));
    Ipv6Addr::from_bits(words.into_iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(word))))
}

/// The address of a real by its id, from 1.
pub(crate) fn real_address(id: RealId) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 100, 0).to_bits() + u32::from(id))
}

/// A Maglev ring over all reals; flows of every `tracked_every`th slot are tracked and looked up.
#[expect(clippy::large_stack_arrays, reason = "64 KiB, boxed at once")]
pub(crate) fn ring(tracked_every: usize) -> Box<Ring> {
    let candidate = |id| Candidate { id, address: IpAddr::V4(real_address(id)), weight: 100 };
    let owners = maglev::build(&(1..=REALS).map(candidate).collect::<Vec<_>>(), SEED, 0);
    let mut ring = Box::new(Ring { slots: [Slot::default(); RING_SLOTS] });
    for (at, (slot, owner)) in ring.slots.iter_mut().zip(owners).enumerate() {
        let tracked = tracked_every != 0 && at % tracked_every == 0;
        *slot = Slot::new(owner, 0, tracked, tracked);
    }
    ring
}

impl Row {
    /// The index of the (first) VIP that its packets are for, and of that VIP's ring.
    pub(crate) fn vip(&self) -> u16 {
        if self.kind == Kind::Udp { UDP_VIP } else { 0 }
    }

    /// The IP protocol of its packets.
    pub(crate) fn protocol(&self) -> u8 {
        if self.kind == Kind::Udp { UDP } else { TCP }
    }

    /// A frame of 64 bytes, of 84 with IPv6, of 70 for an error. The harness writes tuples into it and mends no checksum: the path verifies none.
    pub(crate) fn frame(&self) -> anyhow::Result<Vec<u8>> {
        let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let (client, vip) = (Ipv4Addr::new(198, 18, 10, 10), Ipv4Addr::from(self.destination()));
        let ip = if self.ip6 {
            ethernet.ipv6(ip6(client).octets(), ip6(vip).octets(), 61)
        } else {
            ethernet.ipv4(client.octets(), vip.octets(), 61)
        };
        let mut frame = Vec::new();
        match self.kind {
            Kind::Tcp => ip.tcp(0, self.port(), 7, 1024).ack(9).write(&mut frame, &[0; FRAME_LEN - 54])?,
            Kind::Syn => ip.tcp(0, self.port(), 7, 1024).syn().write(&mut frame, &[0; FRAME_LEN - 54])?,
            Kind::Udp => ip.udp(0, self.port()).write(&mut frame, &[0; FRAME_LEN - 42])?,
            Kind::Error => {
                let mut quoted = Vec::new();
                let reply = PacketBuilder::ipv4(vip.octets(), client.octets(), 60);
                reply.tcp(self.port(), 0, 7, 1024).ack(9).write(&mut quoted, &[])?;
                let unreachable = DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1400 };
                let error = ip.icmpv4(Icmpv4Type::DestinationUnreachable(unreachable));
                error.write(&mut frame, quoted.get(..IPV4_LEN + ICMP_LEN).context("a whole packet")?)?;
            }
        }
        Ok(frame)
    }

    /// What the harness makes of it, flows visited in steps of `stride` (odd).
    pub(crate) fn traffic(&self, stride: u32) -> Traffic {
        let [high, low] = self.port().to_be_bytes();
        Traffic {
            stride,
            flow_mask: match self.flows {
                Flows::Live(flows) => flows - 1,
                Flows::New => u32::MAX,
            },
            vip_mask: u32::from(self.vips) - 1,
            destination: u32::from_ne_bytes(self.destination()),
            ports: u32::from_ne_bytes([0, 0, high, low]),
            ..Traffic::default()
        }
    }

    fn destination(&self) -> [u8; 4] {
        if self.timed == Timed::Path(Reason::PassNotVip) { ELSEWHERE } else { FIRST_VIP }
    }

    fn port(&self) -> u16 {
        if self.kind == Kind::Udp { 53 } else { 80 }
    }
}

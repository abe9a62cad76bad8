//! The way of one packet, and the one place that returns its verdict.

use crate::{
    encap, flows,
    flows::Kind,
    frame::Frame,
    maps::{REALS, RINGS, VIPS, count, count_syn},
    neighbour,
    packet::{Packet, Refusal},
    v4::V4,
    v6::V6,
    vlan,
};
use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::bpf_redirect,
    programs::XdpContext,
};
use lb_ebpf::{
    counter::{Action, Reason, real_index, reason_index, vip_index},
    hash::Address,
    net::{ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN},
    vip::{ANY_PROTOCOL, UNMATCHED_PASS, VipEntry, VipTable},
};

/// An IP version: how its packets are read, and how VIPs are found that have its addresses.
pub(crate) trait Family {
    /// As it lies in the packet.
    type Address: Address;
    /// Length of the header without options or extension headers.
    const HEADER_LEN: usize;
    /// Its packets' protocol number inside another IP header.
    const PROTOCOL: u8;
    /// The smallest MTU that a client can be told.
    const MIN_MTU: u16;

    /// The destination of a frame that has an Ethernet header and this family's.
    fn destination(frame: Frame) -> Self::Address;
    /// The address as the table's bitmap and keys know it.
    fn folded(vips: &VipTable, address: Self::Address) -> u32;
    /// The entry of an address whose fold is `folded`, and a port and protocol as they lie in the packet.
    fn find(vips: &VipTable, address: Self::Address, folded: u32, port: u16, protocol: u8) -> Option<&VipEntry>;
    /// Reads the headers of a frame that has an Ethernet header and this family's.
    fn read(frame: Frame) -> Result<Packet<Self::Address>, Refusal>;
    /// Turns an echo request into its reply.
    fn answer(frame: Frame) -> Reason;
    /// Whether an address stands for one host, which may be told of errors.
    fn is_host(address: Self::Address) -> bool;
    /// Turns a packet into the ICMP error that tells its sender the MTU.
    fn tell_too_big(ctx: &XdpContext, next_hop_mtu: u16) -> Verdict;
}

/// A reason, its XDP action and, for a redirect, the interface; in one register, as a BPF function returns no more.
///
/// ```text
///  63 .... 32  31 .. 16  15 .. 8  7 .... 0
///  interface             action   reason
/// ```
#[repr(transparent)]
#[derive(Clone, Copy)]
pub(crate) struct Verdict(pub(crate) u64);

impl From<Reason> for Verdict {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        let action = match reason.action() {
            Action::Pass => xdp_action::XDP_PASS,
            Action::Drop => xdp_action::XDP_DROP,
            Action::Transmit => xdp_action::XDP_TX,
            Action::Redirect => xdp_action::XDP_REDIRECT,
        };
        Self(u64::from(reason_index(reason)) | (u64::from(action) << 8))
    }
}

impl Verdict {
    /// Out of another interface.
    #[inline(always)]
    pub(crate) fn redirected(ifindex: u32) -> Self {
        Self(Self::from(Reason::Redirected).0 | (u64::from(ifindex) << 32))
    }

    #[inline(always)]
    fn reason_index(self) -> u32 {
        self.0 as u32 & 0xff
    }

    #[inline(always)]
    pub(crate) fn action(self) -> u32 {
        self.0 as u32 >> 8
    }

    #[inline(always)]
    fn ifindex(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether the packet leaves for a real.
    #[inline(always)]
    pub(crate) fn is_forwarded(self) -> bool {
        let reason = self.reason_index();
        reason == reason_index(Reason::Forwarded) || reason == reason_index(Reason::Redirected)
    }
}

/// Balances one packet, counts its reason and returns the XDP action.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let frame = Frame::of(ctx);
    let bytes = frame.len();
    let ethertype = if frame.has(ETH_LEN) { frame.ethertype() } else { 0 };
    let verdict = match ethertype {
        ETHERTYPE_IPV4 => balance::<V4>(ctx, frame),
        ETHERTYPE_IPV6 => Verdict(path_ip6(ctx.ctx)),
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN => Verdict(vlan::path_tagged(ctx.ctx)),
        ETHERTYPE_ARP => Verdict(neighbour::path_arp(ctx.ctx)),
        _ => Reason::PassNotIp.into(),
    };
    count(verdict.reason_index(), bytes);
    match verdict.action() {
        // SAFETY: a helper without pointers; XDP_ABORTED (0) when the interface is gone.
        xdp_action::XDP_REDIRECT => unsafe { bpf_redirect(verdict.ifindex(), 0) as u32 },
        action => action,
    }
}

/// The verdict on an IPv4 packet that is not on the fast path: a function of its own, which is verified once.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn path_ip4(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    balance::<V4>(&ctx, Frame::of(&ctx)).0
}

/// The verdict on an IPv6 packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn path_ip6(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let verdict = balance::<V6>(&ctx, Frame::of(&ctx));
    // Last: it costs nothing to a packet that is balanced.
    if verdict.action() == xdp_action::XDP_PASS && neighbour::solicitation(&ctx) {
        return Verdict::from(Reason::NeighbourReply).0;
    }
    verdict.0
}

#[inline(always)]
fn balance<F: Family>(ctx: &XdpContext, frame: Frame) -> Verdict {
    if !frame.has(ETH_LEN + F::HEADER_LEN) {
        return Reason::PassNotIp.into();
    }
    let Some(vips) = VIPS.get_value(0, &0) else {
        return Reason::PassNotVip.into();
    };
    let address = F::destination(frame);
    let folded = F::folded(vips, address);
    if !vips.may_have(folded) {
        return Reason::PassNotVip.into();
    }
    let refusal = match F::read(frame) {
        Ok(packet) => match service::<F>(vips, folded, &packet) {
            Some(vip) => return forward::<F>(ctx, vips, vip, &packet, frame.len()),
            None => packet.unmatched().into(),
        },
        Err(refusal) => refusal,
    };
    if F::find(vips, address, folded, 0, ANY_PROTOCOL).is_none() {
        return Reason::PassNotVip.into();
    }
    let pass = vips.flags & UNMATCHED_PASS != 0;
    match refusal {
        Refusal::Echo if frame.is_to_many() => Reason::DropIcmp,
        Refusal::Echo => F::answer(frame),
        Refusal::Because(Reason::DropUnmatched) if pass => Reason::PassUnmatched,
        Refusal::Because(Reason::DropIcmp) if pass => Reason::PassIcmp,
        Refusal::Because(reason) => reason,
    }
    .into()
}

/// The VIP of a packet: its port's, or else the one for all ports. Of a fragment only the latter, and only if it
/// does not need to know the ports.
#[inline(always)]
fn service<'a, F: Family>(vips: &'a VipTable, folded: u32, packet: &Packet<F::Address>) -> Option<&'a VipEntry> {
    let find = |port| F::find(vips, packet.destination, folded, port, packet.protocol);
    if packet.is_fragment {
        return find(0).filter(|vip| vip.takes_fragments());
    }
    match find(packet.destination_port()) {
        None => find(0),
        found => found,
    }
}

#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "a slot's index is below the ring's size by construction")]
fn forward<F: Family>(
    ctx: &XdpContext,
    vips: &VipTable,
    vip: &VipEntry,
    packet: &Packet<F::Address>,
    bytes: u64,
) -> Verdict {
    count(vip_index(vip.vip), bytes);
    let Packet { source, destination, ports, protocol, kind, .. } = *packet;
    let hash = vip.flow_hash(&vips.hash_key, source, destination, ports, protocol);
    let (place, slot) = vip.ring.locate(hash);
    let Some(ring) = RINGS.get_value(place, &0) else {
        return Reason::DropNoReal.into();
    };
    let slot = ring.slots[slot];
    let id = if slot.lookup() { flows::choose(slot, hash, protocol, vip.flow_idle_s, kind) } else { slot.cur() };
    if id == 0 {
        return Reason::DropNoReal.into();
    }
    let Some(real) = REALS.get(u32::from(id)) else {
        return Reason::DropNoReal.into();
    };
    let verdict = encap::send::<F>(ctx, packet, hash, real, real_index(id));
    if verdict.is_forwarded() {
        count(real_index(id), bytes);
        if kind == Kind::Syn {
            count_syn(id, hash);
        }
    }
    verdict
}

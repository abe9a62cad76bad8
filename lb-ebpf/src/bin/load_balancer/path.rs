//! The way of one packet, and the one place that returns its verdict.

use crate::{
    datagram::{self, Datagram},
    echo, encap, flows,
    frame::Frame,
    maps::{REALS, RINGS, VIPS, count},
};
use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use lb_ebpf::{
    counter::{Action, Reason, real_index, reason_index, vip_index},
    flow::FlowKey,
    hash::flow_hash,
    net::{ETH_LEN, ETHERTYPE_IPV4, IPV4_LEN},
    vip::{ANY_PROTOCOL, UNMATCHED_PASS, VipEntry, VipKey, VipTable},
};

/// A reason and, for a redirect, the interface.
pub(crate) struct Verdict {
    pub(crate) reason: Reason,
    pub(crate) ifindex: u32,
}

impl From<Reason> for Verdict {
    #[inline(always)]
    fn from(reason: Reason) -> Self {
        Self { reason, ifindex: 0 }
    }
}

/// Balances one packet, counts its reason and returns the XDP action.
#[inline(always)]
pub(crate) fn run(ctx: &XdpContext) -> u32 {
    let frame = Frame::of(ctx);
    let bytes = frame.len();
    let verdict = balance(ctx, frame);
    count(reason_index(verdict.reason), bytes);
    match verdict.reason.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop => xdp_action::XDP_DROP,
        Action::Transmit => xdp_action::XDP_TX,
        // SAFETY: a helper without pointers; XDP_ABORTED (0) when the interface is gone.
        Action::Redirect => unsafe { bpf_redirect(verdict.ifindex, 0) as u32 },
    }
}

#[inline(always)]
fn balance(ctx: &XdpContext, frame: Frame) -> Verdict {
    if !frame.has(ETH_LEN + IPV4_LEN) || frame.ethertype() != ETHERTYPE_IPV4 {
        return Reason::PassNotIpv4.into();
    }
    let Some(vips) = VIPS.get_value(0, &0) else {
        return Reason::PassNotVip.into();
    };
    let address = frame.destination();
    if !vips.may_have(address) {
        return Reason::PassNotVip.into();
    }
    let refused = match datagram::read(frame) {
        Ok(datagram) => match service(vips, &datagram) {
            Some(vip) => return forward(ctx, vips, vip, &datagram, frame.len()),
            None => Reason::DropUnmatched,
        },
        Err(reason) => reason,
    };
    if vips.find(VipKey::new(address, 0, ANY_PROTOCOL)).is_none() {
        return Reason::PassNotVip.into();
    }
    match refused {
        Reason::PassIcmp => echo::answer(frame),
        Reason::DropUnmatched if vips.flags & UNMATCHED_PASS != 0 => Reason::PassUnmatched,
        reason => reason,
    }
    .into()
}

/// The VIP of a datagram: its port's, or else the one for all ports.
#[inline(always)]
fn service<'a>(vips: &'a VipTable, datagram: &Datagram) -> Option<&'a VipEntry> {
    let exact = VipKey::new(datagram.destination, datagram.destination_port(), datagram.protocol);
    match vips.find(exact) {
        None => vips.find(VipKey::new(datagram.destination, 0, datagram.protocol)),
        found => found,
    }
}

#[inline(always)]
#[expect(clippy::indexing_slicing, reason = "a slot's index is below the ring's size by construction")]
fn forward(ctx: &XdpContext, vips: &VipTable, vip: &VipEntry, datagram: &Datagram, bytes: u64) -> Verdict {
    count(vip_index(vip.vip), bytes);
    let Datagram { source, destination, ports, protocol, .. } = *datagram;
    let (place, slot) = vip.ring.locate(flow_hash(&vips.hash_key, source, destination, ports, protocol));
    let Some(ring) = RINGS.get_value(place, &0) else {
        return Reason::DropNoReal.into();
    };
    let slot = ring.slots[slot];
    let id = if slot.lookup() {
        let key = FlowKey { source, destination, ports, protocol: u32::from(protocol) };
        flows::choose(slot, &key, vip.flow_idle_s, datagram.is_syn)
    } else {
        slot.cur()
    };
    if id == 0 {
        return Reason::DropNoReal.into();
    }
    let Some(real) = REALS.get(u32::from(id)) else {
        return Reason::DropNoReal.into();
    };
    let verdict = encap::ipip(ctx, datagram, real);
    if matches!(verdict.reason, Reason::Forwarded | Reason::Redirected) {
        count(real_index(id), bytes);
    }
    verdict
}

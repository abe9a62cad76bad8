//! Tagged frames (IEEE 802.1Q, 802.1ad): the tags come off, the frame takes its way, and they go on again.
//!
//! A frame that is answered or passed has the tags that it came with. One that is forwarded leaves untagged: the kernel's
//! route says that the real's next hop is on the untagged network of the device.

use crate::{
    frame::Frame,
    neighbour::path_arp,
    path::{Verdict, path_ip4, path_ip6},
};
use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    helpers::bpf_xdp_adjust_head,
    programs::XdpContext,
};
use lb_ebpf::{
    counter::Reason,
    net::{ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_SERVICE_VLAN, ETHERTYPE_VLAN},
};

/// Length of a tag: its own EtherType, and priority and VLAN.
const TAG: usize = 4;
/// Where the tags are.
const TAGS_AT: usize = 12;

/// The verdict on a frame with one tag or two.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn path_tagged(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let frame = Frame::of(&ctx);
    if !frame.has(ETH_LEN + TAG) {
        return Verdict::from(Reason::PassNotIp).0;
    }
    let verdict = match frame.after(TAG).ethertype() {
        ETHERTYPE_VLAN | ETHERTYPE_SERVICE_VLAN if frame.has(ETH_LEN + 2 * TAG) => without_tags::<u64>(&ctx, frame),
        _ => without_tags::<u32>(&ctx, frame),
    };
    verdict.0
}

/// The verdict on the frame without its tags, which are as long as a `T`.
#[inline(always)]
fn without_tags<T: Copy>(ctx: &XdpContext, frame: Frame) -> Verdict {
    let len = size_of::<T>();
    if !frame.has(ETH_LEN + len) {
        return Reason::PassNotIp.into();
    }
    let ethertype = frame.after(len).ethertype();
    if ethertype != ETHERTYPE_IPV4 && ethertype != ETHERTYPE_IPV6 && ethertype != ETHERTYPE_ARP {
        return Reason::PassNotIp.into();
    }
    // SAFETY: Ethernet header and tags are there, checked above.
    let tags: T = unsafe { frame.load(TAGS_AT) };
    // SAFETY: the same.
    unsafe { frame.store(len, frame.load::<[u32; 3]>(0)) };
    if !move_head(ctx, len as i32) {
        return Reason::DropNoHeadroom.into();
    }
    let verdict = Verdict(match ethertype {
        ETHERTYPE_IPV4 => path_ip4(ctx.ctx),
        ETHERTYPE_ARP => path_arp(ctx.ctx),
        _ => path_ip6(ctx.ctx),
    });
    match verdict.action() {
        xdp_action::XDP_TX | xdp_action::XDP_PASS if !verdict.is_forwarded() && !put_tags(ctx, tags) => {
            Reason::DropNoHeadroom.into()
        }
        _ => verdict,
    }
}

#[inline(always)]
fn put_tags<T: Copy>(ctx: &XdpContext, tags: T) -> bool {
    let len = size_of::<T>();
    if !move_head(ctx, -(len as i32)) {
        return false;
    }
    let frame = Frame::of(ctx);
    if !frame.has(ETH_LEN + len) {
        return false;
    }
    // SAFETY: checked just now.
    unsafe {
        frame.store(0, frame.load::<[u32; 3]>(len));
        frame.store(TAGS_AT, tags);
    }
    true
}

#[inline(always)]
fn move_head(ctx: &XdpContext, by: i32) -> bool {
    // SAFETY: the context is the program's own; after this all packet pointers are taken anew.
    unsafe { bpf_xdp_adjust_head(ctx.ctx, by) == 0 }
}

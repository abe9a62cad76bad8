//! Encapsulation: the real's template goes in front of the packet, with the fields that vary patched in.

use crate::{datagram::Datagram, frame::Frame, path::Verdict};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use lb_ebpf::{
    counter::Reason,
    net::{ETH_LEN, IP_DF, IPV4_LEN, fold},
    real::RealEntry,
};

/// Puts an outer IPv4 header (RFC 2003) in front of the packet and addresses the frame to the next hop.
///
/// ToS is copied, DSCP and ECN (RFC 6040 §4.1, normal mode); DF is copied (RFC 2003 §3.1). The inner ID is
/// copied too: it varies as the sender's does, so that fragments of the outer packet do not mix.
#[inline(always)]
pub(crate) fn ipip(ctx: &XdpContext, inner: &Datagram, real: &RealEntry) -> Verdict {
    if real.mtu == 0 {
        return Reason::DropNoNextHop.into();
    }
    let outer_len = u32::from(inner.total_len) + IPV4_LEN as u32;
    if outer_len > u32::from(real.mtu) {
        return Reason::DropTooBig.into();
    }
    // SAFETY: the context is the program's own; after this all packet pointers are taken anew.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(IPV4_LEN as i32)) } != 0 {
        return Reason::DropNoHeadroom.into();
    }
    let frame = Frame::of(ctx);
    if !frame.has(ETH_LEN + IPV4_LEN) {
        return Reason::DropNoHeadroom.into();
    }
    let len = (outer_len as u16).to_be();
    let df = inner.flags & IP_DF;
    let tos = u32::from(inner.tos) << 8;
    let checksum = !fold(real.header_sum + tos + u32::from(len) + u32::from(inner.id) + u32::from(df));
    let [w0, w1, w2, w3] = real.head;
    // SAFETY: 34 bytes, checked above. Byte 15 is the ToS; 16 to 21 are length, ID and flags; 24 and 25
    // the checksum: all zero in the template, little endian in memory.
    unsafe {
        frame.store(0, w0);
        frame.store(8, w1 | (u64::from(inner.tos) << 56));
        frame.store(16, w2 | u64::from(len) | (u64::from(inner.id) << 16) | (u64::from(df) << 32));
        frame.store(24, w3 | u64::from(checksum));
        frame.store(32, real.tail);
    }
    // SAFETY: the context is the program's own.
    let ingress = unsafe { (*ctx.ctx).ingress_ifindex };
    if ingress == real.ifindex {
        Reason::Forwarded.into()
    } else {
        Verdict { reason: Reason::Redirected, ifindex: real.ifindex }
    }
}

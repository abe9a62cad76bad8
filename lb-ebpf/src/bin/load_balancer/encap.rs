//! Encapsulation: the real's template goes in front of the packet, with the fields that vary patched in.
//!
//! ToS or traffic class is copied, DSCP and ECN (RFC 6040 §4.1, normal mode), whatever the two families.

use crate::{
    flows::Kind,
    frame::Frame,
    maps,
    packet::Packet,
    path::{Family, Verdict},
};
use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_xdp_adjust_head},
    programs::XdpContext,
};
use lb_ebpf::{
    counter::Reason,
    net::{ETH_LEN, IP_DF, IPIP, IPV4_LEN, IPV6_LEN, fold},
    real::RealEntry,
};

/// Sends a packet to a real, whose counter is `counter`, inside an outer header of the real's family.
///
/// An IPv6 packet can go to an IPv6 real only.
#[inline(always)]
pub(crate) fn send<F: Family>(
    ctx: &XdpContext,
    packet: &Packet<F::Address>,
    hash: u64,
    real: &RealEntry,
    counter: u32,
) -> Verdict {
    if real.mtu == 0 {
        return Reason::DropNoNextHop.into();
    }
    if real.is_ip6() {
        if packet.len + IPV6_LEN as u32 > u32::from(real.mtu) {
            return too_big::<F>(ctx, packet, real.mtu.saturating_sub(IPV6_LEN as u16));
        }
        return in_ip6(ctx, packet, F::PROTOCOL, hash, real);
    }
    if F::PROTOCOL != IPIP {
        return Reason::DropNoReal.into();
    }
    let len = packet.len + IPV4_LEN as u32;
    // What may be fragmented is for the narrow hop's router to fragment.
    if len > u32::from(real.mtu) && (packet.dont_fragment || len > real.device_mtu()) {
        return too_big::<F>(ctx, packet, real.mtu.saturating_sub(IPV4_LEN as u16));
    }
    in_ip4(ctx, packet, hash, real, counter)
}

/// Tells the client of a packet that is too large, where it may be told: never about an error or what was sent to many
/// stations, nor about a fragment of IPv4 (RFC 1122 §3.2.2; RFC 4443 §2.4 e has none of the latter), nor about what
/// routers may fragment.
#[inline(always)]
fn too_big<F: Family>(ctx: &XdpContext, packet: &Packet<F::Address>, next_hop_mtu: u16) -> Verdict {
    let is_fragment = packet.is_fragment && F::PROTOCOL == IPIP;
    let tell = packet.dont_fragment && !is_fragment && packet.kind != Kind::Error;
    if !tell || next_hop_mtu < F::MIN_MTU || !F::is_host(packet.source) || Frame::of(ctx).is_to_many() {
        return Reason::DropTooBig.into();
    }
    if !maps::may_tell() {
        return Reason::DropTooBigLimited.into();
    }
    F::tell_too_big(ctx, next_hop_mtu)
}

/// An outer IPv4 header (RFC 2003). DF is copied (§3.1). The flow hash chooses the source, where there are several.
#[inline(always)]
fn in_ip4<A>(ctx: &XdpContext, inner: &Packet<A>, hash: u64, real: &RealEntry, counter: u32) -> Verdict {
    let Some(frame) = grow::<IPV4_LEN>(ctx) else { return Reason::DropNoHeadroom.into() };
    let len = ((inner.len + IPV4_LEN as u32) as u16).to_be();
    let (df, id) = if inner.dont_fragment { (IP_DF, 0) } else { (0, varying_id(counter)) };
    let tos = u32::from(inner.tos) << 8;
    // Bits that do not choose the slot: all flows of a real share some of those.
    let source = (hash >> 28) as u16 & real.source_mask();
    let sum = u32::from(real.header_sum) + tos + u32::from(len) + u32::from(id) + u32::from(df) + u32::from(source);
    let [w0, w1, w2, w3, w4, _] = real.head;
    // SAFETY: 34 bytes, which `grow` has checked. Byte 15 is the ToS; 16 to 21 are length, ID and flags; 24 and 25
    // the checksum; 28 and 29 have the bits of the source that vary: all zero in the template, little endian in memory.
    unsafe {
        frame.store(0, w0);
        frame.store(8, w1 | (u64::from(inner.tos) << 56));
        frame.store(16, w2 | u64::from(len) | (u64::from(id) << 16) | (u64::from(df) << 32));
        frame.store(24, w3 | u64::from(!fold(sum)) | (u64::from(source) << 32));
        frame.store(32, w4 as u16);
    }
    leave(ctx, real)
}

/// An outer IPv6 header (RFC 2473) around a packet of this protocol. The flow label spreads flows over paths and
/// receive queues, as RFC 6438 wants it.
#[inline(always)]
fn in_ip6<A>(ctx: &XdpContext, inner: &Packet<A>, protocol: u8, hash: u64, real: &RealEntry) -> Verdict {
    const FLOW_LABEL: u32 = 0xf_ffff;
    let Some(frame) = grow::<IPV6_LEN>(ctx) else { return Reason::DropNoHeadroom.into() };
    let len = (inner.len as u16).to_be();
    // Bits that do not choose the slot: reals are told apart by their addresses.
    let flow_label = (hash >> 24) as u32 & FLOW_LABEL;
    let first = u64::from(((6 << 28) | (u32::from(inner.tos) << 20) | flow_label).to_be());
    let [w0, w1, w2, w3, w4, w5] = real.head;
    // SAFETY: 54 bytes, which `grow` has checked. Bytes 14 to 17 are version, traffic class and flow label; 18 and 19
    // the payload's length, 20 the next header: all zero in the template, little endian in memory.
    unsafe {
        frame.store(0, w0);
        frame.store(8, w1 | (first << 48));
        frame.store(16, w2 | (first >> 16) | (u64::from(len) << 16) | (u64::from(protocol) << 32));
        frame.store(24, w3);
        frame.store(32, w4);
        frame.store(40, w5);
        frame.store(48, real.tail);
        frame.store(52, real.end);
    }
    leave(ctx, real)
}

/// Makes room for a header of `LEN` bytes: the frame, whose Ethernet header and first `LEN` bytes are to be written.
#[inline(always)]
fn grow<const LEN: usize>(ctx: &XdpContext) -> Option<Frame> {
    // SAFETY: the context is the program's own; after this all packet pointers are taken anew.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(LEN as i32)) } != 0 {
        return None;
    }
    let frame = Frame::of(ctx);
    frame.has(ETH_LEN + LEN).then_some(frame)
}

/// An ID that varies from packet to packet to the same real: it may be fragmented, and its fragments must not mix with
/// those of another client (RFC 6864 §4.3). The real's own count of packets on this CPU; CPUs begin apart, and may meet.
#[inline(always)]
fn varying_id(counter: u32) -> u16 {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    maps::packets(counter) as u16 ^ ((cpu as u16) << 12)
}

#[inline(always)]
fn leave(ctx: &XdpContext, real: &RealEntry) -> Verdict {
    // SAFETY: the context is the program's own.
    let ingress = unsafe { (*ctx.ctx).ingress_ifindex };
    if ingress == real.ifindex { Reason::Forwarded.into() } else { Verdict::redirected(real.ifindex) }
}

//! A packet that is too large for the way to its real becomes the ICMP error that tells its client so, from the VIP.
//!
//! ```text
//! Ethernet │ IP │ ICMP type, code, checksum, 0, MTU │ the packet from its IP header on, cut
//! ```

use crate::{frame::Frame, path::Verdict};
use aya_ebpf::{
    bindings::xdp_md,
    helpers::{
        bpf_xdp_adjust_head,
        generated::{bpf_csum_diff, bpf_xdp_adjust_tail},
    },
    programs::XdpContext,
};
use lb_ebpf::{
    counter::Reason,
    net::{
        ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP, ICMP_LEN, ICMPV6, IP_DF, IPV4_LEN, IPV6_LEN, VERSION_IHL, fold,
    },
};

/// The kernel's `bpf_csum_diff` adds up no more at a time.
const SUM_LEN: usize = 512;
/// What an ICMP error quotes: as much as fits into one call, below the 576 bytes in all of RFC 1812 §4.3.2.3, or else
/// the least that RFC 792 wants.
const QUOTE4: usize = SUM_LEN;
const SHORT_QUOTE4: usize = IPV4_LEN + 8;
/// What an ICMPv6 error quotes: as much as fits into the least MTU (RFC 4443 §3.2).
const QUOTE6: usize = 1280 - IPV6_LEN - ICMP_LEN;
const TTL: u8 = 64;
/// Internetwork control (RFC 1812 §4.3.2.5).
const TOS: u8 = 0xc0;
/// Type and code as they lie in memory: frag-needed (RFC 1191), packet too big (RFC 4443).
const FRAG_NEEDED: u16 = u16::from_ne_bytes([3, 4]);
const PACKET_TOO_BIG: u16 = u16::from_ne_bytes([2, 0]);

/// Tells the sender of an IPv4 packet the MTU.
#[inline(always)]
pub(crate) fn frag_needed(ctx: &XdpContext, next_hop_mtu: u16) -> Verdict {
    Verdict(frag_needed_apart(ctx.ctx, next_hop_mtu))
}

#[inline(never)]
fn frag_needed_apart(ctx: *mut xdp_md, next_hop_mtu: u16) -> u64 {
    let ctx = XdpContext::new(ctx);
    let told = if Frame::of(&ctx).has(ETH_LEN + QUOTE4) {
        icmp::<QUOTE4>(&ctx, next_hop_mtu)
    } else {
        icmp::<SHORT_QUOTE4>(&ctx, next_hop_mtu)
    };
    verdict(told)
}

/// Tells the sender of an IPv6 packet the MTU.
#[inline(always)]
pub(crate) fn packet_too_big(ctx: &XdpContext, next_hop_mtu: u16) -> Verdict {
    Verdict(packet_too_big_apart(ctx.ctx, next_hop_mtu))
}

#[inline(never)]
fn packet_too_big_apart(ctx: *mut xdp_md, next_hop_mtu: u16) -> u64 {
    verdict(icmp6(&XdpContext::new(ctx), next_hop_mtu))
}

#[inline(always)]
fn verdict(told: Option<()>) -> u64 {
    Verdict::from(if told.is_some() { Reason::TooBigReply } else { Reason::DropNoHeadroom }).0
}

#[inline(always)]
fn icmp<const QUOTE: usize>(ctx: &XdpContext, next_hop_mtu: u16) -> Option<()> {
    let frame = cut(ctx, QUOTE)?;
    // SAFETY: `cut` has checked for the whole IPv4 header.
    let (client, vip) = unsafe { (frame.load::<u32>(ETH_LEN + 12), frame.load::<u32>(ETH_LEN + 16)) };
    let frame = put_ethernet(ctx, frame, IPV4_LEN, QUOTE, ETHERTYPE_IPV4)?;
    let version_and_tos = u16::from_ne_bytes([VERSION_IHL, TOS]);
    let len = ((IPV4_LEN + ICMP_LEN + QUOTE) as u16).to_be();
    let ttl_and_protocol = u16::from_ne_bytes([TTL, ICMP]);
    let words = [version_and_tos, len, 0, IP_DF, ttl_and_protocol];
    let sum = words.into_iter().map(u32::from).sum::<u32>() + halves(client) + halves(vip);
    // SAFETY: `put_ethernet` has checked for all headers.
    unsafe {
        frame.store(ETH_LEN, version_and_tos);
        frame.store(ETH_LEN + 2, len);
        frame.store(ETH_LEN + 4, 0_u16);
        frame.store(ETH_LEN + 6, IP_DF);
        frame.store(ETH_LEN + 8, ttl_and_protocol);
        frame.store(ETH_LEN + 10, !fold(sum));
        frame.store(ETH_LEN + 12, vip);
        frame.store(ETH_LEN + 16, client);
        let at = ETH_LEN + IPV4_LEN;
        frame.store(at, FRAG_NEEDED);
        frame.store(at + 2, 0_u16);
        frame.store(at + 4, 0_u16);
        frame.store(at + 6, next_hop_mtu.to_be());
        let sum = sum_of(frame, at, ICMP_LEN, 0);
        frame.store(at + 2, !fold(sum_of(frame, at + ICMP_LEN, QUOTE, sum)));
    }
    Some(())
}

#[inline(always)]
fn icmp6(ctx: &XdpContext, next_hop_mtu: u16) -> Option<()> {
    let frame = cut(ctx, QUOTE6)?;
    // SAFETY: `cut` has checked for the whole IPv6 header.
    let (client, vip) = unsafe { (frame.load::<[u32; 4]>(ETH_LEN + 8), frame.load::<[u32; 4]>(ETH_LEN + 24)) };
    let frame = put_ethernet(ctx, frame, IPV6_LEN, QUOTE6, ETHERTYPE_IPV6)?;
    let len = ((ICMP_LEN + QUOTE6) as u16).to_be();
    // SAFETY: `put_ethernet` has checked for headers and quote.
    unsafe {
        frame.store(ETH_LEN, u32::from_ne_bytes([6 << 4, 0, 0, 0]));
        frame.store(ETH_LEN + 4, len);
        frame.store(ETH_LEN + 6, [ICMPV6, TTL]);
        frame.store(ETH_LEN + 8, vip);
        frame.store(ETH_LEN + 24, client);
        let at = ETH_LEN + IPV6_LEN;
        frame.store(at, PACKET_TOO_BIG);
        frame.store(at + 2, 0_u16);
        frame.store(at + 4, u32::from(next_hop_mtu).to_be());
        // The pseudo-header (RFC 8200 §8.1): addresses, length, protocol.
        let pseudo_header = u32::from(len) + u32::from(u16::from(ICMPV6).to_be());
        let sum = sum_of(frame, ETH_LEN + 8, 32 + ICMP_LEN, pseudo_header);
        let quote = at + ICMP_LEN;
        let sum = sum_of(frame, quote, SUM_LEN, sum);
        let sum = sum_of(frame, quote + SUM_LEN, SUM_LEN, sum);
        frame.store(at + 2, !fold(sum_of(frame, quote + 2 * SUM_LEN, QUOTE6 - 2 * SUM_LEN, sum)));
    }
    Some(())
}

/// Cuts a frame to its Ethernet header and `quote` bytes; `None` if it is shorter already.
#[inline(always)]
fn cut(ctx: &XdpContext, quote: usize) -> Option<Frame> {
    let frame = Frame::of(ctx);
    if !frame.has(ETH_LEN + quote) {
        return None;
    }
    let surplus = frame.len() as usize - (ETH_LEN + quote);
    // SAFETY: the context is the program's own; after this all packet pointers are taken anew.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, -(surplus as i32)) } != 0 {
        return None;
    }
    let frame = Frame::of(ctx);
    frame.has(ETH_LEN + quote).then_some(frame)
}

/// Makes room for the error's headers, and sends the frame back to where it came from.
#[inline(always)]
fn put_ethernet(ctx: &XdpContext, frame: Frame, ip_len: usize, quote: usize, ethertype: u16) -> Option<Frame> {
    // SAFETY: the caller has checked for the Ethernet header.
    let (destination, source) = unsafe { (frame.load::<[u16; 3]>(0), frame.load::<[u16; 3]>(6)) };
    // SAFETY: as in `cut`.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -((ip_len + ICMP_LEN) as i32)) } != 0 {
        return None;
    }
    let frame = Frame::of(ctx);
    if !frame.has(ETH_LEN + ip_len + ICMP_LEN + quote) {
        return None;
    }
    // SAFETY: checked just now.
    unsafe {
        frame.store(0, source);
        frame.store(6, destination);
        frame.store(12, ethertype);
    }
    Some(frame)
}

#[inline(always)]
fn halves(word: u32) -> u32 {
    (word & 0xffff) + (word >> 16)
}

/// Adds the 16-bit words of up to 512 bytes from `at` on to a sum.
///
/// # Safety
/// As for [`Frame::load`]. `len` is a multiple of 4.
#[inline(always)]
unsafe fn sum_of(frame: Frame, at: usize, len: usize, sum: u32) -> u32 {
    // SAFETY: in bounds by the caller's word, and the verifier proves it again.
    unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, frame.pointer(at), len as u32, sum) as u32 }
}

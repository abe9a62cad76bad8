//! Who asks on the link for a VIP that is announced there is answered: ARP (RFC 826), neighbour solicitations (RFC 4861).

use crate::{frame::Frame, maps::ANSWERS, path::Verdict};
use aya_ebpf::{bindings::xdp_md, programs::XdpContext};
use lb_ebpf::{
    answer::Asked,
    counter::Reason,
    net::{ETH_LEN, ICMPV6, IPV6_LEN, fold},
};

type Mac = [u16; 3];

/// Ethernet, IPv4, the lengths of their addresses, and: request.
const ARP_REQUEST: [u16; 4] = [1_u16.to_be(), 0x0800_u16.to_be(), 0x0604_u16.to_be(), 1_u16.to_be()];
const ARP_REPLY: u16 = 2_u16.to_be();
const ARP_LEN: usize = 28;
/// In an ARP packet behind an Ethernet header: operation, and the addresses of sender and target.
const OPERATION: usize = ETH_LEN + 6;
const SENDER_MAC: usize = ETH_LEN + 8;
const SENDER: usize = ETH_LEN + 14;
const TARGET_MAC: usize = ETH_LEN + 18;
const TARGET: usize = ETH_LEN + 24;

const ICMP_AT: usize = ETH_LEN + IPV6_LEN;
/// Type and code of RFC 4861, 4.3 and 4.4, as they lie in memory.
const SOLICITATION: u16 = u16::from_ne_bytes([135, 0]);
const ADVERTISEMENT: u16 = u16::from_ne_bytes([136, 0]);
/// Solicited, and to replace what was known.
const FLAGS: u32 = 0x6000_0000_u32.to_be();
/// A solicitation, and with the option that has its sender's Ethernet address: type 1, a unit of 8 bytes.
const LEN: usize = 24;
const LEN_WITH_MAC: usize = 32;
const SOURCE_MAC_OPTION: [u8; 2] = [1, 1];
const TARGET_MAC_OPTION: [u8; 2] = [2, 1];

/// The verdict on an ARP packet.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn path_arp(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let reason = if arp(&ctx) { Reason::NeighbourReply } else { Reason::PassNotIp };
    Verdict::from(reason).0
}

#[inline(always)]
fn arp(ctx: &XdpContext) -> bool {
    let frame = Frame::of(ctx);
    if !frame.has(ETH_LEN + ARP_LEN) {
        return false;
    }
    // SAFETY: a whole packet is there, checked above.
    let (head, mac, sender, target) = unsafe {
        (frame.load::<[u16; 4]>(ETH_LEN), frame.load::<Mac>(SENDER_MAC), frame.load::<u32>(SENDER), frame.load(TARGET))
    };
    // Who asks for its own address announces it (RFC 5227), and wants no answer.
    if head != ARP_REQUEST || sender == target {
        return false;
    }
    let Some(ours) = answer(Asked::new4(ingress(ctx), target)) else { return false };
    // SAFETY: the same.
    unsafe {
        to_sender(frame, ours);
        frame.store(OPERATION, ARP_REPLY);
        frame.store(SENDER_MAC, ours);
        frame.store(SENDER, target);
        frame.store(TARGET_MAC, mac);
        frame.store(TARGET, sender);
    }
    true
}

/// Turns a neighbour solicitation for an address that is answered for into the advertisement; false if it is none.
///
/// Its checksum is not verified: whoever can send a wrong one can send a right one. Who asks with the unspecified
/// address wants to know whether somebody has its address (RFC 4862): that is nobody's business who only has the VIP now.
#[inline(always)]
pub(crate) fn solicitation(ctx: &XdpContext) -> bool {
    let frame = Frame::of(ctx);
    if !frame.has(ICMP_AT + LEN) {
        return false;
    }
    // SAFETY: headers and solicitation are there, checked above.
    let (payload_len, next, hop_limit, source, message, target) = unsafe {
        (
            u16::from_be(frame.load(ETH_LEN + 4)) as usize,
            frame.load::<u8>(ETH_LEN + 6),
            frame.load::<u8>(ETH_LEN + 7),
            frame.load::<[u32; 4]>(ETH_LEN + 8),
            frame.load::<u16>(ICMP_AT),
            frame.load::<[u32; 4]>(ICMP_AT + 8),
        )
    };
    let [a, b, c, d] = source;
    if next != ICMPV6 || message != SOLICITATION || hop_limit != 255 || a | b | c | d == 0 {
        return false;
    }
    let Some(ours) = answer(Asked { ifindex: ingress(ctx), address: target }) else { return false };
    let has_option = payload_len == LEN_WITH_MAC;
    if has_option {
        // SAFETY: checked in the same expression.
        if !frame.has(ICMP_AT + LEN_WITH_MAC) || unsafe { frame.load::<[u8; 2]>(ICMP_AT + LEN) } != SOURCE_MAC_OPTION {
            return false;
        }
        // SAFETY: checked just now.
        unsafe {
            frame.store(ICMP_AT + LEN, TARGET_MAC_OPTION);
            frame.store(ICMP_AT + LEN + 2, ours);
        }
    } else if payload_len != LEN {
        return false;
    }
    // SAFETY: the same as above.
    unsafe {
        to_sender(frame, ours);
        frame.store(ETH_LEN + 8, target);
        frame.store(ETH_LEN + 24, source);
        frame.store(ICMP_AT, ADVERTISEMENT);
        frame.store(ICMP_AT + 4, FLAGS);
        let option = if has_option { Some(ours) } else { None };
        frame.store(ICMP_AT + 2, checksum(source, target, option));
    }
    true
}

/// Of an advertisement to `to` about `target`, which is also its sender. All words as they lie in memory.
#[inline(always)]
fn checksum(to: [u32; 4], target: [u32; 4], option: Option<Mac>) -> u16 {
    let words = |address: [u32; 4]| address.iter().fold(0, |sum, word| sum + (word & 0xffff) + (word >> 16));
    let (len, option) = match option {
        Some([a, b, c]) => {
            let head = u16::from_ne_bytes(TARGET_MAC_OPTION);
            (LEN_WITH_MAC, u32::from(head) + u32::from(a) + u32::from(b) + u32::from(c))
        }
        None => (LEN, 0),
    };
    // The pseudo header of RFC 8200, 8.1: both addresses, the length, and the protocol.
    let pseudo = words(to) + words(target) + u32::from((len as u16).to_be()) + u32::from(u16::from(ICMPV6).to_be());
    let body = u32::from(ADVERTISEMENT) + (FLAGS & 0xffff) + (FLAGS >> 16) + words(target) + option;
    !fold(pseudo + body)
}

/// # Safety
/// The frame has an Ethernet header.
#[inline(always)]
unsafe fn to_sender(frame: Frame, ours: Mac) {
    // SAFETY: in bounds by the caller's word.
    unsafe {
        frame.store(0, frame.load::<Mac>(6));
        frame.store(6, ours);
    }
}

#[inline(always)]
fn ingress(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the program's own.
    unsafe { (*ctx.ctx).ingress_ifindex }
}

#[inline(always)]
fn answer(asked: Asked) -> Option<Mac> {
    // SAFETY: user space replaces a value as a whole; a copy is taken at once.
    let [first, second, third, _] = *unsafe { ANSWERS.get(asked) }?;
    Some([first, second, third])
}

//! The load balancer: a packet for a VIP goes in, the same packet inside an IP packet for one real goes out.
//!
//! ```text
//! ARP or a neighbour solicitation for a VIP that this node answers for? ─▶ answer
//! tagged? ─▶ the tags come off, and go on again at the end
//! may a VIP have this address? ── no ──▶ pass, untouched
//!   └▶ read: TCP or UDP, or an ICMP error about it? ── no ──▶ a VIP's address? ─▶ echo, drop │ pass
//!        └▶ VIP ─▶ flow hash ─▶ ring slot ─▶ (tracked flow?) ─▶ real ─▶ encap ─▶ transmit │ redirect
//!                                                                └▶ too big? ─▶ tell the client │ drop
//! ```
//!
//! IPv4 without tags is inlined into the program; IPv6 and tagged frames are functions of their own.
#![no_std]
#![no_main]
#![allow(clippy::inline_always, reason = "the packet path is one function: a call costs what it saves")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "lengths and ids are bounded by the headers they come from; a checked conversion would add branches"
)]
#![expect(unsafe_code, reason = "BPF programs read packets through raw pointers; each block states its bound")]

mod encap;
mod flows;
mod frame;
mod maps;
mod neighbour;
mod packet;
mod path;
mod too_big;
mod v4;
mod v6;
mod vlan;

use aya_ebpf::{macros::xdp, programs::XdpContext};

/// The XDP entry point.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
fn load_balancer(ctx: XdpContext) -> u32 {
    path::run(&ctx)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

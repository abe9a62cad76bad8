//! The load balancer's packet path and two floors under the same harness, to be timed with `BPF_PROG_TEST_RUN`.
//!
//! A test run does not reset the packet between rounds, so each program makes its packets itself: it writes the
//! Ethernet header and the tuple of the next flow, calls what is timed, and takes the outer header off again.
//! The path is compiled from the load balancer's own sources, but called, where the load balancer inlines it:
//! a row holds the cost of that call as well, and so does `floor_tx`.
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

#[path = "../load_balancer/encap.rs"]
mod encap;
#[path = "../load_balancer/flows.rs"]
mod flows;
#[path = "../load_balancer/frame.rs"]
mod frame;
#[path = "../load_balancer/maps.rs"]
mod maps;
#[path = "../load_balancer/neighbour.rs"]
mod neighbour;
#[path = "../load_balancer/packet.rs"]
mod packet;
#[path = "../load_balancer/path.rs"]
mod path;
#[path = "../load_balancer/too_big.rs"]
mod too_big;
#[path = "../load_balancer/v4.rs"]
mod v4;
#[path = "../load_balancer/v6.rs"]
mod v6;
#[path = "../load_balancer/vlan.rs"]
mod vlan;

use crate::frame::Frame;
use aya_ebpf::{
    bindings::{xdp_action, xdp_md},
    btf_maps::Array,
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_ebpf::{
    bench::{PACKETS_PER_RUN, Traffic, Tuple, address6},
    net::{ETH_LEN, ETHERTYPE_IPV4, ETHERTYPE_IPV6, ICMP_LEN, IPV4_LEN, IPV6_LEN},
};

/// What user space asks for.
#[btf_map]
static TRAFFIC: Array<Traffic, 1> = Array::new();

/// The load balancer's path, eight packets a run.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
fn packets(ctx: XdpContext) -> u32 {
    run::<IPV4_LEN>(&ctx, make, balance)
}

/// The same with packets of IPv6.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
fn packets6(ctx: XdpContext) -> u32 {
    run::<IPV6_LEN>(&ctx, make6, balance)
}

/// The same with ICMP errors about replies of the VIP.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
fn errors(ctx: XdpContext) -> u32 {
    run::<IPV4_LEN>(&ctx, make_error, balance)
}

/// The same around the least that an encapsulating program can do.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
fn floor_tx(ctx: XdpContext) -> u32 {
    run::<IPV4_LEN>(&ctx, make, make_room)
}

/// The least that any program can do; one packet a run.
#[xdp]
fn floor_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn balance(ctx: *mut xdp_md) -> u32 {
    path::run(&XdpContext::new(ctx))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn make_room(ctx: *mut xdp_md) -> u32 {
    // SAFETY: the context is the program's own.
    match unsafe { bpf_xdp_adjust_head(ctx, -(IPV4_LEN as i32)) } {
        0 => xdp_action::XDP_TX,
        _ => xdp_action::XDP_DROP,
    }
}

/// Sends the next packets through `timed` and returns the verdict on the last, or `XDP_ABORTED` as soon as one
/// cannot be made or undone. Those that were made are counted. The outer header has `OUTER` bytes.
#[inline(always)]
fn run<const OUTER: usize>(
    ctx: &XdpContext,
    make: impl Fn(Frame, Tuple) -> bool,
    timed: extern "C" fn(*mut xdp_md) -> u32,
) -> u32 {
    let Some(traffic) = TRAFFIC.get_ptr_mut(0) else { return xdp_action::XDP_ABORTED };
    // SAFETY: the map's one entry; runs follow each other.
    let traffic = unsafe { &mut *traffic };
    let mut action = xdp_action::XDP_ABORTED;
    for _ in 0..PACKETS_PER_RUN {
        if !make(Frame::of(ctx), traffic.tuple(traffic.packets)) {
            return xdp_action::XDP_ABORTED;
        }
        traffic.packets += 1;
        action = timed(ctx.ctx);
        // SAFETY: the context is the program's own; the next packet is made through new pointers.
        if action == xdp_action::XDP_TX && unsafe { bpf_xdp_adjust_head(ctx.ctx, OUTER as i32) } != 0 {
            return xdp_action::XDP_ABORTED;
        }
    }
    action
}

/// Writes the Ethernet header and the tuple, each field as wide as the path reads it: a narrower store would
/// stall its load.
#[inline(always)]
fn make(frame: Frame, tuple: Tuple) -> bool {
    if !frame.has(ETH_LEN + IPV4_LEN + 4) {
        return false;
    }
    // SAFETY: all within the bytes that were asked for above.
    unsafe {
        frame.store(0, 0_u64);
        frame.store(8, 0_u32);
        frame.store(12, ETHERTYPE_IPV4);
        frame.store(ETH_LEN + 12, tuple.source);
        frame.store(ETH_LEN + 16, tuple.destination);
        frame.store(ETH_LEN + IPV4_LEN, tuple.ports);
    }
    true
}

/// The same in IPv6.
#[inline(always)]
fn make6(frame: Frame, tuple: Tuple) -> bool {
    if !frame.has(ETH_LEN + IPV6_LEN + 4) {
        return false;
    }
    // SAFETY: all within the bytes that were asked for above.
    unsafe {
        frame.store(0, 0_u64);
        frame.store(8, 0_u32);
        frame.store(12, ETHERTYPE_IPV6);
        frame.store(ETH_LEN + 8, address6(tuple.source));
        frame.store(ETH_LEN + 24, address6(tuple.destination));
        frame.store(ETH_LEN + IPV6_LEN, tuple.ports);
    }
    true
}

/// An ICMP error: the tuple's destination is told of its own packet to the tuple's source.
#[inline(always)]
fn make_error(frame: Frame, tuple: Tuple) -> bool {
    let quote = ETH_LEN + IPV4_LEN + ICMP_LEN;
    if !frame.has(quote + IPV4_LEN + 4) {
        return false;
    }
    // SAFETY: all within the bytes that were asked for above.
    unsafe {
        frame.store(0, 0_u64);
        frame.store(8, 0_u32);
        frame.store(12, ETHERTYPE_IPV4);
        frame.store(ETH_LEN + 16, tuple.destination);
        frame.store(quote + 12, tuple.destination);
        frame.store(quote + 16, tuple.source);
        frame.store(quote + IPV4_LEN, tuple.ports.rotate_left(16));
    }
    true
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

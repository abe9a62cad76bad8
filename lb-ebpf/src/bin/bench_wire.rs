//! A generator, a mirror and a sink for the bench that sends packets through a veth pair.
//!
//! ```text
//! generate (live frames) ─▶ wire ─▶ load balancer, or mirror ─▶ wire ─▶ sink
//! ```
#![no_std]
#![no_main]
#![allow(clippy::inline_always, reason = "the packet path is one function: a call costs what it saves")]
#![expect(unsafe_code, reason = "BPF programs read packets through raw pointers; each block states its bound")]

use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_ebpf::{
    bench::{WIRE_ENDED, WIRE_GENERATED, WIRE_SOURCE},
    net::{ETH_LEN, ETHERTYPE_IPV4, IPIP, IPV4_LEN},
};

/// How many packets have been generated on this CPU, and how many have ended here.
#[btf_map]
static SEEN: PerCpuArray<u64, 2> = PerCpuArray::new();

/// The Ethernet header of what is generated.
#[btf_map]
static HEADER: Array<[u8; ETH_LEN], 1> = Array::new();

/// Sends the frame that the test run made, each time from the next source port. The memory of a frame that came back is
/// used again, and encapsulation has written over its Ethernet header.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
fn generate(ctx: XdpContext) -> u32 {
    let Some(header) = HEADER.get(0) else { return xdp_action::XDP_ABORTED };
    // Read once: the verifier would not take another pointer for the one that was checked.
    let (start, end) = (ctx.data(), ctx.data_end());
    let at = ETH_LEN + IPV4_LEN;
    if start + at + 2 > end {
        return xdp_action::XDP_ABORTED;
    }
    #[expect(clippy::cast_possible_truncation, reason = "the ports come round again")]
    let port = seen(WIRE_GENERATED) as u16;
    // SAFETY: inside the frame, checked above.
    unsafe {
        (start as *mut [u8; ETH_LEN]).write_unaligned(*header);
        ((start + at) as *mut u16).write_unaligned(port);
    }
    xdp_action::XDP_TX
}

/// The least that can send a packet back.
#[xdp]
fn mirror(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_TX
}

/// Counts and drops what the generator sent, encapsulated or as it was; passes everything else.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
fn sink(ctx: XdpContext) -> u32 {
    if !is_generated(&ctx) {
        return xdp_action::XDP_PASS;
    }
    seen(WIRE_ENDED);
    xdp_action::XDP_DROP
}

#[inline(always)]
fn is_generated(ctx: &XdpContext) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + ETH_LEN + 2 * IPV4_LEN > end {
        return false;
    }
    let ip = start + ETH_LEN;
    // SAFETY: an Ethernet and two IPv4 headers are there, checked above; any alignment.
    unsafe {
        ((start + 12) as *const u16).read_unaligned() == ETHERTYPE_IPV4 && {
            let inner = if *((ip + 9) as *const u8) == IPIP { ip + IPV4_LEN } else { ip };
            ((inner + 12) as *const u32).read_unaligned() == WIRE_SOURCE
        }
    }
}

/// The number of this packet on this CPU.
#[inline(always)]
fn seen(index: u32) -> u64 {
    let Some(seen) = SEEN.get_ptr_mut(index) else { return 0 };
    // SAFETY: this CPU's own entry; a program is not preempted by itself on one CPU.
    unsafe {
        *seen += 1;
        *seen
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

//! Copies out what an outer map names. A process may look up which inner map a place names, but the kernel opens that map
//! for it, by its id, only with `CAP_SYS_ADMIN`; a program needs nobody's leave. User space gives it the outer maps of the
//! attached load balancer, runs it on a frame, and reads the copy: it never sees a packet from a wire.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the frame is read through a raw pointer; the block states its bound")]
use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, ArrayOfMaps},
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use lb_ebpf::{
    ring::{MAX_RINGS, RING_PARTS, Ring},
    vip::VipTable,
};

/// As in the load balancer; an earlier daemon's.
#[btf_map]
static VIPS: ArrayOfMaps<Array<VipTable, 1>, 1> = ArrayOfMaps::new();
/// The same.
#[btf_map]
static RINGS: ArrayOfMaps<Array<Ring, 1>, { MAX_RINGS * RING_PARTS }> = ArrayOfMaps::new();

/// The copy of the table.
#[btf_map]
static TABLE: Array<VipTable, 1> = Array::new();
/// The copy of one part of a ring.
#[btf_map]
static PART: Array<Ring, 1> = Array::new();

/// Copies the table of VIPs. `XDP_PASS`: it is there.
#[xdp]
fn read_table(_ctx: XdpContext) -> u32 {
    // One helper call copies the whole value.
    said(VIPS.get_value(0, &0).is_some_and(|table| TABLE.set(0, table, 0).is_ok()))
}

/// Copies the part of a ring whose place is in the first four bytes of the frame, in host byte order. `XDP_PASS`: it is
/// there.
#[xdp]
#[expect(clippy::needless_pass_by_value, reason = "the macro hands the context over")]
fn read_part(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + size_of::<u32>() > end {
        return said(false);
    }
    // SAFETY: checked above; any alignment.
    let place = unsafe { (start as *const u32).read_unaligned() };
    said(RINGS.get_value(place, &0).is_some_and(|part| PART.set(0, part, 0).is_ok()))
}

fn said(copied: bool) -> u32 {
    if copied { xdp_action::XDP_PASS } else { xdp_action::XDP_ABORTED }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

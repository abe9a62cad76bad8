//! Passes every frame. `XDP_TX` on a veth pair is delivered only while its peer has an XDP program as well:
//! the lab attaches this one on the router's side.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "the section and symbol names of a BPF object are set by unsafe attributes")]
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};

#[xdp]
fn pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

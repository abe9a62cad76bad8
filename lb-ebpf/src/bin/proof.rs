//! Hands every frame to another device, as if it had arrived there: `realsrv-setup` proves a real with packets that meet
//! the device's own filters, and not those of the veth device that they come from.
#![no_std]
#![no_main]
#![expect(unsafe_code, reason = "a helper of the kernel is called, and a BPF object names its license")]

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT},
    helpers::generated::bpf_redirect,
    macros::{classifier, map},
    maps::Array,
    programs::TcContext,
};

/// The index of the device, at index 0.
#[map]
static DEVICE: Array<u32> = Array::with_max_entries(1, 0);

#[classifier]
fn lb_proof(_ctx: TcContext) -> i32 {
    let Some(&device) = DEVICE.get(0) else { return TC_ACT_SHOT };
    // SAFETY: the helper takes any number; an index without a device drops the packet.
    let action = unsafe { bpf_redirect(device, BPF_F_INGRESS.into()) };
    i32::try_from(action).unwrap_or(TC_ACT_SHOT)
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

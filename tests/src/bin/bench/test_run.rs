//! `BPF_PROG_TEST_RUN` of a program that something else has loaded, or with live frames: what the program transmits then
//! leaves by a real device.
//!
//! As `bpf_prog_test_run_xdp` in the kernel's `net/bpf/test_run.c` takes it (live frames since Linux 5.18); aya has no flags
//! for a test run, and runs only what it has loaded.
#![expect(unsafe_code, reason = "the bpf system call takes a pointer")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

use anyhow::{Context as _, Result};
use nix::libc;

const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 2;

/// The part of the kernel's `union bpf_attr` that is for test runs.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct TestRun {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    reserved: u32,
}

/// The kernel's `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct Context {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// Runs an XDP program `repeat` times on frames that begin as `frame`, as if they came in by the device with this index
/// in the thread's network namespace, which needs an XDP program itself. Returns when all have been sent.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn send_live(program: &impl AsFd, ingress_ifindex: u32, frame: &[u8], repeat: u32) -> Result<()> {
    let size = u32::try_from(frame.len()).context("a frame is short")?;
    let context = Context { data_end: size, ingress_ifindex, ..Context::default() };
    let attributes = TestRun {
        program: program.as_fd().as_raw_fd().cast_unsigned(),
        data_size_in: size,
        data_in: frame.as_ptr().addr() as u64,
        repeat,
        ctx_size_in: u32::try_from(size_of::<Context>())?,
        ctx_in: (&raw const context).addr() as u64,
        flags: BPF_F_TEST_XDP_LIVE_FRAMES,
        ..TestRun::default()
    };
    call(&attributes).context("sending live frames").map(drop)
}

/// What an XDP program makes of a frame that seems to come in by the loopback device; at most 2,048 bytes of it.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn once(program: &impl AsFd, frame: &[u8]) -> Result<Vec<u8>> {
    let mut out = vec![0; 2_048];
    let attributes = TestRun {
        program: program.as_fd().as_raw_fd().cast_unsigned(),
        data_size_in: u32::try_from(frame.len()).context("a frame is short")?,
        data_in: frame.as_ptr().addr() as u64,
        data_size_out: u32::try_from(out.len())?,
        data_out: out.as_mut_ptr().addr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    let size = call(&attributes).context("running an XDP program")?.data_size_out;
    out.truncate(usize::try_from(size)?);
    Ok(out)
}

fn call(attributes: &TestRun) -> io::Result<TestRun> {
    let mut attributes = *attributes;
    // SAFETY: the attributes and what they point to live until the call returns, with the sizes they say; the kernel
    // writes its results into the attributes and to `data_out` only.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut attributes, size_of::<TestRun>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(attributes) }
}

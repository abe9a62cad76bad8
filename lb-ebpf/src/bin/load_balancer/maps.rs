//! The maps, and counting.

use aya_ebpf::{
    Global,
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, ArrayOfMaps, HashMap, PerCpuArray},
    helpers::generated::{bpf_jiffies64, bpf_ktime_get_coarse_ns},
    macros::btf_map,
};
use lb_ebpf::{
    answer::{Answer, Asked, MAX_ANSWERS},
    counter::{COUNTERS, Counter},
    flow::{Bucket, TableSize},
    rate,
    real::{MAX_REALS, RealEntry},
    ring::{MAX_RINGS, RING_PARTS, RealId, Ring},
    syn::{SynCounter, SynSketch},
    vip::VipTable,
};

/// The one table of VIPs, swapped whole.
#[btf_map]
pub(crate) static VIPS: ArrayOfMaps<Array<VipTable, 1>, 1> = ArrayOfMaps::new();

/// The rings, in parts, each swapped whole; those of one ring are beside each other.
#[btf_map]
pub(crate) static RINGS: ArrayOfMaps<Array<Ring, 1>, { MAX_RINGS * RING_PARTS }> = ArrayOfMaps::new();

/// The reals; index 0 is none.
#[btf_map]
pub(crate) static REALS: Array<RealEntry, MAX_REALS> = Array::new();

/// The tracked flows, as many buckets as [`FLOWS_SIZE`] says; the daemon sweeps them through a mapping of its own.
#[btf_map]
pub(crate) static FLOWS: Array<Bucket, { TableSize::DEFAULT.buckets() }, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Set by the loader, a constant to the verifier.
#[unsafe(no_mangle)]
pub(crate) static FLOWS_SIZE: Global<TableSize> = Global::new(TableSize::DEFAULT);

/// Counters of reasons, flow events, VIPs and reals.
#[btf_map]
pub(crate) static COUNTS: PerCpuArray<Counter, COUNTERS> = PerCpuArray::new();

/// What each real was sent of new connections.
#[btf_map]
pub(crate) static SYNS: PerCpuArray<SynCounter, MAX_REALS> = PerCpuArray::new();

/// The flows that sent a SYN lately.
#[btf_map]
static SYN_SKETCH: PerCpuArray<SynSketch, 1> = PerCpuArray::new();

/// The addresses that are answered for, while this node is active.
#[btf_map]
pub(crate) static ANSWERS: HashMap<Asked, Answer, MAX_ANSWERS> = HashMap::new();

/// How many more clients may be told that a packet is too big.
#[btf_map]
static TOO_BIG: PerCpuArray<rate::Bucket, 1> = PerCpuArray::new();

/// Adds one packet of `bytes` to a counter of this CPU.
#[inline(always)]
pub(crate) fn count(index: u32, bytes: u64) {
    if let Some(counter) = COUNTS.get_ptr_mut(index) {
        // SAFETY: this CPU's own entry; a program is not preempted by itself on one CPU.
        let counter = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += bytes;
    }
}

/// How many packets this CPU has counted under `index`.
#[inline(always)]
pub(crate) fn packets(index: u32) -> u64 {
    COUNTS.get(index).map_or(0, |counter| counter.packets)
}

/// Counts a SYN that was sent to a real.
#[inline(always)]
pub(crate) fn count_syn(real: RealId, hash: u64) {
    if let (Some(counter), Some(sketch)) = (SYNS.get_ptr_mut(u32::from(real)), SYN_SKETCH.get_ptr_mut(0)) {
        // SAFETY: this CPU's own entries; a helper without arguments.
        let (counter, sketch, jiffies) = unsafe { (&mut *counter, &mut *sketch, bpf_jiffies64()) };
        counter.syns += 1;
        counter.repeated += u64::from(sketch.repeats(hash, jiffies));
    }
}

/// Whether one more client may be told that its packet is too big.
#[inline(always)]
pub(crate) fn may_tell() -> bool {
    let Some(bucket) = TOO_BIG.get_ptr_mut(0) else { return false };
    // SAFETY: this CPU's own entry; a helper without arguments.
    let (bucket, now) = unsafe { (&mut *bucket, bpf_ktime_get_coarse_ns()) };
    bucket.take(now)
}

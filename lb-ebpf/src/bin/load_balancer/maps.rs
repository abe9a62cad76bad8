//! The maps, and counting.

use aya_ebpf::{
    btf_maps::{Array, ArrayOfMaps, LruHashMap, PerCpuArray},
    macros::btf_map,
};
use lb_ebpf::{
    counter::{COUNTERS, Counter},
    flow::{Flow, FlowKey, MAX_FLOWS},
    real::{MAX_REALS, RealEntry},
    ring::{MAX_RINGS, RING_PARTS, Ring},
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

/// The tracked flows.
#[btf_map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow, MAX_FLOWS> = LruHashMap::new();

/// Counters of reasons, flow events, VIPs and reals.
#[btf_map]
pub(crate) static COUNTS: PerCpuArray<Counter, COUNTERS> = PerCpuArray::new();

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

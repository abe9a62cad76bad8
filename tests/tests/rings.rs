//! Swapping rings in the kernel's maps. Needs root.
#![allow(clippy::unwrap_used, clippy::large_stack_arrays, reason = "a helper that fails fails its test")]

use lb_ebpf::{
    flow::TableSize,
    ring::{RING_SLOTS, Ring, Slot},
};
use lbd::data_plane::DataPlane;
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, Instant},
};

fn ring(real: u32) -> Box<Ring> {
    Box::new(Ring { slots: [Slot::new(u16::try_from(real).unwrap(), 0, false, false); RING_SLOTS] })
}

#[test]
fn many_rings_swapped_together_share_their_grace_periods() {
    let directory = PathBuf::from(format!("/sys/fs/bpf/lbd-rings-test-{}", std::process::id()));
    let mut data_plane = DataPlane::load(&directory, TableSize::DEFAULT).unwrap();
    let rings: BTreeMap<u32, _> = (0..300).map(|index| (index, ring(index))).collect();
    let began = Instant::now();
    assert!(data_plane.swap_rings(&rings).is_empty());
    let together = began.elapsed();
    // One after the other, a tenth of them: ten times as long, if that takes long at all.
    let began = Instant::now();
    for index in 0..30 {
        data_plane.swap_ring(index, &ring(300 + index)).unwrap();
    }
    let tenth = began.elapsed();
    // 64 VIPs with the same ring of 16 parts.
    let shared: BTreeMap<u32, _> = (0..1024).map(|index| (index, ring(400 + index % 16))).collect();
    let began = Instant::now();
    assert!(data_plane.swap_rings(&shared).is_empty());
    let equal = began.elapsed();
    println!("300 parts together: {together:?}; 30 one by one: {tenth:?}; 1,024 of 16 contents: {equal:?}");
    data_plane.detach().unwrap();
    std::fs::remove_dir(&directory).unwrap();
    assert!(together < tenth * 5 + Duration::from_millis(100), "{together:?}, {tenth:?}");
}

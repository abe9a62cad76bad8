//! Maps that an earlier daemon left. Needs root.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use aya::maps::{Array, MapData};
use lb_ebpf::{
    flow::{Entry, TableSize},
    hash::splitmix64,
};
use lbd::data_plane::{DataPlane, Mode, tick_now};
use nix::sched::{CloneFlags, unshare};
use std::path::PathBuf;

/// A directory of pins that goes with the test, however that ends.
struct Pins(PathBuf);

impl Drop for Pins {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn pinned_map_of_another_layout_is_refused_and_left_alone() {
    let Pins(directory) = &Pins(PathBuf::from(format!("/sys/fs/bpf/lbd-maps-test-{}", std::process::id())));
    let pin = directory.join("FLOWS");
    // The first makes the directory and its maps; of those one is replaced by a stranger.
    DataPlane::load(directory, TableSize::DEFAULT).map(drop).unwrap();
    DataPlane::load(directory, TableSize::DEFAULT).map(drop).expect("its own maps are taken again");
    std::fs::remove_file(&pin).unwrap();
    let stranger: Array<MapData, [u8; 16]> = Array::create(1024, 0).unwrap();
    stranger.pin(&pin).unwrap();
    let error = DataPlane::load(directory, TableSize::DEFAULT).map(drop).unwrap_err().to_string();
    let said = "(Array of 1024 × 16 bytes, not Array of 1024 × 64 bytes)";
    assert!(error.starts_with(&format!("use pinned map {}: ", pin.display())) && error.contains(said), "{error}");
    assert!(pin.exists());
}

/// A data plane that serves takes the place of the earlier one: on the loopback device of a namespace of its own.
fn attached(directory: &std::path::Path, size: TableSize) -> DataPlane {
    let mut data_plane = DataPlane::load(directory, size).unwrap();
    data_plane.attach(&["lo".to_owned()], Mode::Generic).unwrap();
    data_plane
}

#[test]
fn tracked_flows_move_into_a_table_of_another_size() {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let Pins(directory) = &Pins(PathBuf::from(format!("/sys/fs/bpf/lbd-resize-test-{}", std::process::id())));
    let [small, large] = [10_000, 100_000].map(|entries| TableSize::for_entries(entries).unwrap());
    let mut random = 1;
    let hashes: Vec<u64> = (0..1_000).map(|_| splitmix64(&mut random)).collect();
    let now = tick_now().unwrap();

    let first = attached(directory, small);
    for (&hash, real) in hashes.iter().zip(1..) {
        let bucket = first.flows().bucket(hash);
        bucket.store(bucket.place(hash, now, 900).way, Entry::new(hash, real, now).seen(now));
    }
    drop(first);
    for size in [large, small] {
        let data_plane = attached(directory, size);
        assert_eq!(data_plane.flows().size(), size);
        for (&hash, real) in hashes.iter().zip(1..) {
            let bucket = data_plane.flows().bucket(hash);
            let entry = bucket.load(bucket.find(hash));
            assert_eq!(entry, Entry::new(hash, real, now).seen(now));
        }
    }
    // The one that has it now goes on with it.
    assert_eq!(DataPlane::load(directory, small).unwrap().flows().size(), small);
}

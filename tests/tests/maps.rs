//! Maps that an earlier daemon left. Needs root.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use aya::maps::{Array, MapData};
use lbd::data_plane::DataPlane;
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
    DataPlane::load(directory).map(drop).unwrap();
    DataPlane::load(directory).map(drop).expect("its own maps are taken again");
    std::fs::remove_file(&pin).unwrap();
    let stranger: Array<MapData, [u8; 16]> = Array::create(1024, 0).unwrap();
    stranger.pin(&pin).unwrap();
    let error = DataPlane::load(directory).map(drop).unwrap_err().to_string();
    let said = "(Array of 1024 × 16 bytes, not Array of 131072 × 64 bytes)";
    assert!(error.starts_with(&format!("use pinned map {}: ", pin.display())) && error.contains(said), "{error}");
    assert!(pin.exists());
}

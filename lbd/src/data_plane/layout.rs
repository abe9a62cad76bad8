//! What the maps that daemons share look like. The loader would take any map that is pinned under the right name.

use super::Error;
use aya::maps::{MapError, MapInfo, MapType};
use lb_ebpf::{
    counter::{COUNTERS, Counter},
    flow::{BUCKETS, Bucket},
    real::{MAX_REALS, RealEntry},
    syn::SynCounter,
};
use std::{fmt, path::Path};

/// Maps that a daemon and the next one share: flows name reals by their index, and counters count on.
pub(super) const SHARED_MAPS: [(&str, Layout); 4] = [
    ("REALS", Layout::new::<RealEntry>(MapType::Array, MAX_REALS)),
    ("FLOWS", Layout::new::<Bucket>(MapType::Array, BUCKETS)),
    ("COUNTS", Layout::new::<Counter>(MapType::PerCpuArray, COUNTERS)),
    ("SYNS", Layout::new::<SynCounter>(MapType::PerCpuArray, MAX_REALS)),
];

/// Type and size of a map.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    kind: MapType,
    value_size: usize,
    entries: usize,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {} × {} bytes", self.kind, self.entries, self.value_size)
    }
}

impl Layout {
    const fn new<T>(kind: MapType, entries: usize) -> Self {
        Self { kind, value_size: size_of::<T>(), entries }
    }

    fn of(info: &MapInfo) -> Result<Self, MapError> {
        Ok(Self {
            kind: info.map_type()?,
            value_size: info.value_size() as usize,
            entries: info.max_entries() as usize,
        })
    }
}

/// Refuses maps that a program of another version left: ours would misread them.
pub(super) fn check(directory: &Path) -> Result<(), Error> {
    for (name, expected) in SHARED_MAPS {
        let pin = directory.join(name);
        if !pin.exists() {
            continue;
        }
        let found = MapInfo::from_pin(&pin).and_then(|info| Layout::of(&info));
        let found = found.map_err(Error::new("open pinned map", pin.display()))?;
        if found != expected {
            let why = format!(
                "another version of lbd left it ({found}, not {expected}): start that version once more and end it by \
                 SIGTERM without --leave-attached, or remove the files in {}, which detaches it",
                directory.display()
            );
            return Err(Error::new("use pinned map", pin.display())(why));
        }
    }
    Ok(())
}

//! What the maps that daemons share look like. The loader would take any map that is pinned under the right name.

use super::Error;
use aya::maps::{MapError, MapInfo, MapType};
use lb_ebpf::{
    counter::{COUNTERS, Counter},
    flow::{Bucket, TableSize},
    real::{MAX_REALS, RealEntry},
    syn::SynCounter,
};
use std::{fmt, path::Path};

/// Maps that a daemon and the next one share: flows name reals by their index, and counters count on.
const SHARED_MAPS: [(&str, Layout); 3] = [
    ("REALS", Layout::new::<RealEntry>(MapType::Array, MAX_REALS)),
    ("COUNTS", Layout::new::<Counter>(MapType::PerCpuArray, COUNTERS)),
    ("SYNS", Layout::new::<SynCounter>(MapType::PerCpuArray, MAX_REALS)),
];
/// Shared too, unless it is to have another size: then what it holds is copied.
pub(super) const FLOWS: &str = "FLOWS";

/// The names of all that may be shared.
pub(super) fn shared_maps() -> impl Iterator<Item = &'static str> {
    SHARED_MAPS.iter().map(|&(name, _)| name).chain([FLOWS])
}

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

/// The size of the table of tracked flows that is pinned, if one is. Refuses maps that a program of another version left:
/// ours would misread them.
pub(super) fn check(directory: &Path) -> Result<Option<TableSize>, Error> {
    for (name, expected) in SHARED_MAPS {
        if let Some(found) = found(directory, name)?
            && found != expected
        {
            return Err(refusal(directory, name, found, expected));
        }
    }
    let Some(table) = found(directory, FLOWS)? else { return Ok(None) };
    let size = TableSize::of_buckets(table.entries);
    let expected = Layout::new::<Bucket>(MapType::Array, size.unwrap_or(TableSize::DEFAULT).buckets());
    if table == expected { Ok(size) } else { Err(refusal(directory, FLOWS, table, expected)) }
}

/// What a pinned map looks like, if it is there.
fn found(directory: &Path, name: &str) -> Result<Option<Layout>, Error> {
    let pin = directory.join(name);
    if !pin.exists() {
        return Ok(None);
    }
    let found = MapInfo::from_pin(&pin).and_then(|info| Layout::of(&info));
    found.map(Some).map_err(Error::new("open pinned map", pin.display()))
}

fn refusal(directory: &Path, name: &str, found: Layout, expected: Layout) -> Error {
    let why = format!(
        "another version of lbd left it ({found}, not {expected}): start that version once more and end it by SIGTERM \
         without --leave-attached, or remove the files in {}, which detaches it",
        directory.display()
    );
    Error::new("use pinned map", directory.join(name).display())(why)
}

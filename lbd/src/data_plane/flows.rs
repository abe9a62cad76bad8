//! The table of tracked flows, mapped: its words are read and cleared without a system call each.

use super::{Error, another, layout::FLOWS};
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use lb_ebpf::{
    flow::{Bucket, Entry, TableSize, Tick, WAYS},
    ring::RealId,
};
use nix::{
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    time::{ClockId, clock_gettime},
};
use std::{num::NonZeroUsize, path::Path, ptr::NonNull, slice};

/// A mapping of the table that the program reads and writes.
#[derive(Debug)]
pub struct FlowTable {
    buckets: NonNull<Bucket>,
    size: TableSize,
    map: MapData,
}

#[expect(unsafe_code, reason = "a mapping belongs to the process, and its words are atomic")]
// SAFETY: as the reason says; nothing in it belongs to a thread.
unsafe impl Send for FlowTable {}

impl FlowTable {
    /// Maps the table of a loaded object.
    ///
    /// # Errors
    /// The object has none, or the kernel refuses.
    pub(super) fn of(ebpf: &Ebpf) -> Result<Self, Error> {
        match ebpf.map(FLOWS) {
            Some(Map::Array(table)) => Self::map(table).map_err(Error::new("map", "the tracked flows")),
            _ => Err(Error::new("find map", FLOWS)("not in the object")),
        }
    }

    /// Maps a table that is pinned.
    pub(super) fn pinned(pin: &Path) -> Result<Self, Error> {
        let table = MapData::from_pin(pin).map_err(Error::new("open pinned map", pin.display()))?;
        Self::map(&table).map_err(Error::new("map", pin.display()))
    }

    fn map(table: &MapData) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let info = table.info()?;
        let size = TableSize::of_buckets(info.max_entries() as usize);
        let size = size.filter(|_| info.value_size() as usize == size_of::<Bucket>()).ok_or("it has another layout")?;
        let length = NonZeroUsize::new(size.bytes()).ok_or("it is empty")?;
        #[expect(unsafe_code, reason = "mapping memory")]
        // SAFETY: a new mapping, over nobody's memory, as long as the map is.
        let start = unsafe {
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mmap(None, length, access, MapFlags::MAP_SHARED, table.fd(), 0)
        }?;
        Ok(Self { buckets: start.cast(), size, map: another(table)? })
    }

    /// How large it is.
    #[must_use]
    pub fn size(&self) -> TableSize {
        self.size
    }

    /// The map.
    pub(super) fn kernel_map(&self) -> &MapData {
        &self.map
    }

    /// The bucket where a flow with this hash is, if anywhere.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "the number of a bucket of this size of table")]
    pub fn bucket(&self, hash: u64) -> &Bucket {
        &self.buckets()[self.size.bucket_index(hash)]
    }

    /// How many flows of a real have sent within each of these numbers of seconds, as far as ticks tell.
    #[must_use]
    pub fn of_real(&self, real: RealId, now: Tick, within_s: [u16; 2]) -> [u64; 2] {
        let entries = self.buckets().iter().flat_map(|bucket| (0..WAYS).map(|way| bucket.load(way)));
        entries.filter(|entry| entry.real() == real).fold([0; 2], |[a, b], entry| {
            let [in_a, in_b] = within_s.map(|seconds| u64::from(entry.lives(now, seconds)));
            [a + in_a, b + in_b]
        })
    }

    /// Puts the entry of a flow, whose hash is known as far as a table of the size `told` tells it, into each bucket where
    /// the flow may be.
    fn take_over(&self, entry: Entry, hash: u64, told: TableSize, now: Tick) {
        let buckets = (self.size.buckets() / told.buckets()).max(1);
        let first = self.size.bucket_index(hash);
        self.buckets().iter().skip(first).take(buckets).for_each(|bucket| bucket.take_over(hash, entry, now));
    }

    /// All buckets; the packet path writes to them meanwhile.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket] {
        #[expect(unsafe_code, reason = "a mapping as a slice")]
        // SAFETY: mapped until `self` is dropped, page-aligned, and any bits are buckets, of atomic words.
        unsafe {
            slice::from_raw_parts(self.buckets.as_ptr(), self.size.buckets())
        }
    }
}

impl Drop for FlowTable {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "unmapping memory")]
        // SAFETY: exactly what was mapped; what borrows from it is gone.
        let unmapped = unsafe { munmap(self.buckets.cast(), self.size.bytes()) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "the tracked flows stay mapped");
        }
    }
}

/// The table of a program that is about to be replaced by one whose table has another size.
#[derive(Debug)]
pub(super) struct Predecessor {
    table: FlowTable,
    /// Its entries when they were copied, in its order.
    copied: Vec<Entry>,
}

impl Predecessor {
    pub(super) fn new(table: FlowTable) -> Self {
        let copied = vec![Entry::default(); table.size.entries()];
        Self { table, copied }
    }

    /// Copies what is new since the last call. A packet may meanwhile have put a flow's entry into `heir`, before its own
    /// was copied.
    pub(super) fn copy_to(&mut self, heir: &FlowTable) -> Result<(), Error> {
        let (now, size) = (tick_now()?, self.table.size);
        let words = self.table.buckets().iter().enumerate();
        let words = words.flat_map(|(number, bucket)| (0..WAYS).map(move |way| (number, bucket.load(way))));
        for ((number, entry), copied) in words.zip(&mut self.copied) {
            if entry.is_some() && entry != *copied {
                heir.take_over(entry, entry.hash(number, size), size, now);
                *copied = entry;
            }
        }
        Ok(())
    }
}

/// The time as the packet path's entries tell it.
///
/// # Errors
/// The kernel has no such clock.
pub fn tick_now() -> Result<Tick, Error> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_err(Error::new("read", "the coarse clock"))?;
    let nanoseconds = now.tv_sec().unsigned_abs() * 1_000_000_000 + now.tv_nsec().unsigned_abs();
    Ok(Tick::of(nanoseconds))
}

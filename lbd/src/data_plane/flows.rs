//! The table of tracked flows, mapped: its words are read and cleared without a system call each.

use super::Error;
use aya::{
    Ebpf,
    maps::{Map, MapData},
};
use lb_ebpf::flow::{BUCKETS, Bucket, Tick};
use nix::{
    sys::mman::{MapFlags, ProtFlags, mmap, munmap},
    time::{ClockId, clock_gettime},
};
use std::{num::NonZeroUsize, ptr::NonNull, slice};

const LENGTH: NonZeroUsize = NonZeroUsize::new(BUCKETS * size_of::<Bucket>()).unwrap();

/// A mapping of the table that the program reads and writes.
#[derive(Debug)]
pub struct FlowTable {
    buckets: NonNull<Bucket>,
}

#[expect(unsafe_code, reason = "a mapping belongs to the process, and its words are atomic")]
// SAFETY: as the reason says; nothing in it belongs to a thread.
unsafe impl Send for FlowTable {}

impl FlowTable {
    /// Maps the table of a loaded object.
    ///
    /// # Errors
    /// The object has none, or the kernel refuses.
    pub fn of(ebpf: &Ebpf) -> Result<Self, Error> {
        match ebpf.map("FLOWS") {
            Some(Map::Array(table)) => Self::map(table).map_err(Error::new("map", "the tracked flows")),
            _ => Err(Error::new("find map", "FLOWS")("not in the object")),
        }
    }

    fn map(table: &MapData) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let info = table.info()?;
        if (info.value_size() as usize, info.max_entries() as usize) != (size_of::<Bucket>(), BUCKETS) {
            return Err("it has another layout".into());
        }
        #[expect(unsafe_code, reason = "mapping memory")]
        // SAFETY: a new mapping, over nobody's memory, as long as the map is.
        let start = unsafe {
            let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
            mmap(None, LENGTH, access, MapFlags::MAP_SHARED, table.fd(), 0)
        }?;
        Ok(Self { buckets: start.cast() })
    }

    /// All buckets; the packet path writes to them meanwhile.
    #[must_use]
    pub fn buckets(&self) -> &[Bucket] {
        #[expect(unsafe_code, reason = "a mapping as a slice")]
        // SAFETY: mapped until `self` is dropped, page-aligned, and any bits are buckets, of atomic words.
        unsafe {
            slice::from_raw_parts(self.buckets.as_ptr(), BUCKETS)
        }
    }
}

impl Drop for FlowTable {
    fn drop(&mut self) {
        #[expect(unsafe_code, reason = "unmapping memory")]
        // SAFETY: exactly what was mapped; what borrows from it is gone.
        let unmapped = unsafe { munmap(self.buckets.cast(), LENGTH.get()) };
        if let Err(error) = unmapped {
            tracing::warn!(%error, "the tracked flows stay mapped");
        }
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

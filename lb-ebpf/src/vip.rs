//! The table of VIPs: a bucket table that user space builds and swaps in whole.
//!
//! Turning away what is for no VIP is one bit of a bitmap; finding a VIP is at most four comparisons
//! in one 64-byte bucket. The multiplier is chosen by user space so that no bucket overflows.

use crate::{hash::HashKey, pod, ring::RingRef};

/// VIPs that can be configured; each needs an entry for its service, and one more for its address.
pub const MAX_VIPS: usize = 512;
/// Buckets of the table.
pub const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 11;
/// Entries a bucket: 64 bytes, one cache line.
pub const BUCKET_ENTRIES: usize = 4;
const BITMAP_WORDS: usize = 64;

/// Protocol number in a key that stands for "this address has a VIP", for ICMP and unknown ports.
pub const ANY_PROTOCOL: u8 = 255;

/// [`VipTable::flags`]: packets to a VIP's address for a port that no VIP has are passed, not dropped.
pub const UNMATCHED_PASS: u32 = 1;

/// What an entry is found by.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipKey(u64);

impl VipKey {
    /// Address and port in network byte order as they lie in the packet; port 0 stands for all ports.
    #[must_use]
    #[inline(always)]
    pub const fn new(address: u32, port: u16, protocol: u8) -> Self {
        // The top bit tells an entry from an empty place.
        Self(address as u64 | ((port as u64) << 32) | ((protocol as u64) << 48) | (1 << 63))
    }

    /// The address, as it lies in the packet.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are the address")]
    pub const fn address(self) -> u32 {
        self.0 as u32
    }

    /// The port in network byte order; 0: all ports.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "bits 32 to 47 are the port")]
    pub const fn port(self) -> u16 {
        (self.0 >> 32) as u16
    }

    /// The protocol's number, or [`ANY_PROTOCOL`].
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "bits 48 to 55 are the protocol")]
    pub const fn protocol(self) -> u8 {
        (self.0 >> 48) as u8
    }

    #[inline(always)]
    const fn bucket(self, multiplier: u32) -> usize {
        let address = self.address().wrapping_mul(0x9e37_79b1);
        let service = (self.0 >> 32) as u32;
        ((address ^ (address >> 15) ^ service).wrapping_mul(multiplier) >> (u32::BITS - BUCKET_BITS)) as usize
    }
}

/// One VIP (or one address that has VIPs) in the table.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VipEntry {
    /// What it is found by; all zero in an empty place.
    pub key: VipKey,
    /// Index of the VIP's counters, below [`MAX_VIPS`].
    pub vip: u16,
    /// The VIP's ring.
    pub ring: RingRef,
    /// How long a tracked flow may be silent and still keep its real, seconds.
    pub flow_idle_s: u16,
    /// Zero.
    pub reserved: u16,
}

/// No place for an entry with this multiplier: build again with another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketFull;

/// The whole table: the one value of an inner map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VipTable {
    /// Key of the flow hash.
    pub hash_key: HashKey,
    /// Odd multiplier of the bucket hash.
    pub multiplier: u32,
    /// [`UNMATCHED_PASS`].
    pub flags: u32,
    bitmap: [u64; BITMAP_WORDS],
    buckets: [[VipEntry; BUCKET_ENTRIES]; BUCKETS],
}

impl VipTable {
    /// A table without VIPs.
    #[must_use]
    #[expect(clippy::large_stack_arrays, reason = "128 KiB, built by user space and boxed")]
    pub const fn new(hash_key: HashKey, multiplier: u32, flags: u32) -> Self {
        let empty = VipEntry { key: VipKey(0), vip: 0, ring: RingRef::new(0, 0), flow_idle_s: 0, reserved: 0 };
        let buckets = [[empty; BUCKET_ENTRIES]; BUCKETS];
        Self { hash_key, multiplier: multiplier | 1, flags, bitmap: [0; BITMAP_WORDS], buckets }
    }

    /// Adds an entry; one with the same key is replaced.
    ///
    /// # Errors
    /// The key's bucket is full.
    pub fn insert(&mut self, entry: VipEntry) -> Result<(), BucketFull> {
        let bucket = self.buckets.get_mut(entry.key.bucket(self.multiplier)).ok_or(BucketFull)?;
        let place = bucket.iter_mut().find(|e| e.key == entry.key || e.key == VipKey(0)).ok_or(BucketFull)?;
        *place = entry;
        let (word, bit) = bitmap_position(entry.key.address());
        if let Some(word) = self.bitmap.get_mut(word) {
            *word |= bit;
        }
        Ok(())
    }

    /// False means that no VIP has this destination address; true that one may have it.
    #[must_use]
    #[inline(always)]
    pub fn may_have(&self, address: u32) -> bool {
        let (word, bit) = bitmap_position(address);
        self.bitmap.get(word).is_some_and(|word| word & bit != 0)
    }

    /// All entries, those of mere addresses included.
    pub fn entries(&self) -> impl Iterator<Item = &VipEntry> {
        self.buckets.iter().flatten().filter(|entry| entry.key != VipKey(0))
    }

    /// The entry of a key.
    #[must_use]
    #[inline(always)]
    pub fn find(&self, key: VipKey) -> Option<&VipEntry> {
        let [a, b, c, d] = self.buckets.get(key.bucket(self.multiplier))?;
        if a.key == key {
            Some(a)
        } else if b.key == key {
            Some(b)
        } else if c.key == key {
            Some(c)
        } else if d.key == key {
            Some(d)
        } else {
            None
        }
    }
}

/// Word and bit of an address in the bitmap of 4,096 bits.
#[inline(always)]
const fn bitmap_position(address: u32) -> (usize, u64) {
    let hash = address.wrapping_mul(0x85eb_ca6b);
    ((hash >> 26) as usize, 1 << ((hash >> 20) & 63))
}

const _: () = assert!(size_of::<VipEntry>() == 16 && size_of::<[VipEntry; BUCKET_ENTRIES]>() == 64);
const _: () = assert!(size_of::<VipTable>() == 40 + 8 + 8 * BITMAP_WORDS + 64 * BUCKETS);
pod!(VipEntry, VipTable);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_with_entries_finds_each_and_nothing_else() {
        let mut table = VipTable::new(HashKey::default(), 0x2545_f491, 0);
        let address = |n: u8| u32::from_ne_bytes([198, 19, 10, n]);
        for n in 1..=200 {
            let entry = VipEntry { key: VipKey::new(address(n), 80, 6), vip: u16::from(n), ..VipEntry::default() };
            table.insert(entry).unwrap();
        }
        for n in 1..=200 {
            assert!(table.may_have(address(n)));
            assert_eq!(table.find(VipKey::new(address(n), 80, 6)).unwrap().vip, u16::from(n));
            assert!(table.find(VipKey::new(address(n), 81, 6)).is_none());
            assert!(table.find(VipKey::new(address(n), 80, 17)).is_none());
        }
        assert_eq!(table.entries().count(), 200);
        let read_back = |e: &VipEntry| VipKey::new(e.key.address(), e.key.port(), e.key.protocol()) == e.key;
        assert!(table.entries().all(read_back));
        assert!(table.find(VipKey::new(address(201), 80, 6)).is_none());
    }

    #[test]
    fn bucket_with_more_than_its_places_reports_it() {
        let mut table = VipTable::new(HashKey::default(), 1, 0);
        let first = VipKey::new(7, 0, 6).bucket(1);
        let same_bucket = (0..=u16::MAX).map(|port| VipKey::new(7, port, 6)).filter(|k| k.bucket(1) == first).take(5);
        let results: Vec<_> = same_bucket.map(|key| table.insert(VipEntry { key, ..VipEntry::default() })).collect();
        assert_eq!(results, [Ok(()), Ok(()), Ok(()), Ok(()), Err(BucketFull)]);
    }
}

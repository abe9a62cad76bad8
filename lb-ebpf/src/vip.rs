//! The table of VIPs: a bucket table that user space builds and swaps in whole.
//!
//! Turning away what is for no VIP is one bit of a bitmap; finding a VIP is at most four comparisons
//! in one 64-byte bucket. The multiplier is chosen by user space so that no bucket overflows.

use crate::{
    hash::{Address, HashKey, flow_hash},
    net, pod,
    ring::{RingRef, hash_in_slot},
};
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// VIPs that can be configured; each needs an entry for its service, and one more for its address.
pub const MAX_VIPS: usize = 512;
/// Buckets of the table.
pub const BUCKETS: usize = 1 << BUCKET_BITS;
const BUCKET_BITS: u32 = 11;
/// Entries a bucket: 64 bytes, one cache line.
pub const BUCKET_ENTRIES: usize = 4;
const BITMAP_WORDS: usize = 64;
/// Places for IPv6 addresses: [`MAX_VIPS`], a power of two.
const ADDRESS_MASK: usize = MAX_VIPS - 1;

/// Protocol number in a key that stands for "this address has a VIP", for ICMP and unknown ports.
pub const ANY_PROTOCOL: u8 = 255;

/// [`VipTable::flags`]: packets to a VIP's address for a port that no VIP has are passed, not dropped.
pub const UNMATCHED_PASS: u32 = 1;

/// By what a VIP's flows are spread over its ring.
#[repr(u16)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HashBy {
    /// Addresses, ports and protocol.
    #[default]
    FiveTuple = 0,
    /// Addresses and protocol: a client stays with one real. With port 0, fragments go where their datagram goes.
    Source = 1,
    /// The same and the VIP's port: a client stays with one real for each port.
    SourcePort = 2,
}

impl HashBy {
    /// What of a packet's ports counts; `ports` is the first four bytes of the TCP or UDP header.
    #[must_use]
    #[inline(always)]
    pub const fn ports(self, ports: u32) -> u32 {
        match self {
            Self::FiveTuple => ports,
            Self::Source => 0,
            Self::SourcePort => ports & u32::from_ne_bytes([0, 0, 0xff, 0xff]),
        }
    }
}

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

    /// The same of an IPv6 address: `folded` is its [`VipTable::fold6`].
    #[must_use]
    #[inline(always)]
    pub const fn new6(folded: u32, port: u16, protocol: u8) -> Self {
        Self(Self::new(folded, port, protocol).0 | Self::IPV6)
    }

    const IPV6: u64 = 1 << 56;

    #[inline(always)]
    const fn is_ip6(self) -> bool {
        self.0 & Self::IPV6 != 0
    }

    /// The IPv4 address as it lies in the packet, or the folded IPv6 address.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low 32 bits are the address")]
    pub const fn address(self) -> u32 {
        self.0 as u32
    }

    /// The port in network byte order; 0: all ports.
    #[must_use]
    #[inline(always)]
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
    /// A [`HashBy`].
    pub hash: u16,
}

impl VipEntry {
    /// By what its flows are spread; an unknown number counts as [`HashBy::FiveTuple`].
    #[must_use]
    #[inline(always)]
    pub const fn hash_by(&self) -> HashBy {
        match self.hash {
            1 => HashBy::Source,
            2 => HashBy::SourcePort,
            _ => HashBy::FiveTuple,
        }
    }

    /// The hash of a flow to this VIP: its high bits choose the slot, all of it finds the flow if it is tracked.
    ///
    /// Flows of one client that share a slot are tracked one by one. Only the datagrams of a VIP for all ports that
    /// hashes on addresses are one flow for each client: fragments have no ports to tell them apart.
    #[must_use]
    #[inline(always)]
    pub fn flow_hash<A: Address>(&self, key: &HashKey, source: A, destination: A, ports: u32, protocol: u8) -> u64 {
        let hash = |ports| flow_hash(key, source, destination, ports, protocol);
        let by = self.hash_by();
        if by == HashBy::FiveTuple {
            return hash(ports);
        }
        let spread = hash(by.ports(ports));
        if self.takes_fragments() && protocol == net::UDP { spread } else { hash_in_slot(spread, hash(ports)) }
    }

    /// Whether its fragments can go where their datagram goes.
    #[must_use]
    #[inline(always)]
    pub fn takes_fragments(&self) -> bool {
        self.key.port() == 0 && self.hash_by() == HashBy::Source
    }
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
    /// Whole IPv6 addresses, at the indexes of their VIPs.
    addresses6: [[u32; 4]; MAX_VIPS],
    buckets: [[VipEntry; BUCKET_ENTRIES]; BUCKETS],
}

impl VipTable {
    /// A table without VIPs.
    #[must_use]
    #[expect(clippy::large_stack_arrays, reason = "128 KiB, built by user space and boxed")]
    pub const fn new(hash_key: HashKey, multiplier: u32, flags: u32) -> Self {
        let empty = VipEntry { key: VipKey(0), vip: 0, ring: RingRef::new(0, 0), flow_idle_s: 0, hash: 0 };
        let buckets = [[empty; BUCKET_ENTRIES]; BUCKETS];
        let (bitmap, addresses6) = ([0; BITMAP_WORDS], [[0; 4]; MAX_VIPS]);
        Self { hash_key, multiplier: multiplier | 1, flags, bitmap, addresses6, buckets }
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

    /// Adds an entry for an IPv6 address, as it lies in the packet, whose key is [`VipKey::new6`]'s; one with the same
    /// key and address is replaced. The entry's `vip` must be the index of a VIP of this address.
    ///
    /// # Errors
    /// The key's bucket is full, or another address folds to the same key.
    pub fn insert6(&mut self, address: [u32; 4], entry: VipEntry) -> Result<(), BucketFull> {
        let holder = self.find(entry.key).map(|holder| holder.vip);
        if holder.is_some_and(|holder| self.addresses6.get(usize::from(holder)) != Some(&address)) {
            return Err(BucketFull);
        }
        *self.addresses6.get_mut(usize::from(entry.vip)).ok_or(BucketFull)? = address;
        self.insert(entry)
    }

    /// An IPv6 address, as it lies in the packet, as 32 bits. It depends on the multiplier, so that two addresses that
    /// collide in one table do not in another.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is taken")]
    pub const fn fold6(&self, address: [u32; 4]) -> u32 {
        let [a, b, c, d] = address;
        let fold = mix(mix(self.multiplier as u64, a as u64 | ((b as u64) << 32)), c as u64 | ((d as u64) << 32));
        fold as u32
    }

    /// The address of an entry.
    #[must_use]
    pub fn address(&self, entry: &VipEntry) -> IpAddr {
        if entry.key.is_ip6() {
            let words = self.addresses6.get(usize::from(entry.vip)).copied().unwrap_or_default();
            let [a, b, c, d] = words.map(u32::from_be);
            let bits = [a, b, c, d].into_iter().fold(0, |bits, word| bits << 32 | u128::from(word));
            IpAddr::V6(Ipv6Addr::from_bits(bits))
        } else {
            IpAddr::V4(Ipv4Addr::from(entry.key.address().to_ne_bytes()))
        }
    }

    /// The entry of an IPv6 address, as it lies in the packet, whose fold is `folded`.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::indexing_slicing, reason = "masked to the number of places")]
    pub fn find6(&self, address: [u32; 4], folded: u32, port: u16, protocol: u8) -> Option<&VipEntry> {
        let found = self.find(VipKey::new6(folded, port, protocol))?;
        (self.addresses6[found.vip as usize & ADDRESS_MASK] == address).then_some(found)
    }

    /// False means that no VIP has this destination address (IPv6: its fold); true that one may have it.
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

/// One step of [`VipTable::fold6`].
#[inline(always)]
const fn mix(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(0xd6e8_feb8_6659_fd93);
    product ^ (product >> 32)
}

/// Word and bit of an address in the bitmap of 4,096 bits.
#[inline(always)]
const fn bitmap_position(address: u32) -> (usize, u64) {
    let hash = address.wrapping_mul(0x85eb_ca6b);
    ((hash >> 26) as usize, 1 << ((hash >> 20) & 63))
}

const _: () = assert!(size_of::<VipEntry>() == 16 && size_of::<[VipEntry; BUCKET_ENTRIES]>() == 64);
const _: () = assert!(MAX_VIPS.is_power_of_two());
const _: () =
    assert!(size_of::<VipTable>() == size_of::<HashKey>() + 8 + 8 * BITMAP_WORDS + 16 * MAX_VIPS + 64 * BUCKETS);
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

    #[test]
    fn table_with_ip6_entries_finds_each_by_its_whole_address() {
        let mut table = VipTable::new(HashKey::default(), 0x2545_f491, 0);
        let address = |n: u16| [0x2001_0db8_u32.to_be(), 0, 0, u32::from(n).to_be()];
        for n in 0..200 {
            let key = VipKey::new6(table.fold6(address(n)), 80, 6);
            table.insert6(address(n), VipEntry { key, vip: n, ..VipEntry::default() }).unwrap();
        }
        for n in 0..200 {
            let folded = table.fold6(address(n));
            assert!(table.may_have(folded));
            let entry = table.find6(address(n), folded, 80, 6).unwrap();
            assert_eq!(entry.vip, n);
            assert_eq!(table.address(entry).to_string(), Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n).to_string());
            assert!(table.find6(address(n + 200), folded, 80, 6).is_none(), "another address with the same fold");
            assert!(table.find(VipKey::new(folded, 80, 6)).is_none(), "an IPv4 address like the fold");
        }
    }

    #[test]
    fn address_that_folds_like_another_is_refused_and_folds_otherwise_with_another_multiplier() {
        let (one, other) = ([1, 2, 3, 4], [5, 6, 7, 8]);
        let mut table = VipTable::new(HashKey::default(), 1, 0);
        let key = VipKey::new6(table.fold6(one), 80, 6);
        table.insert6(one, VipEntry { key, vip: 0, ..VipEntry::default() }).unwrap();
        assert_eq!(table.insert6(other, VipEntry { key, vip: 1, ..VipEntry::default() }), Err(BucketFull));
        let with_another = VipTable::new(HashKey::default(), 3, 0);
        assert_ne!(table.fold6(one), with_another.fold6(one));
    }
}

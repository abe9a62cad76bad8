//! Builds the table of VIPs that the packet path reads.

use crate::config::{Protocol, VipKey, VipMiss};
use lb_ebpf::{
    hash::{HashKey, splitmix64},
    net,
    ring::RingRef,
    vip::{ANY_PROTOCOL, BucketFull, HashBy, UNMATCHED_PASS, VipEntry, VipKey as Key, VipTable},
};
use std::{collections::BTreeMap, net::IpAddr, time::Duration};

/// A VIP and the indexes that the packet path knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its address, protocol and port.
    pub key: VipKey,
    /// Index of its ring and of its counters.
    pub index: u16,
    /// Order of its ring.
    pub ring_order: u8,
    /// How long a tracked flow may be silent.
    pub flow_idle: Duration,
    /// By what flows are spread over the ring.
    pub hash: HashBy,
}

/// The table of these VIPs. The number of VIPs is bounded by the configuration, so a multiplier without
/// overflow is found after a few tries: at the bound one try succeeds with a probability above a half.
#[must_use]
pub fn build(rows: &[Row], seed: [u8; 16], unmatched: VipMiss) -> Box<VipTable> {
    let hash_key = HashKey::from_seed(seed);
    let flags = if unmatched == VipMiss::Pass { UNMATCHED_PASS } else { 0 };
    let mut state = 0;
    loop {
        #[expect(clippy::cast_possible_truncation, reason = "any 32 bits will do")]
        let multiplier = splitmix64(&mut state) as u32;
        let mut table = Box::new(VipTable::new(hash_key, multiplier, flags));
        if fill(&mut table, rows).is_ok() {
            return table;
        }
    }
}

/// A time in whole seconds, rounded up. No configuration admits one beyond 16 bits.
#[must_use]
pub fn seconds(flow_idle: Duration) -> u16 {
    u16::try_from(flow_idle.as_millis().div_ceil(1000)).unwrap_or(u16::MAX)
}

fn fill(table: &mut VipTable, rows: &[Row]) -> Result<(), BucketFull> {
    rows.iter().try_for_each(|row| add(table, row))
}

/// Adds a VIP: an entry for its service and one for its address.
fn add(table: &mut VipTable, row: &Row) -> Result<(), BucketFull> {
    let protocol = match row.key.protocol {
        Protocol::Tcp => net::TCP,
        Protocol::Udp => net::UDP,
    };
    let flow_idle_s = seconds(row.flow_idle);
    let ring = RingRef::new(row.index, row.ring_order);
    // How a service hashes is not how its address does: fragments that name the address's key are nobody's.
    let hash = |protocol| if protocol == ANY_PROTOCOL { HashBy::FiveTuple } else { row.hash };
    let entry = |key: Key| VipEntry { key, vip: row.index, ring, flow_idle_s, hash: hash(key.protocol()) as u16 };
    let keys = [(row.key.port.to_be(), protocol), (0, ANY_PROTOCOL)];
    match row.key.address {
        IpAddr::V4(address) => {
            let address = u32::from_ne_bytes(address.octets());
            keys.into_iter().try_for_each(|(port, protocol)| table.insert(entry(Key::new(address, port, protocol))))
        }
        IpAddr::V6(address) => {
            let [a, b, c, d] = *address.octets().as_chunks().0 else { return Err(BucketFull) };
            let address = [a, b, c, d].map(u32::from_ne_bytes);
            let folded = table.fold6(address);
            keys.into_iter()
                .try_for_each(|(port, protocol)| table.insert6(address, entry(Key::new6(folded, port, protocol))))
        }
    }
}

/// The VIPs of a table and the entry of each.
#[must_use]
pub fn read(table: &VipTable) -> BTreeMap<VipKey, VipEntry> {
    let services = table.entries().filter_map(|entry| {
        let protocol = match entry.key.protocol() {
            net::TCP => Protocol::Tcp,
            net::UDP => Protocol::Udp,
            _ => return None,
        };
        Some((VipKey { address: table.address(entry), protocol, port: u16::from_be(entry.key.port()) }, *entry))
    });
    services.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    fn rows(address: impl Fn(u16) -> IpAddr) -> Vec<Row> {
        let key = |n| VipKey { address: address(n), protocol: Protocol::Udp, port: 53 };
        let flow_idle = Duration::from_mins(15);
        (0..512).map(|n| Row { key: key(n), index: n, ring_order: 1, flow_idle, hash: HashBy::SourcePort }).collect()
    }

    #[test]
    fn build_with_the_most_vips_finds_each() {
        let address = |n: u16| Ipv4Addr::from_bits(0xc613_0000 + u32::from(n));
        let rows = rows(|n| address(n).into());
        let table = build(&rows, [3; 16], VipMiss::Drop);
        for n in 0..512 {
            let address = u32::from_ne_bytes(address(n).octets());
            let found = table.find(Key::new(address, 53_u16.to_be(), net::UDP)).unwrap();
            assert_eq!(
                (found.vip, found.ring, found.flow_idle_s, found.hash_by()),
                (n, RingRef::new(n, 1), 900, HashBy::SourcePort)
            );
            assert!(table.find(Key::new(address, 0, ANY_PROTOCOL)).is_some());
        }
        let indexes = read(&table).into_iter().map(|(key, entry)| (key, entry.vip));
        assert!(indexes.eq(rows.iter().map(|row| (row.key, row.index))));
    }

    #[test]
    fn build_with_the_most_ip6_vips_reads_back() {
        let rows = rows(|n| Ipv6Addr::new(0x2001, 0xdb8, 0, n, 0, 0, 0, 1).into());
        let table = build(&rows, [3; 16], VipMiss::Drop);
        let indexes = read(&table).into_iter().map(|(key, entry)| (key, entry.vip));
        assert!(indexes.eq(rows.iter().map(|row| (row.key, row.index))));
    }
}

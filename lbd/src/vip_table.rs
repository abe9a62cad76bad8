//! Builds the table of VIPs that the packet path reads.

use crate::config::{Protocol, VipKey, VipMiss};
use lb_ebpf::{
    hash::{HashKey, splitmix64},
    net,
    ring::RingRef,
    vip::{ANY_PROTOCOL, BucketFull, UNMATCHED_PASS, VipEntry, VipKey as Key, VipTable},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

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

fn fill(table: &mut VipTable, rows: &[Row]) -> Result<(), BucketFull> {
    for row in rows {
        // The packet path's table is IPv4's; the configuration admits no other family yet.
        let IpAddr::V4(address) = row.key.address else { continue };
        let address = u32::from_ne_bytes(address.octets());
        let protocol = match row.key.protocol {
            Protocol::Tcp => net::TCP,
            Protocol::Udp => net::UDP,
        };
        let flow_idle = row.flow_idle.as_millis().div_ceil(1000);
        let flow_idle_s = u16::try_from(flow_idle).unwrap_or(u16::MAX);
        let service = Key::new(address, row.key.port.to_be(), protocol);
        let ring = RingRef::new(row.index, row.ring_order);
        table.insert(VipEntry { key: service, vip: row.index, ring, flow_idle_s, reserved: 0 })?;
        table.insert(VipEntry { key: Key::new(address, 0, ANY_PROTOCOL), ..VipEntry::default() })?;
    }
    Ok(())
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
        let address = Ipv4Addr::from(entry.key.address().to_ne_bytes());
        Some((VipKey { address: address.into(), protocol, port: u16::from_be(entry.key.port()) }, *entry))
    });
    services.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn build_with_the_most_vips_finds_each() {
        let address = |n: u16| Ipv4Addr::from_bits(0xc613_0000 + u32::from(n));
        let key = |n| VipKey { address: address(n).into(), protocol: Protocol::Udp, port: 53 };
        let rows: Vec<_> = (0..512)
            .map(|n| Row { key: key(n), index: n, ring_order: 1, flow_idle: Duration::from_mins(15) })
            .collect();
        let table = build(&rows, [3; 16], VipMiss::Drop);
        for n in 0..512 {
            let address = u32::from_ne_bytes(address(n).octets());
            let found = table.find(Key::new(address, 53_u16.to_be(), net::UDP)).unwrap();
            assert_eq!((found.vip, found.ring, found.flow_idle_s), (n, RingRef::new(n, 1), 900));
            assert!(table.find(Key::new(address, 0, ANY_PROTOCOL)).is_some());
        }
        let indexes = read(&table).into_iter().map(|(key, entry)| (key, entry.vip));
        assert!(indexes.eq(rows.iter().map(|row| (row.key, row.index))));
    }
}

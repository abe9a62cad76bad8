//! What the bench objects (`src/bin/bench_packet`, `src/bin/bench_wire.rs`) and the benches that run them agree on.

use crate::pod;

/// Source of the packets that `bench_wire` generates, 198.18.10.10, as it lies in the packet.
pub const WIRE_SOURCE: u32 = u32::from_ne_bytes([198, 18, 10, 10]);
/// Where `bench_wire` counts what it generates.
pub const WIRE_GENERATED: u32 = 0;
/// Where it counts what ends in its sink.
pub const WIRE_ENDED: u32 = 1;
/// Packets in one run of a bench program: with one, the run itself would cost as much as the packet.
pub const PACKETS_PER_RUN: u32 = 8;

/// Which packets a bench program makes, and how many it has made.
///
/// Packet `n` belongs to flow `n × stride mod flows`: an odd `stride` visits each of them once before any
/// again, in an order of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets made so far.
    pub packets: u64,
    /// Odd.
    pub stride: u32,
    /// Number of flows, a power of two, less one.
    pub flow_mask: u32,
    /// Number of VIPs, a power of two up to 128, less one: flows go to them in turn.
    pub vip_mask: u32,
    /// Address of the first VIP as it lies in the packet; each next one is one higher in the last byte.
    pub destination: u32,
    /// Destination port as it lies in the packet's third and fourth byte of the TCP or UDP header.
    pub ports: u32,
    /// Zero.
    pub reserved: u32,
}

/// Addresses and ports of a packet, as they lie in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// Source address.
    pub source: u32,
    /// Destination address.
    pub destination: u32,
    /// Source port, destination port.
    pub ports: u32,
}

/// The address that stands for one of a [`Tuple`] in packets of IPv6, as it lies in the packet.
#[must_use]
#[inline(always)]
pub const fn address6(address: u32) -> [u32; 4] {
    [0x2001_0db8_u32.to_be(), 0, 0, address]
}

impl Traffic {
    /// The packet with this number. Every flow has a source address of its own.
    #[must_use]
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "numbers wrap after 2³² packets")]
    pub const fn tuple(&self, number: u64) -> Tuple {
        let flow = (number as u32).wrapping_mul(self.stride) & self.flow_mask;
        Tuple {
            source: flow.wrapping_mul(0x9e37_79b1) ^ u32::from_ne_bytes([198, 18, 10, 10]),
            destination: self.destination + ((flow & self.vip_mask) << 24),
            ports: self.ports | (flow & 0xffff),
        }
    }
}

const _: () = assert!(size_of::<Traffic>() == 32);
pod!(Traffic);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn tuples_of_one_turn_are_distinct_and_go_to_every_vip() {
        let traffic = Traffic { stride: 0x9e37_79b1, flow_mask: 0xffff, vip_mask: 15, ..Traffic::default() };
        let turn: HashSet<_> = (0..=0xffff).map(|n| traffic.tuple(n)).collect();
        assert_eq!(turn.len(), 0x10000);
        assert_eq!((0x10000..0x20000).map(|n| traffic.tuple(n)).collect::<HashSet<_>>(), turn);
        assert_eq!(turn.iter().map(|tuple| tuple.destination).collect::<HashSet<_>>().len(), 16);
    }
}

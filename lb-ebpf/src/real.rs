//! A real as the packet path sees it: the 34 bytes that are put in front of its packets, ready made.

use crate::{net, pod, ring::RealId};
use core::net::Ipv4Addr;

/// Entries of the map of reals; index 0 is never a real.
pub const MAX_REALS: usize = 4096;

/// Established TCP flows may go to it (it is up, or only its port is closed, or it is draining).
pub const SERVES_TCP: u32 = 1;
/// UDP flows that it already has may go to it.
pub const SERVES_UDP: u32 = 2;

/// Outer TTL (RFC 2003 §3.1 leaves it to the encapsulator; 64 is the RFC 1700 default).
const OUTER_TTL: u8 = 64;

/// How to reach a real at layer 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Interface the packet leaves by.
    pub ifindex: u32,
    /// MTU of that interface, bytes of IP packet.
    pub mtu: u16,
    /// MAC address of that interface.
    pub source_mac: [u8; 6],
    /// MAC address of the neighbour.
    pub destination_mac: [u8; 6],
}

/// One real. All zero: an index that is not in use.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RealEntry {
    /// Bytes 0 to 31 of Ethernet and outer IPv4 header, as they lie in memory.
    pub head: [u64; 4],
    /// Bytes 32 and 33.
    pub tail: u16,
    /// Largest outer packet, bytes from the outer IPv4 header; 0 while there is no next hop.
    pub mtu: u16,
    /// Interface the packet leaves by.
    pub ifindex: u32,
    /// Sum of the outer header's 16-bit words with ToS, length, ID, DF and checksum zero, not folded.
    pub header_sum: u32,
    /// [`SERVES_TCP`], [`SERVES_UDP`].
    pub serves: u32,
    reserved: [u64; 2],
}

impl RealEntry {
    /// A real that is encapsulated to with IPIP. Without a next hop its packets are dropped, and counted.
    #[must_use]
    pub fn ipip(source: Ipv4Addr, real: Ipv4Addr, next_hop: Option<&NextHop>, serves: u32) -> Self {
        let Some(hop) = next_hop else {
            return Self { serves, ..Self::default() };
        };
        let mut ip = [0; net::IPV4_LEN];
        ip[0] = net::VERSION_IHL;
        ip[8] = OUTER_TTL;
        ip[9] = net::IPIP;
        ip[12..16].copy_from_slice(&source.octets());
        ip[16..20].copy_from_slice(&real.octets());
        let mut bytes = [0; 34];
        bytes[0..6].copy_from_slice(&hop.destination_mac);
        bytes[6..12].copy_from_slice(&hop.source_mac);
        bytes[12..14].copy_from_slice(&net::ETHERTYPE_IPV4.to_ne_bytes());
        bytes[14..34].copy_from_slice(&ip);
        Self {
            head: [word(&bytes, 0), word(&bytes, 8), word(&bytes, 16), word(&bytes, 24)],
            tail: u16::from_ne_bytes([bytes[32], bytes[33]]),
            mtu: hop.mtu,
            ifindex: hop.ifindex,
            header_sum: net::sum(&ip),
            serves,
            reserved: [0; 2],
        }
    }
}

fn word(bytes: &[u8; 34], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

/// Whether an id can be a real's.
#[must_use]
pub const fn is_valid(id: RealId) -> bool {
    id != 0 && (id as usize) < MAX_REALS
}

const _: () = assert!(size_of::<RealEntry>() == 64 && core::mem::offset_of!(RealEntry, reserved) == 48);
pod!(RealEntry);

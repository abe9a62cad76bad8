//! What the capture of probe replies (`src/bin/probe_capture.rs`) and the prober agree on.

use core::net::IpAddr;

/// Packets are handed up from their IP header on, at most so many bytes: a captured reply needs 60 + 60 (IPv4) or
/// 40 + 8 + 60 (IPv6, a first fragment), an ICMP error 20 + 8 + 60 + 8 or 40 + 8 + 40 + 8.
pub const SNAP: usize = 192;

/// In [`Watch`]: replies of `remote` to `local` are ours, if their port or ICMP identifier is.
pub const INNER: u32 = 1;

/// In [`Watch`]: `local` sends tunnel packets to `remote`; ICMP errors about these are evidence.
pub const OUTER: u32 = 2;

/// Key of the map `WATCH`: two addresses of one family, IPv4 ones mapped into IPv6 (RFC 4291, 2.5.5.2), so that one map
/// serves both. Mapped addresses do not travel in IPv6 headers; should one, it is taken for the IPv4 address here, and
/// user space finds that it is no answer. The value is a set of [`INNER`] and [`OUTER`]. Aligned, as the verifier wants of
/// whatever a program keeps on its stack.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Watch {
    /// Our address; of outer sources that are a prefix, the first: the rest are found by the global `HOST_MASK`, in which
    /// user space sets the bits, as they stand in an IPv4 header, that the program is to leave out of account in [`OUTER`].
    pub local: [u8; 16],
    /// The target's (inner) or the real's (outer).
    pub remote: [u8; 16],
}

impl Watch {
    /// What `remote` sends to `local`.
    #[must_use]
    pub const fn new(local: IpAddr, remote: IpAddr) -> Self {
        const fn octets(address: IpAddr) -> [u8; 16] {
            match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            }
        }
        Self { local: octets(local), remote: octets(remote) }
    }
}

/// The global `PORTS`: source ports and ICMP identifiers that are ours, both ends included. Host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ports {
    /// The lowest.
    pub first: u16,
    /// The highest.
    pub last: u16,
}

/// An item of the ring buffer `CAPTURED`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Captured {
    /// When the packet arrived: `CLOCK_MONOTONIC`, nanoseconds.
    pub at: u64,
    /// How many of `bytes` are the packet's; the rest is undefined.
    pub len: u32,
    /// Zero.
    pub reserved: u32,
    /// The packet from its IP header on.
    pub bytes: [u8; SNAP],
}

/// The only element of the per-CPU array `COUNTERS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct CaptureCounters {
    /// TCP and UDP replies handed up and dropped.
    pub taken: u64,
    /// ICMP handed up and passed on.
    pub passed: u64,
    /// Packets left to the kernel because the ring was full.
    pub ring_full: u64,
    /// Packets left to the kernel because they were shorter than their header says.
    pub truncated: u64,
}

const _: () = {
    assert!(size_of::<Watch>() == 32);
    assert!(size_of::<Ports>() == 4);
    assert!(size_of::<Captured>() == 16 + SNAP && align_of::<Captured>() == 8);
    assert!(size_of::<CaptureCounters>() == 32);
};

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya's marker for map types")]
    use super::{CaptureCounters, Ports, Watch};

    // SAFETY: `repr(C)`, integers only, no padding (sizes asserted above), every bit pattern valid.
    unsafe impl aya::Pod for Watch {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Ports {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CaptureCounters {}
}

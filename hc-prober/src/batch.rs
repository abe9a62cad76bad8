//! Packets on their way to the socket: one buffer for many.

use std::{net::IpAddr, ops::Range};

use crate::{
    codec::{Inner, encode},
    ends::Ends,
};

/// Which probe a packet is: a check and the number of its probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeId {
    /// The check.
    pub check: u32,
    /// The probe.
    pub serial: u32,
}

/// Packets to be sent, in order.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    packets: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    range: Range<usize>,
    destination: IpAddr,
    probe: Option<ProbeId>,
}

/// One packet of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing<'a> {
    /// From the outermost IP header on.
    pub bytes: &'a [u8],
    /// Where that header goes.
    pub destination: IpAddr,
    /// The probe whose result depends on it; `None` for RSTs.
    pub probe: Option<ProbeId>,
}

impl Batch {
    /// Appends a packet; false if there is no such: see [`encode`].
    pub fn push(&mut self, outer: Option<Ends>, inner: &Inner<'_>, probe: Option<ProbeId>) -> bool {
        let start = self.bytes.len();
        let destination = outer.unwrap_or(inner.ends).destination();
        let encoded = encode(outer, inner, &mut self.bytes).is_some();
        if encoded {
            self.packets.push(Entry { range: start..self.bytes.len(), destination, probe });
        }
        encoded
    }

    /// Forgets all packets, keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.packets.clear();
    }

    /// Whether there is nothing to send.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// The packets in order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Outgoing<'_>> {
        self.packets.iter().map(|entry| Outgoing {
            bytes: self.bytes.get(entry.range.clone()).unwrap_or_default(),
            destination: entry.destination,
            probe: entry.probe,
        })
    }
}

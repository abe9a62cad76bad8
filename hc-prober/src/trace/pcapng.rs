//! Traces as a file that Wireshark and tshark read: <https://www.ietf.org/archive/id/draft-ietf-opsawg-pcapng-04.html>.

use std::{
    borrow::Cow,
    io::{self, Write},
    time::{Duration, SystemTime},
};

use pcap_file::{
    DataLink, PcapError,
    pcapng::{
        PcapNgWriter,
        blocks::{
            enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption},
            interface_description::{InterfaceDescriptionBlock, InterfaceDescriptionOption},
        },
    },
};

use super::{Record, SNAP, Trace};
use crate::time::Monotonic;

/// `if_tsresol`: nanoseconds, which is what the library writes.
const NANOSECONDS: u8 = 9;

/// `epb_flags`: the direction, in its lowest two bits.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// Writes the packets in order of time, each with its comment; each check is an interface. `wall` is the time of day then.
///
/// # Errors
/// Those of `to`.
pub fn write(traces: &[Trace], wall: impl Fn(Monotonic) -> SystemTime, to: impl Write) -> io::Result<()> {
    let mut writer = PcapNgWriter::new(to).map_err(io_error)?;
    for trace in traces {
        let name = format!("{} through {}", trace.key, trace.key.real);
        let block = InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            snaplen: u32::try_from(SNAP).unwrap_or(0),
            options: vec![
                InterfaceDescriptionOption::IfName(Cow::Owned(name)),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        writer.write_pcapng_block(block).map_err(io_error)?;
    }
    let mut packets: Vec<(u32, &Record)> = (0..)
        .zip(traces)
        .flat_map(|(interface, trace)| trace.records.iter().map(move |record| (interface, record)))
        .collect();
    packets.sort_by_key(|(_, record)| record.at);
    for (interface, record) in packets {
        writer.write_pcapng_block(packet(interface, record, wall(record.at))).map_err(io_error)?;
    }
    Ok(())
}

fn packet(interface: u32, record: &Record, at: SystemTime) -> EnhancedPacketBlock<'_> {
    EnhancedPacketBlock {
        interface_id: interface,
        timestamp: at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO),
        original_len: u32::try_from(record.len).unwrap_or(u32::MAX),
        data: Cow::Borrowed(&record.bytes),
        options: vec![
            EnhancedPacketOption::Comment(Cow::Borrowed(&record.comment)),
            EnhancedPacketOption::Flags(if record.received { INBOUND } else { OUTBOUND }),
        ],
    }
}

fn io_error(error: PcapError) -> io::Error {
    match error {
        PcapError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

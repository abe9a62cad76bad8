//! Reads captures: pcap in either byte order, with microseconds or nanoseconds, and pcapng. What a capture claims is
//! not believed: memory is bounded, and whatever is damaged is an error that says where.

use pcap_parser::{
    Block, EnhancedPacketBlock, InterfaceDescriptionBlock, LegacyPcapBlock, Linktype, OptionCode, PcapBlockOwned,
    PcapError, PcapHeader, PcapNGOption, SimplePacketBlock, create_reader, traits::PcapReaderIterator,
};
use std::{
    fs::File,
    io::{self, ErrorKind, Read},
    path::Path,
    sync::{Arc, OnceLock},
    time::Duration,
};

/// The longest record that is taken, in bytes. Packets have 256 KiB at most, but the other blocks of a pcapng file may
/// be longer.
const LONGEST_RECORD: usize = 16 << 20;
/// The memory for reading, in bytes, until a record needs more.
const USUAL_BUFFER: usize = 1 << 19;
/// The most interfaces in a section of a pcapng file.
const MOST_INTERFACES: usize = 1 << 16;
/// Type of the Packet Block, which pcapng had before the Enhanced Packet Block.
const OBSOLETE_PACKET_BLOCK: u32 = 2;
const MICROSECONDS: u128 = 1_000_000;
const NANOSECONDS: u128 = 1_000_000_000;

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// When it was captured, since the epoch; zero where the capture does not say.
    pub at: Duration,
    /// Its length on the wire, in bytes.
    pub length: u32,
    /// What was captured of it.
    pub data: Vec<u8>,
}

/// Why a capture cannot be read, or not to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The file, not what is in it.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It is empty.
    #[error("the file is empty")]
    Empty,
    /// It does not begin as a capture does.
    #[error("this is no capture: neither a pcap nor a pcapng file begins like it")]
    NotACapture,
    /// It ends inside a header, packet or block.
    #[error("{place}: the capture is cut short here, or damaged")]
    CutShort {
        /// Where.
        place: Place,
    },
    /// A header, packet or block that contradicts the format.
    #[error("{place}: {what}")]
    Damaged {
        /// Where.
        place: Place,
        /// What is wrong.
        what: Damage,
    },
}

/// Where in a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Packets before it.
    pub packets: u64,
    /// Bytes before the record.
    pub offset: u64,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "after packet {}, at byte {}", self.packets, self.offset)
    }
}

/// What is wrong with a record, or beyond what can be simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Packets that are not Ethernet frames.
    #[error("link type {0}: only Ethernet (link type 1) can be simulated")]
    NotEthernet(i32),
    /// A record beyond 16 MiB.
    #[error("a record that claims to be longer than {} bytes", LONGEST_RECORD)]
    TooLong,
    /// A block that contradicts itself.
    #[error("the record contradicts the format")]
    Malformed,
    /// A packet of an interface that no block before it describes.
    #[error("a packet of interface {0}, which the capture does not describe")]
    NoInterface(u32),
    /// More interfaces than a capture sensibly has: 65,536.
    #[error("more than {} interfaces", MOST_INTERFACES)]
    TooManyInterfaces,
    /// A packet in a form that is read no more.
    #[error("an obsolete Packet Block (type 2): convert the capture, for example with editcap")]
    Obsolete,
}

/// The frames of a capture, in its order. Nothing comes after an error.
pub struct Capture {
    reader: Box<dyn PcapReaderIterator + Send>,
    /// What kept the reader from reading.
    failure: Arc<OnceLock<io::Error>>,
    layout: Layout,
    buffer: usize,
    packets: u64,
    ended: bool,
}

impl Capture {
    /// Opens a capture file.
    ///
    /// # Errors
    /// The file cannot be read, or does not begin as a capture does.
    pub fn open(path: &Path) -> Result<Self, CaptureError> {
        Self::new(File::open(path)?)
    }

    /// Begins to read a capture.
    ///
    /// # Errors
    /// It cannot be read, or does not begin as a capture does.
    pub fn new(source: impl Read + Send + 'static) -> Result<Self, CaptureError> {
        let failure = Arc::new(OnceLock::new());
        let source = Source { inner: source, failure: Arc::clone(&failure) };
        match create_reader(USUAL_BUFFER, source) {
            Ok(reader) => {
                let (layout, buffer) = (Layout::default(), USUAL_BUFFER);
                Ok(Self { reader, failure, layout, buffer, packets: 0, ended: false })
            }
            Err(PcapError::Eof) => Err(CaptureError::Empty),
            Err(PcapError::ReadError) => Err(unreadable(&failure)),
            Err(PcapError::Incomplete(_)) => Err(CaptureError::CutShort { place: Place { packets: 0, offset: 0 } }),
            Err(_) => Err(CaptureError::NotACapture),
        }
    }

    /// Reads on to the next frame; `None` at the end.
    fn read(&mut self) -> Result<Option<Frame>, CaptureError> {
        loop {
            let place = self.place();
            let damaged = |what| CaptureError::Damaged { place, what };
            match self.reader.next() {
                Ok((length, block)) => {
                    let frame = self.layout.read(block).map_err(damaged)?;
                    self.reader.consume(length);
                    if let Some(frame) = frame {
                        self.packets += 1;
                        return Ok(Some(frame));
                    }
                }
                Err(PcapError::Incomplete(_)) => self.refill()?,
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::UnexpectedEof) => return Err(CaptureError::CutShort { place }),
                Err(PcapError::BufferTooSmall) if self.buffer >= LONGEST_RECORD => {
                    return Err(damaged(Damage::TooLong));
                }
                Err(PcapError::BufferTooSmall) => {
                    self.buffer *= 2;
                    self.reader.grow(self.buffer);
                }
                Err(_) => return Err(damaged(Damage::Malformed)),
            }
        }
    }

    fn refill(&mut self) -> Result<(), CaptureError> {
        let before = self.reader.data().len();
        if self.reader.refill().is_err() {
            return Err(unreadable(&self.failure));
        }
        // Without this a block whose parts do not fit in it would be asked for for ever.
        if self.reader.data().len() == before && !self.reader.reader_exhausted() {
            return Err(CaptureError::Damaged { place: self.place(), what: Damage::Malformed });
        }
        Ok(())
    }

    fn place(&self) -> Place {
        Place { packets: self.packets, offset: u64::try_from(self.reader.consumed()).unwrap_or(u64::MAX) }
    }
}

impl Iterator for Capture {
    type Item = Result<Frame, CaptureError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let frame = self.read().transpose();
        self.ended = !matches!(frame, Some(Ok(_)));
        frame
    }
}

fn unreadable(failure: &OnceLock<io::Error>) -> CaptureError {
    // An error cannot be cloned, and the reader keeps its own.
    let copy = |error: &io::Error| error.raw_os_error().map_or(error.kind().into(), io::Error::from_raw_os_error);
    CaptureError::Io(failure.get().map_or(ErrorKind::Other.into(), copy))
}

/// Reads as much as there is place for, since the reader takes what it gets first for the whole beginning; keeps the
/// error that the reader drops.
struct Source<R> {
    inner: R,
    failure: Arc<OnceLock<io::Error>>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, mut space: &mut [u8]) -> io::Result<usize> {
        let mut total = 0;
        while !space.is_empty() {
            match self.inner.read(space) {
                Ok(0) => break,
                Ok(count) => {
                    total += count;
                    space = space.get_mut(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    let kind = error.kind();
                    // The first one is the one to be told.
                    let _ = self.failure.set(error);
                    return Err(kind.into());
                }
            }
        }
        Ok(total)
    }
}

/// What the records so far say of those that follow.
#[derive(Default)]
struct Layout {
    /// Of a pcap file one, by its header; of a pcapng file those of the section.
    interfaces: Vec<Interface>,
    /// Byte order of the section.
    big_endian: bool,
}

/// An interface that packets were captured on.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link_type: i32,
    /// How much of a packet was captured at most; 0: everything.
    snaplen: u32,
    /// Units of time in a second.
    resolution: u128,
    /// Seconds to be added to each time.
    offset: i64,
}

impl Layout {
    /// The packet of a record, if it has one.
    fn read(&mut self, record: PcapBlockOwned<'_>) -> Result<Option<Frame>, Damage> {
        match record {
            PcapBlockOwned::LegacyHeader(header) => self.describe(Interface::of_pcap(&header))?,
            PcapBlockOwned::Legacy(packet) => return self.pcap(&packet).map(Some),
            PcapBlockOwned::NG(Block::SectionHeader(section)) => {
                self.interfaces.clear();
                self.big_endian = section.big_endian();
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(block)) => {
                self.describe(Interface::of_pcapng(&block, self.big_endian))?;
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => return self.enhanced(&packet).map(Some),
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => return self.simple(&packet).map(Some),
            PcapBlockOwned::NG(Block::Unknown(block)) if self.type_of(block.block_type) == OBSOLETE_PACKET_BLOCK => {
                return Err(Damage::Obsolete);
            }
            PcapBlockOwned::NG(_) => {}
        }
        Ok(None)
    }

    fn describe(&mut self, interface: Interface) -> Result<(), Damage> {
        if self.interfaces.len() == MOST_INTERFACES {
            return Err(Damage::TooManyInterfaces);
        }
        self.interfaces.push(interface);
        Ok(())
    }

    /// Blocks' types are read as little endian, whatever the section's order is.
    fn type_of(&self, block_type: u32) -> u32 {
        if self.big_endian { block_type.swap_bytes() } else { block_type }
    }

    fn ethernet(&self, interface: u32) -> Result<&Interface, Damage> {
        let at = usize::try_from(interface).unwrap_or(usize::MAX);
        let interface = self.interfaces.get(at).ok_or(Damage::NoInterface(interface))?;
        match Linktype(interface.link_type) {
            Linktype::ETHERNET => Ok(interface),
            Linktype(other) => Err(Damage::NotEthernet(other)),
        }
    }

    fn pcap(&self, packet: &LegacyPcapBlock<'_>) -> Result<Frame, Damage> {
        let mut at = self.ethernet(0)?.time(packet.ts_usec.into());
        at += Duration::from_secs(packet.ts_sec.into());
        Ok(Frame { at, length: packet.origlen, data: packet.data.to_vec() })
    }

    fn enhanced(&self, packet: &EnhancedPacketBlock<'_>) -> Result<Frame, Damage> {
        let units = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
        let interface = self.ethernet(packet.if_id)?;
        let data = packet.data.get(..packet.caplen as usize).ok_or(Damage::Malformed)?;
        Ok(Frame { at: interface.time(units), length: packet.origlen, data: data.to_vec() })
    }

    /// It is of the first interface, has no time, and as much data as its length and the snap length allow.
    fn simple(&self, packet: &SimplePacketBlock<'_>) -> Result<Frame, Damage> {
        let limit = match self.ethernet(0)?.snaplen {
            0 => u32::MAX,
            snaplen => snaplen,
        };
        let captured = packet.origlen.min(limit) as usize;
        let data = packet.data.get(..captured).ok_or(Damage::Malformed)?;
        Ok(Frame { at: Duration::ZERO, length: packet.origlen, data: data.to_vec() })
    }
}

impl Interface {
    fn of_pcap(header: &PcapHeader) -> Self {
        let resolution = if header.is_nanosecond_precision() { NANOSECONDS } else { MICROSECONDS };
        // The upper half tells of check sequences behind the frames; they are no more than padding here.
        Self { link_type: header.network.0 & 0xffff, snaplen: header.snaplen, resolution, offset: 0 }
    }

    /// Resolution and offset are read here: `pcap_parser` takes every offset for little endian and knows no powers of
    /// two.
    fn of_pcapng(block: &InterfaceDescriptionBlock<'_>, big_endian: bool) -> Self {
        let option = |code| block.options.iter().find(|option| option.code == code).map(PcapNGOption::value);
        let offset = option(OptionCode::IfTsoffset)
            .and_then(|value| value.first_chunk())
            .map_or(0, |&bytes| if big_endian { i64::from_be_bytes(bytes) } else { i64::from_le_bytes(bytes) });
        let resolution = option(OptionCode::IfTsresol).and_then(<[u8]>::first).map_or(MICROSECONDS, |&b| resolution(b));
        Self { link_type: block.linktype.0, snaplen: block.snaplen, resolution, offset }
    }

    /// A time in units of this interface, since the epoch; none before it.
    fn time(&self, units: u64) -> Duration {
        let units = u128::from(units);
        let seconds = i128::try_from(units / self.resolution).unwrap_or(i128::MAX).saturating_add(self.offset.into());
        let nanoseconds = units % self.resolution * NANOSECONDS / self.resolution;
        let seconds = u64::try_from(seconds.max(0)).unwrap_or(u64::MAX);
        Duration::new(seconds, u32::try_from(nanoseconds).unwrap_or_default())
    }
}

/// `if_tsresol`: the negative power of ten, or with the top bit set of two.
fn resolution(exponent: u8) -> u128 {
    let power = u32::from(exponent & 0x7f);
    if exponent & 0x80 == 0 { 10_u128.saturating_pow(power) } else { 1 << power }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;

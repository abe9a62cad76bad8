//! Captured packets, as values to compare and as lines to read. Decoded by `etherparse`, which shares no code with
//! what is under test.

use std::{
    fmt,
    fs::File,
    io::{ErrorKind, Read},
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use etherparse::{EtherType, IpNumber, LaxNetSlice, LaxSlicedPacket, TransportSlice};
use pcap_file::{DataLink, PcapError, pcap::PcapReader};

use super::error::{Error, Result, file};

/// A captured packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When it was captured, since the epoch.
    pub at: Duration,
    /// What it carried.
    pub body: Body,
}

/// What a frame carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// An IPv4 packet.
    Ip(Datagram),
    /// An IPv6 packet, by its addresses.
    Ipv6(Ipv6Addr, Ipv6Addr),
    /// An ARP request or reply.
    Arp,
    /// Anything else, or something that cannot be decoded.
    Other,
}

/// An IPv4 packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Datagram {
    /// The source address.
    pub source: Ipv4Addr,
    /// The destination address.
    pub destination: Ipv4Addr,
    /// The remaining hops.
    pub ttl: u8,
    /// What follows the IP header.
    pub payload: Payload,
}

/// What follows an IP header. Lengths are those of the data after the transport header, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are those of the headers, in host byte order")]
pub enum Payload {
    /// TCP, RFC 9293.
    Tcp { source_port: u16, destination_port: u16, flags: TcpFlags, sequence: u32, acknowledgment: u32, length: usize },
    /// UDP, RFC 768.
    Udp { source_port: u16, destination_port: u16, length: usize },
    /// ICMP, RFC 792: type and code.
    Icmp { kind: u8, code: u8 },
    /// IPv4 in IPv4, RFC 2003.
    Ipip(Box<Datagram>),
    /// Another protocol, a later fragment, or something cut short: the protocol number.
    Other(u8),
}

/// The flags of a TCP header, the low byte: RFC 9293, section 3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    /// No more data from the sender.
    pub const FIN: Self = Self(0x01);
    /// Synchronise sequence numbers.
    pub const SYN: Self = Self(0x02);
    /// Reset the connection.
    pub const RST: Self = Self(0x04);
    /// The acknowledgment field is significant.
    pub const ACK: Self = Self(0x10);

    /// Whether all flags of `other` are set.
    #[must_use]
    pub fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Packet {
    /// The IPv4 packet on the wire, the outer one of a tunnel.
    #[must_use]
    pub fn ip(&self) -> Option<&Datagram> {
        match &self.body {
            Body::Ip(datagram) => Some(datagram),
            Body::Ipv6(..) | Body::Arp | Body::Other => None,
        }
    }

    /// The IPv4 packet that a tunnel carries.
    #[must_use]
    pub fn inner(&self) -> Option<&Datagram> {
        match &self.ip()?.payload {
            Payload::Ipip(inner) => Some(inner),
            _ => None,
        }
    }
}

impl Datagram {
    /// The flags, if this is TCP itself (not TCP in a tunnel).
    #[must_use]
    pub fn tcp_flags(&self) -> Option<TcpFlags> {
        match self.payload {
            Payload::Tcp { flags, .. } => Some(flags),
            _ => None,
        }
    }
}

/// Reads a capture file. A record that is not complete yet, in a file still being written, is left out.
///
/// # Errors
/// [`Error::File`], [`Error::Capture`].
pub fn read(path: &Path) -> Result<Vec<Packet>> {
    let opened = File::open(path).map_err(file("opening", path))?;
    let mut packets = Vec::new();
    stream(opened, &path.display().to_string(), |packet| packets.push(packet))?;
    Ok(packets)
}

/// Hands over the packets of a capture as they come; `object` names it in errors.
///
/// # Errors
/// [`Error::Capture`].
pub fn stream(capture: impl Read, object: &str, mut each: impl FnMut(Packet)) -> Result<()> {
    let error = |source| Error::Capture { object: object.to_owned(), source };
    let mut reader = match PcapReader::new(capture) {
        Err(source) if is_cut_short(&source) => return Ok(()),
        other => other.map_err(error)?,
    };
    let link = reader.header().datalink;
    while let Some(record) = reader.next_packet() {
        match record {
            Err(source) if is_cut_short(&source) => break,
            Err(source) => return Err(error(source)),
            Ok(record) => each(Packet { at: record.timestamp, body: body(link, &record.data) }),
        }
    }
    Ok(())
}

/// Whether the capture ends here, be it within a record.
fn is_cut_short(error: &PcapError) -> bool {
    match error {
        PcapError::IncompleteBuffer => true,
        PcapError::IoError(source) => source.kind() == ErrorKind::UnexpectedEof,
        _ => false,
    }
}

fn body(link: DataLink, frame: &[u8]) -> Body {
    let sliced = match link {
        DataLink::ETHERNET => LaxSlicedPacket::from_ethernet(frame).ok(),
        DataLink::LINUX_SLL => cooked(frame),
        _ => None,
    };
    match sliced.as_ref().and_then(|packet| packet.net.as_ref()) {
        Some(LaxNetSlice::Ipv4(_)) => sliced.as_ref().and_then(datagram).map_or(Body::Other, Body::Ip),
        Some(LaxNetSlice::Ipv6(ip)) => Body::Ipv6(ip.header().source_addr(), ip.header().destination_addr()),
        Some(LaxNetSlice::Arp(_)) => Body::Arp,
        None => Body::Other,
    }
}

/// A frame of the device `any`: `LINKTYPE_LINUX_SLL`, a header of 16 bytes with the Ethernet type in the last two.
fn cooked(frame: &[u8]) -> Option<LaxSlicedPacket<'_>> {
    let (header, packet) = frame.split_at_checked(16)?;
    let ether_type = u16::from_be_bytes(header.last_chunk().copied()?);
    Some(LaxSlicedPacket::from_ether_type(EtherType(ether_type), packet))
}

fn datagram(packet: &LaxSlicedPacket<'_>) -> Option<Datagram> {
    let Some(LaxNetSlice::Ipv4(ip)) = &packet.net else { return None };
    let header = ip.header();
    let other = Payload::Other(ip.payload_ip_number().0);
    let payload = match &packet.transport {
        Some(TransportSlice::Tcp(tcp)) => Payload::Tcp {
            source_port: tcp.source_port(),
            destination_port: tcp.destination_port(),
            flags: TcpFlags(tcp.header_slice().get(13).copied().unwrap_or_default()),
            sequence: tcp.sequence_number(),
            acknowledgment: tcp.acknowledgment_number(),
            length: tcp.payload().len(),
        },
        Some(TransportSlice::Udp(udp)) => Payload::Udp {
            source_port: udp.source_port(),
            destination_port: udp.destination_port(),
            length: udp.payload().len(),
        },
        Some(TransportSlice::Icmpv4(icmp)) => Payload::Icmp { kind: icmp.type_u8(), code: icmp.code_u8() },
        None if ip.payload_ip_number() == IpNumber::IPV4 && !ip.is_payload_fragmented() => {
            let inner = LaxSlicedPacket::from_ip(ip.payload().payload).ok();
            inner.as_ref().and_then(datagram).map_or(other, |inner| Payload::Ipip(Box::new(inner)))
        }
        Some(_) | None => other,
    };
    Some(Datagram { source: header.source_addr(), destination: header.destination_addr(), ttl: header.ttl(), payload })
}

impl fmt::Display for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.body {
            Body::Ip(datagram) => datagram.fmt(f),
            Body::Ipv6(source, destination) => write!(f, "{source} → {destination} IPv6"),
            Body::Arp => f.write_str("ARP"),
            Body::Other => f.write_str("not IP"),
        }
    }
}

impl fmt::Display for Datagram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, destination, payload, .. } = self;
        match payload {
            Payload::Tcp { source_port, destination_port, flags, length, .. } => {
                write!(f, "{source}:{source_port} → {destination}:{destination_port} TCP {flags}")?;
                if *length > 0 { write!(f, " {length} bytes") } else { Ok(()) }
            }
            Payload::Udp { source_port, destination_port, length } => {
                write!(f, "{source}:{source_port} → {destination}:{destination_port} UDP {length} bytes")
            }
            Payload::Icmp { kind: 0, .. } => write!(f, "{source} → {destination} ICMP echo reply"),
            Payload::Icmp { kind: 8, .. } => write!(f, "{source} → {destination} ICMP echo request"),
            Payload::Icmp { kind, code } => write!(f, "{source} → {destination} ICMP type {kind} code {code}"),
            Payload::Ipip(inner) => write!(f, "{source} → {destination} IPIP [{inner}]"),
            Payload::Other(protocol) => write!(f, "{source} → {destination} protocol {protocol}"),
        }
    }
}

impl fmt::Display for TcpFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let set = names.iter().enumerate().filter(|(bit, _)| self.0 >> bit & 1 == 1);
        f.write_str(&set.map(|(_, name)| *name).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    fn described(frame: &[u8]) -> String {
        Packet { at: Duration::ZERO, body: body(DataLink::ETHERNET, frame) }.to_string()
    }

    fn inner_syn() -> Vec<u8> {
        let mut packet = Vec::new();
        let syn = PacketBuilder::ipv4([198, 18, 10, 10], [198, 19, 10, 1], 64).tcp(40000, 80, 7, 64000).syn();
        syn.write(&mut packet, &[]).unwrap();
        packet
    }

    fn in_ipip(inner: &[u8]) -> Vec<u8> {
        let outer = etherparse::Ipv4Header::new(
            u16::try_from(inner.len()).unwrap(),
            64,
            IpNumber::IPV4,
            [198, 18, 221, 11],
            [198, 18, 101, 10],
        );
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        outer.unwrap().write(&mut frame).unwrap();
        frame.extend(inner);
        frame
    }

    #[test]
    fn ipip_packet_is_shown_with_outer_and_inner() {
        assert_eq!(
            described(&in_ipip(&inner_syn())),
            "198.18.221.11 → 198.18.101.10 IPIP [198.18.10.10:40000 → 198.19.10.1:80 TCP SYN]"
        );
    }

    #[test]
    fn inner_packet_cut_short_is_shown_by_its_protocol() {
        let inner = inner_syn();
        let shown = described(&in_ipip(&inner[..inner.len() - 10]));
        assert_eq!(shown, "198.18.221.11 → 198.18.101.10 IPIP [198.18.10.10 → 198.19.10.1 protocol 6]");
    }

    #[test]
    fn frame_of_noise_is_not_ip() {
        assert_eq!(described(&[0xff; 20]), "not IP");
        assert_eq!(described(&[]), "not IP");
    }

    #[test]
    fn capture_cut_in_a_record_gives_the_records_before_it() {
        let mut writer = pcap_file::pcap::PcapWriter::new(Vec::new()).unwrap();
        let frame = in_ipip(&inner_syn());
        let length = u32::try_from(frame.len()).unwrap();
        for _ in 0..2 {
            writer.write_packet(&pcap_file::pcap::PcapPacket::new(Duration::ZERO, length, &frame)).unwrap();
        }
        let capture = writer.into_writer();
        let mut count = 0;
        stream(&capture[..capture.len() - 3], "test", |_| count += 1).unwrap();
        assert_eq!(count, 1);
    }
}

//! Packets of the proof, to bytes and from bytes.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use pnet_packet::{
    Packet as _,
    ethernet::{EtherType, EtherTypes, EthernetPacket},
    icmp::{IcmpPacket, IcmpType, IcmpTypes, echo_reply::EchoReplyPacket, echo_request::MutableEchoRequestPacket},
    icmpv6::Icmpv6Types,
    ip::{IpNextHeaderProtocol, IpNextHeaderProtocols},
    ipv4::{self, Ipv4Packet, MutableIpv4Packet},
    ipv6::{Ipv6Packet, MutableIpv6Packet},
    tcp::{MutableTcpPacket, TcpFlags, TcpPacket},
    util,
};

use super::{Way, client};
use crate::family::Family;

const TTL: u8 = 64;
const IDENTIFIER: u16 = 0x4c42;
/// The client's ports begin here; a probe's number is added.
const FIRST_PORT: u16 = 49_152;
/// Probes that are told apart in one exchange.
pub const MAX_PROBES: u16 = 128;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An echo.
    Echo,
    /// A connection to this port.
    Syn(u16),
}

/// One packet through the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe<'a> {
    /// Through which tunnel.
    pub way: &'a Way,
    /// Inner destination.
    pub to: IpAddr,
    /// What it asks.
    pub target: Target,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The echo.
    Echo,
    /// SYN-ACK with this acknowledgement number: somebody listens.
    SynAck(u32),
    /// RST: nobody does.
    Reset,
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Echo => "answered",
            Self::SynAck(_) => "SYN-ACK",
            Self::Reset => "RST",
        })
    }
}

/// A reply, or silence.
pub type Answer = Option<Reply>;

impl Probe<'_> {
    /// The frame to a device with the address `to`. `number` is below [`MAX_PROBES`] and comes back in the reply.
    #[must_use]
    pub fn frame(&self, number: u16, to: [u8; 6]) -> Vec<u8> {
        let inner = match self.target {
            Target::Echo => self.inner(icmp_protocol(self.to), &echo(client(Family::of(self.to)), self.to, number)),
            Target::Syn(port) => self.segment(port, number, 0, TcpFlags::SYN),
        };
        self.tunnelled(&inner, to)
    }

    /// The frame that gives up the connection after a SYN-ACK: it would be sent again and again.
    #[must_use]
    pub fn reset(&self, number: u16, acknowledged: u32, to: [u8; 6]) -> Option<Vec<u8>> {
        let Target::Syn(port) = self.target else { return None };
        Some(self.tunnelled(&self.segment(port, number, acknowledged, TcpFlags::RST), to))
    }

    fn segment(&self, port: u16, number: u16, sequence: u32, flags: u8) -> Vec<u8> {
        let from = client(Family::of(self.to));
        self.inner(IpNextHeaderProtocols::Tcp, &tcp(from, self.to, port, number, sequence, flags))
    }

    fn inner(&self, protocol: IpNextHeaderProtocol, payload: &[u8]) -> Vec<u8> {
        ip(client(Family::of(self.to)), self.to, protocol, payload)
    }

    fn tunnelled(&self, inner: &[u8], to: [u8; 6]) -> Vec<u8> {
        let protocol = match self.to {
            IpAddr::V4(_) => IpNextHeaderProtocols::Ipv4,
            IpAddr::V6(_) => IpNextHeaderProtocols::Ipv6,
        };
        let outer = ip(self.way.source, self.way.host, protocol, inner);
        ethernet(to, ethertype(self.way.host), &outer)
    }

    /// What a frame says to this probe; `None`: it is about something else.
    #[must_use]
    pub fn reply(&self, number: u16, frame: &[u8]) -> Answer {
        let frame = EthernetPacket::new(frame)?;
        let (source, destination, protocol, payload) = open(&frame)?;
        if (source, destination) != (self.to, client(Family::of(self.to))) {
            return None;
        }
        match self.target {
            Target::Echo if protocol == icmp_protocol(self.to) => echo_reply(self.to, number, &payload),
            Target::Syn(port) if protocol == IpNextHeaderProtocols::Tcp => answer_to_syn(port, number, &payload),
            _ => None,
        }
    }
}

fn icmp_protocol(to: IpAddr) -> IpNextHeaderProtocol {
    if to.is_ipv4() { IpNextHeaderProtocols::Icmp } else { IpNextHeaderProtocols::Icmpv6 }
}

fn ethertype(address: IpAddr) -> EtherType {
    if address.is_ipv4() { EtherTypes::Ipv4 } else { EtherTypes::Ipv6 }
}

/// `size` octets, written by `write`, which cannot fail: the packet types fail on what is shorter than a header only.
fn build(size: usize, write: impl FnOnce(&mut [u8]) -> Option<()>) -> Vec<u8> {
    let mut octets = vec![0; size];
    let written = write(&mut octets);
    debug_assert!(written.is_some(), "the buffer holds the header");
    octets
}

fn ethernet(to: [u8; 6], ethertype: EtherType, payload: &[u8]) -> Vec<u8> {
    // Locally administered.
    const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];
    [&to[..], &FROM, &ethertype.0.to_be_bytes(), payload].concat()
}

fn ip(from: IpAddr, to: IpAddr, protocol: IpNextHeaderProtocol, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ipv4(from, to, protocol, payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => ipv6(from, to, protocol, payload),
        // A way has both ends in one family.
        _ => Vec::new(),
    }
}

/// Payloads are a few octets: lengths fit.
fn length(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: IpNextHeaderProtocol, payload: &[u8]) -> Vec<u8> {
    let size = Ipv4Packet::minimum_packet_size() + payload.len();
    build(size, |octets| {
        let mut packet = MutableIpv4Packet::new(octets)?;
        packet.set_version(4);
        packet.set_header_length(5);
        packet.set_total_length(length(size));
        packet.set_ttl(TTL);
        packet.set_next_level_protocol(protocol);
        packet.set_source(from);
        packet.set_destination(to);
        packet.set_checksum(ipv4::checksum(&packet.to_immutable()));
        packet.set_payload(payload);
        Some(())
    })
}

fn ipv6(from: Ipv6Addr, to: Ipv6Addr, protocol: IpNextHeaderProtocol, payload: &[u8]) -> Vec<u8> {
    build(Ipv6Packet::minimum_packet_size() + payload.len(), |octets| {
        let mut packet = MutableIpv6Packet::new(octets)?;
        packet.set_version(6);
        packet.set_payload_length(length(payload.len()));
        packet.set_next_header(protocol);
        packet.set_hop_limit(TTL);
        packet.set_source(from);
        packet.set_destination(to);
        packet.set_payload(payload);
        Some(())
    })
}

/// Both families' echo requests have the same form (RFC 792, RFC 4443 section 4.1); the second sums a pseudo header too.
fn echo(from: IpAddr, to: IpAddr, number: u16) -> Vec<u8> {
    const CHECKSUM_WORD: usize = 1;
    build(MutableEchoRequestPacket::minimum_packet_size(), |octets| {
        let mut packet = MutableEchoRequestPacket::new(octets)?;
        packet.set_identifier(IDENTIFIER);
        packet.set_sequence_number(number);
        let checksum = if let (IpAddr::V6(from), IpAddr::V6(to)) = (from, to) {
            packet.set_icmp_type(IcmpType(Icmpv6Types::EchoRequest.0));
            util::ipv6_checksum(packet.packet(), CHECKSUM_WORD, &[], &from, &to, IpNextHeaderProtocols::Icmpv6)
        } else {
            packet.set_icmp_type(IcmpTypes::EchoRequest);
            util::checksum(packet.packet(), CHECKSUM_WORD)
        };
        packet.set_checksum(checksum);
        Some(())
    })
}

fn tcp(from: IpAddr, to: IpAddr, port: u16, number: u16, sequence: u32, flags: u8) -> Vec<u8> {
    const WORDS: u8 = 5;
    build(TcpPacket::minimum_packet_size(), |octets| {
        let mut packet = MutableTcpPacket::new(octets)?;
        packet.set_source(FIRST_PORT + number);
        packet.set_destination(port);
        packet.set_sequence(sequence);
        packet.set_data_offset(WORDS);
        packet.set_flags(flags);
        packet.set_window(u16::MAX);
        let checksum = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => pnet_packet::tcp::ipv4_checksum(&packet.to_immutable(), &from, &to),
            (IpAddr::V6(from), IpAddr::V6(to)) => pnet_packet::tcp::ipv6_checksum(&packet.to_immutable(), &from, &to),
            _ => 0,
        };
        packet.set_checksum(checksum);
        Some(())
    })
}

/// Source, destination, protocol and payload of a packet without options or extension headers.
fn open(frame: &EthernetPacket<'_>) -> Option<(IpAddr, IpAddr, IpNextHeaderProtocol, Vec<u8>)> {
    match frame.get_ethertype() {
        EtherTypes::Ipv4 => {
            let packet = Ipv4Packet::new(frame.payload())?;
            let ends = (packet.get_source().into(), packet.get_destination().into());
            Some((ends.0, ends.1, packet.get_next_level_protocol(), packet.payload().to_vec()))
        }
        EtherTypes::Ipv6 => {
            let packet = Ipv6Packet::new(frame.payload())?;
            let ends = (packet.get_source().into(), packet.get_destination().into());
            Some((ends.0, ends.1, packet.get_next_header(), packet.payload().to_vec()))
        }
        _ => None,
    }
}

fn echo_reply(from: IpAddr, number: u16, payload: &[u8]) -> Answer {
    let expected = if from.is_ipv4() { IcmpTypes::EchoReply.0 } else { Icmpv6Types::EchoReply.0 };
    let kind = IcmpPacket::new(payload)?.get_icmp_type().0;
    let reply = EchoReplyPacket::new(payload)?;
    let ours = (reply.get_identifier(), reply.get_sequence_number()) == (IDENTIFIER, number);
    (kind == expected && ours).then_some(Reply::Echo)
}

fn answer_to_syn(port: u16, number: u16, payload: &[u8]) -> Answer {
    let segment = TcpPacket::new(payload)?;
    if (segment.get_source(), segment.get_destination()) != (port, FIRST_PORT + number) {
        return None;
    }
    match segment.get_flags() & (TcpFlags::SYN | TcpFlags::ACK | TcpFlags::RST) {
        flags if flags & TcpFlags::RST != 0 => Some(Reply::Reset),
        flags if flags == TcpFlags::SYN | TcpFlags::ACK => Some(Reply::SynAck(segment.get_acknowledgement())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proof::Entry;
    use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, TcpHeader};
    use proptest::prelude::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const ETHERNET: usize = 14;

    fn way(vip: &str, source: &str, host: &str) -> Way {
        let [source, host] = [source, host].map(|address| address.parse().unwrap());
        Way { vip: vip.parse().unwrap(), device: "eth0".to_owned(), entry: Entry::Device, source, host }
    }

    fn probe(way: &Way, target: Target) -> Probe<'_> {
        Probe { way, to: way.vip.into(), target }
    }

    #[test]
    fn syn_in_ipv4_is_as_another_codec_reads_it() {
        let way = way("198.19.10.1", "198.18.221.1", "198.18.101.10");
        let frame = probe(&way, Target::Syn(80)).frame(3, MAC);
        assert_eq!((&frame[..6], &frame[12..ETHERNET]), (&MAC[..], &[8, 0][..]));
        let (outer, inner) = Ipv4Header::from_slice(&frame[ETHERNET..]).unwrap();
        assert_eq!((outer.source, outer.destination), ([198, 18, 221, 1], [198, 18, 101, 10]));
        assert_eq!((outer.protocol, usize::from(outer.total_len)), (IpNumber::IPV4, 20 + inner.len()));
        assert_eq!(outer.header_checksum, outer.calc_header_checksum());
        let (ip, segment) = Ipv4Header::from_slice(inner).unwrap();
        assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let (tcp, rest) = TcpHeader::from_slice(segment).unwrap();
        assert!(tcp.syn && !tcp.ack && rest.is_empty());
        assert_eq!(tcp.checksum, tcp.calc_checksum_ipv4(&ip, &[]).unwrap());
    }

    #[test]
    fn echo_in_ipv6_is_as_another_codec_builds_it() {
        let way = way("fd00:19::1", "fd00:18::1", "fd00:18::2");
        let frame = probe(&way, Target::Echo).frame(3, MAC);
        let (outer, inner) = Ipv6Header::from_slice(&frame[ETHERNET..]).unwrap();
        assert_eq!((outer.next_header, usize::from(outer.payload_length)), (IpNumber::IPV6, inner.len()));
        let IpAddr::V6(from) = client(Family::Ipv6) else { panic!("an IPv6 address") };
        let mut expected = Vec::new();
        let to: Ipv6Addr = "fd00:19::1".parse().unwrap();
        let builder = PacketBuilder::ipv6(from.octets(), to.octets(), TTL).icmpv6_echo_request(IDENTIFIER, 3);
        builder.write(&mut expected, &[]).unwrap();
        assert_eq!(inner, expected);
    }

    fn reply_to(way: &Way, flags: u8, number: u16) -> Vec<u8> {
        let (IpAddr::V4(vip), IpAddr::V4(to)) = (IpAddr::from(way.vip), client(Family::Ipv4)) else { panic!("IPv4") };
        let mut segment = tcp(vip.into(), to.into(), FIRST_PORT + number, 0, 9, flags);
        segment[..2].copy_from_slice(&80_u16.to_be_bytes());
        ethernet(MAC, EtherTypes::Ipv4, &ipv4(vip, to, IpNextHeaderProtocols::Tcp, &segment))
    }

    #[test]
    fn reply_is_of_its_own_probe_only() {
        let way = way("198.19.10.1", "198.18.221.1", "198.18.101.10");
        let syn = probe(&way, Target::Syn(80));
        assert_eq!(syn.reply(3, &reply_to(&way, TcpFlags::RST | TcpFlags::ACK, 3)), Some(Reply::Reset));
        assert_eq!(syn.reply(3, &reply_to(&way, TcpFlags::SYN | TcpFlags::ACK, 3)), Some(Reply::SynAck(0)));
        assert_eq!(syn.reply(3, &reply_to(&way, TcpFlags::RST, 4)), None);
        assert_eq!(syn.reply(3, &reply_to(&way, TcpFlags::SYN, 3)), None);
        assert_eq!(probe(&way, Target::Echo).reply(3, &reply_to(&way, TcpFlags::RST, 3)), None);
    }

    proptest! {
        /// Whatever arrives at the far end, whole or cut.
        #[test]
        fn any_frame_is_read_without_harm(octets in proptest::collection::vec(any::<u8>(), 0..128), cut in 0_usize..60) {
            let way = way("198.19.10.1", "198.18.221.1", "198.18.101.10");
            let mut reply = reply_to(&way, TcpFlags::RST, 3);
            reply.truncate(cut);
            for frame in [&octets, &reply] {
                for target in [Target::Echo, Target::Syn(80)] {
                    let _ = probe(&way, target).reply(3, frame);
                }
            }
        }
    }
}

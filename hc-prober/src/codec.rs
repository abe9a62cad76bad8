//! Probes to bytes. Replies from bytes: `reply`.

use std::num::NonZeroU8;

use pnet_packet::{
    icmp::{IcmpType, IcmpTypes, echo_request::MutableEchoRequestPacket},
    icmpv6::Icmpv6Types,
    ip::{IpNextHeaderProtocol, IpNextHeaderProtocols},
    ipv4::{self, Ipv4Flags, MutableIpv4Packet},
    ipv6::MutableIpv6Packet,
    tcp::{MutableTcpPacket, TcpFlags, TcpOption},
    udp::MutableUdpPacket,
    util,
};

use crate::{cookie::Protocol, ends::Ends};

/// Length of an IPv4 header without options, bytes.
const IPV4: usize = 20;
/// Length of an IPv6 header without extension headers, bytes.
const IPV6: usize = 40;
const ICMP: usize = 8;
const TCP: usize = 20;
const UDP: usize = 8;
/// Length of the MSS option, which every real client's SYN carries (RFC 9293, 3.7.1), bytes.
const MSS_OPTION: usize = 4;
/// What an Ethernet's 1,500 bytes leave for data.
const MSS: u16 = 1460;
const MSS_6: u16 = 1440;

const OUTER_TTL: u8 = 64;

/// The packet inside the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner<'a> {
    /// From us, where the answer goes, to the target.
    pub ends: Ends,
    /// What an ICMP error gives back of the header: IPv4 identification (16 bits), IPv6 flow label (20 bits).
    pub tag: u32,
    /// TTL or hop limit inside a tunnel: see [`CheckKey::hops`](crate::CheckKey::hops). Outside it is always 64.
    pub hops: NonZeroU8,
    /// What follows the header.
    pub segment: Segment<'a>,
}

/// What follows the inner IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment<'a> {
    /// ICMP echo request.
    Echo {
        /// Identifier.
        id: u16,
        /// Sequence number.
        sequence: u16,
        /// Data.
        payload: &'a [u8],
    },
    /// TCP SYN.
    Syn {
        /// Our port.
        from: u16,
        /// The target's.
        to: u16,
        /// Initial sequence number.
        sequence: u32,
    },
    /// TCP RST.
    Rst {
        /// Our port.
        from: u16,
        /// The target's.
        to: u16,
        /// Sequence number: what the peer expects next.
        sequence: u32,
    },
    /// UDP datagram.
    Datagram {
        /// Our port.
        from: u16,
        /// The target's.
        to: u16,
        /// Data.
        payload: &'a [u8],
    },
}

impl Segment<'_> {
    fn protocol(&self) -> Protocol {
        match self {
            Self::Echo { .. } => Protocol::Icmp,
            Self::Syn { .. } | Self::Rst { .. } => Protocol::Tcp,
            Self::Datagram { .. } => Protocol::Udp,
        }
    }

    fn len(&self) -> usize {
        match self {
            Self::Echo { payload, .. } => ICMP + payload.len(),
            Self::Syn { .. } => TCP + MSS_OPTION,
            Self::Rst { .. } => TCP,
            Self::Datagram { payload, .. } => UDP + payload.len(),
        }
    }
}

/// Appends the packet to `bytes`, within a tunnel packet if there is an `outer` header. `None`, and nothing appended, if it
/// exceeds what IP can hold, or is one that no data plane sends: IPv6 within IPv4.
pub fn encode(outer: Option<Ends>, inner: &Inner<'_>, bytes: &mut Vec<u8>) -> Option<()> {
    let (outer_header, inner_header) = (outer.map_or(0, header_len), header_len(inner.ends));
    let len = u16::try_from(outer_header + inner_header + inner.segment.len()).ok()?;
    let outer = match outer {
        Some(outer) => Some((outer, tunnelled(outer, inner.ends)?)),
        None => None,
    };
    let start = bytes.len();
    bytes.resize(start + usize::from(len), 0);
    let packet = bytes.get_mut(start..)?;

    // The kernel fills in an outer IPv4 identification and the checksum once more: see raw(7), IP_HDRINCL.
    if let Some((outer, protocol)) = outer {
        write_header(packet, outer, &Header { tag: 0, ttl: OUTER_TTL, protocol })?;
    }
    let packet = packet.get_mut(outer_header..)?;
    let protocol = number_of(inner.segment.protocol(), inner.ends);
    let ttl = if outer.is_some() { inner.hops.get() } else { OUTER_TTL };
    write_header(packet, inner.ends, &Header { tag: inner.tag, ttl, protocol })?;
    write_segment(packet.get_mut(inner_header..)?, inner.ends, protocol, inner.segment)
}

/// The protocol in the outer header.
fn tunnelled(outer: Ends, inner: Ends) -> Option<IpNextHeaderProtocol> {
    match (outer, inner) {
        (Ends::V4 { .. } | Ends::V6 { .. }, Ends::V4 { .. }) => Some(IpNextHeaderProtocols::Ipv4),
        (Ends::V6 { .. }, Ends::V6 { .. }) => Some(IpNextHeaderProtocols::Ipv6),
        (Ends::V4 { .. }, Ends::V6 { .. }) => None,
    }
}

fn header_len(ends: Ends) -> usize {
    match ends {
        Ends::V4 { .. } => IPV4,
        Ends::V6 { .. } => IPV6,
    }
}

/// The protocol in a header of this family.
fn number_of(protocol: Protocol, ends: Ends) -> IpNextHeaderProtocol {
    match (protocol, ends) {
        (Protocol::Icmp, Ends::V4 { .. }) => IpNextHeaderProtocols::Icmp,
        (Protocol::Icmp, Ends::V6 { .. }) => IpNextHeaderProtocols::Icmpv6,
        (Protocol::Tcp, _) => IpNextHeaderProtocols::Tcp,
        (Protocol::Udp, _) => IpNextHeaderProtocols::Udp,
    }
}

/// The fields of a header that differ between ours, but for addresses and length.
struct Header {
    /// See [`Inner::tag`].
    tag: u32,
    /// TTL or hop limit.
    ttl: u8,
    protocol: IpNextHeaderProtocol,
}

/// Writes the header of a packet that takes all of `bytes`.
fn write_header(bytes: &mut [u8], ends: Ends, header: &Header) -> Option<()> {
    let len = bytes.len();
    match ends {
        Ends::V4 { source, destination } => {
            let mut ip = MutableIpv4Packet::new(bytes)?;
            ip.set_version(4);
            ip.set_header_length(5);
            ip.set_total_length(u16::try_from(len).ok()?);
            ip.set_identification(u16::try_from(header.tag).ok()?);
            ip.set_flags(Ipv4Flags::DontFragment);
            ip.set_ttl(header.ttl);
            ip.set_next_level_protocol(header.protocol);
            ip.set_source(source);
            ip.set_destination(destination);
            let checksum = ipv4::checksum(&ip.to_immutable());
            ip.set_checksum(checksum);
        }
        Ends::V6 { source, destination } => {
            let mut ip = MutableIpv6Packet::new(bytes)?;
            ip.set_version(6);
            ip.set_flow_label(header.tag);
            ip.set_payload_length(u16::try_from(len.checked_sub(IPV6)?).ok()?);
            ip.set_next_header(header.protocol);
            ip.set_hop_limit(header.ttl);
            ip.set_source(source);
            ip.set_destination(destination);
        }
    }
    Some(())
}

/// Writes a segment that takes all of `bytes`, which are zero.
fn write_segment(bytes: &mut [u8], ends: Ends, protocol: IpNextHeaderProtocol, segment: Segment<'_>) -> Option<()> {
    let checksum_at = match segment {
        Segment::Echo { id, sequence, payload } => {
            write_echo(bytes, ends, id, sequence, payload)?;
            2
        }
        Segment::Syn { from, to, sequence } => {
            let mss = if matches!(ends, Ends::V4 { .. }) { MSS } else { MSS_6 };
            let mut tcp = write_tcp(bytes, from, to, sequence, TcpFlags::SYN)?;
            tcp.set_window(u16::MAX);
            tcp.set_options(&[TcpOption::mss(mss)]);
            16
        }
        Segment::Rst { from, to, sequence } => {
            write_tcp(bytes, from, to, sequence, TcpFlags::RST)?;
            16
        }
        Segment::Datagram { from, to, payload } => {
            let mut datagram = MutableUdpPacket::new(bytes)?;
            datagram.set_source(from);
            datagram.set_destination(to);
            datagram.set_length(u16::try_from(UDP + payload.len()).ok()?);
            datagram.set_payload(payload);
            6
        }
    };
    let checksum = match checksum(bytes, checksum_at, ends, protocol) {
        // RFC 768: a computed zero is transmitted as all ones; zero means no checksum.
        0 if protocol == IpNextHeaderProtocols::Udp => 0xffff,
        checksum => checksum,
    };
    bytes.get_mut(checksum_at..)?.first_chunk_mut::<2>().map(|field| *field = checksum.to_be_bytes())
}

/// The checksum whose field is at `at`. All but ICMP for IPv4 cover a pseudo header (RFC 793, RFC 8200, 8.1).
fn checksum(bytes: &[u8], at: usize, ends: Ends, protocol: IpNextHeaderProtocol) -> u16 {
    let skip = at / 2;
    match ends {
        Ends::V4 { .. } if protocol == IpNextHeaderProtocols::Icmp => util::checksum(bytes, skip),
        Ends::V4 { source, destination } => util::ipv4_checksum(bytes, skip, &[], &source, &destination, protocol),
        Ends::V6 { source, destination } => util::ipv6_checksum(bytes, skip, &[], &source, &destination, protocol),
    }
}

/// Of both families: they differ in the type only.
fn write_echo(bytes: &mut [u8], ends: Ends, id: u16, sequence: u16, payload: &[u8]) -> Option<()> {
    let mut echo = MutableEchoRequestPacket::new(bytes)?;
    echo.set_icmp_type(match ends {
        Ends::V4 { .. } => IcmpTypes::EchoRequest,
        Ends::V6 { .. } => IcmpType(Icmpv6Types::EchoRequest.0),
    });
    echo.set_identifier(id);
    echo.set_sequence_number(sequence);
    echo.set_payload(payload);
    Some(())
}

fn write_tcp(bytes: &mut [u8], from: u16, to: u16, sequence: u32, flags: u8) -> Option<MutableTcpPacket<'_>> {
    let words = u8::try_from(bytes.len() / 4).ok()?;
    let mut segment = MutableTcpPacket::new(bytes)?;
    segment.set_source(from);
    segment.set_destination(to);
    segment.set_sequence(sequence);
    segment.set_data_offset(words);
    segment.set_flags(flags);
    Some(segment)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4HeaderSlice, Ipv6HeaderSlice, NetSlice, SlicedPacket, TransportSlice};
    use std::net::{Ipv4Addr, Ipv6Addr};

    const US: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
    const US_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const OUTER: Ends = Ends::V4 { source: US, destination: Ipv4Addr::new(198, 18, 101, 10) };
    const OUTER_6: Ends = Ends::V6 { source: US_6, destination: Ipv6Addr::new(0xfd00, 0x101, 0, 0, 0, 0, 0, 0x10) };
    const INNER: Ends = Ends::V4 { source: US, destination: Ipv4Addr::new(198, 19, 10, 1) };
    const INNER_6: Ends = Ends::V6 { source: US_6, destination: Ipv6Addr::new(0xfd19, 0x10, 0, 0, 0, 0, 0, 1) };
    /// All that the data plane has.
    const PAIRS: [(Ends, Ends); 3] = [(OUTER, INNER), (OUTER_6, INNER), (OUTER_6, INNER_6)];
    const TAG: u32 = 0x1234;

    fn encoded(outer: Ends, inner: Ends, segment: Segment<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(Some(outer), &Inner { ends: inner, tag: TAG, hops: NonZeroU8::MIN, segment }, &mut bytes).unwrap();
        bytes
    }

    #[test]
    fn syn_is_these_bytes() {
        #[rustfmt::skip]
        let expected = [
            // outer: version 4, 5 words; length 64; id 0; DF; TTL 64; protocol 4; checksum: the oracle's business, below
            0x45, 0, 0, 64,  0, 0, 0x40, 0,  64, 4, 0, 0,  198, 18, 0, 1,  198, 18, 101, 10,
            // inner: length 44; id 0x1234; DF; TTL 1; protocol 6; checksum
            0x45, 0, 0, 44,  0x12, 0x34, 0x40, 0,  1, 6, 0, 0,  198, 18, 0, 1,  198, 19, 10, 1,
            // TCP: 61000 → 80, sequence, no acknowledgement, 6 words, SYN, window
            0xee, 0x48, 0, 80,  0xde, 0xad, 0xbe, 0xef,  0, 0, 0, 0,  0x60, 0x02, 0xff, 0xff,
            // checksum, no urgent pointer; MSS 1460
            0, 0, 0, 0,  2, 4, 0x05, 0xb4,
        ];
        let mut bytes = encoded(OUTER, INNER, Segment::Syn { from: 61000, to: 80, sequence: 0xdead_beef });
        for checksum in [10, 30, 56] {
            bytes[checksum..checksum + 2].fill(0);
        }
        assert_eq!(bytes, expected);
    }

    #[test]
    fn syn_in_ipv6_is_these_bytes() {
        #[rustfmt::skip]
        let expected = [
            // outer: version 6, no class, no flow label; payload 64; next header 41; hop limit 64
            0x60, 0, 0, 0,  0, 64, 41, 64,
            0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,  0xfd, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
            // inner: flow label 0x1234; payload 24; next header 6; hop limit 1
            0x60, 0, 0x12, 0x34,  0, 24, 6, 1,
            0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,  0xfd, 0x19, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
            // TCP as above but for the MSS: 1440
            0xee, 0x48, 0, 80,  0xde, 0xad, 0xbe, 0xef,  0, 0, 0, 0,  0x60, 0x02, 0xff, 0xff,
            0, 0, 0, 0,  2, 4, 0x05, 0xa0,
        ];
        let mut bytes = encoded(OUTER_6, INNER_6, Segment::Syn { from: 61000, to: 80, sequence: 0xdead_beef });
        bytes[96..98].fill(0);
        assert_eq!(bytes, expected);
    }

    /// Has another codec check lengths and checksums of the outer and the inner header.
    fn sound(bytes: &[u8]) -> SlicedPacket<'_> {
        let (protocol, skip) = if bytes[0] >> 4 == 4 {
            let outer = Ipv4HeaderSlice::from_slice(bytes).unwrap();
            assert_eq!(outer.header_checksum(), outer.to_header().calc_header_checksum());
            assert_eq!((usize::from(outer.total_len()), outer.ttl()), (bytes.len(), 64));
            (outer.protocol(), 20)
        } else {
            let outer = Ipv6HeaderSlice::from_slice(bytes).unwrap();
            assert_eq!((usize::from(outer.payload_length()), outer.hop_limit()), (bytes.len() - 40, 64));
            (outer.next_header(), 40)
        };
        let inner = SlicedPacket::from_ip(&bytes[skip..]).unwrap();
        match inner.net.as_ref().unwrap() {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                assert_eq!(header.header_checksum(), header.to_header().calc_header_checksum());
                assert_eq!((header.ttl(), u32::from(header.identification())), (1, TAG));
                assert_eq!(protocol, IpNumber::IPV4);
            }
            NetSlice::Ipv6(ip) => {
                assert_eq!((ip.header().hop_limit(), ip.header().flow_label().value()), (1, TAG));
                assert_eq!(protocol, IpNumber::IPV6);
            }
            NetSlice::Arp(_) => panic!("ARP"),
        }
        inner
    }

    #[test]
    fn tcp_checksum_agrees_with_the_oracle() {
        let (syn, rst) = (
            Segment::Syn { from: 61000, to: 80, sequence: 0xdead_beef },
            Segment::Rst { from: 61000, to: 80, sequence: 0xdead_bef0 },
        );
        for ((outer, inner), segment) in PAIRS.into_iter().flat_map(|pair| [(pair, syn), (pair, rst)]) {
            let bytes = encoded(outer, inner, segment);
            let Some(TransportSlice::Tcp(tcp)) = sound(&bytes).transport else { panic!("not TCP") };
            let header = tcp.to_header();
            let sum = match inner {
                Ends::V4 { source, destination } => {
                    header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), &[])
                }
                Ends::V6 { source, destination } => {
                    header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), &[])
                }
            };
            assert_eq!(tcp.checksum(), sum.unwrap());
            assert_eq!((tcp.syn(), tcp.rst()), (segment == syn, segment == rst));
        }
    }

    #[test]
    fn udp_checksum_agrees_with_the_oracle() {
        for (outer, inner) in PAIRS {
            let bytes = encoded(outer, inner, Segment::Datagram { from: 61000, to: 53, payload: b"odd" });
            let Some(TransportSlice::Udp(udp)) = sound(&bytes).transport else { panic!("not UDP") };
            let header = udp.to_header();
            let sum = match inner {
                Ends::V4 { source, destination } => {
                    header.calc_checksum_ipv4_raw(source.octets(), destination.octets(), b"odd")
                }
                Ends::V6 { source, destination } => {
                    header.calc_checksum_ipv6_raw(source.octets(), destination.octets(), b"odd")
                }
            };
            assert_eq!((udp.checksum(), udp.length(), udp.payload()), (sum.unwrap(), 11, &b"odd"[..]));
        }
    }

    #[test]
    fn udp_checksum_that_would_be_zero_is_all_ones() {
        for (outer, inner) in PAIRS {
            let bare = encoded(outer, inner, Segment::Datagram { from: 61000, to: 53, payload: &[0, 0] });
            // What is added to a sum to make it zero is the sum's complement.
            let checksum = *bare[bare.len() - 4..].first_chunk::<2>().unwrap();
            let zero = encoded(outer, inner, Segment::Datagram { from: 61000, to: 53, payload: &checksum });
            assert_eq!(zero[zero.len() - 4..zero.len() - 2], [0xff, 0xff]);
        }
    }

    #[test]
    fn echo_checksum_agrees_with_the_oracle() {
        for (outer, inner) in PAIRS {
            let bytes = encoded(outer, inner, Segment::Echo { id: 61000, sequence: 9, payload: &[1, 2, 3] });
            match (sound(&bytes).transport.unwrap(), inner) {
                (TransportSlice::Icmpv4(icmp), Ends::V4 { .. }) => {
                    assert_eq!(icmp.header().checksum, icmp.icmp_type().calc_checksum(&[1, 2, 3]));
                }
                (TransportSlice::Icmpv6(icmp), Ends::V6 { source, destination }) => {
                    assert!(icmp.is_checksum_valid(source.octets(), destination.octets()));
                    assert!(matches!(icmp.icmp_type(), etherparse::Icmpv6Type::EchoRequest(_)));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn packet_that_cannot_be_is_refused_and_nothing_appended() {
        let payload = vec![0; 65_500];
        let long = Segment::Datagram { from: 1, to: 2, payload: &payload };
        let syn = Segment::Syn { from: 61000, to: 80, sequence: 1 };
        for (outer, inner, segment) in [(OUTER, INNER, long), (OUTER_6, INNER_6, long), (OUTER, INNER_6, syn)] {
            let mut bytes = vec![7];
            assert!(
                encode(Some(outer), &Inner { ends: inner, tag: TAG, hops: NonZeroU8::MIN, segment }, &mut bytes)
                    .is_none()
            );
            assert_eq!(bytes, [7]);
        }
    }
}

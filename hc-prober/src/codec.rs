//! Probes to bytes. Replies from bytes: `reply`.

use std::net::Ipv4Addr;

use pnet_packet::{
    Packet, PrimitiveValues,
    icmp::{self, IcmpPacket, IcmpTypes, echo_request::MutableEchoRequestPacket},
    ip::{IpNextHeaderProtocol, IpNextHeaderProtocols},
    ipv4::{self, Ipv4Flags, MutableIpv4Packet},
    tcp::{self, MutableTcpPacket, TcpFlags, TcpOption},
    udp::{self, MutableUdpPacket},
};

/// Length of an IPv4 header without options, bytes.
const IPV4: usize = 20;
const ICMP: usize = 8;
const TCP: usize = 20;
const UDP: usize = 8;
/// Length of the MSS option, which every real client's SYN carries (RFC 9293, 3.7.1), bytes.
const MSS_OPTION: usize = 4;
const MSS: u16 = 1460;

const OUTER_TTL: u8 = 64;
/// Reaches a target that is local to the real and nothing beyond it: a probe is never bounced on to another real.
const INNER_TTL: u8 = 1;

/// The outer header: from us to the real.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outer {
    /// The source that the data plane uses.
    pub source: Ipv4Addr,
    /// The real.
    pub real: Ipv4Addr,
}

/// The packet inside the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner<'a> {
    /// Where the answer goes.
    pub source: Ipv4Addr,
    /// The target.
    pub target: Ipv4Addr,
    /// IPv4 identification.
    pub id: u16,
    /// What follows the header.
    pub segment: Segment<'a>,
}

/// What follows the inner IPv4 header.
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
    fn protocol(&self) -> IpNextHeaderProtocol {
        match self {
            Self::Echo { .. } => IpNextHeaderProtocols::Icmp,
            Self::Syn { .. } | Self::Rst { .. } => IpNextHeaderProtocols::Tcp,
            Self::Datagram { .. } => IpNextHeaderProtocols::Udp,
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

/// Appends the packet to `bytes`. `None`, and nothing appended, if it exceeds what IPv4 can hold.
pub fn encode(outer: Outer, inner: &Inner<'_>, bytes: &mut Vec<u8>) -> Option<()> {
    let segment_len = inner.segment.len();
    let inner_len = u16::try_from(IPV4 + segment_len).ok()?;
    let outer_len = u16::try_from(2 * IPV4 + segment_len).ok()?;
    let start = bytes.len();
    bytes.resize(start + usize::from(outer_len), 0);
    let packet = bytes.get_mut(start..)?;

    // The kernel fills in an outer identification and the checksum once more: see raw(7), IP_HDRINCL.
    let protocol = IpNextHeaderProtocols::Ipv4;
    write_ipv4(packet, outer.source, outer.real, &Header { len: outer_len, id: 0, ttl: OUTER_TTL, protocol })?;
    let packet = packet.get_mut(IPV4..)?;
    let protocol = inner.segment.protocol();
    write_ipv4(packet, inner.source, inner.target, &Header { len: inner_len, id: inner.id, ttl: INNER_TTL, protocol })?;
    write_segment(packet.get_mut(IPV4..)?, inner)
}

/// The fields of an IPv4 header that differ between ours.
struct Header {
    len: u16,
    id: u16,
    ttl: u8,
    protocol: IpNextHeaderProtocol,
}

fn write_ipv4(bytes: &mut [u8], source: Ipv4Addr, destination: Ipv4Addr, header: &Header) -> Option<()> {
    let mut ip = MutableIpv4Packet::new(bytes)?;
    ip.set_version(4);
    ip.set_header_length(5);
    ip.set_total_length(header.len);
    ip.set_identification(header.id);
    ip.set_flags(Ipv4Flags::DontFragment);
    ip.set_ttl(header.ttl);
    ip.set_next_level_protocol(header.protocol);
    ip.set_source(source);
    ip.set_destination(destination);
    let checksum = ipv4::checksum(&ip.to_immutable());
    ip.set_checksum(checksum);
    Some(())
}

fn write_segment(bytes: &mut [u8], inner: &Inner<'_>) -> Option<()> {
    match inner.segment {
        Segment::Echo { id, sequence, payload } => write_echo(bytes, id, sequence, payload),
        Segment::Syn { from, to, sequence } => write_tcp(bytes, inner, from, to, sequence, TcpFlags::SYN),
        Segment::Rst { from, to, sequence } => write_tcp(bytes, inner, from, to, sequence, TcpFlags::RST),
        Segment::Datagram { from, to, payload } => {
            let mut datagram = MutableUdpPacket::new(bytes)?;
            datagram.set_source(from);
            datagram.set_destination(to);
            datagram.set_length(u16::try_from(UDP + payload.len()).ok()?);
            datagram.set_payload(payload);
            let checksum = udp::ipv4_checksum(&datagram.to_immutable(), &inner.source, &inner.target);
            // RFC 768: a computed zero is transmitted as all ones; zero means no checksum.
            datagram.set_checksum(if checksum == 0 { 0xffff } else { checksum });
            Some(())
        }
    }
}

fn write_echo(bytes: &mut [u8], id: u16, sequence: u16, payload: &[u8]) -> Option<()> {
    let mut echo = MutableEchoRequestPacket::new(bytes)?;
    echo.set_icmp_type(IcmpTypes::EchoRequest);
    echo.set_identifier(id);
    echo.set_sequence_number(sequence);
    echo.set_payload(payload);
    let checksum = icmp::checksum(&IcmpPacket::new(echo.packet())?);
    echo.set_checksum(checksum);
    Some(())
}

fn write_tcp(bytes: &mut [u8], inner: &Inner<'_>, from: u16, to: u16, sequence: u32, flags: u8) -> Option<()> {
    let words = u8::try_from(bytes.len() / 4).ok()?;
    let mut segment = MutableTcpPacket::new(bytes)?;
    segment.set_source(from);
    segment.set_destination(to);
    segment.set_sequence(sequence);
    segment.set_data_offset(words);
    segment.set_flags(flags);
    if flags == TcpFlags::SYN {
        segment.set_window(u16::MAX);
        segment.set_options(&[TcpOption::mss(MSS)]);
    }
    let checksum = tcp::ipv4_checksum(&segment.to_immutable(), &inner.source, &inner.target);
    segment.set_checksum(checksum);
    Some(())
}

/// The protocol number of an IP header, as this crate names it.
pub(crate) fn number(protocol: IpNextHeaderProtocol) -> u8 {
    let (number,) = protocol.to_primitive_values();
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    const OUTER: Outer = Outer { source: Ipv4Addr::new(198, 18, 0, 1), real: Ipv4Addr::new(198, 18, 101, 10) };

    fn encoded(segment: Segment<'_>) -> Vec<u8> {
        let (source, target) = (Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 19, 10, 1));
        let mut bytes = Vec::new();
        encode(OUTER, &Inner { source, target, id: 0x1234, segment }, &mut bytes).unwrap();
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
        let mut bytes = encoded(Segment::Syn { from: 61000, to: 80, sequence: 0xdead_beef });
        for checksum in [10, 30, 56] {
            bytes[checksum..checksum + 2].fill(0);
        }
        assert_eq!(bytes, expected);
    }

    /// Has another codec check lengths and checksums of the outer and the inner packet.
    fn assert_sound(bytes: &[u8], check: impl Fn(&TransportSlice<'_>, &etherparse::Ipv4HeaderSlice<'_>)) {
        let outer = etherparse::Ipv4HeaderSlice::from_slice(bytes).unwrap();
        assert_eq!(outer.header_checksum(), outer.to_header().calc_header_checksum());
        assert_eq!(usize::from(outer.total_len()), bytes.len());
        assert_eq!(outer.protocol(), etherparse::IpNumber::IPV4);
        let inner = SlicedPacket::from_ip(&bytes[20..]).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &inner.net else { panic!("no IPv4 inside") };
        assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
        assert_eq!((ip.header().ttl(), ip.header().identification()), (1, 0x1234));
        check(inner.transport.as_ref().unwrap(), &ip.header());
    }

    #[test]
    fn tcp_checksum_agrees_with_the_oracle() {
        for segment in [
            Segment::Syn { from: 61000, to: 80, sequence: 0xdead_beef },
            Segment::Rst { from: 61000, to: 80, sequence: 0xdead_bef0 },
        ] {
            assert_sound(&encoded(segment), |transport, ip| {
                let TransportSlice::Tcp(tcp) = transport else { panic!("not TCP") };
                let sum = tcp.to_header().calc_checksum_ipv4_raw(ip.source(), ip.destination(), &[]).unwrap();
                assert_eq!(tcp.checksum(), sum);
                assert_eq!(tcp.syn(), matches!(segment, Segment::Syn { .. }));
                assert_eq!(tcp.rst(), matches!(segment, Segment::Rst { .. }));
            });
        }
    }

    #[test]
    fn udp_checksum_agrees_with_the_oracle() {
        assert_sound(&encoded(Segment::Datagram { from: 61000, to: 53, payload: b"odd" }), |transport, ip| {
            let TransportSlice::Udp(udp) = transport else { panic!("not UDP") };
            let sum = udp.to_header().calc_checksum_ipv4_raw(ip.source(), ip.destination(), b"odd").unwrap();
            assert_eq!((udp.checksum(), udp.length(), udp.payload()), (sum, 11, &b"odd"[..]));
        });
    }

    #[test]
    fn echo_checksum_agrees_with_the_oracle() {
        assert_sound(&encoded(Segment::Echo { id: 61000, sequence: 9, payload: &[1, 2, 3] }), |transport, _| {
            let TransportSlice::Icmpv4(icmp) = transport else { panic!("not ICMP") };
            assert_eq!(icmp.header().checksum, icmp.icmp_type().calc_checksum(&[1, 2, 3]));
        });
    }

    #[test]
    fn payload_too_long_is_refused() {
        let payload = vec![0; 65_500];
        let inner = Inner {
            source: OUTER.source,
            target: OUTER.real,
            id: 1,
            segment: Segment::Datagram { from: 1, to: 2, payload: &payload },
        };
        assert!(encode(OUTER, &inner, &mut Vec::new()).is_none());
    }
}

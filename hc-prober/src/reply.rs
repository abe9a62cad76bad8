//! Replies from bytes: what a captured packet claims. Whether it is genuine, the engine finds out.

use std::net::IpAddr;

use pnet_packet::{
    Packet as _,
    icmp::{IcmpPacket, IcmpType, IcmpTypes, echo_reply::EchoReplyPacket},
    icmpv6::Icmpv6Types,
    ip::{IpNextHeaderProtocol, IpNextHeaderProtocols},
    ipv4::Ipv4Packet,
    ipv6::{FragmentPacket, Ipv6Packet},
    tcp::{TcpFlags, TcpPacket},
    udp::UdpPacket,
};

use crate::{
    cookie::{LaneKey, Protocol},
    ends::Ends,
};

/// Length of an ICMP header, of either family, up to what an echo carries and an error quotes.
const ICMP: usize = 8;

/// A captured packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply<'a> {
    /// An answer to the probe that left from `port` of `lane`.
    Answer {
        /// Which lane.
        lane: LaneKey,
        /// Our port or ICMP identifier, host byte order.
        port: u16,
        /// What it says.
        answer: Answer<'a>,
    },
    /// An ICMP error about an outer packet to `real`: too little is quoted to prove anything.
    Outer {
        /// The real to which the quoted packet went.
        real: IpAddr,
        /// The error.
        error: IcmpError,
    },
}

/// An answer, with what it gives back of the cookie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// ICMP echo reply.
    Echo {
        /// Echoed sequence number.
        sequence: u16,
        /// Echoed data.
        payload: &'a [u8],
    },
    /// TCP segment with SYN and ACK.
    SynAck {
        /// Acknowledgement number.
        acknowledgement: u32,
        /// The largest segment that its sender takes, in bytes without headers; `None`: it does not say.
        mss: Option<u16>,
    },
    /// TCP segment with RST and ACK. Without ACK it proves nothing and counts as [`Answer::Unproven`].
    Reset {
        /// Acknowledgement number.
        acknowledgement: u32,
    },
    /// Another TCP segment with ACK, e.g. a challenge ACK (RFC 5961).
    Ack,
    /// A TCP segment without ACK.
    Unproven,
    /// UDP datagram.
    Datagram {
        /// Data, as far as it was captured.
        payload: &'a [u8],
    },
    /// ICMP error quoting our inner packet.
    Error {
        /// The error.
        error: IcmpError,
        /// Quoted IPv4 identification or IPv6 flow label.
        tag: u32,
        /// Quoted TCP sequence number, or ICMP sequence number; `None` for UDP.
        sequence: Option<u32>,
    },
}

/// An ICMP or ICMPv6 error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Who reports it; its family says which protocol's types and codes they are.
    pub from: IpAddr,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
}

/// What ICMP errors of both families tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// There is no route.
    NetworkUnreachable,
    /// The last router finds no neighbour of that address.
    HostUnreachable,
    /// The destination has no use for the protocol in the header.
    ProtocolUnreachable,
    /// The destination has nothing there that listens.
    PortUnreachable,
    /// The packet does not fit the next link.
    TooBig,
    /// A filter says so.
    Prohibited,
    /// TTL or hop limit were used up.
    TimeExceeded,
    /// Something else.
    Other,
}

impl IcmpError {
    /// RFC 792 and RFC 1812, 5.2.7.1; RFC 4443, 3.
    #[must_use]
    pub fn trouble(&self) -> Trouble {
        match (self.from, self.kind, self.code) {
            (IpAddr::V4(_), 3, 0) | (IpAddr::V6(_), 1, 0) => Trouble::NetworkUnreachable,
            (IpAddr::V4(_), 3, 1) | (IpAddr::V6(_), 1, 3) => Trouble::HostUnreachable,
            (IpAddr::V4(_), 3, 2) | (IpAddr::V6(_), 4, 1) => Trouble::ProtocolUnreachable,
            (IpAddr::V4(_), 3, 3) | (IpAddr::V6(_), 1, 4) => Trouble::PortUnreachable,
            (IpAddr::V4(_), 3, 4) | (IpAddr::V6(_), 2, _) => Trouble::TooBig,
            (IpAddr::V4(_), 3, 9 | 10 | 13) | (IpAddr::V6(_), 1, 1 | 5 | 6) => Trouble::Prohibited,
            (IpAddr::V4(_), 11, 0) | (IpAddr::V6(_), 3, 0) => Trouble::TimeExceeded,
            (IpAddr::V4(_) | IpAddr::V6(_), _, _) => Trouble::Other,
        }
    }
}

/// What an IP header says, of either family, and what follows it.
struct Header<'a> {
    ends: Ends,
    /// See [`Answer::Error`].
    tag: u32,
    protocol: IpNextHeaderProtocol,
    payload: &'a [u8],
}

impl<'a> Header<'a> {
    /// `None`: no IP header, or a later fragment. Of IPv6's extension headers one fragment header is understood; neither
    /// answers to probes nor the probes that errors quote have others.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        match bytes.first()? >> 4 {
            4 => Self::read_v4(bytes),
            6 => Self::read_v6(bytes),
            _ => None,
        }
    }

    fn read_v4(bytes: &'a [u8]) -> Option<Self> {
        let ip = Ipv4Packet::new(bytes)?;
        let header = usize::from(ip.get_header_length()) * 4;
        let whole = header >= Ipv4Packet::minimum_packet_size() && ip.get_fragment_offset() == 0;
        Some(Self {
            ends: Ends::V4 { source: ip.get_source(), destination: ip.get_destination() },
            tag: ip.get_identification().into(),
            protocol: ip.get_next_level_protocol(),
            payload: bytes.get(header..).filter(|_| whole)?,
        })
    }

    fn read_v6(bytes: &'a [u8]) -> Option<Self> {
        let ip = Ipv6Packet::new(bytes)?;
        let rest = bytes.get(Ipv6Packet::minimum_packet_size()..)?;
        let (protocol, payload) = match ip.get_next_header() {
            IpNextHeaderProtocols::Ipv6Frag => {
                let fragment = FragmentPacket::new(rest).filter(|fragment| fragment.get_fragment_offset() == 0)?;
                (fragment.get_next_header(), rest.get(FragmentPacket::minimum_packet_size()..)?)
            }
            protocol => (protocol, rest),
        };
        let ends = Ends::V6 { source: ip.get_source(), destination: ip.get_destination() };
        Some(Self { ends, tag: ip.get_flow_label(), protocol, payload })
    }

    /// The protocol of a probe or of its answer.
    fn transport(&self) -> Option<Protocol> {
        match (self.protocol, self.ends) {
            (IpNextHeaderProtocols::Tcp, _) => Some(Protocol::Tcp),
            (IpNextHeaderProtocols::Udp, _) => Some(Protocol::Udp),
            (IpNextHeaderProtocols::Icmp, Ends::V4 { .. }) | (IpNextHeaderProtocols::Icmpv6, Ends::V6 { .. }) => {
                Some(Protocol::Icmp)
            }
            _ => None,
        }
    }
}

/// Reads a packet from its IP header on; checksums are not looked at, a damaged cookie would not match. `None`: not a reply
/// that the capture would hand up.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Reply<'_>> {
    let ip = Header::read(bytes)?;
    let lane = |protocol, port| LaneKey { ends: ip.ends.reversed(), protocol, port };
    match ip.transport()? {
        Protocol::Tcp => {
            let tcp = TcpPacket::new(ip.payload)?;
            let lane = lane(Protocol::Tcp, tcp.get_source());
            Some(Reply::Answer { lane, port: tcp.get_destination(), answer: tcp_answer(&tcp) })
        }
        Protocol::Udp => {
            let udp = UdpPacket::new(ip.payload)?;
            let end = usize::from(udp.get_length()).min(ip.payload.len());
            let answer = Answer::Datagram { payload: ip.payload.get(8..end)? };
            Some(Reply::Answer { lane: lane(Protocol::Udp, udp.get_source()), port: udp.get_destination(), answer })
        }
        Protocol::Icmp => {
            let icmp = IcmpPacket::new(ip.payload)?;
            let rest = ip.payload.get(ICMP..)?;
            if !is_type(&icmp, ip.ends, IcmpTypes::EchoReply, Icmpv6Types::EchoReply.0) {
                return parse_error(&ip, &icmp, rest);
            }
            let echo = EchoReplyPacket::new(ip.payload)?;
            let answer = Answer::Echo { sequence: echo.get_sequence_number(), payload: rest };
            Some(Reply::Answer { lane: lane(Protocol::Icmp, 0), port: echo.get_identifier(), answer })
        }
    }
}

/// The two protocols' messages are alike but for the types.
fn is_type(icmp: &IcmpPacket<'_>, ends: Ends, v4: IcmpType, v6: u8) -> bool {
    icmp.get_icmp_type()
        == match ends {
            Ends::V4 { .. } => v4,
            Ends::V6 { .. } => IcmpType(v6),
        }
}

fn tcp_answer<'a>(tcp: &TcpPacket<'_>) -> Answer<'a> {
    let (flags, acknowledgement) = (tcp.get_flags(), tcp.get_acknowledgement());
    let has = |flag| flags & flag != 0;
    match (has(TcpFlags::ACK), has(TcpFlags::RST), has(TcpFlags::SYN)) {
        (true, true, _) => Answer::Reset { acknowledgement },
        (true, false, true) => Answer::SynAck { acknowledgement, mss: mss(tcp) },
        (true, false, false) => Answer::Ack,
        (false, _, _) => Answer::Unproven,
    }
}

/// RFC 9293, 3.2 and 3.7.1: the maximum segment size option, if the options before it are well formed and all was captured.
fn mss(tcp: &TcpPacket<'_>) -> Option<u16> {
    let end = usize::from(tcp.get_data_offset()) * 4;
    let mut options = tcp.packet().get(TcpPacket::minimum_packet_size()..end)?;
    loop {
        options = match *options {
            // The end of the list.
            [] | [0, ..] => return None,
            // No operation: the only other one without a length.
            [1, ref rest @ ..] => rest,
            [2, 4, high, low, ..] => return Some(u16::from_be_bytes([high, low])),
            [_, length, ..] if length >= 2 => options.get(usize::from(length)..)?,
            _ => return None,
        }
    }
}

/// RFC 792: an error quotes the IP header and at least 64 bits of the packet it is about. ICMPv6 quotes more (RFC 4443, 2.4).
fn parse_error<'a>(ip: &Header<'_>, icmp: &IcmpPacket<'_>, quotation: &[u8]) -> Option<Reply<'a>> {
    let IcmpType(kind) = icmp.get_icmp_type();
    let error = IcmpError { from: ip.ends.source(), kind, code: icmp.get_icmp_code().0 };
    let quoted = Header::read(quotation)?;
    if matches!(quoted.protocol, IpNextHeaderProtocols::Ipv4 | IpNextHeaderProtocols::Ipv6) {
        return Some(Reply::Outer { real: quoted.ends.destination(), error });
    }
    let (lane, port, sequence) = request(&quoted)?;
    Some(Reply::Answer { lane, port, answer: Answer::Error { error, tag: quoted.tag, sequence } })
}

/// The lane and the port that a packet of ours left from, within a tunnel or not.
#[must_use]
pub fn departure(bytes: &[u8]) -> Option<(LaneKey, u16)> {
    let outer = Header::read(bytes)?;
    let (lane, port, _) = match outer.protocol {
        IpNextHeaderProtocols::Ipv4 | IpNextHeaderProtocols::Ipv6 => request(&Header::read(outer.payload)?),
        _ => request(&outer),
    }?;
    Some((lane, port))
}

/// What identifies a packet of ours, of which eight bytes after the header are there: lane, port and number.
fn request(packet: &Header<'_>) -> Option<(LaneKey, u16, Option<u32>)> {
    let protocol = packet.transport()?;
    let head = packet.payload;
    let (ours, theirs, sequence) = match protocol {
        Protocol::Icmp => {
            let echo = IcmpPacket::new(head)?;
            if !is_type(&echo, packet.ends, IcmpTypes::EchoRequest, Icmpv6Types::EchoRequest.0) {
                return None;
            }
            // A request's identifier and number are where the reply has them.
            let echo = EchoReplyPacket::new(head)?;
            (echo.get_identifier(), 0, Some(u32::from(echo.get_sequence_number())))
        }
        // TCP's and UDP's ports are in the same place; the sequence number is in TCP's next four bytes.
        Protocol::Tcp | Protocol::Udp => {
            let udp = UdpPacket::new(head)?;
            let sequence = u32::from_be_bytes(*head.get(4..)?.first_chunk()?);
            (udp.get_source(), udp.get_destination(), (protocol == Protocol::Tcp).then_some(sequence))
        }
    };
    Some((LaneKey { ends: packet.ends, protocol, port: theirs }, ours, sequence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpFragOffset, IpNumber, Ipv4Header, Ipv6FragmentHeader, Ipv6Header, PacketBuilder};
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    const VIP: [u8; 4] = [198, 19, 10, 1];
    const US: [u8; 4] = [198, 18, 0, 1];
    const VIP_6: Ipv6Addr = Ipv6Addr::new(0xfd19, 0x10, 0, 0, 0, 0, 0, 1);
    const US_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const REAL_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x101, 0, 0, 0, 0, 0, 0x10);

    fn lane(protocol: Protocol, port: u16) -> LaneKey {
        LaneKey { ends: Ends::V4 { source: US.into(), destination: VIP.into() }, protocol, port }
    }

    fn lane6(protocol: Protocol, port: u16) -> LaneKey {
        LaneKey { ends: Ends::V6 { source: US_6, destination: VIP_6 }, protocol, port }
    }

    /// An ICMPv6 error about a packet of ours to `destination`, with the header's next header and what follows it.
    fn error6(from: Ipv6Addr, kind: u8, code: u8, destination: Ipv6Addr, next: IpNumber, rest: &[u8]) -> Vec<u8> {
        let mut quoted = Ipv6Header { source: US_6.octets(), destination: destination.octets(), ..Default::default() };
        quoted.next_header = next;
        quoted.flow_label = 0x4_2424_u32.try_into().unwrap();
        quoted.payload_length = u16::try_from(rest.len()).unwrap();
        let payload = [quoted.to_bytes().as_slice(), rest].concat();
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv6(from.octets(), US_6.octets(), 64).icmpv6_raw(kind, code, [0; 4]);
        builder.write(&mut bytes, &payload).unwrap();
        bytes
    }

    #[test]
    fn syn_ack_from_the_vip_is_an_answer() {
        let answer = Answer::SynAck { acknowledgement: 0xdead_bef0, mss: None };
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(VIP, US, 64).tcp(80, 61000, 7, 1000).syn().ack(0xdead_bef0);
        builder.write(&mut bytes, &[]).unwrap();
        let lane = lane(Protocol::Tcp, 80);
        assert_eq!(parse(&bytes), Some(Reply::Answer { lane, port: 61000, answer }));

        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv6(VIP_6.octets(), US_6.octets(), 64).tcp(80, 61000, 7, 1000);
        builder.syn().ack(0xdead_bef0).write(&mut bytes, &[]).unwrap();
        let lane = lane6(Protocol::Tcp, 80);
        assert_eq!(parse(&bytes), Some(Reply::Answer { lane, port: 61000, answer }));
    }

    #[test]
    fn mss_is_read_behind_other_options_and_only_if_all_is_there() {
        let syn_ack = |options: &[u8]| {
            let mut bytes = Vec::new();
            let builder = PacketBuilder::ipv4(VIP, US, 64).tcp(80, 61000, 7, 1000).syn().ack(1);
            builder.options_raw(options).unwrap().write(&mut bytes, &[]).unwrap();
            bytes
        };
        let read = |bytes: &[u8]| match parse(bytes) {
            Some(Reply::Answer { answer: Answer::SynAck { mss, .. }, .. }) => mss,
            other => panic!("{other:?}"),
        };
        assert_eq!(read(&syn_ack(&[2, 4, 0x05, 0xb4])), Some(1460));
        assert_eq!(read(&syn_ack(&[1, 3, 3, 7, 4, 2, 2, 4, 0x05, 0x78, 1, 0])), Some(1400));
        for bad in [[2, 3, 0x05, 0xb4], [3, 0, 2, 4], [0, 2, 4, 5], [8, 10, 2, 4], [1, 1, 1, 2]] {
            assert_eq!(read(&syn_ack(&bad)), None, "{bad:?}");
        }
        let whole = syn_ack(&[2, 4, 0x05, 0xb4]);
        assert_eq!(read(&whole[..whole.len() - 1]), None, "cut off");
    }

    #[test]
    fn echo_reply_of_the_other_familys_icmp_is_none() {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv6(VIP_6.octets(), US_6.octets(), 64).icmpv6_echo_reply(61000, 9);
        builder.write(&mut bytes, b"cookie").unwrap();
        let answer = Answer::Echo { sequence: 9, payload: b"cookie" };
        assert_eq!(parse(&bytes), Some(Reply::Answer { lane: lane6(Protocol::Icmp, 0), port: 61000, answer }));
        bytes[6] = IpNumber::ICMP.0;
        assert_eq!(parse(&bytes), None);
    }

    #[test]
    fn reset_without_ack_is_unproven() {
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(VIP, US, 64).tcp(80, 61000, 7, 0).rst().write(&mut bytes, &[]).unwrap();
        assert!(matches!(parse(&bytes), Some(Reply::Answer { answer: Answer::Unproven, .. })));
    }

    #[test]
    fn port_unreachable_quoting_our_datagram_is_an_error_answer() {
        let mut quoted = Ipv4Header::new(16, 1, IpNumber::UDP, US, VIP).unwrap();
        quoted.identification = 0x4242;
        let mut payload = quoted.to_bytes().to_vec();
        payload.extend([0xee, 0x48, 0, 53, 0, 16, 0, 0]);
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(VIP, US, 64).icmpv4_raw(3, 3, [0; 4]).write(&mut bytes, &payload).unwrap();
        let error = IcmpError { from: Ipv4Addr::from(VIP).into(), kind: 3, code: 3 };
        assert_eq!(error.trouble(), Trouble::PortUnreachable);
        let answer = Answer::Error { error, tag: 0x4242, sequence: None };
        assert_eq!(parse(&bytes), Some(Reply::Answer { lane: lane(Protocol::Udp, 53), port: 61000, answer }));
    }

    #[test]
    fn port_unreachable_of_ipv6_is_known_by_the_flow_label() {
        let bytes = error6(VIP_6, 1, 4, VIP_6, IpNumber::UDP, &[0xee, 0x48, 0, 53, 0, 16, 0, 0]);
        let error = IcmpError { from: VIP_6.into(), kind: 1, code: 4 };
        assert_eq!(error.trouble(), Trouble::PortUnreachable);
        let answer = Answer::Error { error, tag: 0x4_2424, sequence: None };
        assert_eq!(parse(&bytes), Some(Reply::Answer { lane: lane6(Protocol::Udp, 53), port: 61000, answer }));
    }

    #[test]
    fn time_exceeded_of_ipv6_quoting_our_echo_gives_back_its_number() {
        let bytes = error6(REAL_6, 3, 0, VIP_6, IpNumber::IPV6_ICMP, &[128, 0, 0, 0, 0xee, 0x48, 0, 9]);
        let error = IcmpError { from: REAL_6.into(), kind: 3, code: 0 };
        assert_eq!(error.trouble(), Trouble::TimeExceeded);
        let answer = Answer::Error { error, tag: 0x4_2424, sequence: Some(9) };
        assert_eq!(parse(&bytes), Some(Reply::Answer { lane: lane6(Protocol::Icmp, 0), port: 61000, answer }));
        let foreign = error6(REAL_6, 3, 0, VIP_6, IpNumber::IPV6_ICMP, &[129, 0, 0, 0, 0xee, 0x48, 0, 9]);
        assert_eq!(parse(&foreign), None, "not a request");
    }

    #[test]
    fn protocol_unreachable_quoting_the_tunnel_is_about_the_outer_packet() {
        let real = [198, 18, 101, 10];
        let mut payload = Ipv4Header::new(64, 64, IpNumber::IPV4, US, real).unwrap().to_bytes().to_vec();
        payload.extend([0x45, 0, 0, 44, 0, 0, 0x40, 0]);
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(real, US, 64).icmpv4_raw(3, 2, [0; 4]).write(&mut bytes, &payload).unwrap();
        let real = IpAddr::from(real);
        let error = IcmpError { from: real, kind: 3, code: 2 };
        assert_eq!(parse(&bytes), Some(Reply::Outer { real, error }));
        // RFC 4443, 3.4: unrecognized next header; of both protocols that are tunnelled in IPv6.
        for next in [IpNumber::IPV4, IpNumber::IPV6] {
            let bytes = error6(REAL_6, 4, 1, REAL_6, next, &[0x60, 0, 0, 0, 0, 0, 6, 1]);
            let error = IcmpError { from: REAL_6.into(), kind: 4, code: 1 };
            assert_eq!(error.trouble(), Trouble::ProtocolUnreachable);
            assert_eq!(parse(&bytes), Some(Reply::Outer { real: REAL_6.into(), error }));
        }
    }

    #[test]
    fn fragments_are_read_if_they_are_the_first() {
        for (offset, expected) in [(0, true), (1, false)] {
            let udp = [0, 53, 0xee, 0x48, 4, 0, 0, 0, b'o', b'k'];
            let offset = IpFragOffset::try_new(offset).unwrap();
            let fragment = Ipv6FragmentHeader::new(IpNumber::UDP, offset, true, 7).to_bytes();
            let mut ip = Ipv6Header { source: VIP_6.octets(), destination: US_6.octets(), ..Default::default() };
            ip.next_header = IpNumber::IPV6_FRAGMENTATION_HEADER;
            ip.payload_length = 18;
            let bytes = [ip.to_bytes().as_slice(), &fragment, &udp].concat();
            let answer = Answer::Datagram { payload: b"ok" };
            let reply = Reply::Answer { lane: lane6(Protocol::Udp, 53), port: 61000, answer };
            assert_eq!(parse(&bytes), expected.then_some(reply));

            let mut ip = Ipv4Header::new(10, 64, IpNumber::UDP, VIP, US).unwrap();
            (ip.fragment_offset, ip.more_fragments) = (offset, true);
            let bytes = [ip.to_bytes().as_slice(), &udp].concat();
            let reply = Reply::Answer { lane: lane(Protocol::Udp, 53), port: 61000, answer };
            assert_eq!(parse(&bytes), expected.then_some(reply));
        }
    }

    #[test]
    fn extension_headers_but_for_a_fragments_are_no_reply() {
        let mut ip = Ipv6Header { source: VIP_6.octets(), destination: US_6.octets(), ..Default::default() };
        ip.next_header = IpNumber::IPV6_DESTINATION_OPTIONS;
        ip.payload_length = 18;
        let options = [IpNumber::UDP.0, 0, 1, 4, 0, 0, 0, 0];
        let bytes = [ip.to_bytes().as_slice(), &options, &[0, 53, 0xee, 0x48, 0, 10, 0, 0, b'o', b'k']].concat();
        assert_eq!(parse(&bytes), None);
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..192), protocol in 0_usize..6, v6: bool, quoted: bool,
        ) {
            const PROTOCOLS: [u8; 6] = [1, 6, 17, 4, 44, 58];
            let (first, at, header) = if v6 { (0x60, 6, 40) } else { (0x45, 9, 20) };
            if bytes.len() > 100 {
                (bytes[0], bytes[at]) = (first, PROTOCOLS[protocol]);
                if quoted {
                    // An error, so that the quotation is read.
                    (bytes[at], bytes[header]) = if v6 { (58, 1) } else { (1, 3) };
                    (bytes[header + 8], bytes[header + 8 + at]) = (first, PROTOCOLS[protocol]);
                }
            }
            let _ = parse(&bytes);
        }
    }
}

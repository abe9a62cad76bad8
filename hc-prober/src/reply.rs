//! Replies from bytes: what a captured packet claims. Whether it is genuine, the engine finds out.

use std::net::Ipv4Addr;

use pnet_packet::{
    icmp::{IcmpPacket, IcmpType, IcmpTypes, echo_reply::EchoReplyPacket, echo_request::EchoRequestPacket},
    ip::IpNextHeaderProtocols,
    ipv4::Ipv4Packet,
    tcp::{TcpFlags, TcpPacket},
    udp::UdpPacket,
};

use crate::{
    codec::number,
    cookie::{LaneKey, Protocol},
};

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
        real: Ipv4Addr,
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
        /// Quoted IPv4 identification.
        id: u16,
        /// Quoted TCP sequence number, or ICMP sequence number; `None` for UDP.
        sequence: Option<u32>,
    },
}

/// An ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    /// Who reports it.
    pub from: Ipv4Addr,
    /// ICMP type.
    pub kind: u8,
    /// ICMP code.
    pub code: u8,
}

/// Reads a packet from its IPv4 header on; checksums are not looked at, a damaged cookie would not match. `None`: not a
/// reply that the capture would hand up.
#[must_use]
pub fn parse(bytes: &[u8]) -> Option<Reply<'_>> {
    let ip = Ipv4Packet::new(bytes)?;
    let payload = bytes.get(usize::from(ip.get_header_length()) * 4..)?;
    let lane = |protocol, port| LaneKey { local: ip.get_destination(), target: ip.get_source(), protocol, port };
    match ip.get_next_level_protocol() {
        IpNextHeaderProtocols::Tcp => {
            let tcp = TcpPacket::new(payload)?;
            let lane = lane(Protocol::Tcp, tcp.get_source());
            Some(Reply::Answer { lane, port: tcp.get_destination(), answer: tcp_answer(&tcp) })
        }
        IpNextHeaderProtocols::Udp => {
            let udp = UdpPacket::new(payload)?;
            let end = usize::from(udp.get_length()).min(payload.len());
            let answer = Answer::Datagram { payload: payload.get(8..end)? };
            Some(Reply::Answer { lane: lane(Protocol::Udp, udp.get_source()), port: udp.get_destination(), answer })
        }
        IpNextHeaderProtocols::Icmp => {
            let icmp = IcmpPacket::new(payload)?;
            if icmp.get_icmp_type() != IcmpTypes::EchoReply {
                return parse_error(ip.get_source(), &icmp, payload.get(8..)?);
            }
            let echo = EchoReplyPacket::new(payload)?;
            let answer = Answer::Echo { sequence: echo.get_sequence_number(), payload: payload.get(8..)? };
            Some(Reply::Answer { lane: lane(Protocol::Icmp, 0), port: echo.get_identifier(), answer })
        }
        _ => None,
    }
}

fn tcp_answer<'a>(tcp: &TcpPacket<'_>) -> Answer<'a> {
    let (flags, acknowledgement) = (tcp.get_flags(), tcp.get_acknowledgement());
    let has = |flag| flags & flag != 0;
    match (has(TcpFlags::ACK), has(TcpFlags::RST), has(TcpFlags::SYN)) {
        (true, true, _) => Answer::Reset { acknowledgement },
        (true, false, true) => Answer::SynAck { acknowledgement },
        (true, false, false) => Answer::Ack,
        (false, _, _) => Answer::Unproven,
    }
}

/// RFC 792: an error quotes the IP header and at least 64 bits of the packet it is about.
fn parse_error<'a>(from: Ipv4Addr, icmp: &IcmpPacket<'_>, quotation: &[u8]) -> Option<Reply<'a>> {
    let IcmpType(kind) = icmp.get_icmp_type();
    let error = IcmpError { from, kind, code: icmp.get_icmp_code().0 };
    let ip = Ipv4Packet::new(quotation)?;
    let protocol = match number(ip.get_next_level_protocol()) {
        1 => Protocol::Icmp,
        4 => return Some(Reply::Outer { real: ip.get_destination(), error }),
        6 => Protocol::Tcp,
        17 => Protocol::Udp,
        _ => return None,
    };
    let head = quotation.get(usize::from(ip.get_header_length()) * 4..)?;
    let (ours, theirs, sequence) = match protocol {
        Protocol::Icmp => {
            let echo = EchoRequestPacket::new(head)?;
            if echo.get_icmp_type() != IcmpTypes::EchoRequest {
                return None;
            }
            (echo.get_identifier(), 0, Some(u32::from(echo.get_sequence_number())))
        }
        // TCP's and UDP's ports are in the same place; the sequence number is in TCP's next four bytes.
        Protocol::Tcp | Protocol::Udp => {
            let udp = UdpPacket::new(head)?;
            let sequence = u32::from_be_bytes(*head.get(4..)?.first_chunk()?);
            (udp.get_source(), udp.get_destination(), (protocol == Protocol::Tcp).then_some(sequence))
        }
    };
    let lane = LaneKey { local: ip.get_source(), target: ip.get_destination(), protocol, port: theirs };
    Some(Reply::Answer { lane, port: ours, answer: Answer::Error { error, id: ip.get_identification(), sequence } })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{IpNumber, Ipv4Header, PacketBuilder};
    use proptest::prelude::*;

    const VIP: [u8; 4] = [198, 19, 10, 1];
    const US: [u8; 4] = [198, 18, 0, 1];

    fn lane(protocol: Protocol, port: u16) -> LaneKey {
        LaneKey { local: US.into(), target: VIP.into(), protocol, port }
    }

    #[test]
    fn syn_ack_from_the_vip_is_an_answer() {
        let mut bytes = Vec::new();
        let builder = PacketBuilder::ipv4(VIP, US, 64).tcp(80, 61000, 7, 1000).syn().ack(0xdead_bef0);
        builder.write(&mut bytes, &[]).unwrap();
        let answer = Answer::SynAck { acknowledgement: 0xdead_bef0 };
        let lane = lane(Protocol::Tcp, 80);
        assert_eq!(parse(&bytes), Some(Reply::Answer { lane, port: 61000, answer }));
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
        let error = IcmpError { from: VIP.into(), kind: 3, code: 3 };
        let answer = Answer::Error { error, id: 0x4242, sequence: None };
        assert_eq!(parse(&bytes), Some(Reply::Answer { lane: lane(Protocol::Udp, 53), port: 61000, answer }));
    }

    #[test]
    fn protocol_unreachable_quoting_the_tunnel_is_about_the_outer_packet() {
        let real = [198, 18, 101, 10];
        let mut payload = Ipv4Header::new(64, 64, IpNumber::IPV4, US, real).unwrap().to_bytes().to_vec();
        payload.extend([0x45, 0, 0, 44, 0, 0, 0x40, 0]);
        let mut bytes = Vec::new();
        PacketBuilder::ipv4(real, US, 64).icmpv4_raw(3, 2, [0; 4]).write(&mut bytes, &payload).unwrap();
        let error = IcmpError { from: real.into(), kind: 3, code: 2 };
        assert_eq!(parse(&bytes), Some(Reply::Outer { real: real.into(), error }));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..192), protocol in 0_usize..4) {
            if bytes.len() > 20 {
                bytes[0] = 0x45;
                bytes[9] = [1, 6, 17, 4][protocol];
            }
            let _ = parse(&bytes);
        }
    }
}

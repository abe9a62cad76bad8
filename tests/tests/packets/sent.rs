//! What left the load balancer, as `etherparse` reads it, which shares no code with the program.

use super::{REALS, REALS6, build, real_address};
use etherparse::{IpNumber, LinkSlice, NetSlice, SlicedPacket};
use lb_ebpf::ring::RealId;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A packet inside an outer header.
pub(crate) struct Encapsulated {
    /// Destination and source, as in an Ethernet header.
    pub(crate) macs: [[u8; 6]; 2],
    pub(crate) source: IpAddr,
    /// The real that it goes to.
    pub(crate) real: RealId,
    pub(crate) protocol: IpNumber,
    /// TTL or hop limit.
    pub(crate) ttl: u8,
    /// ToS or traffic class.
    pub(crate) tos: u8,
    /// DF and ID of an outer IPv4 header.
    pub(crate) df_and_id: Option<(bool, u16)>,
    /// Flow label of an outer IPv6 header.
    pub(crate) flow_label: Option<u32>,
    pub(crate) inner: Vec<u8>,
}

/// Reads a frame that was forwarded: lengths and the outer checksum must be right, and the inner packet well-formed.
pub(crate) fn encapsulated(frame: &[u8]) -> Encapsulated {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(LinkSlice::Ethernet2(ethernet)) = &sliced.link else { panic!("no Ethernet header") };
    let macs = [ethernet.destination(), ethernet.source()];
    let sent = match sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            Encapsulated {
                macs,
                source: Ipv4Addr::from(header.source).into(),
                real: real(Ipv4Addr::from(header.destination).into()),
                protocol: header.protocol,
                ttl: header.time_to_live,
                tos: header.dscp.value() << 2 | header.ecn.value(),
                df_and_id: Some((header.dont_fragment, header.identification)),
                flow_label: None,
                inner: ip.payload().payload.to_vec(),
            }
        }
        Some(NetSlice::Ipv6(ip)) => {
            let header = ip.header();
            assert_eq!(usize::from(header.payload_length()), ip.payload().payload.len());
            Encapsulated {
                macs,
                source: header.source_addr().into(),
                real: real(header.destination_addr().into()),
                protocol: header.next_header(),
                ttl: header.hop_limit(),
                tos: header.traffic_class(),
                df_and_id: None,
                flow_label: Some(header.flow_label().value()),
                inner: ip.payload().payload.to_vec(),
            }
        }
        _ => panic!("no IP packet"),
    };
    let family = if sent.inner[0] >> 4 == 6 { IpNumber::IPV6 } else { IpNumber::IPV4 };
    assert_eq!(sent.protocol, family);
    sent
}

fn real(address: IpAddr) -> RealId {
    REALS.chain(REALS6).find(|&id| real_address(id) == address).unwrap()
}

/// An ICMP message that the load balancer sent for a VIP.
pub(crate) struct Icmp {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    pub(crate) ttl: u8,
    pub(crate) type_and_code: [u8; 2],
    /// The four bytes after the checksum.
    pub(crate) rest_of_header: [u8; 4],
    pub(crate) data: Vec<u8>,
    /// Whole packet, IP header included.
    pub(crate) len: usize,
}

/// Reads an untagged frame that holds an ICMP message: lengths and all checksums must be right.
pub(crate) fn icmp(frame: &[u8]) -> Icmp {
    let (source, destination, ttl, message): (IpAddr, IpAddr, _, _) =
        match SlicedPacket::from_ethernet(frame).unwrap().net {
            Some(NetSlice::Ipv4(ip)) => {
                let header = ip.header().to_header();
                assert_eq!(header.header_checksum, header.calc_header_checksum());
                assert_eq!(header.protocol, IpNumber::ICMP);
                let message = ip.payload().payload.to_vec();
                assert!(build::adds_up(&message), "{message:x?}");
                let (source, destination) = (Ipv4Addr::from(header.source), Ipv4Addr::from(header.destination));
                (source.into(), destination.into(), header.time_to_live, message)
            }
            Some(NetSlice::Ipv6(ip)) => {
                let header = ip.header();
                assert_eq!(header.next_header(), IpNumber::IPV6_ICMP);
                let message = ip.payload().payload.to_vec();
                let (source, destination): (Ipv6Addr, Ipv6Addr) = (header.source_addr(), header.destination_addr());
                assert!(build::adds_up(&build::pseudo_header(source, destination, &message)), "{message:x?}");
                (source.into(), destination.into(), header.hop_limit(), message)
            }
            _ => panic!("no IP packet"),
        };
    let &[kind, code, _, _, a, b, c, d, ..] = message.as_slice() else { panic!("no ICMP header") };
    Icmp {
        source,
        destination,
        ttl,
        type_and_code: [kind, code],
        rest_of_header: [a, b, c, d],
        data: message[8..].to_vec(),
        len: frame.len() - 14,
    }
}

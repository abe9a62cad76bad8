//! Packets, written out byte by byte as the RFCs draw them. Lengths and header checksums are filled in; those of TCP and
//! UDP are not, since the load balancer looks at neither.

use etherparse::checksum::Sum16BitWords;
use std::net::{Ipv4Addr, Ipv6Addr};

pub(crate) const ROUTER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub(crate) const LB_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

pub(crate) const ICMP: u8 = 1;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// IPv4's flags, above the fragment offset.
pub(crate) const DF: u16 = 0x4000;
pub(crate) const MF: u16 = 0x2000;

/// The frame of an IP packet from the router to the load balancer.
pub(crate) fn frame(packet: &[u8]) -> Vec<u8> {
    let ethertype = if packet[0] >> 4 == 6 { [0x86, 0xdd] } else { [0x08, 0x00] };
    [&LB_MAC[..], &ROUTER_MAC, &ethertype, packet].concat()
}

/// A frame with VLAN tags, the outermost first, each its EtherType and its VLAN.
pub(crate) fn tagged(tags: &[(u16, u16)], frame: &[u8]) -> Vec<u8> {
    let tags = tags.iter().flat_map(|(ethertype, vlan)| [ethertype.to_be_bytes(), vlan.to_be_bytes()].concat());
    [&frame[..12], &tags.collect::<Vec<_>>(), &frame[12..]].concat()
}

/// An IPv4 header.
#[derive(Clone)]
pub(crate) struct Ip4 {
    pub(crate) tos: u8,
    pub(crate) id: u16,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    /// A multiple of 4 bytes.
    pub(crate) options: Vec<u8>,
}

impl Ip4 {
    pub(crate) fn new(source: Ipv4Addr, destination: Ipv4Addr) -> Self {
        Self { tos: 0, id: 0xabcd, fragment: DF, ttl: 61, source, destination, options: vec![] }
    }

    pub(crate) fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let len = u16::try_from(header_len + payload.len()).unwrap();
        let version_ihl = 0x40 | u8::try_from(header_len / 4).unwrap();
        let mut header = [
            &[version_ihl, self.tos][..],
            &len.to_be_bytes(),
            &self.id.to_be_bytes(),
            &self.fragment.to_be_bytes(),
            &[self.ttl, protocol, 0, 0],
            &self.source.octets(),
            &self.destination.octets(),
            &self.options,
        ]
        .concat();
        let sum = checksum(&header);
        header[10..12].copy_from_slice(&sum);
        [&header, payload].concat()
    }
}

/// An IPv6 header, and extension headers: each its protocol number and what follows its "next header" byte.
#[derive(Clone)]
pub(crate) struct Ip6 {
    pub(crate) traffic_class: u8,
    pub(crate) flow_label: u32,
    pub(crate) hop_limit: u8,
    pub(crate) source: Ipv6Addr,
    pub(crate) destination: Ipv6Addr,
    pub(crate) extensions: Vec<(u8, Vec<u8>)>,
}

/// Extension headers of [`Ip6`].
pub(crate) const HOP_BY_HOP: u8 = 0;
pub(crate) const ROUTING: u8 = 43;
pub(crate) const FRAGMENT: u8 = 44;
pub(crate) const DESTINATION_OPTIONS: u8 = 60;

/// An options header of `len` bytes, a multiple of 8: padding only.
pub(crate) fn padding(number: u8, len: usize) -> (u8, Vec<u8>) {
    let units = u8::try_from(len / 8 - 1).unwrap();
    let pad_n = [1, u8::try_from(len - 4).unwrap()];
    (number, [&[units][..], &pad_n, &vec![0; len - 4]].concat())
}

/// A fragment header.
pub(crate) fn fragment(offset: u16, more: bool) -> (u8, Vec<u8>) {
    let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
    (FRAGMENT, vec![0, high, low, 0, 0, 0, 7])
}

impl Ip6 {
    pub(crate) fn new(source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        Self { traffic_class: 0, flow_label: 0, hop_limit: 61, source, destination, extensions: vec![] }
    }

    pub(crate) fn packet(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let numbers: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).chain([protocol]).collect();
        let bodies = self.extensions.iter().zip(&numbers[1..]);
        let extensions: Vec<u8> = bodies.flat_map(|((_, body), next)| [&[*next][..], body].concat()).collect();
        let first = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label;
        let len = u16::try_from(extensions.len() + payload.len()).unwrap();
        [
            &first.to_be_bytes()[..],
            &len.to_be_bytes(),
            &[numbers[0], self.hop_limit],
            &self.source.octets(),
            &self.destination.octets(),
            &extensions,
            payload,
        ]
        .concat()
    }
}

pub(crate) fn tcp(ports: (u16, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let sequence = [0, 0, 0, 7, 0, 0, 0, 9];
    let window = [4, 0, 0, 0, 0, 0];
    [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &sequence, &[5 << 4, flags], &window, payload].concat()
}

pub(crate) fn udp(ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let len = u16::try_from(8 + payload.len()).unwrap();
    [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &len.to_be_bytes(), &[0, 0], payload].concat()
}

/// An ICMP message: type and code, the four bytes after the checksum, and the rest.
pub(crate) fn icmp(type_and_code: [u8; 2], rest_of_header: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut message = [&type_and_code[..], &[0, 0], &rest_of_header, data].concat();
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum);
    message
}

/// The same of ICMPv6, whose checksum covers the addresses.
pub(crate) fn icmp6(ip: &Ip6, type_and_code: [u8; 2], rest_of_header: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut message = [&type_and_code[..], &[0, 0], &rest_of_header, data].concat();
    let sum = checksum(&pseudo_header(ip.source, ip.destination, &message));
    message[2..4].copy_from_slice(&sum);
    message
}

/// RFC 8200 §8.1, in front of an ICMPv6 message.
pub(crate) fn pseudo_header(source: Ipv6Addr, destination: Ipv6Addr, message: &[u8]) -> Vec<u8> {
    let len = u32::try_from(message.len()).unwrap();
    [&source.octets()[..], &destination.octets(), &len.to_be_bytes(), &[0, 0, 0, ICMPV6], message].concat()
}

/// The Internet checksum, by `etherparse`.
pub(crate) fn checksum(bytes: &[u8]) -> [u8; 2] {
    Sum16BitWords::new().add_slice(bytes).ones_complement().to_be().to_be_bytes()
}

/// Whether a receiver takes data that holds its checksum: they add up to all ones (RFC 1071 §1).
pub(crate) fn adds_up(bytes: &[u8]) -> bool {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)));
    let sum: u64 = words.sum();
    sum != 0 && sum.is_multiple_of(0xffff)
}

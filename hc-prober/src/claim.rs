//! Who claims an address on a link: ARP for IPv4, neighbour solicitations for IPv6, asked from a packet socket, so that the
//! kernel's own neighbour table learns nothing from the answers.

use std::{
    io::{self, Read},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use pnet_packet::{ip::IpNextHeaderProtocols, util};
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};

/// An Ethernet address.
pub type Mac = [u8; 6];

const ETHERNET: usize = 14;
const IPV6: usize = 40;

/// Our end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub interface: u32,
    /// Our address on it.
    pub mac: Mac,
}

/// Whose question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// Our hardware address.
    pub mac: Mac,
    /// An address of ours.
    pub from: IpAddr,
    /// The address that is asked for, of the same family.
    pub of: IpAddr,
}

/// The Ethernet frame of a question; `None`: its addresses are of different families.
#[must_use]
pub fn frame(question: &Question) -> Option<Vec<u8>> {
    match (question.from, question.of) {
        (IpAddr::V4(from), IpAddr::V4(of)) => Some(request(question.mac, from, of)),
        (IpAddr::V6(from), IpAddr::V6(of)) => Some(solicitation(question.mac, from, of)),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => None,
    }
}

/// RFC 826, to everybody.
fn request(mac: Mac, from: Ipv4Addr, of: Ipv4Addr) -> Vec<u8> {
    // Ethernet, IPv4, their addresses' lengths, and: request.
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    [&[0xff; 6], mac.as_slice(), &[8, 6], &head, &mac, &from.octets(), &[0; 6], &of.octets()].concat()
}

/// RFC 4861, 4.3, to the solicited-node multicast address (RFC 4291, 2.7.1).
fn solicitation(mac: Mac, from: Ipv6Addr, of: Ipv6Addr) -> Vec<u8> {
    const LENGTH: u8 = 32;
    let [.., x, y, z] = of.octets();
    let to = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(x), u16::from_be_bytes([y, z]));
    // Type 135; the option is our hardware address.
    let body = |sum: [u8; 2]| [&[135, 0], sum.as_slice(), &[0; 4], &of.octets(), &[1, 1], &mac].concat();
    let sum = util::ipv6_checksum(&body([0; 2]), 1, &[], &from, &to, IpNextHeaderProtocols::Icmpv6);
    // 4.3: the hop limit is 255, so that it comes from this link.
    let ip = [0x60, 0, 0, 0, 0, LENGTH, 58, 255];
    let ethernet = [0x33, 0x33, 0xff, x, y, z];
    [&ethernet, mac.as_slice(), &[0x86, 0xdd], &ip, &from.octets(), &to.octets(), &body(sum.to_be_bytes())].concat()
}

/// The Ethernet frame that tells everybody on a link where an address is: an ARP announcement (RFC 5227, 2.3), or an
/// unsolicited neighbour advertisement (RFC 4861, 7.2.6).
#[must_use]
pub fn announcement(mac: Mac, address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => request(mac, address, address),
        IpAddr::V6(address) => advertisement(mac, address),
    }
}

/// RFC 4861, 4.4, to all nodes: it overrides what they know.
fn advertisement(mac: Mac, of: Ipv6Addr) -> Vec<u8> {
    const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    const OVERRIDE: u8 = 0x20;
    // Type 136; the option is the target's hardware address.
    let body = |sum: [u8; 2]| [&[136, 0], sum.as_slice(), &[OVERRIDE, 0, 0, 0], &of.octets(), &[2, 1], &mac].concat();
    let sum = util::ipv6_checksum(&body([0; 2]), 1, &[], &of, &ALL_NODES, IpNextHeaderProtocols::Icmpv6);
    let ip = [0x60, 0, 0, 0, 0, 32, 58, 255];
    let ethernet = [0x33, 0x33, 0, 0, 0, 1];
    let body = body(sum.to_be_bytes());
    [&ethernet, mac.as_slice(), &[0x86, 0xdd], &ip, &of.octets(), &ALL_NODES.octets(), &body].concat()
}

/// Tells everybody on the link that an address is at ours.
///
/// # Errors
/// Not permitted (`CAP_NET_RAW`), or the link is down or gone.
pub fn announce(link: Link, address: IpAddr) -> io::Result<()> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    // No protocol: it receives nothing.
    socket.send_to(&announcement(link.mac, address), &device(link.interface, 0)?).map(drop)
}

/// Who claims the address that was asked for, if that is what the frame says: its sender.
#[must_use]
pub fn claimant(question: &Question, frame: &[u8]) -> Option<Mac> {
    let sender = *frame.get(6..)?.first_chunk()?;
    let payload = frame.get(ETHERNET..)?;
    let is_claim = match (question.of, frame.get(12..ETHERNET)?) {
        // A reply, whose sender has the address.
        (IpAddr::V4(of), [8, 6]) => {
            payload.get(..8)? == [0, 1, 8, 0, 6, 4, 0, 2] && payload.get(14..18)? == of.octets()
        }
        // RFC 4861, 7.1.2: a neighbour advertisement of that target, from this link.
        (IpAddr::V6(of), [0x86, 0xdd]) => {
            payload.get(6..8)? == [58, 255]
                && payload.get(IPV6..IPV6 + 2)? == [136, 0]
                && payload.get(IPV6 + 8..IPV6 + 24)? == of.octets()
        }
        _ => false,
    };
    is_claim.then_some(sender)
}

/// Asks on the link who has an address, and awaits, for so long at most, an answer of somebody `wanted`.
///
/// # Errors
/// Not permitted (`CAP_NET_RAW`), or the link is down or gone.
pub fn ask(
    link: Link,
    from: IpAddr,
    of: IpAddr,
    timeout: Duration,
    wanted: impl Fn(Mac) -> bool,
) -> io::Result<Option<Mac>> {
    let question = Question { mac: link.mac, from, of };
    let request = frame(&question).ok_or(io::ErrorKind::InvalidInput)?;
    let mut socket = open(link.interface, of)?;
    let end = Instant::now() + timeout;
    socket.send(&request)?;
    let mut buffer = [0; 128];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut buffer) {
            Ok(length) => {
                let claimant = buffer.get(..length).and_then(|frame| claimant(&question, frame));
                if let Some(mac) = claimant.filter(|mac| wanted(*mac)) {
                    return Ok(Some(mac));
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// A socket for whole frames of one interface: ARP, or neighbour advertisements and nothing else of IPv6.
fn open(interface: u32, of: IpAddr) -> io::Result<Socket> {
    // Nothing arrives before it is bound: no protocol is chosen yet.
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    let protocol = if of.is_ipv4() {
        libc::ETH_P_ARP
    } else {
        socket.attach_filter(&ADVERTISEMENTS)?;
        libc::ETH_P_IPV6
    };
    socket.bind(&device(interface, u16::try_from(protocol).unwrap_or(0).to_be())?)?;
    Ok(socket)
}

/// Classic BPF: next header 58 (ICMPv6) and type 136.
const ADVERTISEMENTS: [SockFilter; 6] = {
    // BPF_LD | BPF_B | BPF_ABS, BPF_JMP | BPF_JEQ | BPF_K, BPF_RET | BPF_K
    const LOAD: u16 = 0x30;
    const IS: u16 = 0x15;
    const TAKE: u16 = 0x06;
    [
        SockFilter::new(LOAD, 0, 0, 14 + 6),
        SockFilter::new(IS, 0, 3, 58),
        SockFilter::new(LOAD, 0, 0, 14 + 40),
        SockFilter::new(IS, 0, 1, 136),
        SockFilter::new(TAKE, 0, 0, u32::MAX),
        SockFilter::new(TAKE, 0, 0, 0),
    ]
};

/// The address of an interface and a protocol in network byte order.
#[expect(unsafe_code, reason = "socket2 has no constructor for the addresses of packet sockets")]
fn device(interface: u32, protocol: u16) -> io::Result<SockAddr> {
    let index = i32::try_from(interface).map_err(io::Error::other)?;
    let family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is one of the address types that the storage is made for, and all zeroes are a valid one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    (address.sll_family, address.sll_protocol, address.sll_ifindex) = (family, protocol, index);
    // SAFETY: family and length are those of the address that was written.
    Ok(unsafe { SockAddr::new(storage, length) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Slice, NetSlice, SlicedPacket};
    use proptest::prelude::*;

    const OURS: Mac = [2, 0, 0, 0, 0, 1];
    const THEIRS: Mac = [2, 0, 0, 0, 0, 2];

    fn question(v6: bool) -> Question {
        let (from, of) = if v6 { ("fd00:7::1", "fd19:7::12:3456") } else { ("198.18.7.1", "198.19.7.1") };
        Question { mac: OURS, from: from.parse().unwrap(), of: of.parse().unwrap() }
    }

    #[test]
    fn solicitation_is_sound() {
        let frame = frame(&question(true)).unwrap();
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("{packet:?}") };
        let header = ip.header();
        assert_eq!(header.destination_addr(), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        let icmp = Icmpv6Slice::from_slice(ip.payload().payload).unwrap();
        assert!(icmp.is_checksum_valid(header.source(), header.destination()));
    }

    #[test]
    fn announcement_claims_the_address_for_its_sender() {
        let nd = question(true);
        let frame = announcement(THEIRS, nd.of);
        assert_eq!(claimant(&nd, &frame), Some(THEIRS));
        let packet = SlicedPacket::from_ethernet(&frame).unwrap();
        let Some(NetSlice::Ipv6(ip)) = packet.net else { panic!("{packet:?}") };
        let icmp = Icmpv6Slice::from_slice(ip.payload().payload).unwrap();
        assert!(icmp.is_checksum_valid(ip.header().source(), ip.header().destination()));

        let arp = announcement(THEIRS, question(false).of);
        assert_eq!(
            (&arp[..6], &arp[22..28], &arp[28..32], &arp[38..]),
            (&[0xff; 6][..], &THEIRS[..], &arp[38..], &[198, 19, 7, 1][..])
        );
    }

    #[test]
    fn claim_is_an_answer_for_the_address_asked_for() {
        let arp = question(false);
        let mut reply = frame(&arp).unwrap();
        assert_eq!(claimant(&arp, &reply), None, "our own request");
        reply[6..12].copy_from_slice(&THEIRS);
        reply[21] = 2;
        reply[28..32].copy_from_slice(&[198, 19, 7, 1]);
        assert_eq!(claimant(&arp, &reply), Some(THEIRS));
        assert_eq!(claimant(&Question { of: [198, 19, 7, 2].into(), ..arp }, &reply), None, "another address");
        assert_eq!(claimant(&arp, &reply[..30]), None, "cut off");

        let nd = question(true);
        let mut advertisement = frame(&nd).unwrap();
        assert_eq!(claimant(&nd, &advertisement), None, "our own solicitation");
        advertisement[6..12].copy_from_slice(&THEIRS);
        advertisement[ETHERNET + IPV6] = 136;
        assert_eq!(claimant(&nd, &advertisement), Some(THEIRS));
        assert_eq!(claimant(&arp, &advertisement), None, "the other family");
        advertisement[ETHERNET + 7] = 254;
        assert_eq!(claimant(&nd, &advertisement), None, "from beyond the link");
    }

    proptest! {
        #[test]
        fn any_frame_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..128), v6: bool) {
            let _ = claimant(&question(v6), &bytes);
        }
    }
}

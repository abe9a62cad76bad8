//! A device's frames, as they are.

use std::{io::Read, time::Duration};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice, VlanId};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

const PATIENCE: Duration = Duration::from_secs(10);

/// A packet socket on the real's device.
pub(crate) struct Wire {
    socket: Socket,
}

impl Wire {
    /// On the device `v1` of the caller's network namespace.
    pub(crate) fn open() -> Self {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(all)))).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.bind(&device("v1", all)).unwrap();
        Self { socket }
    }

    /// Answers the first tunnelled echo request in VLAN 7.
    pub(crate) fn answer_tagged(&self) {
        loop {
            let mut frame = [0; 2048];
            let length = (&self.socket).read(&mut frame).expect("no probe");
            if let Some(answer) = tagged_reply(&frame[..length]) {
                assert_eq!(self.socket.send(&answer).unwrap(), answer.len());
                return;
            }
        }
    }
}

fn tagged_reply(frame: &[u8]) -> Option<Vec<u8>> {
    let outer = match frame.get(12..14)? {
        [0x08, 0x00] => 20,
        [0x86, 0xdd] => 40,
        _ => return None,
    };
    let inner = SlicedPacket::from_ip(frame.get(14 + outer..)?).ok()?;
    let (us, them) = (frame[6..12].try_into().unwrap(), frame[..6].try_into().unwrap());
    let tagged = PacketBuilder::ethernet2(them, us).single_vlan(VlanId::try_new(7).unwrap());
    let mut answer = Vec::new();
    match (inner.net?, inner.transport?) {
        (NetSlice::Ipv4(ip), TransportSlice::Icmpv4(icmp)) => {
            let (id, sequence) = echo(icmp.bytes5to8());
            let tagged = tagged.ipv4(ip.header().destination(), ip.header().source(), 64);
            tagged.icmpv4_echo_reply(id, sequence).write(&mut answer, icmp.payload()).unwrap();
        }
        (NetSlice::Ipv6(ip), TransportSlice::Icmpv6(icmp)) => {
            let (id, sequence) = echo(icmp.bytes5to8());
            let tagged = tagged.ipv6(ip.header().destination(), ip.header().source(), 64);
            tagged.icmpv6_echo_reply(id, sequence).write(&mut answer, icmp.payload()).unwrap();
        }
        _ => return None,
    }
    Some(answer)
}

fn echo([a, b, c, d]: [u8; 4]) -> (u16, u16) {
    (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]))
}

#[expect(unsafe_code, reason = "socket2 has no constructor for the addresses of packet sockets")]
fn device(name: &str, protocol: u16) -> SockAddr {
    let index = nix::net::if_::if_nametoindex(name).unwrap();
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: `sockaddr_ll` is one of the address types that the storage is made for, and all zeroes are a valid one.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap();
    address.sll_protocol = protocol;
    address.sll_ifindex = index.try_into().unwrap();
    let length = libc::socklen_t::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
    // SAFETY: family and length are those of the address that was written.
    unsafe { SockAddr::new(storage, length) }
}

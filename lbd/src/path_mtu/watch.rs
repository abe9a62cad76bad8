//! Raw sockets that hear of packets that were too big, and of nothing else: a filter in the kernel sees to it.

use std::{io, net::UdpSocket as StdUdpSocket, os::fd::AsRawFd};

use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use tokio::{net::UdpSocket, sync::mpsc};

use super::{TooBig, parse4, parse6};

/// Messages that wait for the owner. Those beyond are lost: the next packet that is too big asks for another.
const WAITING: usize = 64;
/// As much of a message as is looked at: IP and ICMP header, and those of the packet that is quoted.
const SNAP: usize = 128;

/// Classic BPF: take the whole packet, or nothing of it.
const TAKE: SockFilter = SockFilter::new(0x06, 0, 0, u32::MAX);
const LEAVE: SockFilter = SockFilter::new(0x06, 0, 0, 0);

/// Frag-needed: type 3, code 4. The packet begins with its IPv4 header.
fn frag_needed() -> [SockFilter; 5] {
    // x = header length; a = the 16 bits there; is it 0x0304?
    let length_to_x = SockFilter::new(0xb1, 0, 0, 0);
    let load_half_at_x = SockFilter::new(0x48, 0, 0, 0);
    [length_to_x, load_half_at_x, SockFilter::new(0x15, 0, 1, 0x0304), TAKE, LEAVE]
}

/// Packet too big: type 2. The packet begins with its ICMPv6 header.
fn packet_too_big() -> [SockFilter; 4] {
    let load_byte_0 = SockFilter::new(0x30, 0, 0, 0);
    [load_byte_0, SockFilter::new(0x15, 0, 1, 2), TAKE, LEAVE]
}

/// Listens in the network namespace of the calling thread. Must be called inside a tokio runtime. A kernel without IPv6
/// tells of IPv4 only.
///
/// # Errors
/// The IPv4 socket cannot be opened: it takes `CAP_NET_RAW`.
pub fn watch() -> io::Result<mpsc::Receiver<TooBig>> {
    let (told, receiver) = mpsc::channel(WAITING);
    let v4 = open(Domain::IPV4, Protocol::ICMPV4, &frag_needed())?;
    tokio::spawn(listen(v4, parse4, told.clone()));
    match open(Domain::IPV6, Protocol::ICMPV6, &packet_too_big()) {
        Ok(v6) => drop(tokio::spawn(listen(v6, parse6, told))),
        Err(error) => tracing::info!(%error, "no IPv6 here: MTUs of paths are heard of in IPv4 only"),
    }
    Ok(receiver)
}

/// A raw ICMP socket would have the kernel believe errors about echo requests, and take their word for the route's MTU:
/// `raw_err()` of net/ipv4/raw.c. With `IP_PMTUDISC_INTERFACE` it does not.
fn without_learning(socket: &Socket) -> io::Result<()> {
    let wanted = libc::IP_PMTUDISC_INTERFACE;
    #[expect(unsafe_code, reason = "no safe wrapper has this option")]
    // SAFETY: the descriptor is open, and the kernel reads an int from a pointer to one.
    let result = unsafe {
        let value = std::ptr::from_ref(&wanted).cast();
        let len = libc::socklen_t::try_from(size_of_val(&wanted)).unwrap_or_default();
        libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value, len)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// tokio's type for datagram sockets also serves a raw one: it receives packet by packet.
fn open(domain: Domain, protocol: Protocol, filter: &[SockFilter]) -> io::Result<UdpSocket> {
    let socket = Socket::new(domain, Type::RAW, Some(protocol))?;
    socket.attach_filter(filter)?;
    if domain == Domain::IPV4 {
        without_learning(&socket)?;
    }
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(StdUdpSocket::from(socket))
}

async fn listen(socket: UdpSocket, parse: fn(&[u8]) -> Option<TooBig>, told: mpsc::Sender<TooBig>) {
    let mut bytes = [0; SNAP];
    while !told.is_closed() {
        // What is longer is cut: that is no error of a datagram socket.
        let received = socket.recv(&mut bytes).await;
        let message = match received {
            Ok(len) => bytes.get(..len).and_then(parse),
            Err(error) => {
                tracing::error!(%error, "listening for MTUs of paths ended");
                return;
            }
        };
        // Full: see `WAITING`.
        message.map(|message| told.try_send(message).is_ok());
    }
}

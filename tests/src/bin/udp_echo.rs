//! A UDP service for guests and namespaces: sends each datagram back. Its argument is the address and port to bind;
//! the replies come from there.

use std::{env, io, net::UdpSocket};

fn main() -> io::Result<()> {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: udp_echo ADDRESS:PORT");
    let socket = UdpSocket::bind(env::args().nth(1).ok_or_else(usage)?)?;
    // The address is taken from here on: whoever waits for this line may send.
    println!("bound to {}", socket.local_addr()?);
    let mut datagram = [0; 2048];
    loop {
        // An ICMP error of an earlier reply surfaces as an error of the next call: not ours to end by.
        if let Ok((length, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(datagram.get(..length).unwrap_or_default(), from);
        }
    }
}

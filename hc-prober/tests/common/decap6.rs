//! Takes packets out of IPv6 tunnels: what the real's tc program does for IPv4 ones, by raw sockets. The kernel hands the
//! payload of protocols 4 and 41 to a socket that asks for it, and answers "unrecognized next header" once nobody does;
//! sent again with its header as it is, the packet reaches its own host by the loopback.

use std::{
    io::Read,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

/// From one look at whether to stop to the next.
const LOOK: Duration = Duration::from_millis(20);

/// Decapsulation in the namespace where it was started, until it is dropped.
pub(crate) struct Decap6 {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Decap6 {
    pub(crate) fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let run = |domain, protocol| {
            let tunnel = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::from(protocol))).unwrap();
            tunnel.set_read_timeout(Some(LOOK)).unwrap();
            let inside = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
            let stop = Arc::clone(&stop);
            // What has arrived before the end goes through.
            thread::spawn(move || while forward(&tunnel, &inside) || !stop.load(Ordering::Relaxed) {})
        };
        let threads = vec![run(Domain::IPV6, libc::IPPROTO_IPV6), run(Domain::IPV4, libc::IPPROTO_IPIP)];
        Self { stop, threads }
    }
}

impl Drop for Decap6 {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One packet; false if none came for a while. If the host has no way to its target, it is lost.
fn forward(mut tunnel: &Socket, inside: &Socket) -> bool {
    let mut packet = [0; 2048];
    let Ok(length) = tunnel.read(&mut packet) else { return false };
    let to: SocketAddr = if packet[0] >> 4 == 4 {
        (Ipv4Addr::from(*packet[16..].first_chunk::<4>().unwrap()), 0).into()
    } else {
        (Ipv6Addr::from(*packet[24..].first_chunk::<16>().unwrap()), 0).into()
    };
    let _ = inside.send_to(&packet[..length], &to.into());
    true
}

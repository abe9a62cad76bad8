//! ARP on the wire, from before the first packet to after the last, while `apply`, `check` and `remove` run. Needs
//! root.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking, its helpers too"
)]

mod lab;

use std::{
    io::Read as _,
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lab::{CLIENT, Lab, REAL, VIP, packet_socket, within};

/// What matters of an ARP packet (RFC 826).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Arp {
    is_reply: bool,
    sender: Ipv4Addr,
    target: Ipv4Addr,
}

impl Arp {
    fn parse(packet: &[u8]) -> Option<Self> {
        let address = |at| Some(Ipv4Addr::from(<[u8; 4]>::try_from(packet.get(at..at + 4)?).ok()?));
        Some(Self { is_reply: packet.get(6..8)? == [0, 2], sender: address(14)?, target: address(24)? })
    }
}

/// Does something again and again in a namespace until told to stop; what it found.
fn meanwhile<T: Send + 'static>(
    namespace: &str,
    stop: &Arc<AtomicBool>,
    mut act: impl FnMut() -> Option<T> + Send + 'static,
) -> JoinHandle<Vec<T>> {
    let (namespace, stop) = (namespace.to_owned(), Arc::clone(stop));
    thread::spawn(move || {
        within(&namespace, move || {
            let mut found = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                found.extend(act());
            }
            found
        })
    })
}

/// All ARP packets that arrive in a namespace. The socket is there when this returns.
fn capture(namespace: &str, stop: &Arc<AtomicBool>) -> JoinHandle<Vec<Arp>> {
    let mut socket = within(namespace, || packet_socket(libc::ETH_P_ARP));
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut packet = [0; 64];
    meanwhile(namespace, stop, move || socket.read(&mut packet).ok().and_then(|length| Arp::parse(&packet[..length])))
}

/// Forgets the neighbours of a device and sends a datagram from one address to another, so that the kernel must ask.
fn ask(device: &'static str, from: Ipv4Addr, to: &'static [Ipv4Addr]) -> impl FnMut() -> Option<()> + Send {
    move || {
        std::process::Command::new("ip").args(["neigh", "flush", "dev", device]).output().unwrap();
        // The VIP is not there all the time.
        let socket = UdpSocket::bind((from, 0)).ok()?;
        for &to in to {
            // Refused sometimes, by what an earlier one met.
            let _ = socket.send_to(b"x", (to, 9));
        }
        Some(())
    }
}

#[test]
fn arp_for_the_vip_is_silent_both_ways_at_every_moment() {
    let lab = Lab::new();
    lab.in_client(&format!("ip route add {VIP}/32 dev veth0"));
    let stop = Arc::new(AtomicBool::new(false));
    let (at_client, at_real) = (capture(&lab.client, &stop), capture(&lab.real, &stop));
    let askers = [
        meanwhile(&lab.client, &stop, ask("veth0", CLIENT, &[VIP, REAL])),
        meanwhile(&lab.real, &stop, ask("eth0", VIP, &[CLIENT])),
    ];
    for _ in 0..3 {
        lab.setup_exits(&format!("apply --decap ebpf --vip {VIP}"), 0);
        lab.setup_exits("check", 0);
        lab.setup_exits("remove", 0);
    }
    stop.store(true, Ordering::Relaxed);
    let [asked, sent_from_vip] = askers.map(|asker| asker.join().unwrap().len());
    let (at_client, at_real) = (at_client.join().unwrap(), at_real.join().unwrap());

    let leaks: Vec<_> = at_client.iter().filter(|arp| arp.sender == VIP).collect();
    assert!(leaks.is_empty(), "{leaks:?}");
    // The test itself: everybody asked all the time, and what was answered was seen.
    let count = |all: &[Arp], wanted: &dyn Fn(&Arp) -> bool| all.iter().filter(|arp| wanted(arp)).count();
    let for_vip = count(&at_real, &|arp| !arp.is_reply && arp.target == VIP);
    let answered = count(&at_client, &|arp| arp.is_reply && arp.sender == REAL);
    let for_client = count(&at_client, &|arp| !arp.is_reply && arp.sender == REAL && arp.target == CLIENT);
    assert!(for_vip > 20 && answered > 20, "{asked} times asked: {for_vip} for the VIP, {answered} answers");
    assert!(for_client > 5, "{sent_from_vip} times sent from the VIP: {for_client} requests");
    eprintln!("{for_vip} requests for the VIP, {answered} answers for the real, {for_client} requests by it");
}

//! What a client and a load balancer want of a real: checks, and connections with data both ways.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use etherparse::IpNumber;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::{CLIENT, CLIENT6, Lab, REAL, REAL6, VIP, VIP6, binary, command, in_ipv6, ipip, packet_socket, within};

pub(crate) const PORT: u16 = 80;
const CLOSED_PORT: u16 = 9;
/// A connection that is given up has met a black hole.
const BOUND: Duration = Duration::from_secs(10);
/// A window and more, both ways.
const OCTETS: usize = 200_000;

/// A load balancer beside the client, and a service on every address of the real that sends back what it is sent.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    relays: Vec<JoinHandle<()>>,
}

impl Traffic {
    /// The client's packets for the VIPs leave by `lb0`; what comes out at `lb1` goes through a tunnel to the real. The
    /// answers come straight.
    pub(crate) fn start(lab: &Lab) -> Self {
        lab.in_client(
            "for filter in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $filter; done; \
             ip link add lb0 type veth peer name lb1; ethtool -K lb0 tx off; \
             ip link set lb1 address 02:00:00:00:00:01; ip link set lb0 up; ip link set lb1 up",
        );
        for (vip, from) in [(IpAddr::from(VIP), IpAddr::from(CLIENT)), (VIP6.into(), CLIENT6.into())] {
            lab.in_client(&format!(
                "ip route add {vip} dev lb0 src {from}; ip neigh add {vip} lladdr 02:00:00:00:00:01 dev lb0"
            ));
        }
        serve(within(&lab.real, || TcpListener::bind(("::", PORT)).unwrap()));
        let stop = Arc::new(AtomicBool::new(false));
        let relays = [libc::ETH_P_IP, libc::ETH_P_IPV6].map(|ethertype| relay(lab, ethertype, Arc::clone(&stop)));
        Self { stop, relays: relays.into() }
    }
}

/// Both VIPs are up in the eyes of the prober, and closed ports are heard of.
pub(crate) fn probe(lab: &Lab) {
    for (real, vip) in [(IpAddr::from(REAL), IpAddr::from(VIP)), (REAL6.into(), VIP6.into())] {
        check(lab, &format!("--real {real} --vip {vip} --icmp"), 0, "");
        check(lab, &format!("--real {real} --vip {vip} --tcp {PORT}"), 0, "");
        check(lab, &format!("--real {real} --vip {vip} --udp {CLOSED_PORT}"), 2, "PORT_CLOSED");
    }
}

/// Data comes and goes.
pub(crate) fn flow(lab: &Lab) {
    for vip in [IpAddr::from(VIP), VIP6.into()] {
        let answered = within(&lab.client, move || exchange(vip));
        assert!(answered.is_ok(), "a connection to {vip}: {answered:?}");
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for relay in self.relays.drain(..) {
            let _ = relay.join();
        }
    }
}

/// A check of the prober's from the client, with its exit code.
fn check(lab: &Lab, arguments: &str, code: i32, says: &str) {
    let mut prober = command(&lab.client, binary("hc-prober"));
    let output = prober.args(["check", "--timeout", "5s"]).args(arguments.split(' ')).output().unwrap();
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap()).concat();
    assert!(output.status.code() == Some(code) && text.contains(says), "{arguments}: {:?}: {text}", output.status);
}

/// Sends data to `vip`, which must come back as it was.
fn exchange(vip: IpAddr) -> std::io::Result<()> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(vip, PORT), BOUND)?;
    stream.set_read_timeout(Some(BOUND))?;
    stream.set_write_timeout(Some(BOUND))?;
    let sent: Vec<u8> = (0..OCTETS).map(|n| n.to_le_bytes()[0]).collect();
    let mut received = Vec::new();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            (&stream).write_all(&sent)?;
            stream.shutdown(std::net::Shutdown::Write)
        });
        let read = (&stream).read_to_end(&mut received);
        sender.join().unwrap().and(read)
    })?;
    assert!(received == sent, "{} octets came back of {OCTETS}", received.len());
    Ok(())
}

/// Until the namespace is gone: nobody waits for this thread.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let _ = std::io::copy(&mut &stream, &mut &stream);
            });
        }
    });
}

fn relay(lab: &Lab, ethertype: libc::c_int, stop: Arc<AtomicBool>) -> JoinHandle<()> {
    let mut socket = within(&lab.client, move || packet_socket(ethertype));
    socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let client = lab.client.clone();
    let mut packet = [0; 2048];
    thread::spawn(move || {
        within(&client, move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(length) = socket.read(&mut packet) {
                    encapsulate(&packet[..length]);
                }
            }
        });
    })
}

/// Through the tunnel, if it is to a VIP. What does not fit is lost without a word: a black hole.
fn encapsulate(packet: &[u8]) {
    let (domain, real, packet) = match packet {
        [first, ..] if first >> 4 == 4 && packet.get(16..20) == Some(&VIP.octets()) => {
            (Domain::IPV4, IpAddr::from(REAL), ipip(CLIENT, packet))
        }
        [first, ..] if first >> 4 == 6 && packet.get(24..40) == Some(&VIP6.octets()) => {
            (Domain::IPV6, REAL6.into(), in_ipv6(IpNumber::IPV6, packet))
        }
        _ => return,
    };
    let sender = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    let _ = sender.send_to(&packet, &SockAddr::from(SocketAddr::new(real, 0)));
}

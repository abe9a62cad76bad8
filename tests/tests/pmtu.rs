//! Packets that do not fit the path: each side learns it by the ICMP errors that the load balancer sends, heeds and
//! hands on. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::Service;
use lbd::model::Stats;
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};
use tests::lab::{VIP, run};

const BODY: usize = 1 << 20;
/// What an upload may take: one that hangs in a path's black hole takes longer.
const UPLOAD: &str = "--max-time 30";

/// Reals announce the MSS of their own link, so that the client's segments fill 1,500 bytes.
fn service(test: &str, reals: usize) -> Service {
    let service = Service::with(test, reals, reals, &[]);
    for real in service.lab.reals() {
        run(service.lab.realsrv_setup(real, "apply").unwrap().args(["--mss", "off"])).unwrap();
    }
    service
}

fn upload(service: &Service) {
    let client = service.lab.client();
    let body = client.dir().join("body");
    std::fs::write(&body, vec![7; BODY]).unwrap();
    let curl = format!("curl -sS --fail {UPLOAD} -H Expect: --data-binary @{} http://{VIP}/upload", body.display());
    assert_eq!(client.run(&curl).unwrap(), format!("real1 received {BODY} bytes\n"));
}

fn told(service: &Service) -> u64 {
    let stats: Stats = serde_json::from_str(&service.lbctl(&["stats", "-o", "json"]).unwrap()).unwrap();
    stats.reasons.iter().find(|reason| reason.reason == "too_big_reply").unwrap().packets
}

/// The MTU that the client has learnt of the way to the VIP.
fn learnt(service: &Service) -> String {
    service.lab.client().run(&format!("ip route get {VIP}")).unwrap()
}

#[test]
fn upload_of_full_sized_segments_succeeds_by_pmtu_messages_alone() {
    let service = service("pmtu", 1);
    upload(&service);
    assert!(told(&service) > 0);
    assert!(learnt(&service).contains("mtu 1480"), "{}", learnt(&service));
}

#[test]
fn upload_over_a_narrow_path_to_the_real_succeeds_as_its_router_tells_the_load_balancer() {
    let service = service("narrow", 1);
    // Only the router knows: the load balancer's own device carries 1,500 bytes.
    service.lab.router().run("ip link set to-real1 mtu 1400").unwrap();
    assert_eq!(service.row(1).mtu, Some(1500));
    upload(&service);
    assert_eq!(service.row(1).mtu, Some(1400));
    assert!(learnt(&service).contains("mtu 1380"), "{}", learnt(&service));
}

/// One flow each from an address of its own, since hosts remember a path's MTU by address: each flow's real must hear by
/// itself that its answer did not fit.
#[test]
fn frag_needed_from_a_router_reaches_the_real_of_each_of_a_thousand_flows() {
    const FLOWS: u32 = 1000;
    let service = service("replies", 3);
    let lab = &service.lab;
    lab.router().run("ip link set to-client mtu 1400").unwrap();
    lab.router().run(&format!("ip route add 198.18.32.0/22 via {}", lab.client().addr())).unwrap();
    lab.client().run("ip route add local 198.18.32.0/22 dev lo").unwrap();
    let client = lab.client().clone();
    let thread = std::thread::spawn(move || {
        client.enter().unwrap();
        let first = Ipv4Addr::new(198, 18, 32, 1).to_bits();
        (first..first + FLOWS).map(|source| download(Ipv4Addr::from_bits(source))).collect::<Vec<_>>()
    });
    let answered = thread.join().unwrap();
    assert!(answered.iter().all(|len| *len > FIRST_WINDOW), "{answered:?}");
    // Each real had a part of them, and what each remembers is the MTU of its own flows.
    for real in lab.reals() {
        let remembered = real.run("ip route show cache").unwrap().matches("mtu 1400").count();
        assert!(remembered > FLOWS as usize / 5, "{}: {remembered}", real.name());
    }
}

/// More than nginx sends before it hears anything, so that segments of the full size are among it.
const FIRST_WINDOW: usize = 20_000;

/// Asks the VIP for the beginning of `/big` from this address: the length of the answer.
fn download(source: Ipv4Addr) -> usize {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect_timeout(&SocketAddr::from((VIP, 80)).into(), Duration::from_secs(5)).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let range = format!("bytes=0-{FIRST_WINDOW}");
    write!(stream, "GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: {range}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer.len()
}

//! Packets that do not fit the path: each side learns it by the ICMP errors that the load balancer sends, heeds and
//! hands on. Needs root.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a helper that fails fails its test")]

mod common;

use common::{Service, apply6};
use lbd::model::Stats;
use socket2::{Domain, Socket, Type};
use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::Command,
    time::Duration,
};
use tests::lab::{Host, VIP, VIP6, run};

const BODY: usize = 1 << 20;
/// What an upload may take: one that hangs in a path's black hole takes longer.
const UPLOAD: &str = "--max-time 30";

/// Reals announce the MSS of their own link, so that the client's segments fill 1,500 bytes.
fn over_ipv4(test: &str, reals: usize) -> Service {
    let service = Service::with(test, reals, reals, &[]);
    without_clamp(&service, |real| service.lab.realsrv_setup(real, "apply").unwrap());
    service
}

fn over_ipv6(test: &str, reals: usize) -> Service {
    let service = Service::over_ipv6(test, reals);
    without_clamp(&service, |real| apply6(&service.lab, real));
    service
}

fn without_clamp(service: &Service, apply: impl Fn(&Host) -> Command) {
    with_mss(service, "off", apply);
}

fn with_mss(service: &Service, mss: &str, apply: impl Fn(&Host) -> Command) {
    for real in service.lab.reals() {
        run(apply(real).args(["--mss", mss])).unwrap();
    }
}

fn upload(service: &Service, vip: IpAddr) {
    assert_eq!(upload_of(BODY, UPLOAD, service, vip).unwrap(), format!("real1 received {BODY} bytes\n"));
}

fn upload_of(octets: usize, limit: &str, service: &Service, vip: IpAddr) -> Result<String, tests::lab::Error> {
    let client = service.lab.client();
    let body = client.dir().join("body");
    std::fs::write(&body, vec![7; octets]).unwrap();
    let url = format!("http://{}/upload", SocketAddr::from((vip, 80)));
    client.run(&format!("curl -sS --fail {limit} -H Expect: --data-binary @{} {url}", body.display()))
}

/// Most clients hear no ICMP, by somebody's firewall: then only the real's MSS helps. A small upload tells nothing.
#[test]
fn upload_of_a_client_that_hears_no_icmp_hangs_without_the_mss_step_and_succeeds_with_it() {
    const DEAF: [&str; 4] = [
        "nft add table inet deaf",
        "nft add chain inet deaf input { type filter hook input priority 0 ; }",
        "nft add rule inet deaf input icmp type destination-unreachable drop",
        "nft add rule inet deaf input icmpv6 type packet-too-big drop",
    ];
    let ipv4: fn(&Service, &Host) -> Command = |service, real| service.lab.realsrv_setup(real, "apply").unwrap();
    let ipv6: fn(&Service, &Host) -> Command = |service, real| apply6(&service.lab, real);
    for (service, vip, apply) in
        [(over_ipv4("mss", 1), IpAddr::from(VIP), ipv4), (over_ipv6("mss6", 1), IpAddr::from(VIP6), ipv6)]
    {
        for command in DEAF {
            service.lab.client().run(command).unwrap();
        }
        assert_eq!(upload_of(1000, UPLOAD, &service, vip).unwrap(), "real1 received 1000 bytes\n");
        let hung = upload_of(500_000, "--max-time 5", &service, vip).unwrap_err().to_string();
        assert!(hung.contains("timed out"), "{vip}: {hung}");
        with_mss(&service, "auto", |real| apply(&service, real));
        assert_eq!(upload_of(500_000, UPLOAD, &service, vip).unwrap(), "real1 received 500000 bytes\n", "{vip}");
    }
}

fn told(service: &Service) -> u64 {
    let stats: Stats = serde_json::from_str(&service.lbctl(&["stats", "-o", "json"]).unwrap()).unwrap();
    stats.reasons.iter().find(|reason| reason.reason == "too_big_reply").unwrap().packets
}

/// The client has learnt this MTU of the way to the VIP.
fn assert_learnt(service: &Service, vip: IpAddr, mtu: u16) {
    let route = service.lab.client().run(&format!("ip route get {vip}")).unwrap();
    assert!(route.contains(&format!("mtu {mtu}")), "{route}");
}

#[test]
fn upload_of_full_sized_segments_succeeds_by_pmtu_messages_alone() {
    let service = over_ipv4("pmtu", 1);
    upload(&service, VIP.into());
    assert!(told(&service) > 0);
    assert_learnt(&service, VIP.into(), 1480);
}

#[test]
fn upload_into_an_ipv6_tunnel_succeeds_by_pmtu_messages_alone_for_vips_of_both_families() {
    let service = over_ipv6("pmtu6", 1);
    for vip in [VIP6.into(), VIP.into()] {
        let before = told(&service);
        upload(&service, vip);
        assert!(told(&service) > before, "{vip}");
        assert_learnt(&service, vip, 1460);
    }
}

#[test]
fn upload_over_a_narrow_path_to_the_real_succeeds_as_its_router_tells_the_load_balancer() {
    for (service, vip, outer) in
        [(over_ipv4("narrow", 1), IpAddr::from(VIP), 20), (over_ipv6("narrow6", 1), IpAddr::from(VIP6), 40)]
    {
        // Only the router knows: the load balancer's own device carries 1,500 bytes.
        service.lab.router().run("ip link set to-real1 mtu 1400").unwrap();
        service.wait_for("the MTU of the device", |rows| rows.iter().all(|row| row.mtu == Some(1500)));
        upload(&service, vip);
        service.wait_for("the MTU of the path", |rows| rows.iter().all(|row| row.mtu == Some(1400)));
        assert_learnt(&service, vip, 1400 - outer);
    }
}

/// One flow each from an address of its own, since hosts remember a path's MTU by address: each flow's real must hear by
/// itself that its answer did not fit.
const FLOWS: u16 = 1000;

#[test]
fn frag_needed_from_a_router_reaches_the_real_of_each_of_a_thousand_flows() {
    let service = over_ipv4("replies", 3);
    let address = |n: u16| Ipv4Addr::from_bits(Ipv4Addr::new(198, 18, 32, 1).to_bits() + u32::from(n));
    each_real_learns(&service, "198.18.32.0/22", service.lab.client().addr().into(), VIP.into(), |n| address(n).into());
}

#[test]
fn packet_too_big_from_a_router_reaches_the_real_of_each_of_a_thousand_flows() {
    let service = over_ipv6("replies6", 3);
    let address = |n: u16| Ipv6Addr::new(0xfd00, 0x32, 0, 0, 0, 0, 0, n + 1);
    each_real_learns(&service, "fd00:32::/64", service.lab.client().addr6().into(), VIP6.into(), |n| address(n).into());
}

/// The client has a network of addresses; its link is narrow, and only its router knows.
fn each_real_learns(service: &Service, network: &str, client: IpAddr, vip: IpAddr, address: impl Fn(u16) -> IpAddr) {
    let lab = &service.lab;
    lab.router().run("ip link set to-client mtu 1400").unwrap();
    lab.router().run(&format!("ip route add {network} via {client}")).unwrap();
    lab.client().run(&format!("ip route add local {network} dev lo")).unwrap();
    // IPv6 sends from addresses of the host only, unless told otherwise.
    lab.client().run("sysctl -qw net.ipv6.ip_nonlocal_bind=1").unwrap();
    let (client, sources) = (lab.client().clone(), (0..FLOWS).map(address).collect::<Vec<_>>());
    let thread = std::thread::spawn(move || {
        client.enter().unwrap();
        sources.into_iter().map(|source| download(source, vip)).collect::<Vec<_>>()
    });
    let answered = thread.join().unwrap();
    assert!(answered.iter().all(|len| *len > FIRST_WINDOW), "{answered:?}");
    // Each real had a part of them, and what each remembers is the MTU of its own flows.
    for real in lab.reals() {
        let family = if vip.is_ipv4() { "-4" } else { "-6" };
        let remembered = real.run(&format!("ip {family} route show cache")).unwrap().matches("mtu 1400").count();
        assert!(remembered > usize::from(FLOWS) / 5, "{}: {remembered}", real.name());
    }
}

/// More than nginx sends before it hears anything, so that segments of the full size are among it.
const FIRST_WINDOW: usize = 20_000;

/// Asks the VIP for the beginning of `/big` from this address: the length of the answer.
fn download(source: IpAddr, vip: IpAddr) -> usize {
    let socket = Socket::new(Domain::for_address((vip, 80).into()), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect_timeout(&SocketAddr::from((vip, 80)).into(), Duration::from_secs(5)).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let range = format!("bytes=0-{FIRST_WINDOW}");
    write!(stream, "GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\nRange: {range}\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    answer.len()
}

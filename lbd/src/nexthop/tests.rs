//! Against the real kernel, in network namespaces that end with the threads that made them. They need root.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};

use super::*;

const REAL: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 1, 2));
const BEHIND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 9, 9));

/// Runs `test` in a fresh namespace on a thread of its own, so that no other thread is ever inside it.
fn in_namespace(test: impl AsyncFnOnce() + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace needs root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// `ip` with one command a line, in the namespace of the calling thread.
fn ip(batch: &str) {
    let mut child = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{batch}");
}

/// The far end of a veth pair, in a namespace that lives as long as this.
struct Peer {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Gives the calling namespace `v0` with 198.18.1.1/24, and the peer `v1` with [`REAL`].
    fn new() -> Self {
        let (ready, is_ready) = channel();
        let (stop, stopped) = channel();
        let (moved, is_moved) = channel();
        let (up, is_up) = channel();
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ready.send(gettid()).unwrap();
            is_moved.recv().unwrap();
            ip("link set v1 address 02:00:00:00:00:02 up\naddress add 198.18.1.2/24 dev v1\n");
            up.send(()).unwrap();
            let _ = stopped.recv();
        });
        let tid = is_ready.recv().unwrap();
        ip(&format!(
            "link add v0 address 02:00:00:00:00:01 mtu 1400 type veth peer name v1\nlink set v1 netns {tid}\n\
             link set v0 up\naddress add 198.18.1.1/24 dev v0\n"
        ));
        moved.send(()).unwrap();
        is_up.recv().unwrap();
        Self { stop: Some(stop), thread: Some(thread) }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn changed(changes: &mut tokio::sync::mpsc::Receiver<()>) -> bool {
    tokio::time::timeout(Duration::from_secs(2), changes.recv()).await.is_ok_and(|word| word.is_some())
}

fn via_v0() -> NextHop {
    let ifindex = nix::net::if_::if_nametoindex("v0").unwrap();
    let (source_mac, dest_mac) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    NextHop { ifindex, mtu: 1400, source_mac, dest_mac, source: Ipv4Addr::new(198, 18, 1, 1).into() }
}

#[test]
fn resolve_neighbour_learnt_by_arp_gives_its_mac_and_a_change() {
    in_namespace(async || {
        let _peer = Peer::new();
        let resolver = Resolver::new().unwrap();
        let unresolved = Unresolved::NeighbourUnresolved { via: REAL, device: "v0".into() };
        assert_eq!(resolver.resolve(REAL).await, Err(unresolved));

        let mut changes = watch().unwrap();
        let socket = std::net::UdpSocket::bind("198.18.1.1:0").unwrap();
        socket.send_to(b"who has you?", (REAL, 9)).unwrap();
        while resolver.resolve(REAL).await != Ok(via_v0()) {
            assert!(changed(&mut changes).await, "the neighbour was not resolved in time");
        }
    });
}

#[test]
fn resolve_real_behind_gateway_gives_the_gateways_mac_and_the_routes_mtu() {
    in_namespace(async || {
        let _peer = Peer::new();
        ip("neighbour replace 198.18.1.2 lladdr 02:00:00:00:00:02 dev v0 nud permanent\n\
            route add 198.18.9.0/24 via 198.18.1.2 mtu 1300\n");
        let all = Resolver::new().unwrap().resolve_all(&[REAL, BEHIND]).await;
        assert_eq!(all, [Ok(via_v0()), Ok(NextHop { mtu: 1300, ..via_v0() })]);
    });
}

#[test]
fn resolve_ipv6_real_behind_gateway_gives_the_gateways_mac_and_our_source() {
    in_namespace(async || {
        let _peer = Peer::new();
        let [behind, own] = ["fd00:9::9", "fd00:1::1"].map(|address| address.parse::<IpAddr>().unwrap());
        let mut changes = watch().unwrap();
        assert_eq!(Resolver::new().unwrap().resolve(behind).await, Err(Unresolved::NoRoute { real: behind }));
        ip("address add fd00:1::1/64 dev v0 nodad\nroute add fd00:9::/64 via fd00:1::2 mtu 1300\n");
        assert!(changed(&mut changes).await);
        let unresolved = Unresolved::NeighbourUnresolved { via: "fd00:1::2".parse().unwrap(), device: "v0".into() };
        assert_eq!(Resolver::new().unwrap().resolve(behind).await, Err(unresolved));
        ip("neighbour replace fd00:1::2 lladdr 02:00:00:00:00:02 dev v0 nud permanent\n");
        let hop = NextHop { mtu: 1300, source: own, ..via_v0() };
        assert_eq!(Resolver::new().unwrap().resolve(behind).await, Ok(hop));
    });
}

/// From the kernel's words for such a device: not every kernel can make one.
#[test]
fn join_real_behind_vlan_device_says_that_xdp_cannot_send_there() {
    let mut link = LinkMessage::default();
    link.header.index = 7;
    link.header.link_layer_type = LinkLayerType::Ether;
    link.header.flags = LinkFlags::Up | LinkFlags::LowerUp;
    link.attributes = vec![
        LinkAttribute::IfName("v0.7".into()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, 1]),
        LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)]),
    ];
    let mut route = RouteMessage::default();
    route.header.kind = RouteType::Unicast;
    route.attributes =
        vec![RouteAttribute::Oif(7), RouteAttribute::PrefSource(RouteAddress::Inet(Ipv4Addr::new(198, 18, 9, 1)))];
    let mut tables = Tables::default();
    tables.add_link(&link);
    let vlan = Unresolved::Vlan { real: BEHIND, device: "v0.7".into() };
    assert_eq!(tables.join(BEHIND, &Route::read(BEHIND, &route).unwrap()), Err(vlan));
}

#[test]
fn resolve_without_way_says_what_is_missing() {
    in_namespace(async || {
        let _peer = Peer::new();
        let resolver = Resolver::new().unwrap();
        assert_eq!(resolver.resolve(BEHIND).await, Err(Unresolved::NoRoute { real: BEHIND }));

        ip("route add blackhole 198.18.9.0/24\n");
        assert_eq!(resolver.resolve(BEHIND).await, Err(Unresolved::NoRoute { real: BEHIND }));

        let own = Ipv4Addr::new(198, 18, 1, 1).into();
        let local = Unresolved::NotForwarded { real: own, kind: RouteType::Local };
        assert_eq!(resolver.resolve(own).await, Err(local));

        ip("neighbour add 198.18.1.2 dev v0 nud failed\n");
        let failed = Unresolved::NeighbourFailed { via: REAL, device: "v0".into() };
        assert_eq!(resolver.resolve(REAL).await, Err(failed));
    });
}

#[test]
fn resolve_peer_down_says_device_down() {
    in_namespace(async || {
        let peer = Peer::new();
        let resolver = Resolver::new().unwrap();
        let mut changes = watch().unwrap();
        ip("link add v2 type veth peer name v3\nlink set v2 up\naddress add 198.18.9.1/24 dev v2\n");
        let down = Unresolved::DeviceDown { real: BEHIND, device: "v2".into() };
        assert_eq!(resolver.resolve(BEHIND).await, Err(down), "the far end is down: no carrier");
        assert!(changed(&mut changes).await);
        drop(peer);
    });
}

#[test]
fn watch_survives_more_changes_than_its_buffer_holds() {
    in_namespace(async || {
        let _peer = Peer::new();
        let mut changes = watch().unwrap();
        // Nobody reads meanwhile: this runtime has one thread, and it is here.
        let flood: String = (0..5000)
            .map(|n| format!("neighbour add 198.18.{}.{} dev v0 nud permanent lladdr 02::\n", 2 + n / 200, n % 200))
            .map(|line| line.replace("02::", "02:00:00:00:00:09"))
            .collect();
        ip(&flood);
        assert!(changed(&mut changes).await, "the overrun counts as a change");
        while tokio::time::timeout(Duration::from_millis(200), changes.recv()).await == Ok(Some(())) {}
        ip("route add 198.18.99.0/24 via 198.18.1.2\n");
        assert!(changed(&mut changes).await, "a change after the overrun is seen");
    });
}

//! A client and a real in two network namespaces, and the packets between them.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    io::Read as _,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use etherparse::{IpNumber, Ipv4Header, Ipv6Header, PacketBuilder, PacketBuilderStep};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

pub(crate) const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 1);
pub(crate) const REAL: Ipv4Addr = Ipv4Addr::new(198, 18, 1, 2);
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 1);
pub(crate) const OTHER_VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 10, 2);

pub(crate) const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 1, 0, 0, 0, 0, 1);
pub(crate) const REAL6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x18, 1, 0, 0, 0, 0, 2);
pub(crate) const LINK_LOCAL_REAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x19, 0x10, 0, 0, 0, 0, 1);
pub(crate) const OTHER_VIP6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x19, 0x10, 0, 0, 0, 0, 2);

/// Long enough for a loaded machine; only what must not happen waits less.
const BOUND: Duration = Duration::from_secs(5);
/// How long to wait for what must not come.
const SILENCE: Duration = Duration::from_millis(400);

/// Two namespaces, a veth between them, and a state directory. Gone when dropped.
pub(crate) struct Lab {
    pub(crate) client: String,
    pub(crate) real: String,
    pub(crate) state: tempfile::TempDir,
}

impl Lab {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let lab = Self { client: format!("rsc-{id}"), real: format!("rsr-{id}"), state: tempfile::tempdir().unwrap() };
        for directory in ["systemd/system/multi-user.target.wants", "sysctl.d", "modules-load.d"] {
            std::fs::create_dir_all(lab.root().join("etc").join(directory)).unwrap();
        }
        let Self { client, real, .. } = &lab;
        for namespace in [client, real] {
            sh(&format!("ip netns add {namespace}"));
            // Nothing of IPv6 that comes and goes by itself: the snapshots would differ.
            run(
                namespace,
                "cd /proc/sys/net/ipv6/conf/default; \
                 for off in accept_dad accept_ra autoconf router_solicitations; do echo 0 > $off; done; \
                 echo 1 > addr_gen_mode",
            );
            run(namespace, "ip link set lo up");
        }
        sh(&format!("ip link add veth0 netns {client} type veth peer name eth0 netns {real}"));
        lab.in_client(&format!("ip addr add {CLIENT}/24 dev veth0; ip addr add {CLIENT6}/64 dev veth0 nodad"));
        lab.in_client("ip addr add fe80::1/64 dev veth0 nodad");
        lab.in_client("ip link set veth0 up");
        lab.in_real(&format!("ip addr add {REAL}/24 dev eth0; ip addr add {REAL6}/64 dev eth0 nodad"));
        lab.in_real(&format!("ip addr add {LINK_LOCAL_REAL}/64 dev eth0 nodad"));
        lab.in_real("ip link set eth0 up; ethtool -K eth0 tx off");
        // The kernel tells of the carrier a moment later, and a snapshot would differ.
        lab.in_real("for i in $(seq 50); do ip link show eth0 | grep -q 'state UP' && exit; sleep 0.1; done; exit 1");
        lab
    }

    pub(crate) fn in_client(&self, script: &str) -> String {
        run(&self.client, script)
    }

    pub(crate) fn in_real(&self, script: &str) -> String {
        run(&self.real, script)
    }

    /// The tool, in the real's namespace. `nsenter` becomes it: a signal reaches the tool.
    pub(crate) fn command(&self, arguments: &str) -> Command {
        let mut command = command(&self.real, binary("realsrv-setup"));
        command.args(arguments.split_whitespace());
        if !arguments.contains("--state-dir") {
            command.arg("--state-dir").arg(self.state_dir());
        }
        command
    }

    /// Runs the tool in the real's namespace.
    pub(crate) fn setup(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs the tool, which must exit with `code`; what it printed.
    #[track_caller]
    pub(crate) fn setup_exits(&self, arguments: &str, code: i32) -> String {
        let output = self.setup(arguments);
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{arguments}: {text}");
        text
    }

    /// Runs the tool, which must succeed; its JSON.
    #[track_caller]
    pub(crate) fn setup_json(&self, arguments: &str) -> serde_json::Value {
        let text = self.setup_exits(&format!("{arguments} -o json"), 0);
        serde_json::from_str(&text).unwrap()
    }

    /// A counter of the programs, as `check` shows it.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        self.setup_json("check")["counters"][name].as_u64().unwrap()
    }

    /// A directory that does not exist before the first `apply`.
    pub(crate) fn state_dir(&self) -> PathBuf {
        self.state.path().join("state")
    }

    /// What stands for `/` with `--persist`: the directories that a host with systemd has.
    pub(crate) fn root(&self) -> PathBuf {
        self.state.path().join("root")
    }

    /// Everything of the real's network that `remove` must restore, and the files below [`Lab::root`].
    pub(crate) fn snapshot(&self) -> BTreeSet<String> {
        let root = self.root();
        let files = format!("find {0} -printf '%p %y %l\\n'; grep -r . {0} || true; ", root.display());
        let text = self.in_real(&format!(
            "{files}{}",
            "ip -j addr; ip -j link; tc qdisc; \
             for family in -4 -6; do ip $family rule; ip $family route show table all; done; \
             for dev in $(ip -j link | grep -o '\"ifname\":\"[^\"]*' | cut -d'\"' -f4); do \
             tc filter show dev $dev ingress; tc filter show dev $dev egress; done; \
             grep -r . /proc/sys/net/ipv4 /proc/sys/net/ipv6 2>/dev/null || true",
        ));
        text.lines().map(str::to_owned).collect()
    }

    /// The real's network must be as it was then.
    #[track_caller]
    pub(crate) fn assert_as(&self, before: &BTreeSet<String>) {
        let now = self.snapshot();
        let [gone, new] = [before - &now, &now - before];
        assert!(gone.is_empty() && new.is_empty(), "gone: {gone:#?}\nnew: {new:#?}");
    }

    /// Sends a packet from the client; the first answer of `protocol` for which `wanted` is true.
    pub(crate) fn exchange(
        &self,
        packet: Vec<u8>,
        protocol: Protocol,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Option<Vec<u8>> {
        self.exchange_within(packet, protocol, wanted, BOUND)
    }

    /// Sends a packet from the client; nothing for which `wanted` is true may come back.
    #[track_caller]
    pub(crate) fn no_answer(
        &self,
        packet: Vec<u8>,
        protocol: Protocol,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) {
        let answer = self.exchange_within(packet, protocol, wanted, SILENCE);
        assert_eq!(answer, None);
    }

    fn exchange_within(
        &self,
        packet: Vec<u8>,
        protocol: Protocol,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
        bound: Duration,
    ) -> Option<Vec<u8>> {
        within(&self.client, move || {
            let receiver = Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).unwrap();
            send(&packet);
            receive(receiver, wanted, bound)
        })
    }

    /// Sends a packet from the client; the first IPv6 packet for which `wanted` is true.
    pub(crate) fn exchange6(
        &self,
        packet: Vec<u8>,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
    ) -> Option<Vec<u8>> {
        self.exchange6_within(packet, wanted, BOUND)
    }

    /// Sends a packet from the client; no IPv6 packet for which `wanted` is true may come back.
    #[track_caller]
    pub(crate) fn no_answer6(&self, packet: Vec<u8>, wanted: impl Fn(&[u8]) -> bool + Send + 'static) {
        assert_eq!(self.exchange6_within(packet, wanted, SILENCE), None);
    }

    fn exchange6_within(
        &self,
        packet: Vec<u8>,
        wanted: impl Fn(&[u8]) -> bool + Send + 'static,
        bound: Duration,
    ) -> Option<Vec<u8>> {
        within(&self.client, move || {
            // A raw IPv6 socket would keep the header to itself.
            let receiver = packet_socket(libc::ETH_P_IPV6);
            send(&packet);
            receive(receiver, wanted, bound)
        })
    }
}

/// What arrives in this namespace of one EtherType, from the network header on.
pub(crate) fn packet_socket(ethertype: libc::c_int) -> Socket {
    let protocol = u16::try_from(ethertype).unwrap().to_be();
    Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(i32::from(protocol)))).unwrap()
}

/// To the real, as it is: the packet brings its own header (`IPPROTO_RAW`).
pub(crate) fn send(packet: &[u8]) {
    let (domain, real) = match packet[0] >> 4 {
        4 => (Domain::IPV4, SocketAddr::new(REAL.into(), 0)),
        _ => (Domain::IPV6, SocketAddr::new(REAL6.into(), 0)),
    };
    let sender = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
    sender.send_to(packet, &SockAddr::from(real)).unwrap();
}

fn receive(mut receiver: Socket, wanted: impl Fn(&[u8]) -> bool, bound: Duration) -> Option<Vec<u8>> {
    let end = Instant::now() + bound;
    let mut buffer = [0; 2048];
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        receiver.set_read_timeout(Some(left)).unwrap();
        match receiver.read(&mut buffer) {
            Ok(length) if wanted(&buffer[..length]) => return Some(buffer[..length].to_vec()),
            _ => {}
        }
    }
    None
}

impl Drop for Lab {
    fn drop(&mut self) {
        for namespace in [&self.client, &self.real] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

fn sh(script: &str) {
    let output = Command::new("bash").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
}

fn run(namespace: &str, script: &str) -> String {
    let output = command(namespace, "bash").args(["-ec", script]).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A program of this workspace, beside the directory of the test programs: tests of another crate share this file.
pub(crate) fn binary(program: &str) -> PathBuf {
    let path = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join(program);
    assert!(path.is_file(), "{} is not built: cargo build --workspace --bins", path.display());
    path
}

/// A program in a namespace, with /sys and bpffs as they are (`ip netns exec` would mount its own).
pub(crate) fn command(namespace: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg(program);
    command
}

/// Runs `work` in a thread of the namespace.
pub(crate) fn within<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
    let enter_and_work = move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    };
    thread::spawn(enter_and_work).join().unwrap()
}

/// Puts an outer header around a packet.
pub(crate) fn ipip(source: Ipv4Addr, inner: &[u8]) -> Vec<u8> {
    let length = inner.len().try_into().unwrap();
    let outer = Ipv4Header::new(length, 64, IpNumber::IPV4, source.octets(), REAL.octets()).unwrap();
    with_header(&outer, inner)
}

/// A packet of this header, which may be any, and payload.
pub(crate) fn with_header(header: &Ipv4Header, payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    header.write(&mut packet).unwrap();
    packet.extend_from_slice(payload);
    packet
}

/// An ICMP echo request from the client.
pub(crate) fn echo(destination: Ipv4Addr) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv4(CLIENT.octets(), destination.octets(), 64).icmpv4_echo_request(7, 1);
    builder.write(&mut packet, b"realsrv").unwrap();
    packet
}

/// An answer to [`echo`] from `source`.
pub(crate) fn echo_reply_from(source: Ipv4Addr) -> impl Fn(&[u8]) -> bool + Send + 'static {
    move |packet| {
        let Ok((ip, icmp)) = Ipv4Header::from_slice(packet) else { return false };
        ip.source == source.octets() && icmp.first() == Some(&0) && icmp.ends_with(b"realsrv")
    }
}

/// An ICMP destination unreachable with this code from the real.
pub(crate) fn unreachable(code: u8) -> impl Fn(&[u8]) -> bool + Send + 'static {
    move |packet| {
        let Ok((_, icmp)) = Ipv4Header::from_slice(packet) else { return false };
        icmp.starts_with(&[3, code])
    }
}

/// A SYN from the client with an MSS option of `mss`.
pub(crate) fn syn(destination: Ipv4Addr, port: u16, mss: u16) -> Vec<u8> {
    syn_in(PacketBuilder::ipv4(CLIENT.octets(), destination.octets(), 64), port, mss)
}

/// The same over IPv6.
pub(crate) fn syn6(destination: Ipv6Addr, port: u16, mss: u16) -> Vec<u8> {
    syn_in(PacketBuilder::ipv6(CLIENT6.octets(), destination.octets(), 64), port, mss)
}

fn syn_in(builder: PacketBuilderStep<etherparse::IpHeaders>, port: u16, mss: u16) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = builder.tcp(40_000, port, 1, 64_000).syn();
    let builder = builder.options(&[etherparse::TcpOptionElement::MaximumSegmentSize(mss)]).unwrap();
    builder.write(&mut packet, &[]).unwrap();
    packet
}

/// Puts an outer IPv6 header to the real around a packet of either family, or around anything of protocol `next`.
pub(crate) fn in_ipv6(next: IpNumber, payload: &[u8]) -> Vec<u8> {
    to_ipv6(REAL6, next, payload)
}

/// The same, to any destination.
pub(crate) fn to_ipv6(destination: Ipv6Addr, next: IpNumber, payload: &[u8]) -> Vec<u8> {
    let outer = Ipv6Header {
        payload_length: payload.len().try_into().unwrap(),
        next_header: next,
        hop_limit: 64,
        source: CLIENT6.octets(),
        destination: destination.octets(),
        ..Ipv6Header::default()
    };
    let mut packet = outer.to_bytes().to_vec();
    packet.extend_from_slice(payload);
    packet
}

/// An ICMPv6 echo request from the client.
pub(crate) fn echo6(destination: Ipv6Addr) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = PacketBuilder::ipv6(CLIENT6.octets(), destination.octets(), 64).icmpv6_echo_request(7, 1);
    builder.write(&mut packet, b"realsrv").unwrap();
    packet
}

/// An answer to [`echo6`] from `source`.
pub(crate) fn echo_reply6_from(source: Ipv6Addr) -> impl Fn(&[u8]) -> bool + Send + 'static {
    const ECHO_REPLY: u8 = 129;
    move |packet| {
        let Ok((ip, icmp)) = Ipv6Header::from_slice(packet) else { return false };
        ip.source == source.octets() && icmp.first() == Some(&ECHO_REPLY) && icmp.ends_with(b"realsrv")
    }
}

/// The ICMPv6 error for a protocol that nobody takes: parameter problem, unrecognized next header (RFC 4443 section
/// 3.4).
pub(crate) fn unrecognized_next_header(packet: &[u8]) -> bool {
    Ipv6Header::from_slice(packet).is_ok_and(|(_, icmp)| icmp.starts_with(&[4, 1]))
}

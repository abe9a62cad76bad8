//! A load balancer and a real in namespaces of their own, joined by a cable. The real decapsulates with the project's tc
//! program and answers with its own kernel.
#![allow(dead_code, reason = "no test uses all of it")]

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, lpm_trie::Key},
    programs::{SchedClassifier, TcAttachType},
};
use lb_ebpf::decap::{self, Address};
use nix::sched::{CloneFlags, setns};

pub(crate) const LB: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 1);
pub(crate) const REAL: Ipv4Addr = Ipv4Addr::new(198, 18, 7, 2);
pub(crate) const VIP: Ipv4Addr = Ipv4Addr::new(198, 19, 7, 1);
pub(crate) const LB_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 1);
pub(crate) const REAL_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 7, 0, 0, 0, 0, 0, 2);
pub(crate) const VIP_6: Ipv6Addr = Ipv6Addr::new(0xfd19, 7, 0, 0, 0, 0, 0, 1);

/// The addresses of a check: the real's and the VIP's.
pub(crate) type Pair = (IpAddr, IpAddr);

pub(crate) const V4: Pair = (IpAddr::V4(REAL), IpAddr::V4(VIP));
pub(crate) const V4_IN_V6: Pair = (IpAddr::V6(REAL_6), IpAddr::V4(VIP));
pub(crate) const V6: Pair = (IpAddr::V6(REAL_6), IpAddr::V6(VIP_6));

/// Everything that the data plane encapsulates.
pub(crate) const PAIRS: [Pair; 3] = [V4, V4_IN_V6, V6];

/// The two namespaces; deleted on drop.
pub(crate) struct Net {
    pub lb: String,
    pub real: String,
    decap: Option<Ebpf>,
}

impl Net {
    /// Needs root.
    pub(crate) fn new() -> Self {
        Self::joined(|lb, real| ip(&format!("link add v0 netns {lb} type veth peer name v1 netns {real}")))
    }

    /// With a switch between the two, whose link to the real is narrower than theirs, and which says nothing of what it drops.
    pub(crate) fn narrow() -> Self {
        Self::joined(|lb, real| {
            let switch = switch_of(lb);
            ip(&format!("netns add {switch}"));
            ip(&format!("-n {switch} link add s type bridge mcast_snooping 0"));
            for (port, mtu, namespace, device) in [("p0", 1500, lb, "v0"), ("p1", 1400, real, "v1")] {
                ip(&format!("link add {device} netns {namespace} type veth peer name {port} netns {switch}"));
                ip(&format!("-n {switch} link set {port} master s mtu {mtu} up"));
            }
            ip(&format!("-n {switch} link set s up"));
        })
    }

    fn joined(join: impl FnOnce(&str, &str)) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut net = Self { lb: format!("hcp-lb-{id}"), real: format!("hcp-real-{id}"), decap: None };
        let Self { lb, real, .. } = &net;
        for namespace in [lb, real] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        join(lb, real);
        ip(&format!("-n {lb} addr add {LB}/30 dev v0"));
        ip(&format!("-n {real} addr add {REAL}/30 dev v1"));
        for (namespace, device, address) in [(lb, "v0", LB_6), (real, "v1", REAL_6)] {
            // Without duplicate address detection, also of link-local addresses, neighbours answer at once.
            let no_dad = format!("net.ipv6.conf.{device}.accept_dad=0");
            Self::run(namespace, &["sysctl", "-qw", &no_dad]);
            ip(&format!("-n {namespace} link set {device} up"));
            ip(&format!("-n {namespace} addr add {address}/64 dev {device} nodad"));
        }
        // The route to an IPv4 VIP tells the source of IPv4 within IPv6.
        ip(&format!("-n {lb} route add default via {REAL}"));
        Self::run(real, &["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1"]);
        net.add_vip();
        net.decap = Some(inside(&net.real, decapsulate));
        net
    }

    pub(crate) fn add_vip(&self) {
        ip(&format!("-n {} addr add {VIP}/32 dev lo", self.real));
        ip(&format!("-n {} addr add {VIP_6}/128 dev lo nodad", self.real));
    }

    pub(crate) fn remove_vip(&self) {
        ip(&format!("-n {} addr del {VIP}/32 dev lo", self.real));
        ip(&format!("-n {} addr del {VIP_6}/128 dev lo", self.real));
    }

    /// Has the real announce an MSS that leaves room for the tunnel's headers.
    pub(crate) fn leave_room(&self) {
        ip(&format!("-n {} route add {LB}/32 dev v1 advmss 1400", self.real));
        ip(&format!("-n {} route add {LB_6}/128 dev v1 advmss 1380", self.real));
    }

    /// Has the real answer on its link for the VIPs. For an IPv6 one Linux does so only on the device that has it.
    pub(crate) fn leak(&self) {
        Self::run(&self.real, &["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=0"]);
        ip(&format!("-n {} addr add {VIP_6}/128 dev v1 nodad", self.real));
    }

    pub(crate) fn remove_decap(&mut self) {
        self.decap = None;
    }

    /// Runs `hc-prober check` on the load balancer, over IPv4.
    pub(crate) fn check(&self, arguments: &str) -> Output {
        self.command(V4, arguments).output().unwrap()
    }

    /// `hc-prober check` on the load balancer.
    pub(crate) fn command(&self, pair: Pair, arguments: &str) -> Command {
        self.subcommand("check", pair, arguments)
    }

    /// A subcommand of `hc-prober` that is about a real and a VIP, on the load balancer.
    pub(crate) fn subcommand(&self, subcommand: &str, (real, vip): Pair, arguments: &str) -> Command {
        let net = format!("--net=/run/netns/{}", self.lb);
        let fixed = [subcommand, "--real", &real.to_string(), "--vip", &vip.to_string()].map(String::from);
        let mut command = Command::new("nsenter");
        command.arg(net).arg(env!("CARGO_BIN_EXE_hc-prober")).args(fixed).args(arguments.split_whitespace());
        command
    }

    /// Output of a command in one of the namespaces.
    pub(crate) fn run(namespace: &str, command: &[&str]) -> String {
        let output =
            Command::new("nsenter").arg(format!("--net=/run/netns/{namespace}")).args(command).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let switch = Some(switch_of(&self.lb)).filter(|switch| Path::new("/run/netns").join(switch).exists());
        for namespace in [&self.lb, &self.real].into_iter().chain(&switch) {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// The switch's namespace, if there is one.
fn switch_of(lb: &str) -> String {
    format!("{lb}-switch")
}

/// Runs `body` on a thread of its own that has entered the namespace. Sockets made there stay there.
pub(crate) fn inside<T: Send + 'static>(namespace: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    let file = File::open(format!("/run/netns/{namespace}")).unwrap();
    let enter = move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        body()
    };
    thread::spawn(enter).join().unwrap()
}

fn decapsulate() -> Ebpf {
    let mut program = Ebpf::load(lb_ebpf::objects::DECAP).unwrap();
    let mut addresses: HashMap<_, Address, u32> = program.map_mut("ADDRESSES").unwrap().try_into().unwrap();
    let hosts = [REAL.into(), REAL_6.into()].map(|host: IpAddr| (host, decap::ROLE_HOST));
    let vips = [VIP.into(), VIP_6.into()].map(|vip: IpAddr| (vip, decap::ROLE_VIP));
    for (address, role) in hosts.into_iter().chain(vips) {
        addresses.insert(Address::from(address), role, 0).unwrap();
    }
    let mut sources: LpmTrie<_, Address, u32> = program.map_mut("SOURCES").unwrap().try_into().unwrap();
    // Anybody.
    sources.insert(&Key::new(0, Address::ipv4([0; 4])), 1, 0).unwrap();
    let classifier: &mut SchedClassifier = program.program_mut("lb_decap").unwrap().try_into().unwrap();
    classifier.load().unwrap();
    classifier.attach("v1", TcAttachType::Ingress).unwrap();
    program
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

//! A load balancer and a real in namespaces of their own, joined by a cable. The real decapsulates with the project's tc
//! program, IPv6 tunnels by means of `decap6`, and answers with its own kernel.
#![allow(dead_code, reason = "no test uses all of it")]

mod decap6;

use std::{
    fs::File,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    process::{Command, Output},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use aya::{
    Ebpf,
    maps::{HashMap, LpmTrie, lpm_trie::Key},
    programs::{SchedClassifier, TcAttachType},
};
use decap6::Decap6;
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
    decap: Option<(Ebpf, Decap6)>,
}

impl Net {
    /// Needs root.
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let mut net = Self { lb: format!("hcp-lb-{id}"), real: format!("hcp-real-{id}"), decap: None };
        let Self { lb, real, .. } = &net;
        for namespace in [lb, real] {
            ip(&format!("netns add {namespace}"));
            ip(&format!("-n {namespace} link set lo up"));
        }
        ip(&format!("link add v0 netns {lb} type veth peer name v1 netns {real}"));
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
        net.add_vip();
        net.decap = Some(inside(&net.real, || (decapsulate(), Decap6::start())));
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
        for namespace in [&self.lb, &self.real] {
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
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
    let mut addresses: HashMap<_, u32, u32> = program.map_mut("ADDRESSES").unwrap().try_into().unwrap();
    for (address, role) in [(REAL, lb_ebpf::decap::ROLE_HOST), (VIP, lb_ebpf::decap::ROLE_VIP)] {
        addresses.insert(u32::from_ne_bytes(address.octets()), role, 0).unwrap();
    }
    let mut sources: LpmTrie<_, u32, u32> = program.map_mut("SOURCES").unwrap().try_into().unwrap();
    sources.insert(&Key::new(0, 0), 1, 0).unwrap();
    let classifier: &mut SchedClassifier = program.program_mut("lb_decap").unwrap().try_into().unwrap();
    classifier.load().unwrap();
    classifier.attach("v1", TcAttachType::Ingress).unwrap();
    program
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}

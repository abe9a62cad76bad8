//! The states in which a host may be found.

use std::any::Any;

use aya::{
    Ebpf,
    programs::{Xdp, XdpMode},
};
use lb_ebpf::objects::XDP_PASS;

use crate::lab::{Lab, within};

/// What a start needs of the kernel. All but nothing only where the kernel is ours alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    Nothing,
    /// The modules `ipip` and `ip6_tunnel`.
    Tunnels,
    /// To hide these modules.
    NoTunnels,
    /// The modules `8021q` and `bonding`.
    Devices,
}

/// Something that is somebody else's as long as it is there.
pub(crate) type Held = Box<dyn Any + Send>;

/// A state in which `apply` may find a host.
pub(crate) struct Start {
    pub(crate) name: &'static str,
    pub(crate) needs: Needs,
    /// Where tunnel packets arrive.
    pub(crate) device: &'static str,
    /// One of the few for a guest that takes its time.
    pub(crate) telling: bool,
    /// The only `--decap` that this start is about.
    pub(crate) decap: Option<&'static str>,
    real: &'static str,
    client: &'static str,
    /// What somebody else's program holds.
    hold: Option<fn(&Lab) -> Held>,
}

const CLEAN: Start = Start {
    name: "clean",
    needs: Needs::Nothing,
    device: "eth0",
    telling: false,
    decap: None,
    real: "",
    client: "",
    hold: None,
};

const BRIDGE: &str = "ip link add br0 type bridge; ip addr flush dev eth0; ip link set eth0 master br0; DEV=br0; ";
const VLAN: &str = "ip addr flush dev eth0; ip link add link eth0 name eth0.7 type vlan id 7; DEV=eth0.7; ";
const BOND: &str = "ip link add bond0 type bond mode active-backup; ip link set eth0 down; ip addr flush dev eth0; \
                    ip link set eth0 master bond0; ip link set eth0 up; DEV=bond0; ";
/// The real's addresses on another device than `eth0`.
const MOVE: &str = "for address in 198.18.1.2/24 fd00:18:1::2/64 fe80::2/64; do \
                    case $address in *:*) ip addr add $address dev $DEV nodad;; *) ip addr add $address dev $DEV;; esac; \
                    done; ip link set $DEV up; ethtool -K $DEV tx off; \
                    for i in $(seq 100); do ip link show $DEV | grep -q 'state UP' && break; sleep 0.1; done; \
                    ip link show $DEV | grep -q 'state UP'";

pub(crate) const STARTS: [Start; 18] = [
    CLEAN,
    Start {
        name: "half configured by hand",
        real: "ip addr add 198.19.10.1/32 dev lo; echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore; \
               tc qdisc add dev eth0 clsact",
        ..CLEAN
    },
    Start {
        name: "half configured, with tunnels",
        telling: true,
        needs: Needs::Tunnels,
        real: "modprobe ipip; ip addr add 198.19.10.1/32 dev lo; ip addr add 10.255.255.1/32 dev tunl0; \
               ip link set tunl0 up; echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore",
        ..CLEAN
    },
    Start {
        name: "VIPs there already",
        real: "ip addr add 198.19.10.1/32 dev lo; ip addr add fd00:19:10::1/128 dev lo nodad",
        ..CLEAN
    },
    Start {
        name: "tunl0 up already",
        needs: Needs::Tunnels,
        real: "modprobe ipip; modprobe ip6_tunnel; ip link set tunl0 up; ip link set ip6tnl0 up",
        ..CLEAN
    },
    Start { name: "rp_filter 0", real: "FILTER=0; set_filter", ..CLEAN },
    Start { name: "rp_filter 1", real: "FILTER=1; set_filter", ..CLEAN },
    Start { name: "rp_filter 2", real: "FILTER=2; set_filter", ..CLEAN },
    Start {
        name: "ARP silent already",
        real: "cd /proc/sys/net/ipv4/conf/all; echo 2 > arp_ignore; echo 2 > arp_announce",
        ..CLEAN
    },
    Start {
        name: "ARP preset, not silent",
        real: "cd /proc/sys/net/ipv4/conf/all; echo 3 > arp_ignore; echo 1 > arp_announce; \
               ip addr add 198.19.10.1/32 dev lo",
        ..CLEAN
    },
    Start {
        name: "tc programs of others",
        real: "tc qdisc add dev eth0 clsact; for hook in ingress egress; do \
               tc filter add dev eth0 $hook pref 7 bpf bytecode '1,6 0 0 0'; done",
        ..CLEAN
    },
    Start { name: "XDP program of others", hold: Some(xdp_of_others), ..CLEAN },
    Start {
        name: "forwarding, icmp limits set",
        real: "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding; \
               echo 4 > /proc/sys/net/ipv4/icmp_ratelimit; echo 0 > /proc/sys/net/ipv6/icmp/ratelimit",
        ..CLEAN
    },
    Start { name: "no tunnels in the kernel", telling: true, needs: Needs::NoTunnels, decap: Some("auto"), ..CLEAN },
    Start { name: "what auto finds", decap: Some("auto"), ..CLEAN },
    Start { name: "bridge", device: "br0", real: BRIDGE, ..CLEAN },
    Start {
        name: "VLAN device with a dot",
        telling: true,
        needs: Needs::Devices,
        device: "eth0.7",
        real: VLAN,
        client: "ip addr flush dev veth0; ip link add link veth0 name veth0.7 type vlan id 7; ip link set veth0.7 up; \
                 ip addr add 198.18.1.1/24 dev veth0.7; ip addr add fd00:18:1::1/64 dev veth0.7 nodad; \
                 ip addr add fe80::1/64 dev veth0.7 nodad; ethtool -K veth0.7 tx off",
        ..CLEAN
    },
    Start { name: "bond", needs: Needs::Devices, device: "bond0", real: BOND, ..CLEAN },
];

impl Start {
    /// Makes the host so; what is returned belongs to it.
    pub(crate) fn prepare(&self, lab: &Lab, own_kernel: bool) -> Option<Held> {
        if own_kernel {
            lab.in_real("[ ! -e /lib/modules.hidden ] || mv /lib/modules.hidden /lib/modules; modprobe -r ipip ip6_tunnel || true");
        }
        if self.needs == Needs::NoTunnels {
            lab.in_real("modprobe -a cls_bpf sch_ingress; mv /lib/modules /lib/modules.hidden");
        }
        let functions = "set_filter() { for of in all eth0; do echo $FILTER > /proc/sys/net/ipv4/conf/$of/rp_filter; \
                         done; }; ";
        lab.in_client(self.client);
        let moved = if self.device == "eth0" { "" } else { MOVE };
        lab.in_real(&format!("{functions}{}{moved}", self.real));
        self.hold.map(|hold| hold(lab))
    }

    /// Whether the program decapsulates with this `--decap`.
    pub(crate) fn by_program(&self, decap: &str) -> bool {
        decap == "ebpf" || decap == "auto" && (self.needs == Needs::NoTunnels || !has_tunnels())
    }
}

/// Whether `modprobe` would find the kernel's tunnels.
pub(crate) fn has_tunnels() -> bool {
    ["ipip", "ip6_tunnel"].iter().all(|module| {
        let found = std::process::Command::new("modprobe").args(["--dry-run", "--quiet", module]).status();
        found.is_ok_and(|status| status.success())
    })
}

fn xdp_of_others(lab: &Lab) -> Held {
    within(&lab.real, || {
        let mut object = Ebpf::load(XDP_PASS).unwrap();
        let program: &mut Xdp = object.program_mut("pass").unwrap().try_into().unwrap();
        program.load().unwrap();
        program.attach("eth0", XdpMode::default()).unwrap();
        let held: Held = Box::new(object);
        held
    })
}

//! What the host is like, as far as a real is concerned. Only data: [`crate::system`] fills it in.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use serde::{Deserialize, Serialize};

use crate::{desired::Prefix, family::Family, persist::Contents};

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Interface index.
    pub index: u32,
    /// Administratively up.
    pub up: bool,
    /// Octets.
    pub mtu: u32,
    /// What it carries.
    pub layer: Layer,
    /// A bridge, a bond or a VRF owns it.
    pub enslaved: bool,
    /// Its owner is a VRF, which only routes what arrives here: else the packets are the owner's.
    pub routed: bool,
    /// The qdisc at handle `ffff:`.
    pub hook: HookQdisc,
    /// The device's own `arp_ignore`: the larger of this and that of `all` counts.
    pub arp_ignore: i32,
    /// The same of `arp_announce`.
    pub arp_announce: i32,
    /// The same of `rp_filter`.
    pub rp_filter: i32,
}

/// What a device carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// Frames with an Ethernet header.
    Ethernet,
    /// Packets to the host itself: `lo`.
    Loopback,
    /// Packets in packets of this family.
    Tunnel(Family),
    /// Something else.
    Other,
}

/// What a device has where `clsact` would be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum HookQdisc {
    /// Nothing.
    #[default]
    None,
    /// `clsact`: filters can be attached.
    Clsact,
    /// `ingress`: takes the place, and has no egress hook.
    Ingress,
}

/// An address on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Device name.
    pub device: String,
    /// The address itself.
    pub address: IpAddr,
    /// Prefix length.
    pub length: u8,
    /// Scope host: an IPv4 address that is never chosen as a source, and not answered for with `arp_ignore=3`.
    pub host_scope: bool,
    /// An IPv6 address that comes and goes by itself (RFC 8981).
    pub temporary: bool,
}

impl Address {
    /// Whether other hosts can send to it, today and tomorrow.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        let link_local = matches!(self.address, IpAddr::V6(address) if address.is_unicast_link_local());
        !self.temporary && !link_local && !self.address.is_loopback()
    }
}

/// A tunnel of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Support {
    /// Neither a device nor a module.
    #[default]
    Absent,
    /// `modprobe` would find the module, and the fallback device would appear in this namespace.
    Loadable,
    /// The fallback device exists.
    Present,
}

/// Direction of a tc hook, seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// Packets that arrive.
    Ingress,
    /// Packets that leave.
    Egress,
}

/// One of our programs, by what it does; the names are those in the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Program {
    /// Removes the outer header.
    Decap,
    /// Restricts the kernel's tunnel to the load balancers.
    Guard,
    /// Clamps the MSS.
    Clamp,
}

impl Program {
    /// Every program.
    pub const ALL: [Self; 3] = [Self::Decap, Self::Guard, Self::Clamp];

    /// The name in the object, in the kernel and of the filter.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Decap => "lb_decap",
            Self::Guard => "lb_guard",
            Self::Clamp => "lb_clamp",
        }
    }

    /// Where it belongs.
    #[must_use]
    pub const fn hook(self) -> Hook {
        match self {
            Self::Decap | Self::Guard => Hook::Ingress,
            Self::Clamp => Hook::Egress,
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A filter's place: a device and a direction, at our priority and handle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot {
    /// Device name.
    pub device: String,
    /// Direction.
    pub hook: Hook,
}

/// What the programs are told: the contents of their maps.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The VIPs.
    pub vips: BTreeSet<IpAddr>,
    /// The host's own addresses: where tunnels end.
    pub hosts: BTreeSet<IpAddr>,
    /// Outer sources that may tunnel.
    pub sources: BTreeSet<Prefix>,
    /// The largest MSS to announce, by device and the VIP's family.
    pub mss: BTreeMap<String, BTreeMap<Family, u16>>,
}

impl Config {
    /// The part that `program` reads: a map that it does not use cannot be read back through it.
    #[must_use]
    pub fn seen_by(&self, program: Program) -> Self {
        match program {
            Program::Decap => Self { mss: BTreeMap::new(), ..self.clone() },
            Program::Guard => Self { sources: self.sources.clone(), ..Self::default() },
            Program::Clamp => Self { sources: BTreeSet::new(), ..self.clone() },
        }
    }

    /// Adds what `other` knows.
    pub fn extend(&mut self, other: Self) {
        self.vips.extend(other.vips);
        self.hosts.extend(other.hosts);
        self.sources.extend(other.sources);
        self.mss.extend(other.mss);
    }
}

/// What is found in a [`Slot`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Filter {
    /// One of ours, and what it has been told.
    Ours {
        /// Which.
        program: Program,
        /// Contents of its maps.
        config: Config,
    },
    /// Somebody else's, by the name it shows.
    Foreign(String),
}

/// Everything that was looked at, in one network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Devices by name.
    pub links: BTreeMap<String, Link>,
    /// All addresses.
    pub addresses: Vec<Address>,
    /// IPv6 addresses that a device may answer neighbour solicitations for although they are not its own (proxy NDP).
    pub proxied: BTreeSet<(IpAddr, String)>,
    /// Settings by name (`net.ipv4.…`, `net.ipv6.…`), as they read.
    pub sysctls: BTreeMap<String, String>,
    /// The kernel's tunnels; one that is not in here is absent.
    pub tunnels: BTreeMap<Family, Support>,
    /// What is there of the files that `--persist` may write, by path.
    pub files: BTreeMap<String, Contents>,
    /// The filters at our priority and handle.
    pub filters: BTreeMap<Slot, Filter>,
    /// The programs' counters, by name, summed over programs and CPUs. Informative only.
    pub counters: BTreeMap<&'static str, u64>,
}

impl Observed {
    /// The kernel's tunnel of a family.
    #[must_use]
    pub fn tunnel(&self, family: Family) -> Support {
        self.tunnels.get(&family).copied().unwrap_or_default()
    }
}

//! The configuration: what the operator wrote, checked once and then trusted.
//!
//! ```text
//! text ── toml + serde ──▶ dto ── convert ──▶ Config      (or every mistake, each with its line)
//! ```
//!
//! The order in which VIPs and reals are written means nothing: a [`Config`] holds them sorted, so two files that say the
//! same thing are equal, and every node that reads either builds the same ring.

mod announce;
mod caution;
mod convert;
mod diff;
mod dto;
#[cfg(test)]
mod hostile_tests;
mod policy;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::maglev::order_for;

pub use announce::{Announce, AnnounceBy};
pub use caution::Caution;
pub use diff::Change;
pub use policy::{MinHealthy, Policy};

/// What a VIP's check asks of each of its reals, and when; what is wrong with a configuration.
pub use hc_prober::{
    Timing,
    config::{ConfigError, Mistake, check::Spec as Check},
};
/// How many flows the table of tracked flows has room for (`tracked_flows`).
pub use lb_ebpf::flow::TableSize;
/// What outer headers have as their source (`outer_source`).
pub use lb_ebpf::source::OuterSource;
/// By what a VIP's flows are spread over its ring (`hash`), and the most VIPs one node takes.
pub use lb_ebpf::vip::{HashBy, MAX_VIPS};
/// Most different real addresses one node takes: the map's index 0 means "none".
pub const MAX_REALS: usize = lb_ebpf::real::MAX_REALS - 1;
/// The ring seed of a configuration that names none. It is public: set `node.seed` where clients are not trusted, to the same
/// value on every node, or they can choose flows that all land on one real.
pub const DEFAULT_SEED: [u8; 16] = *b"lbd default seed";

/// A whole configuration, valid by construction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    node: Node,
    announce: Announce,
    vips: Vec<Vip>,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read, or it holds mistakes; each is shown with its line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&path.display().to_string(), &hc_prober::config::read(path)?)
    }

    /// Checks `text`; `name` stands for the file in messages.
    ///
    /// # Errors
    /// [`ConfigError::Mistakes`] with every mistake found. A mistake of form (syntax, an unknown key, a wrong type) ends the
    /// reading and is reported alone; mistakes of meaning are all reported together.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let mistakes = |mistakes| ConfigError::mistakes(name, text, mistakes);
        let file: dto::File = toml::from_str(text).map_err(|e| mistakes(vec![Mistake::from(e)]))?;
        convert::config(file).map_err(mistakes)
    }

    /// What concerns this node as a whole.
    #[must_use]
    pub fn node(&self) -> &Node {
        &self.node
    }

    /// How what is to be announced is.
    #[must_use]
    pub fn announce(&self) -> Announce {
        self.announce
    }

    /// The VIPs, sorted by key, no key twice, at most [`MAX_VIPS`].
    #[must_use]
    pub fn vips(&self) -> &[Vip] {
        &self.vips
    }

    /// The VIP with this key.
    #[must_use]
    pub fn vip(&self, key: &VipKey) -> Option<&Vip> {
        self.vips.binary_search_by_key(key, |vip| vip.key).ok().and_then(|at| self.vips.get(at))
    }

    /// What changes when `new` takes the place of `old`, in the order of the VIPs; empty when they mean the same.
    #[must_use]
    pub fn diff(old: &Self, new: &Self) -> Vec<Change> {
        diff::diff(old, new)
    }
}

/// The node-wide part of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    interfaces: Vec<String>,
    outer_source: Option<OuterSource>,
    outer_source6: Option<Ipv6Addr>,
    seed: [u8; 16],
    vip_miss: VipMiss,
    tracked_flows: TableSize,
}

impl Node {
    /// The devices XDP attaches to: at least one, sorted, none twice.
    #[must_use]
    pub fn interfaces(&self) -> &[String] {
        &self.interfaces
    }

    /// The source of the outer IPv4 header of forwarded packets and of probes. Flows are hashed over a prefix, and probes take turns
    /// in it. `None`: the preferred source of the route to each real.
    #[must_use]
    pub fn outer_source(&self) -> Option<OuterSource> {
        self.outer_source
    }

    /// The same of outer IPv6 headers, whose flow label spreads flows.
    #[must_use]
    pub fn outer_source6(&self) -> Option<Ipv6Addr> {
        self.outer_source6
    }

    /// Whether what goes to this real has the source that its route prefers, in the outer header or, with a prefix, only
    /// in a probe's inner one.
    #[must_use]
    pub fn is_source_routed(&self, real: IpAddr) -> bool {
        match real {
            IpAddr::V4(_) => self.outer_source.and_then(OuterSource::only).is_none(),
            IpAddr::V6(_) => self.outer_source6.is_none(),
        }
    }

    /// Whether outer packets have this source, on a route that prefers `routed`.
    #[must_use]
    pub fn sends_from(&self, source: IpAddr, routed: IpAddr) -> bool {
        match source {
            IpAddr::V4(v4) => self.outer_source.map_or(source == routed, |ours| ours.contains(v4)),
            IpAddr::V6(v6) => self.outer_source6.map_or(source == routed, |ours| ours == v6),
        }
    }

    /// Keys the flow hash and the ring. Nodes that share VIPs must share it.
    #[must_use]
    pub fn seed(&self) -> [u8; 16] {
        self.seed
    }

    /// What happens to a packet for a VIP's address and a port that is not configured.
    #[must_use]
    pub fn vip_miss(&self) -> VipMiss {
        self.vip_miss
    }

    /// The size of the table of tracked flows: at least what was asked for.
    #[must_use]
    pub fn tracked_flows(&self) -> TableSize {
        self.tracked_flows
    }
}

/// What to do with a packet for a VIP's address that no VIP takes (`unmatched`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VipMiss {
    /// Drop and count it: passing it lets a forwarding node and its router play ping-pong.
    #[default]
    Drop,
    /// Hand it to the kernel.
    Pass,
}

/// One virtual service and the reals behind it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vip {
    key: VipKey,
    reals: Vec<Real>,
    checks: Vec<(Check, Timing)>,
    flow_idle: Duration,
    hash: HashBy,
    ring_order: Option<u8>,
    on_all_down: OnAllDown,
    policy: Policy,
    announce_by: AnnounceBy,
}

impl Vip {
    /// Address, protocol and port: the identity of the VIP.
    #[must_use]
    pub fn key(&self) -> VipKey {
        self.key
    }

    /// The reals, sorted by address, none twice, at least one; those of an IPv6 VIP have IPv6 addresses.
    #[must_use]
    pub fn reals(&self) -> &[Real] {
        &self.reals
    }

    /// What each of the reals is asked, and when: at least one check, and all must pass.
    #[must_use]
    pub fn checks(&self) -> &[(Check, Timing)] {
        &self.checks
    }

    /// A flow that sends at least one packet in this time keeps its real; 1 s to 18 h, in whole seconds (rounded up).
    #[must_use]
    pub fn flow_idle(&self) -> Duration {
        self.flow_idle
    }

    /// By what its flows are spread over its reals.
    #[must_use]
    pub fn hash(&self) -> HashBy {
        self.hash
    }

    /// The order of the ring that it gets when it is created ([`lb_ebpf::ring::RingRef::order`]): that of `ring_slots`,
    /// or what its reals and their weights need.
    #[must_use]
    pub fn ring_order(&self) -> u8 {
        self.ring_order.unwrap_or_else(|| order_for(self.reals.iter().map(|real| real.weight)))
    }

    /// What happens when too few reals are left.
    #[must_use]
    pub fn on_all_down(&self) -> OnAllDown {
        self.on_all_down
    }

    /// What it does with what its checks say.
    #[must_use]
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// So many reals must serve, or it is not able to: at least one.
    #[must_use]
    pub fn min_healthy(&self) -> usize {
        self.policy.min_healthy.of(self.reals.len())
    }

    /// By what its address is announced while it can serve.
    #[must_use]
    pub fn announce_by(&self) -> AnnounceBy {
        self.announce_by
    }
}

/// The identity of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VipKey {
    /// The address clients connect to.
    pub address: IpAddr,
    /// The transport protocol.
    pub protocol: Protocol,
    /// Host byte order; 0 stands for every port of the protocol.
    pub port: u16,
}

impl fmt::Display for VipKey {
    /// `198.19.10.1:80/tcp`, `[2001:db8::1]:53/udp`; port 0 as `198.19.10.1:*/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:")?,
            IpAddr::V6(address) => write!(f, "[{address}]:")?,
        }
        match self.port {
            0 => write!(f, "*/{}", self.protocol),
            port => write!(f, "{port}/{}", self.protocol),
        }
    }
}

/// A transport protocol a VIP can be of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// A server behind a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Real {
    /// Where the encapsulated packets are sent.
    pub address: IpAddr,
    /// Its share of new flows, relative to the VIP's other reals; 0 takes none.
    pub weight: u16,
}

/// What to do with a VIP of which fewer than `min_healthy` reals serve: by default, none (`all_down`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnAllDown {
    /// Nobody leaves the set in service on account of its checks any more: the prober is the likelier culprit.
    #[default]
    Keep,
    /// The VIP is out of service; what comes all the same goes to the reals that are left.
    Withdraw,
}

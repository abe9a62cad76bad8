//! From the file's shapes to the domain: every rule about values is here, and every broken one is reported.

use std::collections::HashSet;
use std::iter::once;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use hc_prober::config::{
    Mistakes, from_hex, optional, parse_address,
    value::{Integer, Span},
};
use lb_ebpf::flow::TableSize;
use lb_ebpf::ring::{MAX_RING_ORDER, RING_SLOTS};
use toml::Spanned;

use super::dto;
use super::{
    AnnounceBy, Config, DEFAULT_SEED, HashBy, MAX_REALS, MAX_VIPS, MinHealthy, Mistake, Node, OnAllDown, Policy,
    Protocol, Real, Timing, Vip, VipKey, VipMiss,
};

const DEFAULT_WEIGHT: u16 = 100;
const FLOW_IDLE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(18);

const HASHES: [(&str, HashBy); 3] =
    [("5tuple", HashBy::FiveTuple), ("source", HashBy::Source), ("source+dport", HashBy::SourcePort)];

/// What a VIP has of each setting that it does not name.
struct Base {
    timing: Timing,
    flow_idle: Duration,
    on_all_down: OnAllDown,
    policy: Policy,
    announce_by: AnnounceBy,
}

const FLOW_IDLE_DEFAULT: Duration = Duration::from_mins(15);

impl Default for Base {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            flow_idle: FLOW_IDLE_DEFAULT,
            on_all_down: OnAllDown::Keep,
            policy: Policy::default(),
            announce_by: AnnounceBy::default(),
        }
    }
}

/// Checks everything; the domain's `Config`, or all the mistakes.
pub(super) fn config(file: dto::File) -> Result<Config, Vec<Mistake>> {
    let mut reader = Reader::default();
    let node = reader.node(file.node);
    let announce = file.announce.read(&mut reader.0);
    let base = reader.base(&file.defaults).unwrap_or_default();
    let mut vips: Vec<_> = file.vip.iter().filter_map(|vip| reader.vip(vip, &base)).collect();
    reader.across(&file.vip);
    if let Some(node) = &node {
        reader.across_sources(node, &file.vip);
    }
    match (node, announce, reader.0.into_vec()) {
        (Some(node), Some(announce), mistakes) if mistakes.is_empty() => {
            vips.sort_by_key(|vip| vip.key);
            Ok(Config { node, announce, vips })
        }
        (_, _, mistakes) => Err(mistakes),
    }
}

/// Reads the file; each method gives `None` exactly when it has added a mistake.
#[derive(Default)]
struct Reader(Mistakes);

impl Reader {
    fn node(&mut self, node: dto::Node) -> Option<Node> {
        let interfaces = self.0.interfaces(node.interface);
        let outer_source = optional(node.outer_source.as_ref(), |source| self.0.outer_source(source));
        let outer_source6 = optional(node.outer_source6.as_ref(), |source| self.0.outer_source6(source));
        let seed = optional(node.seed.as_ref(), |seed| self.seed(seed));
        let vip_miss = optional(node.unmatched.as_ref(), |word| {
            self.0.word("unmatched", word, &[("drop", VipMiss::Drop), ("pass", VipMiss::Pass)])
        });
        let tracked_flows = optional(node.tracked_flows.as_ref(), |flows| self.tracked_flows(flows));
        Some(Node {
            interfaces: interfaces?,
            outer_source: outer_source?,
            outer_source6: outer_source6?,
            seed: seed?.unwrap_or(DEFAULT_SEED),
            vip_miss: vip_miss?.unwrap_or_default(),
            tracked_flows: tracked_flows?.unwrap_or(TableSize::DEFAULT),
        })
    }

    fn tracked_flows(&mut self, flows: &Spanned<Integer>) -> Option<TableSize> {
        let entries = self.0.integer("tracked_flows", flows, TableSize::MIN.entries()..=TableSize::MAX.entries())?;
        TableSize::for_entries(entries)
    }

    fn seed(&mut self, text: &Spanned<String>) -> Option<[u8; 16]> {
        match from_hex(text.get_ref()).and_then(|bytes| bytes.try_into().ok()) {
            Some(seed) => Some(seed),
            None => self.0.add(text.span(), format!("`seed` {:?} is not 32 hexadecimal digits", text.get_ref())),
        }
    }

    fn vip(&mut self, vip: &dto::Vip, base: &Base) -> Option<Vip> {
        let address = self.0.address("address", &vip.address);
        let protocol = self.0.word("protocol", &vip.protocol, &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)]);
        let port = self.0.integer("port", &vip.port, 0..=u16::MAX);
        let checks = self.0.checks(&vip.check, port, address, base.timing);
        let flow_idle = self.flow_idle(vip.flow_idle.as_ref(), base.flow_idle);
        let hash = optional(vip.hash.as_ref(), |word| self.0.word("hash", word, &HASHES));
        let ring_order = optional(vip.ring_slots.as_ref(), |slots| self.ring_slots(slots));
        let on_all_down = self.all_down(vip.all_down.as_ref(), base.on_all_down);
        let policy = vip.policy().read(&mut self.0, base.policy).and_then(|policy| self.within(policy, vip));
        let announce_by = self.announce_by(vip.announce.as_ref(), base.announce_by);
        let reals = self.reals(vip, address);
        Some(Vip {
            key: VipKey { address: address?, protocol: protocol?, port: port? },
            reals: reals?,
            checks: checks?,
            flow_idle: flow_idle?,
            hash: hash?.unwrap_or_default(),
            ring_order: ring_order?,
            on_all_down: on_all_down?,
            policy: policy?,
            announce_by: announce_by?,
        })
    }

    fn reals(&mut self, vip: &dto::Vip, vip_address: Option<IpAddr>) -> Option<Vec<Real>> {
        if vip.real.is_empty() {
            let message = format!("VIP {} has no reals: give it at least one [[vip.real]]", vip.address.get_ref());
            return self.0.add(vip.address.span(), message);
        }
        let mut seen = HashSet::new();
        let mut reals = Vec::with_capacity(vip.real.len());
        for real in &vip.real {
            let weight = optional(real.weight.as_ref(), |weight| self.0.integer("weight", weight, 0..=u16::MAX));
            if let (Some(address), Some(weight)) = (self.0.address("address", &real.address), weight) {
                if !seen.insert(address) {
                    let message = format!("real {address} is listed twice for VIP {}", vip.address.get_ref());
                    self.0.add::<()>(real.address.span(), message);
                }
                self.0.carries(vip_address, address, real.address.span());
                reals.push(Real { address, weight: weight.unwrap_or(DEFAULT_WEIGHT) });
            }
        }
        reals.sort();
        (reals.len() == vip.real.len()).then_some(reals)
    }

    /// What `[defaults]` says, over what this program says.
    fn base(&mut self, defaults: &dto::Defaults) -> Option<Base> {
        let built_in = Base::default();
        let timing = self.0.timing(&defaults.clock(), built_in.timing);
        let flow_idle = self.flow_idle(defaults.flow_idle.as_ref(), built_in.flow_idle);
        let on_all_down = self.all_down(defaults.all_down.as_ref(), built_in.on_all_down);
        let policy = defaults.policy().read(&mut self.0, built_in.policy);
        let announce_by = self.announce_by(defaults.announce.as_ref(), built_in.announce_by);
        Some(Base {
            timing: timing?,
            flow_idle: flow_idle?,
            on_all_down: on_all_down?,
            policy: policy?,
            announce_by: announce_by?,
        })
    }

    fn announce_by(&mut self, ways: Option<&dto::Ways>, base: AnnounceBy) -> Option<AnnounceBy> {
        optional(ways, |ways| ways.read(&mut self.0)).map(|own| own.unwrap_or(base))
    }

    fn flow_idle(&mut self, span: Option<&Spanned<Span>>, base: Duration) -> Option<Duration> {
        optional(span, |span| self.0.duration("flow_idle", span, &FLOW_IDLE)).map(|own| own.unwrap_or(base))
    }

    /// The order of a ring with so many slots.
    fn ring_slots(&mut self, slots: &Spanned<Integer>) -> Option<u8> {
        let Integer(number) = *slots.get_ref();
        let sizes = (0..=MAX_RING_ORDER).map(|order| (order, RING_SLOTS << order));
        if let Some((order, _)) = sizes.clone().find(|(_, size)| i64::try_from(*size) == Ok(number)) {
            return Some(order);
        }
        let sizes: Vec<_> = sizes.map(|(_, size)| size.to_string()).collect();
        let message = format!("`ring_slots` {number} is not a size of a ring: allowed is {}", sizes.join(" or "));
        self.0.add(slots.span(), message)
    }

    fn all_down(&mut self, word: Option<&Spanned<String>>, base: OnAllDown) -> Option<OnAllDown> {
        let words = [("keep", OnAllDown::Keep), ("withdraw", OnAllDown::Withdraw)];
        optional(word, |word| self.0.word("all_down", word, &words)).map(|own| own.unwrap_or(base))
    }

    /// A policy that a VIP with its reals can keep to.
    fn within(&mut self, policy: Policy, vip: &dto::Vip) -> Option<Policy> {
        match policy.min_healthy {
            MinHealthy::Reals(wanted) if usize::from(wanted) > vip.real.len().max(1) => {
                let span = vip.min_healthy.as_ref().map_or_else(|| vip.address.span(), Spanned::span);
                let (address, reals) = (vip.address.get_ref(), vip.real.len());
                let message = format!("`min_healthy` {wanted} is more than VIP {address} has reals, which is {reals}");
                self.0.add(span, message)
            }
            MinHealthy::Reals(_) | MinHealthy::Percent(_) => Some(policy),
        }
    }

    /// The rules that no VIP can break alone.
    fn across(&mut self, vips: &[dto::Vip]) {
        if let Some(vip) = vips.get(MAX_VIPS) {
            let message =
                format!("{} VIPs are too many: at most {MAX_VIPS} are allowed, this is the first beyond", vips.len());
            self.0.add::<()>(vip.address.span(), message);
        }
        let mut keys = HashSet::new();
        for vip in vips {
            let key = (parse_address(&vip.address), vip.protocol.get_ref(), vip.port.get_ref().0);
            if key.0.is_some() && !keys.insert(key) {
                let (address, protocol, port) = (vip.address.get_ref(), vip.protocol.get_ref(), vip.port.get_ref().0);
                let message = format!(
                    "VIP {address} {protocol} port {port} is listed twice: address, protocol and port must differ"
                );
                self.0.add::<()>(vip.address.span(), message);
            }
        }
        self.across_reals(vips);
    }

    fn across_reals(&mut self, vips: &[dto::Vip]) {
        let vip_addresses: HashSet<_> = vips.iter().filter_map(|vip| parse_address(&vip.address)).collect();
        let mut seen = HashSet::new();
        for real in vips.iter().flat_map(|vip| &vip.real) {
            let Some(address) = parse_address(&real.address) else { continue };
            if vip_addresses.contains(&address) {
                let message = format!("real {address} is also a VIP: its packets would come straight back");
                self.0.add::<()>(real.address.span(), message);
            }
            let new = seen.insert(address);
            if new && seen.len() == MAX_REALS + 1 {
                let message = format!(
                    "too many reals: at most {MAX_REALS} different addresses are allowed, this is the first beyond"
                );
                self.0.add::<()>(real.address.span(), message);
            }
        }
    }

    /// A real would discard what comes from an address of its own, and every real has the VIPs.
    fn across_sources(&mut self, node: &Node, vips: &[dto::Vip]) {
        let addresses = vips.iter().flat_map(|vip| once(&vip.address).chain(vip.real.iter().map(|real| &real.address)));
        for text in addresses {
            let source = match parse_address(text) {
                Some(IpAddr::V4(address)) => {
                    let source = node.outer_source.filter(|source| source.contains(address));
                    source.map(|source| format!("`outer_source` ({source})"))
                }
                Some(IpAddr::V6(address)) => {
                    node.outer_source6.filter(|source| *source == address).map(|_| "`outer_source6`".to_owned())
                }
                None => None,
            };
            if let Some(source) = source {
                let message = format!("{} is an {source}: what comes from there would be discarded", text.get_ref());
                self.0.add::<()>(text.span(), message);
            }
        }
    }
}

//! What a reload changes, for people.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use super::{Config, Real, Vip, VipKey};

/// One difference between two configurations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A key of `[node]` has another value.
    Node {
        /// The key in the file.
        key: &'static str,
    },
    /// A key of `[announce]` has another value.
    Announce {
        /// The key in the file.
        key: &'static str,
    },
    /// A VIP is new, with so many reals.
    VipAdded {
        /// Which.
        vip: VipKey,
        /// How many reals it comes with.
        reals: usize,
    },
    /// A VIP is gone.
    VipRemoved {
        /// Which.
        vip: VipKey,
    },
    /// A VIP stays and one of its settings has another value.
    Vip {
        /// Which.
        vip: VipKey,
        /// The key in the file.
        key: &'static str,
    },
    /// A VIP has a new real.
    RealAdded {
        /// Of which VIP.
        vip: VipKey,
        /// The real.
        real: Real,
    },
    /// A VIP has lost a real.
    RealRemoved {
        /// Of which VIP.
        vip: VipKey,
        /// The real's address.
        real: IpAddr,
    },
    /// A real of a VIP has another weight.
    RealWeight {
        /// Of which VIP.
        vip: VipKey,
        /// The real's address.
        real: IpAddr,
        /// Its weight before.
        from: u16,
        /// Its weight now.
        to: u16,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node { key } => write!(f, "~ node: {key} changed"),
            Self::Announce { key } => write!(f, "~ announce: {key} changed"),
            Self::VipAdded { vip, reals: 1 } => write!(f, "+ vip {vip} with 1 real"),
            Self::VipAdded { vip, reals } => write!(f, "+ vip {vip} with {reals} reals"),
            Self::VipRemoved { vip } => write!(f, "- vip {vip}"),
            Self::Vip { vip, key } => write!(f, "~ vip {vip}: {key} changed"),
            Self::RealAdded { vip, real } => write!(f, "+ vip {vip} real {} weight {}", real.address, real.weight),
            Self::RealRemoved { vip, real } => write!(f, "- vip {vip} real {real}"),
            Self::RealWeight { vip, real, from, to } => write!(f, "~ vip {vip} real {real}: weight {from} -> {to}"),
        }
    }
}

pub(super) fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes = node(old, new);
    let keys = old.announce.differences(new.announce);
    changes.extend(keys.map(|key| Change::Announce { key }));
    let (before, after) = (by_key(old), by_key(new));
    for (key, sides) in pair(&before, &after) {
        match sides {
            (Some(_), None) => changes.push(Change::VipRemoved { vip: key }),
            (None, Some(vip)) => changes.push(Change::VipAdded { vip: key, reals: vip.reals.len() }),
            (Some(old), Some(new)) => changes.extend(vip(old, new)),
            (None, None) => {}
        }
    }
    changes
}

fn node(old: &Config, new: &Config) -> Vec<Change> {
    let (old, new) = (&old.node, &new.node);
    [
        ("interface", old.interfaces != new.interfaces),
        ("outer_source", old.outer_source != new.outer_source),
        ("outer_source6", old.outer_source6 != new.outer_source6),
        ("seed", old.seed != new.seed),
        ("tracked_flows", old.tracked_flows != new.tracked_flows),
        ("unmatched", old.vip_miss != new.vip_miss),
    ]
    .into_iter()
    .filter_map(|(key, changed)| changed.then_some(Change::Node { key }))
    .collect()
}

fn vip(old: &Vip, new: &Vip) -> Vec<Change> {
    let vip = new.key;
    let settings = [
        ("check", !old.checks.iter().map(|(check, _)| check).eq(new.checks.iter().map(|(check, _)| check))),
        ("check timing", !old.checks.iter().map(|(_, timing)| timing).eq(new.checks.iter().map(|(_, timing)| timing))),
        ("flow_idle", old.flow_idle != new.flow_idle),
        ("hash", old.hash != new.hash),
        ("ring_slots", old.ring_order != new.ring_order),
        ("all_down", old.on_all_down != new.on_all_down),
        ("min_healthy", old.policy.min_healthy != new.policy.min_healthy),
        ("hold_down", old.policy.flap.hold != new.policy.flap.hold),
        ("hold_down_max", old.policy.flap.longest != new.policy.flap.longest),
        ("flap_limit", old.policy.flap.limit != new.policy.flap.limit),
        ("flap_window", old.policy.flap.window != new.policy.flap.window),
        ("slow_start", old.policy.slow_start != new.policy.slow_start),
        ("announce", old.announce_by != new.announce_by),
    ];
    let settings = settings.into_iter().filter_map(|(key, changed)| changed.then_some(Change::Vip { vip, key }));

    let (before, after) = (weights(old), weights(new));
    let reals = pair(&before, &after).filter_map(|(real, sides)| match sides {
        (Some(_), None) => Some(Change::RealRemoved { vip, real }),
        (None, Some(&weight)) => Some(Change::RealAdded { vip, real: Real { address: real, weight } }),
        (Some(&from), Some(&to)) if from != to => Some(Change::RealWeight { vip, real, from, to }),
        (Some(_), Some(_)) | (None, None) => None,
    });
    settings.chain(reals).collect()
}

fn by_key(config: &Config) -> BTreeMap<VipKey, &Vip> {
    config.vips.iter().map(|vip| (vip.key, vip)).collect()
}

fn weights(vip: &Vip) -> BTreeMap<IpAddr, u16> {
    vip.reals.iter().map(|real| (real.address, real.weight)).collect()
}

/// Every key of either map, in order, with what each map has for it.
fn pair<'a, K: Ord + Copy, V>(
    old: &'a BTreeMap<K, V>,
    new: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (K, (Option<&'a V>, Option<&'a V>))> {
    let keys: std::collections::BTreeSet<K> = old.keys().chain(new.keys()).copied().collect();
    keys.into_iter().map(|key| (key, (old.get(&key), new.get(&key))))
}

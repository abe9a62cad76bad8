//! Items of the tc programs: which belong where, told what.

use std::collections::{BTreeMap, BTreeSet};

use super::{Item, Programs, Refusal, Step, item, settings::is_open};
use crate::{
    desired::{Desired, Mss, Prefix},
    family::Family,
    observed::{Config, Filter, HookQdisc, Layer, Link, Observed, Program, Slot},
};

/// Octets.
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const TCP_HEADER: u32 = 20;

/// The programs that `desired` needs on `devices`.
pub(super) fn programs(
    desired: &Desired,
    observed: &Observed,
    devices: &BTreeMap<&str, &Link>,
    tunnels: &BTreeSet<Family>,
) -> Result<Programs, Refusal> {
    let ingress = match (tunnels.is_empty(), desired.lb_sources.is_empty()) {
        (true, _) => Some(Program::Decap),
        (false, false) => Some(Program::Guard),
        (false, true) => None,
    };
    let mut wanted = Programs::default();
    let tunnel_open = !tunnels.is_empty() || Family::ALL.into_iter().any(|family| is_open(family, observed));
    if tunnel_open && !desired.lb_sources.is_empty() {
        let others = guarded(observed)?.filter(|name| !devices.contains_key(name));
        wanted.slots.extend(others.map(|name| (name.to_owned(), Program::Guard)));
    }
    for (&name, link) in devices {
        wanted.slots.extend(ingress.map(|program| (name.to_owned(), program)));
        let limits = clamp_to(desired, name, link)?;
        if !limits.is_empty() {
            wanted.slots.insert((name.to_owned(), Program::Clamp));
            wanted.config.mss.insert(name.to_owned(), limits);
        }
    }
    wanted.config = Config { mss: wanted.config.mss, ..addresses(desired, observed, tunnels) };
    Ok(wanted)
}

/// What the programs are told on every device.
fn addresses(desired: &Desired, observed: &Observed, tunnels: &BTreeSet<Family>) -> Config {
    let vips = desired.vips.iter().map(|&vip| vip.into()).collect();
    let own = observed.addresses.iter().filter(|found| found.is_lasting()).map(|found| found.address);
    let hosts = &own.collect() - &vips;
    Config { vips, hosts, sources: sources(desired, tunnels), mss: BTreeMap::new() }
}

/// The step that makes the programs, where they are, forget the VIPs that are not in `remaining`. Which programs there
/// are, and where, does not depend on how many VIPs there are.
pub(super) fn told_less(remaining: &Desired, observed: &Observed, tunnels: &BTreeSet<Family>) -> Option<Step> {
    let found = installed(observed);
    let mut mss = found.config.mss.clone();
    for limits in mss.values_mut() {
        limits.retain(|&family, _| remaining.serves(family));
    }
    let config = Config { mss, ..addresses(remaining, observed, tunnels) };
    let to = Programs { slots: found.slots.clone(), config };
    let needed = !found.slots.is_empty() && !told(observed, &to.config);
    needed.then_some(Step::InstallPrograms { from: Some(found), to })
}

/// Whether every program of ours knows what it should.
fn told(observed: &Observed, wanted: &Config) -> bool {
    observed.filters.values().all(|filter| match filter {
        Filter::Ours { program, config } => *config == wanted.seen_by(*program),
        Filter::Foreign(_) => true,
    })
}

/// The outer sources that may tunnel: everybody if none are named, and in a family whose tunnel is not ours to
/// restrict. The program decapsulates both.
fn sources(desired: &Desired, tunnels: &BTreeSet<Family>) -> BTreeSet<Prefix> {
    let of_others = |family| !tunnels.is_empty() && !tunnels.contains(&family);
    let open = |prefix: &Prefix| desired.lb_sources.is_empty() || of_others(Family::of(prefix.address()));
    let everybody = Prefix::EVERYBODY.into_iter().filter(open);
    everybody.chain(desired.lb_sources.iter().copied()).collect()
}

/// Every device that could deliver packets to an open kernel tunnel, which takes them from anywhere.
fn guarded(observed: &Observed) -> Result<impl Iterator<Item = &str>, Refusal> {
    let delivers = |(name, link): &(&String, &Link)| {
        link.up && link.layer != Layer::Loopback && (!link.enslaved || link.routed) && !is_tunnel(name)
    };
    let devices = observed.links.iter().filter(delivers);
    match devices.clone().find(|(_, link)| link.hook == HookQdisc::Ingress) {
        Some((name, _)) => Err(Refusal::Unguardable(name.clone())),
        None => Ok(devices.map(|(name, _)| name.as_str())),
    }
}

fn is_tunnel(device: &str) -> bool {
    Family::ALL.into_iter().any(|family| family.tunnel() == device)
}

/// The largest MSS for each family that has VIPs.
fn clamp_to(desired: &Desired, device: &str, link: &Link) -> Result<BTreeMap<Family, u16>, Refusal> {
    let families = Family::ALL.into_iter().filter(|&family| desired.serves(family));
    let limit = |family| match desired.mss {
        Mss::Off => None,
        Mss::Fixed(octets) => Some(Ok((family, octets))),
        Mss::Auto => {
            let octets = link.mtu.saturating_sub(headers(family, desired)).min(Mss::MAX.into());
            let octets = u16::try_from(octets).ok().filter(|&octets| octets > 0);
            let too_small = || Refusal::MtuTooSmall { device: device.to_owned(), mtu: link.mtu };
            Some(octets.map(|octets| (family, octets)).ok_or_else(too_small))
        }
    };
    families.filter_map(limit).collect()
}

/// The headers before the payload of an encapsulated segment to a VIP of this family, octets. The outer header is of
/// the VIP's family, unless a load balancer may put an IPv4 packet into an IPv6 one.
fn headers(family: Family, desired: &Desired) -> u32 {
    let from_ipv6 = desired.lb_sources.iter().any(|source| source.address().is_ipv6());
    let (outer, inner) = match family {
        Family::Ipv4 if !from_ipv6 => (IPV4_HEADER, IPV4_HEADER),
        Family::Ipv4 => (IPV6_HEADER, IPV4_HEADER),
        Family::Ipv6 => (IPV6_HEADER, IPV6_HEADER),
    };
    outer + inner + TCP_HEADER
}

pub(super) fn program_items(observed: &Observed, wanted: Programs, items: &mut Vec<Item>) -> Result<(), Refusal> {
    for (device, program) in &wanted.slots {
        let slot = Slot { device: device.clone(), hook: program.hook() };
        if let Some(Filter::Foreign(name)) = observed.filters.get(&slot) {
            return Err(Refusal::ForeignFilter { device: slot.device, hook: slot.hook, name: name.clone() });
        }
    }
    let devices: BTreeSet<_> = wanted.slots.iter().map(|(device, _)| device).collect();
    for device in devices {
        let there = observed.links.get(device).is_some_and(|link| link.hook == HookQdisc::Clsact);
        let step = (!there).then(|| Step::AddClsact { device: device.clone() });
        items.push(item(
            format!("qdisc clsact on {device}"),
            "present",
            if there { "present" } else { "absent" },
            step,
        ));
    }
    let found = installed(observed);
    let description = describe(&wanted);
    let in_place = found.slots == wanted.slots && told(observed, &wanted.config);
    let from = (!found.slots.is_empty()).then(|| found.clone());
    // What no program of these reads cannot be read back, and is not missing.
    let found = if in_place { description.clone() } else { describe(&found) };
    let step = (!in_place).then_some(Step::InstallPrograms { from, to: wanted });
    items.push(item("tc programs".to_owned(), description, found, step));
    Ok(())
}

/// What is installed. All slots are installed together, told the same; each shows a part of it.
fn installed(observed: &Observed) -> Programs {
    let mut found = Programs::default();
    for (slot, filter) in &observed.filters {
        if let Filter::Ours { program, config } = filter {
            found.slots.insert((slot.device.clone(), *program));
            found.config.extend(config.clone());
        }
    }
    found
}

/// One line for people.
fn describe(programs: &Programs) -> String {
    if programs.slots.is_empty() {
        return "none".to_owned();
    }
    let slots = programs.slots.iter().map(|(device, program)| match (program, programs.config.mss.get(device)) {
        (Program::Clamp, Some(limits)) => format!("{program} {} on {device}", describe_limits(limits)),
        _ => format!("{program} on {device}"),
    });
    let config = &programs.config;
    format!(
        "{}; VIPs {}; host {}; from {}",
        list(slots),
        list(config.vips.iter()),
        list(config.hosts.iter()),
        list(config.sources.iter())
    )
}

fn describe_limits(limits: &BTreeMap<Family, u16>) -> String {
    let limit = |(family, octets): (&Family, &u16)| match family {
        Family::Ipv4 => octets.to_string(),
        Family::Ipv6 => format!("{octets} (IPv6)"),
    };
    list(limits.iter().map(limit))
}

fn list(values: impl Iterator<Item = impl ToString>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join(" ")
}

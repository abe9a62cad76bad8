//! What the operator should know besides: nothing here stops a plan.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    desired::Desired,
    family::Family,
    journal::Journal,
    observed::{Layer, Link, Observed},
    plan::Step,
};

pub(super) fn warnings(
    noted: &Journal,
    desired: &Desired,
    observed: &Observed,
    devices: &BTreeMap<&str, &Link>,
    tunnels: &BTreeSet<Family>,
) -> Vec<String> {
    let mut warnings = forwarding(desired, observed);
    warnings.extend(open(desired));
    warnings.extend(crossing(desired, tunnels));
    if tunnels.is_empty() && desired.serves(Family::Ipv4) {
        let strict = devices.iter().filter(|(name, link)| is_strict(name, link, observed));
        warnings.extend(strict.map(|(name, _)| reverse_path(name)));
    }
    if !desired.lb_sources.is_empty() {
        warnings.extend(tunnels_of_others(noted, observed, tunnels));
    }
    warnings
}

fn forwarding(desired: &Desired, observed: &Observed) -> Vec<String> {
    let forwards = |&(family, name): &(Family, &str)| {
        desired.serves(family) && observed.sysctls.get(name).is_some_and(|value| value != "0")
    };
    let switches = [(Family::Ipv4, "net.ipv4.ip_forward"), (Family::Ipv6, "net.ipv6.conf.all.forwarding")];
    let text =
        |(_, name)| format!("{name} is on: if a VIP goes missing from lo, its packets are forwarded on, not refused");
    switches.into_iter().filter(forwards).map(text).collect()
}

fn open(desired: &Desired) -> Option<String> {
    let text = "no --lb-source: anybody may tunnel packets to this host, in anybody's name";
    desired.lb_sources.is_empty().then(|| text.to_owned())
}

/// Where only IPv6 sources are named, no kernel tunnel was chosen for an IPv4 VIP.
fn crossing(desired: &Desired, tunnels: &BTreeSet<Family>) -> Option<String> {
    let from_ipv6 = desired.lb_sources.iter().any(|source| source.address().is_ipv6());
    (from_ipv6 && tunnels.contains(&Family::Ipv4)).then(|| {
        "the kernel's tunnels drop IPv4 packets that arrive in IPv6: if a load balancer sends such, use --decap ebpf"
            .to_owned()
    })
}

/// Whether the reverse path filter may drop what the program decapsulates: in strict mode, where a client's packets may
/// come in here and its route lead elsewhere. The larger value of the device and `all` counts.
fn is_strict(device: &str, link: &Link, observed: &Observed) -> bool {
    const STRICT: i32 = 1;
    let all = observed.sysctls.get("net.ipv4.conf.all.rp_filter").and_then(|value| value.parse().ok()).unwrap_or(0);
    let leads_elsewhere = |name: &str| {
        name != device && observed.links.get(name).is_some_and(|link| link.up && link.layer != Layer::Loopback)
    };
    let mut ipv4 = observed.addresses.iter().filter(|found| found.address.is_ipv4());
    link.rp_filter.max(all) == STRICT && ipv4.any(|found| leads_elsewhere(&found.device))
}

fn reverse_path(device: &str) -> String {
    format!(
        "{device} has rp_filter=1 (strict): decapsulated packets of clients whose route does not lead back through it \
         are dropped: `sysctl net/ipv4/conf/{device}/rp_filter=2`"
    )
}

/// Tunnels that somebody else set up, whose packets are dropped like all that come from elsewhere. The program
/// restricts both families; beside the kernel's tunnels, the guard theirs.
fn tunnels_of_others(noted: &Journal, observed: &Observed, tunnels: &BTreeSet<Family>) -> Vec<String> {
    let restricted = |family: Family| tunnels.is_empty() || tunnels.contains(&family);
    let ours = |name: &str| noted.steps.iter().any(|step| matches!(step, Step::LinkUp { device } if device == name));
    let of_others = observed.links.iter().filter(|(name, link)| {
        let restricted = matches!(link.layer, Layer::Tunnel(family) if restricted(family));
        restricted && link.up && !ours(name)
    });
    let text = |(name, _)| format!("the tunnel {name} was up already: from elsewhere than --lb-source it gets nothing");
    of_others.map(text).collect()
}

//! Items of the kernel's settings and of its tunnels.

use std::net::{IpAddr, Ipv4Addr};

use super::{Item, Refusal, Step, address, item, observed_sysctl, step::tunnel_settings, sysctl};
use crate::{
    desired::Desired,
    family::Family,
    observed::{Layer, Link, Observed, Support},
};

/// A loose `rp_filter` drops on a device without an IPv4 address; this one gives `tunl0` one that goes nowhere.
const TUNNEL_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 42));

/// The settings of the host that VIPs of a family need.
pub(super) fn setting_items(
    family: Family,
    desired: &Desired,
    observed: &Observed,
    items: &mut Vec<Item>,
) -> Result<(), Refusal> {
    // IPv6 has no counterpart: Linux answers neighbour solicitations for the addresses of the device they arrive on,
    // and never asks in the name of another (net/ipv6/ndisc.c: ndisc_recv_ns, ndisc_solicit).
    if family == Family::Ipv4 {
        items.push(arp_ignore(desired, observed)?);
        items.push(arp_announce(observed)?);
    }
    // Milliseconds between ICMP errors to one peer: UDP checks want to hear "port closed". Kept in ticks: 10 reads as
    // 12 at 250 Hz.
    items.push(sysctl(observed, family.icmp_ratelimit(), "10", |now| now < 20)?);
    Ok(())
}

/// The setting of `all`. That of a device counts where it is larger, and larger is not always more silent.
fn arp_ignore(desired: &Desired, observed: &Observed) -> Result<Item, Refusal> {
    const TO: i64 = 1;
    let is_vip = |address: IpAddr| desired.vips.iter().any(|&vip| address == IpAddr::from(vip));
    let mut vips = observed.addresses.iter().filter(|found| found.address.is_ipv4() && is_vip(found.address));
    let all_host_scope = vips.all(|vip| vip.host_scope);
    // 1 answers for addresses of the device only, 2 adds a subnet check, 3 answers for all that are not of scope host,
    // 8 never answers; the kernel takes the others for 0 (net/ipv4/arp.c: arp_ignore).
    let is_silent = |value: i64| matches!(value, 1 | 2 | 8) || value == 3 && all_host_scope;
    let item = sysctl(observed, "net.ipv4.conf.all.arp_ignore", &TO.to_string(), is_silent)?;
    let all = item.wanted.parse().unwrap_or(TO);
    let answers =
        |(_, link): &(&String, &Link)| link.layer == Layer::Ethernet && !is_silent(all.max(link.arp_ignore.into()));
    match observed.links.iter().find(answers) {
        Some((device, link)) => Err(Refusal::AnswersArp { device: device.clone(), value: link.arp_ignore }),
        None => Ok(item),
    }
}

/// 2 alone never asks in a VIP's name: the kernel takes what is larger for 0 (`arp_solicit()` of net/ipv4/arp.c).
fn arp_announce(observed: &Observed) -> Result<Item, Refusal> {
    const SILENT: i32 = 2;
    let asks = |(_, link): &(&String, &Link)| link.layer == Layer::Ethernet && link.arp_announce > SILENT;
    match observed.links.iter().find(asks) {
        Some((device, link)) => Err(Refusal::AsksForVips { device: device.clone(), value: link.arp_announce }),
        None => sysctl(observed, "net.ipv4.conf.all.arp_announce", "2", |now| now == i64::from(SILENT)),
    }
}

pub(super) fn tunnel_items(family: Family, observed: &Observed, items: &mut Vec<Item>) -> Result<(), Refusal> {
    let module = family.tunnel_module();
    let loaded = observed.tunnel(family) == Support::Present;
    items.push(item(
        format!("module {module}"),
        "loaded",
        if loaded { "loaded" } else { "not loaded" },
        (!loaded).then(|| Step::LoadModule { name: module.to_owned() }),
    ));
    // Of the reverse path filter only the loose mode lets the clients' packets in; IPv6 has none, but a switch.
    let (setting, to) = match family {
        Family::Ipv4 => ("rp_filter", "2"),
        Family::Ipv6 => ("disable_ipv6", "0"),
    };
    let name = format!("{}{setting}", tunnel_settings(family));
    // A new device starts with the namespace's defaults.
    let now = if loaded { name.clone() } else { format!("{}conf.default.{setting}", family.settings()) };
    let from = observed_sysctl(observed, &now)?;
    let step = (from != to).then(|| Step::SetSysctl { name: name.clone(), from: from.to_owned(), to: to.to_owned() });
    items.push(item(format!("sysctl {name}"), to, from, step));
    let has_another = || {
        let mut addresses = observed.addresses.iter();
        addresses
            .any(|found| found.device == family.tunnel() && found.address.is_ipv4() && found.address != TUNNEL_ADDRESS)
    };
    if family == Family::Ipv4 && !has_another() {
        items.push(address(observed, family.tunnel(), TUNNEL_ADDRESS));
    }
    Ok(())
}

pub(super) fn tunnel_up(family: Family, observed: &Observed) -> Item {
    let device = family.tunnel();
    let up = is_open(family, observed);
    let step = (!up).then(|| Step::LinkUp { device: device.to_owned() });
    item(format!("link {device}"), "up", if up { "up" } else { "down" }, step)
}

/// Whether the kernel's tunnel takes packets.
pub(super) fn is_open(family: Family, observed: &Observed) -> bool {
    observed.links.get(family.tunnel()).is_some_and(|link| link.up)
}

//! Desired and observed in, items and steps out. Pure: the order of the items is the order of the steps.
//!
//! ARP silence comes before the VIP (one ARP reply steals the service), the VIP before the decapsulator (with
//! forwarding on, a decapsulated packet without a VIP would travel on), the guard before the kernel's tunnel opens.

mod files;
mod programs;
mod settings;
mod step;
mod warnings;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

pub use self::step::{Programs, Step};
use self::{
    files::{file_items, is_unwanted_file, rewritten},
    programs::{program_items, programs, told_less},
    settings::{setting_items, tunnel_items, tunnel_up},
    step::address_on,
    warnings::warnings,
};
use crate::{
    desired::{Decap, Desired, Vip},
    family::Family,
    journal::Journal,
    observed::{Filter, Hook, HookQdisc, Layer, Link, Observed, Program, Support},
};

/// Without this no IPv6 address can be added to `lo`.
const LO_DISABLE_IPV6: &str = "net.ipv6.conf.lo.disable_ipv6";

/// One thing that is as wanted, or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub what: String,
    /// As it should be.
    pub wanted: String,
    /// As it is.
    pub found: String,
    /// What would make it so; `None`: nothing to do.
    pub step: Option<Step>,
}

/// The items in order, and what the operator should know besides.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Every item that was looked at.
    pub items: Vec<Item>,
    /// Earlier steps that are no longer needed, in the order in which to undo them.
    pub obsolete: Vec<Step>,
    /// Nothing of ours to change, but worth knowing.
    pub warnings: Vec<String>,
}

impl Plan {
    /// What is to be done, in order.
    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.items.iter().filter_map(|item| item.step.as_ref())
    }

    /// Nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps().next().is_none() && self.obsolete.is_empty()
    }
}

/// Why nothing will be changed. Each names the object and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("no VIP: name one with --vip")]
    NoVip,
    #[error("there is no device {0:?} here: see `ip link`")]
    UnknownInterface(String),
    #[error("{0} does not carry Ethernet frames: name the device that the tunnel packets arrive on")]
    NotEthernet(String),
    #[error("no Ethernet device is up and has an address: name the device with --interface")]
    NoInterface,
    #[error(
        "{vip} is an address of {device} ({vip}/{length}), where the host answers ARP or NDP for it: a VIP is on lo \
         only; choose another VIP or remove the address from {device}"
    )]
    VipOnDevice { vip: Vip, device: String, length: u8 },
    #[error("{vip} is on lo as {vip}/{length}: a VIP is a /{bits}, or its whole subnet would be local; change it first",
        bits = vip.family().bits())]
    VipNotHostRoute { vip: Vip, length: u8 },
    #[error(
        "{device} may answer neighbour solicitations for {vip} (proxy NDP): `ip -6 neigh del proxy {vip} dev {device}`"
    )]
    VipProxied { vip: Vip, device: String },
    #[error(
        "{device} has arp_ignore={value}, with which it answers ARP for VIPs on lo: \
         `sysctl net/ipv4/conf/{device}/arp_ignore=0` (the larger of a device's value and all's counts)"
    )]
    AnswersArp { device: String, value: i32 },
    #[error(
        "{device} has arp_announce={value}, with which it asks in the name of VIPs: \
         `sysctl net/ipv4/conf/{device}/arp_announce=2` (the larger of a device's value and all's counts, and above 2 \
         it counts as 0)"
    )]
    AsksForVips { device: String, value: i32 },
    #[error("IPv6 is disabled on lo ({LO_DISABLE_IPV6}), where {0} must be: enable it first")]
    Ipv6Disabled(Vip),
    #[error(
        "a load balancer with IPv6 sources only (--lb-source) puts IPv4 into IPv6, which the kernel's tunnels do not \
         take: use --decap ebpf (or auto), or name its IPv4 sources"
    )]
    NoTunnelAcross,
    #[error("this kernel has no {0} module: use --decap ebpf (or auto)")]
    NoTunnel(&'static str),
    #[error(
        "{0} has an ingress qdisc, which takes the place of clsact: move its filters to clsact and delete it, \
         or name other devices with --interface"
    )]
    IngressQdisc(String),
    #[error("{device} already has the filter {name:?} at our priority and handle ({hook:?}): move it elsewhere")]
    ForeignFilter { device: String, hook: Hook, name: String },
    #[error(
        "{0} has an ingress qdisc, so nothing can keep tunnel packets from elsewhere out there (--lb-source): \
         move its filters to clsact and delete it"
    )]
    Unguardable(String),
    #[error("the setting {0} does not exist or cannot be read here")]
    NoSysctl(String),
    #[error("the MTU of {device} is {mtu}: too small to carry an encapsulated TCP segment")]
    MtuTooSmall { device: String, mtu: u32 },
}

/// Compares, refuses what cannot be, and says what to do.
///
/// # Errors
/// [`Refusal`]: nothing should be changed.
pub fn plan(desired: &Desired, observed: &Observed) -> Result<Plan, Refusal> {
    plan_onto(&Journal::default(), desired, observed)
}

fn compare(noted: &Journal, desired: &Desired, observed: &Observed) -> Result<Plan, Refusal> {
    refuse_vips(desired, observed)?;
    let devices = devices(desired, observed)?;
    let tunnels = kernel_tunnels(desired, observed)?;
    let mut items = Vec::new();
    for family in Family::ALL.into_iter().filter(|&family| desired.serves(family)) {
        setting_items(family, desired, observed, &mut items)?;
    }
    for &family in &tunnels {
        tunnel_items(family, observed, &mut items)?;
    }
    items.extend(desired.vips.iter().map(|vip| address(observed, "lo", (*vip).into())));
    let wanted = programs(desired, observed, &devices, &tunnels)?;
    program_items(observed, wanted, &mut items)?;
    items.extend(tunnels.iter().map(|&family| tunnel_up(family, observed)));
    file_items(desired, observed, &tunnels, &mut items);
    let warnings = warnings(noted, desired, observed, &devices, &tunnels);
    Ok(Plan { items, obsolete: Vec::new(), warnings })
}

/// Compares with what earlier steps made of the host, too: those that `desired` no longer needs are to be undone.
///
/// # Errors
/// As [`plan`].
pub fn plan_onto(noted: &Journal, desired: &Desired, observed: &Observed) -> Result<Plan, Refusal> {
    let obsolete = needless(noted, desired, &kernel_tunnels(desired, observed)?);
    // Planned for the host as it is without them.
    let mut without = observed.clone();
    for step in &obsolete {
        if let Step::LinkUp { device } = step
            && let Some(link) = without.links.get_mut(device)
        {
            link.up = false;
        }
    }
    Ok(Plan { obsolete, ..compare(noted, desired, &without)? })
}

/// Noted steps that `desired` no longer needs, in the order in which to undo them.
fn needless(noted: &Journal, desired: &Desired, tunnels: &BTreeSet<Family>) -> Vec<Step> {
    let needless = |step: &Step| {
        step.serves_tunnel().is_some_and(|family| !tunnels.contains(&family))
            || step.serves().is_some_and(|family| !desired.serves(family))
            || is_unwanted_file(step, desired, tunnels)
    };
    noted.backwards().into_iter().filter(needless).collect()
}

/// What taking VIPs away, down to `remaining`, changes besides the addresses. Refuses nothing and looks at no device:
/// neither a host that drifted, nor a device that came since, may stand in the way of it.
#[must_use]
pub fn plan_removal(noted: &Journal, remaining: &Desired, observed: &Observed) -> Removal {
    let program = observed.filters.values().any(decapsulates);
    let served = Family::ALL.into_iter().filter(|&family| remaining.serves(family));
    let tunnels = if program { BTreeSet::new() } else { served.collect() };
    let (closed, settings) = needless(noted, remaining, &tunnels).into_iter().partition(Step::is_link);
    let programs = told_less(remaining, observed, &tunnels);
    Removal { tunnels: closed, programs, files: rewritten(remaining, observed, &tunnels), settings }
}

/// In the order in which to carry it out; the addresses go between the programs and the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// To undo: tunnels of families that have no VIP any more, while their guard is still there.
    pub tunnels: Vec<Step>,
    /// Makes the programs forget, where they are; `None`: there are none, or nothing to forget.
    pub programs: Option<Step>,
    /// What is to be read at boot from now on.
    pub files: Vec<Step>,
    /// To undo: what else only those families needed.
    pub settings: Vec<Step>,
}

fn refuse_vips(desired: &Desired, observed: &Observed) -> Result<(), Refusal> {
    if desired.vips.is_empty() {
        return Err(Refusal::NoVip);
    }
    for &vip in &desired.vips {
        for found in observed.addresses.iter().filter(|found| found.address == IpAddr::from(vip)) {
            let on_lo = observed.links.get(&found.device).is_some_and(|link| link.layer == Layer::Loopback);
            match (on_lo, found.length) {
                (true, length) if length == vip.family().bits() => {}
                (true, length) => return Err(Refusal::VipNotHostRoute { vip, length }),
                (false, length) => return Err(Refusal::VipOnDevice { vip, device: found.device.clone(), length }),
            }
        }
        if let Some((_, device)) = observed.proxied.iter().find(|(address, _)| *address == IpAddr::from(vip)) {
            return Err(Refusal::VipProxied { vip, device: device.clone() });
        }
        if vip.family() == Family::Ipv6 && observed_sysctl(observed, LO_DISABLE_IPV6)? != "0" {
            return Err(Refusal::Ipv6Disabled(vip));
        }
    }
    Ok(())
}

/// The devices that tunnel packets arrive on.
pub(crate) fn devices<'a>(
    desired: &'a Desired,
    observed: &'a Observed,
) -> Result<BTreeMap<&'a str, &'a Link>, Refusal> {
    let devices: BTreeMap<_, _> = if desired.interfaces.is_empty() {
        let has_address =
            |name: &str| observed.addresses.iter().any(|address| address.device == name && address.is_lasting());
        let all = observed.links.iter().map(|(name, link)| (name.as_str(), link));
        all.filter(|(name, link)| link.up && link.layer == Layer::Ethernet && !link.enslaved && has_address(name))
            .collect()
    } else {
        let named = desired.interfaces.iter();
        named
            .map(|name| match observed.links.get(name) {
                Some(link) if link.layer == Layer::Ethernet => Ok((name.as_str(), link)),
                Some(_) => Err(Refusal::NotEthernet(name.clone())),
                None => Err(Refusal::UnknownInterface(name.clone())),
            })
            .collect::<Result<_, _>>()?
    };
    match devices.iter().find(|(_, link)| link.hook == HookQdisc::Ingress) {
        _ if devices.is_empty() => Err(Refusal::NoInterface),
        Some((name, _)) => Err(Refusal::IngressQdisc((*name).to_owned())),
        None => Ok(devices),
    }
}

/// The kernel's tunnels that decapsulate, one for each family of VIPs, or none: then the program does. `auto` keeps the
/// program where it already decapsulates: a tunnel that appears later does not change the host. No tunnel takes IPv4 in
/// IPv6, and where load balancers have IPv6 sources only, all IPv4 comes like that.
pub(crate) fn kernel_tunnels(desired: &Desired, observed: &Observed) -> Result<BTreeSet<Family>, Refusal> {
    let needed: BTreeSet<_> = desired.vips.iter().map(|vip| vip.family()).collect();
    let missing = needed.iter().find(|&&family| observed.tunnel(family) == Support::Absent);
    let sources = &desired.lb_sources;
    let from_ipv6_only = !sources.is_empty() && sources.iter().all(|source| source.address().is_ipv6());
    let across = from_ipv6_only && desired.serves(Family::Ipv4);
    match (desired.decap, missing) {
        (Decap::Auto, None) if across => Ok(BTreeSet::new()),
        (Decap::Ipip, _) if across => Err(Refusal::NoTunnelAcross),
        (Decap::Ebpf, _) | (Decap::Auto, Some(_)) => Ok(BTreeSet::new()),
        (Decap::Ipip, Some(family)) => Err(Refusal::NoTunnel(family.tunnel_module())),
        (Decap::Auto, None) if observed.filters.values().any(decapsulates) => Ok(BTreeSet::new()),
        (Decap::Ipip | Decap::Auto, None) => Ok(needed),
    }
}

fn decapsulates(filter: &Filter) -> bool {
    matches!(filter, Filter::Ours { program: Program::Decap, .. })
}

/// Whether a setting decides for which addresses the host answers ARP, or asks in their name.
#[must_use]
pub fn is_arp(sysctl: &str) -> bool {
    sysctl.ends_with(".arp_ignore") || sysctl.ends_with(".arp_announce")
}

fn sysctl(observed: &Observed, name: &str, to: &str, accept: impl Fn(i64) -> bool) -> Result<Item, Refusal> {
    let from = observed_sysctl(observed, name)?;
    let accepted = from.parse().is_ok_and(accept);
    let step = (!accepted).then(|| Step::SetSysctl { name: name.to_owned(), from: from.to_owned(), to: to.to_owned() });
    Ok(item(format!("sysctl {name}"), if accepted { from } else { to }, from, step))
}

fn observed_sysctl<'a>(observed: &'a Observed, name: &str) -> Result<&'a str, Refusal> {
    observed.sysctls.get(name).map(String::as_str).ok_or_else(|| Refusal::NoSysctl(name.to_owned()))
}

fn address(observed: &Observed, device: &str, address: IpAddr) -> Item {
    let there = observed.addresses.iter().any(|found| found.device == device && found.address == address);
    let step = (!there).then(|| Step::AddAddress { device: device.to_owned(), address });
    item(address_on(device, address), "present", if there { "present" } else { "absent" }, step)
}

fn item(what: String, wanted: impl Into<String>, found: impl Into<String>, step: Option<Step>) -> Item {
    Item { what, wanted: wanted.into(), found: found.into(), step }
}

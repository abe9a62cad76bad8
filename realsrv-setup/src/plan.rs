//! Desired and observed in, items and steps out. Pure: the order of the items is the order of the steps.
//!
//! ARP silence comes before the VIP (one ARP reply steals the service), the VIP before the decapsulator (with forwarding
//! on, a decapsulated packet without a VIP would travel on), the guard before the kernel's tunnel opens.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use serde::{Deserialize, Serialize};

use crate::{
    desired::{Decap, Desired, Mss, Prefix, Vip},
    family::Family,
    journal::Journal,
    observed::{Config, Filter, Hook, HookQdisc, Layer, Link, Observed, Program, Slot, Support},
};

/// A loose `rp_filter` drops on a device without an IPv4 address; this one gives `tunl0` one that goes nowhere.
pub const TUNNEL_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 42));
/// Without this no IPv6 address can be added to `lo`.
const LO_DISABLE_IPV6: &str = "net.ipv6.conf.lo.disable_ipv6";
/// Octets.
const IPV4_HEADER: u32 = 20;
const IPV6_HEADER: u32 = 40;
const TCP_HEADER: u32 = 20;

/// One change to the host. Carries what was there before, so that it can be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// Write a setting.
    SetSysctl {
        /// `net.ipv4.…`, `net.ipv6.…`
        name: String,
        /// Before.
        from: String,
        /// After.
        to: String,
    },
    /// Load a kernel module.
    LoadModule {
        /// Its name.
        name: String,
    },
    /// Add an address that is never chosen as a source: a /32 of scope host, or a /128 that is deprecated.
    AddAddress {
        /// The device.
        device: String,
        /// The address.
        address: IpAddr,
    },
    /// Set a device up.
    LinkUp {
        /// The device.
        device: String,
    },
    /// Add a `clsact` qdisc.
    AddClsact {
        /// The device.
        device: String,
    },
    /// Load the programs afresh, told `to`, and put them where they belong, in place of `from`.
    InstallPrograms {
        /// Before; `None` if there were none.
        from: Option<Programs>,
        /// After; without any slot: none.
        to: Programs,
    },
}

impl Step {
    /// What it changes, for people: as the items of a plan name it.
    #[must_use]
    pub fn object(&self) -> String {
        match self {
            Self::SetSysctl { name, .. } => format!("sysctl {name}"),
            Self::LoadModule { name } => format!("module {name}"),
            Self::AddAddress { device, address } => address_on(device, *address),
            Self::LinkUp { device } => format!("link {device}"),
            Self::AddClsact { device } => format!("qdisc clsact on {device}"),
            Self::InstallPrograms { .. } => "tc programs".to_owned(),
        }
    }

    /// The family whose kernel tunnel alone needs it.
    #[must_use]
    pub fn serves_tunnel(&self) -> Option<Family> {
        Family::ALL.into_iter().find(|family| match self {
            Self::SetSysctl { name, .. } => name.starts_with(&tunnel_settings(*family)),
            Self::LoadModule { name } => name == family.tunnel_module(),
            Self::AddAddress { device, .. } | Self::LinkUp { device } | Self::AddClsact { device } => {
                device == family.tunnel()
            }
            Self::InstallPrograms { .. } => false,
        })
    }

    /// The family whose VIPs alone need it.
    fn serves(&self) -> Option<Family> {
        match self {
            Self::SetSysctl { name, .. } => Family::ALL.into_iter().find(|family| name.starts_with(family.settings())),
            _ => self.serves_tunnel(),
        }
    }
}

/// What the names of a tunnel's own settings begin with.
fn tunnel_settings(family: Family) -> String {
    format!("{}conf.{}.", family.settings(), family.tunnel())
}

fn address_on(device: &str, address: IpAddr) -> String {
    format!("address {address}/{} on {device}", Family::of(address).bits())
}

/// The programs, and where they are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Programs {
    /// Program by device, each at its hook.
    pub slots: BTreeSet<(String, Program)>,
    /// What they are told.
    pub config: Config,
}

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
        "{vip} is an address of {device} ({vip}/{length}), where the host answers ARP or NDP for it: a VIP is on lo only; \
         choose another VIP or remove the address from {device}"
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
        "{device} has arp_ignore={value}, with which it answers ARP for VIPs on lo: `sysctl net/ipv4/conf/{device}/arp_ignore=0` \
         (the larger of a device's value and all's counts)"
    )]
    AnswersArp { device: String, value: i32 },
    #[error("IPv6 is disabled on lo ({LO_DISABLE_IPV6}), where {0} must be: enable it first")]
    Ipv6Disabled(Vip),
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
    Ok(Plan { items, obsolete: Vec::new(), warnings: warnings(desired, observed) })
}

/// Compares with what earlier steps made of the host, too: those that `desired` no longer needs are to be undone.
///
/// # Errors
/// As [`plan`].
pub fn plan_onto(noted: &Journal, desired: &Desired, observed: &Observed) -> Result<Plan, Refusal> {
    let obsolete = obsolete(noted, desired, observed)?;
    // Planned for the host as it is without them.
    let mut without = observed.clone();
    for step in &obsolete {
        if let Step::LinkUp { device } = step
            && let Some(link) = without.links.get_mut(device)
        {
            link.up = false;
        }
    }
    Ok(Plan { obsolete, ..plan(desired, &without)? })
}

/// Noted steps that `desired` no longer needs, in the order in which to undo them.
///
/// # Errors
/// As [`plan`].
pub fn obsolete(noted: &Journal, desired: &Desired, observed: &Observed) -> Result<Vec<Step>, Refusal> {
    let tunnels = kernel_tunnels(desired, observed)?;
    let needless = |step: &Step| {
        step.serves_tunnel().is_some_and(|family| !tunnels.contains(&family))
            || step.serves().is_some_and(|family| !desired.serves(family))
    };
    Ok(noted.backwards().into_iter().filter(needless).collect())
}

/// The step that tells installed programs about `desired`; `None` if they know, or there are none.
///
/// # Errors
/// As [`plan`].
pub fn plan_programs(desired: &Desired, observed: &Observed) -> Result<Option<Step>, Refusal> {
    if observed.filters.is_empty() {
        return Ok(None);
    }
    let steps = plan(desired, observed)?.items.into_iter().filter_map(|item| item.step);
    Ok({ steps }.find(|step| matches!(step, Step::InstallPrograms { .. })))
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
fn devices<'a>(desired: &'a Desired, observed: &'a Observed) -> Result<BTreeMap<&'a str, &'a Link>, Refusal> {
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
/// program where it already decapsulates: a tunnel that appears later does not change the host.
fn kernel_tunnels(desired: &Desired, observed: &Observed) -> Result<BTreeSet<Family>, Refusal> {
    let needed: BTreeSet<_> = desired.vips.iter().map(|vip| vip.family()).collect();
    let missing = needed.iter().find(|&&family| observed.tunnel(family) == Support::Absent);
    let decapsulates = |filter: &Filter| matches!(filter, Filter::Ours { program: Program::Decap, .. });
    match (desired.decap, missing) {
        (Decap::Ebpf, _) | (Decap::Auto, Some(_)) => Ok(BTreeSet::new()),
        (Decap::Ipip, Some(family)) => Err(Refusal::NoTunnel(family.tunnel_module())),
        (Decap::Auto, None) if observed.filters.values().any(decapsulates) => Ok(BTreeSet::new()),
        (Decap::Ipip | Decap::Auto, None) => Ok(needed),
    }
}

/// The settings of the host that VIPs of a family need.
fn setting_items(family: Family, desired: &Desired, observed: &Observed, items: &mut Vec<Item>) -> Result<(), Refusal> {
    // IPv6 has no counterpart: Linux answers neighbour solicitations for the addresses of the device they arrive on, and
    // never asks in the name of another (net/ipv6/ndisc.c: ndisc_recv_ns, ndisc_solicit).
    if family == Family::Ipv4 {
        items.push(arp_ignore(desired, observed)?);
        items.push(sysctl(observed, "net.ipv4.conf.all.arp_announce", "2", |now| now >= 2)?);
    }
    // Milliseconds between ICMP errors to one peer: UDP checks want to hear "port closed". Kept in ticks: 10 reads as 12 at
    // 250 Hz.
    items.push(sysctl(observed, family.icmp_ratelimit(), "10", |now| now < 20)?);
    Ok(())
}

/// The setting of `all`. That of a device counts where it is larger, and larger is not always more silent.
fn arp_ignore(desired: &Desired, observed: &Observed) -> Result<Item, Refusal> {
    const TO: i64 = 1;
    let is_vip = |address: IpAddr| desired.vips.iter().any(|&vip| address == IpAddr::from(vip));
    let mut vips = observed.addresses.iter().filter(|found| found.address.is_ipv4() && is_vip(found.address));
    let all_host_scope = vips.all(|vip| vip.host_scope);
    // 1 answers for addresses of the device only, 2 adds a subnet check, 3 answers for all that are not of scope host, 8 never
    // answers; the kernel takes the others for 0 (net/ipv4/arp.c: arp_ignore).
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

fn tunnel_items(family: Family, observed: &Observed, items: &mut Vec<Item>) -> Result<(), Refusal> {
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

fn tunnel_up(family: Family, observed: &Observed) -> Item {
    let device = family.tunnel();
    let up = is_open(family, observed);
    let step = (!up).then(|| Step::LinkUp { device: device.to_owned() });
    item(format!("link {device}"), "up", if up { "up" } else { "down" }, step)
}

/// Whether the kernel's tunnel takes packets.
fn is_open(family: Family, observed: &Observed) -> bool {
    observed.links.get(family.tunnel()).is_some_and(|link| link.up)
}

/// The programs that `desired` needs on `devices`.
fn programs(
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
    wanted.config.vips = desired.vips.iter().map(|&vip| vip.into()).collect();
    let own = observed.addresses.iter().filter(|found| found.is_lasting()).map(|found| found.address);
    wanted.config.hosts = &own.collect() - &wanted.config.vips;
    wanted.config.sources = sources(desired, tunnels);
    Ok(wanted)
}

/// The outer sources that may tunnel: everybody if none are named, and in a family whose tunnel is not ours to restrict. The
/// program decapsulates both.
fn sources(desired: &Desired, tunnels: &BTreeSet<Family>) -> BTreeSet<Prefix> {
    let of_others = |family| !tunnels.is_empty() && !tunnels.contains(&family);
    let open = |prefix: &Prefix| desired.lb_sources.is_empty() || of_others(Family::of(prefix.address()));
    let everybody = Prefix::EVERYBODY.into_iter().filter(open);
    everybody.chain(desired.lb_sources.iter().copied()).collect()
}

/// Every device that could deliver packets to an open kernel tunnel, which takes them from anywhere.
fn guarded(observed: &Observed) -> Result<impl Iterator<Item = &str>, Refusal> {
    let delivers = |(name, link): &(&String, &Link)| {
        link.up && link.layer != Layer::Loopback && !link.enslaved && !is_tunnel(name)
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

/// The headers before the payload of an encapsulated segment to a VIP of this family, octets. The outer header is of the
/// VIP's family, unless a load balancer may put an IPv4 packet into an IPv6 one.
fn headers(family: Family, desired: &Desired) -> u32 {
    let from_ipv6 = desired.lb_sources.iter().any(|source| source.address().is_ipv6());
    let (outer, inner) = match family {
        Family::Ipv4 if !from_ipv6 => (IPV4_HEADER, IPV4_HEADER),
        Family::Ipv4 => (IPV6_HEADER, IPV4_HEADER),
        Family::Ipv6 => (IPV6_HEADER, IPV6_HEADER),
    };
    outer + inner + TCP_HEADER
}

fn program_items(observed: &Observed, wanted: Programs, items: &mut Vec<Item>) -> Result<(), Refusal> {
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
    let told = observed.filters.values().all(|filter| match filter {
        Filter::Ours { program, config } => *config == wanted.config.seen_by(*program),
        Filter::Foreign(_) => true,
    });
    let description = describe(&wanted);
    let in_place = found.slots == wanted.slots && told;
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

fn warnings(desired: &Desired, observed: &Observed) -> Vec<String> {
    let forwards = |&(family, name): &(Family, &str)| {
        desired.serves(family) && observed.sysctls.get(name).is_some_and(|value| value != "0")
    };
    let switches = [(Family::Ipv4, "net.ipv4.ip_forward"), (Family::Ipv6, "net.ipv6.conf.all.forwarding")];
    let text =
        |(_, name)| format!("{name} is on: if a VIP goes missing from lo, its packets are forwarded on, not refused");
    switches.into_iter().filter(forwards).map(text).collect()
}

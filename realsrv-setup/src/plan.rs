//! Desired and observed in, items and steps out. Pure: the order of the items is the order of the steps.
//!
//! ARP silence comes before the VIP (one ARP reply steals the service), the VIP before the decapsulator (with forwarding
//! on, a decapsulated packet without a VIP would travel on), the guard before the kernel's tunnel opens.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
};

use serde::{Deserialize, Serialize};

use crate::{
    desired::{Decap, Desired, Mss, Prefix, Vip},
    journal::Journal,
    observed::{Config, Filter, Hook, HookQdisc, Ipip, Layer, Link, Observed, Program, Slot},
};

/// The kernel's fallback tunnel device: it takes IPIP from anybody to any local address.
pub const TUNNEL: &str = "tunl0";
/// The module that makes it.
pub const TUNNEL_MODULE: &str = "ipip";
/// A loose `rp_filter` drops on a device without an IPv4 address; this one gives the tunnel one that goes nowhere.
pub const TUNNEL_ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 42);
/// The one setting here that may read back as another value than was written: the kernel keeps it in ticks.
pub const ICMP_RATELIMIT: &str = "net.ipv4.icmp_ratelimit";
/// Outer IPv4, inner IPv4 and TCP header, octets.
const HEADERS: u32 = 60;

/// One change to the host. Carries what was there before, so that it can be undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Step {
    /// Write a setting.
    SetSysctl {
        /// `net.ipv4.…`
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
    /// Add an address, /32 and scope host: never chosen as a source.
    AddAddress {
        /// The device.
        device: String,
        /// The address.
        address: Ipv4Addr,
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
            Self::AddAddress { device, address } => format!("address {address}/32 on {device}"),
            Self::LinkUp { device } => format!("link {device}"),
            Self::AddClsact { device } => format!("qdisc clsact on {device}"),
            Self::InstallPrograms { .. } => "tc programs".to_owned(),
        }
    }

    /// Whether only the kernel's tunnel needs it.
    #[must_use]
    pub fn serves_tunnel(&self) -> bool {
        match self {
            Self::SetSysctl { name, .. } => name.starts_with(&format!("net.ipv4.conf.{TUNNEL}.")),
            Self::LoadModule { name } => name == TUNNEL_MODULE,
            Self::AddAddress { device, .. } | Self::LinkUp { device } | Self::AddClsact { device } => device == TUNNEL,
            Self::InstallPrograms { .. } => false,
        }
    }
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
    #[error("no Ethernet device is up and has an IPv4 address: name the device with --interface")]
    NoInterface,
    #[error(
        "{vip} is an address of {device} ({vip}/{length}), where the host answers ARP for it: a VIP is on lo only; \
         choose another VIP or remove the address from {device}"
    )]
    VipOnDevice { vip: Vip, device: String, length: u8 },
    #[error("{vip} is on lo as {vip}/{length}: a VIP is a /32, or its whole subnet would be local; change it first")]
    VipNotHostRoute { vip: Vip, length: u8 },
    #[error("this kernel has no ipip module: use --decap ebpf (or auto)")]
    NoIpip,
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
    let kernel_tunnel = uses_kernel_tunnel(desired, observed)?;
    let mut items = vec![
        // Larger is accepted where it is as silent: 2 adds a subnet check, 3 excepts scope host, 8 never answers.
        sysctl(observed, "net.ipv4.conf.all.arp_ignore", "1", |now| matches!(now, 1 | 2 | 3 | 8))?,
        sysctl(observed, "net.ipv4.conf.all.arp_announce", "2", |now| now >= 2)?,
        // Milliseconds between ICMP errors to one peer: UDP checks want to hear "port closed". Kept in ticks: 10 reads as
        // 12 at 250 Hz.
        sysctl(observed, ICMP_RATELIMIT, "10", |now| now < 20)?,
    ];
    if kernel_tunnel {
        tunnel_items(observed, &mut items)?;
    }
    items.extend(desired.vips.iter().map(|vip| address(observed, "lo", (*vip).into())));
    let wanted = programs(desired, observed, &devices, kernel_tunnel)?;
    program_items(observed, wanted, &mut items)?;
    if kernel_tunnel {
        items.push(tunnel_up(observed));
    }
    Ok(Plan { items, obsolete: Vec::new(), warnings: warnings(observed) })
}

/// Compares with what earlier steps made of the host, too: those that `desired` no longer needs are to be undone.
///
/// # Errors
/// As [`plan`].
pub fn plan_onto(noted: &Journal, desired: &Desired, observed: &Observed) -> Result<Plan, Refusal> {
    let kernel_tunnel = uses_kernel_tunnel(desired, observed)?;
    let needless = |step: &Step| !kernel_tunnel && step.serves_tunnel();
    let obsolete: Vec<_> = noted.backwards().into_iter().filter(needless).collect();
    // Planned for the host as it is without them.
    let mut without = observed.clone();
    if let Some(tunnel) = without.links.get_mut(TUNNEL) {
        tunnel.up &= !obsolete.iter().any(|step| matches!(step, Step::LinkUp { .. }));
    }
    Ok(Plan { obsolete, ..plan(desired, &without)? })
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
        for found in observed.addresses.iter().filter(|found| found.address == Ipv4Addr::from(vip)) {
            let on_lo = observed.links.get(&found.device).is_some_and(|link| link.layer == Layer::Loopback);
            match (on_lo, found.length) {
                (true, 32) => {}
                (true, length) => return Err(Refusal::VipNotHostRoute { vip, length }),
                (false, length) => return Err(Refusal::VipOnDevice { vip, device: found.device.clone(), length }),
            }
        }
    }
    Ok(())
}

/// The devices that tunnel packets arrive on.
fn devices<'a>(desired: &'a Desired, observed: &'a Observed) -> Result<BTreeMap<&'a str, &'a Link>, Refusal> {
    let devices: BTreeMap<_, _> = if desired.interfaces.is_empty() {
        let has_address = |name: &str| observed.addresses.iter().any(|address| address.device == name);
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

/// `auto` keeps the program where it already decapsulates: a tunnel that appears later does not change the host.
fn uses_kernel_tunnel(desired: &Desired, observed: &Observed) -> Result<bool, Refusal> {
    let available = observed.ipip != Ipip::Absent;
    let decapsulates = |filter: &Filter| matches!(filter, Filter::Ours { program: Program::Decap, .. });
    match desired.decap {
        Decap::Ebpf => Ok(false),
        Decap::Ipip if !available => Err(Refusal::NoIpip),
        Decap::Ipip => Ok(true),
        Decap::Auto => Ok(available && !observed.filters.values().any(decapsulates)),
    }
}

fn tunnel_items(observed: &Observed, items: &mut Vec<Item>) -> Result<(), Refusal> {
    let loaded = observed.ipip == Ipip::Present;
    items.push(item(
        format!("module {TUNNEL_MODULE}"),
        "loaded",
        if loaded { "loaded" } else { "not loaded" },
        (!loaded).then(|| Step::LoadModule { name: TUNNEL_MODULE.to_owned() }),
    ));
    // A new device starts with the namespace's defaults.
    let from = if loaded { TUNNEL } else { "default" };
    let from = observed_sysctl(observed, &format!("net.ipv4.conf.{from}.rp_filter"))?;
    let name = format!("net.ipv4.conf.{TUNNEL}.rp_filter");
    let step = (from != "2").then(|| Step::SetSysctl { name: name.clone(), from: from.to_owned(), to: "2".to_owned() });
    items.push(item(format!("sysctl {name}"), "2", from, step));
    if !observed.addresses.iter().any(|found| found.device == TUNNEL && found.address != TUNNEL_ADDRESS) {
        items.push(address(observed, TUNNEL, TUNNEL_ADDRESS));
    }
    Ok(())
}

fn tunnel_up(observed: &Observed) -> Item {
    let up = observed.links.get(TUNNEL).is_some_and(|link| link.up);
    let step = (!up).then(|| Step::LinkUp { device: TUNNEL.to_owned() });
    item(format!("link {TUNNEL}"), "up", if up { "up" } else { "down" }, step)
}

/// The programs that `desired` needs on `devices`.
fn programs(
    desired: &Desired,
    observed: &Observed,
    devices: &BTreeMap<&str, &Link>,
    kernel_tunnel: bool,
) -> Result<Programs, Refusal> {
    let ingress = match (kernel_tunnel, desired.lb_sources.is_empty()) {
        (false, _) => Some(Program::Decap),
        (true, false) => Some(Program::Guard),
        (true, true) => None,
    };
    let mut wanted = Programs::default();
    let tunnel_open = kernel_tunnel || observed.links.get(TUNNEL).is_some_and(|link| link.up);
    if tunnel_open && !desired.lb_sources.is_empty() {
        let others = guarded(observed)?.filter(|name| !devices.contains_key(name));
        wanted.slots.extend(others.map(|name| (name.to_owned(), Program::Guard)));
    }
    for (&name, link) in devices {
        wanted.slots.extend(ingress.map(|program| (name.to_owned(), program)));
        if let Some(mss) = clamp_to(desired.mss, name, link)? {
            wanted.slots.insert((name.to_owned(), Program::Clamp));
            wanted.config.mss.insert(name.to_owned(), mss);
        }
    }
    wanted.config.vips = desired.vips.iter().map(|&vip| vip.into()).collect();
    let own = observed.addresses.iter().map(|found| found.address).filter(|address| !address.is_loopback());
    wanted.config.hosts = &own.collect() - &wanted.config.vips;
    wanted.config.sources.clone_from(&desired.lb_sources);
    if wanted.config.sources.is_empty() {
        wanted.config.sources.insert(Prefix::ALL);
    }
    Ok(wanted)
}

/// Every device that could deliver packets to an open kernel tunnel, which takes them from anywhere.
fn guarded(observed: &Observed) -> Result<impl Iterator<Item = &str>, Refusal> {
    let delivers =
        |(name, link): &(&String, &Link)| link.up && link.layer != Layer::Loopback && !link.enslaved && *name != TUNNEL;
    let devices = observed.links.iter().filter(delivers);
    match devices.clone().find(|(_, link)| link.hook == HookQdisc::Ingress) {
        Some((name, _)) => Err(Refusal::Unguardable(name.clone())),
        None => Ok(devices.map(|(name, _)| name.as_str())),
    }
}

fn clamp_to(mss: Mss, device: &str, link: &Link) -> Result<Option<u16>, Refusal> {
    match mss {
        Mss::Off => Ok(None),
        Mss::Fixed(octets) => Ok(Some(octets)),
        Mss::Auto => {
            let octets = link.mtu.saturating_sub(HEADERS).min(Mss::MAX.into());
            let octets = u16::try_from(octets).ok().filter(|&octets| octets > 0);
            octets.map(Some).ok_or_else(|| Refusal::MtuTooSmall { device: device.to_owned(), mtu: link.mtu })
        }
    }
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
    let step = (!in_place).then_some(Step::InstallPrograms { from, to: wanted });
    items.push(item("tc programs".to_owned(), description, describe(&found), step));
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
        (Program::Clamp, Some(mss)) => format!("{program} {mss} on {device}"),
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

fn list(values: impl Iterator<Item = impl ToString>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join(" ")
}

/// Whether a setting decides for which addresses the host answers ARP, or asks in their name.
#[must_use]
pub fn is_arp(sysctl: &str) -> bool {
    sysctl.ends_with(".arp_ignore") || sysctl.ends_with(".arp_announce")
}

fn sysctl(observed: &Observed, name: &str, to: &str, accept: fn(i64) -> bool) -> Result<Item, Refusal> {
    let from = observed_sysctl(observed, name)?;
    let accepted = from.parse().is_ok_and(accept);
    let step = (!accepted).then(|| Step::SetSysctl { name: name.to_owned(), from: from.to_owned(), to: to.to_owned() });
    Ok(item(format!("sysctl {name}"), if accepted { from } else { to }, from, step))
}

fn observed_sysctl<'a>(observed: &'a Observed, name: &str) -> Result<&'a str, Refusal> {
    observed.sysctls.get(name).map(String::as_str).ok_or_else(|| Refusal::NoSysctl(name.to_owned()))
}

fn address(observed: &Observed, device: &str, address: Ipv4Addr) -> Item {
    let there = observed.addresses.iter().any(|found| found.device == device && found.address == address);
    let step = (!there).then(|| Step::AddAddress { device: device.to_owned(), address });
    item(format!("address {address}/32 on {device}"), "present", if there { "present" } else { "absent" }, step)
}

fn item(what: String, wanted: impl Into<String>, found: impl Into<String>, step: Option<Step>) -> Item {
    Item { what, wanted: wanted.into(), found: found.into(), step }
}

fn warnings(observed: &Observed) -> Vec<String> {
    let forwards = observed.sysctls.get("net.ipv4.ip_forward").is_some_and(|value| value != "0");
    let text = "net.ipv4.ip_forward is on: if a VIP goes missing from lo, its packets are forwarded on, not refused";
    forwards.then(|| text.to_owned()).into_iter().collect()
}

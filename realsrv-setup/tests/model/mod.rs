//! A host that is only a model, and a disk: plans and journals meet them as they would meet the kernel.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    net::IpAddr,
};

use realsrv_setup::{
    desired::{Decap, Desired, Request, Vip},
    family::Family,
    journal::Journal,
    observed::{Address, Filter, HookQdisc, Layer, Link, Observed, Slot, Support},
    plan::{Plan, Programs, Step, is_arp},
    run::{self, Host, Store, Undone},
};

#[derive(Debug, thiserror::Error)]
#[error("injected at {0}")]
pub(crate) struct Injected(pub(crate) String);

/// How the step fails that fails.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Failure {
    /// Without effect.
    Before,
    /// After its effect.
    After,
}

/// A host as a plan sees it. Steps change the model as the kernel would.
pub(crate) struct Model {
    pub(crate) now: Observed,
    pub(crate) executed: usize,
    pub(crate) fail: Option<(usize, Failure)>,
    undone: usize,
    pub(crate) fail_undo: Option<(usize, Failure)>,
    /// This address cannot be taken away.
    pub(crate) stuck: Option<IpAddr>,
    /// The addresses that are ours.
    added: BTreeSet<IpAddr>,
}

impl Model {
    pub(crate) fn new(now: Observed) -> Self {
        Self { now, executed: 0, fail: None, undone: 0, fail_undo: None, stuck: None, added: BTreeSet::new() }
    }

    pub(crate) fn change(&mut self, step: &Step) {
        let now = &mut self.now;
        match step.clone() {
            Step::SetSysctl { name, to, .. } => {
                now.sysctls.insert(name, to);
            }
            Step::LoadModule { name } => {
                let family = family_of(&name);
                now.tunnels.insert(family, Support::Present);
                now.links.insert(family.tunnel().to_owned(), link(9, false, Layer::Other));
                let (setting, value) = tunnel_setting(family);
                now.sysctls.insert(setting, value);
            }
            Step::AddAddress { device, address } => {
                let added = self::address(&device, address, Family::of(address).bits());
                self.added.insert(address);
                now.addresses.push(Address { host_scope: address.is_ipv4(), ..added });
            }
            Step::LinkUp { device } => self.link(&device).up = true,
            Step::AddClsact { device } => self.link(&device).hook = HookQdisc::Clsact,
            Step::InstallPrograms { to, .. } => self.install(&to),
            Step::WriteFile { path, to, .. } => {
                self.now.files.insert(path, to);
            }
        }
    }

    fn install(&mut self, programs: &Programs) {
        let filter = |(device, program): &(String, _)| {
            let slot = Slot { device: device.clone(), hook: realsrv_setup::observed::Program::hook(*program) };
            (slot, Filter::Ours { program: *program, config: programs.config.seen_by(*program) })
        };
        self.now.filters = programs.slots.iter().map(filter).collect();
    }

    fn link(&mut self, device: &str) -> &mut Link {
        self.now.links.get_mut(device).unwrap()
    }
}

impl Host for Model {
    type Error = Injected;

    fn observe(&mut self) -> Result<Observed, Injected> {
        Ok(self.now.clone())
    }

    fn execute(&mut self, step: &Step) -> Result<(), Injected> {
        let failure = self.fail.filter(|(at, _)| *at == self.executed).map(|(_, failure)| failure);
        self.executed += 1;
        if failure != Some(Failure::Before) {
            self.change(step);
        }
        failure.map_or(Ok(()), |_| Err(Injected(format!("{step:?}"))))
    }

    fn undo(&mut self, step: &Step) -> Result<Undone, Injected> {
        let failure = self.fail_undo.filter(|(at, _)| *at == self.undone).map(|(_, failure)| failure);
        self.undone += 1;
        if failure == Some(Failure::Before) {
            return Err(Injected(format!("undoing {step:?}")));
        }
        let undone = self.restore(step)?;
        failure.map_or(Ok(undone), |_| Err(Injected(format!("having undone {step:?}"))))
    }
}

impl Model {
    /// Whether a VIP is on `lo` that a step put there.
    fn serves_ipv4(&self) -> bool {
        let ours = |found: &Address| self.added.contains(&found.address) && found.address.is_ipv4();
        self.now.addresses.iter().any(|found| found.device == "lo" && ours(found))
    }

    fn restore(&mut self, step: &Step) -> Result<Undone, Injected> {
        match step.clone() {
            Step::SetSysctl { name, from, to } => match self.now.sysctls.get(&name) {
                Some(now) if *now == to => {
                    assert!(!is_arp(&name) || !self.serves_ipv4(), "{name} is loosened while a VIP is on lo");
                    drop(self.now.sysctls.insert(name, from));
                }
                _ => return Ok(Undone::Already),
            },
            Step::LoadModule { name } => {
                let family = family_of(&name);
                if self.now.links.get(family.tunnel()).is_some_and(|link| link.up) {
                    return Ok(Undone::Left("a network namespace has a tunnel".to_owned()));
                }
                self.now.tunnels.insert(family, Support::Loadable);
                self.now.links.remove(family.tunnel());
                self.now.sysctls.remove(&tunnel_setting(family).0);
            }
            Step::AddAddress { address, .. } if self.stuck == Some(address) => {
                return Err(Injected(format!("removing {address}")));
            }
            Step::AddAddress { device, address } => {
                self.now.addresses.retain(|found| (&found.device, found.address) != (&device, address));
            }
            Step::LinkUp { device } => self.link(&device).up = false,
            Step::AddClsact { device } => {
                if self.now.filters.keys().any(|slot| slot.device == device) {
                    return Ok(Undone::Left("in use".to_owned()));
                }
                self.link(&device).hook = HookQdisc::None;
            }
            Step::InstallPrograms { from, .. } => self.install(&from.unwrap_or_default()),
            Step::WriteFile { path, from, to } => match (self.now.files.remove(&path), from) {
                (Some(now), Some(from)) if now == to => drop(self.now.files.insert(path, from)),
                (Some(now), None) if now == to => {}
                (Some(now), _) => {
                    self.now.files.insert(path, now);
                    return Ok(Undone::Already);
                }
                (None, _) => return Ok(Undone::Already),
            },
        }
        Ok(Undone::Restored)
    }
}

/// Remembers what would be on the disk.
#[derive(Default)]
pub(crate) struct Disk(pub(crate) Journal);

impl Store for Disk {
    type Error = Infallible;

    fn save(&mut self, journal: &Journal) -> Result<(), Infallible> {
        // Through the format, as a file would.
        self.0 = serde_json::from_str(&serde_json::to_string(journal).unwrap()).unwrap();
        assert_eq!(self.0, *journal);
        Ok(())
    }
}

pub(crate) fn link(index: u32, up: bool, layer: Layer) -> Link {
    Link {
        index,
        up,
        mtu: 1500,
        layer,
        enslaved: false,
        routed: false,
        hook: HookQdisc::None,
        arp_ignore: 0,
        arp_announce: 0,
        rp_filter: 0,
    }
}

fn family_of(module: &str) -> Family {
    Family::ALL.into_iter().find(|family| family.tunnel_module() == module).unwrap()
}

/// What a tunnel's device brings along, not as a real needs it.
pub(crate) fn tunnel_setting(family: Family) -> (String, String) {
    let (setting, value) = match family {
        Family::Ipv4 => ("net.ipv4.conf.tunl0.rp_filter", "0"),
        Family::Ipv6 => ("net.ipv6.conf.ip6tnl0.disable_ipv6", "1"),
    };
    (setting.to_owned(), value.to_owned())
}

pub(crate) fn host() -> Observed {
    let sysctls = [
        ("ipv4.conf.all.arp_ignore", "0"),
        ("ipv4.conf.all.arp_announce", "0"),
        ("ipv4.conf.default.rp_filter", "0"),
        ("ipv4.icmp_ratelimit", "1000"),
        ("ipv4.ip_forward", "0"),
        ("ipv6.conf.lo.disable_ipv6", "0"),
        ("ipv6.conf.default.disable_ipv6", "1"),
        ("ipv6.icmp.ratelimit", "1000"),
    ];
    Observed {
        links: BTreeMap::from([
            ("lo".to_owned(), link(1, true, Layer::Loopback)),
            ("eth0".to_owned(), link(2, true, Layer::Ethernet)),
            ("eth1".to_owned(), link(3, true, Layer::Ethernet)),
        ]),
        addresses: vec![
            address("eth0", [198, 18, 1, 2].into(), 24),
            address("eth0", [0xfd00, 0x18, 0, 0, 0, 0, 1, 2].into(), 64),
            address("eth1", [198, 18, 2, 2].into(), 24),
        ],
        sysctls: sysctls.into_iter().map(|(name, value)| (format!("net.{name}"), value.to_owned())).collect(),
        tunnels: Family::ALL.map(|family| (family, Support::Loadable)).into(),
        ..Observed::default()
    }
}

pub(crate) fn address(device: &str, address: IpAddr, length: u8) -> Address {
    Address { device: device.to_owned(), address, length, host_scope: false, temporary: false }
}

pub(crate) fn vip(text: &str) -> Vip {
    text.parse().unwrap()
}

pub(crate) fn desired(vips: &[&str], decap: Decap) -> Desired {
    let lb_sources = ["198.18.9.0/24", "fd00:18:9::/64"].map(|source| source.parse().unwrap()).into();
    Desired { vips: vips.iter().map(|text| vip(text)).collect(), decap, lb_sources, ..Desired::default() }
}

pub(crate) fn request(desired: Desired) -> Request {
    Request {
        vips: desired.vips,
        decap: Some(desired.decap),
        lb_sources: Some(desired.lb_sources),
        mss: Some(desired.mss),
        interfaces: Some(desired.interfaces),
        no_persist: desired.persist.is_none(),
        persist: desired.persist,
    }
}

pub(crate) fn apply(
    model: &mut Model,
    disk: &mut Disk,
    journal: &mut Journal,
    desired: Desired,
) -> Result<Plan, run::Error<Injected, Infallible>> {
    run::apply(model, disk, journal, request(desired)).map(|applied| applied.plan)
}

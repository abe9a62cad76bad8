//! The file of `hc-prober run`, in the words of lbd's.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv6Addr},
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::{Name, Protocol, Template};
use crate::{
    Check, CheckKey, OuterSource, Timing,
    config::{
        self, ConfigError, Mistake, Mistakes,
        check::{Clock, Spec, Table},
        optional, parse_address,
        value::{Integer, Interfaces, OneOrMany, Span},
    },
};

const DEFAULT_WEIGHT: u16 = 100;
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// What a sidecar does; valid by construction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where replies are captured; empty: on the devices that lead to the reals.
    pub interfaces: Vec<String>,
    /// Source of outer IPv4 headers.
    pub outer_source: Option<OuterSource>,
    /// Source of outer IPv6 headers.
    pub outer_source6: Option<Ipv6Addr>,
    /// What is run for each change.
    pub command: Option<Template>,
    /// How long a run of it may take.
    pub command_timeout: Duration,
    /// What is checked, in the order of the file; no two with the same name, each with a check and a real at least.
    pub services: Vec<Service>,
}

/// A service and its reals.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Its name.
    pub name: Name,
    /// What each real is asked: all of it must pass.
    pub checks: Vec<(Spec, Timing)>,
    /// No two with the same address.
    pub reals: Vec<Real>,
}

/// A real of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Real {
    /// Where its tunnel ends.
    pub address: IpAddr,
    /// What the load balancer is to give it while it is up.
    pub weight: u16,
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`ConfigError`]: the file cannot be read, or it holds mistakes; each is shown with its line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&path.display().to_string(), &config::read(path)?)
    }

    /// Checks `text`; `name` stands for the file in messages.
    ///
    /// # Errors
    /// [`ConfigError::Mistakes`] with every mistake found.
    pub fn parse(name: &str, text: &str) -> Result<Self, ConfigError> {
        let mistakes = |mistakes| ConfigError::mistakes(name, text, mistakes);
        let file: File = toml::from_str(text).map_err(|error| mistakes(vec![Mistake::from(error)]))?;
        read(file).map_err(mistakes)
    }

    /// The checks of all services; one that several ask for is there once, with the first one's timing.
    #[must_use]
    pub fn checks(&self) -> Vec<Check> {
        let mut seen = HashSet::new();
        let all = self.services.iter().flat_map(|service| {
            let of = |real: &Real| {
                service
                    .checks
                    .iter()
                    .map(|(spec, timing)| (service.key(spec, real.address), *timing))
                    .collect::<Vec<_>>()
            };
            service.reals.iter().flat_map(of).collect::<Vec<_>>()
        });
        all.filter(|(key, _)| seen.insert(key.clone())).map(|(key, timing)| Check { key, timing }).collect()
    }
}

impl Service {
    /// The check of a real as the prober names it.
    #[must_use]
    pub fn key(&self, spec: &Spec, real: IpAddr) -> CheckKey {
        spec.key(real, self.name.vip)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    node: NodeTable,
    #[serde(default)]
    defaults: DefaultsTable,
    on_change: Option<CommandTable>,
    vip: Spanned<Vec<VipTable>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct NodeTable {
    interface: Option<Spanned<Interfaces>>,
    outer_source: Option<Spanned<String>>,
    outer_source6: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct DefaultsTable {
    interval: Option<Spanned<Span>>,
    timeout: Option<Spanned<Span>>,
    fast_interval: Option<Spanned<Span>>,
    rise: Option<Spanned<Integer>>,
    fall: Option<Spanned<Integer>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandTable {
    command: Spanned<Vec<Spanned<String>>>,
    timeout: Option<Spanned<Span>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VipTable {
    address: Spanned<String>,
    protocol: Spanned<String>,
    port: Spanned<Integer>,
    check: Spanned<OneOrMany<Table>>,
    #[serde(default)]
    real: Vec<RealTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RealTable {
    address: Spanned<String>,
    weight: Option<Spanned<Integer>>,
}

fn read(file: File) -> Result<Config, Vec<Mistake>> {
    let mut reader = Reader::default();
    let config = reader.config(file);
    match (config, reader.0.into_vec()) {
        (Some(config), mistakes) if mistakes.is_empty() => Ok(config),
        (_, mistakes) => Err(mistakes),
    }
}

/// Reads the file. Whether anything was wrong the mistakes say.
#[derive(Default)]
struct Reader(Mistakes);

impl Reader {
    fn config(&mut self, file: File) -> Option<Config> {
        let NodeTable { interface, outer_source, outer_source6 } = file.node;
        let interfaces = interface.map_or(Some(Vec::new()), |names| self.0.interfaces(names));
        let outer_source = optional(outer_source.as_ref(), |text| self.0.outer_source(text));
        let outer_source6 = optional(outer_source6.as_ref(), |text| self.0.outer_source6(text));
        let command = optional(file.on_change.as_ref(), |table| self.command(table));
        let base = self.0.timing(&file.defaults.clock(), Timing::default());
        if file.vip.get_ref().is_empty() {
            self.0.add::<()>(file.vip.span(), "there is nothing to check: give it at least one [[vip]]");
        }
        let base = base.unwrap_or_default();
        let services: Vec<_> = file.vip.get_ref().iter().filter_map(|vip| self.service(vip, base)).collect();
        self.twice(file.vip.get_ref());
        let (command, timeout) = command?.unzip();
        Some(Config {
            interfaces: interfaces?,
            outer_source: outer_source?,
            outer_source6: outer_source6?,
            command,
            command_timeout: timeout.unwrap_or(COMMAND_TIMEOUT),
            services,
        })
    }

    fn command(&mut self, table: &CommandTable) -> Option<(Template, Duration)> {
        let allowed = Duration::from_millis(100)..=Duration::from_mins(10);
        let timeout = optional(table.timeout.as_ref(), |span| self.0.duration("timeout", span, &allowed));
        let words = table.command.get_ref();
        if words.is_empty() {
            return self.0.add(table.command.span(), "`command` is empty: it takes a program and its arguments");
        }
        for word in words {
            if let Some(unknown) = Template::unknown(word.get_ref()) {
                let message = format!("`{unknown}` is not known: allowed is {}", Template::allowed());
                self.0.add::<()>(word.span(), message);
            }
        }
        let template = Template::new(words.iter().map(|word| word.get_ref().clone()).collect());
        Some((template, timeout?.unwrap_or(COMMAND_TIMEOUT)))
    }

    fn service(&mut self, vip: &VipTable, base: Timing) -> Option<Service> {
        let address = self.0.address("address", &vip.address);
        let protocols = [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
        let protocol = self.0.word("protocol", &vip.protocol, &protocols);
        let port = self.0.integer("port", &vip.port, 0..=u16::MAX);
        let checks = self.0.checks(&vip.check, port, address, base);
        let reals = self.reals(vip, address)?;
        let name = Name { vip: address?, protocol: protocol?, port: port? };
        Some(Service { name, checks: checks?, reals })
    }

    fn reals(&mut self, vip: &VipTable, vip_address: Option<IpAddr>) -> Option<Vec<Real>> {
        let name = vip.address.get_ref();
        if vip.real.is_empty() {
            let message = format!("VIP {name} has no reals: give it at least one [[vip.real]]");
            return self.0.add(vip.address.span(), message);
        }
        let (mut seen, mut reals) = (HashSet::new(), Vec::with_capacity(vip.real.len()));
        for real in &vip.real {
            let weight = optional(real.weight.as_ref(), |weight| self.0.integer("weight", weight, 0..=u16::MAX));
            let Some(address) = self.0.address("address", &real.address) else { continue };
            if !seen.insert(address) {
                self.0.add::<()>(real.address.span(), format!("real {address} is listed twice for VIP {name}"));
            }
            self.0.carries(vip_address, address, real.address.span());
            reals.extend(weight.map(|weight| Real { address, weight: weight.unwrap_or(DEFAULT_WEIGHT) }));
        }
        (reals.len() == vip.real.len()).then_some(reals)
    }

    fn twice(&mut self, vips: &[VipTable]) {
        let mut seen = HashSet::new();
        for vip in vips {
            let (address, protocol, port) = (vip.address.get_ref(), vip.protocol.get_ref(), vip.port.get_ref().0);
            let parsed = parse_address(&vip.address);
            if parsed.is_some() && !seen.insert((parsed, protocol, port)) {
                let message = format!("VIP {address} {protocol} port {port} is listed twice");
                self.0.add::<()>(vip.address.span(), message);
            }
        }
    }
}

impl DefaultsTable {
    fn clock(&self) -> Clock<'_> {
        Clock {
            interval: self.interval.as_ref(),
            timeout: self.timeout.as_ref(),
            fast_interval: self.fast_interval.as_ref(),
            rise: self.rise.as_ref(),
            fall: self.fall.as_ref(),
        }
    }
}

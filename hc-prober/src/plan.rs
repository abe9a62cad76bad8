//! From checks to addresses: which way each check's packets go, and what must be captured for it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU8,
};

use lb_ebpf::probe::{INNER, OUTER, Watch};
use rtnetlink::Handle;

use crate::{
    check::{Check, CheckKey},
    ends::Ends,
    engine::Planned,
    finding::Detail,
    route,
    settings::{OuterSource, Settings},
    subject::{Path, Tunnel},
};

/// Finds each check's addresses. The kernel is asked once for each address, and only for what is not set.
pub async fn plan(checks: &[Check], settings: &Settings, routes: &Handle) -> Vec<Planned> {
    let mut paths = Planner { settings, routes, sources: HashMap::new() };
    let mut planned = Vec::with_capacity(checks.len());
    for check in checks {
        let path = paths.path(&check.key).await;
        planned.push(Planned { check: check.clone(), path });
    }
    planned
}

/// The addresses of packets to a host outside of any tunnel.
///
/// # Errors
/// There is no route to it.
pub async fn direct(host: IpAddr, settings: &Settings, routes: &Handle) -> Result<Path, Detail> {
    let mut paths = Planner { settings, routes, sources: HashMap::new() };
    let inner = match host {
        IpAddr::V4(host) => paths.inner_source(host).await.map(|source| Ends::V4 { source, destination: host }),
        IpAddr::V6(host) => paths.outer_source6(host).await.map(|source| Ends::V6 { source, destination: host }),
    };
    inner.map(|inner| Path { tunnel: None, inner, hops: NonZeroU8::MIN }).map_err(Detail::NoRoute)
}

struct Planner<'a> {
    settings: &'a Settings,
    routes: &'a Handle,
    /// What the route to an address prefers as source, or the error number.
    sources: HashMap<IpAddr, Result<IpAddr, i32>>,
}

impl Planner<'_> {
    async fn path(&mut self, key: &CheckKey) -> Result<Path, Detail> {
        let hops = key.hops;
        match (key.real, key.target) {
            (IpAddr::V4(real), IpAddr::V4(target)) => {
                let tunnel = self.tunnel(real).await.map_err(Detail::NoRoute)?;
                let source = self.inner_source(real).await.map_err(Detail::NoRoute)?;
                Ok(Path { tunnel: Some(tunnel), inner: Ends::V4 { source, destination: target }, hops })
            }
            (IpAddr::V6(real), IpAddr::V4(target)) => {
                let source = self.outer_source6(real).await.map_err(Detail::NoRoute)?;
                let tunnel = Tunnel::V6 { source, real };
                let source = self.inner_source(target).await.map_err(Detail::NoSource)?;
                // The VIP is on our own `lo`, as IPVS has it: the real would answer to itself.
                if source == target {
                    return Err(Detail::NoSource(libc::EADDRNOTAVAIL));
                }
                Ok(Path { tunnel: Some(tunnel), inner: Ends::V4 { source, destination: target }, hops })
            }
            (IpAddr::V6(real), IpAddr::V6(target)) => {
                let source = self.outer_source6(real).await.map_err(Detail::NoRoute)?;
                Ok(Path {
                    tunnel: Some(Tunnel::V6 { source, real }),
                    inner: Ends::V6 { source, destination: target },
                    hops,
                })
            }
            (IpAddr::V4(_), IpAddr::V6(_)) => Err(Detail::Encapsulation),
        }
    }

    async fn tunnel(&mut self, real: Ipv4Addr) -> Result<Tunnel, i32> {
        let source = match self.settings.outer_source {
            Some(source) => source,
            None => self.routed(real).await?.into(),
        };
        Ok(Tunnel::V4 { source, real })
    }

    async fn outer_source6(&mut self, real: Ipv6Addr) -> Result<Ipv6Addr, i32> {
        if let Some(source) = self.settings.outer_source6 {
            return Ok(source);
        }
        match self.source(real.into()).await? {
            IpAddr::V6(source) => Ok(source),
            IpAddr::V4(_) => Err(libc::EADDRNOTAVAIL),
        }
    }

    async fn inner_source(&mut self, towards: Ipv4Addr) -> Result<Ipv4Addr, i32> {
        let settings = self.settings;
        match settings.inner_source.or_else(|| settings.outer_source.and_then(OuterSource::only)) {
            Some(source) => Ok(source),
            None => self.routed(towards).await,
        }
    }

    async fn routed(&mut self, towards: Ipv4Addr) -> Result<Ipv4Addr, i32> {
        match self.source(towards.into()).await? {
            IpAddr::V4(source) => Ok(source),
            IpAddr::V6(_) => Err(libc::EADDRNOTAVAIL),
        }
    }

    async fn source(&mut self, towards: IpAddr) -> Result<IpAddr, i32> {
        if let Some(known) = self.sources.get(&towards) {
            return *known;
        }
        let found = route::lookup(self.routes, towards).await.map(|route| route.source);
        let found = found.map_err(|error| error.raw_os_error().unwrap_or(libc::ENETUNREACH));
        self.sources.insert(towards, found);
        found
    }
}

/// What must be captured for these checks. The capture knows all outer sources by the first.
#[must_use]
pub fn watches(planned: &[Planned]) -> HashMap<Watch, u32> {
    let mut watches = HashMap::new();
    for path in planned.iter().filter_map(|planned| planned.path.as_ref().ok()) {
        let outer = path.tunnel.map(|tunnel| (tunnel.ends(0), OUTER));
        for (ends, role) in outer.into_iter().chain([(path.inner, INNER)]) {
            *watches.entry(Watch::new(ends.source(), ends.destination())).or_default() |= role;
        }
    }
    watches
}

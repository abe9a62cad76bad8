//! From checks to addresses: which way each check's packets go, and what must be captured for it.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use lb_ebpf::probe::{INNER, OUTER, Watch};
use rtnetlink::Handle;

use crate::{
    check::Check,
    engine::Planned,
    finding::Detail,
    route,
    settings::{OuterSource, Settings},
    subject::Path,
};

/// Finds each check's addresses. The kernel is asked once for each real, and only if the outer source is not one address.
pub async fn plan(checks: &[Check], settings: &Settings, routes: &Handle) -> Vec<Planned> {
    let mut sources: HashMap<Ipv4Addr, Result<Ipv4Addr, Detail>> = HashMap::new();
    let mut planned = Vec::with_capacity(checks.len());
    for check in checks {
        let path = match (check.key.real, check.key.target) {
            (IpAddr::V4(real), IpAddr::V4(target)) => {
                let source = match (settings.outer_source.and_then(OuterSource::only), sources.get(&real)) {
                    (Some(source), _) => Ok(source),
                    (None, Some(known)) => *known,
                    (None, None) => source_for(real, routes).await,
                };
                sources.insert(real, source);
                source.map(|source| Path {
                    outer_source: settings.outer_source.unwrap_or(source.into()),
                    inner_source: settings.inner_source.unwrap_or(source),
                    real,
                    target,
                })
            }
            (IpAddr::V4(_) | IpAddr::V6(_), _) => Err(Detail::Family),
        };
        planned.push(Planned { check: check.clone(), path });
    }
    planned
}

async fn source_for(real: Ipv4Addr, routes: &Handle) -> Result<Ipv4Addr, Detail> {
    let route = route::lookup(routes, real).await;
    route.map(|route| route.source).map_err(|error| Detail::NoRoute(error.raw_os_error().unwrap_or(libc::ENETUNREACH)))
}

/// What must be captured for these checks. The capture knows all outer sources by the first.
#[must_use]
pub fn watches(planned: &[Planned]) -> HashMap<Watch, u32> {
    let mut watches = HashMap::new();
    for path in planned.iter().filter_map(|planned| planned.path.ok()) {
        let inner = Watch { local: path.inner_source.octets(), remote: path.target.octets() };
        let outer = Watch { local: path.outer_source.first().octets(), remote: path.real.octets() };
        *watches.entry(inner).or_default() |= INNER;
        *watches.entry(outer).or_default() |= OUTER;
    }
    watches
}

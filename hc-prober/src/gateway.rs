//! Whether our side of the way to all reals is there: the one interface by which they are reached, and the one router that is
//! the first on the way. If nothing at all is answered, and the interface has no link or the router does not answer either,
//! silence says nothing about any real. docs/decisions/silent-gateway.md tells why only then.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use futures::TryStreamExt;
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::Handle;

use crate::{
    claim::{self, Link},
    finding::{Detail, Finding},
    report::Reason,
    route,
    state::Event,
    time::Monotonic,
};

/// How long its answer is awaited, each time.
const PATIENCE: Duration = Duration::from_millis(150);

/// So many times.
const TRIES: u32 = 2;

/// From one question to the next, while no verdict is at stake: a real that is DOWN is silent for long.
const PACE: Duration = Duration::from_secs(1);

/// For so long nobody is asked, since somebody was answered: packets come and go, whatever the gateway says of itself.
const TRUST: Duration = Duration::from_secs(10);

/// When to ask, and what came of it.
#[derive(Debug, Default)]
pub struct Suspicion {
    /// Not before.
    next: Option<Monotonic>,
    /// Nobody is asked before.
    trusted_until: Option<Monotonic>,
    /// A question is under way.
    asking: bool,
    fault: Option<Detail>,
}

/// What is common to the ways to all reals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Way {
    /// The interface.
    interface: u32,
    /// The first router; `None`: there are several, or a real is on our own link.
    gateway: Option<IpAddr>,
}

impl Way {
    /// Whether this is a fault of it.
    #[must_use]
    pub fn has(&self, fault: Detail) -> bool {
        !matches!(fault, Detail::Gateway(gateway) if Some(gateway) != self.gateway)
    }
}

impl Suspicion {
    /// A probe has its result; whether it is time to ask. Anybody's answer ends the silence. `is_at_stake`: the check is UP.
    pub fn found(&mut self, finding: &Finding, is_at_stake: bool, now: Monotonic) -> bool {
        let is_silence = match (finding.event, finding.reason, finding.detail) {
            (Event::Fail(_), Reason::Timeout, None)
            | (Event::Unknown, _, Some(Detail::Gateway(_) | Detail::Link(_))) => true,
            (Event::Fail(_) | Event::Unknown | Event::Pass, _, _) => false,
        };
        if !is_silence {
            if self.fault.take().is_some() {
                self.trusted_until = Some(now + TRUST);
            }
            return false;
        }
        let is_over = |until: Option<Monotonic>| until.is_none_or(|until| now >= until);
        let is_time = is_over(self.trusted_until) && (is_over(self.next) || (is_at_stake && !self.asking));
        if is_time {
            (self.next, self.asking) = (Some(now + PACE), true);
        }
        is_time
    }

    /// What came of the question: what is broken.
    pub fn asked(&mut self, fault: Option<Detail>) {
        (self.fault, self.asking) = (fault, false);
    }

    /// What was broken when it was last asked.
    #[must_use]
    pub fn fault(&self) -> Option<Detail> {
        self.fault
    }
}

/// What is common to the ways to all of these reals. `None`: they leave by several interfaces, or one has no route.
pub async fn only(routes: &Handle, reals: &BTreeSet<IpAddr>) -> Option<Way> {
    let mut only: Option<Way> = None;
    for &real in reals {
        let route = route::lookup(routes, real).await.ok()?;
        let way = only.get_or_insert(Way { interface: route.interface, gateway: route.gateway });
        if way.interface != route.interface {
            return None;
        }
        way.gateway = way.gateway.filter(|gateway| Some(*gateway) == route.gateway);
    }
    only
}

/// What is broken on this way to all reals, of which this one was silent; `None`: nothing, or it cannot be known.
pub async fn fault(routes: &Handle, way: Way, real: IpAddr) -> Option<Detail> {
    let interface = route::interface(routes, way.interface).await.ok()?;
    if !interface.has_link {
        return Some(Detail::Link(interface.name));
    }
    way.gateway?;
    silent(routes, real).await.map(Detail::Gateway)
}

/// The gateway on the way to a real, if it is an Ethernet neighbour that does not answer. `None`: it does, or there is none,
/// or it cannot be known: somebody has told the kernel its address for good, so it need not answer.
async fn silent(routes: &Handle, real: IpAddr) -> Option<IpAddr> {
    let route = route::lookup(routes, real).await.ok()?;
    let gateway = route.gateway.filter(|gateway| gateway.is_ipv4() == route.source.is_ipv4())?;
    let mac = route::interface(routes, route.interface).await.ok()?.mac?;
    match neighbour(routes, route.interface, gateway).await {
        Some(NeighbourState::Permanent | NeighbourState::Noarp) => return None,
        Some(NeighbourState::Failed) => return Some(gateway),
        _ => {}
    }
    let link = Link { interface: route.interface, mac };
    let ask = move || (0..TRIES).map(|_| claim::ask(link, route.source, gateway, PATIENCE, |_| true)).find(is_answer);
    // An error is an answer too: nothing is known.
    let answer = tokio::task::spawn_blocking(ask).await.ok()?;
    answer.is_none().then_some(gateway)
}

fn is_answer(answer: &std::io::Result<Option<claim::Mac>>) -> bool {
    !matches!(answer, Ok(None))
}

async fn neighbour(routes: &Handle, interface: u32, of: IpAddr) -> Option<NeighbourState> {
    let mut entries = Box::pin(routes.neighbours().get().execute());
    while let Some(entry) = entries.try_next().await.ok()? {
        let is_meant = |attribute: &NeighbourAttribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => of == *address,
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => of == *address,
            _ => false,
        };
        if entry.header.ifindex == interface && entry.attributes.iter().any(is_meant) {
            return Some(entry.header.state);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Severity;

    #[test]
    fn gateway_is_asked_for_at_once_and_then_once_a_second_unless_a_verdict_is_at_stake() {
        let at = |millis| Monotonic::default() + Duration::from_millis(millis);
        let silence = Finding::fail(Severity::Hard, Reason::Timeout, None);
        let (passed, closed) = (Finding::pass(Reason::L4Ok), Finding::fail(Severity::Soft, Reason::PortClosed, None));
        let mut suspicion = Suspicion::default();
        assert!(!suspicion.found(&passed, true, at(0)) && !suspicion.found(&closed, true, at(0)));
        assert!(suspicion.found(&silence, false, at(100)));
        assert!(!suspicion.found(&silence, true, at(200)), "a question is under way");
        suspicion.asked(None);
        assert!(!suspicion.found(&silence, false, at(400)));
        assert!(suspicion.found(&silence, true, at(400)));
        assert!(!suspicion.found(&silence, false, at(1399)));
        assert!(suspicion.found(&silence, false, at(1400)));
        let gateway = Detail::Gateway([198, 18, 0, 1].into());
        suspicion.asked(Some(gateway));
        assert_eq!(suspicion.fault(), Some(gateway));
        assert!(!suspicion.found(&closed, true, at(1450)));
        assert_eq!(suspicion.fault(), None, "somebody was answered");
        assert!(!suspicion.found(&silence, true, at(11_400)), "the gateway's own silence says nothing then");
        assert!(suspicion.found(&silence, false, at(11_450)));
    }
}

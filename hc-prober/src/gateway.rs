//! Whether the one router that is the first on the way to all reals is there: if nothing at all is answered and it does not
//! answer either, silence says nothing about any real. docs/decisions/silent-gateway.md tells why only then.

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

/// From one question to the next.
const PACE: Duration = Duration::from_secs(1);

/// For so long nobody is asked, since somebody was answered: packets come and go, whatever the gateway says of itself.
const TRUST: Duration = Duration::from_secs(10);

/// When to ask, and what came of it.
#[derive(Debug, Default)]
pub struct Suspicion {
    /// Not before.
    next: Option<Monotonic>,
    silent: Option<IpAddr>,
}

impl Suspicion {
    /// A probe has its result; whether it is time to ask. Anybody's answer ends the silence.
    pub fn found(&mut self, finding: &Finding, now: Monotonic) -> bool {
        let is_silence = match (finding.event, finding.reason, finding.detail) {
            (Event::Fail(_), Reason::Timeout, None) | (Event::Unknown, _, Some(Detail::Gateway(_))) => true,
            (Event::Fail(_) | Event::Unknown | Event::Pass, _, _) => false,
        };
        if !is_silence {
            if self.silent.take().is_some() {
                self.next = Some(now + TRUST);
            }
            return false;
        }
        let is_time = self.next.is_none_or(|next| now >= next);
        if is_time {
            self.next = Some(now + PACE);
        }
        is_time
    }

    /// What came of the question: the gateway, if it is silent.
    pub fn asked(&mut self, silent: Option<IpAddr>) {
        self.silent = silent;
    }

    /// The gateway that was silent when it was last asked.
    #[must_use]
    pub fn silent(&self) -> Option<IpAddr> {
        self.silent
    }
}

/// The one gateway on the way to all of these reals. `None`: there are several, or a real is on our own link, or has no route.
pub async fn only(routes: &Handle, reals: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    let mut only = None;
    for &real in reals {
        let gateway = route::lookup(routes, real).await.ok()?.gateway?;
        if *only.get_or_insert(gateway) != gateway {
            return None;
        }
    }
    only
}

/// The gateway on the way to a real, if it is an Ethernet neighbour that does not answer. `None`: it does, or there is none,
/// or it cannot be known: somebody has told the kernel its address for good, so it need not answer.
pub async fn silent(routes: &Handle, real: IpAddr) -> Option<IpAddr> {
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
    fn gateway_is_asked_for_at_once_and_then_once_a_second_while_there_is_silence() {
        let at = |millis| Monotonic::default() + Duration::from_millis(millis);
        let silence = Finding::fail(Severity::Hard, Reason::Timeout, None);
        let (passed, closed) = (Finding::pass(Reason::L4Ok), Finding::fail(Severity::Soft, Reason::PortClosed, None));
        let mut suspicion = Suspicion::default();
        assert!(!suspicion.found(&passed, at(0)) && !suspicion.found(&closed, at(0)));
        assert!(suspicion.found(&silence, at(100)));
        assert!(!suspicion.found(&silence, at(1000)));
        assert!(suspicion.found(&silence, at(1100)));
        let gateway = IpAddr::from([198, 18, 0, 1]);
        suspicion.asked(Some(gateway));
        assert_eq!(suspicion.silent(), Some(gateway));
        assert!(!suspicion.found(&closed, at(1150)));
        assert_eq!(suspicion.silent(), None, "somebody was answered");
        assert!(!suspicion.found(&silence, at(11_100)), "the gateway's own silence says nothing then");
        assert!(suspicion.found(&silence, at(11_150)));
    }
}

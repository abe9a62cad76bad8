//! Addresses that the XDP program answers for on the node's links, and telling the links of new ones.

use super::{Daemon, announce::Word};
use crate::{model::NodeState, service::Service};
use hc_prober::claim::{self, Link, Mac};
use lb_ebpf::answer::{Asked, answer};
use nix::{ifaddrs::getifaddrs, net::if_::if_nametoindex};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    time::Duration,
};
use tokio::task::AbortHandle;

/// Links are told of a new address at once and after each of these: one packet may be lost.
const AGAIN: [Duration; 3] = [Duration::ZERO, Duration::from_millis(500), Duration::from_secs(2)];
/// When the data plane is told again what it refused.
const RETRY: Duration = Duration::from_secs(1);

/// Whom the data plane answers for.
#[derive(Default)]
pub(super) struct Answerer {
    /// As it was told last. A new program answers for nobody.
    told: BTreeSet<IpAddr>,
    /// Those that the links were to be told of when that was begun last.
    untold: BTreeSet<IpAddr>,
    /// It did not take that.
    refused: bool,
    /// Tells the links of them.
    telling: Option<AbortHandle>,
}

impl Daemon {
    /// Whether who asks for the address of this VIP is answered; `None`: not by this node, ever.
    pub(super) fn answers(&self, service: &Service) -> Option<bool> {
        let told = &self.answerer.told;
        service.config.announce_by().arp.then(|| told.contains(&service.config.key().address))
    }

    /// Has the data plane answer for the VIPs that can serve, if somebody has said since the host started that this node is
    /// the active one: two that answer for one address would take packets from each other.
    pub(super) fn answer_questions(&mut self) {
        let active = self.node.state == NodeState::Active && self.node.since.is_some() && !self.attached.is_empty();
        let services = self.core.services().filter(|s| active && s.config.announce_by().arp && self.core.can_serve(s));
        let addresses: BTreeSet<IpAddr> = services.map(|service| service.config.key().address).collect();
        if addresses != self.answerer.told || self.answerer.refused {
            self.answer_for(addresses);
        }
    }

    /// What was refused, once more.
    pub(super) fn answer_anew(&mut self) {
        self.answerer.refused = true;
        self.answer_questions();
    }

    fn answer_for(&mut self, addresses: BTreeSet<IpAddr>) {
        // Who is silent from now on must not be heard any more.
        let telling = self.answerer.telling.take().inspect(AbortHandle::abort);
        let broken_off = self.answerer.refused || telling.is_some_and(|telling| !telling.is_finished());
        let links = links(self.core.config().node().interfaces());
        let links = links.unwrap_or_else(|error| {
            tracing::error!(%error, "nobody is answered: the interfaces' addresses cannot be read");
            Vec::new()
        });
        tracing::info!(?addresses, "answering for these addresses");
        let answers = links
            .iter()
            .flat_map(|link| addresses.iter().map(|&address| (Asked::new(link.interface, address), answer(link.mac))));
        let taken = self.worker.answer(answers.collect());
        let before = if broken_off { std::mem::take(&mut self.answerer.untold) } else { BTreeSet::new() };
        let untold = untold(&addresses, &self.answerer.told, &before);
        (self.answerer.told, self.answerer.untold, self.answerer.refused) = (addresses, untold.clone(), false);
        let words = self.announcer.words.clone();
        let telling = tokio::spawn(async move {
            if let Err(error) = taken.await {
                tracing::error!(%error, again = ?RETRY, "not answering for these addresses");
                tokio::time::sleep(RETRY).await;
                // Closed: the daemon ends.
                let _ = words.send(Word::Unanswered).await;
            } else {
                tell(&links, &untold).await;
            }
        });
        self.answerer.telling = Some(telling.abort_handle());
    }
}

/// The addresses that the links do not know yet: new ones, and those that they were not told of to the end.
fn untold(addresses: &BTreeSet<IpAddr>, told: &BTreeSet<IpAddr>, before: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    addresses.iter().filter(|address| !told.contains(address) || before.contains(address)).copied().collect()
}

async fn tell(links: &[Link], addresses: &BTreeSet<IpAddr>) {
    for pause in AGAIN {
        tokio::time::sleep(pause).await;
        for &link in links {
            for &address in addresses {
                if let Err(error) = claim::announce(link, address) {
                    tracing::warn!(%address, interface = link.interface, %error, "the link was not told of this address");
                }
            }
        }
    }
}

/// The node's Ethernet devices.
fn links(interfaces: &[String]) -> io::Result<Vec<Link>> {
    let macs: BTreeMap<String, Mac> = getifaddrs()?
        .filter_map(|interface| Some((interface.interface_name, interface.address?.as_link_addr()?.addr()?)))
        .collect();
    let link = |name: &String| Some(Link { interface: if_nametoindex(name.as_str()).ok()?, mac: *macs.get(name)? });
    Ok(interfaces.iter().filter_map(link).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_whose_telling_was_broken_off_is_told_again() {
        let [one, two, three] = [1, 2, 3].map(|last| IpAddr::from([198, 19, 10, last]));
        let none = BTreeSet::new();
        assert_eq!(untold(&[one, two].into(), &none, &none), [one, two].into());
        // One goes while the other is being told of.
        assert_eq!(untold(&[two].into(), &[one, two].into(), &[one, two].into()), [two].into());
        assert_eq!(untold(&[two, three].into(), &[two].into(), &none), [three].into());
        assert_eq!(untold(&[two].into(), &[one, two].into(), &none), none);
    }
}

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
        let services = self.core.services().filter(|s| active && s.config.announce_by().arp && s.can_serve());
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
        self.answerer.telling.take().inspect(AbortHandle::abort);
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
        let is_news = !addresses.is_subset(&self.answerer.told) || self.answerer.refused;
        (self.answerer.told, self.answerer.refused) = (addresses.clone(), false);
        let words = self.announcer.words.clone();
        let telling = tokio::spawn(async move {
            if let Err(error) = taken.await {
                tracing::error!(%error, again = ?RETRY, "not answering for these addresses");
                tokio::time::sleep(RETRY).await;
                // Closed: the daemon ends.
                let _ = words.send(Word::Unanswered).await;
            } else if is_news {
                tell(&links, &addresses).await;
            }
        });
        self.answerer.telling = Some(telling.abort_handle());
    }
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

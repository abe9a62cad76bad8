//! The routes of VIPs that can serve: what the plan says is carried out here.

use super::{Daemon, Error, io};
use crate::{
    admin::check_reason,
    announce::{self, Change, Event, Plan, RouteState, Routes, Step, Wish},
    config::Announce,
    model::{NodeOrder, NodeRow, NodeState, Route, VipRow},
    reconcile::Inheritance,
    service::Service,
};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::mpsc;

/// When the data plane has refused something, this is how long until it is asked again whether it has settled.
const SETTLE_RETRY: Duration = Duration::from_secs(1);

/// What the announcer waits for.
#[derive(Debug)]
pub(super) enum Word {
    /// Routes have changed.
    Changed(Change),
    /// Nobody watches them any more.
    Blind,
    /// Packets meet all that was told before this ticket.
    Settled(u64),
    /// They did not a while ago.
    Unsettled(u64),
    /// The data plane did not take whom to answer for.
    Unanswered,
}

/// The plan, and the table that it is for.
pub(super) struct Announcer {
    plan: Plan,
    routes: Routes,
    linger: Duration,
    pub(super) words: mpsc::Sender<Word>,
    /// Addresses that packets met already when this daemon began.
    inherited: BTreeSet<IpAddr>,
    /// What was wished last; nothing yet.
    wishes: Option<BTreeMap<IpAddr, Wish>>,
    /// The kernel's routes are to be listed again: the last time it refused.
    unlisted: bool,
    /// Refused lately, so that each is told once.
    refused: BTreeSet<IpAddr>,
}

impl Announcer {
    /// Finds what an earlier daemon has left. The receiver closes only if this is dropped.
    pub(super) async fn start(
        announce: Announce,
        inheritance: &Inheritance,
    ) -> Result<(Self, mpsc::Receiver<Word>), Error> {
        let (words, heard) = mpsc::channel(64);
        // Watched before it is listed, so that nothing goes by in between.
        let mut changes =
            announce::watch(announce.table(), announce.protocol()).map_err(io("watch the announced routes"))?;
        let teller = words.clone();
        tokio::spawn(async move {
            while let Some(change) = changes.recv().await {
                // Closed: the daemon ends.
                let _ = teller.send(Word::Changed(change)).await;
            }
            let _ = teller.send(Word::Blind).await;
        });
        let routes = Routes::open(announce.table(), announce.protocol())?;
        let left = routes.list().await?;
        if !left.is_empty() {
            tracing::info!(routes = ?left, table = announce.table(), "announced already");
        }
        let announcer = Self {
            plan: Plan::new(announce.hold_down(), left),
            routes,
            linger: announce.linger(),
            words,
            inherited: inheritance.vips.keys().map(|vip| vip.address).collect(),
            wishes: None,
            unlisted: false,
            refused: BTreeSet::new(),
        };
        Ok((announcer, heard))
    }

    pub(super) fn configure(&mut self, announce: Announce) {
        self.plan.set_hold_down(announce.hold_down());
        self.linger = announce.linger();
    }
}

impl Daemon {
    /// Adds and withdraws routes as VIPs can serve or cannot.
    pub(super) async fn announce(&mut self) {
        let wishes = self.wishes();
        if self.announcer.wishes.as_ref() != Some(&wishes) {
            self.announcer.wishes = Some(wishes.clone());
            self.announcing(Event::Wishes(wishes)).await;
        }
        self.answer_questions();
    }

    /// An address is announced while any service of it that is to be can serve, and the node is active. That is the
    /// operator's word, so that there is no hold-down after it.
    fn wishes(&self) -> BTreeMap<IpAddr, Wish> {
        let mut wishes = BTreeMap::new();
        if self.node.state == NodeState::Standby {
            return wishes;
        }
        for service in self.core.services().filter(|service| service.config.announce_by().route) {
            let address = service.config.key().address;
            let wish = match (self.attached.is_empty(), service.can_serve()) {
                // Until then packets meet what an earlier daemon left, or nothing.
                (true, _) if self.announcer.inherited.contains(&address) => Wish::Keep,
                (true, _) | (false, false) => Wish::Withdraw,
                (false, true) => Wish::Announce,
            };
            wishes.entry(address).and_modify(|other: &mut Wish| *other = wish.max(*other)).or_insert(wish);
        }
        wishes
    }

    pub(super) async fn hear(&mut self, word: Word) -> Result<(), Error> {
        match word {
            Word::Settled(ticket) => self.announcing(Event::Settled(ticket)).await,
            Word::Unsettled(ticket) => self.settle(ticket),
            Word::Unanswered => self.answer_anew(),
            Word::Changed(Change::Route { address, ours, added }) => {
                if self.announcer.plan.is_news(address, ours, added) {
                    self.list_routes().await;
                }
            }
            Word::Changed(Change::Lost) => self.list_routes().await,
            Word::Blind => return Err(Error::Ended("watching the announced routes")),
        }
        Ok(())
    }

    /// Kept first, then done: when this returns, a node on standby announces nothing.
    pub(super) async fn order_node(&mut self, NodeOrder { state, reason }: NodeOrder) -> Result<NodeRow, String> {
        reason.as_deref().map_or(Ok(()), check_reason)?;
        let before = Some(&self.node).filter(|before| before.state == state);
        let since = before.and_then(|before| before.since).or_else(|| Some(Timestamp::now()));
        let reason = reason.or_else(|| before.and_then(|before| before.reason.clone()));
        let node = NodeRow { state, reason, since };
        crate::node::save(&self.options.state_dir, &node).map_err(|error| format!("not kept, so not done: {error}"))?;
        tracing::info!(after = state.name(), reason = node.reason.as_deref().unwrap_or_default(), "node");
        self.node = node;
        self.announce().await;
        Ok(self.node.clone())
    }

    /// What is held until now, and what was refused before.
    pub(super) async fn mend_routes(&mut self) {
        if self.announcer.unlisted {
            self.list_routes().await;
        } else {
            self.announcing(Event::Tick).await;
        }
    }

    async fn list_routes(&mut self) {
        let listed = self.announcer.routes.list().await;
        let before = std::mem::replace(&mut self.announcer.unlisted, listed.is_err());
        match listed {
            Ok(routes) => self.announcing(Event::Listed(routes)).await,
            Err(error) if !before => tracing::error!(%error, "it is not known what is announced; looking again"),
            Err(_) => {}
        }
    }

    async fn announcing(&mut self, event: Event) {
        for step in self.announcer.plan.apply(event, Instant::now()) {
            match step {
                Step::Settle(ticket) => self.settle(ticket),
                Step::Vanished(address) => tracing::warn!(%address, "somebody deleted the route of an announced VIP"),
                Step::Appeared(address) => {
                    tracing::warn!(%address, "somebody added a route with the protocol number of the announced VIPs");
                }
                Step::Add(address) => {
                    let added = self.announcer.routes.add(address).await;
                    self.told(address, added, "announced");
                }
                Step::Delete(address) => {
                    let deleted = self.announcer.routes.delete(address).await;
                    self.told(address, deleted, "withdrawn");
                }
            }
        }
    }

    fn told(&mut self, address: IpAddr, outcome: Result<(), announce::RouteError>, done: &'static str) {
        match outcome {
            Ok(()) => {
                self.announcer.refused.remove(&address);
                tracing::info!(%address, "{done}");
            }
            Err(error) => {
                // Nothing is to be done at once about what was refused.
                drop(self.announcer.plan.apply(Event::Refused(address), Instant::now()));
                if self.announcer.refused.insert(address) {
                    tracing::error!(%address, %error, "not {done}; tried again every second");
                }
            }
        }
    }

    /// Has the data plane say when packets meet all that it was told.
    fn settle(&self, ticket: u64) {
        let (settled, words) = (self.worker.settled(), self.announcer.words.clone());
        tokio::spawn(async move {
            let word = if settled.await.is_ok() {
                Word::Settled(ticket)
            } else {
                // It tries again by itself what the kernel refused.
                tokio::time::sleep(SETTLE_RETRY).await;
                Word::Unsettled(ticket)
            };
            // Closed: the daemon ends.
            let _ = words.send(word).await;
        });
    }

    /// At a real end: the routes first, and the data plane when the routers have heard of it.
    pub(super) async fn withdraw_all(&mut self) {
        let wishes = self.announcer.wishes.take();
        let any =
            wishes.iter().flat_map(BTreeMap::keys).any(|&address| self.route(address) == Some(RouteState::Announced));
        self.announcing(Event::Wishes(BTreeMap::new())).await;
        if any {
            tracing::info!(linger = ?self.announcer.linger, "withdrawn; packets are still forwarded");
            tokio::time::sleep(self.announcer.linger).await;
        }
    }

    fn route(&self, address: IpAddr) -> Option<RouteState> {
        self.announcer.plan.state(address, Instant::now())
    }

    /// What `lbctl vip list` says of the route of a VIP.
    pub(super) fn with_route(&self, row: VipRow, service: &Service, now: Instant) -> VipRow {
        let state = Some(service).filter(|service| service.config.announce_by().route);
        let state = state.map(|service| {
            // One that nothing is planned for: the node is on standby.
            self.announcer.plan.state(service.config.key().address, now).unwrap_or(RouteState::Withdrawn)
        });
        let until = match state {
            Some(RouteState::Held(until)) => {
                Timestamp::try_from(SystemTime::now() + until.saturating_duration_since(now)).ok()
            }
            _ => None,
        };
        let route = state.map(|state| match state {
            RouteState::Announced => Route::Announced,
            RouteState::Pending => Route::Pending,
            RouteState::Held(_) => Route::Held,
            RouteState::Refused => Route::Refused,
            RouteState::Withdrawn => Route::Withdrawn,
        });
        VipRow { route, route_held_until: until, ..row }
    }
}

//! The routes of VIPs that can serve: what the plan says is carried out here.

use super::{Daemon, Error, io};
use crate::{
    admin::check_reason,
    announce::{self, Change, Claim, Event, Plan, RouteState, Routes, Step, Wish},
    config::Announce,
    data_plane::Attached,
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
    _claim: Claim,
    linger: Duration,
    pub(super) words: mpsc::Sender<Word>,
    /// Addresses that packets met already when this daemon began.
    inherited: BTreeSet<IpAddr>,
    /// What was wished last; nothing yet.
    wishes: Option<BTreeMap<IpAddr, Wish>>,
    /// The kernel's routes are to be listed again.
    unlisted: bool,
    /// The last time it refused.
    unknown: bool,
    /// The daemon ends: nothing is announced any more.
    ending: bool,
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
        let claim = Claim::of(announce.table(), announce.protocol())?;
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
        // Where no packet meets it, nothing was left.
        let met = inheritance.vips.keys().filter(|_| inheritance.attached);
        let announcer = Self {
            plan: Plan::new(announce.hold_down(), left),
            routes,
            _claim: claim,
            linger: announce.linger(),
            words,
            inherited: met.map(|vip| vip.address).collect(),
            wishes: None,
            unlisted: false,
            unknown: false,
            ending: false,
            refused: BTreeSet::new(),
        };
        Ok((announcer, heard))
    }

    /// How long packets are still forwarded after all is withdrawn.
    pub(super) fn linger(&self) -> Duration {
        self.linger
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
        if self.node.state == NodeState::Standby || self.announcer.ending {
            return wishes;
        }
        for service in self.core.services().filter(|service| service.config.announce_by().route) {
            let address = service.config.key().address;
            let wish = match (self.attached.is_empty(), self.core.can_serve(service)) {
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
                // Listed at the next tick: somebody who goes on changing them must not keep the daemon busy.
                self.announcer.unlisted |= self.announcer.plan.is_news(address, ours, added);
            }
            Word::Changed(Change::Lost) => self.announcer.unlisted = true,
            Word::Blind => return Err(Error::Ended("watching the announced routes")),
        }
        Ok(())
    }

    /// When this returns without an error, it is kept, and a node on standby announces nothing. Standby is carried out even if it
    /// cannot be kept.
    pub(super) async fn order_node(&mut self, NodeOrder { state, reason }: NodeOrder) -> Result<NodeRow, String> {
        reason.as_deref().map_or(Ok(()), check_reason)?;
        let before = Some(&self.node).filter(|before| before.state == state);
        let since = before.and_then(|before| before.since).or_else(|| Some(Timestamp::now()));
        let reason = reason.or_else(|| before.and_then(|before| before.reason.clone()));
        let node = NodeRow { state, reason, since };
        let kept = crate::node::save(&self.options.state_dir, &node);
        if let (NodeState::Active, Err(error)) = (state, &kept) {
            return Err(format!("not kept, so not done: {error}"));
        }
        tracing::info!(after = state.name(), reason = node.reason.as_deref().unwrap_or_default(), "node");
        self.node = node;
        self.announce().await;
        let gone = if state == NodeState::Standby { self.all_gone().await } else { Ok(()) };
        let kept = kept.map_err(|error| format!("on standby, but not kept, so not after a restart of lbd: {error}"));
        match (kept, gone) {
            (Ok(()), Ok(())) => Ok(self.node.clone()),
            (Err(unkept), Err(left)) => Err(format!("{unkept}; {left}")),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// Asks the kernel whether a route of ours is left.
    pub(super) async fn all_gone(&mut self) -> Result<(), String> {
        for again in [true, false] {
            let listed = self.announcer.routes.list().await;
            let left = listed.map_err(|error| format!("whether a route is left is not known: {error}"))?;
            if left.is_empty() {
                return Ok(());
            }
            if !again {
                return Err(format!("these routes are still there, the log says why: {left:?}"));
            }
            // Somebody else may have added it.
            self.announcing(Event::Listed(left)).await;
        }
        Ok(())
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
        let before = std::mem::replace(&mut self.announcer.unknown, listed.is_err());
        self.announcer.unlisted = listed.is_err();
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

    /// A real end begins: the routes first, and the data plane when the routers have heard of it, which is so after this time.
    pub(super) async fn withdraw_all(&mut self) -> Duration {
        let any = self.announcer.plan.routes().next().is_some();
        self.announcer.ending = true;
        self.announce().await;
        if !any {
            return Duration::ZERO;
        }
        tracing::info!(linger = ?self.announcer.linger, "withdrawn; packets are still forwarded");
        self.announcer.linger
    }

    /// No packet is to be sent to where none is forwarded.
    pub(super) async fn withdraw_unless_attached(&mut self) {
        match self.worker.is_attached().await {
            Ok(true) => return,
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "it is not known whether packets meet a program"),
        }
        tracing::error!("XDP is attached to no device: nothing is announced");
        self.withdraw_all().await;
        if let Err(left) = self.all_gone().await {
            tracing::error!("{left}");
        }
    }

    /// Looks whether the devices of the program are there still, when the kernel has told of a change.
    ///
    /// # Errors
    /// None is: the next lbd attaches to their successors.
    pub(super) async fn look_at_links(&mut self) -> Result<(), Error> {
        let is_gone = |attached: &Attached| !attached.is_there();
        if !self.attached.iter().any(is_gone) {
            return Ok(());
        }
        if self.attached.iter().all(is_gone) {
            // One that was renamed has its program still.
            if matches!(self.worker.is_attached().await, Ok(true)) {
                return Ok(());
            }
            self.attached.clear();
            self.withdraw_unless_attached().await;
            return Err(Error::Ended("every device that XDP was attached to"));
        }
        for gone in self.attached.extract_if(.., |attached| is_gone(attached)) {
            tracing::error!(interface = gone.interface, "the device that XDP was attached to is gone");
        }
        Ok(())
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
            RouteState::Stays => Route::Stays,
        });
        VipRow { route, route_held_until: until, ..row }
    }
}

//! Which routes are to be there, and what is to be done about those that are not so. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::{Duration, Instant},
};

/// What the kernel has refused is tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// What is to become of the route of an address. Of several, the greatest is decisive: a route is for all services of
/// its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wish {
    /// Nothing serves there.
    Withdraw,
    /// Not known yet, while packets meet what an earlier daemon left: its route stays, or its absence.
    Keep,
    /// Some service serves there.
    Announce,
}

/// Something that happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// What is wished of all addresses that may be announced at all.
    Wishes(BTreeMap<IpAddr, Wish>),
    /// Packets meet all that the data plane was told before [`Step::Settle`] with this number.
    Settled(u64),
    /// These routes of ours the kernel has.
    Listed(BTreeSet<IpAddr>),
    /// The kernel refused to add or delete this one.
    Refused(IpAddr),
    /// Time passed.
    Tick,
}

/// Something to do, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Add a route; it is not there.
    Add(IpAddr),
    /// Delete a route of ours.
    Delete(IpAddr),
    /// Say with this number when packets meet all that the data plane was told until now.
    Settle(u64),
    /// Say that somebody has deleted this route of ours.
    Vanished(IpAddr),
    /// Say that somebody has added this route with our protocol number.
    Appeared(IpAddr),
}

/// How it stands with the route of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteState {
    /// It is there.
    Announced,
    /// It will be, once packets meet the VIP; at the start: once that is known.
    Pending,
    /// It can serve again, but not for long enough yet: it will be there at this time if it goes on so.
    Held(Instant),
    /// It should be there, and the kernel refuses it.
    Refused,
    /// It cannot serve.
    Withdrawn,
    /// It should be gone, and the kernel refuses to delete it.
    Stays,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// It could not serve since it was configured.
    Out,
    /// What is there stays.
    Kept,
    /// It can serve. It is announced when the data plane has settled and not before this time.
    Waiting { ticket: Option<u64>, until: Instant },
    /// Announced.
    In,
    /// Withdrawn after it could serve.
    Down,
}

/// The routes: those that should be there, and those that are.
#[derive(Clone, Debug)]
pub struct Plan {
    hold_down: Duration,
    stages: BTreeMap<IpAddr, Stage>,
    /// Those of ours in the kernel, as far as we know.
    routes: BTreeSet<IpAddr>,
    /// Not to be tried again before these times.
    refused: BTreeMap<IpAddr, Instant>,
    ticket: u64,
}

impl Plan {
    /// Nothing is announced, and these routes an earlier daemon has left.
    #[must_use]
    pub fn new(hold_down: Duration, routes: BTreeSet<IpAddr>) -> Self {
        Self { hold_down, stages: BTreeMap::new(), routes, refused: BTreeMap::new(), ticket: 0 }
    }

    /// Takes the hold-down of a new configuration; what is held already is held as long as it was to be.
    pub fn set_hold_down(&mut self, hold_down: Duration) {
        self.hold_down = hold_down;
    }

    /// Takes an event and says what is to be done. What it says is taken for done, unless [`Event::Refused`] follows.
    pub fn apply(&mut self, event: Event, now: Instant) -> Vec<Step> {
        let mut steps = Vec::new();
        match event {
            Event::Wishes(wishes) => steps.extend(self.wish(&wishes, now)),
            Event::Settled(ticket) => self.settled(ticket),
            Event::Listed(routes) => steps.extend(self.listed(routes)),
            Event::Refused(address) => self.refused(address, now),
            Event::Tick => {}
        }
        for stage in self.stages.values_mut() {
            if matches!(stage, Stage::Waiting { ticket: None, until } if *until <= now) {
                *stage = Stage::In;
            }
        }
        steps.extend(self.mend(now));
        steps
    }

    /// Whether it matters that a route of this address was added or deleted: not if that is what we did ourselves.
    #[must_use]
    pub fn is_news(&self, address: IpAddr, ours: bool, added: bool) -> bool {
        // One of another protocol may have taken the place of ours.
        self.routes.contains(&address) != (ours && added)
    }

    /// How it stands with an address; `None`: it is not one that may be announced, and has no route.
    #[must_use]
    pub fn state(&self, address: IpAddr, now: Instant) -> Option<RouteState> {
        let there = self.routes.contains(&address);
        let Some(stage) = self.stages.get(&address) else { return there.then_some(RouteState::Stays) };
        Some(match *stage {
            Stage::In | Stage::Kept if there => RouteState::Announced,
            _ if there => RouteState::Stays,
            Stage::In => RouteState::Refused,
            Stage::Waiting { until, .. } if until > now => RouteState::Held(until),
            Stage::Waiting { .. } | Stage::Kept => RouteState::Pending,
            Stage::Out | Stage::Down => RouteState::Withdrawn,
        })
    }

    /// The routes of ours in the kernel, as far as is known.
    pub fn routes(&self) -> impl Iterator<Item = IpAddr> {
        self.routes.iter().copied()
    }

    fn wish(&mut self, wishes: &BTreeMap<IpAddr, Wish>, now: Instant) -> Option<Step> {
        self.stages.retain(|address, _| wishes.contains_key(address));
        let next = self.ticket + 1;
        let waiting = |until| Stage::Waiting { ticket: Some(next), until };
        for (&address, wish) in wishes {
            let stage = self.stages.entry(address).or_insert(Stage::Out);
            *stage = match (*stage, wish) {
                (Stage::Out, Wish::Keep) => Stage::Kept,
                (Stage::Out, Wish::Withdraw) => Stage::Out,
                // Routers know it already: taking it back until the data plane has settled would tell them twice.
                (Stage::Kept, Wish::Announce) if self.routes.contains(&address) => Stage::In,
                (Stage::Out | Stage::Kept, Wish::Announce) => waiting(now),
                (Stage::Down, Wish::Announce) => waiting(now + self.hold_down),
                (Stage::Kept | Stage::Waiting { .. } | Stage::In | Stage::Down, Wish::Withdraw) => Stage::Down,
                (stage @ (Stage::Kept | Stage::Waiting { .. } | Stage::In | Stage::Down), Wish::Keep)
                | (stage @ (Stage::Waiting { .. } | Stage::In), Wish::Announce) => stage,
            };
        }
        let asks = |stage: &Stage| matches!(stage, Stage::Waiting { ticket, .. } if *ticket == Some(next));
        self.stages.values().any(asks).then(|| {
            self.ticket = next;
            Step::Settle(next)
        })
    }

    fn settled(&mut self, settled: u64) {
        for stage in self.stages.values_mut() {
            if let Stage::Waiting { ticket, .. } = stage {
                *ticket = ticket.filter(|&asked| asked > settled);
            }
        }
    }

    fn listed(&mut self, routes: BTreeSet<IpAddr>) -> Vec<Step> {
        let vanished = self.routes.difference(&routes).map(|&address| Step::Vanished(address));
        let appeared = routes.difference(&self.routes).map(|&address| Step::Appeared(address));
        let steps = vanished.chain(appeared).collect();
        self.routes = routes;
        steps
    }

    /// It is not known what the kernel has: it was to be added and is not there, or to be deleted and is.
    fn refused(&mut self, address: IpAddr, now: Instant) {
        if !self.routes.remove(&address) {
            self.routes.insert(address);
        }
        self.refused.insert(address, now + RETRY);
    }

    /// What makes the kernel's routes those that should be there.
    fn mend(&mut self, now: Instant) -> Vec<Step> {
        self.refused.retain(|_, until| *until > now);
        let keeps = |address: &&IpAddr| matches!(self.stages.get(*address), Some(Stage::In | Stage::Kept));
        let delete = self.routes.iter().filter(|address| !keeps(address)).map(|&address| Step::Delete(address));
        let missing = |(address, stage): &(&IpAddr, &Stage)| **stage == Stage::In && !self.routes.contains(address);
        let add = self.stages.iter().filter(missing).map(|(&address, _)| Step::Add(address));
        let steps: Vec<_> = delete.chain(add).filter(|step| !self.rests(*step)).collect();
        for step in &steps {
            match step {
                Step::Add(address) => drop(self.routes.insert(*address)),
                Step::Delete(address) => drop(self.routes.remove(address)),
                Step::Settle(_) | Step::Vanished(_) | Step::Appeared(_) => {}
            }
        }
        steps
    }

    fn rests(&self, step: Step) -> bool {
        matches!(step, Step::Add(address) | Step::Delete(address) if self.refused.contains_key(&address))
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;

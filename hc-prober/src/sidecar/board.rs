//! Where each real of each service stands: all of its checks must pass.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::SystemTime,
};

use serde::{Serialize, Serializer};

use super::{Config, Name};
use crate::{CheckKey, Reason, Severity, State, Transition};

/// Where all reals stand.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// The last verdict of each check, and why.
    verdicts: HashMap<CheckKey, (State, Reason)>,
    reals: BTreeMap<(Name, IpAddr), Standing>,
}

#[derive(Clone, Debug)]
struct Standing {
    checks: Vec<CheckKey>,
    weight: u16,
    state: State,
}

/// A real of a service has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// When.
    #[serde(serialize_with = "rfc3339")]
    pub at: SystemTime,
    /// The service.
    #[serde(flatten)]
    pub name: Name,
    /// The real.
    pub real: IpAddr,
    /// Where it stood.
    pub before: State,
    /// Where it stands.
    pub state: State,
    /// `hard` or `soft` when it is down, else absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub severity: Option<&'static str>,
    /// Why: the reason of the check that decides.
    pub reason: Reason,
    /// The evidence, for people.
    pub detail: Option<String>,
    /// What the load balancer is to give it: its configured weight while it is up, else 0.
    pub weight: u16,
}

fn rfc3339<S: Serializer>(at: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_rfc3339_millis(*at))
}

impl Board {
    /// Takes a configuration. Reals that stay keep their standing, unless other checks now decide it: what changes by that
    /// is returned.
    pub fn configure(&mut self, config: &Config, now: SystemTime) -> Vec<Change> {
        let mut reals = BTreeMap::new();
        for service in &config.services {
            for real in &service.reals {
                let checks = service.checks.iter().map(|(spec, _)| service.key(spec, real.address)).collect();
                let known = self.reals.get(&(service.name, real.address));
                let state = known.map_or(State::Init, |standing| standing.state);
                reals.insert((service.name, real.address), Standing { checks, weight: real.weight, state });
            }
        }
        self.reals = reals;
        let wanted = config.checks();
        self.verdicts.retain(|key, _| wanted.iter().any(|check| check.key == *key));
        self.review(|_| true, now, None)
    }

    /// Takes a check's new verdict: the reals that it changes.
    pub fn apply(&mut self, transition: &Transition) -> Vec<Change> {
        self.verdicts.insert(transition.key.clone(), (transition.to, transition.reason));
        self.review(|checks| checks.contains(&transition.key), transition.at, transition.detail.as_deref())
    }

    /// How many reals are up, and how many there are.
    #[must_use]
    pub fn up_of_all(&self) -> (usize, usize) {
        (self.reals.values().filter(|standing| standing.state == State::Up).count(), self.reals.len())
    }

    fn review(&mut self, concerned: impl Fn(&[CheckKey]) -> bool, at: SystemTime, detail: Option<&str>) -> Vec<Change> {
        let mut changes = Vec::new();
        for (&(name, real), standing) in self.reals.iter_mut().filter(|(_, s)| concerned(&s.checks)) {
            let verdict = |key| self.verdicts.get(key).copied().unwrap_or_default();
            // Of equally grave ones the first in the file.
            let worst = standing.checks.iter().rev().map(verdict).max_by_key(|(state, _)| gravity(*state));
            let Some((state, reason)) = worst else {
                continue;
            };
            let before = std::mem::replace(&mut standing.state, state);
            if before != state {
                let weight = if state == State::Up { standing.weight } else { 0 };
                let (severity, detail) = (severity(state), detail.map(str::to_owned));
                changes.push(Change { at, name, real, before, state, severity, reason, detail, weight });
            }
        }
        changes
    }
}

/// Which of several verdicts decides: the gravest.
fn gravity(state: State) -> u8 {
    match state {
        State::Up => 0,
        State::Init => 1,
        State::Down(Severity::Soft) => 2,
        State::Down(Severity::Hard) => 3,
    }
}

fn severity(state: State) -> Option<&'static str> {
    match state {
        State::Down(Severity::Hard) => Some("hard"),
        State::Down(Severity::Soft) => Some("soft"),
        State::Up | State::Init => None,
    }
}

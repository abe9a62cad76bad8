//! Where each real of each service stands: all of its checks must pass.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    time::SystemTime,
};

use serde::{Serialize, Serializer};

use super::{Config, Name};
use crate::{CheckKey, Reason, Severity, State, Transition};

/// Where all reals stand.
#[derive(Clone, Debug, Default)]
pub struct Board {
    /// The last verdict of each check that is asked.
    verdicts: HashMap<CheckKey, Verdict>,
    reals: BTreeMap<(Name, IpAddr), Standing>,
}

#[derive(Clone, Debug, Default)]
struct Verdict {
    state: State,
    reason: Reason,
    detail: Option<String>,
}

#[derive(Clone, Debug)]
struct Standing {
    checks: Vec<CheckKey>,
    /// The configured one.
    weight: u16,
    state: State,
    /// What was told last.
    told: u16,
}

/// A real of a service has changed, or what it is to be given.
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
    /// Takes a configuration. What is known of reals that stay goes on, until all the checks they now have say otherwise; what
    /// changes by it is returned.
    pub fn configure(&mut self, config: &Config, now: SystemTime) -> Vec<Change> {
        let mut reals = BTreeMap::new();
        for service in &config.services {
            for real in &service.reals {
                let checks = service.checks.iter().map(|(spec, _)| service.key(spec, real.address)).collect();
                let known = self.reals.get(&(service.name, real.address));
                let (state, told) = known.map_or((State::Init, 0), |standing| (standing.state, standing.told));
                reals.insert((service.name, real.address), Standing { checks, weight: real.weight, state, told });
            }
        }
        self.reals = reals;
        let wanted: HashSet<_> = config.checks().into_iter().map(|check| check.key).collect();
        self.verdicts.retain(|key, _| wanted.contains(key));
        self.review(|_| true, now)
    }

    /// Takes a check's new verdict: the reals that it changes. One of a check that was removed a moment ago changes none.
    pub fn apply(&mut self, transition: &Transition) -> Vec<Change> {
        let Transition { key, to: state, reason, detail, at, .. } = transition;
        if !self.reals.values().any(|standing| standing.checks.contains(key)) {
            return Vec::new();
        }
        let verdict = Verdict { state: *state, reason: *reason, detail: detail.clone() };
        self.verdicts.insert(key.clone(), verdict);
        self.review(|checks| checks.contains(key), *at)
    }

    /// How many reals are up, and how many there are.
    #[must_use]
    pub fn up_of_all(&self) -> (usize, usize) {
        (self.reals.values().filter(|standing| standing.state == State::Up).count(), self.reals.len())
    }

    fn review(&mut self, concerned: impl Fn(&[CheckKey]) -> bool, at: SystemTime) -> Vec<Change> {
        let mut changes = Vec::new();
        for (&(name, real), standing) in self.reals.iter_mut().filter(|(_, s)| concerned(&s.checks)) {
            let before = standing.state;
            let verdict = decisive(&self.verdicts, &standing.checks);
            // A check that is new has nothing to say against what is known.
            if verdict.state != State::Init {
                standing.state = verdict.state;
            }
            let state = standing.state;
            let weight = if state == State::Up { standing.weight } else { 0 };
            if before != state || standing.told != weight {
                standing.told = weight;
                let Verdict { reason, detail, .. } = verdict;
                let severity = severity(state);
                changes.push(Change { at, name, real, before, state, severity, reason, detail, weight });
            }
        }
        changes
    }
}

/// The gravest verdict; of equally grave ones the first in the file.
fn decisive(verdicts: &HashMap<CheckKey, Verdict>, checks: &[CheckKey]) -> Verdict {
    let known = checks.iter().rev().map(|key| verdicts.get(key).cloned().unwrap_or_default());
    known.max_by_key(|verdict| verdict.state.gravity()).unwrap_or_default()
}

fn severity(state: State) -> Option<&'static str> {
    match state {
        State::Down(Severity::Hard) => Some("hard"),
        State::Down(Severity::Soft) => Some("soft"),
        State::Up | State::Init => None,
    }
}

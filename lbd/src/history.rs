//! What became of each check: its last transitions. In memory: a new daemon begins a new history. Pure.

use std::collections::{HashMap, VecDeque};

use hc_prober::{CheckKey, State, Transition};

/// So many transitions of each check are remembered: one that flaps pushes out none of another.
pub const DEPTH: usize = 32;

/// A transition, and what was found out about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What changed.
    pub transition: Transition,
    /// The code of the diagnosis of a check that went down.
    pub why: Option<String>,
}

/// The last transitions of each check.
#[derive(Debug, Default)]
pub struct History {
    checks: HashMap<CheckKey, VecDeque<Entry>>,
}

impl History {
    /// Takes note of a transition.
    pub fn record(&mut self, transition: Transition) {
        let entries = self.checks.entry(transition.key.clone()).or_default();
        if entries.len() == DEPTH {
            entries.pop_front();
        }
        entries.push_back(Entry { transition, why: None });
    }

    /// Takes note of why a check went down: of what was found out first. One that is up again by now has no use for it.
    pub fn explain(&mut self, key: &CheckKey, code: &str) {
        let last = self.checks.get_mut(key).and_then(VecDeque::back_mut);
        if let Some(entry) = last.filter(|entry| matches!(entry.transition.to, State::Down(_))) {
            entry.why.get_or_insert_with(|| code.to_owned());
        }
    }

    /// The last transitions of a check, oldest first.
    pub fn of(&self, key: &CheckKey) -> impl Iterator<Item = &Entry> {
        self.checks.get(key).into_iter().flatten()
    }

    /// Forgets the checks that are no longer made.
    pub fn retain(&mut self, is_checked: impl Fn(&CheckKey) -> bool) {
        self.checks.retain(|key, _| is_checked(key));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hc_prober::{Kind, Reason, Severity};
    use std::time::{Duration, SystemTime};

    fn key(port: u16) -> CheckKey {
        CheckKey::new([198, 18, 222, 11].into(), [198, 19, 10, 1].into(), Kind::Tcp { port })
    }

    fn transition(port: u16, second: u64, to: State) -> Transition {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        Transition { key: key(port), from: State::Init, to, reason: Reason::L4Ok, detail: None, rtt: None, at }
    }

    #[test]
    fn history_keeps_the_last_transitions_of_each_check() {
        let mut history = History::default();
        history.record(transition(443, 0, State::Up));
        (0..100).for_each(|second| history.record(transition(80, second, State::Up)));
        let seconds: Vec<_> = history.of(&key(80)).map(|entry| entry.transition.at).collect();
        assert_eq!(seconds, (68..100).map(|second| transition(80, second, State::Up).at).collect::<Vec<_>>());
        assert_eq!(history.of(&key(443)).count(), 1);
        history.retain(|key| key.kind != Kind::Tcp { port: 80 });
        assert_eq!((history.of(&key(80)).count(), history.of(&key(443)).count()), (0, 1));
    }

    #[test]
    fn diagnosis_explains_the_last_transition_if_that_is_to_down() {
        let mut history = History::default();
        history.explain(&key(80), "HOST_DOWN");
        history.record(transition(80, 0, State::Down(Severity::Hard)));
        history.explain(&key(80), "HOST_DOWN");
        history.explain(&key(80), "DECAP_MISSING");
        history.record(transition(80, 1, State::Up));
        history.explain(&key(80), "OK");
        let whys: Vec<_> = history.of(&key(80)).map(|entry| entry.why.as_deref()).collect();
        assert_eq!(whys, [Some("HOST_DOWN"), None]);
    }
}

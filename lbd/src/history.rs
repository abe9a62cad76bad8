//! What became of each check: its last transitions, those that an earlier daemon saw included. Pure; [`mod@file`] keeps it.

pub mod file;

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use hc_prober::{CheckKey, State, Transition};
use jiff::Timestamp;

/// So many transitions of each check are remembered: one that flaps pushes out none of another.
pub const DEPTH: usize = 32;

/// A transition, and what was found out about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When it happened.
    pub at: Timestamp,
    /// The verdict before.
    pub before: State,
    /// The verdict from then on.
    pub after: State,
    /// The code of the result that changed it.
    pub reason: String,
    /// The evidence, for people.
    pub detail: Option<String>,
    /// From the probe that changed it to its answer; `None`: it had none.
    pub rtt: Option<Duration>,
    /// The code of the diagnosis of a check that went down.
    pub why: Option<String>,
}

impl Entry {
    fn of(transition: Transition) -> Self {
        let Transition { key: _, from, to, reason, detail, rtt, at } = transition;
        let at = Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH);
        Self { at, before: from, after: to, reason: reason.code().to_owned(), detail, rtt, why: None }
    }
}

/// The last transitions of each check.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct History {
    checks: HashMap<CheckKey, VecDeque<Entry>>,
}

impl History {
    /// Takes note of a transition, and returns what was noted: nothing if a new daemon only finds what the one before it
    /// knew.
    pub fn record(&mut self, transition: Transition) -> Option<&Entry> {
        let entries = self.checks.entry(transition.key.clone()).or_default();
        let entry = Entry::of(transition);
        let goes_on = entry.before == State::Init && entries.back().is_some_and(|last| last.after == entry.after);
        (!goes_on).then(|| push(entries, entry))
    }

    /// Takes note of why a check went down: of what was found out first. One that is up again by now has no use for it.
    /// Returns what was noted anew.
    pub fn explain(&mut self, key: &CheckKey, code: &str) -> Option<&Entry> {
        let last = self.checks.get_mut(key).and_then(VecDeque::back_mut);
        let entry = last.filter(|entry| matches!(entry.after, State::Down(_)) && entry.why.is_none())?;
        entry.why = Some(code.to_owned());
        Some(entry)
    }

    /// Takes what an earlier daemon noted, oldest first; told again, with what was found out since, it is the same.
    fn recall(&mut self, key: &CheckKey, entry: Entry) {
        let entries = self.checks.entry(key.clone()).or_default();
        match entries.back_mut().filter(|last| last.at == entry.at) {
            Some(last) => *last = entry,
            None => drop(push(entries, entry)),
        }
    }

    /// The last transitions of a check, oldest first.
    pub fn of(&self, key: &CheckKey) -> impl Iterator<Item = &Entry> {
        self.checks.get(key).into_iter().flatten()
    }

    /// Since when a check is in this state, if its last transition led there: perhaps since before this daemon started.
    #[must_use]
    pub fn since(&self, key: &CheckKey, state: State) -> Option<Timestamp> {
        let last = self.checks.get(key)?.back()?;
        (last.after == state).then_some(last.at)
    }

    /// Forgets the checks that are no longer made; whether there were any.
    pub fn retain(&mut self, is_checked: impl Fn(&CheckKey) -> bool) -> bool {
        let before = self.checks.len();
        self.checks.retain(|key, _| is_checked(key));
        self.checks.len() != before
    }

    fn iter(&self) -> impl Iterator<Item = (&CheckKey, &Entry)> {
        self.checks.iter().flat_map(|(key, entries)| entries.iter().map(move |entry| (key, entry)))
    }
}

fn push(entries: &mut VecDeque<Entry>, entry: Entry) -> &Entry {
    if entries.len() == DEPTH {
        entries.pop_front();
    }
    entries.push_back_mut(entry)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hc_prober::{Kind, Reason, Severity};
    use std::time::SystemTime;

    pub(super) const DOWN: State = State::Down(Severity::Hard);

    pub(super) fn key(port: u16) -> CheckKey {
        CheckKey::new([198, 18, 222, 11].into(), [198, 19, 10, 1].into(), Kind::Tcp { port })
    }

    pub(super) fn transition(port: u16, second: u64, from: State, to: State) -> Transition {
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
        Transition { key: key(port), from, to, reason: Reason::L4Ok, detail: None, rtt: None, at }
    }

    #[test]
    fn history_keeps_the_last_transitions_of_each_check() {
        let mut history = History::default();
        history.record(transition(443, 0, State::Init, State::Up));
        for second in 0..100 {
            let states = if second % 2 == 0 { [State::Up, DOWN] } else { [DOWN, State::Up] };
            assert!(history.record(transition(80, second, states[0], states[1])).is_some());
        }
        let seconds: Vec<_> = history.of(&key(80)).map(|entry| entry.at.as_second()).collect();
        assert_eq!(seconds, (68..100).collect::<Vec<_>>());
        assert_eq!(history.of(&key(443)).count(), 1);
        assert!(history.retain(|key| key.kind != Kind::Tcp { port: 80 }) && !history.retain(|_| true));
        assert_eq!((history.of(&key(80)).count(), history.of(&key(443)).count()), (0, 1));
    }

    #[test]
    fn diagnosis_explains_the_last_transition_if_that_is_to_down() {
        let mut history = History::default();
        assert_eq!(history.explain(&key(80), "HOST_DOWN"), None);
        history.record(transition(80, 0, State::Up, DOWN));
        assert!(history.explain(&key(80), "HOST_DOWN").is_some());
        assert_eq!(history.explain(&key(80), "DECAP_MISSING"), None);
        history.record(transition(80, 1, DOWN, State::Up));
        assert_eq!(history.explain(&key(80), "OK"), None);
        let whys: Vec<_> = history.of(&key(80)).map(|entry| entry.why.as_deref()).collect();
        assert_eq!(whys, [Some("HOST_DOWN"), None]);
    }

    #[test]
    fn first_verdict_of_a_new_daemon_is_news_only_if_it_is_another() {
        let mut history = History::default();
        history.record(transition(80, 10, State::Init, State::Up));
        assert_eq!(history.record(transition(80, 20, State::Init, State::Up)), None);
        let since = |history: &History, state| history.since(&key(80), state).map(Timestamp::as_second);
        assert_eq!((since(&history, State::Up), since(&history, DOWN)), (Some(10), None));
        assert!(history.record(transition(80, 30, State::Init, DOWN)).is_some());
        assert_eq!((since(&history, State::Up), since(&history, DOWN)), (None, Some(30)));
    }
}

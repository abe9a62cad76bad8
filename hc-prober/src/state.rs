//! The verdict: a pure function of the verdict so far and the next result.

use crate::report::{Severity, State};

/// A probe's result, as far as the verdict is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The right answer.
    Pass,
    /// No answer or the wrong one.
    Fail(Severity),
    /// Nothing was learnt.
    Unknown,
}

/// How many results in a row make a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Passes that make UP.
    pub rise: u32,
    /// Failures that make DOWN.
    pub fall: u32,
}

/// A verdict and the results in a row that may overturn it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Machine {
    /// The verdict.
    pub state: State,
    /// Passes in a row.
    pub rise: u32,
    /// Failures in a row.
    pub fall: u32,
    /// The last failures in a row that were equally severe.
    alike: Option<(Severity, u32)>,
}

impl Machine {
    /// The machine after one more result.
    #[must_use]
    pub fn step(self, event: Event, limits: Limits) -> Self {
        match (self.state, event) {
            (State::Init | State::Up | State::Down(_), Event::Unknown) => self,
            (State::Up, Event::Pass) => self.passed(),
            (State::Init | State::Down(_), Event::Pass) => {
                let next = self.passed();
                if next.rise >= limits.rise { Self { state: State::Up, ..next } } else { next }
            }
            (State::Init | State::Up, Event::Fail(severity)) => {
                let next = self.failed(severity);
                if next.fall >= limits.fall { Self { state: State::Down(severity), ..next } } else { next }
            }
            // A verdict of DOWN also says how; to change that takes as many failures as to reach it.
            (State::Down(_), Event::Fail(severity)) => {
                let next = self.failed(severity);
                let alike = next.alike.map_or(0, |(_, count)| count);
                if alike >= limits.fall { Self { state: State::Down(severity), ..next } } else { next }
            }
        }
    }

    /// Whether results are on the way to another verdict: then probes follow each other faster.
    #[must_use]
    pub fn pending(self) -> bool {
        match self.state {
            State::Init => true,
            State::Up => self.fall > 0,
            State::Down(severity) => self.rise > 0 || self.alike.is_some_and(|(last, _)| last != severity),
        }
    }

    fn passed(self) -> Self {
        Self { state: self.state, rise: self.rise.saturating_add(1), fall: 0, alike: None }
    }

    fn failed(self, severity: Severity) -> Self {
        let alike = match self.alike {
            Some((last, count)) if last == severity => count.saturating_add(1),
            Some(_) | None => 1,
        };
        Self { state: self.state, rise: 0, fall: self.fall.saturating_add(1), alike: Some((severity, alike)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => Just(Event::Pass),
            3 => Just(Event::Fail(Severity::Hard)),
            2 => Just(Event::Fail(Severity::Soft)),
            1 => Just(Event::Unknown),
        ]
    }

    /// Results at the end of `history` that satisfy `wanted`, those that say nothing left out.
    fn tail(history: &[Event], wanted: impl Fn(Event) -> bool) -> usize {
        history.iter().rev().filter(|e| **e != Event::Unknown).take_while(|e| wanted(**e)).count()
    }

    proptest! {
        #[test]
        fn verdict_changes_exactly_when_enough_results_in_a_row_demand_it(
            events in prop::collection::vec(event(), 0..200), rise in 1_u32..6, fall in 1_u32..6,
        ) {
            let mut machine = Machine::default();
            for (n, event) in events.iter().enumerate() {
                let history = &events[..=n];
                let before = machine.state;
                machine = machine.step(*event, Limits { rise, fall });
                let passes = tail(history, |e| e == Event::Pass);
                let failures = tail(history, |e| matches!(e, Event::Fail(_)));
                let alike = tail(history, |e| e == *event);
                let expected = match (before, event) {
                    (State::Init | State::Down(_), Event::Pass) if passes >= rise as usize => State::Up,
                    (State::Init | State::Up, Event::Fail(s)) if failures >= fall as usize => State::Down(*s),
                    (State::Down(_), Event::Fail(s)) if alike >= fall as usize => State::Down(*s),
                    _ => before,
                };
                prop_assert_eq!(machine.state, expected);
                prop_assert_eq!((machine.rise as usize, machine.fall as usize), (passes, failures));
            }
        }
    }

    #[test]
    fn init_is_pending_and_a_standing_verdict_is_not() {
        let limits = Limits { rise: 2, fall: 3 };
        let fresh = Machine::default();
        assert!(fresh.pending());
        let up = fresh.step(Event::Pass, limits).step(Event::Pass, limits);
        assert!(up.state == State::Up && !up.pending());
        assert!(up.step(Event::Fail(Severity::Hard), limits).pending());
    }

    #[test]
    fn down_soft_then_silent_becomes_hard_after_fall() {
        let limits = Limits { rise: 2, fall: 2 };
        let soft = (0..2).fold(Machine::default(), |m, _| m.step(Event::Fail(Severity::Soft), limits));
        assert_eq!(soft.state, State::Down(Severity::Soft));
        let once = soft.step(Event::Fail(Severity::Hard), limits);
        assert_eq!((once.state, once.pending()), (State::Down(Severity::Soft), true));
        assert_eq!(once.step(Event::Fail(Severity::Hard), limits).state, State::Down(Severity::Hard));
    }
}

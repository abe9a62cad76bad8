//! A real that comes and goes: after too many falls its checks must pass for longer before it is UP again. Pure.
//!
//! ```text
//!          checks fail: a fall                    the last falls are few
//!   UP ─────────────────────▶ DOWN ── checks pass ─────────────────────────▶ UP
//!                              ▲  │        too many
//!                              │  └──────────────────▶ held ── its time passes ──▶ UP
//!                              └──── checks fail ───────┘
//! ```

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// The most falls that a limit may allow.
pub const MOST: u16 = 100;
/// So many falls are remembered; what doubles with each beyond the limit has long reached its end.
const KEPT: usize = MOST as usize + 32;

/// When a real is held down, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// What the first fall beyond the limit costs; each further one doubles it. Zero: nothing is held down.
    pub hold: Duration,
    /// The most that it may cost.
    pub longest: Duration,
    /// So many falls within the window cost nothing.
    pub limit: u16,
    /// Falls longer ago are forgiven.
    pub window: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        let (longest, window) = (Duration::from_mins(10), Duration::from_mins(10));
        Self { hold: Duration::ZERO, longest, limit: 3, window }
    }
}

impl Policy {
    /// For how long checks must pass after so many falls within the window.
    fn hold_after(&self, falls: usize) -> Duration {
        let Some(beyond) = falls.checked_sub(usize::from(self.limit) + 1) else { return Duration::ZERO };
        let doubled = u32::try_from(beyond).ok().and_then(|beyond| 2_u32.checked_pow(beyond));
        let hold = doubled.and_then(|times| self.hold.checked_mul(times)).unwrap_or(Duration::MAX);
        if self.hold.is_zero() { self.hold } else { hold.min(self.longest) }
    }
}

/// A real is held down.
#[derive(Clone, Copy, Debug)]
struct Hold {
    since: Instant,
    until: Instant,
}

/// The falls of a real, and whether it is held down.
#[derive(Clone, Debug, Default)]
pub struct Flaps {
    falls: VecDeque<Instant>,
    total: u64,
    held: Option<Hold>,
    /// When its state was entered, where that is not when its checks came to their verdict.
    since: Option<Instant>,
}

impl Flaps {
    /// It was UP, and its checks fail.
    pub fn fell(&mut self, now: Instant) {
        if self.falls.len() == KEPT {
            self.falls.pop_front();
        }
        self.falls.push_back(now);
        self.total = self.total.saturating_add(1);
        self.since = None;
    }

    /// It was DOWN, and its checks pass: true if it is UP, false if it is held down. One that is needed is not.
    pub fn passes(&mut self, policy: &Policy, needed: bool, now: Instant) -> bool {
        let hold = if needed { Duration::ZERO } else { policy.hold_after(self.recent(policy.window, now)) };
        self.held = (!hold.is_zero()).then(|| Hold { since: now, until: now + hold });
        self.since = self.held.and_then(|_| self.since.or_else(|| self.falls.back().copied()));
        self.held.is_none()
    }

    /// Its checks fail although it was not UP: nothing is held any more, and this is no fall.
    pub fn fails(&mut self, now: Instant) {
        self.end(now);
    }

    /// It is held no longer; true if it was.
    pub fn release(&mut self, now: Instant) -> bool {
        let was_held = self.end(now);
        if was_held {
            self.since = Some(now);
        }
        was_held
    }

    /// Takes a new policy: a hold under way may end earlier by it, not later.
    pub fn reprice(&mut self, policy: &Policy) {
        if let Some(Hold { since, until }) = self.held {
            let hold = policy.hold_after(self.recent(policy.window, since));
            self.held = Some(Hold { since, until: until.min(since + hold) });
        }
    }

    /// While it was held its falls did not age: a long hold would make the next one shorter.
    fn end(&mut self, now: Instant) -> bool {
        let Some(Hold { since, until }) = self.held.take() else { return false };
        let held = until.min(now).saturating_duration_since(since);
        self.falls.iter_mut().for_each(|fall| *fall += held);
        true
    }

    /// Until when it is held, if it is.
    #[must_use]
    pub fn held_until(&self) -> Option<Instant> {
        self.held.map(|hold| hold.until)
    }

    /// When its state was entered, if that is not when its checks came to their verdict.
    #[must_use]
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// How often it fell in this time, up to 132 times. That in which it was held down does not count.
    #[must_use]
    pub fn recent(&self, window: Duration, now: Instant) -> usize {
        let now = self.held.map_or(now, |hold| hold.since);
        self.falls.iter().rev().take_while(|fall| now.saturating_duration_since(**fall) < window).count()
    }

    /// How often it fell.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn policy(hold: u64, longest: u64, limit: u16, window: u64) -> Policy {
        Policy {
            hold: SECOND * u32::try_from(hold).unwrap(),
            longest: Duration::from_secs(longest),
            limit,
            window: Duration::from_secs(window),
        }
    }

    #[test]
    fn hold_doubles_with_each_fall_beyond_the_limit_up_to_the_longest() {
        let policy = policy(30, 300, 3, 600);
        let holds: Vec<_> = (0..10).map(|falls| policy.hold_after(falls).as_secs()).collect();
        assert_eq!(holds, [0, 0, 0, 0, 30, 60, 120, 240, 300, 300]);
        assert_eq!(policy.hold_after(usize::MAX), policy.longest);
        assert_eq!(Policy::default().hold_after(1000), Duration::ZERO, "off unless it is asked for");
    }

    #[test]
    fn held_real_has_been_down_since_its_last_fall_and_is_up_since_its_release() {
        let (start, mut flaps) = (Instant::now(), Flaps::default());
        flaps.fell(start);
        assert!(!flaps.passes(&policy(30, 300, 0, 600), false, start + SECOND));
        assert_eq!((flaps.held_until(), flaps.since()), (Some(start + 31 * SECOND), Some(start)));
        flaps.fails(start + 5 * SECOND);
        assert_eq!((flaps.held_until(), flaps.since(), flaps.total()), (None, Some(start), 1));
        flaps.release(start + 5 * SECOND);
        assert_eq!(flaps.since(), Some(start), "there was nothing to release");
        assert!(!flaps.passes(&policy(30, 300, 0, 600), false, start + 6 * SECOND));
        assert_eq!(flaps.since(), Some(start));
        flaps.release(start + 36 * SECOND);
        assert_eq!((flaps.held_until(), flaps.since()), (None, Some(start + 36 * SECOND)));
    }

    #[test]
    fn real_that_is_needed_after_a_hold_that_failed_is_up_since_its_checks_say_so() {
        let (start, mut flaps) = (Instant::now(), Flaps::default());
        flaps.fell(start);
        assert!(!flaps.passes(&policy(30, 300, 0, 600), false, start + SECOND));
        flaps.fails(start + 2 * SECOND);
        assert!(flaps.passes(&policy(30, 300, 0, 600), true, start + 3 * SECOND));
        assert_eq!(flaps.since(), None);
    }

    #[test]
    fn holds_of_a_real_that_falls_after_each_reach_the_longest_even_if_that_is_the_window() {
        let (mut now, mut flaps) = (Instant::now(), Flaps::default());
        let holds = (0..10).map(|_| {
            flaps.fell(now);
            let passed = now + SECOND;
            flaps.passes(&policy(30, 600, 3, 600), false, passed);
            let until = flaps.held_until().unwrap_or(passed);
            now = until + SECOND;
            flaps.release(now);
            (until - passed).as_secs()
        });
        assert_eq!(holds.collect::<Vec<_>>(), [0, 0, 0, 30, 60, 120, 240, 480, 600, 600]);
    }

    #[test]
    fn new_policy_makes_a_hold_shorter_and_never_longer() {
        let (start, mut flaps) = (Instant::now(), Flaps::default());
        flaps.fell(start);
        flaps.passes(&policy(30, 300, 0, 600), false, start);
        let until = |flaps: &Flaps| flaps.held_until().map(|until| (until - start).as_secs());
        flaps.reprice(&policy(60, 300, 0, 600));
        assert_eq!(until(&flaps), Some(30));
        flaps.reprice(&policy(10, 300, 0, 600));
        assert_eq!(until(&flaps), Some(10));
        flaps.reprice(&policy(10, 300, 1, 600));
        assert_eq!(until(&flaps), Some(0), "it did not fall too often");
    }

    /// What is said in docs/policies.md, over all that ever happened.
    #[derive(Default)]
    struct Model {
        up: bool,
        /// When it fell, by its clock.
        falls: Vec<u64>,
        /// Since when checks pass, and for how long they must.
        passing: Option<(u64, u64)>,
        /// For how long it was held down, that of now not included.
        held: u64,
    }

    impl Model {
        /// For how long it has been held down now.
        fn holding(&self, now: u64) -> u64 {
            self.passing.filter(|_| !self.up).map_or(0, |(since, needed)| needed.min(now - since))
        }

        fn step(&mut self, passes: bool, (hold, longest, limit, window): (u64, u64, u16, u64), now: u64) {
            let (holding, clock) = (self.holding(now), now - self.held - self.holding(now));
            if !passes {
                if self.up {
                    self.falls.push(clock);
                }
                (self.up, self.passing) = (false, None);
                self.held += holding;
                return;
            }
            let (since, needed) = *self.passing.get_or_insert_with(|| {
                let recent = self.falls.iter().filter(|fall| clock - **fall < window).count();
                let mut needed = if recent > usize::from(limit) { hold } else { 0 };
                for _ in usize::from(limit) + 1..recent {
                    needed = (needed * 2).min(longest);
                }
                (now, needed)
            });
            if !self.up && now >= since + needed {
                (self.up, self.held) = (true, self.held + needed);
            }
        }
    }

    proptest! {
        #[test]
        fn real_is_up_exactly_when_its_checks_have_passed_for_as_long_as_its_falls_ask_for(
            steps in prop::collection::vec((any::<bool>(), 0..40_u64), 0..150),
            hold in 0..20_u64, more in 0..100_u64, limit in 0..5_u16, window in 1..300_u64,
        ) {
            let longest = hold + more;
            let (start, policy) = (Instant::now(), policy(hold, longest, limit, window));
            let (mut model, mut flaps) = (Model { up: true, passing: Some((0, 0)), ..Model::default() }, Flaps::default());
            let (mut up, mut passing, mut at) = (true, true, 0);
            for (passes, wait) in steps {
                at += wait;
                let now = start + Duration::from_secs(at);
                if flaps.held_until().is_some_and(|until| now >= until) {
                    flaps.release(now);
                    up = true;
                }
                model.step(passing, (hold, longest, limit, window), at);
                prop_assert_eq!(up, model.up, "at {} s", at);
                match (up, passes) {
                    (true, false) => {
                        flaps.fell(now);
                        up = false;
                    }
                    (false, true) if !passing => up = flaps.passes(&policy, false, now),
                    (false, false) => flaps.fails(now),
                    (_, true) => {}
                }
                passing = passes;
                model.step(passes, (hold, longest, limit, window), at);
                prop_assert_eq!(up, model.up, "at {} s", at);
                prop_assert_eq!(flaps.total(), model.falls.len() as u64);
            }
        }
    }
}

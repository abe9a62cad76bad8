//! "Port unreachable" is rationed: what the silence of a UDP port is worth while its real refuses other probes.
//!
//! The kernel grants each peer one ICMP error a second and a burst of six (`net.ipv4.icmp_ratelimit`,
//! `inet_peer_xrlim_allow`), whichever ports the errors are about. All UDP checks of a real share that ration, so where
//! several ports are closed, most probes of a closed port meet silence. That silence looks like an open port's.

use std::{collections::VecDeque, time::Duration};

use crate::time::Monotonic;

/// After so long without an error the ration is never used up: a second by default, and what clocks and ways may differ.
const REFILL: Duration = Duration::from_millis(1400);

/// Refusals closer to each other are noted as one.
const SPACING: Duration = Duration::from_millis(100);

/// The least time that a port is held to be closed after it refused, whatever the ration.
const GRUDGE: Duration = Duration::from_secs(3);

/// A real's part of a ration, for each of its UDP checks, at the default rate.
const SHARE: Duration = Duration::from_secs(1);

/// With the ration used up, a closed port's probe is one of so many a second that compete for the one error. After this
/// many intervals for each competitor the odds that it never won are below one in ten thousand.
const ROUNDS: u32 = 5;

/// The interval at which that was reckoned; longer ones take longer.
const ROUND: Duration = Duration::from_secs(2);

/// The errors that one real has granted us.
#[derive(Clone, Debug, Default)]
pub struct Ration {
    /// The UDP checks that share it.
    pub checks: u32,
    /// When the first probe left that might have used it.
    first: Option<Monotonic>,
    /// When the probes left that it was spent on.
    spent: VecDeque<Monotonic>,
}

/// How long a check has not been refused, as its silent probe is judged.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// When the probe left.
    pub sent_at: Monotonic,
    /// When its silence is judged.
    pub now: Monotonic,
    /// When the same check was last refused.
    pub refused_at: Option<Monotonic>,
    /// Since when each of the check's probes that was sent met silence, and the echo alongside an answer.
    pub quiet_since: Monotonic,
    /// From one of the check's probes to the next.
    pub interval: Duration,
}

impl Ration {
    /// A UDP probe leaves.
    pub fn departed(&mut self, at: Monotonic) {
        self.first.get_or_insert(at);
    }

    /// The probe that left at `departure` was refused. Remembered for `memory`.
    pub fn refused(&mut self, departure: Monotonic, memory: Duration) {
        let is_old = |at: &Monotonic| departure.since(*at) > memory;
        while self.spent.front().is_some_and(is_old) {
            self.spent.pop_front();
        }
        if self.spent.back().is_none_or(|last| departure.since(*last) >= SPACING) {
            self.spent.push_back(departure);
        }
    }

    /// Whether the port would have refused, were it closed.
    #[must_use]
    pub fn proves_open(&self, silence: &Silence) -> bool {
        let Silence { sent_at, now, refused_at, quiet_since, interval } = *silence;
        let grudge = GRUDGE.max(SHARE * self.checks);
        if refused_at.is_some_and(|at| now.since(at) < grudge) {
            return false;
        }
        let odds = interval.max(ROUND) * ROUNDS * self.checks.max(1);
        self.was_left(sent_at) || now.since(quiet_since) >= odds
    }

    /// Whether an error was to be had for a probe that left at `at`.
    fn was_left(&self, at: Monotonic) -> bool {
        let from = at.before(REFILL + SPACING);
        // What was spent before our first probe, by a predecessor of ours, shows only in how soon it is granted again.
        let known = self.first.is_some_and(|first| first <= from);
        let until = if known { at + SPACING } else { Monotonic(u64::MAX) };
        !self.spent.iter().any(|spent| (from..=until).contains(spent))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Monotonic {
        Monotonic(1_000_000_000_000 + millis * 1_000_000)
    }

    fn silence(sent_at: Monotonic) -> Silence {
        let now = sent_at + Duration::from_secs(1);
        Silence { sent_at, now, refused_at: None, quiet_since: at(0), interval: ROUND }
    }

    fn ration(checks: u32) -> Ration {
        let mut ration = Ration { checks, ..Ration::default() };
        ration.departed(at(0));
        ration
    }

    #[test]
    fn silence_with_the_ration_unspent_proves_open() {
        let mut ration = ration(2);
        ration.refused(at(3000), Duration::from_secs(64));
        for (millis, proves) in [(2500, true), (3000, false), (4000, false), (4600, true)] {
            assert_eq!(ration.proves_open(&silence(at(millis))), proves, "{millis}");
        }
    }

    #[test]
    fn silence_soon_after_the_start_is_doubted_if_a_refusal_follows() {
        let mut ration = ration(2);
        assert!(ration.proves_open(&silence(at(100))));
        ration.refused(at(800), Duration::from_secs(64));
        assert!(!ration.proves_open(&silence(at(100))));
    }

    #[test]
    fn silence_of_a_check_that_was_refused_counts_after_its_share_at_the_earliest() {
        let refused = |checks, after: u64| {
            let silence = Silence { refused_at: Some(at(0)), now: at(after), ..silence(at(after - 1000)) };
            ration(checks).proves_open(&silence)
        };
        assert!(!refused(1, 2999) && refused(1, 3000));
        assert!(!refused(10, 9999) && refused(10, 10_000));
    }

    #[test]
    fn silence_with_the_ration_always_spent_counts_when_the_odds_are_against_chance() {
        let mut ration = ration(2);
        for second in 0..60 {
            ration.refused(at(second * 1000), Duration::from_secs(64));
        }
        assert!(!ration.proves_open(&silence(at(18_900))));
        assert!(ration.proves_open(&silence(at(19_000))));
    }
}

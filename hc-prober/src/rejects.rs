//! What to say of answers that were not believed: somebody may be forging them, or answers take longer than the timeout.

use std::{fmt, time::Duration};

use crate::{report::Counters, time::Monotonic};

/// From one line to the next, at least.
const PACE: Duration = Duration::from_mins(1);

/// So many answers since the last line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejects {
    /// Without the proof that only the probe's receiver can give.
    pub forged: u64,
    /// After the probe had its result.
    pub late: u64,
    /// Not understood.
    pub malformed: u64,
}

impl Rejects {
    fn of(counters: &Counters) -> Self {
        let Counters { forged, late, malformed, .. } = *counters;
        Self { forged, late, malformed }
    }
}

impl fmt::Display for Rejects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { forged, late, malformed } = self;
        write!(f, "{forged} forged, {late} late, {malformed} malformed")
    }
}

/// What has been said already.
#[derive(Debug, Default)]
pub struct Reporter {
    said: Rejects,
    at: Option<Monotonic>,
}

impl Reporter {
    /// What was rejected since the last line, if it is time for another and there is anything to say.
    pub fn news(&mut self, counters: &Counters, now: Monotonic) -> Option<Rejects> {
        let all = Rejects::of(counters);
        if all == self.said || self.at.is_some_and(|at| now.since(at) < PACE) {
            return None;
        }
        let Rejects { forged, late, malformed } = self.said;
        (self.said, self.at) = (all, Some(now));
        Some(Rejects { forged: all.forged - forged, late: all.late - late, malformed: all.malformed - malformed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_are_told_at_once_and_then_once_a_minute_with_all_since() {
        let mut reporter = Reporter::default();
        let start = Monotonic(1_000_000_000_000);
        let mut told = Vec::new();
        for second in 0..200_u32 {
            // Forged ones for a while, one a second; a late one at the start.
            let counters =
                Counters { forged: second.min(100).into(), late: u64::from(second > 0), ..Counters::default() };
            let news = reporter.news(&counters, start + second * Duration::from_secs(1));
            told.extend(news.map(|news| (second, news.to_string())));
        }
        let line = |second, text: &str| (second, text.to_owned());
        assert_eq!(
            told,
            [
                line(1, "1 forged, 1 late, 0 malformed"),
                line(61, "60 forged, 0 late, 0 malformed"),
                line(121, "39 forged, 0 late, 0 malformed")
            ]
        );
    }
}

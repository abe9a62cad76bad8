//! How late probes leave, in a histogram of fixed size.

use std::time::Duration;

use serde::{Serialize, Serializer, ser::SerializeStruct as _};

/// Each power of two of microseconds is divided in so many buckets.
const PARTS: usize = 1 << PART_BITS;
const PART_BITS: u32 = 3;

/// The last bucket ends after 71 minutes.
const BUCKETS: usize = PARTS * (u32::BITS - PART_BITS + 1) as usize;

/// How long after their time probes left. Below eight microseconds each has a bucket; above, a bucket is no wider than an
/// eighth of where it begins; the last one also counts those that were later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    buckets: [u64; BUCKETS],
    max_us: u64,
}

impl Default for Lag {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS], max_us: 0 }
    }
}

impl Lag {
    /// Counts a probe.
    pub fn record(&mut self, lag: Duration) {
        let us = u64::try_from(lag.as_micros()).unwrap_or(u64::MAX);
        self.max_us = self.max_us.max(us);
        if let Some(count) = self.buckets.get_mut(bucket(us).min(BUCKETS - 1)) {
            *count += 1;
        }
    }

    /// No more than this many of a hundred probes were later: microseconds, rounded up to the end of a bucket. 0 if there
    /// was no probe.
    #[must_use]
    pub fn percentile_us(&self, percent: u32) -> u64 {
        let total: u64 = self.buckets.iter().sum();
        let wanted = (u128::from(total) * u128::from(percent.min(100))).div_ceil(100);
        let mut seen = 0_u128;
        let enough = self.buckets.iter().position(|count| {
            seen += u128::from(*count);
            seen >= wanted
        });
        match enough {
            Some(bucket) if bucket < BUCKETS - 1 => end(bucket).min(self.max_us),
            Some(_) | None => self.max_us,
        }
    }

    /// How late the most belated probe was: microseconds.
    #[must_use]
    pub fn max_us(&self) -> u64 {
        self.max_us
    }

    /// What was counted after `earlier`. The maximum is not known as exactly: it is the end of the last bucket.
    #[must_use]
    pub fn after(&self, earlier: &Self) -> Self {
        let mut buckets = self.buckets;
        for (count, before) in buckets.iter_mut().zip(earlier.buckets) {
            *count = count.saturating_sub(before);
        }
        let last = buckets.iter().rposition(|count| *count > 0);
        let max_us = last.map_or(0, |bucket| if bucket < BUCKETS - 1 { end(bucket) } else { u64::MAX });
        Self { buckets, max_us: max_us.min(self.max_us) }
    }

    /// Probes counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Which bucket counts so many microseconds.
fn bucket(us: u64) -> usize {
    // By so many bits it is too long to be the number of a bucket of the first two rows.
    let shift = (u64::BITS - us.leading_zeros()).saturating_sub(PART_BITS + 1);
    let row = usize::try_from(shift).unwrap_or(0) * PARTS;
    row + usize::try_from(us >> shift).unwrap_or(0)
}

/// The last microsecond that a bucket counts.
fn end(bucket: usize) -> u64 {
    let shift = (bucket / PARTS).saturating_sub(1);
    let first = u64::try_from(bucket - shift * PARTS).unwrap_or(u64::MAX);
    ((first + 1) << shift) - 1
}

impl Serialize for Lag {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Lag", 3)?;
        fields.serialize_field("lag_p50_us", &self.percentile_us(50))?;
        fields.serialize_field("lag_p99_us", &self.percentile_us(99))?;
        fields.serialize_field("lag_max_us", &self.max_us)?;
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Never less than the truth, and at most an eighth more.
        #[test]
        fn percentile_is_the_end_of_the_true_ones_bucket(
            lags in prop::collection::vec(0_u64..=1 << 40, 1..200), percent in 1_u32..=100,
        ) {
            let mut lag = Lag::default();
            for us in &lags {
                lag.record(Duration::from_micros(*us));
            }
            let mut sorted = lags.clone();
            sorted.sort_unstable();
            let rank = (lags.len() * percent as usize).div_ceil(100);
            let (truth, found) = (sorted[rank - 1], lag.percentile_us(percent));
            let last = 1 << 31;
            prop_assert!(found >= truth, "{found} < {truth}");
            prop_assert!(found <= truth + truth / 8 || truth >= last, "{found} for {truth}");
            prop_assert_eq!((lag.max_us(), lag.count()), (*sorted.last().unwrap(), lags.len() as u64));
        }
    }

    #[test]
    fn buckets_follow_each_other_without_gaps() {
        for number in 0..BUCKETS {
            assert_eq!((bucket(end(number)), bucket(end(number) + 1)), (number, number + 1));
        }
        assert_eq!(end(BUCKETS - 1), u64::from(u32::MAX));
    }

    #[test]
    fn lag_after_a_time_knows_nothing_of_what_was_before() {
        let mut lag = Lag::default();
        lag.record(Duration::from_secs(9));
        let before = lag;
        assert_eq!(lag.after(&before), Lag::default());
        for us in [3, 5, 900] {
            lag.record(Duration::from_micros(us));
        }
        let after = lag.after(&before);
        assert_eq!((after.count(), after.percentile_us(50), after.percentile_us(99), after.max_us()), (3, 5, 959, 959));
    }

    #[test]
    fn lag_without_probes_is_none() {
        assert_eq!((Lag::default().percentile_us(99), Lag::default().max_us()), (0, 0));
    }

    #[test]
    fn lag_beyond_the_last_bucket_is_told_by_the_maximum() {
        let mut lag = Lag::default();
        lag.record(Duration::MAX);
        assert_eq!((lag.percentile_us(50), lag.max_us()), (u64::MAX, u64::MAX));
    }
}

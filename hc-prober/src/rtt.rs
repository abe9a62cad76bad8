//! Round-trip times of a check over its last probes, in little memory: there is one for each check.

use std::time::Duration;

/// So many answered probes fill half of the window.
const HALF: u16 = 64;

/// The times of the last 65 to 128 answered probes; of all, while there were fewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    current: Half,
    before: Half,
}

/// Microseconds. The sum of 64 times of a minute each, the longest timeout, fits in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Half {
    count: u16,
    least: u32,
    most: u32,
    sum: u32,
}

/// There is one for each check.
const _: () = assert!(size_of::<Window>() <= 32);

/// What the times in a window were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtts {
    /// How many answers they are of; at least 1.
    pub count: u32,
    /// The shortest.
    pub min: Duration,
    /// Their mean.
    pub avg: Duration,
    /// The longest.
    pub max: Duration,
}

impl Window {
    /// A probe was answered after this time.
    pub fn record(&mut self, rtt: Duration) {
        if self.current.count == HALF {
            (self.before, self.current) = (self.current, Half::default());
        }
        let micros = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX);
        let Half { count, least, most, sum } = &mut self.current;
        (*least, *most) = (if *count == 0 { micros } else { micros.min(*least) }, micros.max(*most));
        *sum = sum.saturating_add(micros);
        *count += 1;
    }

    /// What they were; `None`: there was none.
    #[must_use]
    pub fn rtts(&self) -> Option<Rtts> {
        let halves = || [self.current, self.before].into_iter().filter(|half| half.count > 0);
        let micros = |micros: u32| Duration::from_micros(micros.into());
        let count: u32 = halves().map(|half| u32::from(half.count)).sum();
        let sum: Duration = halves().map(|half| micros(half.sum)).sum();
        Some(Rtts {
            count,
            min: micros(halves().map(|half| half.least).min()?),
            avg: sum.checked_div(count)?,
            max: micros(halves().map(|half| half.most).max()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rtts_are_those_of_the_last_answers(times in prop::collection::vec(0_u32..60_000_000, 0..400)) {
            let mut window = Window::default();
            for micros in &times {
                window.record(Duration::from_micros((*micros).into()));
            }
            let Some(rtts) = window.rtts() else {
                prop_assert!(times.is_empty());
                return Ok(());
            };
            let count = rtts.count as usize;
            prop_assert!(count == times.len() || (65..=128).contains(&count) && count < times.len());
            let last = &times[times.len() - count..];
            let micros = |micros: u32| Duration::from_micros(micros.into());
            prop_assert_eq!((rtts.min, rtts.max), (micros(*last.iter().min().unwrap()), micros(*last.iter().max().unwrap())));
            let sum: u64 = last.iter().map(|micros| u64::from(*micros)).sum();
            prop_assert_eq!(rtts.avg, Duration::from_micros(sum) / rtts.count);
        }
    }
}

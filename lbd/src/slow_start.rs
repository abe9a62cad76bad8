//! How much of its part of the ring a real has that has just begun to take new flows: a tenth at once, a tenth more in each of
//! nine steps, all of it when the time is over. Pure.

use crate::ring::WHOLE;
use std::time::Duration;

/// Steps after the first portion.
const STEPS: u32 = WHOLE as u32 - 1;

/// The portion that it has so long after it began, 1 to [`WHOLE`].
#[must_use]
pub fn portion(span: Duration, elapsed: Duration) -> u8 {
    if elapsed >= span {
        return WHOLE;
    }
    let steps = elapsed.as_nanos() * u128::from(STEPS) / span.as_nanos();
    u8::try_from(steps).map_or(WHOLE, |steps| steps + 1)
}

/// How long after it began this portion is no longer all that it has.
#[must_use]
pub fn outgrown_after(span: Duration, portion: u8) -> Duration {
    // Rounded up: at that moment it has grown.
    let nanos = (span.as_nanos() * u128::from(portion)).div_ceil(u128::from(STEPS));
    u64::try_from(nanos).map_or(Duration::MAX, Duration::from_nanos)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn portion_grows_by_a_tenth_in_each_of_nine_steps() {
        let span = Duration::from_secs(9);
        let portions: Vec<_> = (0..=10).map(|second| portion(span, Duration::from_secs(second))).collect();
        assert_eq!(portions, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]);
        assert_eq!(portion(Duration::ZERO, Duration::ZERO), WHOLE, "off");
    }

    proptest! {
        #[test]
        fn portion_grows_exactly_when_it_is_said_to(span in 1..3_600_000_000_000_u64, elapsed in 0..4_000_000_000_000_u64) {
            let [span, elapsed] = [span, elapsed].map(Duration::from_nanos);
            let now = portion(span, elapsed);
            if now < WHOLE {
                let grows = outgrown_after(span, now);
                prop_assert!(grows > elapsed && grows <= span);
                let just_before = grows.saturating_sub(Duration::from_nanos(1));
                prop_assert!(portion(span, grows) > now && portion(span, just_before) <= now);
            } else {
                prop_assert!(elapsed >= span);
            }
        }
    }
}

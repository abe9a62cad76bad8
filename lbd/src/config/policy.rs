//! When a VIP is able to serve its clients: what it says itself, over `[defaults]`, over what this program says.

use std::{fmt, ops::RangeInclusive, time::Duration};

use hc_prober::config::{
    Mistakes, optional,
    value::{Integer, Span},
};
use serde::de::{self, Deserialize, Deserializer, Visitor};
use toml::Spanned;

use crate::flap;

const HOLD_DOWN: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const HOLD_DOWN_MAX: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);
const SLOW_START: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_hours(1);
const FLAP_WINDOW: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_hours(24);

/// What a VIP does with what its checks say, beside `all_down`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// With fewer reals than that it is not able to serve.
    pub min_healthy: MinHealthy,
    /// When a real that comes and goes is held down.
    pub flap: flap::Policy,
    /// So long a real that begins to take new flows gets fewer than its weight says; zero: it does not.
    pub slow_start: Duration,
}

/// How many reals of a VIP must serve (`min_healthy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MinHealthy {
    /// So many, at least one.
    Reals(u16),
    /// So many of a hundred that it is configured with, 1 to 100.
    Percent(u8),
}

impl Default for MinHealthy {
    fn default() -> Self {
        Self::Reals(1)
    }
}

impl MinHealthy {
    /// The number of reals that must serve, of so many that are configured: at least one; a fraction is rounded up.
    #[must_use]
    pub fn of(self, configured: usize) -> usize {
        match self {
            Self::Reals(reals) => reals.into(),
            Self::Percent(percent) => (configured * usize::from(percent)).div_ceil(100).max(1),
        }
    }
}

impl fmt::Display for MinHealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reals(reals) => write!(f, "{reals}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// A number, or a percentage as text.
#[derive(Debug, Clone)]
pub(super) enum Amount {
    Number(i64),
    Text(String),
}

impl<'de> Deserialize<'de> for Amount {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Amounts;
        impl Visitor<'_> for Amounts {
            type Value = Amount;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number of reals or a percentage such as \"50%\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Amount, E> {
                Ok(Amount::Number(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Amount, E> {
                Ok(Amount::Text(value.to_owned()))
            }
        }
        deserializer.deserialize_any(Amounts)
    }
}

/// The settings of a policy as they are written, of a VIP or of `[defaults]`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings<'a> {
    pub(super) min_healthy: Option<&'a Spanned<Amount>>,
    pub(super) hold_down: Option<&'a Spanned<Span>>,
    pub(super) hold_down_max: Option<&'a Spanned<Span>>,
    pub(super) flap_limit: Option<&'a Spanned<Integer>>,
    pub(super) flap_window: Option<&'a Spanned<Span>>,
    pub(super) slow_start: Option<&'a Spanned<Span>>,
}

impl Settings<'_> {
    /// What they say, over `base`; `None` exactly when a mistake was added.
    pub(super) fn read(self, mistakes: &mut Mistakes, base: Policy) -> Option<Policy> {
        let min_healthy = optional(self.min_healthy, |amount| min_healthy(mistakes, amount));
        let flap = self.flap(mistakes, base.flap);
        let slow_start = optional(self.slow_start, |span| mistakes.duration("slow_start", span, &SLOW_START));
        Some(Policy {
            min_healthy: min_healthy?.unwrap_or(base.min_healthy),
            flap: flap?,
            slow_start: slow_start?.unwrap_or(base.slow_start),
        })
    }

    fn flap(self, mistakes: &mut Mistakes, base: flap::Policy) -> Option<flap::Policy> {
        let hold = optional(self.hold_down, |span| mistakes.duration("hold_down", span, &HOLD_DOWN));
        let longest = optional(self.hold_down_max, |span| mistakes.duration("hold_down_max", span, &HOLD_DOWN_MAX));
        let limit = optional(self.flap_limit, |number| mistakes.integer("flap_limit", number, 0..=flap::MOST));
        let window = optional(self.flap_window, |span| mistakes.duration("flap_window", span, &FLAP_WINDOW));
        let policy = flap::Policy {
            hold: hold?.unwrap_or(base.hold),
            longest: longest?.unwrap_or(base.longest),
            limit: limit?.unwrap_or(base.limit),
            window: window?.unwrap_or(base.window),
        };
        self.ordered(mistakes, policy)
    }

    /// The first hold may not cost more than the most. What is not written here is of `base`, where it was checked.
    fn ordered(self, mistakes: &mut Mistakes, policy: flap::Policy) -> Option<flap::Policy> {
        if policy.hold <= policy.longest {
            return Some(policy);
        }
        let [zero, hold, longest, most] =
            [*HOLD_DOWN.start(), policy.hold, policy.longest, *HOLD_DOWN_MAX.end()].map(humantime::format_duration);
        let (span, message) = match (self.hold_down, self.hold_down_max) {
            (Some(written), _) => {
                let allowed = format!("allowed is {zero} to {longest}, which is `hold_down_max`");
                (written.span(), format!("`hold_down` {:?} is out of range: {allowed}", written.get_ref().0))
            }
            (None, Some(written)) => {
                let allowed = format!("allowed is {hold}, which is `hold_down`, to {most}");
                (written.span(), format!("`hold_down_max` {:?} is out of range: {allowed}", written.get_ref().0))
            }
            (None, None) => return Some(policy),
        };
        mistakes.add(span, message)
    }
}

fn min_healthy(mistakes: &mut Mistakes, amount: &Spanned<Amount>) -> Option<MinHealthy> {
    let (known, written) = match amount.get_ref() {
        Amount::Number(number) => {
            (u16::try_from(*number).ok().filter(|n| *n > 0).map(MinHealthy::Reals), number.to_string())
        }
        Amount::Text(text) => {
            let number = text.strip_suffix('%').and_then(|digits| digits.parse().ok());
            (number.filter(|n| (1..=100).contains(n)).map(MinHealthy::Percent), format!("{text:?}"))
        }
    };
    let message = || {
        format!(
            "`min_healthy` {written} is not known: allowed is a number of reals, 1 to {}, or \"1%\" to \"100%\" of them",
            u16::MAX
        )
    };
    known.or_else(|| mistakes.add(amount.span(), message()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn min_healthy_in_percent_is_rounded_up_and_never_none() {
        let of = |percent, reals| MinHealthy::Percent(percent).of(reals);
        assert_eq!([of(50, 4), of(50, 5), of(1, 3), of(100, 7), of(34, 3)], [2, 3, 1, 7, 2]);
        assert_eq!(MinHealthy::default().of(9), 1);
    }
}

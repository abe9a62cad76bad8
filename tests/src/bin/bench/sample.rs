//! What is said of repeated measurements.

/// Repeated measurements of one thing, in ascending order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample(Vec<f64>);

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_unstable_by(f64::total_cmp);
        Self(values)
    }
}

impl Sample {
    /// The least; 0 if there is none.
    pub(crate) fn min(&self) -> f64 {
        self.0.first().copied().unwrap_or_default()
    }

    /// The middle one, of two middle ones the greater; 0 if there is none.
    pub(crate) fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or_default()
    }

    /// The greatest; 0 if there is none.
    pub(crate) fn max(&self) -> f64 {
        self.0.last().copied().unwrap_or_default()
    }
}

#[cfg(test)]
#[allow(clippy::float_cmp, reason = "values that are passed through unchanged")]
mod tests {
    use super::*;

    #[test]
    fn sample_in_any_order_gives_min_median_and_max() {
        let sample: Sample = [5.0, 1.0, 9.0, 2.0].into_iter().collect();
        assert_eq!((sample.min(), sample.median(), sample.max()), (1.0, 5.0, 9.0));
        assert_eq!(Sample::default().median(), 0.0);
    }
}

//! Percentiles of one sample, and median with spread over runs.

use serde::{Deserialize, Serialize};

/// Round trips or dials of one sample, in microseconds.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Latency {
    pub count: u64,
    pub errors: u64,
    /// One of the errors, for people.
    pub error: Option<String>,
    /// How long the sample took.
    pub seconds: f64,
    pub p50: f64,
    pub p99: f64,
    pub max: f64,
}

impl Latency {
    /// Summarises times in nanoseconds.
    #[must_use]
    pub fn of(mut nanos: Vec<u64>, seconds: f64) -> Self {
        nanos.sort_unstable();
        let at = |percent: u64| rank(&nanos, percent).map_or(f64::NAN, |nanos| nanos as f64 / 1e3);
        Self {
            count: nanos.len() as u64,
            errors: 0,
            error: None,
            seconds,
            p50: at(50),
            p99: at(99),
            max: at(100),
        }
    }
}

/// The nearest-rank percentile of sorted values.
fn rank(sorted: &[u64], percent: u64) -> Option<u64> {
    let rank = (sorted.len() as u64 * percent).div_ceil(100).max(1);
    sorted.get(usize::try_from(rank - 1).ok()?).copied()
}

/// Several runs of one measure.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
    pub runs: usize,
}

impl Spread {
    /// `None` without a finite value.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values
            .iter()
            .copied()
            .filter(|value| value.is_finite())
            .collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len().is_multiple_of(2) {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        } else {
            sorted[middle]
        };
        Some(Self {
            median,
            min,
            max,
            runs: sorted.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let latency = Latency::of((1..=100).rev().map(|n| n * 1000).collect(), 1.0);
        assert_eq!((latency.p50, latency.p99, latency.max), (50.0, 99.0, 100.0));
        assert!(Latency::of(Vec::new(), 1.0).p50.is_nan());
    }

    #[test]
    fn the_median_of_an_even_count_lies_between() {
        let spread = Spread::of(&[4.0, 1.0, 3.0, 2.0, f64::NAN]).expect("values");
        assert_eq!(
            (spread.median, spread.min, spread.max, spread.runs),
            (2.5, 1.0, 4.0, 4)
        );
        assert!(Spread::of(&[]).is_none());
    }
}

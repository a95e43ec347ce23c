//! How a time was spread over connections: from a histogram in powers of two, which the
//! kernel side keeps, or which is made of a recording's events.

use std::fmt;

use queue_trace_common::queue::{BUCKETS, bucket};

use crate::model::{snapshot::Latency, words::short_time};

/// How many connections took how long, microseconds, in powers of two.
#[derive(Debug, Clone, Default)]
pub struct Histogram {
    /// See [`bucket`].
    pub places: [u64; BUCKETS],
    longest: u64,
}

impl Histogram {
    /// One took so long.
    pub fn add(&mut self, us: u64) {
        let place = &mut self.places[bucket(us)];
        *place = place.saturating_add(1);
        self.longest = self.longest.max(us);
    }

    /// All of another one.
    pub fn merge(&mut self, other: &Self) {
        for (place, more) in self.places.iter_mut().zip(other.places) {
            *place = place.saturating_add(more);
        }
        self.longest = self.longest.max(other.longest);
    }

    /// What matters of it; `None` if it is empty.
    #[must_use]
    pub fn distribution(&self) -> Option<Distribution> {
        Distribution::of(&self.places, self.longest)
    }
}

/// How a time was spread over connections, microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Distribution {
    /// Half of them took at most so long: the end of the power of two in which the
    /// middle one lies.
    pub p50: u64,
    /// The same for 99 of 100.
    pub p99: u64,
    /// The longest, exactly.
    pub max: u64,
    /// How many were measured.
    pub count: u64,
}

impl Distribution {
    /// From the places of a histogram, and the longest. `None` if it is empty.
    #[must_use]
    pub fn of(places: &[u64; BUCKETS], max: u64) -> Option<Self> {
        let add = |sum: u64, count: &u64| sum.saturating_add(*count);
        let count = places.iter().fold(0, add);
        let percentile = |percent: u128| {
            let wanted = (u128::from(count) * percent).div_ceil(100);
            let mut sum = 0;
            let place = places.iter().position(|count| {
                sum += u128::from(*count);
                sum >= wanted
            });
            match place {
                Some(0) => 0,
                Some(place) if place < BUCKETS - 1 => max.min(1 << place),
                _ => max,
            }
        };
        (count > 0).then(|| Self {
            p50: percentile(50),
            p99: percentile(99),
            max,
            count,
        })
    }
}

/// Half of them, nearly all of them, the longest.
impl fmt::Display for Distribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99, max] = [self.p50, self.p99, self.max].map(short_time);
        write!(f, "{p50} {p99} {max}")
    }
}

impl From<Distribution> for Latency {
    fn from(spread: Distribution) -> Self {
        Self {
            p50: Some(spread.p50),
            p99: Some(spread.p99),
            max: Some(spread.max),
            count: Some(spread.count),
        }
    }
}

/// As a [`Distribution`]; nothing if it is not known whole.
impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.distribution() {
            Some(distribution) => distribution.fmt(f),
            None => Ok(()),
        }
    }
}

impl Latency {
    /// All of it, if it has all.
    #[must_use]
    pub fn distribution(self) -> Option<Distribution> {
        Some(Distribution {
            p50: self.p50?,
            p99: self.p99?,
            max: self.max?,
            count: self.count?,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn percentiles_are_within_the_power_of_two(mut times in proptest::collection::vec(0u64..1 << 40, 1..300)) {
            let mut histogram = Histogram::default();
            for half in times.chunks(times.len().div_ceil(2)) {
                let mut one = Histogram::default();
                half.iter().for_each(|time| one.add(*time));
                histogram.merge(&one);
            }
            times.sort_unstable();
            let longest = *times.last().unwrap();
            let spread = histogram.distribution().unwrap();
            prop_assert_eq!(spread.count, times.len() as u64);
            for (told, percent) in [(spread.p50, 50), (spread.p99, 99)] {
                let exact = times[(times.len() * percent).div_ceil(100) - 1];
                prop_assert!(told >= exact.min(longest), "{told} {exact}");
                prop_assert!(told <= exact.saturating_mul(2).max(1) || exact >= 1 << 30, "{told} {exact}");
            }
        }
    }

    #[test]
    fn nothing_measured_is_no_spread() {
        assert_eq!(Histogram::default().distribution(), None);
    }
}

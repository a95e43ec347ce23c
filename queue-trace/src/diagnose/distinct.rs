//! How many different things there were, in bounded memory: exact while they are few, an
//! estimate with a known error afterwards.
//!
//! The smallest hashes are kept (bottom-k: Bar-Yossef and others, 2002; Cohen and Kaplan, 2007):
//! how close together they lie tells how many there are. They are a fair sample of the different
//! things, so a property of each (here: whether the connection got in later) is counted as
//! well, which a sketch like HyperLogLog cannot.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};

use serde::Serialize;

/// Different things, and of each whether it was marked.
#[derive(Debug, Clone)]
pub struct Distinct {
    room: usize,
    /// The smallest hashes.
    kept: BTreeMap<u64, bool>,
    /// Whether there were more.
    overflowed: bool,
}

/// A number of different things.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// How many.
    pub count: u64,
    /// With a probability of 95% it is not further off than this, percent; 0: exact.
    pub error_percent: u32,
}

impl Distinct {
    /// With room for so many, three at least.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self {
            room: room.max(3),
            kept: BTreeMap::new(),
            overflowed: false,
        }
    }

    /// Takes one in.
    pub fn insert(&mut self, thing: &impl Hash) {
        let hash = hash_of(thing);
        let is_full = self.kept.len() >= self.room;
        if is_full
            && self
                .kept
                .last_key_value()
                .is_some_and(|(most, _)| hash > *most)
        {
            self.overflowed = true;
            return;
        }
        self.kept.entry(hash).or_insert(false);
        if self.kept.len() > self.room {
            self.kept.pop_last();
            self.overflowed = true;
        }
    }

    /// Marks one, if it is there.
    pub fn mark(&mut self, thing: &impl Hash) {
        if let Some(marked) = self.kept.get_mut(&hash_of(thing)) {
            *marked = true;
        }
    }

    /// How many there were.
    #[must_use]
    pub fn all(&self) -> Estimate {
        self.estimate(self.kept.len())
    }

    /// How many of them are marked.
    #[must_use]
    pub fn marked(&self) -> Estimate {
        self.estimate(self.kept.values().filter(|marked| **marked).count())
    }

    /// How many such there were, if there are so many among those kept.
    fn estimate(&self, kept: usize) -> Estimate {
        let largest = self.kept.last_key_value().filter(|_| self.overflowed);
        let Some((largest, _)) = largest else {
            return Estimate {
                count: kept as u64,
                error_percent: 0,
            };
        };
        let room = self.room as f64;
        let all = (room - 1.0) / (*largest as f64 / u64::MAX as f64).max(f64::MIN_POSITIVE);
        Estimate {
            count: (all * kept as f64 / room).round() as u64,
            // Two standard deviations.
            error_percent: (200.0 / (room - 2.0).sqrt()).ceil() as u32,
        }
    }
}

/// The same in each run, so that a recording is always diagnosed the same.
fn hash_of(thing: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    thing.hash(&mut hasher);
    hasher.finish()
}

impl Estimate {
    /// `12`, or `about 5100 (±11%)`.
    #[must_use]
    pub fn words(&self) -> String {
        match self.error_percent {
            0 => self.count.to_string(),
            error => format!("about {} (±{error}%)", self.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_are_counted_exactly() {
        let mut distinct = Distinct::new(16);
        for _ in 0..3 {
            (0..16u32).for_each(|thing| distinct.insert(&thing));
        }
        distinct.mark(&3u32);
        distinct.mark(&99u32);
        assert_eq!(distinct.all().words(), "16");
        assert_eq!(distinct.marked().count, 1);
    }

    #[test]
    fn many_are_estimated_within_the_error_that_is_said() {
        for many in [600u32, 1_000, 20_000, 300_000] {
            let mut distinct = Distinct::new(512);
            for thing in 0..many {
                distinct.insert(&(thing, "client"));
                distinct.insert(&(thing / 2, "client"));
                if thing % 2 == 0 {
                    distinct.mark(&(thing, "client"));
                }
            }
            let Estimate {
                count,
                error_percent,
            } = distinct.all();
            assert_eq!(error_percent, 9);
            let off = count.abs_diff(many.into()) * 100;
            assert!(off <= u64::from(many) * 9, "{many}: {count}");
            let off = distinct.marked().count.abs_diff(u64::from(many) / 2) * 100;
            assert!(off <= u64::from(many) / 2 * 18, "{many}");
            assert!(distinct.kept.len() <= 512);
        }
    }
}

//! Counts of the most frequent among many things, in bounded memory: the Space-Saving
//! algorithm (Metwally, Agrawal, El Abbadi, 2005).
//!
//! There is room for a fixed number of things. A new one takes the place of the one with
//! the smallest count, and its count with it, which is noted as its error. So the counts
//! add up to all that was counted; none is too small; and none is too large by more than
//! its error, which is at most all that was counted divided by the room.

use std::{
    cmp::Reverse,
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
};

/// Counts of the most frequent.
#[derive(Debug, Clone)]
pub struct SpaceSaving<K> {
    room: usize,
    counts: Vec<(K, Count)>,
    /// Where in `counts` each is.
    places: HashMap<K, usize>,
    /// Where the one is that came last, which often comes again.
    latest: usize,
}

/// The count of one thing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// It did not come more often than this.
    pub count: u64,
    /// By how much the count may be too large.
    pub error: u64,
}

impl<K: Copy + Eq + Hash + Ord> SpaceSaving<K> {
    /// With room for so many things, one at least.
    #[must_use]
    pub fn new(room: usize) -> Self {
        Self {
            room: room.max(1),
            counts: Vec::new(),
            places: HashMap::new(),
            latest: 0,
        }
    }

    /// How many things are counted.
    #[must_use]
    pub fn things(&self) -> usize {
        self.counts.len()
    }

    /// Counts a thing that came so often. One that is there costs a look, in a flood most are; a
    /// new one that finds no room costs a look at all.
    pub fn add(&mut self, key: K, by: u64) {
        if by == 0 {
            return;
        }
        if let Some((latest, count)) = self.counts.get_mut(self.latest)
            && *latest == key
        {
            count.count += by;
            return;
        }
        let free = self.counts.len() < self.room;
        let place = match self.places.entry(key) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(place) if free => {
                place.insert(self.counts.len());
                self.counts.push((key, Count::default()));
                self.counts.len() - 1
            }
            Entry::Vacant(_) => self.make_room(key),
        };
        self.counts[place].1.count += by;
        self.latest = place;
    }

    /// Gives a thing the place of the one that came least, of several the smallest, and its count.
    fn make_room(&mut self, key: K) -> usize {
        let all = self.counts.iter().enumerate();
        let least = all.min_by_key(|(_, (key, count))| (count.count, *key));
        let (place, (least, count)) = least.map_or((0, self.counts[0]), |(at, what)| (at, *what));
        self.places.remove(&least);
        self.places.insert(key, place);
        let count = Count {
            error: count.count,
            ..count
        };
        self.counts[place] = (key, count);
        place
    }

    /// All that there is room for, the most frequent first.
    pub fn iter(&self) -> impl Iterator<Item = (K, Count)> {
        let mut all = self.counts.clone();
        all.sort_unstable_by_key(|(key, count)| Reverse((count.count, *key)));
        all.into_iter()
    }

    /// All that was counted.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().map(|(_, count)| count.count).sum()
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.counts.clear();
        self.places.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_bounds_hold_for_any_stream(room in 1usize..8, stream in proptest::collection::vec((0u8..20, 1u64..50), 0..300)) {
            let mut saving = SpaceSaving::new(room);
            let mut exact: BTreeMap<u8, u64> = BTreeMap::new();
            for (key, by) in stream {
                saving.add(key, by);
                *exact.entry(key).or_default() += by;
            }
            let total: u64 = exact.values().sum();
            prop_assert_eq!(saving.total(), total);
            prop_assert!(saving.iter().count() <= room);
            for (key, Count { count, error }) in saving.iter() {
                prop_assert!(count >= exact[&key] && count - error <= exact[&key]);
                prop_assert!(error <= total / room as u64);
            }
            // What is more frequent than the bound is there.
            for (key, count) in exact {
                if count > total / room as u64 {
                    prop_assert!(saving.iter().any(|(kept, _)| kept == key));
                }
            }
            let counts: Vec<_> = saving.iter().map(|(_, count)| count.count).collect();
            prop_assert!(counts.is_sorted_by(|a, b| a >= b));
        }
    }
}

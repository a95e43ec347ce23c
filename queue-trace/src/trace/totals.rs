//! The exact counts of listeners that are over, in bounded memory: those in trouble one by
//! one, the others put together by port, then by namespace. No sum is lost.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use queue_trace_common::outcome::{Kind, Outcome};

use crate::model::{lines::Total, socket::Listener};

/// For so many of each kind there is room: twice as many, until it is tidied up.
const ROOM: usize = 2048;

/// A listener, or several that are put together: then it has no inode number, and of several
/// ports no port.
type CountedListener = (u32, Listener);

/// How often each outcome occurred, by its tag.
type Sums = BTreeMap<u8, u64>;

/// Totals, each kind of listener by itself: one by one; by namespace and port; by namespace;
/// all others.
#[derive(Debug, Default)]
pub struct Totals {
    levels: [HashMap<CountedListener, Sums>; 4],
}

impl Totals {
    /// Adds a count of a listener.
    pub fn add(&mut self, netns: u32, listener: Listener, tag: u8, count: u64) {
        let level = usize::from(listener.inode.is_none());
        self.add_at(level, (netns, listener), tag, count);
        self.tidy_up();
    }

    fn add_at(&mut self, level: usize, whose: CountedListener, tag: u8, count: u64) {
        let sums = self.levels[level].entry(whose).or_default();
        let sum = sums.entry(tag).or_default();
        *sum = sum.saturating_add(count);
    }

    /// Puts together what there is no room for, the least troubled first.
    fn tidy_up(&mut self) {
        for level in 0..self.levels.len() - 1 {
            if self.levels[level].len() < 2 * ROOM {
                continue;
            }
            let mut all: Vec<_> = self.levels[level].drain().collect();
            all.sort_by_cached_key(|(whose, sums)| {
                let (netns, listener) = whose;
                (
                    Reverse(trouble(sums)),
                    *netns,
                    listener.port,
                    listener.inode,
                )
            });
            let others = all.split_off(ROOM);
            self.levels[level].extend(all);
            for ((netns, listener), sums) in others {
                let whose = match level {
                    0 => (netns, at_port(listener.port)),
                    1 => (netns, at_port(0)),
                    _ => (0, at_port(0)),
                };
                for (tag, count) in sums {
                    self.add_at(level + 1, whose, tag, count);
                }
            }
        }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Listener, u8, u64)> {
        self.levels
            .iter()
            .flatten()
            .flat_map(|((netns, listener), sums)| {
                let sums = sums.iter();
                sums.map(|(tag, count)| (*netns, *listener, *tag, *count))
            })
    }
}

fn at_port(port: u16) -> Listener {
    Listener {
        port,
        ..Listener::default()
    }
}

/// How much was refused, and how much there was at all.
fn trouble(sums: &Sums) -> (u64, u64) {
    let refused = sums
        .iter()
        .filter(|(tag, _)| Outcome::of(**tag).is_some_and(|outcome| outcome.kind == Kind::Refusal));
    let sum = |sum: u64, (_, count): (&u8, &u64)| sum.saturating_add(*count);
    (refused.fold(0, sum), sums.iter().fold(0, sum))
}

/// Sums as lines, in the order in which a person looks for them.
#[must_use]
pub fn lines(all: impl Iterator<Item = (u32, Listener, u8, u64)>) -> Vec<Total> {
    let mut sums: BTreeMap<_, (Listener, u64)> = BTreeMap::new();
    for (netns, listener, tag, count) in all {
        let Listener { port, addr, .. } = listener;
        let key = (netns, port, addr, listener.inode, listener.cookie, tag);
        let (_, sum) = sums.entry(key).or_insert((listener, 0));
        *sum = sum.saturating_add(count);
    }
    let lines = sums.into_iter();
    let lines = lines.filter_map(|((netns, .., tag), (listener, count))| {
        Some(Total {
            netns,
            listener,
            outcome: Outcome::of(tag)?,
            count,
        })
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use queue_trace_common::outcome;

    use super::*;

    fn listener(port: u16, inode: u64) -> Listener {
        Listener {
            inode: Some(inode),
            ..at_port(port)
        }
    }

    #[test]
    fn memory_is_bounded_sums_are_exact_and_those_in_trouble_are_kept() {
        let mut totals = Totals::default();
        let many = 100_000;
        for number in 0..many {
            // One of the last refuses, and 300 of the first a little.
            if number == many - 10 {
                totals.add(
                    7,
                    listener(80, 1),
                    outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
                    92,
                );
            }
            if number < 300 {
                totals.add(
                    7,
                    listener(81, number + 10),
                    outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
                    1,
                );
            }
            let netns = 100 + (number / 20) as u32;
            let port = 30_000 + (number % 20_000) as u16;
            totals.add(netns, listener(port, number + 1000), outcome::QUEUED, 3);
            totals.add(netns, listener(port, number + 1000), outcome::ACCEPTED, 2);
        }
        let kept: usize = totals.levels.iter().map(HashMap::len).sum();
        assert!(kept <= 3 * 2 * ROOM + 1, "{kept}");
        let lines = lines(totals.iter());
        let sum = |tag: u8| -> u64 {
            let of_it = lines.iter().filter(|line| line.outcome.tag == tag);
            of_it.map(|line| line.count).sum()
        };
        assert_eq!(sum(outcome::QUEUED), 3 * many);
        assert_eq!(sum(outcome::ACCEPTED), 2 * many);
        assert_eq!(sum(outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL), 392);
        let refusing = lines
            .iter()
            .filter(|line| line.outcome.kind == Kind::Refusal);
        let refusing: Vec<_> = refusing.collect();
        assert_eq!(refusing.len(), 301);
        assert_eq!(
            (refusing[0].listener.inode, refusing[0].count),
            (Some(1), 92)
        );
    }

    #[test]
    fn listeners_that_are_not_known_stay_apart_by_port_and_namespace() {
        let mut totals = Totals::default();
        for (netns, port) in [(1, 80), (1, 81), (2, 80)] {
            totals.add(netns, at_port(port), outcome::QUEUED, 1);
            totals.add(netns, at_port(port), outcome::QUEUED, 1);
        }
        let lines = lines(totals.iter());
        let lines: Vec<_> = lines
            .iter()
            .map(|line| (line.netns, line.listener.port, line.count))
            .collect();
        assert_eq!(lines, [(1, 80, 2), (1, 81, 2), (2, 80, 2)]);
    }
}

//! What the kernel side counted since the recording began, from what it counted since it was
//! attached.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use queue_trace_common::queue::BUCKETS;

use crate::{
    agent::series::{SeriesKey, key_of},
    model::{
        event::Name,
        front::FRONT,
        ledger::{CounterLine, FrontLine, Ledger},
        snapshot::{Latency, Snapshot},
    },
};

/// What had been counted when a recording begins. There is one for each look of the time before,
/// which share what did not change.
#[derive(Debug, Clone, Default)]
pub struct Base {
    /// By namespace.
    listeners: BTreeMap<u32, Arc<HashMap<SeriesKey, SinceBase>>>,
    /// The ledger of each namespace.
    pub ledgers: Arc<BTreeMap<u32, Ledger>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct SinceBase {
    full_us: u64,
    full_times: u64,
    accept_high: u32,
    syn_high: u32,
    waits: [u64; BUCKETS],
}

impl Base {
    /// Takes in all listeners at a moment: `within` some namespaces, or anywhere.
    pub fn looked(&mut self, listeners: &[Snapshot], within: Option<&BTreeSet<u32>>) {
        let counted = |one: &Snapshot| {
            let accept = one.accept_queue.as_ref();
            let syn = one.syn_queue.as_ref();
            SinceBase {
                full_us: accept.and_then(|queue| queue.full_us).unwrap_or(0),
                full_times: accept.and_then(|queue| queue.full_times).unwrap_or(0),
                accept_high: accept.and_then(|queue| queue.high_water).unwrap_or(0),
                syn_high: syn.and_then(|queue| queue.high_water).unwrap_or(0),
                waits: one.waits.unwrap_or_default(),
            }
        };
        let key = |one: &Snapshot| key_of(one.netns, &one.listener);
        match within {
            Some(within) => self.listeners.retain(|netns, _| !within.contains(netns)),
            None => self.listeners.clear(),
        }
        for one in listeners {
            let own = self.listeners.entry(one.netns).or_default();
            Arc::make_mut(own).insert(key(one), counted(one));
        }
    }

    /// The ledgers of the time since another base.
    pub fn ledgers_since(&self, base: &Self) -> Vec<Ledger> {
        let ledgers = self.ledgers.values();
        ledgers
            .map(|now| ledger_since(now, base.ledgers.get(&now.netns)))
            .collect()
    }
}

fn ledger_since(now: &Ledger, before: Option<&Ledger>) -> Ledger {
    let mut ledger = now.clone();
    let Some(before) = before else {
        return ledger;
    };
    let mut unexplained = 0;
    for (counter, line) in &mut ledger.counters {
        let Some(old) = before.counters.get(counter) else {
            continue;
        };
        let since = CounterLine {
            kernel: line
                .kernel
                .zip(old.kernel)
                .map(|(now, old)| now.saturating_sub(old)),
            seen: line.seen.saturating_sub(old.seen),
        };
        // Packets that were on the way at one of the two looks are not missing.
        unexplained += since.kernel.map_or(0, |kernel| kernel.abs_diff(since.seen));
        *line = since;
    }
    for (outcome, line) in &mut ledger.in_front {
        let Some(old) = before.in_front.get(outcome) else {
            continue;
        };
        let less = |(now, old): (u64, u64)| now.saturating_sub(old);
        *line = FrontLine {
            kernel: line.kernel.zip(old.kernel).map(less),
            seen: line.seen.zip(old.seen).map(less),
        };
        let row = FRONT
            .iter()
            .find(|row| Name(row.outcome()).to_string() == *outcome);
        if let (Some(row), Some(kernel), Some(seen)) = (row, line.kernel, line.seen) {
            unexplained += row.unexplained(kernel, seen);
        }
    }
    ledger.in_front.retain(|_, line| {
        line.kernel.is_some_and(|kernel| kernel > 0) || line.seen.is_some_and(|seen| seen > 0)
    });
    ledger.lost = ledger.lost.saturating_sub(before.lost);
    ledger.unexplained = ledger.unexplained.map(|_| unexplained);
    ledger
}

/// A listener, with what was counted since the base. Without a base nothing is told of that.
pub fn since(one: &Snapshot, base: Option<&Base>) -> Snapshot {
    let mut snapshot = one.clone();
    // The lines `counts` of the recording have them.
    snapshot.drops = None;
    snapshot.counts = None;
    snapshot.handshake_us = None;
    snapshot.accept_latency_us = None;
    let key = key_of(snapshot.netns, &snapshot.listener);
    // One that was not there then began with nothing.
    let of = |base: &Base| base.listeners.get(&one.netns)?.get(&key).copied();
    let before = base.map(|base| of(base).unwrap_or_default());
    if let Some(queue) = &mut snapshot.accept_queue {
        let (full_us, times) = (queue.full_us.take(), queue.full_times.take());
        if let Some(before) = before {
            queue.full_us = full_us.map(|us| us.saturating_sub(before.full_us));
            queue.full_times = times.map(|times| times.saturating_sub(before.full_times));
        }
        if before.is_none_or(|before| queue.high_water <= Some(before.accept_high)) {
            queue.high_water = None;
            queue.high_water_time = None;
        }
    }
    if let Some(queue) = &mut snapshot.syn_queue
        && before.is_none_or(|before| queue.high_water <= Some(before.syn_high))
    {
        queue.high_water = None;
        queue.high_water_time = None;
    }
    if let (Some(before), Some(waits)) = (before, one.waits) {
        let mut more = waits;
        for (more, before) in more.iter_mut().zip(before.waits) {
            *more = more.saturating_sub(before);
        }
        let longest = one.accept_latency_us.and_then(|latency| latency.max);
        snapshot.accept_latency_us = latency(&more, longest);
    }
    snapshot
}

/// How a time was spread: each of the numbers is the end of its power of two.
fn latency(places: &[u64; BUCKETS], longest: Option<u64>) -> Option<Latency> {
    let count: u64 = places.iter().sum();
    let most = longest.unwrap_or(u64::MAX);
    let end = |wanted: u64| {
        let mut sum = 0;
        let place = places.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        match place {
            Some(0) => 0,
            Some(place) if place < BUCKETS - 1 => most.min(1 << place),
            _ => most,
        }
    };
    (count > 0).then(|| Latency {
        p50: Some(end(count.div_ceil(2))),
        p99: Some(end((count * 99).div_ceil(100))),
        max: Some(end(count)),
        count: Some(count),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{snapshot::Gauge, socket::Listener};

    fn listener(netns: u32, full_us: u64) -> Snapshot {
        Snapshot {
            netns,
            listener: Listener {
                port: 80,
                inode: Some(netns.into()),
                ..Listener::default()
            },
            accept_queue: Some(Gauge {
                full_us: Some(full_us),
                ..Gauge::default()
            }),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_look_at_one_namespace_takes_memory_for_that_one() {
        let mut first = Base::default();
        first.looked(&[listener(1, 10), listener(2, 20)], None);
        let mut second = first.clone();
        second.looked(&[listener(2, 25)], Some(&[2, 3].into()));
        assert!(Arc::ptr_eq(&first.listeners[&1], &second.listeners[&1]));
        assert!(Arc::ptr_eq(&first.ledgers, &second.ledgers));
        let full = |base: &Base, netns, now| {
            let queue = since(&listener(netns, now), Some(base)).accept_queue;
            queue.unwrap().full_us
        };
        assert_eq!(
            [10, 15].map(|now| full(&second, 1, now)),
            [Some(0), Some(5)]
        );
        assert_eq!(full(&first, 2, 30), Some(10));
        assert_eq!(full(&second, 2, 30), Some(5));
        // One that is gone is gone from the later base.
        second.looked(&[], Some(&[1].into()));
        assert_eq!(full(&second, 1, 15), Some(15));
        assert_eq!(full(&first, 1, 15), Some(5));
    }
}

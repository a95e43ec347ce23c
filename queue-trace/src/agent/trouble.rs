//! The episodes that go on: from the first refusal of a listener until some calm seconds.

use std::{collections::BTreeMap, time::Duration};

use queue_trace_common::outcome::{Kind, Outcome};
use serde_json::{Map, Value, json};

use super::series::{SocketKey, key_of};
use crate::model::{
    clock::{monotonic_now, wall_now},
    event::{AcceptQueue, Event, Name, outcome_named, rfc3339},
    lines::Counts,
    socket::Listener,
};

/// A listener in trouble.
#[derive(Debug, Clone, PartialEq)]
pub struct Troubled {
    /// Which.
    pub key: SocketKey,
    /// Its namespace.
    pub netns: u32,
    /// The listener.
    pub listener: Listener,
    /// Which trouble.
    pub trouble: &'static str,
    /// What is known of the episode.
    pub numbers: Map<String, Value>,
}

/// What became of an episode.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// It began.
    Began(Box<Troubled>),
    /// It ended.
    Ended(Box<Troubled>),
}

/// Listeners in trouble that are followed.
const ROOM: usize = 256;
/// It is over after so long without a refusal.
const CALM: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Open {
    netns: u32,
    listener: Listener,
    trouble: &'static str,
    began: i128,
    last: Duration,
    packets: u64,
    outcomes: BTreeMap<String, u64>,
    queue: Option<AcceptQueue>,
}

/// The episodes.
#[derive(Debug, Default)]
pub struct Troubles {
    open: BTreeMap<SocketKey, Open>,
}

impl Troubles {
    /// How many episodes go on.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.len() as u64
    }

    /// Takes in an event: the first refusal begins an episode.
    pub fn event(&mut self, event: &Event) -> Vec<Change> {
        let key = key_of(event.netns, &event.listener);
        let change = self.refused(key, event.netns, &event.listener, event.outcome);
        if let Some(open) = self.open.get_mut(&key)
            && is_trouble(event.outcome)
        {
            open.queue = event.accept_queue.or(open.queue);
        }
        change.into_iter().collect()
    }

    /// Takes in counts, which are exact.
    pub fn counts(&mut self, counts: &Counts) -> Vec<Change> {
        let key = key_of(counts.netns, &counts.listener);
        let mut changes = Vec::new();
        for (name, count) in &counts.outcomes {
            let Some(outcome) = outcome_named(name).filter(|outcome| is_trouble(outcome)) else {
                continue;
            };
            changes.extend(self.refused(key, counts.netns, &counts.listener, outcome));
            if let Some(open) = self.open.get_mut(&key) {
                open.packets += count;
                *open.outcomes.entry(Name(outcome).to_string()).or_default() += count;
            }
        }
        changes
    }

    fn refused(
        &mut self,
        key: SocketKey,
        netns: u32,
        listener: &Listener,
        outcome: &'static Outcome,
    ) -> Option<Change> {
        if !is_trouble(outcome) {
            return None;
        }
        let last = Duration::from_nanos(monotonic_now());
        if let Some(open) = self.open.get_mut(&key) {
            open.last = last;
            return None;
        }
        if self.open.len() >= ROOM {
            return None;
        }
        let open = Open {
            netns,
            listener: *listener,
            trouble: outcome.cause.unwrap_or(outcome.verdict),
            began: wall_now(),
            last,
            packets: 0,
            outcomes: BTreeMap::new(),
            queue: None,
        };
        let troubled = open.troubled(key, false);
        self.open.insert(key, open);
        Some(Change::Began(Box::new(troubled)))
    }

    /// Once a second: the episodes that are over.
    pub fn second(&mut self) -> Vec<Change> {
        let now = Duration::from_nanos(monotonic_now());
        let calm = |open: &Open| now.saturating_sub(open.last) > CALM;
        let over = self.open.iter().filter(|(_, open)| calm(open));
        let over: Vec<_> = over.map(|(key, _)| *key).collect();
        let over = over.into_iter().filter_map(|key| {
            let open = self.open.remove(&key)?;
            Some(Change::Ended(Box::new(open.troubled(key, true))))
        });
        over.collect()
    }
}

impl Open {
    fn troubled(&self, key: SocketKey, over: bool) -> Troubled {
        let mut numbers = Map::new();
        numbers.insert("begin".to_owned(), rfc3339(self.began).into());
        if over {
            numbers.insert("packets".to_owned(), self.packets.into());
            numbers.insert("outcomes".to_owned(), json!(self.outcomes));
            if let Some(queue) = self.queue {
                numbers.insert("depth".to_owned(), queue.depth.into());
                numbers.insert("limit".to_owned(), queue.limit.into());
            }
        }
        Troubled {
            key,
            netns: self.netns,
            listener: self.listener,
            trouble: self.trouble,
            numbers,
        }
    }
}

fn is_trouble(outcome: &Outcome) -> bool {
    outcome.kind == Kind::Refusal
}

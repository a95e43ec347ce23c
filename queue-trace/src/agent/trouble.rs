//! The episodes that go on, as the diagnosis tells them.

use std::collections::{BTreeMap, btree_map::Entry};

use queue_trace_common::outcome::Set;
use serde_json::{Map, Value};

use super::series::{SeriesKey, key_of};
use crate::{
    diagnose::{
        detector::{Change, Episodes, Key},
        timeline::Timeline,
    },
    model::{
        clock::{monotonic_now, wall_now},
        event::{AcceptQueue, Event},
        lines::Counts,
        snapshot::Snapshot,
        socket::Listener,
    },
};

/// A listener in trouble.
#[derive(Debug, Clone, PartialEq)]
pub struct Troubled {
    /// Which.
    pub key: SeriesKey,
    /// Its namespace.
    pub netns: u32,
    /// The listener.
    pub listener: Listener,
    /// Which trouble.
    pub trouble: &'static str,
    /// What is known of the episode, as in the diagnosis.
    pub numbers: Map<String, Value>,
}

/// What became of an episode.
#[derive(Debug, Clone, PartialEq)]
pub enum TroubleChange {
    /// It began.
    Began(Box<Troubled>),
    /// It ended.
    Ended(Box<Troubled>),
}

/// Listeners in trouble that are followed.
const ROOM: usize = 256;

/// The episodes.
#[derive(Debug)]
pub struct Troubles {
    clock: Timeline,
    episodes: Episodes,
    /// How many go on in each namespace.
    open: BTreeMap<u32, u64>,
}

impl Troubles {
    /// Where outcomes of this set are seen.
    #[must_use]
    pub fn new(observable: Set) -> Self {
        Self {
            clock: Timeline::default(),
            episodes: Episodes::new(observable, ROOM),
            open: BTreeMap::new(),
        }
    }

    /// How many episodes go on.
    #[must_use]
    pub fn open(&self) -> u64 {
        self.open.values().sum()
    }

    /// The namespaces in which some go on.
    pub fn places(&self) -> impl Iterator<Item = u32> {
        self.open.keys().copied()
    }

    /// Takes in an event.
    pub fn event(&mut self, event: &Event) -> Vec<TroubleChange> {
        let at = self.clock.event(event);
        let changes = self.episodes.event(event, at);
        self.changed(changes)
    }

    /// Takes in counts.
    pub fn counts(&mut self, counts: &Counts) -> Vec<TroubleChange> {
        let at = self.now();
        let changes = self
            .episodes
            .counts(counts.netns, &counts.listener, &counts.outcomes, at);
        self.changed(changes)
    }

    /// Takes in how a listener stands: by tracepoints nothing else tells that its queue has
    /// room again.
    pub fn listener(&mut self, snapshot: &Snapshot) {
        let Some(queue) = snapshot.accept_queue.as_ref() else {
            return;
        };
        if let (Some(depth), Some(limit)) = (queue.depth, queue.limit) {
            let at = self.now();
            let key = Key::of(snapshot.netns, &snapshot.listener);
            self.episodes.gauge(&key, AcceptQueue { depth, limit }, at);
        }
    }

    /// Once a second.
    pub fn second(&mut self) -> Vec<TroubleChange> {
        let at = self.now();
        let changes = self.episodes.tick(at);
        self.changed(changes)
    }

    fn now(&mut self) -> i128 {
        self.clock.exactly(monotonic_now(), wall_now())
    }

    fn changed(&mut self, changes: Vec<(Key, Change)>) -> Vec<TroubleChange> {
        let changes = changes.into_iter().map(|(key, change)| {
            let listener = self.episodes.of(&key).map(|(listener, _)| *listener);
            let listener = listener.unwrap_or(Listener {
                port: key.port,
                inode: key.inode,
                ..Listener::default()
            });
            let (episode, began) = match change {
                Change::Began(episode) => (episode, true),
                Change::Ended(episode) => (episode, false),
            };
            let mut numbers = match serde_json::to_value(&episode) {
                Ok(Value::Object(numbers)) => numbers,
                _ => Map::new(),
            };
            // It has a place of its own in the line.
            numbers.remove("trouble");
            if began {
                // All else is about one packet.
                numbers.retain(|name, _| name == "begin");
            }
            let troubled = Box::new(Troubled {
                key: key_of(key.netns, &listener),
                netns: key.netns,
                listener,
                trouble: episode.trouble.name(),
                numbers,
            });
            if began {
                *self.open.entry(key.netns).or_default() += 1;
                TroubleChange::Began(troubled)
            } else {
                if let Entry::Occupied(mut open) = self.open.entry(key.netns) {
                    *open.get_mut() -= 1;
                    if *open.get() == 0 {
                        open.remove();
                    }
                }
                TroubleChange::Ended(troubled)
            }
        });
        changes.collect()
    }
}

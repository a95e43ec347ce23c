//! What became known of listeners until a moment: how they stand, their past, their latest
//! events and their clients. Bounded, whatever happens to them.

use std::collections::{HashMap, VecDeque};

use crate::model::{
    clients::{ClientTable, Clients, Prefixes},
    event::Event,
    lines::LossNote,
    snapshot::{Snapshot, SocketKey},
};

/// How many looks back a listener's past goes.
pub const PAST: usize = 120;
/// How many events are kept.
const EVENTS: usize = 200;

/// What became of a listener, look by look, the latest last.
#[derive(Debug, Clone, Default)]
pub struct Past {
    /// Drops since the look before.
    pub drops: VecDeque<u64>,
    /// Depth of the accept queue.
    pub depth: VecDeque<u64>,
    last_drops: Option<u64>,
}

impl Past {
    /// What it refused in the latest looks.
    pub fn recent_drops(&self) -> u64 {
        let latest = self.drops.iter().rev().take(10);
        latest.fold(0, |sum, count| sum.saturating_add(*count))
    }
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Until when, nanoseconds since 1970.
    pub at_ns: i128,
    /// The listeners.
    pub rows: Vec<Snapshot>,
    /// What could not be looked at, a sentence each.
    pub notes: Vec<String>,
    /// What was lost of what happened to them.
    pub lost: LossNote,
    pasts: HashMap<SocketKey, Past>,
    events: VecDeque<Event>,
    clients: ClientTable,
}

impl Seen {
    /// Nothing yet; clients will be put together by networks of these lengths.
    pub fn new(networks: Prefixes) -> Self {
        Self {
            clients: ClientTable::new(networks),
            ..Self::default()
        }
    }

    /// About how much memory it takes, bytes.
    pub fn weight(&self) -> usize {
        let past = 2 * PAST * size_of::<u64>() + size_of::<(SocketKey, Past)>();
        self.pasts.len() * past
            + self.events.len() * size_of::<Event>()
            + self.rows.len() * size_of::<Snapshot>()
            + self.clients.weight()
    }

    /// So the listeners stand at a moment: what they refused since the beginning, and how
    /// many wait.
    pub fn look(
        &mut self,
        at_ns: i128,
        stand: impl Iterator<Item = (SocketKey, u64, Option<u32>)>,
    ) {
        let mut pasts = std::mem::take(&mut self.pasts);
        for (key, drops, depth) in stand {
            let mut past = pasts.remove(&key).unwrap_or_default();
            let news = drops.saturating_sub(past.last_drops.unwrap_or(drops));
            past.last_drops = Some(drops);
            push(&mut past.drops, news);
            push(&mut past.depth, depth.unwrap_or(0).into());
            self.pasts.insert(key, past);
        }
        self.at_ns = at_ns;
        self.clients.end_second();
    }

    /// Looks at these, and shows them.
    pub fn take_rows(&mut self, rows: Vec<Snapshot>, at_ns: i128) {
        let stand = rows
            .iter()
            .map(|row| (row.key(), row.refused(), row.depth()));
        self.look(at_ns, stand);
        self.rows = rows;
    }

    /// Takes in an event.
    pub fn event(&mut self, event: &Event) {
        self.clients.take(event);
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event.clone());
    }

    /// Something was lost.
    pub fn lost(&mut self, note: &LossNote) {
        self.lost.add(note);
    }

    /// A listener's past.
    pub fn past(&self, row: &Snapshot) -> Option<&Past> {
        self.pasts.get(&row.key())
    }

    /// Its latest events, the latest first.
    pub fn events_of(&self, row: &Snapshot) -> impl Iterator<Item = &Event> {
        let whose = row.key();
        let all = self.events.iter().rev();
        all.filter(move |event| key_of(event) == whose)
    }

    /// The networks of its clients, those with most events first.
    pub fn clients_of(&self, row: &Snapshot) -> Option<Clients> {
        let (netns, port, inode) = row.key();
        self.clients.of(netns, port, inode)
    }
}

/// The listener of an event.
pub fn key_of(event: &Event) -> SocketKey {
    (event.netns, event.listener.port, event.listener.inode)
}

fn push(past: &mut VecDeque<u64>, value: u64) {
    if past.len() == PAST {
        past.pop_front();
    }
    past.push_back(value);
}

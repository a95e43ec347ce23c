//! What `top` shows, and what keys do to it. Knows no terminal, no clock and no kernel.

use std::{
    cmp::Reverse,
    collections::{HashMap, VecDeque},
    net::IpAddr,
};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::{
    event::Event,
    listeners::{Row, table},
    sink::endpoint,
};

/// How many looks back a listener's past goes.
pub const PAST: usize = 120;
/// How many events are kept.
const EVENTS: usize = 200;
/// How many clients are counted; more are summed up as others.
const CLIENTS: usize = 1024;

/// What to do after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Go on.
    GoOn,
    /// End.
    Quit,
}

/// By what listeners are sorted, the most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sort {
    /// What needs looking at.
    Trouble,
    /// Drops since attached.
    Drops,
    /// Depth of the accept queue against its limit.
    Queue,
    /// The slowest hundredth of accepts.
    Wait,
    /// The oldest connection that waits.
    Oldest,
    /// Port, upwards.
    Port,
}

impl Sort {
    /// With the keys that choose them.
    pub const ALL: [(char, Self, &'static str); 6] = [
        ('t', Self::Trouble, "trouble"),
        ('d', Self::Drops, "drops"),
        ('a', Self::Queue, "accept queue"),
        ('w', Self::Wait, "wait"),
        ('o', Self::Oldest, "oldest"),
        ('n', Self::Port, "port number"),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        let row = Self::ALL.iter().find(|(_, sort, _)| *sort == self);
        row.map_or("", |(_, _, name)| name)
    }
}

/// A listener's socket.
pub type Key = (u32, Option<u64>);

/// What became of a listener, look by look, the latest last.
#[derive(Debug, Default)]
pub struct Past {
    /// Drops since the look before.
    pub drops: VecDeque<u64>,
    /// Depth of the accept queue.
    pub depth: VecDeque<u64>,
    last_drops: Option<u64>,
}

/// All of it.
#[derive(Debug)]
pub struct Top {
    /// Who observes what, how.
    pub title: String,
    /// What cannot be told here.
    pub notes: Vec<String>,
    /// Whether colours are wanted.
    pub colour: bool,
    /// When the rows were looked at, nanoseconds since 1970.
    pub at_ns: i128,
    /// Whether the picture stands still.
    pub paused: bool,
    /// Whether keys are explained.
    pub help: bool,
    /// Whether keys are letters of the filter.
    pub typing: bool,
    /// What a listener must have in its name or owner.
    pub filter: String,
    /// The order.
    pub sort: Sort,
    rows: Vec<Row>,
    pasts: HashMap<Key, Past>,
    selected: Option<Key>,
    events: VecDeque<Event>,
    clients: HashMap<(Key, IpAddr), u64>,
}

/// The key of a row.
pub fn key(row: &Row) -> Key {
    (row.netns, row.listener.inode)
}

/// What a listener refused, since attached.
pub fn drops(row: &Row) -> u64 {
    row.drops.iter().flatten().map(|(_, count)| count).sum()
}

impl Top {
    /// Before the first look.
    pub fn new(title: String, notes: Vec<String>, colour: bool) -> Self {
        Self {
            title,
            notes,
            colour,
            at_ns: 0,
            paused: false,
            help: false,
            typing: false,
            filter: String::new(),
            sort: Sort::Trouble,
            rows: Vec::new(),
            pasts: HashMap::new(),
            selected: None,
            events: VecDeque::new(),
            clients: HashMap::new(),
        }
    }

    /// Takes in a look at all listeners.
    pub fn take_rows(&mut self, mut rows: Vec<Row>, at_ns: i128) {
        if self.paused {
            return;
        }
        rows.retain(|row| !row.closed);
        let mut pasts = std::mem::take(&mut self.pasts);
        for row in &rows {
            let mut past = pasts.remove(&key(row)).unwrap_or_default();
            let drops = drops(row);
            let news = drops - past.last_drops.unwrap_or(drops).min(drops);
            past.last_drops = Some(drops);
            push(&mut past.drops, news);
            push(&mut past.depth, row.accept_queue.depth.into());
            self.pasts.insert(key(row), past);
        }
        self.rows = rows;
        self.at_ns = at_ns;
        self.order();
    }

    /// Takes in events.
    pub fn take_events(&mut self, events: impl Iterator<Item = Event>) {
        for event in events {
            let whose = (event.netns, event.listener.inode);
            if let Some(client) = event.client {
                let known = self.clients.len() < CLIENTS;
                let count = match self.clients.get_mut(&(whose, client.addr)) {
                    Some(count) => Some(count),
                    None if known => Some(self.clients.entry((whose, client.addr)).or_default()),
                    None => None,
                };
                if let Some(count) = count {
                    *count += event.count;
                }
            }
            if self.events.len() == EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(event);
        }
    }

    /// The listeners that pass the filter, in order.
    pub fn shown(&self) -> impl Iterator<Item = &Row> {
        let filter = self.filter.to_lowercase();
        self.rows.iter().filter(move |row| {
            let text = format!(
                "{} {}",
                endpoint(row.listener.addr, row.listener.port),
                table::owner(row)
            );
            text.to_lowercase().contains(&filter)
        })
    }

    /// The listener that is looked at closely, and its place among those shown.
    pub fn selected(&self) -> Option<(usize, &Row)> {
        let mut shown = self.shown().enumerate();
        let first = self.shown().next();
        match shown.find(|(_, row)| Some(key(row)) == self.selected) {
            Some(found) => Some(found),
            None => first.map(|row| (0, row)),
        }
    }

    /// Its past.
    pub fn past(&self, row: &Row) -> Option<&Past> {
        self.pasts.get(&key(row))
    }

    /// Its latest events, the latest first.
    pub fn events_of(&self, row: &Row) -> impl Iterator<Item = &Event> {
        let whose = key(row);
        let all = self.events.iter().rev();
        all.filter(move |event| (event.netns, event.listener.inode) == whose)
    }

    /// The clients seen most in its events.
    pub fn clients_of(&self, row: &Row) -> Vec<(IpAddr, u64)> {
        let whose = key(row);
        let mut clients: Vec<_> = self
            .clients
            .iter()
            .filter(|((listener, _), _)| *listener == whose)
            .map(|((_, addr), count)| (*addr, *count))
            .collect();
        clients.sort_by_key(|(addr, count)| (Reverse(*count), *addr));
        clients
    }

    /// A key was pressed.
    pub fn press(&mut self, pressed: KeyEvent) -> Then {
        let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
        match pressed.code {
            KeyCode::Char('c') if control => return Then::Quit,
            KeyCode::Up => self.move_by(-1),
            KeyCode::Down => self.move_by(1),
            KeyCode::PageUp => self.move_by(-10),
            KeyCode::PageDown => self.move_by(10),
            _ if self.typing => self.type_key(pressed.code),
            _ if self.help => self.help = false,
            KeyCode::Char('q') => return Then::Quit,
            KeyCode::Char('k') => self.move_by(-1),
            KeyCode::Char('j') => self.move_by(1),
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Esc => self.filter.clear(),
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char(' ' | 'p') => self.paused = !self.paused,
            KeyCode::Char(letter) => {
                let sort = Sort::ALL.iter().find(|(key, _, _)| *key == letter);
                if let Some((_, sort, _)) = sort {
                    self.sort = *sort;
                    self.order();
                }
            }
            _ => {}
        }
        Then::GoOn
    }

    fn type_key(&mut self, code: KeyCode) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(letter) => self.filter.push(letter),
            _ => {}
        }
    }

    fn move_by(&mut self, by: isize) {
        let shown: Vec<_> = self.shown().map(key).collect();
        let Some((at, _)) = self.selected() else {
            return;
        };
        let last = shown.len() - 1;
        self.selected = Some(shown[at.saturating_add_signed(by).min(last)]);
    }

    fn order(&mut self) {
        let pasts = &self.pasts;
        let recent = |row: &Row| {
            let past = pasts.get(&key(row));
            past.map_or(0, |past| past.drops.iter().rev().take(10).sum::<u64>())
        };
        // In thousandths, so that it can be compared.
        let fill = |row: &Row| {
            let queue = &row.accept_queue;
            u64::from(queue.depth) * 1000 / (u64::from(queue.limit) + 1)
        };
        let wait = |row: &Row| row.accept_latency_us.map_or(0, |spread| spread.p99);
        let oldest = |row: &Row| row.oldest_waiting_us.unwrap_or(0);
        let sort = self.sort;
        self.rows.sort_by_key(|row| {
            let most = match sort {
                Sort::Trouble => (recent(row), fill(row), drops(row), oldest(row)),
                Sort::Drops => (drops(row), recent(row), fill(row), 0),
                Sort::Queue => (fill(row), oldest(row), 0, 0),
                Sort::Wait => (wait(row), oldest(row), 0, 0),
                Sort::Oldest => (oldest(row), fill(row), 0, 0),
                Sort::Port => (0, 0, 0, 0),
            };
            (
                Reverse(most),
                row.listener.port,
                row.netns,
                row.listener.addr,
                row.listener.inode,
            )
        });
    }
}

fn push(past: &mut VecDeque<u64>, value: u64) {
    if past.len() == PAST {
        past.pop_front();
    }
    past.push_back(value);
}

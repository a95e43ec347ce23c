//! What `top` shows, and what keys do to it. Knows no terminal, no clock and no kernel.

use std::cmp::Reverse;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::{
    model::{
        snapshot::{Snapshot, SocketKey},
        words::listener_words,
    },
    top::seen::{Past, Seen},
};

/// What to do after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Go on.
    GoOn,
    /// End.
    Quit,
    /// Show another moment of the recording.
    Jump(Jump),
}

/// From one moment of a recording to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jump {
    /// So many seconds further, or back.
    By(i64),
    /// To its beginning.
    Home,
    /// To its end.
    End,
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

/// All of it.
#[derive(Debug)]
pub struct Top {
    /// Who observes what, how.
    pub title: String,
    /// What cannot be told here.
    pub notes: Vec<String>,
    /// Whether colours are wanted.
    pub colour: bool,
    /// From when to when the recording goes, nanoseconds since 1970; `None`: it is live.
    pub span: Option<(i128, i128)>,
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
    /// What is shown.
    pub seen: Seen,
    selected: Option<SocketKey>,
}

impl Top {
    /// Before the first look.
    pub fn new(title: String, notes: Vec<String>, colour: bool) -> Self {
        Self {
            title,
            notes,
            colour,
            span: None,
            paused: false,
            help: false,
            typing: false,
            filter: String::new(),
            sort: Sort::Trouble,
            seen: Seen::default(),
            selected: None,
        }
    }

    /// Shows this from now on.
    pub fn show(&mut self, seen: Seen) {
        self.seen = seen;
        self.order();
    }

    /// Whether the cursor is at the recording's end.
    pub fn at_end(&self) -> bool {
        self.span.is_some_and(|(_, to)| self.seen.at_ns >= to)
    }

    /// The listeners that pass the filter, in order.
    pub fn shown(&self) -> impl Iterator<Item = &Snapshot> {
        let filter = self.filter.to_lowercase();
        self.seen.rows.iter().filter(move |row| {
            let text = format!("{} {}", name(row), owner(row));
            text.to_lowercase().contains(&filter)
        })
    }

    /// The listener that is looked at closely, and its place among those shown.
    pub fn selected(&self) -> Option<(usize, &Snapshot)> {
        let mut shown = self.shown().enumerate();
        let first = self.shown().next();
        match shown.find(|(_, row)| Some(row.key()) == self.selected) {
            Some(found) => Some(found),
            None => first.map(|row| (0, row)),
        }
    }

    /// A key was pressed.
    pub fn press(&mut self, pressed: KeyEvent) -> Then {
        let control = pressed.modifiers.contains(KeyModifiers::CONTROL);
        if let Some(step) = self.step_of(pressed.code) {
            return Then::Jump(step);
        }
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

    /// Where in a recording a key leads.
    fn step_of(&self, code: KeyCode) -> Option<Jump> {
        let writes = self.typing && matches!(code, KeyCode::Char(_));
        if self.span.is_none() || self.help || writes {
            return None;
        }
        match code {
            KeyCode::Left => Some(Jump::By(-1)),
            KeyCode::Right => Some(Jump::By(1)),
            KeyCode::Char('[') => Some(Jump::By(-60)),
            KeyCode::Char(']') => Some(Jump::By(60)),
            KeyCode::Home => Some(Jump::Home),
            KeyCode::End => Some(Jump::End),
            _ => None,
        }
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
        let shown: Vec<_> = self.shown().map(Snapshot::key).collect();
        let Some((at, _)) = self.selected() else {
            return;
        };
        let last = shown.len() - 1;
        self.selected = Some(shown[at.saturating_add_signed(by).min(last)]);
    }

    fn order(&mut self) {
        let sort = self.sort;
        let mut rows = std::mem::take(&mut self.seen.rows);
        rows.sort_by_cached_key(|row| {
            let recent = self.seen.past(row).map_or(0, Past::recent_drops);
            // In thousandths, so that it can be compared.
            let fill = match (row.depth(), row.limit()) {
                (Some(depth), Some(limit)) => u64::from(depth) * 1000 / (u64::from(limit) + 1),
                _ => 0,
            };
            let latency = row.accept_latency_us;
            let wait = latency.and_then(|latency| latency.p99).unwrap_or(0);
            let oldest = row.oldest_waiting_us.unwrap_or(0);
            let most = match sort {
                Sort::Trouble => (recent, fill, row.refused(), oldest),
                Sort::Drops => (row.refused(), recent, fill, 0),
                Sort::Queue => (fill, oldest, 0, 0),
                Sort::Wait => (wait, oldest, 0, 0),
                Sort::Oldest => (oldest, fill, 0, 0),
                Sort::Port => (0, 0, 0, 0),
            };
            let (netns, port, inode) = row.key();
            (Reverse(most), port, netns, row.listener.addr, inode)
        });
        self.seen.rows = rows;
    }
}

/// Where it listens, and which one of a group it is.
pub fn name(row: &Snapshot) -> String {
    let listener = &row.listener;
    let mut name = listener_words(listener, row.device_name.as_deref());
    if let Some(group) = row.group.filter(|group| group.size > 1) {
        name.push_str(&format!(
            " {}/{}",
            group.index.saturating_add(1),
            group.size
        ));
    }
    name
}

/// Whose it is.
pub fn owner(row: &Snapshot) -> String {
    row.owner().unwrap_or_else(|| "?".to_owned())
}

//! What the rate limit or a full ring withheld of the stream: reported as numbers, once a
//! second.

use std::collections::HashMap;

use queue_trace_common::{
    outcome::Outcome,
    settings::{CountKey, Counted},
};

use crate::model::{
    clock::{monotonic_now, wall_now},
    event::Event,
    socket::Listener,
};

/// What of it has been told.
#[derive(Debug, Default)]
pub struct Withheld {
    told: HashMap<CountKey, u64>,
}

impl Withheld {
    /// What was withheld since the last time: an event for each listener and outcome that
    /// stands for all of them. `listener` says what is known of a count's listener.
    pub fn news(
        &mut self,
        counts: &HashMap<CountKey, Counted>,
        listener: impl Fn(&CountKey) -> Listener,
    ) -> Vec<Event> {
        let (mono_ns, wall_ns) = (monotonic_now(), wall_now());
        let mut events = Vec::new();
        for (key, counted) in counts.iter().filter(|(_, counted)| counted.held > 0) {
            let told = self.told.entry(*key).or_default();
            let news = counted.held.saturating_sub(*told);
            *told = counted.held;
            let Some(outcome) = Outcome::of(key.outcome).filter(|_| news > 0) else {
                continue;
            };
            events.push(Event {
                mono_ns,
                wall_ns,
                outcome,
                count: news,
                netns: key.netns,
                listener: listener(key),
                local: None,
                client: None,
                accept_queue: None,
                syn_queue: None,
                sysctls: None,
                retransmits: None,
                waited_us: None,
                process: None,
                moved: key.moved,
                cpu: None,
                sk: key.sk,
            });
        }
        events
    }
}

impl Withheld {
    /// Forgets a count that is over.
    pub fn forget(&mut self, key: &CountKey) {
        self.told.remove(key);
    }
}

/// What a count itself says of its listener.
#[must_use]
pub fn listener_of(key: &CountKey) -> Listener {
    Listener {
        addr: None,
        port: key.port,
        cookie: None,
        inode: (key.inode != 0).then_some(key.inode),
        device: None,
    }
}

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
    /// Forgets the part of a count that is over: most often all of it.
    pub fn forget(&mut self, key: &CountKey, held: u64) {
        forget(&mut self.told, key, held);
    }
}

/// Takes away from what was told of a count the part that is over. What came to it since is not
/// told again.
pub fn forget(told: &mut HashMap<CountKey, u64>, key: &CountKey, over: u64) {
    if let Some(count) = told.get_mut(key) {
        *count = count.saturating_sub(over);
        if *count == 0 {
            told.remove(key);
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_to_a_count_while_it_is_taken_out_is_told_once() {
        let key = CountKey {
            port: 80,
            ..CountKey::default()
        };
        let mut withheld = Withheld::default();
        let news = |withheld: &mut Withheld, held| -> u64 {
            let counts = [(key, Counted { seen: held, held })].into();
            let events = withheld.news(&counts, listener_of);
            events.iter().map(|event| event.count).sum()
        };
        // Of seven five are over: the kernel side has two from now on.
        assert_eq!(news(&mut withheld, 7), 7);
        withheld.forget(&key, 5);
        assert_eq!(news(&mut withheld, 2), 0);
        assert_eq!(news(&mut withheld, 3), 1);
        withheld.forget(&key, 3);
        assert!(withheld.told.is_empty());
    }
}

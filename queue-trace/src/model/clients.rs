//! Who is flooding: the networks from which most of a listener's events come, in bounded
//! memory.
//!
//! An event that is reported by itself has a client. Those that are withheld come as a number
//! once a second, and are shared out among the networks of the same second as its events
//! that were told: each CPU tells one as soon as its allowance has room again, whoever it
//! is from, so these are a sample. How far off a share may be is known from the sample's
//! size ([`Clients::margin`]); what there is no room for is bounded by
//! [`SpaceSaving`].

use std::{cmp::Reverse, collections::BTreeMap, net::IpAddr, str::FromStr};

use ipnet::IpNet;
use queue_trace_common::outcome::Kind;
use serde::{Deserialize, Serialize};

use crate::model::{
    event::Event, snapshot::SocketKey, socket::Listener, space_saving::SpaceSaving,
};

/// How long a client's network is taken to be, bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixes {
    /// Of an IPv4 address.
    pub v4: u8,
    /// Of an IPv6 address.
    pub v6: u8,
}

impl Default for Prefixes {
    fn default() -> Self {
        Self { v4: 24, v6: 64 }
    }
}

impl FromStr for Prefixes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bits = |text: &str, most: u8| {
            let bits = text.trim_start_matches('/').parse().ok();
            bits.filter(|bits| *bits <= most)
        };
        text.split_once(',')
            .and_then(|(v4, v6)| {
                Some(Self {
                    v4: bits(v4, 32)?,
                    v6: bits(v6, 128)?,
                })
            })
            .ok_or_else(|| {
                "not two lengths, of IPv4 (to 32) and IPv6 (to 128) networks, like 24,64".to_owned()
            })
    }
}

impl Prefixes {
    /// The network of a client.
    fn network(self, client: IpAddr) -> IpNet {
        let bits = match client {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        };
        // The lengths were checked; a network is then always there.
        IpNet::new(client, bits).map_or(IpNet::from(client), |network| network.trunc())
    }
}

/// Networks for which there is room at each listener: no count is too large by more than
/// this part of the listener's events.
pub const ROOM: usize = 128;
/// Listeners that are kept where there are many: those with most refusals. There is room for
/// twice as many until then.
pub const LISTENERS: usize = 256;

/// More in one event is no count, but a garbled recording's.
const MOST_AT_ONCE: u64 = 1 << 40;

/// The networks of every listener's clients.
#[derive(Debug, Clone, Default)]
pub struct ClientTable {
    prefixes: Prefixes,
    listeners: BTreeMap<SocketKey, Sample>,
}

#[derive(Debug, Clone)]
struct Sample {
    listener: Listener,
    all: SpaceSaving<IpNet>,
    /// Of this second, those that were told.
    second: SpaceSaving<IpNet>,
    /// How many were withheld in this second, so far.
    held: u64,
    told: u64,
    events: u64,
    /// Those among them that were refusals.
    refused: u64,
    unattributed: u64,
    /// The sum, over the seconds in which some were held back, of the square of its
    /// events over its sample's size: four times the largest variance of a count.
    variance: f64,
}

/// The networks from which most of a listener's events came, the first ones first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "clients")]
pub struct Clients {
    /// The network namespace.
    pub netns: u32,
    /// The listener.
    pub listener: Listener,
    /// Its events that could have had a client: exact, unless it was left out for a while as
    /// there were many listeners in more trouble.
    pub events: u64,
    /// Those among them that were told with their client.
    pub told: u64,
    /// Those among them that were withheld in a second in which none was told.
    pub unattributed: u64,
    /// With a probability of 95% the share of any network in `events` is not further off
    /// than this; 0 if all were told.
    pub margin: f64,
    /// The networks.
    pub networks: Vec<Network>,
}

/// A network of clients.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// The network.
    pub network: IpNet,
    /// How many events came from it, as far as can be told.
    pub count: u64,
    /// By how much that may also be too large, for lack of room.
    pub over: u64,
}

impl Network {
    /// Its part of all events.
    #[must_use]
    pub fn share(&self, of: &Clients) -> f64 {
        self.count as f64 / of.events.max(1) as f64
    }
}

impl Clients {
    /// Whether there were more networks than there is room for.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.networks.iter().any(|network| network.over > 0)
    }

    /// How much of it is known, in words; empty if all is.
    #[must_use]
    pub fn estimate(&self) -> String {
        if self.told == self.events {
            return String::new();
        }
        format!(
            "estimated from {} of {} events; shares are good to {:.1}%",
            self.told,
            self.events,
            self.margin * 100.0
        )
    }
}

impl ClientTable {
    /// An empty one.
    #[must_use]
    pub fn new(prefixes: Prefixes) -> Self {
        Self {
            prefixes,
            listeners: BTreeMap::new(),
        }
    }

    /// About how much memory it takes, bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        /// Of a network: in two tables, by name and by count.
        const NETWORK: usize = 192;
        let samples = self.listeners.values();
        let networks = samples.map(|sample| sample.all.things() + sample.second.things());
        self.listeners.len() * size_of::<Sample>() + networks.sum::<usize>() * NETWORK
    }

    /// Takes in an event of the stream, reported by itself or withheld.
    pub fn take(&mut self, event: &Event) {
        let key = (event.netns, event.listener.port, event.listener.inode);
        if !self.listeners.contains_key(&key) && self.listeners.len() >= 2 * LISTENERS {
            self.make_room();
        }
        let sample = self
            .listeners
            .entry(key)
            .or_insert_with(|| Sample::new(event.listener));
        let count = event.count.min(MOST_AT_ONCE);
        if event.outcome.kind == Kind::Refusal {
            sample.refused = sample.refused.saturating_add(count);
        }
        match event.client {
            Some(client) => sample.told(self.prefixes.network(client.addr), count),
            None if event.is_held_back() => sample.held(count),
            // A closed listener's connections, which are no client's more than another's.
            None => {}
        }
    }

    /// Keeps the listeners in trouble.
    fn make_room(&mut self) {
        let mut all: Vec<_> = std::mem::take(&mut self.listeners).into_iter().collect();
        all.sort_by_key(|(_, sample)| Reverse((sample.refused, sample.events)));
        all.truncate(LISTENERS);
        self.listeners = all.into_iter().collect();
    }

    /// A second is over, and what was withheld in it was taken in.
    pub fn end_second(&mut self) {
        for sample in self.listeners.values_mut() {
            sample.end_second();
        }
    }

    /// The `most` networks of each listener.
    #[must_use]
    pub fn top(&self, most: usize) -> Vec<Clients> {
        let with_events = self
            .listeners
            .iter()
            .filter(|(_, sample)| sample.events > 0);
        with_events
            .map(|(key, sample)| sample.top(key.0, most))
            .collect()
    }

    /// All networks of one listener, by its namespace, port and inode number.
    #[must_use]
    pub fn of(&self, netns: u32, port: u16, inode: Option<u64>) -> Option<Clients> {
        let sample = self.listeners.get(&(netns, port, inode))?;
        (sample.events > 0).then(|| sample.top(netns, ROOM))
    }
}

impl Sample {
    fn new(listener: Listener) -> Self {
        Self {
            listener,
            all: SpaceSaving::new(ROOM),
            second: SpaceSaving::new(ROOM),
            held: 0,
            told: 0,
            events: 0,
            refused: 0,
            unattributed: 0,
            variance: 0.0,
        }
    }

    fn told(&mut self, network: IpNet, count: u64) {
        self.all.add(network, count);
        self.second.add(network, count);
        self.told += count;
        self.events += count;
    }

    fn held(&mut self, count: u64) {
        self.held += count;
        self.events += count;
    }

    fn end_second(&mut self) {
        let told = self.second.total();
        if self.held > 0 && told == 0 {
            self.unattributed += self.held;
        } else if self.held > 0 {
            let mut left = (told, self.held);
            for (network, count) in self.second.iter() {
                // Of what is left, so that all of it is shared out.
                let part = u128::from(left.1) * u128::from(count.count) / u128::from(left.0);
                let part = u64::try_from(part).unwrap_or(left.1);
                self.all.add(network, part);
                left = (left.0 - count.count, left.1 - part);
            }
            let events = (told + self.held) as f64;
            self.variance += events * events / told as f64;
        }
        self.held = 0;
        self.second.clear();
    }

    fn top(&self, netns: u32, most: usize) -> Clients {
        // The normal distribution's 95%, of a share of one half, which is the worst.
        let margin = 1.96 / 2.0 * self.variance.sqrt() / self.events as f64;
        Clients {
            netns,
            listener: self.listener,
            events: self.events,
            told: self.told,
            unattributed: self.unattributed,
            margin: (margin.min(1.0) * 1e4).ceil() / 1e4,
            networks: self
                .all
                .iter()
                .take(most)
                .map(|(network, count)| Network {
                    network,
                    count: count.count,
                    over: count.error,
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use queue_trace_common::outcome::{self, OUTCOMES};

    use super::*;
    use crate::model::socket::Client;

    fn event(client: Option<&str>, count: u64) -> Event {
        Event {
            mono_ns: 0,
            wall_ns: 0,
            outcome: &OUTCOMES[usize::from(outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL)],
            count,
            netns: 1,
            listener: Listener {
                addr: None,
                port: 80,
                cookie: None,
                inode: Some(5),
                device: None,
            },
            local: None,
            client: client.map(|addr| Client {
                addr: addr.parse().unwrap(),
                port: 1,
            }),
            waited_us: None,
            process: None,
            accept_queue: None,
            syn_queue: None,
            sysctls: None,
            retransmits: None,
            moved: 0,
            cpu: None,
            sk: 0,
        }
    }

    #[test]
    fn clients_are_put_together_by_network() {
        let mut table = ClientTable::new(Prefixes::default());
        for client in [
            "192.0.2.1",
            "192.0.2.200",
            "198.51.100.7",
            "2001:db8::1",
            "2001:db8::2",
        ] {
            table.take(&event(Some(client), 1));
        }
        let top = &table.top(10)[0];
        let networks: Vec<_> = top
            .networks
            .iter()
            .map(|network| (network.network.to_string(), network.count, network.over))
            .collect();
        assert!(
            networks.contains(&("192.0.2.0/24".into(), 2, 0)),
            "{networks:?}"
        );
        assert!(
            networks.contains(&("2001:db8::/64".into(), 2, 0)),
            "{networks:?}"
        );
        assert_eq!((top.events, top.told, top.margin), (5, 5, 0.0));
    }

    #[test]
    fn of_many_listeners_those_in_trouble_are_kept() {
        let mut table = ClientTable::new(Prefixes::default());
        for inode in 0..20_000 {
            let mut one = event(Some("192.0.2.1"), 9);
            one.listener.inode = Some(inode);
            if inode != 1500 {
                one.outcome = &OUTCOMES[usize::from(outcome::QUEUED)];
            }
            table.take(&one);
        }
        let kept = table.top(1);
        assert!(kept.len() <= 2 * LISTENERS, "{}", kept.len());
        assert!(kept.iter().any(|one| one.listener.inode == Some(1500)));
    }

    #[test]
    fn what_was_held_back_is_shared_out_as_the_sample_says() {
        let mut table = ClientTable::new(Prefixes::default());
        for number in 0..1000 {
            let from = if number % 4 == 0 {
                "198.51.100.1"
            } else {
                "192.0.2.1"
            };
            table.take(&event(Some(from), 1));
        }
        table.take(&event(None, 99_000));
        table.end_second();
        let top = &table.top(1)[0];
        assert_eq!((top.events, top.told, top.unattributed), (100_000, 1000, 0));
        assert_eq!(top.networks[0].count, 75_000);
        // 0.98 / sqrt(1000)
        assert!((top.margin - 0.031).abs() < 0.0002, "{}", top.margin);
    }

    #[test]
    fn a_second_without_a_sample_is_said() {
        let mut table = ClientTable::new(Prefixes::default());
        table.take(&event(None, 7));
        table.end_second();
        let top = &table.top(1)[0];
        assert_eq!((top.events, top.unattributed), (7, 7));
        assert!(top.networks.is_empty());
    }

    #[test]
    fn lengths_are_read_and_checked() {
        assert_eq!("16,48".parse(), Ok(Prefixes { v4: 16, v6: 48 }));
        assert_eq!("/32,/128".parse(), Ok(Prefixes { v4: 32, v6: 128 }));
        for wrong in ["24", "33,64", "24,129", "a,b", ""] {
            assert!(wrong.parse::<Prefixes>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost(seconds in proptest::collection::vec((proptest::collection::vec(any::<u32>(), 0..50), 0u64..100_000), 1..5)) {
            let mut table = ClientTable::new(Prefixes::default());
            let mut events = 0;
            for (clients, held) in seconds {
                events += clients.len() as u64 + held;
                for client in clients {
                    let client = IpAddr::from(client.to_be_bytes()).to_string();
                    table.take(&event(Some(&client), 1));
                }
                table.take(&event(None, held));
                table.end_second();
            }
            if events > 0 {
                let top = &table.top(ROOM)[0];
                prop_assert_eq!(top.events, events);
                let counted: u64 = top.networks.iter().map(|network| network.count).sum();
                prop_assert_eq!(counted + top.unattributed, events);
            }
        }
    }
}

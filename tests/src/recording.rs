//! What the program wrote with `--json`, and what must hold of it.

#![expect(missing_docs, reason = "docs/events.md says what the fields are")]

use std::{collections::BTreeMap, net::IpAddr, sync::LazyLock};

use queue_trace::lab::Netns;
use queue_trace_common::{counter::SOLE, outcome::BY_SOLE};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{
    counters::Counters,
    expected::{Sums, name_of},
};

/// One line.
#[derive(Clone, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Line {
    Header(Header),
    Event(Event),
    Loss(Map<String, Value>),
    Total(Total),
    Ledger(Ledger),
    Listener(Box<Row>),
    /// Lines that these tests are not about.
    #[serde(other)]
    Other,
}

/// What a recording begins with.
#[derive(Clone, Debug, Deserialize)]
pub struct Header {
    pub schema: u32,
    pub time: String,
    pub host: String,
    pub kernel: String,
    pub attach: AttachPlan,
}

/// How it attached.
#[derive(Clone, Debug, Deserialize)]
pub struct AttachPlan {
    pub family: String,
    pub hooks: Vec<String>,
    pub filters: Option<Vec<String>>,
}

/// A verdict.
#[derive(Clone, Debug, Deserialize)]
pub struct Event {
    pub time: String,
    pub mono_ns: u64,
    pub step: String,
    pub verdict: String,
    pub cause: Option<String>,
    pub netns: u32,
    pub listener: Listener,
    pub client: Option<Client>,
    pub accept_queue: Option<AcceptQueue>,
    pub syn_queue: Option<SynQueue>,
    pub waited_us: Option<u64>,
    pub process: Option<Process>,
    pub cpu: Option<u32>,
    pub count: u64,
}

/// A listener.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Listener {
    pub addr: Option<IpAddr>,
    pub port: u16,
    pub cookie: Option<u64>,
    pub inode: Option<u64>,
}

/// What is known of a listener at a moment.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Row {
    pub netns: u32,
    pub listener: Listener,
    pub processes: Vec<Process>,
    pub cgroup: Option<String>,
    pub container: Option<String>,
    pub pod: Option<String>,
    pub pod_name: Option<String>,
    pub group: Option<Group>,
    pub accept_queue: AcceptGauge,
    pub syn_queue: Option<SynGauge>,
    pub drops: Option<Sums>,
    pub counts: Option<Sums>,
    pub accept_latency_us: Option<Spread>,
    pub handshake_us: Option<Spread>,
    pub oldest_waiting_us: Option<u64>,
    pub default_of: Option<String>,
    #[serde(default)]
    pub closed: bool,
}

/// A process.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Process {
    pub pid: u32,
    pub comm: Option<String>,
}

/// A place in a group.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
pub struct Group {
    pub index: u32,
    pub size: u32,
    pub share: Option<f64>,
    #[serde(default)]
    pub full_among_idle: bool,
}

/// The accept queue of a listener.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct AcceptGauge {
    /// 0 of one that was closed, of which it is not known.
    #[serde(default)]
    pub depth: u32,
    #[serde(default)]
    pub limit: u32,
    pub limit_from: Option<String>,
    /// The backlog that listen() was given.
    pub asked: Option<i32>,
    pub somaxconn: Option<u32>,
    pub high_water: Option<u32>,
    pub full_us: Option<u64>,
    pub full_times: Option<u64>,
}

/// The SYN queue of a listener.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct SynGauge {
    pub depth: u32,
    pub young: u32,
    pub limit: u32,
    pub high_water: Option<u32>,
}

/// How a time was spread.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Spread {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
    pub count: u64,
}

/// A client.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
pub struct Client {
    pub addr: IpAddr,
    pub port: u16,
}

/// The accept queue.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct AcceptQueue {
    pub depth: u32,
    pub limit: u32,
}

/// The SYN queue.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct SynQueue {
    pub depth: u32,
    pub young: u32,
    pub limit: u32,
}

/// The exact count of one outcome at one listener.
#[derive(Clone, Debug, Deserialize)]
pub struct Total {
    pub netns: u32,
    pub listener: Listener,
    pub step: String,
    pub verdict: String,
    pub cause: Option<String>,
    pub count: u64,
}

/// A namespace's ledger.
#[derive(Clone, Debug, Deserialize)]
pub struct Ledger {
    pub netns: u32,
    pub counters: BTreeMap<String, Sides>,
    #[serde(default)]
    pub in_front: BTreeMap<String, FrontSides>,
    pub lost: u64,
    pub unexplained: Option<u64>,
    pub note: Option<String>,
    pub other_drops: Option<u64>,
}

/// Both sides of one counter.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct Sides {
    pub kernel: Option<u64>,
    pub seen: u64,
}

/// Both sides of the counters of packets that are dropped in front of the queues.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
pub struct FrontSides {
    pub kernel: Option<u64>,
    pub seen: Option<u64>,
}

impl Event {
    /// The outcome's name, as for `--event`.
    #[must_use]
    pub fn name(&self) -> String {
        name(&self.verdict, self.cause.as_deref())
    }
}

fn name(verdict: &str, cause: Option<&str>) -> String {
    match cause {
        Some(cause) => format!("{verdict}:{cause}"),
        None => verdict.to_owned(),
    }
}

const EVENTS_VALIDATED: usize = 1000;

/// docs/events.schema.json knows the line.
fn assert_in_schema(line: &str) {
    static SCHEMA: LazyLock<jsonschema::Validator> = LazyLock::new(|| {
        let schema = include_str!("../../docs/events.schema.json");
        jsonschema::options()
            .should_validate_formats(true)
            .build(&serde_json::from_str(schema).unwrap())
            .unwrap()
    });
    let value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line}"));
    let faults: Vec<_> = SCHEMA.iter_errors(&value).map(|e| e.to_string()).collect();
    assert!(faults.is_empty(), "{line}\n{}", faults.join("\n"));
}

/// What one run wrote.
#[derive(Clone, Debug)]
pub struct Recording {
    /// All of it, line by line.
    pub lines: Vec<Line>,
}

impl Recording {
    /// From the text. Every line must be one that the schema knows; of the events of a flood,
    /// which are all alike, the first ones.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut events = 0;
        for line in text.lines() {
            events += usize::from(line.starts_with("{\"type\":\"event\""));
            if events <= EVENTS_VALIDATED {
                assert_in_schema(line);
            }
        }
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in line {line}"))
        };
        Self {
            lines: text.lines().map(parse).collect(),
        }
    }

    /// Its first line.
    #[must_use]
    pub fn header(&self) -> &Header {
        match self.lines.first() {
            Some(Line::Header(header)) => header,
            other => panic!("a recording begins with a header, not with {other:?}"),
        }
    }

    /// The verdicts.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.lines.iter().filter_map(|line| match line {
            Line::Event(event) => Some(event),
            _ => None,
        })
    }

    /// What was told of listeners, in the order of telling.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.lines.iter().filter_map(|line| match line {
            Line::Listener(row) => Some(&**row),
            _ => None,
        })
    }

    /// What was told last of the socket with this inode number.
    #[must_use]
    pub fn row(&self, inode: u64) -> &Row {
        let of_it = self.rows().filter(|row| row.listener.inode == Some(inode));
        of_it.last().expect("there is no line about the listener")
    }

    /// The totals.
    pub fn totals(&self) -> impl Iterator<Item = &Total> {
        self.lines.iter().filter_map(|line| match line {
            Line::Total(total) => Some(total),
            _ => None,
        })
    }

    /// The ledgers.
    pub fn ledgers(&self) -> impl Iterator<Item = &Ledger> {
        self.lines.iter().filter_map(|line| match line {
            Line::Ledger(ledger) => Some(ledger),
            _ => None,
        })
    }

    /// The ledger of a namespace.
    #[must_use]
    pub fn ledger(&self, netns: &Netns) -> &Ledger {
        let mut of_it = self.ledgers().filter(|ledger| ledger.netns == netns.id());
        let ledger = of_it.next().expect("there is no ledger of the namespace");
        assert!(of_it.next().is_none(), "a namespace has two ledgers");
        ledger
    }

    /// What was lost, by kind, all notes together.
    #[must_use]
    pub fn lost(&self) -> BTreeMap<String, u64> {
        let mut lost = BTreeMap::new();
        for line in &self.lines {
            let Line::Loss(note) = line else { continue };
            for (kind, count) in note {
                if let Some(count @ 1..) = count.as_u64() {
                    *lost.entry(kind.clone()).or_default() += count;
                }
            }
        }
        lost
    }

    /// The events of a namespace, summed up. Without those of timers, which no test
    /// can keep from happening while it runs.
    #[must_use]
    pub fn verdicts(&self, netns: &Netns) -> Sums {
        let mut sums = Sums::new();
        for event in self.events() {
            if event.netns == netns.id() && event.step != "timer" {
                *sums.entry(event.name()).or_default() += event.count;
            }
        }
        sums
    }

    /// The totals of a namespace, in the same way.
    #[must_use]
    pub fn counted(&self, netns: &Netns) -> Sums {
        let mut sums = Sums::new();
        for total in self.totals() {
            if total.netns == netns.id() && total.step != "timer" {
                let name = name(&total.verdict, total.cause.as_deref());
                *sums.entry(name).or_default() += total.count;
            }
        }
        sums
    }

    /// Nothing was lost, and both sides of the ledger of the namespace are what its
    /// counters moved by since `before`.
    pub fn assert_reconciled(&self, netns: &Netns, before: &Counters) {
        assert_eq!(self.lost(), BTreeMap::new(), "lost");
        self.assert_ledger(netns, before);
        assert_eq!(self.ledger(netns).lost, 0);
    }

    /// Both sides of the ledger of the namespace are what its counters moved by since
    /// `before`, whatever records were lost.
    pub fn assert_ledger(&self, netns: &Netns, before: &Counters) {
        const LEAST: [&str; 7] = [
            "ListenOverflows",
            "ListenDrops",
            "TCPReqQFullDrop",
            "TCPReqQFullDoCookies",
            "SyncookiesSent",
            "SyncookiesRecv",
            "SyncookiesFailed",
        ];
        let (ledger, after) = (self.ledger(netns), Counters::of(netns));
        for name in LEAST {
            assert!(
                ledger.counters.contains_key(name),
                "the ledger lacks {name}"
            );
        }
        for (name, sides) in &ledger.counters {
            let moved = after.since(before, name);
            let exact = Sides {
                kernel: Some(moved),
                seen: moved,
            };
            assert_eq!(*sides, exact, "{name} in {ledger:?}");
        }
        for (counter, tag) in SOLE.iter().zip(BY_SOLE) {
            let moved = after.since(before, counter.name);
            let sides = ledger.in_front.get(&name_of(tag));
            let kernel = sides.and_then(|sides| sides.kernel).unwrap_or(0);
            assert_eq!(kernel, moved, "{} in {ledger:?}", counter.name);
            if let Some(seen) = sides.and_then(|sides| sides.seen) {
                assert_eq!(seen, moved, "{} in {ledger:?}", counter.name);
            }
        }
        assert_eq!(ledger.unexplained, Some(0), "{ledger:?}");
    }

    /// The verdicts in the namespace were `sums`: event by event, in the totals, and
    /// by the kernel's counters, which stood at `before` when the tracer attached.
    pub fn assert_exact(&self, netns: &Netns, before: &Counters, sums: &Sums) {
        let lost = self.lost();
        assert_eq!(self.verdicts(netns), *sums, "events; lost: {lost:?}");
        assert_eq!(self.counted(netns), *sums, "totals");
        self.assert_reconciled(netns, before);
    }
}

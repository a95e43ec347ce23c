//! What is told of the machine and of the agent itself: the ledger's two sides, what was
//! lost, how it is attached, what it costs.

use std::{collections::BTreeMap, fs};

use queue_trace_common::outcome::{OUTCOMES, Outcome, Set};
use serde_json::Value as Json;

use super::{
    exposition::{Exposition, Value},
    registry::{
        ATTACH_INFO, BUILD_INFO, CPU, EPISODES, EXPLAINED_EVENTS, HOST_OUTCOMES, INCIDENTS,
        KERNEL_EVENTS, LOOK, LOSS, MAX_FDS, OBSERVABLE, OPEN_FDS, OTLP_REQUESTS, RESIDENT,
        START_TIME, UNEXPLAINED,
    },
    series::outcome_labels,
};
use crate::model::{ledger::Ledger, lines::LossNote};

/// How the agent is attached.
#[derive(Debug, Clone, Default)]
pub struct Attached {
    /// By which family of hooks.
    pub family: String,
    /// To how many.
    pub hooks: usize,
    /// To which kernel.
    pub kernel: String,
    /// `passed`, `failed`, or `left_out`.
    pub self_test: &'static str,
    /// The outcomes that can be seen.
    pub observable: Set,
}

/// What is told of the machine and the agent.
#[derive(Debug, Default)]
pub struct HostSeries {
    /// How it is attached.
    pub attached: Attached,
    loss: BTreeMap<String, u64>,
    /// What each namespace's ledger said last.
    ledgers: BTreeMap<u32, Ledger>,
    kernel: BTreeMap<String, u64>,
    explained: BTreeMap<String, u64>,
    /// How long the last look took, seconds.
    pub look: Option<f64>,
    /// How many listeners refuse now.
    pub episodes: u64,
    /// Incident recordings by result.
    pub incidents: BTreeMap<&'static str, u64>,
    /// Requests to the OTLP endpoint by signal and result.
    pub otlp: BTreeMap<(&'static str, &'static str), u64>,
}

impl HostSeries {
    /// How it is attached, and nothing lost yet.
    #[must_use]
    pub fn new(attached: Attached) -> Self {
        Self {
            attached,
            loss: losses(&LossNote::default()).collect(),
            ..Self::default()
        }
    }

    /// More was lost.
    pub fn lost(&mut self, note: &LossNote) {
        for (kind, count) in losses(note) {
            *self.loss.entry(kind).or_default() += count;
        }
    }

    /// The ledgers as they are now. A namespace that is gone keeps what it counted.
    pub fn ledgers(&mut self, ledgers: &[Ledger]) {
        for ledger in ledgers {
            let before = self.ledgers.get(&ledger.netns);
            for (counter, line) in &ledger.counters {
                let before = before.and_then(|before| before.counters.get(counter));
                // One that stands lower than before is another namespace's.
                let moved = |now: u64, before: Option<u64>| match before {
                    Some(before) if before <= now => now - before,
                    _ => now,
                };
                if let Some(kernel) = line.kernel {
                    *self.kernel.entry(counter.clone()).or_default() +=
                        moved(kernel, before.and_then(|before| before.kernel));
                }
                *self.explained.entry(counter.clone()).or_default() +=
                    moved(line.seen, before.map(|before| before.seen));
            }
        }
        self.ledgers = ledgers
            .iter()
            .map(|ledger| (ledger.netns, ledger.clone()))
            .collect();
    }

    /// Movements of counters that no verdict explains; `None` if no ledger tells.
    #[must_use]
    pub fn unexplained(&self) -> Option<u64> {
        let told: Vec<_> = self
            .ledgers
            .values()
            .filter_map(|ledger| ledger.unexplained)
            .collect();
        (!told.is_empty()).then(|| told.into_iter().sum())
    }

    /// Tells it. `outcomes` are those of all listeners, by tag.
    pub fn tell(&self, outcomes: &BTreeMap<u8, u64>, exposition: &mut Exposition) {
        for (tag, count) in outcomes {
            if let Some(outcome) = Outcome::of(*tag) {
                exposition.host(HOST_OUTCOMES, outcome_labels(outcome), Value::Count(*count));
            }
        }
        for (metric, side) in [
            (KERNEL_EVENTS, &self.kernel),
            (EXPLAINED_EVENTS, &self.explained),
        ] {
            for (counter, count) in side {
                let labels = vec![("counter", counter.clone())];
                exposition.host(metric, labels, Value::Count(*count));
            }
        }
        if let Some(unexplained) = self.unexplained() {
            exposition.host(UNEXPLAINED, Vec::new(), Value::Count(unexplained));
        }
        for outcome in &OUTCOMES {
            let seen = self.attached.observable & outcome.bit() != 0;
            exposition.host(
                OBSERVABLE,
                outcome_labels(outcome),
                Value::Count(seen.into()),
            );
        }
        exposition.host(EPISODES, Vec::new(), Value::Count(self.episodes));
        self.tell_agent(exposition);
    }

    fn tell_agent(&self, exposition: &mut Exposition) {
        for (kind, count) in &self.loss {
            exposition.host(LOSS, vec![("kind", kind.clone())], Value::Count(*count));
        }
        for (result, count) in &self.incidents {
            let labels = vec![("result", (*result).to_owned())];
            exposition.host(INCIDENTS, labels, Value::Count(*count));
        }
        for ((signal, result), count) in &self.otlp {
            let labels = vec![
                ("signal", (*signal).to_owned()),
                ("result", (*result).to_owned()),
            ];
            exposition.host(OTLP_REQUESTS, labels, Value::Count(*count));
        }
        if let Some(seconds) = self.look {
            exposition.host(LOOK, Vec::new(), Value::Measure(seconds));
        }
        let attached = &self.attached;
        let labels = vec![
            ("family", attached.family.clone()),
            ("hooks", attached.hooks.to_string()),
            ("kernel", attached.kernel.clone()),
            ("self_test", attached.self_test.to_owned()),
        ];
        exposition.host(ATTACH_INFO, labels, Value::Count(1));
        let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
        exposition.host(BUILD_INFO, version, Value::Count(1));
        tell_process(exposition);
    }
}

/// The losses of a note by their names in JSON.
fn losses(note: &LossNote) -> impl Iterator<Item = (String, u64)> {
    let fields = match serde_json::to_value(note) {
        Ok(Json::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    fields
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_u64()?)))
}

/// What the agent costs, as its process is shown in `/proc`.
fn tell_process(exposition: &mut Exposition) {
    let mut one = |metric, value| exposition.host(metric, Vec::new(), value);
    if let Some(stat) = fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|text| Stat::parse(&text))
    {
        // Both units are fixed for user space on all that we run on.
        const TICKS: f64 = 100.0;
        let page = rustix::param::page_size() as u64;
        one(
            CPU,
            Value::Measure((stat.user + stat.system) as f64 / TICKS),
        );
        one(RESIDENT, Value::Count(stat.resident_pages * page));
        if let Some(boot) = boot_time() {
            one(
                START_TIME,
                Value::Measure(boot as f64 + stat.start as f64 / TICKS),
            );
        }
    }
    if let Ok(fds) = fs::read_dir("/proc/self/fd") {
        // Listing them opens one.
        one(
            OPEN_FDS,
            Value::Count((fds.count() as u64).saturating_sub(1)),
        );
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        one(MAX_FDS, Value::Count(most));
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    user: u64,
    system: u64,
    start: u64,
    resident_pages: u64,
}

impl Stat {
    /// From the text of `/proc/PID/stat`: a name in brackets may have spaces.
    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.rsplit_once(") ")?;
        let fields: Vec<_> = rest.split(' ').collect();
        // The first of them is the third field of proc(5).
        let field = |number: usize| fields.get(number - 3)?.trim().parse().ok();
        Some(Self {
            user: field(14)?,
            system: field(15)?,
            start: field(22)?,
            resident_pages: field(24)?,
        })
    }
}

fn boot_time() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ledger::CounterLine;

    fn ledger(netns: u32, kernel: Option<u64>, seen: u64) -> Ledger {
        Ledger {
            netns,
            counters: [("ListenDrops".to_owned(), CounterLine { kernel, seen })].into(),
            in_front: BTreeMap::new(),
            lost: 0,
            unexplained: kernel.map(|kernel| kernel.abs_diff(seen)),
            note: None,
            other_drops: None,
        }
    }

    #[test]
    fn the_two_sides_never_go_down() {
        let mut host = HostSeries::new(Attached::default());
        assert_eq!(host.unexplained(), None);
        host.ledgers(&[ledger(1, Some(5), 5), ledger(2, Some(7), 6)]);
        assert_eq!(host.unexplained(), Some(1));
        // The second is gone, and its number is another's then.
        host.ledgers(&[ledger(1, Some(6), 6), ledger(2, None, 6)]);
        host.ledgers(&[ledger(1, Some(6), 6), ledger(2, Some(1), 1)]);
        assert_eq!(host.kernel["ListenDrops"], 5 + 7 + 1 + 1);
        assert_eq!(host.explained["ListenDrops"], 5 + 6 + 1 + 1);
        assert_eq!(host.unexplained(), Some(0));
    }

    #[test]
    fn every_kind_of_loss_is_there_from_the_beginning() {
        let mut host = HostSeries::new(Attached::default());
        let note = LossNote {
            records: 3,
            ..LossNote::default()
        };
        host.lost(&note);
        host.lost(&note);
        assert_eq!(host.loss["records"], 6);
        assert_eq!(host.loss["undecoded"], 0);
        assert!(!host.loss.contains_key("time"));
    }

    #[test]
    fn a_name_with_brackets_is_passed_over() {
        let text = "7 (a) (b) S 1 2 3 4 5 6 7 8 9 10 140 150 16 17 18 19 20 21 220 23 240 25";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.user, stat.system), (140, 150));
    }
}

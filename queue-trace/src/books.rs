//! Keeps the books of a run: looks at both sides of the ledger when it begins and
//! when it ends, for every namespace.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::Result;
use queue_trace_common::settings::{CountKey, Counted};

use crate::{
    ledger::{Counters, Ledger, Look},
    netns,
    probe::Probe,
    wanted::Wanted,
};

/// The books as they were when the run began.
pub struct Books {
    start: BTreeMap<u32, Look>,
    /// Says which namespaces they are about.
    wanted: Wanted,
    /// Why the two sides cannot be compared, if they cannot.
    partial: Option<&'static str>,
    /// What an audit has reported already, by namespace.
    reported: BTreeMap<u32, u64>,
}

/// How often a difference is looked at again before it is believed: a packet in
/// flight on another CPU has moved the kernel's counter and not yet ours.
const TRIES: usize = 10;
const BETWEEN: Duration = Duration::from_millis(20);

impl Books {
    /// Opens the books.
    ///
    /// # Errors
    /// If the kernel side's counts cannot be read.
    pub fn open(probe: &Probe, wanted: &Wanted) -> Result<Self> {
        let mut books = Self {
            start: BTreeMap::new(),
            wanted: wanted.clone(),
            partial: (!wanted.counts_all()).then_some("a filter leaves out some packets"),
            reported: BTreeMap::new(),
        };
        books.start = books.look(probe)?;
        Ok(books)
    }

    fn look(&self, probe: &Probe) -> Result<BTreeMap<u32, Look>> {
        let doors = self.wanted.namespaces();
        let before = seen(&probe.counts()?);
        let kernel: BTreeMap<_, _> = doors
            .iter()
            // A namespace that vanishes meanwhile is not there to look at.
            .filter_map(|(id, door)| Some((*id, netns::counters(*id, door).ok()?)))
            .collect();
        let after = seen(&probe.counts()?);
        let side =
            |sums: &HashMap<u32, Counters>, id: u32| sums.get(&id).copied().unwrap_or_default();
        Ok(kernel
            .into_iter()
            .map(|(id, kernel)| {
                let look = Look {
                    seen_before: side(&before, id),
                    kernel,
                    seen_after: side(&after, id),
                };
                (id, look)
            })
            .collect())
    }

    /// Closes the books: the ledger of each namespace in which something moved. Those
    /// that came into being meanwhile began at zero.
    ///
    /// # Errors
    /// If the kernel side's counts cannot be read.
    pub fn close(&self, probe: &Probe) -> Result<Vec<Ledger>> {
        let mut ledgers = self.compare(probe)?;
        for _ in 1..TRIES {
            if ledgers.iter().all(|ledger| ledger.unexplained == Some(0)) || self.partial.is_some()
            {
                break;
            }
            std::thread::sleep(BETWEEN);
            ledgers = self.compare(probe)?;
        }
        if probe.loss()?.map_full > 0 {
            for ledger in &mut ledgers {
                ledger.note = Some("some counts found no room by listener".to_owned());
            }
        }
        if let Some(why) = self.partial {
            for ledger in &mut ledgers {
                ledger.unexplained = None;
                ledger.note.get_or_insert_with(|| why.to_owned());
            }
        }
        Ok(ledgers)
    }

    /// Looks at the books while running: the ledgers with a difference that is new.
    ///
    /// # Errors
    /// If the kernel side's counts cannot be read.
    pub fn audit(&mut self, probe: &Probe) -> Result<Vec<Ledger>> {
        let mut ledgers = self.close(probe)?;
        ledgers.retain(|ledger| {
            let unexplained = ledger.unexplained.unwrap_or(0);
            let before = self.reported.insert(ledger.netns, unexplained);
            unexplained > before.unwrap_or(0)
        });
        Ok(ledgers)
    }

    fn compare(&self, probe: &Probe) -> Result<Vec<Ledger>> {
        let lost = probe.loss()?.ring_full;
        let end = self.look(probe)?;
        let own = netns::own().ok();
        let mut ledgers: Vec<_> = end
            .iter()
            .map(|(id, look)| {
                let start = self.start.get(id).copied().unwrap_or_default();
                Ledger::between(*id, &start, look, lost)
            })
            .filter(|ledger| {
                !ledger.is_still()
                    || Some(ledger.netns) == own
                    || self.wanted.netns.contains_key(&ledger.netns)
            })
            .collect();
        let gone = seen(&probe.counts()?)
            .into_iter()
            .filter(|(id, _)| !end.contains_key(id))
            .map(|(id, seen)| Ledger::of_gone(id, &seen, lost))
            .filter(|ledger| !ledger.is_still());
        ledgers.extend(gone);
        Ok(ledgers)
    }
}

/// Our side: what the verdicts so far moved, by namespace.
fn seen(counts: &HashMap<CountKey, Counted>) -> HashMap<u32, Counters> {
    let mut sums = HashMap::new();
    for (key, count) in counts {
        let sum: &mut Counters = sums.entry(key.netns).or_default();
        sum.add(key.moved, count.seen);
    }
    sums
}

//! Keeps the books of a run: looks at both sides of the ledger when it begins and
//! when it ends, for every namespace.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use anyhow::Result;
use queue_trace_common::settings::{CountKey, Counted};

use crate::{
    kernel::{mark, netns, probe::Probe, selection::Selection},
    model::ledger::{Counters, Ledger, Look},
};

/// The books as they were when the run began.
pub struct Audit {
    start: BTreeMap<Identity, Look>,
    /// Says which namespaces they are about.
    selection: Selection,
    /// Why the two sides cannot be compared, if they cannot.
    partial: Option<&'static str>,
    /// What an audit has reported already, by namespace.
    reported: BTreeMap<u32, u64>,
}

/// A namespace and not another one that had its number before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Identity {
    netns: u32,
    /// `None` on kernels that do not tell; then the number has to do.
    cookie: Option<u64>,
}

impl Identity {
    /// Whether counts of these are counts of this namespace.
    fn is(self, seen: Seen) -> bool {
        self.netns == seen.netns && self.cookie.is_none_or(|cookie| cookie == seen.cookie)
    }

    /// Our side of it.
    fn side(self, sums: &HashMap<Seen, Counters>) -> Counters {
        let mut side = Counters::default();
        for (_, sum) in sums.iter().filter(|(seen, _)| self.is(**seen)) {
            side.add_all(sum);
        }
        side
    }
}

/// A namespace as the kernel side names it in its counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Seen {
    netns: u32,
    cookie: u64,
}

/// How often a difference is looked at again before it is believed: a packet in
/// flight on another CPU has moved the kernel's counter and not yet ours.
const TRIES: usize = 10;
const BETWEEN: Duration = Duration::from_millis(20);

/// What to know of verdicts that no movement backs, where namespaces have only numbers.
const NUMBER_ONLY: &str = "more was seen than this namespace's counters say: some of it may be of an earlier \
     namespace that had its number, which kernels before 5.14 do not tell";

impl Audit {
    /// Opens the books.
    ///
    /// # Errors
    /// If the kernel side's counts cannot be read.
    pub fn open(probe: &mut Probe, selection: &Selection) -> Result<Self> {
        let mut audit = Self {
            start: BTreeMap::new(),
            selection: selection.clone(),
            partial: (!selection.counts_all()).then_some("a filter leaves out some packets"),
            reported: BTreeMap::new(),
        };
        audit.start = audit.look(probe)?;
        Ok(audit)
    }

    fn look(&self, probe: &mut Probe) -> Result<BTreeMap<Identity, Look>> {
        let ways = self.selection.namespaces();
        let before = seen(&probe.counts()?);
        let kernel: BTreeMap<_, _> = ways
            .iter()
            // A namespace that vanishes meanwhile is not there to look at.
            .filter_map(|(id, way)| {
                let identity = Identity {
                    netns: *id,
                    cookie: netns::cookie(*id, way),
                };
                Some((identity, netns::counters(*id, way).ok()?))
            })
            .collect();
        let after = seen(&probe.counts()?);
        Ok(kernel
            .into_iter()
            .map(|(identity, kernel)| {
                let look = Look {
                    seen_before: identity.side(&before),
                    kernel,
                    seen_after: identity.side(&after),
                };
                (identity, look)
            })
            .collect())
    }

    /// Closes the books: the ledger of each namespace in which something moved. Those
    /// that came into being meanwhile began at zero.
    ///
    /// # Errors
    /// If the kernel side's counts cannot be read.
    pub fn close(&self, probe: &mut Probe) -> Result<Vec<Ledger>> {
        let mut ledgers = self.compare(probe)?;
        for _ in 1..TRIES {
            if ledgers.iter().all(|ledger| ledger.unexplained == Some(0)) || self.partial.is_some()
            {
                break;
            }
            std::thread::sleep(BETWEEN);
            ledgers = self.compare(probe)?;
        }
        if probe.loss().uncounted > 0 {
            for ledger in &mut ledgers {
                ledger.note =
                    Some("some counts found no room, so that our sums lack them".to_owned());
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
    pub fn news(&mut self, probe: &mut Probe) -> Result<Vec<Ledger>> {
        let mut ledgers = self.close(probe)?;
        ledgers.retain(|ledger| {
            let unexplained = ledger.unexplained.unwrap_or(0);
            let before = self.reported.insert(ledger.netns, unexplained);
            unexplained > before.unwrap_or(0)
        });
        Ok(ledgers)
    }

    fn compare(&self, probe: &mut Probe) -> Result<Vec<Ledger>> {
        let lost = probe.loss().records;
        let end = self.look(probe)?;
        let own = netns::own().ok();
        let mut ledgers: Vec<_> = end
            .iter()
            .map(|(identity, look)| {
                let mut start = self.start.get(identity).copied().unwrap_or_default();
                if look.kernel.is_behind(&start.kernel) {
                    // Another namespace has the number now.
                    start.kernel = Counters::default();
                }
                let mut ledger = Ledger::between(identity.netns, &start, look, lost);
                if identity.cookie.is_none() && ledger.is_ahead() {
                    ledger.unexplained = None;
                    ledger.note = Some(NUMBER_ONLY.to_owned());
                }
                ledger
            })
            .filter(|ledger| {
                !ledger.is_still()
                    || Some(ledger.netns) == own
                    || self.selection.netns.contains_key(&ledger.netns)
            })
            .collect();
        if ledgers.iter().any(|ledger| ledger.unexplained != Some(0)) {
            // The self-test of another queue-trace is left out of our sums.
            let paths = self.selection.namespaces();
            ledgers.retain(|ledger| {
                let path = paths.get(&ledger.netns);
                ledger.unexplained == Some(0)
                    || !path.is_some_and(|path| mark::is_on(ledger.netns, path))
            });
        }
        let gone = seen(&probe.counts()?)
            .into_iter()
            .filter(|(seen, _)| !end.keys().any(|identity| identity.is(*seen)))
            .map(|(seen, sums)| Ledger::of_gone(seen.netns, &sums, lost))
            .filter(|ledger| !ledger.is_still());
        ledgers.extend(gone);
        Ok(ledgers)
    }
}

/// Our side: what the verdicts so far moved, by namespace.
fn seen(counts: &HashMap<CountKey, Counted>) -> HashMap<Seen, Counters> {
    let mut sums = HashMap::new();
    for (key, count) in counts {
        let seen = Seen {
            netns: key.netns,
            cookie: key.netns_cookie,
        };
        let sum: &mut Counters = sums.entry(seen).or_default();
        sum.add(key.moved, count.seen);
    }
    sums
}

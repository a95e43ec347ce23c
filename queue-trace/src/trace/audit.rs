//! Audits a run: looks at both sides of the ledger when it begins and when it ends, for every
//! namespace.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use queue_trace_common::outcome;

use crate::{
    kernel::{
        mark,
        namespaces::KnownNamespaces,
        netns::{self, NetnsPath},
        probe::{CountActivity, CountedNetns, MapReader},
        selection::Selection,
    },
    model::ledger::{BothSides, Counters, Ledger},
};

/// Both sides as they were when the run began. It reads them itself, so that it can do so in
/// a thread of its own.
pub struct Audit {
    reader: MapReader,
    /// Says which namespaces it is about.
    selection: Selection,
    start: BTreeMap<NetnsIdentity, BothSides>,
    /// Namespaces whose counters could not be read when the run began.
    unread: BTreeMap<u32, io::Error>,
    /// The outcomes that are observable here and asked for.
    told: outcome::Set,
    /// Why the two sides cannot be compared, if they cannot.
    partial: Option<&'static str>,
    /// What an audit has reported already, by namespace.
    reported: BTreeMap<u32, u64>,
    given_up: Arc<AtomicBool>,
    namespaces: KnownNamespaces,
    /// How often it is compared where nothing was counted; `None`: as often as elsewhere.
    calm: Option<Duration>,
    latest: Latest,
}

/// What the latest audit found.
#[derive(Default)]
struct Latest {
    ledgers: Vec<Ledger>,
    /// Our side.
    sides: HashMap<CountedNetns, Counters>,
    activity: Option<CountActivity>,
    /// When all namespaces were looked at.
    whole_at: Option<Instant>,
}

impl Latest {
    /// The namespaces whose two sides differed.
    fn unexplained(&self) -> impl Iterator<Item = u32> {
        let differing = self
            .ledgers
            .iter()
            .filter(|ledger| ledger.unexplained.is_some_and(|count| count > 0));
        differing.map(|ledger| ledger.netns)
    }

    /// The namespaces in which something was counted since.
    fn moved(&self, sides: &HashMap<CountedNetns, Counters>) -> impl Iterator<Item = u32> {
        let moved = sides
            .iter()
            .filter(|(seen, side)| self.sides.get(seen) != Some(side));
        moved.map(|(seen, _)| seen.netns)
    }

    /// The ledgers of those that were compared now, and of the others as they were: also of one
    /// that was not found.
    fn with(&mut self, ledgers: Vec<Ledger>) -> Vec<Ledger> {
        let compared: BTreeSet<_> = ledgers.iter().map(|ledger| ledger.netns).collect();
        let mut all = std::mem::take(&mut self.ledgers);
        all.retain(|ledger| !compared.contains(&ledger.netns));
        all.extend(ledgers);
        all.sort_by_key(|ledger| ledger.netns);
        all
    }
}

/// What an audit found.
#[derive(Debug, Clone, Default)]
pub struct Audited {
    /// Ledgers, of namespaces in which something moved.
    pub ledgers: Vec<Ledger>,
    /// Those among them that have a difference that is new.
    pub news: Vec<Ledger>,
    /// Namespaces of which there are counts, and which are not to be found any more.
    pub gone: HashSet<CountedNetns>,
    /// The numbers of all namespaces, if all of this machine were looked for.
    pub there: Option<HashSet<u32>>,
    /// Namespaces in which nothing was counted, and for whose counters there was no time.
    pub skipped: usize,
}

/// A namespace and not another one that had its number before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct NetnsIdentity {
    netns: u32,
    /// `None` on kernels that do not tell; then the number has to do.
    cookie: Option<u64>,
}

/// Our side: what the verdicts so far moved, by namespace number, then by cookie.
struct Sides(HashMap<u32, Vec<(u64, Counters)>>);

impl Sides {
    fn of(sides: &HashMap<CountedNetns, Counters>) -> Self {
        let mut by_number: HashMap<u32, Vec<_>> = HashMap::new();
        for (seen, sum) in sides {
            let same = by_number.entry(seen.netns).or_default();
            same.push((seen.cookie, *sum));
        }
        Self(by_number)
    }

    /// That of one namespace.
    fn side(&self, of: NetnsIdentity) -> Counters {
        let mut side = Counters::default();
        for (cookie, sum) in self.0.get(&of.netns).into_iter().flatten() {
            if of.cookie.is_none_or(|of| of == *cookie) {
                side.add_all(sum);
            }
        }
        side
    }
}

/// Both sides at a moment.
#[derive(Default)]
struct Looked {
    looks: BTreeMap<NetnsIdentity, BothSides>,
    /// Those that are there and could not be read, and why.
    failed: BTreeMap<u32, io::Error>,
    /// Our side.
    sides: HashMap<CountedNetns, Counters>,
    /// The numbers of those that were found.
    there: HashSet<u32>,
    /// Whether all were looked for, and all looked at in which something was counted.
    whole: bool,
    /// How many others there was no time for.
    skipped: usize,
}

/// What a look that is given up looks at all the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Despite {
    Nothing,
    /// The namespaces in which something was counted, or that were asked for.
    Counted,
    All,
}

/// How often a difference is looked at again before it is believed: a packet in
/// flight on another CPU has moved the kernel's counter and not yet ours.
const TRIES: usize = 10;
const BETWEEN: Duration = Duration::from_millis(20);

/// Namespaces that are gone which have a ledger of their own: those in which most moved.
const GONE: usize = 1000;

/// What to know of verdicts that no movement backs, where namespaces have only numbers.
const NUMBER_ONLY: &str = "more was seen than this namespace's counters say: some of it may be of an earlier \
     namespace that had its number, which kernels before 5.14 do not tell";

const UNREAD: &str = "the namespace's counters could not be read when the tracer began";

impl Audit {
    /// Begins. `told`: the outcomes that are observable here and asked for. `namespaces`: those
    /// that somebody may have listed already.
    ///
    /// # Errors
    /// If the kernel side's counts cannot be read.
    pub fn open(
        reader: MapReader,
        selection: &Selection,
        told: outcome::Set,
        namespaces: KnownNamespaces,
    ) -> Result<Self> {
        let mut audit = Self {
            reader,
            selection: selection.clone(),
            start: BTreeMap::new(),
            unread: BTreeMap::new(),
            told,
            partial: (!selection.counts_all()).then_some("a filter leaves out some packets"),
            reported: BTreeMap::new(),
            given_up: Arc::default(),
            namespaces,
            calm: None,
            latest: Latest::default(),
        };
        let looked = audit.look(Despite::All, None)?;
        audit.unread = looked.failed;
        audit.start = looked.looks;
        Ok(audit)
    }

    /// To give up the audit under way from another thread: it ends soon, with what it has.
    #[must_use]
    pub fn given_up(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.given_up)
    }

    /// Namespaces whose counters could not be read when it began, and why.
    pub fn unread(&self) -> impl Iterator<Item = (u32, &io::Error)> {
        self.unread.iter().map(|(netns, why)| (*netns, why))
    }

    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Both sides now, of all namespaces or `only` of some. One that is given up looks at these
    /// `despite` that.
    fn look(&self, despite: Despite, only: Option<&BTreeSet<u32>>) -> Result<Looked> {
        let changes = self.reader.listener_changes();
        let listed = match only {
            // What is gone is found by what is there now.
            None => self.namespaces.list(&self.selection, changes),
            Some(only) => self.namespaces.with(&self.selection, changes, only),
        };
        let before = Sides::of(&self.reader.sides()?);
        let mut looked = Looked {
            there: listed.keys().copied().collect(),
            ..Looked::default()
        };
        let mut kernel = BTreeMap::new();
        let mut take =
            |namespaces: Vec<(u32, &NetnsPath)>, whole: bool, failed: &mut BTreeMap<_, _>| {
                let count = namespaces.len();
                let goes_on = || whole || !self.is_given_up();
                let read = netns::audited(namespaces.into_iter(), goes_on);
                let skipped = count - read.len();
                let mut lost = Vec::new();
                for (netns, read) in read {
                    match read {
                        Ok((cookie, counters)) => {
                            kernel.insert(NetnsIdentity { netns, cookie }, counters);
                        }
                        Err(error) if netns::is_gone(&error) => lost.push(netns),
                        Err(error) => {
                            failed.insert(netns, error);
                        }
                    }
                }
                (skipped, lost)
            };
        let own = netns::own().ok();
        let counted = |id: u32| {
            before.0.contains_key(&id) || own == Some(id) || self.selection.netns.contains_key(&id)
        };
        let all = listed.iter().map(|(id, path)| (*id, path));
        let wanted = all.filter(|(id, _)| only.is_none_or(|only| only.contains(id)));
        let (counted, others): (Vec<_>, Vec<_>) = wanted.partition(|(id, _)| counted(*id));
        let failed = &mut looked.failed;
        let (skipped, mut lost) = take(counted, despite != Despite::Nothing, failed);
        let (others_skipped, others_lost) = take(others, despite == Despite::All, failed);
        lost.extend(others_lost);
        looked.whole =
            only.is_none() && skipped == 0 && (others_skipped == 0 || despite == Despite::Counted);
        looked.skipped = others_skipped;
        if !lost.is_empty() {
            // All processes by which it was found may have ended, and others be in it still.
            let listed = self.namespaces.list(&self.selection, changes);
            let again = lost
                .iter()
                .filter_map(|id| Some((*id, listed.get(id)?)))
                .collect();
            let whole = despite != Despite::Nothing;
            let (_, lost) = take(again, whole, &mut looked.failed);
            for id in lost {
                looked.failed.insert(id, io::ErrorKind::NotFound.into());
            }
        }
        looked.sides = self.reader.sides()?;
        let after = Sides::of(&looked.sides);
        let looks = kernel.into_iter().map(|(identity, kernel)| {
            let look = BothSides {
                seen_before: before.side(identity),
                kernel,
                seen_after: after.side(identity),
            };
            (identity, look)
        });
        looked.looks = looks.collect();
        Ok(looked)
    }

    /// The ledger of each namespace in which something moved. Those that came into being
    /// meanwhile began at zero. One that is given up has those in which something was counted.
    ///
    /// # Errors
    /// If the kernel side's counts cannot be read.
    pub fn close(&self) -> Result<Audited> {
        self.compare_again(Despite::Counted, None)
    }

    fn compare_again(&self, despite: Despite, only: Option<&BTreeSet<u32>>) -> Result<Audited> {
        let mut audited = self.compare(despite, only)?;
        for _ in 1..TRIES {
            let differs = |ledger: &Ledger| ledger.unexplained.is_some_and(|count| count > 0);
            if !audited.ledgers.iter().any(differs) || self.partial.is_some() || self.is_given_up()
            {
                break;
            }
            thread::sleep(BETWEEN);
            audited = self.compare(despite, only)?;
        }
        let ledgers = &mut audited.ledgers;
        if self.reader.loss().uncounted > 0 {
            for ledger in ledgers.iter_mut() {
                ledger.note =
                    Some("some counts found no room, so that our sums lack them".to_owned());
            }
        }
        if let Some(why) = self.partial {
            for ledger in ledgers {
                ledger.unexplained = None;
                ledger.other_drops = ledger.drops_unseen();
                ledger.note.get_or_insert_with(|| why.to_owned());
            }
        }
        Ok(audited)
    }

    /// Compares the two sides so often where nothing was counted and they agreed. What the kernel
    /// counts and nobody sees is noticed as much later.
    pub fn at_rest(&mut self, calm: Duration) {
        self.calm = Some(calm);
    }

    /// Whether it is time to look at all namespaces.
    fn is_whole_due(&self) -> bool {
        let at = self.latest.whole_at;
        self.calm
            .is_none_or(|calm| at.is_none_or(|at| at.elapsed() >= calm))
    }

    /// Whether there may be news: something was counted, or it is time to look at all.
    #[must_use]
    pub fn may_have_news(&self) -> bool {
        self.is_whole_due()
            || self.latest.activity != Some(self.reader.activity())
            || self.latest.unexplained().next().is_some()
    }

    /// Audits while running, and says which differences are new.
    ///
    /// # Errors
    /// If the kernel side's counts cannot be read.
    pub fn news(&mut self) -> Result<Audited> {
        let activity = self.reader.activity();
        let sides = self.reader.sides()?;
        let only = (!self.is_whole_due()).then(|| {
            let moved = self.latest.moved(&sides);
            moved
                .chain(self.latest.unexplained())
                .collect::<BTreeSet<_>>()
        });
        let mut audited = self.compare_again(Despite::Nothing, only.as_ref())?;
        match &only {
            Some(_) => {
                let compared = std::mem::take(&mut audited.ledgers);
                audited.ledgers = self.latest.with(compared);
            }
            None => self.latest.whole_at = Some(Instant::now()),
        }
        self.latest = Latest {
            ledgers: audited.ledgers.clone(),
            sides,
            activity: Some(activity),
            ..std::mem::take(&mut self.latest)
        };
        let mut reported = BTreeMap::new();
        let news = audited.ledgers.iter().filter(|ledger| {
            let unexplained = ledger.unexplained.unwrap_or(0);
            let before = self.reported.get(&ledger.netns);
            let before = before.copied().unwrap_or(0);
            reported.insert(ledger.netns, unexplained.max(before));
            unexplained > before
        });
        audited.news = news.cloned().collect();
        self.reported = reported;
        Ok(audited)
    }

    fn compare(&self, despite: Despite, only: Option<&BTreeSet<u32>>) -> Result<Audited> {
        let lost = self.reader.loss().records;
        let told = self.told;
        let end = self.look(despite, only)?;
        let own = netns::own().ok();
        let sides = Sides::of(&end.sides);
        let ledger = |(identity, look): (&NetnsIdentity, &BothSides)| {
            let start = self.start.get(identity);
            if start.is_none() && self.unread.contains_key(&identity.netns) {
                return Ledger::one_sided(identity.netns, &look.seen_after, lost, told, UNREAD);
            }
            let mut start = start.copied().unwrap_or_default();
            if look.kernel.is_behind(&start.kernel) {
                // Another namespace has the number now.
                start.kernel = Counters::default();
            }
            let mut ledger = Ledger::between(identity.netns, &start, look, lost, told);
            if identity.cookie.is_none() && ledger.is_ahead() {
                ledger.unexplained = None;
                ledger.note = Some(NUMBER_ONLY.to_owned());
            }
            ledger
        };
        let failed = end.failed.iter().map(|(id, error)| {
            let identity = NetnsIdentity {
                netns: *id,
                cookie: None,
            };
            let note = format!("the namespace's counters could not be read: {error}");
            Ledger::one_sided(*id, &sides.side(identity), lost, told, &note)
        });
        let mut ledgers: Vec<_> = end
            .looks
            .iter()
            .map(ledger)
            .chain(failed)
            .filter(|ledger| {
                !ledger.is_still()
                    || Some(ledger.netns) == own
                    || self.selection.netns.contains_key(&ledger.netns)
            })
            .collect();
        if ledgers.iter().any(|ledger| ledger.unexplained != Some(0)) {
            // The self-test of another queue-trace is left out of our sums.
            let differ = ledgers.iter().filter(|one| one.unexplained != Some(0));
            let differ = differ.map(|one| one.netns).collect();
            let changes = self.reader.listener_changes();
            let paths = self.namespaces.with(&self.selection, changes, &differ);
            ledgers.retain(|ledger| {
                let path = paths.get(&ledger.netns);
                ledger.unexplained == Some(0)
                    || !path.is_some_and(|path| mark::is_on(ledger.netns, path))
            });
        }
        let gone = if end.whole {
            gone(&end)
        } else {
            HashSet::new()
        };
        let of_gone = gone
            .iter()
            .filter_map(|seen| Some((*seen, *end.sides.get(seen)?)));
        ledgers.extend(ledgers_of_gone(of_gone.collect(), lost, told));
        let all = end.whole && self.selection.netns.is_empty();
        Ok(Audited {
            ledgers,
            news: Vec::new(),
            gone,
            there: all.then_some(end.there),
            skipped: end.skipped,
        })
    }
}

/// The namespaces of which there are counts, and which were not found.
fn gone(end: &Looked) -> HashSet<CountedNetns> {
    let identities: HashSet<_> = end
        .looks
        .keys()
        .map(|identity| (identity.netns, identity.cookie))
        .collect();
    let is_there = |seen: &CountedNetns| {
        identities.contains(&(seen.netns, None))
            || identities.contains(&(seen.netns, Some(seen.cookie)))
            || end.failed.contains_key(&seen.netns)
    };
    let all = end.sides.keys();
    all.filter(|seen| !is_there(seen)).copied().collect()
}

/// One for each in which something moved, as far as there is room.
fn ledgers_of_gone(
    mut gone: Vec<(CountedNetns, Counters)>,
    lost: u64,
    told: outcome::Set,
) -> Vec<Ledger> {
    const NOTE: &str = "the namespace is gone, or no process, thread or mount leads into it: its counters cannot be read";
    gone.retain(|(_, side)| side.values().any(|count| count > 0));
    gone.sort_by_key(|(seen, side)| {
        let moved = side.values().fold(0, u64::saturating_add);
        (std::cmp::Reverse(moved), seen.netns, seen.cookie)
    });
    let others = gone.split_off(gone.len().min(GONE));
    let one = |(seen, side): &(CountedNetns, Counters)| {
        Ledger::one_sided(seen.netns, side, lost, told, NOTE)
    };
    let mut ledgers: Vec<_> = gone.iter().map(one).collect();
    if !others.is_empty() {
        let mut sum = Counters::default();
        others.iter().for_each(|(_, side)| sum.add_all(side));
        let note = format!(
            "{} more namespaces that are gone, put together",
            others.len()
        );
        ledgers.push(Ledger::one_sided(0, &sum, lost, told, &note));
    }
    ledgers
}

#[cfg(test)]
mod tests {
    use queue_trace_common::counter::DROP;

    use super::*;

    fn moved(count: u64) -> Counters {
        let mut counters = Counters::default();
        counters.add(DROP, count);
        counters
    }

    #[test]
    fn namespaces_that_are_gone_are_put_together_where_there_are_many() {
        let gone = (1..=5000).map(|number| {
            let seen = CountedNetns {
                netns: number,
                cookie: 0,
            };
            (seen, moved(u64::from(number)))
        });
        let ledgers = ledgers_of_gone(gone.collect(), 0, 0);
        assert_eq!(ledgers.len(), GONE + 1);
        assert_eq!(ledgers[0].netns, 5000);
        let dropped = ledgers.iter().map(|ledger| ledger.counters["ListenDrops"]);
        assert!(dropped.clone().all(|line| line.kernel.is_none()));
        assert_eq!(dropped.map(|line| line.seen).sum::<u64>(), 5000 * 5001 / 2);
        assert_eq!(ledgers[GONE].netns, 0);
        assert!(ledgers_of_gone(vec![(CountedNetns::default(), moved(0))], 0, 0).is_empty());
    }

    #[test]
    fn only_what_moved_or_differs_is_compared_and_the_rest_is_as_it_was() {
        let seen = |netns| CountedNetns { netns, cookie: 1 };
        let ledger = |netns, unexplained| Ledger {
            unexplained: Some(unexplained),
            ..Ledger::one_sided(netns, &moved(3), 0, 0, "")
        };
        let mut latest = Latest {
            ledgers: vec![ledger(1, 0), ledger(2, 5), ledger(3, 0)],
            sides: [(seen(1), moved(3)), (seen(3), moved(3))].into(),
            ..Latest::default()
        };
        assert_eq!(latest.unexplained().collect::<Vec<_>>(), [2]);
        let sides = [
            (seen(1), moved(3)),
            (seen(3), moved(4)),
            (seen(4), moved(1)),
        ];
        let mut due: Vec<_> = latest.moved(&sides.into()).collect();
        due.sort_unstable();
        assert_eq!(due, [3, 4]);
        // The fourth was not found.
        let all = latest.with(vec![ledger(2, 0), ledger(3, 0)]);
        let told: Vec<_> = all.iter().map(|one| (one.netns, one.unexplained)).collect();
        assert_eq!(told, [(1, Some(0)), (2, Some(0)), (3, Some(0))]);
    }

    #[test]
    fn a_namespace_is_told_from_an_earlier_one_of_its_number_where_the_kernel_tells() {
        let seen = |netns, cookie| CountedNetns { netns, cookie };
        let sides = [
            (seen(7, 1), moved(3)),
            (seen(7, 2), moved(5)),
            (seen(8, 3), moved(9)),
        ];
        let sides: HashMap<_, _> = sides.into();
        let of = |netns, cookie| Sides::of(&sides).side(NetnsIdentity { netns, cookie });
        assert_eq!(of(7, Some(2)), moved(5));
        assert_eq!(of(7, None), moved(8));
        assert_eq!(of(9, None), moved(0));
        let looks = [(
            NetnsIdentity {
                netns: 7,
                cookie: Some(2),
            },
            BothSides::default(),
        )];
        let end = Looked {
            looks: looks.into(),
            sides,
            ..Looked::default()
        };
        assert_eq!(gone(&end), HashSet::from([seen(7, 1), seen(8, 3)]));
    }
}

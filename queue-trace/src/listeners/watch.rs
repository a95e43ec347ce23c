//! Follows the listeners while attached: all of them at a moment, and those that were made
//! or closed since the last time.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use queue_trace_common::{
    queue::{Queue, QueueKey},
    settings::CountKey,
};

use crate::{
    kernel::{
        namespaces::KnownNamespaces, plan::HookFamily, probe::MapReader, selection::Selection,
    },
    listeners::{
        cgroup::Folders,
        look::{self, How, Look},
        pods::{PodNames, name_pods},
        remembered::Remembered,
        stall::Stalls,
        stats::Stats,
    },
    model::{clock::monotonic_now, snapshot::Snapshot},
    sink::Extent,
};

/// What has been reported already. It reads the kernel side itself, so that it can do so in a
/// thread of its own.
pub struct Watch {
    /// What reads the kernel side, and how that is attached, if it is.
    attached: Option<(MapReader, HookFamily)>,
    selection: Selection,
    folders: Folders,
    pods: PodNames,
    /// Whose the listeners were.
    remembered: Remembered,
    /// Why those do not accept that are in trouble.
    stalls: Stalls,
    /// The namespaces of those that were in trouble at the latest look.
    troubled: BTreeSet<u32>,
    /// When it was found out whose they are.
    owners_at: Option<Instant>,
    namespaces: KnownNamespaces,
    reported: HashSet<QueueKey>,
    /// The closed ones that were reported, and when the kernel side will be told to forget them.
    closed: HashMap<QueueKey, u64>,
    /// How often listeners had been made or closed then.
    changes: u64,
    given_up: Arc<AtomicBool>,
    next_sweep: Instant,
}

/// What became known of listeners.
#[derive(Debug, Clone, Default)]
pub struct News {
    /// Those that are to be reported.
    pub rows: Vec<Snapshot>,
    /// What could not be looked at, and why, a sentence each.
    pub notes: Vec<String>,
    /// What was looked at: all listeners, or all of some namespaces. `None`: these are news only.
    pub looked: Option<Extent>,
    /// Sockets, closed for a while, to which nothing can come any more.
    pub over: HashSet<QueueKey>,
    /// Counts of sockets that are no listeners any more, whose end was not noticed.
    pub counts_over: HashSet<CountKey>,
}

impl News {
    /// Whether nobody adds to a count any more.
    #[must_use]
    pub fn is_over(&self, key: &CountKey) -> bool {
        let socket = QueueKey {
            sk: key.sk,
            inode: key.inode,
        };
        self.over.contains(&socket) || self.counts_over.contains(key)
    }
}

impl From<Look> for News {
    fn from(look: Look) -> Self {
        Self {
            rows: look.rows,
            notes: look.notes,
            ..Self::default()
        }
    }
}

impl From<News> for Look {
    fn from(news: News) -> Self {
        Self {
            rows: news.rows,
            notes: news.notes,
            ..Self::default()
        }
    }
}

/// With so many counts in the kernel it is looked whether all of them are still needed.
const CROWDED: usize = 2048;
/// How often at most, as it takes a while.
const SWEEP: Duration = Duration::from_secs(5);

/// How often at most it is asked whose the listeners in trouble are, and whose the others.
const OWNERS_IN_TROUBLE: Duration = Duration::from_secs(10);
const OWNERS: Duration = Duration::from_secs(60);

/// A packet that found a listener before it was closed is dealt with within this time.
const LINGER_NS: u64 = 500_000_000;
/// A socket that stopped listening and has not begun again within this time will not.
const STOPPED_NS: u64 = 60_000_000_000;

impl Watch {
    /// Begins with nothing reported.
    #[must_use]
    pub fn new(reader: MapReader, family: HookFamily, selection: Selection) -> Self {
        Self {
            attached: Some((reader, family)),
            ..Self::unattached(selection)
        }
    }

    /// With the namespaces that somebody else lists as well.
    #[must_use]
    pub fn sharing(self, namespaces: KnownNamespaces) -> Self {
        Self { namespaces, ..self }
    }

    /// Where nothing is attached: all that it finds is how listeners stand.
    #[must_use]
    pub fn unattached(selection: Selection) -> Self {
        Self {
            attached: None,
            selection,
            folders: Folders::default(),
            pods: PodNames::here(),
            remembered: Remembered::default(),
            stalls: Stalls::default(),
            troubled: BTreeSet::new(),
            owners_at: None,
            namespaces: KnownNamespaces::default(),
            reported: HashSet::new(),
            closed: HashMap::new(),
            changes: 0,
            given_up: Arc::default(),
            next_sweep: Instant::now(),
        }
    }

    /// To give up the look under way from another thread: it ends soon, with what it has.
    #[must_use]
    pub fn given_up(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.given_up)
    }

    /// All listeners, with what was kept of them, and those that were closed since the last
    /// time.
    ///
    /// # Errors
    /// If what the kernel side keeps cannot be read.
    pub fn all(&mut self) -> Result<News> {
        let began = Instant::now();
        let look = self.look_while(|watch| !watch.is_given_up());
        if self.is_given_up() {
            return Ok(News::default());
        }
        let news = News {
            looked: Some(Extent {
                within: None,
                took: began.elapsed(),
            }),
            ..self.add_to(look)?
        };
        self.remembered.keep_only(&news.rows);
        Ok(news)
    }

    /// All listeners as they are, and why those in trouble do not accept. One that is given up
    /// leaves out some of them, and says so.
    pub fn look(&mut self) -> Look {
        self.look_while(|_| true)
    }

    /// The same; what is found so far, once it is not to go on.
    fn look_while(&mut self, goes_on: impl Fn(&Self) -> bool) -> Look {
        let iterators = self.attached.as_ref().map(|(reader, _)| reader.iterators());
        let changes = self.listener_changes();
        // Where nothing is attached nobody notices a new listener.
        let known = self
            .attached
            .as_ref()
            .and_then(|_| self.namespaces.unchanged(changes));
        let all = How {
            given_up: Some(&self.given_up),
            ..How::all(&self.selection, iterators.as_ref())
        };
        let found = known.and_then(|listed| {
            let how = How {
                listed: Some(&listed),
                ..all
            };
            let found = look::all_gauges(how, &mut self.folders);
            // All processes by which one was found may have ended, and others be in it still.
            found.look.gone.is_empty().then_some(found)
        });
        let found = found.unwrap_or_else(|| {
            let listed = self.namespaces.list(&self.selection, changes);
            let how = How {
                listed: Some(&listed),
                ..all
            };
            look::all_gauges(how, &mut self.folders)
        });
        let mut look = found.owned(all);
        self.owners_at = Some(Instant::now());
        self.remembered.asked(&look.rows);
        if goes_on(self) {
            self.stalls.look(&mut look.rows);
            self.troubled = troubled(&look.rows);
        }
        look
    }

    /// Whether what the look under way finds is of no interest any more: all of it will be found
    /// by the next one.
    fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// The same in some namespaces. Whose listeners are takes a look at every process, so that is
    /// asked when it is not known, or may have changed.
    fn look_in(&mut self, places: &BTreeSet<u32>) -> Look {
        let iterators = self.attached.as_ref().map(|(reader, _)| reader.iterators());
        let changes = self.listener_changes();
        let mut listed = self.namespaces.with(&self.selection, changes, places);
        let all = How {
            only: Some(places),
            given_up: Some(&self.given_up),
            ..How::all(&self.selection, iterators.as_ref())
        };
        let how = How {
            listed: Some(&listed),
            ..all
        };
        let mut found = look::gauges(how, &mut self.folders);
        if !found.look.gone.is_empty() {
            // All processes by which it was found may have ended, and others be in it still.
            listed = self.namespaces.list(&self.selection, changes);
            let how = How {
                listed: Some(&listed),
                ..all
            };
            found = look::gauges(how, &mut self.folders);
        }
        if self.is_given_up() {
            return found.look;
        }
        let in_trouble = troubled(&found.look.rows);
        let asked = if in_trouble.is_empty() {
            OWNERS
        } else {
            OWNERS_IN_TROUBLE
        };
        let known = self.owners_at.is_some_and(|at| at.elapsed() < asked)
            && in_trouble.is_subset(&self.troubled)
            && self.remembered.knows(&found.look.rows);
        let mut look = if known {
            self.remembered.complete(&mut found.look.rows);
            found.look
        } else {
            self.owners_at = Some(Instant::now());
            let look = found.owned(all);
            self.remembered.asked(&look.rows);
            look
        };
        self.stalls.look(&mut look.rows);
        self.troubled.retain(|netns| !places.contains(netns));
        self.troubled.extend(in_trouble);
        look
    }

    fn listener_changes(&self) -> u64 {
        let attached = self.attached.as_ref();
        attached.map_or(0, |(reader, _)| reader.listener_changes())
    }

    /// Whether a listener was in trouble at the latest look.
    #[must_use]
    pub fn has_trouble(&self) -> bool {
        !self.troubled.is_empty()
    }

    /// All listeners of these namespaces, and what [`Self::news`] tells of the others.
    ///
    /// # Errors
    /// If what the kernel side keeps cannot be read.
    pub fn some(&mut self, mut places: BTreeSet<u32>) -> Result<News> {
        let began = Instant::now();
        // While they are in trouble their evidence is followed.
        places.extend(&self.troubled);
        let news = self.news()?;
        let look = self.look_in(&places);
        let mut news = self.add_some(news, look)?;
        news.looked = Some(Extent {
            within: Some(places),
            took: began.elapsed(),
        });
        Ok(news)
    }

    /// The listeners in trouble: in these namespaces, and in those where some were at the latest
    /// look. And what [`Self::news`] tells.
    ///
    /// # Errors
    /// If what the kernel side keeps cannot be read.
    pub fn trouble(&mut self, refused_in: &BTreeSet<u32>) -> Result<News> {
        let news = self.news()?;
        let places = self.troubled.union(refused_in).copied().collect();
        let mut look = self.look_in(&places);
        look.rows.retain(Snapshot::is_stalled);
        if look.rows.is_empty() {
            return Ok(news);
        }
        self.add_some(news, look)
    }

    /// Adds to `news` some of the listeners that there are.
    fn add_some(&mut self, mut news: News, look: Look) -> Result<News> {
        let wanted: HashSet<_> = look.rows.iter().map(Snapshot::key).collect();
        let before = self.reported.clone();
        let mut more = self.add_to(look)?;
        // One that was made meanwhile is still to be told.
        let told: HashSet<_> = more.rows.iter().map(|row| row.listener.inode).collect();
        self.reported
            .retain(|key| before.contains(key) || told.contains(&Some(key.inode)));
        // What closed is told once, here or there; of the others only those are wanted.
        more.rows
            .retain(|row| row.is_closed() || wanted.contains(&row.key()));
        news.rows
            .retain(|row| row.is_closed() || !wanted.contains(&row.key()));
        news.rows.append(&mut more.rows);
        news.notes.append(&mut more.notes);
        news.over.extend(more.over);
        Ok(news)
    }

    /// Whether there may be news: so many listeners were made or closed, or it is time to forget
    /// closed ones.
    #[must_use]
    pub fn may_have_news(&self, changes: u64) -> bool {
        self.attached.as_ref().is_some_and(|(reader, _)| {
            let changed = reader.listener_changes().wrapping_sub(self.changes);
            let now = monotonic_now();
            changed >= changes || self.closed.values().any(|due| *due <= now)
        })
    }

    /// The listeners that were made or closed since anything was reported last.
    ///
    /// # Errors
    /// If what the kernel side keeps cannot be read.
    pub fn news(&mut self) -> Result<News> {
        let counts_over = self.sweep()?;
        let Some((reader, _)) = &self.attached else {
            return Ok(News::default());
        };
        self.changes = reader.listener_changes();
        let queues = reader.queues()?;
        let mut places = BTreeSet::new();
        let mut made = HashSet::new();
        let mut any_closed = false;
        for (key, queue) in &queues {
            let is_closed = queue.closed_ns != 0;
            if is_closed {
                any_closed |= !self.closed.contains_key(key);
            } else if queue.made_ns != 0 && !self.reported.contains(key) {
                places.insert(queue.netns);
                made.insert(key.inode);
            }
        }
        let look = if places.is_empty() {
            Look::default()
        } else {
            let makers = queues.values().filter(|queue| queue.closed_ns == 0);
            let makers = makers.filter(|queue| places.contains(&queue.netns));
            let makers = makers.map(|queue| (queue.netns, queue.pid));
            self.namespaces.add_ways(&self.selection, makers);
            let iterators = reader.iterators();
            let all = How {
                only: Some(&places),
                given_up: Some(&self.given_up),
                ..How::all(&self.selection, Some(&iterators))
            };
            let mut listed = self.namespaces.with(&self.selection, self.changes, &places);
            let how = How {
                listed: Some(&listed),
                ..all
            };
            let mut found = look::gauges(how, &mut self.folders);
            if !found.look.gone.is_empty() {
                listed = self.namespaces.list(&self.selection, self.changes);
                let how = How {
                    listed: Some(&listed),
                    ..all
                };
                found = look::gauges(how, &mut self.folders);
            }
            if self.selection.names_owners {
                found.owned(all)
            } else {
                // Who made a new one is known from the kernel side.
                found.look
            }
        };
        if look.rows.is_empty() && !any_closed {
            return Ok(News {
                over: self.forget(&queues)?,
                counts_over,
                ..News::default()
            });
        }
        let mut news = self.add_to(look)?;
        news.counts_over = counts_over;
        news.rows.retain(|row| {
            row.is_closed()
                || row
                    .listener
                    .inode
                    .is_some_and(|inode| made.contains(&inode))
        });
        Ok(news)
    }

    /// Where the table of counts fills, finds those of sockets that are no listeners any more.
    /// The end of one is not noticed if nothing is kept of it, as the table for that was full.
    fn sweep(&mut self) -> Result<HashSet<CountKey>> {
        let Some((reader, _)) = &self.attached else {
            return Ok(HashSet::new());
        };
        if self.next_sweep > Instant::now()
            || reader.counts_taken()? < CROWDED
            || self.is_given_up()
        {
            return Ok(HashSet::new());
        }
        let before = reader.counts()?;
        let there = look::sockets(&self.selection);
        // Whose they were is of no interest either, unless their end is still to be told.
        let mut known: HashSet<_> = reader.queues()?.keys().map(|key| key.inode).collect();
        known.extend(there.values().flatten().copied());
        self.remembered.keep(|inode| known.contains(&inode));
        thread::sleep(Duration::from_nanos(LINGER_NS));
        let after = reader.counts()?;
        let is_over = |key: &CountKey| {
            let Some(sockets) = there.get(&key.netns) else {
                return false;
            };
            key.inode != 0
                && !sockets.contains(&key.inode)
                && after.get(key).map(|counted| counted.seen)
                    == before.get(key).map(|counted| counted.seen)
        };
        let over = before.keys().filter(|key| is_over(key)).copied().collect();
        self.next_sweep = Instant::now() + SWEEP;
        Ok(over)
    }

    /// The listeners that were looked at, with what was kept of them until now.
    ///
    /// # Errors
    /// If what the kernel side keeps cannot be read.
    pub fn add_to(&mut self, look: Look) -> Result<News> {
        let Some((reader, family)) = &self.attached else {
            let mut news = News::from(look);
            name_pods(&mut news.rows, &mut self.pods);
            return Ok(news);
        };
        let mut rows = look.rows;
        let mut kept = reader.kept()?;
        let queues = kept.queues.clone();
        // Each that was closed is reported once, unless it listens again.
        let closed = &self.closed;
        kept.listeners
            .retain(|key, (queue, _)| queue.closed_ns == 0 || !closed.contains_key(key));
        let counts = reader.counts()?;
        let stats = Stats {
            kept: &kept,
            counts: &counts,
            family: *family,
        };
        stats.add_to(&mut rows, &mut self.folders);
        self.remembered.complete(&mut rows);
        name_pods(&mut rows, &mut self.pods);
        let selection = &self.selection;
        let wanted = |row: &Snapshot| row.listener.address().is_none_or(|at| selection.has(at));
        rows.retain(|row| !row.is_closed() || wanted(row));
        for (key, (queue, _)) in &kept.listeners {
            if queue.closed_ns != 0 {
                self.closed.insert(*key, forgotten_at(queue));
                self.reported.remove(key);
            } else {
                self.closed.remove(key);
                self.reported.insert(*key);
            }
        }
        let over = self.forget(&queues)?;
        self.reported.retain(|key| queues.contains_key(key));
        Ok(News {
            rows,
            notes: look.notes,
            over,
            ..News::default()
        })
    }

    /// Has the kernel side forget what was closed a while ago and has been reported.
    fn forget(&mut self, queues: &HashMap<QueueKey, Queue>) -> Result<HashSet<QueueKey>> {
        let now = monotonic_now();
        let is_over = |key: &QueueKey, _: &mut u64| is_over(queues.get(key), now);
        let over = self.closed.extract_if(is_over);
        let over: HashSet<_> = over.map(|(key, _)| key).collect();
        if let Some((reader, _)) = &self.attached {
            reader.forget_queues(&over)?;
        }
        Ok(over)
    }
}

/// Whether what is kept of a listener that was reported as closed is of no use any more.
fn is_over(queue: Option<&Queue>, now_ns: u64) -> bool {
    // One that only stopped listening may have begun again since it was reported.
    queue.is_none_or(|queue| queue.closed_ns != 0 && forgotten_at(queue) <= now_ns)
}

/// When the kernel side can forget one that was closed.
fn forgotten_at(queue: &Queue) -> u64 {
    let stays = if queue.released == 0 {
        STOPPED_NS
    } else {
        LINGER_NS
    };
    queue.closed_ns.saturating_add(stays)
}

/// The namespaces in which listeners are in trouble.
fn troubled(rows: &[Snapshot]) -> BTreeSet<u32> {
    let stalled = rows.iter().filter(|row| row.is_stalled());
    stalled.map(|row| row.netns).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_NS: u64 = 500_000_000_000;

    fn closed(ago_ns: u64, released: u16) -> Queue {
        Queue {
            closed_ns: NOW_NS - ago_ns,
            released,
            ..Queue::default()
        }
    }

    #[test]
    fn closed_ones_are_over_after_a_while() {
        let over = |queue: &Queue| is_over(Some(queue), NOW_NS);
        assert!(over(&closed(LINGER_NS, 1)) && !over(&closed(LINGER_NS - 1, 1)));
        assert!(over(&closed(STOPPED_NS, 0)) && !over(&closed(STOPPED_NS - 1, 0)));
        assert!(is_over(None, NOW_NS));
    }

    #[test]
    fn one_that_listens_again_is_not_over() {
        let again = Queue {
            made_ns: NOW_NS - 1,
            ..Queue::default()
        };
        assert!(!is_over(Some(&again), NOW_NS));
    }
}

//! Follows the listeners while attached: all of them at a moment, and those that were made
//! or closed since the last time.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use queue_trace_common::queue::QueueKey;

use crate::{
    kernel::{plan::Family, probe::Probe, selection::Selection},
    listeners::{
        Cgroup, Row, look,
        look::Look,
        stats::{Stats, closed_ones},
    },
    model::socket::Process,
};

/// What has been told already.
#[derive(Debug)]
pub struct Watch {
    family: Family,
    /// Whose each listener was when it was looked at last, by inode number.
    owners: HashMap<u64, Owner>,
    told: HashSet<QueueKey>,
    /// How often listeners had been made or closed then.
    changes: u64,
}

impl Watch {
    /// Begins with nothing told.
    #[must_use]
    pub fn new(family: Family) -> Self {
        Self {
            family,
            owners: HashMap::new(),
            told: HashSet::new(),
            changes: 0,
        }
    }

    /// All listeners, with what was kept of them, those that were closed as well. The
    /// closed ones are forgotten then.
    ///
    /// # Errors
    /// If what the kernel side keeps cannot be read.
    pub fn all(&mut self, probe: &mut Probe, selection: &Selection) -> Result<Vec<Row>> {
        let look = look(selection, probe.iterators());
        self.add_to(look, probe, selection)
    }

    /// The listeners that were made or closed since anything was told last.
    ///
    /// # Errors
    /// If what the kernel side keeps cannot be read.
    pub fn news(&mut self, probe: &mut Probe, selection: &Selection) -> Result<Vec<Row>> {
        let changes = probe.listener_changes();
        if changes == self.changes {
            return Ok(Vec::new());
        }
        self.changes = changes;
        let queues = probe.queues()?;
        let news: HashSet<u64> = queues
            .iter()
            .filter(|(key, queue)| {
                queue.closed_ns != 0 || queue.made_ns != 0 && !self.told.contains(*key)
            })
            .map(|(key, _)| key.inode)
            .collect();
        if news.is_empty() {
            return Ok(Vec::new());
        }
        // Who made a new one is known from the kernel side.
        let look = look::gauges(selection, probe.iterators().as_mut());
        let mut rows = self.add_to(look, probe, selection)?;
        rows.retain(|row| {
            row.listener
                .inode
                .is_some_and(|inode| news.contains(&inode))
        });
        Ok(rows)
    }

    /// The listeners that were looked at, with what was kept of them until now.
    ///
    /// # Errors
    /// If what the kernel side keeps cannot be read.
    pub fn add_to(
        &mut self,
        look: Look,
        probe: &mut Probe,
        selection: &Selection,
    ) -> Result<Vec<Row>> {
        for note in &look.notes {
            log::info!("{note}");
        }
        let mut rows = look.rows;
        let kept = probe.kept()?;
        let counts = probe.counts()?;
        let stats = Stats {
            kept: &kept,
            counts: &counts,
            family: self.family,
        };
        stats.add_to(&mut rows);
        self.remember(&mut rows);
        rows.retain(|row| !row.closed || row.listener.address().is_none_or(|a| selection.has(a)));
        let queues = kept.listeners.into_iter();
        let queues = queues.map(|(key, (queue, _))| (key, queue)).collect();
        let closed = closed_ones(&queues);
        probe.forget_queues(&closed)?;
        self.told = queues
            .into_keys()
            .filter(|key| !closed.contains(key))
            .collect();
        Ok(rows)
    }

    /// What closed has no owner any more, so that of the last look is told.
    fn remember(&mut self, rows: &mut [Row]) {
        let mut owners = HashMap::with_capacity(rows.len());
        for row in rows {
            let Some(inode) = row.listener.inode else {
                continue;
            };
            let known = self.owners.remove(&inode);
            if let Some(known) = known.filter(|_| row.closed || row.processes.is_empty()) {
                known.add_to(row);
            }
            if !row.closed {
                owners.insert(inode, Owner::of(row));
            }
        }
        self.owners = owners;
    }
}

/// Whose a listener is.
#[derive(Debug)]
struct Owner {
    cookie: Option<u64>,
    device: Option<u32>,
    processes: Vec<Process>,
    cgroup: Cgroup,
}

impl Owner {
    fn of(row: &Row) -> Self {
        Self {
            cookie: row.listener.cookie,
            device: row.listener.device,
            processes: row.processes.clone(),
            cgroup: row.cgroup.clone(),
        }
    }

    /// Adds what is not known otherwise.
    fn add_to(self, row: &mut Row) {
        row.listener.cookie = row.listener.cookie.or(self.cookie);
        row.listener.device = row.listener.device.or(self.device);
        if row.processes.is_empty() {
            row.processes = self.processes;
        }
        if row.cgroup.path.is_none() {
            row.cgroup = self.cgroup;
        }
    }
}

//! The kernel side at work: attached as planned, and its maps read. Only this file and its
//! folder touch the BPF library.

#![expect(
    unsafe_code,
    reason = "the ring is registered with the runtime by its descriptor"
)]

mod attach;
mod batch;
mod counts;
mod delivery;
mod functions;
mod iterate;
mod loader;
mod lock;
mod mapped;
mod marked;
mod named;
mod object;
mod places;
mod queues;
mod reachable;
mod reason;
mod refusal;
mod rest;
mod tallies;
mod unattached;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    io,
    ops::Deref,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::Program,
};
use aya_log::EbpfLogger;
use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use queue_trace_common::{
    loss::Loss,
    queue::{Queue, QueueKey},
    settings::{CountKey, Counted},
};
use tokio::io::unix::AsyncFd;

use self::{
    attach::{SECOND, cpus},
    counts::CountMaps,
    lock::lock,
    named::take,
    queues::QueueMaps,
    rest::REST,
};
pub use self::{
    counts::{CountActivity, CountedNetns},
    iterate::{HeldListener, Iterators},
    queues::{Kept, QueueSums},
    refusal::AttachError,
    unattached::unattached,
};
use crate::{
    kernel::{btf::Types, plan::Plan, selection::Selection, text::text},
    model::ledger::Counters,
};

/// The kernel side at work, and its stream of records. What it counts and keeps is read by a
/// [`MapReader`], which it is as well.
pub struct Probe {
    /// What could not be done and is not needed by all, a sentence each.
    notes: Vec<String>,
    records: AsyncFd<RingBuf<MapData>>,
    reader: MapReader,
    /// What filters let through in addition, for a while: the maps and their networks.
    let_in: Vec<(&'static str, Vec<attach::Prefix>)>,
    /// Keeps the number of the self-test's namespace, which the filter lets through, from going
    /// to another namespace.
    kept_netns: Option<OwnedFd>,
}

/// Reads what the kernel side counts and keeps, from any thread. Copies of it read the same.
#[derive(Clone)]
pub struct MapReader(Arc<Inner>);

struct Inner {
    /// The programs, their links and the maps not taken out below; `None` once
    /// detached. Dropping it detaches everything.
    ebpf: Arc<Mutex<Option<Ebpf>>>,
    counts: Mutex<CountMaps>,
    queues: Mutex<QueueMaps>,
}

impl Deref for Probe {
    type Target = MapReader;

    fn deref(&self) -> &MapReader {
        &self.reader
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.detach();
    }
}

impl Probe {
    /// Loads and attaches as planned.
    ///
    /// # Errors
    /// [`AttachError::Refused`] if the kernel will not have a hook of the plan.
    pub fn attach(plan: &Plan, types: &Types, wanted: &Selection) -> Result<Self, AttachError> {
        let (mut ebpf, notes) = attach::attach(plan, types, wanted)?;
        let ring: RingBuf<MapData> = take(&mut ebpf, "RECORDS")?;
        // SAFETY: the ring owns its descriptor, which stays open and the same until the
        // ring is dropped, together with the registration.
        let records = unsafe { AsyncFd::register(ring) }.context("cannot poll the ring")?;
        let counts = CountMaps::of(&mut ebpf, cpus()?)?;
        let queues = QueueMaps::of(&mut ebpf, cpus()?)?;
        let inner = Inner {
            ebpf: Arc::new(Mutex::new(Some(ebpf))),
            counts: Mutex::new(counts),
            queues: Mutex::new(queues),
        };
        Ok(Self {
            notes,
            records,
            reader: MapReader(Arc::new(inner)),
            let_in: Vec::new(),
            kept_netns: None,
        })
    }

    /// Lets more of our own addresses and more clients through the filters, until
    /// [`Probe::shut_out`].
    ///
    /// # Errors
    /// If the filters cannot be changed.
    pub fn let_in(&mut self, addresses: &[IpNet], clients: &[IpNet]) -> Result<()> {
        let mut ebpf = lock(&self.reader.0.ebpf);
        let ebpf = ebpf.as_mut().context("already detached")?;
        for (name, networks) in [("ADDRS", addresses), ("CLIENTS", clients)] {
            let added = attach::add(ebpf, name, networks)?;
            self.let_in.push((name, added));
        }
        Ok(())
    }

    /// Filters as the user asked again.
    ///
    /// # Errors
    /// If the filters cannot be changed.
    pub fn shut_out(&mut self) -> Result<()> {
        let mut ebpf = lock(&self.reader.0.ebpf);
        let ebpf = ebpf.as_mut().context("already detached")?;
        for (name, networks) in self.let_in.drain(..) {
            attach::remove(ebpf, name, &networks)?;
        }
        Ok(())
    }

    /// Keeps a namespace for as long as this lives.
    pub fn keep_netns(&mut self, netns: OwnedFd) {
        self.kept_netns = Some(netns);
    }

    /// What could not be done and is not needed by all, a sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// To read what is counted and kept from another thread.
    #[must_use]
    pub fn reader(&self) -> MapReader {
        self.reader.clone()
    }

    /// Waits until there are records.
    ///
    /// # Errors
    /// If the ring cannot be polled.
    pub async fn ready(&mut self) -> io::Result<()> {
        let mut guard = self.records.readable_mut().await?;
        guard.clear_ready();
        Ok(())
    }

    /// Takes the records that are there, [`AT_ONCE`] at most, each as its bytes.
    pub fn take_records(&mut self) -> Vec<Bytes> {
        let ring = self.records.get_mut();
        let mut batch = BytesMut::new();
        let mut ends = Vec::new();
        while ends.len() < AT_ONCE
            && let Some(record) = ring.next()
        {
            batch.extend_from_slice(&record);
            ends.push(record.len());
        }
        let mut batch = batch.freeze();
        ends.into_iter().map(|end| batch.split_to(end)).collect()
    }

    /// The kernel side's own messages, for `-vv`: flushing hands them to the log.
    ///
    /// # Errors
    /// If the map of messages cannot be had.
    pub fn messages(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>> {
        let mut ebpf = lock(&self.reader.0.ebpf);
        let ebpf = ebpf.as_mut().context("already detached")?;
        EbpfLogger::init(ebpf).context("cannot read the kernel side's messages")
    }
}

/// Records that are taken at once.
pub const AT_ONCE: usize = 4096;

impl MapReader {
    /// Detaches everything. What was counted and recorded stays to be read.
    pub fn detach(&self) {
        let ebpf = lock(&self.0.ebpf).take();
        if let Some(ebpf) = ebpf {
            attach::detach(ebpf);
        }
        lock(&self.0.counts).search_again();
    }

    /// How often programs were kept from running, all together. Where a second one does
    /// what the first was kept from, as often as both can have been.
    ///
    /// # Errors
    /// As [`MapReader::runs`].
    pub fn missed(&self) -> Result<u64> {
        Ok(missed_by_all(&self.runs()?))
    }

    /// The exact counts by listener and outcome, but for those that were released.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counts(&self) -> Result<HashMap<CountKey, Counted>> {
        lock(&self.0.counts).all()
    }

    /// What is the same as before if nothing was counted meanwhile, told without a system call.
    #[must_use]
    pub fn activity(&self) -> CountActivity {
        lock(&self.0.counts).activity()
    }

    /// What all verdicts so far moved, by namespace.
    ///
    /// # Errors
    /// If the map of counts cannot be read.
    pub fn sides(&self) -> Result<HashMap<CountedNetns, Counters>> {
        lock(&self.0.counts).sides()
    }

    /// How many places of the kernel side's table of counts are taken.
    ///
    /// # Errors
    /// If the map of counts cannot be read.
    pub fn counts_taken(&self) -> Result<usize> {
        lock(&self.0.counts).taken()
    }

    /// Takes out of the kernel the counts that are over: nobody may add to them any more.
    /// [`MapReader::counts`] has them until they are released.
    ///
    /// # Errors
    /// If the map of counts cannot be read.
    pub fn retire(&self, is_over: impl Fn(&CountKey) -> bool) -> Result<()> {
        lock(&self.0.counts).retire(is_over)
    }

    /// Gives back the kernel side's places of namespaces that are not `there` any more.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn forget_namespaces(&self, there: impl Fn(u32) -> bool) -> Result<()> {
        lock(&self.0.counts).forget_baselines(there)
    }

    /// Lets go of the counts that were retired, and gives them.
    #[must_use]
    pub fn release(&self) -> HashMap<CountKey, Counted> {
        lock(&self.0.counts).release()
    }

    /// What was lost so far.
    #[must_use]
    pub fn loss(&self) -> Loss {
        lock(&self.0.counts).loss()
    }

    /// How often listeners were made or closed so far.
    #[must_use]
    pub fn listener_changes(&self) -> u64 {
        lock(&self.0.counts).listeners()
    }

    /// Lets the kernel count how often programs run, until the value is dropped. It
    /// slows every BPF program of the machine a little meanwhile.
    ///
    /// # Errors
    /// If the kernel will not.
    pub fn count_runs(&self) -> Result<OwnedFd> {
        aya::sys::enable_stats(aya::sys::Stats::RunTime)
            .context("the kernel will not count how often BPF programs run")
    }

    /// How often each attached program ran, and was kept from running.
    ///
    /// # Errors
    /// If the kernel does not show it.
    pub fn runs(&self) -> Result<Vec<Runs>> {
        let mut all = Vec::new();
        for (name, program) in lock(&self.0.ebpf).iter().flat_map(Ebpf::programs) {
            let Ok(fd) = program.fd() else {
                // Not part of the plan, so not loaded.
                continue;
            };
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let info = text(path.as_ref()).with_context(|| format!("cannot read {path}"))?;
            all.push(Runs {
                name: name.to_owned(),
                runs: info_value(&info, "run_cnt").unwrap_or(0),
                missed: info_value(&info, "recursion_misses").unwrap_or(0),
                is_attached: !matches!(program, Program::Iter(_)) && !name.contains(REST),
            });
        }
        Ok(all)
    }

    /// What lists what exists, until it is detached.
    #[must_use]
    pub fn iterators(&self) -> Iterators {
        Iterators::of(Arc::clone(&self.0.ebpf))
    }

    /// What is kept of the listeners' queues.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn kept(&self) -> Result<Kept> {
        let (made, has_spilled) = {
            let counts = lock(&self.0.counts);
            (counts.queues(), counts.has_spilled())
        };
        lock(&self.0.queues).read(made, has_spilled)
    }

    /// The part of it that all CPUs share, which says who made a listener and whether it
    /// was closed.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn queues(&self) -> Result<HashMap<QueueKey, Queue>> {
        let made = lock(&self.0.counts).queues();
        lock(&self.0.queues).shared(made)
    }

    /// Forgets what is kept of listeners, which must be closed.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn forget_queues(&self, keys: &HashSet<QueueKey>) -> Result<()> {
        let has_spilled = lock(&self.0.counts).has_spilled();
        lock(&self.0.queues).forget(keys, has_spilled)
    }

    /// Forgets the counts of one namespace, and what is kept of its listeners.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn forget(&self, netns: u32) -> Result<()> {
        lock(&self.0.counts).forget(netns)?;
        let queues = self.queues()?.into_iter();
        let gone = queues.filter(|(_, queue)| queue.netns == netns);
        self.forget_queues(&gone.map(|(key, _)| key).collect())
    }
}

/// How a program fared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runs {
    /// Its name in the object.
    pub name: String,
    /// How often it ran while runs were counted.
    pub runs: u64,
    /// How often the kernel left it out because it was running on that CPU already
    /// (from 5.12 on).
    pub missed: u64,
    /// Whether the kernel runs it whenever what it is attached to happens. Others run when they are
    /// asked to, or as the rest of one that is attached, and are counted there.
    pub is_attached: bool,
}

fn missed_by_all(programs: &[Runs]) -> u64 {
    let missed = |name: &str| {
        let program = programs.iter().find(|program| program.name == name);
        program.map_or(u64::MAX, |program| program.missed)
    };
    programs
        .iter()
        .filter(|program| !program.name.ends_with(SECOND))
        .map(|program| {
            program
                .missed
                .min(missed(&format!("{}{SECOND}", program.name)))
        })
        .sum()
}

/// A value of `/proc/PID/fdinfo`: `name:<TAB>value` on a line.
fn info_value(info: &str, name: &str) -> Option<u64> {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|value| value.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_second_program_saw_was_not_missed() {
        let runs = |name: &str, missed| Runs {
            name: name.to_owned(),
            runs: 0,
            missed,
            is_attached: true,
        };
        let alone = [runs("a", 3), runs("b", 1)];
        assert_eq!(missed_by_all(&alone), 4);
        let twice = [runs("a", 3), runs("a_again", 2), runs("b", 1)];
        assert_eq!(missed_by_all(&twice), 3);
    }

    #[test]
    fn values_are_found_by_their_whole_name() {
        let info = "prog_type:\t26\nrun_cnt:\t7\nrecursion_misses:\t3\n";
        assert_eq!(info_value(info, "run_cnt"), Some(7));
        assert_eq!(info_value(info, "recursion_misses"), Some(3));
        assert_eq!(info_value(info, "run"), None);
    }
}

//! The kernel side at work: attached as planned, and its maps read. Only this file and its
//! folder touch the BPF library.

#![expect(
    unsafe_code,
    reason = "the ring is registered with the runtime by its descriptor"
)]

mod attach;
mod delivery;
mod functions;
mod iterate;
mod named;
mod object;
mod queues;
mod tallies;
mod unattached;
mod wire;

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{MapData, PerCpuHashMap, RingBuf},
    programs::Program,
};
use aya_log::EbpfLogger;
use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use queue_trace_common::{
    loss::Loss,
    queue::{Queue, QueueKey},
    settings::{CountKey, Counted, Slot},
};
use tokio::io::unix::AsyncFd;

pub use self::{attach::AttachError, iterate::Iterators, queues::Kept, unattached::Unattached};
use self::{
    attach::{SECOND, cpus},
    named::take,
    queues::Queues,
    tallies::Tallies,
    wire::Wire,
};
use crate::kernel::{btf::Types, plan::Plan, selection::Selection};

/// The kernel side at work. Dropping it detaches everything.
pub struct Probe {
    /// The programs, their links and the maps not taken out below; `None` once
    /// detached.
    ebpf: Option<Ebpf>,
    /// What could not be done and is not needed by all, a sentence each.
    notes: Vec<String>,
    records: AsyncFd<RingBuf<MapData>>,
    counts: PerCpuHashMap<MapData, Wire<CountKey>, Wire<Counted>>,
    tallies: Tallies,
    searched: Searched,
    /// What was counted of a namespace that is to be forgotten.
    forgotten: HashMap<CountKey, Counted>,
    queues: Queues,
    /// What filters let through besides, for a while: the maps and their networks.
    let_in: Vec<(&'static str, Vec<attach::Prefix>)>,
    /// Keeps the number of the self-test's namespace, which the filter lets through, from going
    /// to another namespace.
    kept_netns: Option<OwnedFd>,
}

impl Probe {
    /// Loads and attaches as planned.
    ///
    /// # Errors
    /// [`AttachError::Refused`] if the kernel will not have a hook of the plan.
    pub fn attach(plan: &Plan, types: &Types, selection: &Selection) -> Result<Self, AttachError> {
        let (mut ebpf, notes) = attach::attach(plan, types, selection)?;
        let ring: RingBuf<MapData> = take(&mut ebpf, "RECORDS")?;
        // SAFETY: the ring owns its descriptor, which stays open and the same until the
        // ring is dropped, together with the registration.
        let records = unsafe { AsyncFd::register(ring) }.context("cannot poll the ring")?;
        Ok(Self {
            records,
            counts: take(&mut ebpf, "COUNTS")?,
            tallies: Tallies::of(&mut ebpf, cpus()?)?,
            searched: Searched::default(),
            forgotten: HashMap::new(),
            queues: Queues::of(&mut ebpf)?,
            notes,
            ebpf: Some(ebpf),
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
        let ebpf = self.ebpf.as_mut().context("already detached")?;
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
        let ebpf = self.ebpf.as_mut().context("already detached")?;
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

    /// Detaches everything. What was counted and recorded stays to be read.
    pub fn detach(&mut self) {
        self.ebpf = None;
        self.searched.until = None;
    }

    /// How often programs were kept from running, all together. Where a second one does
    /// what the first was kept from, as often as both can have been.
    ///
    /// # Errors
    /// As [`Probe::runs`].
    pub fn missed(&self) -> Result<u64> {
        Ok(missed_by_all(&self.runs()?))
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

    /// Takes the records that are there, a few thousand at most, each as its bytes.
    pub fn take_records(&mut self) -> Vec<Bytes> {
        const AT_ONCE: usize = 4096;
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

    /// The exact counts so far, by listener and outcome.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn counts(&mut self) -> Result<HashMap<CountKey, Counted>> {
        let mut counts = self.search_counts()?.clone();
        for Slot { key, counted } in self.tallies.slots() {
            counts.entry(key).or_default().add(&counted);
        }
        for (key, forgotten) in &self.forgotten {
            if let Some(counted) = counts.get_mut(key) {
                counted.seen -= forgotten.seen;
                counted.held -= forgotten.held;
                if counted.seen == 0 {
                    counts.remove(key);
                }
            }
        }
        Ok(counts)
    }

    /// The counts that have no slot, searched only if there are new ones.
    fn search_counts(&mut self) -> Result<&HashMap<CountKey, Counted>> {
        let until = Some(self.tallies.counted());
        if self.searched.until != until {
            let mut counts: HashMap<CountKey, Counted> = HashMap::new();
            for entry in self.counts.iter() {
                let (Wire(key), values) = entry.context("cannot read the counts")?;
                let sum = counts.entry(key).or_default();
                values.iter().for_each(|Wire(cpu)| sum.add(cpu));
            }
            self.searched = Searched { until, counts };
        }
        Ok(&self.searched.counts)
    }

    /// What was lost so far.
    #[must_use]
    pub fn loss(&self) -> Loss {
        self.tallies.loss()
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
        for (name, program) in self.ebpf.iter().flat_map(Ebpf::programs) {
            let Ok(fd) = program.fd() else {
                // Not part of the plan, so not loaded.
                continue;
            };
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let info = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            all.push(Runs {
                name: name.to_owned(),
                runs: info_value(&info, "run_cnt").unwrap_or(0),
                missed: info_value(&info, "recursion_misses").unwrap_or(0),
                is_iterator: matches!(program, Program::Iter(_)),
            });
        }
        Ok(all)
    }

    /// What lists what exists; `None` once detached.
    pub fn iterators(&mut self) -> Option<Iterators<'_>> {
        self.ebpf.as_mut().map(Iterators)
    }

    /// What is kept of the listeners' queues.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn kept(&self) -> Result<Kept> {
        self.queues.read()
    }

    /// How often listeners were made or closed so far.
    #[must_use]
    pub fn listener_changes(&self) -> u64 {
        self.tallies.listeners()
    }

    /// The part of it that all CPUs share, which says who made a listener and whether it
    /// was closed.
    ///
    /// # Errors
    /// If the map cannot be read.
    pub fn queues(&self) -> Result<HashMap<QueueKey, Queue>> {
        self.queues.shared()
    }

    /// Forgets what is kept of listeners, which must be closed.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn forget_queues(&mut self, keys: &HashSet<QueueKey>) -> Result<()> {
        self.queues.forget(keys)
    }

    /// Forgets the counts of one namespace, and what is kept of its listeners.
    ///
    /// # Errors
    /// If the maps cannot be read.
    pub fn forget(&mut self, netns: u32) -> Result<()> {
        let counts = self.counts()?.into_iter();
        self.forgotten
            .extend(counts.filter(|(key, _)| key.netns == netns));
        let queues = self.queues()?.into_iter();
        let gone = queues.filter(|(_, queue)| queue.netns == netns);
        self.forget_queues(&gone.map(|(key, _)| key).collect())?;
        Ok(())
    }

    /// The kernel side's own messages, for `-vv`: flushing hands them to the log.
    ///
    /// # Errors
    /// If the map of messages cannot be had.
    pub fn messages(&mut self) -> Result<EbpfLogger<&'static dyn log::Log>> {
        let ebpf = self.ebpf.as_mut().context("already detached")?;
        EbpfLogger::init(ebpf).context("cannot read the kernel side's messages")
    }
}

/// What was found in the map of counts.
#[derive(Default)]
struct Searched {
    /// How many counts had been made; `None`: it has to be searched again in any case.
    until: Option<u64>,
    counts: HashMap<CountKey, Counted>,
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
    /// Whether it runs only when it is asked to.
    pub is_iterator: bool,
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
            is_iterator: false,
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

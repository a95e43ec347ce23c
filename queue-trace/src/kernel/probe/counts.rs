//! The exact counts: read where the kernel side keeps them, and taken out of there once
//! nobody can add to them any more, so that their places are free again.
//!
//! A count goes from the kernel to `retired`, where whoever reads counts still finds it,
//! and when it was told, to the sums by namespace.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{HashMap as HashMapOf, MapData, PerCpuHashMap},
};
use queue_trace_common::{
    loss::Loss,
    settings::{Baseline, CountKey, Counted},
};

use crate::{
    kernel::probe::{
        batch,
        named::take,
        tallies::{SlotPlace, Tallies},
        wire::PodWire,
    },
    model::{front::FrontCounters, ledger::Counters},
};

type CountMap = HashMapOf<MapData, PodWire<CountKey>, PodWire<Counted>>;

/// The counts, wherever they are.
pub(super) struct CountMaps {
    /// Those that have no slot.
    map: CountMap,
    /// Those that the kernel side found no room for by listener: by port, and by namespace.
    unlisted: [CountMap; 2],
    /// Tracepoint mode: the counters of each namespace when last looked at.
    baselines: PerCpuHashMap<MapData, u64, PodWire<Baseline>>,
    tallies: Tallies,
    searched: Searched,
    /// What was counted of a namespace that is to be forgotten.
    forgotten: HashMap<CountKey, Counted>,
    /// Taken out of the kernel, and not yet told by all.
    retired: HashMap<CountKey, Counted>,
    /// What the outcomes that are over moved, by namespace.
    over: HashMap<CountedNetns, Counters>,
    /// Slots whose counts were taken out, to be given back a while later.
    emptied: Vec<(SlotPlace, Instant)>,
    /// How often counts were taken out or let go.
    taken_out: u64,
}

/// A namespace as the kernel side names it in its counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CountedNetns {
    /// Its number.
    pub netns: u32,
    /// What tells it from an earlier one of that number; 0 on kernels that do not.
    pub cookie: u64,
}

impl CountedNetns {
    /// That of a count.
    #[must_use]
    pub fn of(key: &CountKey) -> Self {
        Self {
            netns: key.netns,
            cookie: key.netns_cookie,
        }
    }
}

/// What tells whether anything was counted meanwhile: if it is the same, nothing was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountActivity {
    counted: u64,
    /// How often counts were taken out of the kernel or let go, which lowers the sum.
    taken_out: u64,
}

/// What was found in the map of counts.
#[derive(Default)]
struct Searched {
    /// How many counts had been made; `None`: it has to be searched again in any case.
    until: Option<u64>,
    counts: HashMap<CountKey, Counted>,
}

/// A slot stays empty for so long before another key may have it, so that what the CPU
/// reads of it is either all of the old or all of the new.
const REST: Duration = Duration::from_millis(500);

/// Namespaces that are gone of which sums are kept. Those of more are put together.
const NAMESPACES: usize = 16_384;

impl CountMaps {
    pub(super) fn of(ebpf: &mut Ebpf, cpus: usize) -> Result<Self> {
        Ok(Self {
            map: take(ebpf, "COUNTS")?,
            unlisted: [take(ebpf, "UNLISTED")?, take(ebpf, "BY_NETNS")?],
            baselines: take(ebpf, "BASELINES")?,
            tallies: Tallies::of(ebpf, cpus)?,
            searched: Searched::default(),
            forgotten: HashMap::new(),
            retired: HashMap::new(),
            over: HashMap::new(),
            emptied: Vec::new(),
            taken_out: 0,
        })
    }

    /// What was lost so far.
    pub(super) fn loss(&self) -> Loss {
        self.tallies.loss()
    }

    /// What changes whenever something is counted, told without a system call.
    pub(super) fn activity(&self) -> CountActivity {
        CountActivity {
            counted: self.tallies.activity(),
            taken_out: self.taken_out,
        }
    }

    /// How often listeners were made or closed.
    pub(super) fn listeners(&self) -> u64 {
        self.tallies.listeners()
    }

    /// How often an entry went into the table of queues that all CPUs share.
    pub(super) fn queues(&self) -> u64 {
        self.tallies.queues()
    }

    /// Whether something of queues found no place and is in a table.
    pub(super) fn has_spilled(&self) -> bool {
        self.tallies.has_spilled()
    }

    /// Nothing is counted any more: what is read next is all there is.
    pub(super) fn search_again(&mut self) {
        self.searched.until = None;
        self.taken_out += 1;
    }

    /// All that was not released, by listener and outcome.
    pub(super) fn all(&mut self) -> Result<HashMap<CountKey, Counted>> {
        let mut counts = self.in_kernel()?;
        for (key, retired) in &self.retired {
            counts.entry(*key).or_default().add(retired);
        }
        Ok(counts)
    }

    /// What is in the kernel.
    fn in_kernel(&mut self) -> Result<HashMap<CountKey, Counted>> {
        self.search()?;
        let mut counts = self.searched.counts.clone();
        for (_, slot) in self.tallies.slots() {
            counts.entry(slot.key).or_default().add(&slot.counted);
        }
        for (key, forgotten) in &self.forgotten {
            if let Some(counted) = counts.get_mut(key) {
                counted.seen = counted.seen.saturating_sub(forgotten.seen);
                counted.held = counted.held.saturating_sub(forgotten.held);
                if counted.seen == 0 {
                    counts.remove(key);
                }
            }
        }
        Ok(counts)
    }

    /// Reads the counts that have no slot, if there are new ones.
    fn search(&mut self) -> Result<()> {
        let until = Some(self.tallies.counted());
        if self.searched.until == until {
            return Ok(());
        }
        let mut counts: HashMap<CountKey, Counted> = HashMap::new();
        for map in std::iter::once(&self.map).chain(&self.unlisted) {
            let mut found = HashMap::new();
            // Where entries go meanwhile the kernel begins anew, so that some come twice.
            let read = batch::each(map, |key, counted: &Counted| {
                found.insert(key, *counted);
            });
            read.context("cannot read the counts")?;
            // One of a port may be in several.
            for (key, counted) in found {
                counts.entry(key).or_default().add(&counted);
            }
        }
        self.searched = Searched { until, counts };
        Ok(())
    }

    /// Leaves out from now on what was counted of a namespace until now.
    pub(super) fn forget(&mut self, netns: u32) -> Result<()> {
        self.taken_out += 1;
        let counts = self.in_kernel()?.into_iter();
        self.forgotten
            .extend(counts.filter(|(key, _)| key.netns == netns));
        Ok(())
    }

    /// How many places of the table are taken.
    pub(super) fn taken(&mut self) -> Result<usize> {
        self.search()?;
        Ok(self.searched.counts.len())
    }

    /// Takes out of the kernel the counts to which nobody adds any more.
    pub(super) fn retire(&mut self, is_over: impl Fn(&CountKey) -> bool) -> Result<()> {
        self.taken_out += 1;
        self.give_back();
        self.search()?;
        let keys = self.searched.counts.keys();
        let keys: Vec<_> = keys.filter(|key| is_over(key)).copied().collect();
        for key in keys {
            for map in std::iter::once(&mut self.map).chain(&mut self.unlisted) {
                // It is in some of them.
                let Ok(PodWire(counted)) = map.get(&PodWire(key), 0) else {
                    continue;
                };
                map.remove(&PodWire(key)).context("cannot clear a count")?;
                self.retired.entry(key).or_default().add(&counted);
            }
            self.searched.counts.remove(&key);
        }
        let slots = self.tallies.slots().into_iter();
        for (place, slot) in slots.filter(|(_, slot)| is_over(&slot.key)) {
            self.tallies.empty(place);
            self.retired.entry(slot.key).or_default().add(&slot.counted);
            self.emptied.push((place, Instant::now()));
        }
        for (key, forgotten) in self.forgotten.extract_if(|key, _| is_over(key)) {
            if let Some(counted) = self.retired.get_mut(&key) {
                counted.seen = counted.seen.saturating_sub(forgotten.seen);
                counted.held = counted.held.saturating_sub(forgotten.held);
            }
        }
        Ok(())
    }

    /// Forgets the baselines of namespaces that are not `there` any more.
    pub(super) fn forget_baselines(&mut self, there: impl Fn(u32) -> bool) -> Result<()> {
        let mut stale = Vec::new();
        for entry in self.baselines.iter() {
            let (key, cpus) = entry.context("cannot read the baselines")?;
            let known = cpus.iter().find(|PodWire(cpu)| cpu.netns != 0);
            if known.is_some_and(|PodWire(cpu)| !there(cpu.netns)) {
                stale.push(key);
            }
        }
        for key in stale {
            // It may have gone by itself.
            let _ = self.baselines.remove(&key);
        }
        Ok(())
    }

    /// Gives back the slots that were emptied a while ago.
    fn give_back(&mut self) {
        let tallies = &self.tallies;
        self.emptied.retain(|(place, since)| {
            let over = since.elapsed() >= REST;
            if over {
                tallies.give_back(*place);
            }
            !over
        });
    }

    /// The counts that were retired, which were told by all: of them only what they moved is
    /// kept.
    pub(super) fn release(&mut self) -> HashMap<CountKey, Counted> {
        let released = std::mem::take(&mut self.retired);
        for (key, counted) in &released {
            if key.moved == 0 && FrontCounters::index_of(key.outcome).is_none() {
                continue;
            }
            let mut seen = CountedNetns::of(key);
            if self.over.len() >= NAMESPACES && !self.over.contains_key(&seen) {
                seen = CountedNetns::default();
            }
            let sum = self.over.entry(seen).or_default();
            sum.add_verdicts(key.outcome, key.moved, counted.seen);
        }
        released
    }

    /// What all verdicts so far moved, by namespace.
    pub(super) fn sides(&mut self) -> Result<HashMap<CountedNetns, Counters>> {
        let mut sums = self.over.clone();
        for (key, counted) in self.all()? {
            let sum = sums.entry(CountedNetns::of(&key)).or_default();
            sum.add_verdicts(key.outcome, key.moved, counted.seen);
        }
        Ok(sums)
    }
}

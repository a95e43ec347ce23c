//! Runs the kernel side's iterators: what exists at a moment, as the kernel itself lists it.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context, Result};
use aya::{
    Btf, Ebpf,
    programs::{Iter, ProgramError},
};
use bytemuck::Pod;
use queue_trace_common::queue::{Depths, Held};
use rustix::time::{ClockId, clock_gettime};

use crate::{
    kernel::{
        decode::text,
        netns,
        netns::NetnsPath,
        probe::{lock::lock, named::named},
    },
    model::socket::Process,
};

/// (program, what it iterates over)
const HELD: (&str, &str) = ("held_sockets", "task_file");
const DEPTHS: (&str, &str) = ("queue_depths", "tcp");

/// The iterators, ready to be run, from any thread. Once what they are part of is detached,
/// running them is an error.
#[derive(Clone)]
pub struct Iterators {
    ebpf: Arc<Mutex<Option<Ebpf>>>,
    costs: Arc<IteratorCosts>,
}

/// What each iterator took when it ran last: CPU time, nanoseconds; 0: it did not run yet.
#[derive(Debug, Default)]
pub(super) struct IteratorCosts {
    held: AtomicU64,
    depths: AtomicU64,
}

impl IteratorCosts {
    /// In more namespaces than these, one walk over all open files is cheaper than a list of each
    /// one's sockets.
    fn few(&self) -> usize {
        let held = self.held.load(Ordering::Relaxed);
        let depths = self.depths.load(Ordering::Relaxed);
        if held == 0 || depths == 0 {
            return FEW;
        }
        usize::try_from(held / depths).unwrap_or(usize::MAX)
    }
}

/// The same while it is not known what they take.
const FEW: usize = 4;

/// A listening socket that is in some process's table of files.
#[derive(Debug, Clone, Default)]
pub struct HeldListener {
    /// What the socket diagnosis does not tell of it.
    pub depths: Depths,
    /// Who holds it.
    pub processes: Vec<Process>,
}

/// Has the iterators verified, which takes privileges that running them does not.
pub(super) fn prepare(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), ProgramError> {
    for (name, target) in [HELD, DEPTHS] {
        let program: &mut Iter = named(ebpf, name)?.try_into()?;
        program.load(target, btf)?;
    }
    Ok(())
}

/// Reads what an iterator lists.
type Reading<'a> = dyn FnMut() -> io::Result<Vec<u8>> + Send + 'a;

/// CPU time of the calling thread, nanoseconds.
fn thread_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    u64::try_from(i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)).unwrap_or(0)
}

impl Iterators {
    /// Those of a kernel side that others use as well.
    pub(super) fn of(ebpf: Arc<Mutex<Option<Ebpf>>>, costs: Arc<IteratorCosts>) -> Self {
        Self { ebpf, costs }
    }

    /// In more namespaces than these, [`Self::held`] is cheaper than [`Self::depths`] of each.
    #[must_use]
    pub fn few(&self) -> usize {
        self.costs.few()
    }

    /// The listening sockets that processes hold, by inode number: those of all namespaces in one
    /// walk. It does not see what only processes of other PID namespaces hold, or nobody's table
    /// of files.
    ///
    /// # Errors
    /// If the iterator cannot be run.
    pub fn held(&self) -> Result<HashMap<u64, HeldListener>> {
        let mut listeners: HashMap<u64, HeldListener> = HashMap::new();
        for held in self.run::<Held>(HELD.0, &self.costs.held, |read| read())? {
            let process = Process {
                pid: held.pid,
                comm: text(&held.comm).unwrap_or_default(),
            };
            let listener = listeners.entry(held.depths.inode).or_default();
            listener.depths = held.depths;
            listener.processes.push(process);
        }
        for listener in listeners.values_mut() {
            listener.processes.sort();
            // Threads with open files of their own, and copies of a descriptor.
            listener.processes.dedup();
        }
        Ok(listeners)
    }

    /// The SYN queue and the group of each listener of a namespace, by inode number. After the
    /// listeners the kernel goes through the connections of all namespaces, which takes longer
    /// than anything else here.
    ///
    /// # Errors
    /// If the iterator cannot be run, or the namespace not be entered.
    pub fn depths(&self, netns: u32, way: &NetnsPath) -> Result<HashMap<u64, Depths>> {
        // An iterator sees the namespace of the thread that opens it.
        let inside = |read: &mut Reading<'_>| netns::inside(netns, way, read);
        let all = self.run::<Depths>(DEPTHS.0, &self.costs.depths, inside)?;
        let of_file = all.into_iter().filter(|depths| depths.inode != 0);
        Ok(of_file.map(|depths| (depths.inode, depths)).collect())
    }

    fn run<T: Pod>(
        &self,
        name: &str,
        cost: &AtomicU64,
        place: impl FnOnce(&mut Reading<'_>) -> io::Result<Vec<u8>>,
    ) -> Result<Vec<T>> {
        let mut link = {
            // Not while it runs: others wait.
            let mut ebpf = lock(&self.ebpf);
            let ebpf = ebpf.as_mut().context("already detached")?;
            let program: &mut Iter = named(ebpf, name)?.try_into()?;
            let link = program.attach()?;
            Some(program.take_link(link)?)
        };
        let mut read = || {
            let link = link.take().ok_or_else(|| io::Error::other("read twice"))?;
            let mut file = link.into_file().map_err(io::Error::other)?;
            let mut bytes = Vec::new();
            let began = thread_time();
            io::Read::read_to_end(&mut file, &mut bytes)?;
            let took = thread_time().saturating_sub(began);
            cost.store(took.max(1), Ordering::Relaxed);
            Ok(bytes)
        };
        let bytes = place(&mut read).with_context(|| format!("cannot run {name}"))?;
        let records = bytes.chunks_exact(size_of::<T>());
        Ok(records.map(bytemuck::pod_read_unaligned).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cheaper_is_decided_by_what_they_took() {
        let costs = IteratorCosts::default();
        assert_eq!(costs.few(), FEW);
        costs.held.store(900, Ordering::Relaxed);
        assert_eq!(costs.few(), FEW);
        // Three lists take as long as the walk, so for three namespaces these are made.
        costs.depths.store(300, Ordering::Relaxed);
        assert_eq!(costs.few(), 3);
        costs.depths.store(1000, Ordering::Relaxed);
        assert_eq!(costs.few(), 0);
    }

    #[test]
    fn a_thread_knows_its_time() {
        let began = thread_time();
        let mut sum = 0u64;
        while thread_time() <= began {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
    }
}

//! Runs the kernel side's iterators: what exists at a moment, as the kernel itself lists it.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex},
};

use anyhow::{Context, Result};
use aya::{
    Btf, Ebpf,
    programs::{Iter, ProgramError, iter::IterLink},
};
use bytemuck::Pod;
use queue_trace_common::queue::{Depths, Held};

use crate::{
    kernel::{
        decode::text,
        netns,
        netns::NetnsPath,
        probe::{lock::lock, named::named},
    },
    model::socket::Process,
};

/// (program, what it iterates over, what a pause means)
const HELD: (&str, &str, Pause) = ("held_sockets", "task_file", Pause::Break);
const DEPTHS: (&str, &str, Pause) = ("queue_depths", "tcp", Pause::End);

/// The iterators, ready to be run, from any thread. Once what they are part of is detached,
/// running them is an error.
#[derive(Clone)]
pub struct Iterators(Arc<Mutex<Option<Ebpf>>>);

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
    for (name, target, _) in [HELD, DEPTHS] {
        let program: &mut Iter = named(ebpf, name)?.try_into()?;
        program.load(target, btf)?;
    }
    Ok(())
}

/// What it means that an iterator has no more for now.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// The kernel takes a break after a million of whatever nothing is written about.
    Break,
    /// The program came to the first socket that does not listen: those that do were before it.
    End,
}

/// What an iterator writes.
pub(super) fn read_all(link: IterLink, pause: Pause) -> io::Result<Vec<u8>> {
    let mut file = link.into_file().map_err(io::Error::other)?;
    let mut bytes = Vec::new();
    loop {
        match io::Read::read_to_end(&mut file, &mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if pause == Pause::End {
                    return Ok(bytes);
                }
            }
            read => return read.map(|_| bytes),
        }
    }
}

impl Iterators {
    /// Those of a kernel side that others use as well.
    pub(super) fn of(ebpf: Arc<Mutex<Option<Ebpf>>>) -> Self {
        Self(ebpf)
    }

    /// The listening sockets that processes hold, by inode number: those of all namespaces in one
    /// walk. It does not see what only processes of other PID namespaces hold, or nobody's table
    /// of files.
    ///
    /// # Errors
    /// If the iterator cannot be run.
    pub fn held(&self) -> Result<HashMap<u64, HeldListener>> {
        let mut listeners: HashMap<u64, HeldListener> = HashMap::new();
        for held in self.run::<Held>(HELD, |read| read())? {
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

    /// The SYN queue and the group of each listener of a namespace, by inode number.
    ///
    /// # Errors
    /// If the iterator cannot be run, or the namespace not be entered.
    pub fn depths(&self, netns: u32, way: &NetnsPath) -> Result<HashMap<u64, Depths>> {
        // An iterator sees the namespace of the thread that opens it.
        let all = self.run::<Depths>(DEPTHS, |read| netns::inside(netns, way, read))?;
        let of_file = all.into_iter().filter(|depths| depths.inode != 0);
        Ok(of_file.map(|depths| (depths.inode, depths)).collect())
    }

    fn run<T: Pod>(
        &self,
        (name, _, pause): (&str, &str, Pause),
        place: impl FnOnce(&mut (dyn FnMut() -> io::Result<Vec<u8>> + Send)) -> io::Result<Vec<u8>>,
    ) -> Result<Vec<T>> {
        let mut link = {
            // Not while it runs: others wait.
            let mut ebpf = lock(&self.0);
            let ebpf = ebpf.as_mut().context("already detached")?;
            let program: &mut Iter = named(ebpf, name)?.try_into()?;
            let link = program.attach()?;
            Some(program.take_link(link)?)
        };
        let mut read = || {
            let link = link.take().ok_or_else(|| io::Error::other("read twice"))?;
            read_all(link, pause)
        };
        let bytes = place(&mut read).with_context(|| format!("cannot run {name}"))?;
        let records = bytes.chunks_exact(size_of::<T>());
        Ok(records.map(bytemuck::pod_read_unaligned).collect())
    }
}

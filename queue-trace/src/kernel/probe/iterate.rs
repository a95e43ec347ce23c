//! Runs the kernel side's iterators: what exists at a moment, as the kernel itself lists it.

use std::{collections::HashMap, io};

use anyhow::{Context, Result};
use aya::{
    Btf, Ebpf,
    programs::{Iter, ProgramError},
};
use bytemuck::Pod;
use queue_trace_common::queue::{Depths, Held};

use crate::{
    kernel::{decode::text, netns, netns::NetnsPath, probe::named::named},
    model::socket::Process,
};

/// (program, what it iterates over)
const HELD: (&str, &str) = ("held_sockets", "task_file");
const DEPTHS: (&str, &str) = ("queue_depths", "tcp");

/// The iterators, ready to be run.
pub struct Iterators<'a>(pub(super) &'a mut Ebpf);

/// Has the iterators verified, which takes privileges that running them does not.
pub(super) fn prepare(ebpf: &mut Ebpf, btf: &Btf) -> Result<(), ProgramError> {
    for (name, target) in [HELD, DEPTHS] {
        let program: &mut Iter = named(ebpf, name)?.try_into()?;
        program.load(target, btf)?;
    }
    Ok(())
}

impl Iterators<'_> {
    /// The processes that hold each listening socket, by its inode number.
    ///
    /// # Errors
    /// If the iterator cannot be run.
    pub fn owners(&mut self) -> Result<HashMap<u64, Vec<Process>>> {
        let mut owners = HashMap::new();
        for held in self.run::<Held>(HELD.0, |read| read())? {
            let process = Process {
                pid: held.pid,
                comm: text(&held.comm).unwrap_or_default(),
            };
            let processes: &mut Vec<Process> = owners.entry(held.inode).or_default();
            // Threads with open files of their own, and copies of a descriptor.
            if !processes.contains(&process) {
                processes.push(process);
            }
        }
        for processes in owners.values_mut() {
            processes.sort();
        }
        Ok(owners)
    }

    /// The SYN queue and the group of each listener of a namespace, by inode number.
    ///
    /// # Errors
    /// If the iterator cannot be run, or the namespace not be entered.
    pub fn depths(&mut self, netns: u32, way: &NetnsPath) -> Result<HashMap<u64, Depths>> {
        // An iterator sees the namespace of the thread that opens it.
        let all = self.run::<Depths>(DEPTHS.0, |read| netns::inside(netns, way, read))?;
        let of_file = all.into_iter().filter(|depths| depths.inode != 0);
        Ok(of_file.map(|depths| (depths.inode, depths)).collect())
    }

    fn run<T: Pod>(
        &mut self,
        name: &str,
        place: impl FnOnce(&mut (dyn FnMut() -> io::Result<Vec<u8>> + Send)) -> io::Result<Vec<u8>>,
    ) -> Result<Vec<T>> {
        let program: &mut Iter = named(self.0, name)?.try_into()?;
        let link = program.attach()?;
        let mut link = Some(program.take_link(link)?);
        let mut read = || {
            let link = link.take().ok_or_else(|| io::Error::other("read twice"))?;
            let mut file = link.into_file().map_err(io::Error::other)?;
            let mut bytes = Vec::new();
            io::Read::read_to_end(&mut file, &mut bytes)?;
            Ok(bytes)
        };
        let bytes = place(&mut read).with_context(|| format!("cannot run {name}"))?;
        let records = bytes.chunks_exact(size_of::<T>());
        Ok(records.map(bytemuck::pod_read_unaligned).collect())
    }
}

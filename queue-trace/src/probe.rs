//! The only file that touches the BPF library: loads the kernel side as planned,
//! attaches it, and reads its maps.

mod iterate;
mod queues;
mod tallies;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    hash::Hash,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use anyhow::{Context, Result, anyhow};
use aya::{
    Btf, Ebpf, EbpfLoader, Pod, VerifierLogLevel,
    maps::{Map, MapData, PerCpuHashMap, RingBuf, lpm_trie},
    programs::{FEntry, FExit, Iter, KProbe, Program, ProgramError, RawTracePoint},
};
use aya_log::EbpfLogger;
use bytemuck::bytes_of;
use bytes::{Bytes, BytesMut};
use ipnet::IpNet;
use queue_trace_common::{
    field,
    hook::{self, Hook},
    queue::{Queue, QueueKey},
    settings::{Address, CountKey, Counted, Kernel, Loss, Slot},
};
use tokio::io::unix::AsyncFd;

use crate::{
    btf::Types,
    netns::{self, Door},
    plan::{Family, Plan},
    wanted::Wanted,
};

pub use self::{
    iterate::{Iterators, Unattached},
    queues::Kept,
};
use self::{queues::Queues, tallies::Tallies};

/// The kernel side, built ahead from `queue-trace-ebpf`.
static OBJECT: &[u8] = aya::include_bytes_aligned!("../bpf/queue-trace.bpf.o");

/// Why the kernel side could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused a hook, or the family as a whole; another may do.
    #[error("{}{why}", hook.map(|hook| format!("{}: ", hook.function)).unwrap_or_default())]
    Refused {
        /// Which hook, if one.
        hook: Option<&'static Hook>,
        /// What the kernel said.
        why: String,
    },
    /// Nothing will do.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

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
}

impl Probe {
    /// Loads and attaches as planned.
    ///
    /// # Errors
    /// [`AttachError::Refused`] if the kernel will not have a hook of the plan.
    pub fn attach(plan: &Plan, types: &Types, wanted: &Wanted) -> Result<Self, AttachError> {
        let fields = types.fields().map_err(anyhow::Error::from)?;
        let kernel = Kernel {
            attached: plan.hook_bits(),
            ..types.kernel().map_err(anyhow::Error::from)?
        };
        let mut ebpf = load(&fields, &kernel, wanted)?;
        fill(&mut ebpf, "ADDRS", &wanted.addrs)?;
        fill(&mut ebpf, "CLIENTS", &wanted.clients)?;

        // Once: it takes a while.
        let btf = Btf::from_sys_fs().context("cannot read the kernel's BTF");
        let mut notes = Vec::new();
        if plan.family == Family::Tracepoint {
            notes = attach_tracepoints(&mut ebpf, wanted, &btf)?;
        }
        for hook in &plan.hooks {
            let by_type = match plan.family {
                Family::Fentry => Some(btf.as_ref().map_err(|error| anyhow!("{error:#}"))?),
                Family::Kprobe | Family::Tracepoint => None,
            };
            attach_hook(&mut ebpf, hook, by_type).map_err(|error| AttachError::Refused {
                hook: Some(hook),
                why: reason(&error),
            })?;
        }
        if plan.hooks.iter().any(|hook| hook.index == hook::TIMER) {
            attach_tracepoint(&mut ebpf, "retransmit_synack", "tcp_retransmit_synack")?;
        }
        if let Ok(btf) = &btf
            && let Err(error) = iterate::prepare(&mut ebpf, btf)
        {
            log::info!("the kernel's iterators cannot be used: {}", reason(&error));
        }
        let ring: RingBuf<MapData> = take(&mut ebpf, "RECORDS")?;
        // SAFETY: the ring owns its descriptor, which stays open and the same until the
        // ring is dropped, together with the registration.
        let records = unsafe { AsyncFd::register(ring) }.context("cannot poll the ring")?;
        log_sizes(&ebpf);
        Ok(Self {
            records,
            counts: take(&mut ebpf, "COUNTS")?,
            tallies: Tallies::of(&mut ebpf, cpus()?)?,
            searched: Searched::default(),
            forgotten: HashMap::new(),
            queues: Queues::of(&mut ebpf)?,
            notes,
            ebpf: Some(ebpf),
        })
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

/// Data that travels between kernel and user side as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
struct Wire<T>(T);

// SAFETY: bytemuck's Pod is the stronger promise: any bytes are a value, and no byte
// is padding. The wrapper adds nothing to the layout.
unsafe impl<T: bytemuck::Pod> Pod for Wire<T> {}

fn load(
    fields: &[field::Field; field::COUNT],
    kernel: &Kernel,
    wanted: &Wanted,
) -> Result<Ebpf, AttachError> {
    let cpus = cpus()?;
    let field_bytes: &[u8] = bytemuck::cast_slice(fields);
    let filter = wanted.filter();
    let ports = wanted.port_bits();
    let level = if wanted.debug {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    EbpfLoader::new()
        // The verifier's log of a refused program is fetched by a second attempt; the
        // statistics of accepted ones are of no use here.
        .verifier_log_level(VerifierLogLevel::VERBOSE)
        .override_global("FIELDS", field_bytes, true)
        .override_global("KERNEL", bytes_of(kernel), true)
        .override_global("FILTER", bytes_of(&filter), true)
        .override_global("PORTS", &ports[..], true)
        .override_global(aya_log::LEVEL, &level, true)
        .map_max_entries("RECORDS", wanted.ring_bytes(cpus))
        .map_max_entries("TALLIES", u32::try_from(cpus).unwrap_or(u32::MAX))
        .load(OBJECT)
        .map_err(|error| AttachError::Other(anyhow!(error).context("cannot load the kernel side")))
}

fn cpus() -> Result<usize> {
    aya::util::nr_cpus()
        .map_err(|(_, error)| anyhow!(error).context("cannot tell how many CPUs there are"))
}

fn attach_hook(ebpf: &mut Ebpf, hook: &Hook, btf: Option<&Btf>) -> Result<(), ProgramError> {
    let family = if btf.is_some() { "" } else { "_kprobe" };
    for end in ["enter", "exit"] {
        let name = format!("{}_{end}{family}", hook.name);
        let Some(program) = ebpf.program_mut(&name) else {
            continue;
        };
        match (program, btf) {
            (Program::FEntry(program), Some(btf)) => {
                let program: &mut FEntry = program;
                program.load(hook.function, btf)?;
                program.attach()?;
            }
            (Program::FExit(program), Some(btf)) => {
                let program: &mut FExit = program;
                program.load(hook.function, btf)?;
                program.attach()?;
            }
            (Program::KProbe(program), _) => {
                let program: &mut KProbe = program;
                program.load()?;
                program.attach(hook.function, 0)?;
            }
            // The object's program is of another kind than its name says.
            _ => return Err(ProgramError::UnexpectedProgramType),
        }
    }
    Ok(())
}

fn attach_tracepoints(
    ebpf: &mut Ebpf,
    wanted: &Wanted,
    btf: &Result<Btf>,
) -> Result<Vec<String>, AttachError> {
    // Listeners first, then the packets that need them.
    attach_tracepoint_twice(ebpf, "rx_state", "inet_sock_set_state")?;
    let found = match btf {
        Ok(btf) => find_listeners(ebpf, &wanted.namespaces(), btf),
        Err(error) => Err(anyhow!("{error:#}")),
    };
    let notes = match found {
        Ok(()) => Vec::new(),
        Err(error) => vec![format!(
            "listeners that existed before are known by their port only: {error:#}"
        )],
    };
    attach_tracepoint_twice(ebpf, "rx_consume", "consume_skb")?;
    attach_tracepoint_twice(ebpf, "rx_kfree", "kfree_skb")?;
    attach_tracepoint(ebpf, "rx_receive", "netif_receive_skb")?;
    Ok(notes)
}

/// The program, and after it the one that does what the first was kept from.
fn attach_tracepoint_twice(ebpf: &mut Ebpf, program: &str, name: &str) -> Result<(), AttachError> {
    attach_tracepoint(ebpf, program, name)?;
    attach_tracepoint(ebpf, &format!("{program}{SECOND}"), name)
}

/// What the names of the second programs end in.
const SECOND: &str = "_again";

fn attach_tracepoint(ebpf: &mut Ebpf, program: &str, name: &str) -> Result<(), AttachError> {
    let mut attach = || -> Result<(), ProgramError> {
        let program: &mut RawTracePoint = named(ebpf, program)?.try_into()?;
        program.load()?;
        program.attach(name)?;
        Ok(())
    };
    attach().map_err(|error| AttachError::Refused {
        hook: None,
        why: format!("tracepoint {name}: {}", reason(&error)),
    })
}

/// Runs the iterator over the sockets of each namespace once. An iterator sees the
/// namespace of the thread that opens it.
fn find_listeners(ebpf: &mut Ebpf, namespaces: &BTreeMap<u32, Door>, btf: &Btf) -> Result<()> {
    let program: &mut Iter = named(ebpf, "rx_listeners")?.try_into()?;
    program.load("tcp", btf)?;
    for (id, door) in namespaces {
        let link = program.attach()?;
        let link = program.take_link(link)?;
        let listed = netns::inside(*id, door, || {
            let mut file = link.into_file().map_err(io::Error::other)?;
            // It prints nothing; reading it to its end is what runs it.
            io::copy(&mut file, &mut io::sink())
        });
        if let Err(error) = listed {
            log::info!("network namespace {id}: its listeners are not known: {error}");
        }
    }
    Ok(())
}

/// What the kernel had to verify, for `-vv`.
fn log_sizes(ebpf: &Ebpf) {
    if !log::log_enabled!(log::Level::Debug) {
        return;
    }
    for (name, program) in ebpf.programs() {
        if let Ok(info) = program.info() {
            log::debug!(
                "{name}: {} instructions verified, {} bytes",
                info.verified_instruction_count().unwrap_or(0),
                info.size_translated().unwrap_or(0)
            );
        }
    }
}

fn named<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Program, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::NotLoaded)
}

fn take<T: TryFrom<Map>>(ebpf: &mut Ebpf, name: &str) -> Result<T>
where
    T::Error: std::error::Error + Send + Sync + 'static,
{
    let map = ebpf
        .take_map(name)
        .with_context(|| format!("the kernel side has no map {name}"))?;
    T::try_from(map).with_context(|| format!("the map {name} is not what it should be"))
}

/// Puts networks into a trie; IPv4 as `::ffff:a.b.c.d`.
fn fill(ebpf: &mut Ebpf, name: &str, networks: &[IpNet]) -> Result<()> {
    let map = ebpf
        .map_mut(name)
        .with_context(|| format!("the kernel side has no map {name}"))?;
    let mut trie: lpm_trie::LpmTrie<_, Address, u8> = map.try_into()?;
    for network in networks {
        let (bits, address) = match network {
            IpNet::V4(v4) => (96 + v4.prefix_len(), v4.network().to_ipv6_mapped()),
            IpNet::V6(v6) => (v6.prefix_len(), v6.network()),
        };
        let key = lpm_trie::Key::new(u32::from(bits), address.octets());
        trie.insert(&key, 1, 0)
            .with_context(|| format!("cannot filter on {network}"))?;
    }
    Ok(())
}

/// The kernel's reason without the library's wrapping: the last cause, and the last
/// lines of the verifier's log where there is one.
fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        let tail: Vec<_> = log.lines().rev().take(3).collect();
        if tail.is_empty() {
            return format!("the kernel refuses the program: {io_error}");
        }
        let tail: Vec<_> = tail.into_iter().rev().collect();
        return format!(
            "the kernel refuses the program: {io_error}: {}",
            tail.join(" | ")
        );
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
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

//! Loads the kernel side and attaches it: programs to functions and tracepoints, filters into
//! maps.

use std::{collections::BTreeMap, net::Ipv6Addr};

use anyhow::{Context, Result, anyhow};
use aya::{
    Btf, Ebpf, VerifierLogLevel,
    maps::{MapData, lpm_trie},
    programs::{BtfTracePoint, FEntry, FExit, Iter, KProbe, Program, ProgramError, RawTracePoint},
};
use bytemuck::bytes_of;
use ipnet::IpNet;
use queue_trace_common::{
    hook::{self, ALIKE, HOOKS, Hook},
    outcome::Set,
    queue::{LISTENERS, MARKING_CPUS},
    settings::{Address, Kernel},
};

use crate::{
    kernel::{
        btf::Types,
        host, mark, netns,
        netns::NetnsPath,
        plan::{HookFamily, Plan},
        probe::{
            delivery, functions, iterate, loader,
            named::{KPROBE, named},
            object, reachable,
            reason::reason,
            refusal::{AttachError, lacking, refused},
            rest,
        },
        selection::{self, Selection},
    },
    stopping,
};

/// Loads and attaches as planned. With it what could not be done and is not needed by all.
pub(super) fn attach(
    plan: &Plan,
    types: &Types,
    selection: &Selection,
) -> Result<(Ebpf, Vec<String>), AttachError> {
    let sees_delivery = plan.family == HookFamily::Tracepoint && plan.delivery.is_ok();
    let mut ebpf = load_with(
        types,
        Some(plan.family),
        plan.hook_bits(),
        sees_delivery,
        plan.reasons,
        selection,
    )?;
    fill(&mut ebpf, "ADDRS", &selection.addrs)?;
    fill(&mut ebpf, "CLIENTS", &selection.clients)?;

    let btf = functions::of(types);
    let mut notes = Vec::new();
    if plan.family == HookFamily::Tracepoint {
        notes = attach_tracepoints(&mut ebpf, selection, sees_delivery, &btf)?;
        if host::is_realtime() {
            notes.push(SOFTIRQS_MIX.to_owned());
        }
    }
    if plan.family != HookFamily::Tracepoint && host::is_realtime() {
        attach_tracepoint(&mut ebpf, "task_switched", "sched_switch")?;
    }
    let by_type = match plan.family {
        HookFamily::Fentry => Some(btf.as_ref().map_err(|error| anyhow!("{error:#}"))?),
        HookFamily::Kprobe | HookFamily::Tracepoint => None,
    };
    let shared = rest::of_hooks(&mut ebpf, plan, types, by_type)?;
    for hook in &plan.hooks {
        let ends: &[_] = if opens(hook) { &[EXIT] } else { &[ENTER, EXIT] };
        attach_hook(&mut ebpf, hook, ends, by_type, shared)?;
    }
    if plan.reasons != 0 {
        // Without them the rest is as it was.
        attach_reasons(&mut ebpf).map_err(|error| match error {
            AttachError::Refused { why, .. } => AttachError::Reasons(why),
            other => other,
        })?;
    }
    if plan.hooks.iter().any(|hook| hook.index == hook::TIMER) {
        attach_tracepoint(&mut ebpf, "retransmit_synack", "tcp_retransmit_synack")?;
    }
    for hook in plan.hooks.iter().filter(|hook| opens(hook)) {
        attach_hook(&mut ebpf, hook, &[ENTER], by_type, shared)?;
    }
    if let Ok(btf) = &btf
        && let Err(error) = iterate::prepare(&mut ebpf, btf)
    {
        log::info!("the kernel's iterators cannot be used: {}", reason(&error));
    }
    log_sizes(&ebpf);
    Ok((ebpf, notes))
}

/// The kernel takes its time to verify each program, and who asked for the end waits for none.
fn unless_asked_to_stop() -> Result<(), AttachError> {
    if stopping::is_asked() {
        let ended = "ended by a signal before it was attached: nothing was watched";
        return Err(AttachError::Other(anyhow!(ended)));
    }
    Ok(())
}

/// A limit of tracepoints where softirqs interrupt each other: frames are one to a CPU there.
const SOFTIRQS_MIX: &str = "a packet that another one interrupts (PREEMPT_RT since 6.18) may go \
    without its verdict, or with the other's counters: the ledger says how many are unexplained";

/// Tasks of whose packets something is remembered where softirqs interrupt each other: far more
/// than can be in the midst of one.
const TASKS: u32 = 8192;

/// Makes the maps, and programs for the kernel that has these types. `attached`: see
/// [`Kernel::attached`].
pub(super) fn load(
    types: &Types,
    attached: u32,
    selection: &Selection,
) -> Result<Ebpf, AttachError> {
    load_with(types, None, attached, false, 0, selection)
}

/// The same. `family`: the way to attach, if something is to be attached; `delivered`: see
/// [`Kernel::delivered`]; `reasons`: the outcomes that are to be told by the kernel's reasons for
/// freeing a packet.
fn load_with(
    types: &Types,
    family: Option<HookFamily>,
    attached: u32,
    delivered: bool,
    reasons: Set,
    selection: &Selection,
) -> Result<Ebpf, AttachError> {
    let cpus = cpus()?;
    let fields = types.fields().map_err(anyhow::Error::from)?;
    // Softirqs of one CPU interrupt each other there; it does no harm where they do not.
    let realtime = host::is_realtime();
    let tasks = if realtime { TASKS } else { 1 };
    let mut kernel = Kernel {
        attached,
        softirqs_mix: realtime.into(),
        self_test: mark::own(),
        delivered: delivered.into(),
        ..types.kernel().map_err(anyhow::Error::from)?
    };
    kernel.ask(reasons);
    let cast = object::cast(types);
    if cast.is_none() {
        kernel.types = [0; _];
    }
    let filter = selection.filter();
    let object = object::fitted(family, cast, &fields, &kernel, &filter)?;
    let object = reachable::only(object)?;
    let field_bytes: &[u8] = bytemuck::cast_slice(&fields);
    let ports = selection.port_bits();
    let level = if selection.debug {
        aya_log::Level::Debug as u8
    } else {
        0
    };
    let mut loader = loader::new();
    let marking = MARKING_CPUS.min(u32::try_from(cpus).unwrap_or(u32::MAX));
    loader.map_max_entries("MARKS", LISTENERS * marking);
    for table in tables_of_others(family) {
        loader.map_max_entries(table, 1);
    }
    loader
        // The verifier's log of a refused program is fetched by a second attempt, which is also
        // made of one that a signal interrupted. So it is the short one: the other is of more
        // than the library's 16 MiB, which has it try ten times, half a second each.
        .verifier_log_level(VerifierLogLevel::DEBUG)
        .override_global("FIELDS", field_bytes, true)
        .override_global("KERNEL", bytes_of(&kernel), true)
        .override_global("FILTER", bytes_of(&filter), true)
        .override_global("PORTS", &ports[..], true)
        .override_global(aya_log::LEVEL, &level, true)
        .map_max_entries("RECORDS", selection.ring_bytes(cpus))
        .map_max_entries("FRAMES", tasks)
        .map_max_entries("ENTERING_BY_TASK", tasks)
        .map_max_entries("TALLIES", u32::try_from(cpus).unwrap_or(u32::MAX))
        .map_max_entries("MARKED", u32::try_from(cpus).unwrap_or(u32::MAX))
        .load(&object)
        .map_err(|error| {
            let why = lacking(&error, "for its maps").unwrap_or_else(|| anyhow!(error));
            AttachError::Other(why.context("cannot load the kernel side"))
        })
}

/// The tables that nothing uses that is attached so: to make them takes the kernel its time, and
/// memory.
fn tables_of_others(family: Option<HookFamily>) -> impl Iterator<Item = &'static str> {
    const OF_TRACEPOINTS: &[&str] = &["BASELINES", "LISTENERS", "LISTENING"];
    const OF_ALL: &[&str] = &["BY_NETNS", "COUNTS", "LEFT", "UNLISTED", "WITHOUT_LISTENER"];
    const OF_HOOKS: &[&str] = &["ACCEPTING", "ASKED", "MARKS", "QUEUES", "WAITING"];
    let of_others: &[_] = match family {
        Some(HookFamily::Tracepoint) => &[],
        Some(HookFamily::Fentry | HookFamily::Kprobe) => &[OF_TRACEPOINTS],
        None => &[OF_TRACEPOINTS, OF_ALL, OF_HOOKS],
    };
    of_others.iter().flat_map(|tables| *tables).copied()
}

pub(super) fn cpus() -> Result<usize> {
    aya::util::nr_cpus()
        .map_err(|(_, error)| anyhow!(error).context("cannot tell how many CPUs there are"))
}

/// What the names of the programs at both ends of a function end in.
const ENTER: &str = "enter";
const EXIT: &str = "exit";

fn opens(hook: &Hook) -> bool {
    hook::OPENING.contains(&hook.index)
}

fn attach_hook(
    ebpf: &mut Ebpf,
    hook: &'static Hook,
    ends: &[&str],
    btf: Option<&Btf>,
    shared: u32,
) -> Result<(), AttachError> {
    for &end in ends {
        unless_asked_to_stop()?;
        let could_share = ALIKE
            .iter()
            .any(|alike| alike.end == end && alike.hooks.contains(&hook.index));
        let kind = match btf {
            None => KPROBE,
            Some(_) if could_share && shared & hook.bit() == 0 => ALONE,
            Some(_) => "",
        };
        let name = format!("{}_{end}{kind}", hook.name);
        let Some(program) = ebpf.program_mut(&name) else {
            continue;
        };
        attach_end(program, hook.function, btf)
            .map_err(|error| refused(Some(hook), reason(&error), &error))?;
    }
    Ok(())
}

/// What is behind the names of programs that do all themselves, though they could share it.
const ALONE: &str = "_alone";

fn attach_end(
    program: &mut Program,
    function: &str,
    btf: Option<&Btf>,
) -> Result<(), ProgramError> {
    match (program, btf) {
        (Program::FEntry(program), Some(btf)) => {
            let program: &mut FEntry = program;
            program.load(function, btf)?;
            program.attach()?;
        }
        (Program::FExit(program), Some(btf)) => {
            let program: &mut FExit = program;
            program.load(function, btf)?;
            program.attach()?;
        }
        (Program::KProbe(program), _) => {
            let program: &mut KProbe = program;
            program.load()?;
            program.attach(function, 0)?;
        }
        // The object's program is of another kind than its name says.
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    Ok(())
}

/// Detaches what opens frames, and then all the rest.
pub(super) fn detach(mut ebpf: Ebpf) {
    let maps = rest::take_maps(&mut ebpf);
    for hook in hook::OPENING.map(|index| &HOOKS[index]) {
        for family in ["", KPROBE] {
            let name = format!("{}_{ENTER}{family}", hook.name);
            let unloaded = match ebpf.program_mut(&name) {
                Some(Program::FEntry(program)) => program.unload(),
                Some(Program::KProbe(program)) => program.unload(),
                _ => Ok(()),
            };
            if let Err(error) = unloaded {
                // It was not attached.
                log::debug!("{name}: {error}");
            }
        }
    }
    drop(ebpf);
    drop(maps);
}

fn attach_tracepoints(
    ebpf: &mut Ebpf,
    selection: &Selection,
    sees_delivery: bool,
    btf: &Result<Btf>,
) -> Result<Vec<String>, AttachError> {
    if sees_delivery {
        attach_tracepoint_twice(ebpf, "socket_state", "inet_sock_set_state")?;
        if let Err(error) = attach_received_typed(ebpf, btf) {
            // An older kernel; the other program does the same.
            log::debug!("{RECEIVED} by its type: {error:#}");
            attach_tracepoint(ebpf, "packet_received", RECEIVED)?;
        }
        attach_ends(ebpf)?;
        // Last: the end of what it begins is seen from now on.
        delivery::attach(ebpf).map_err(|error| AttachError::Delivery(format!("{error:#}")))?;
        return Ok(Vec::new());
    }
    // Listeners first, then the packets that need them.
    attach_tracepoint_twice(ebpf, "socket_state", "inet_sock_set_state")?;
    let found = match btf {
        Ok(btf) => find_listeners(ebpf, &selection.namespaces(), btf),
        Err(error) => Err(anyhow!("{error:#}")),
    };
    let notes = match found {
        Ok(()) => Vec::new(),
        Err(error) => vec![format!(
            "listeners that existed before are known by their port only: {error:#}"
        )],
    };
    // What sets baselines before what needs them.
    attach_tracepoint(ebpf, "packet_received", RECEIVED)?;
    attach_ends(ebpf)?;
    Ok(notes)
}

/// The tracepoint of packets that are received.
const RECEIVED: &str = "netif_receive_skb";

/// Attaches what sees packets that are received, where the kernel knows the type of what is given
/// to it.
fn attach_received_typed(ebpf: &mut Ebpf, btf: &Result<Btf>) -> Result<()> {
    let btf = btf.as_ref().map_err(|error| anyhow!("{error:#}"))?;
    let program: &mut BtfTracePoint = named(ebpf, "packet_received_typed")?.try_into()?;
    program.load(RECEIVED, btf)?;
    program.attach()?;
    Ok(())
}

/// Attaches what sees packets freed.
fn attach_ends(ebpf: &mut Ebpf) -> Result<(), AttachError> {
    attach_tracepoint_twice(ebpf, "packet_consumed", "consume_skb")?;
    attach_tracepoint_twice(ebpf, "packet_dropped", "kfree_skb")
}

fn attach_reasons(ebpf: &mut Ebpf) -> Result<(), AttachError> {
    rest::of_reasons(ebpf).map_err(|error| refused(None, reason(&error), &error))?;
    attach_tracepoint_twice(ebpf, "packet_refused", "kfree_skb")
}

/// The program, and after it the one that does what the first was kept from.
fn attach_tracepoint_twice(ebpf: &mut Ebpf, program: &str, name: &str) -> Result<(), AttachError> {
    attach_tracepoint(ebpf, program, name)?;
    attach_tracepoint(ebpf, &format!("{program}{SECOND}"), name)
}

/// What the names of the second programs end in.
pub(super) const SECOND: &str = "_again";

fn attach_tracepoint(ebpf: &mut Ebpf, program: &str, name: &str) -> Result<(), AttachError> {
    unless_asked_to_stop()?;
    let mut attach = || -> Result<(), ProgramError> {
        let program: &mut RawTracePoint = named(ebpf, program)?.try_into()?;
        program.load()?;
        program.attach(name)?;
        Ok(())
    };
    attach().map_err(|error| {
        let why = format!("tracepoint {name}: {}", reason(&error));
        refused(None, why, &error)
    })
}

/// Runs the iterator over the sockets of each namespace once. An iterator sees the
/// namespace of the thread that opens it.
fn find_listeners(ebpf: &mut Ebpf, namespaces: &BTreeMap<u32, NetnsPath>, btf: &Btf) -> Result<()> {
    let program: &mut Iter = named(ebpf, "listeners_at_start")?.try_into()?;
    program.load("tcp", btf)?;
    for (id, way) in namespaces {
        let link = program.attach()?;
        let link = program.take_link(link)?;
        let listed = netns::inside(*id, way, || {
            // It prints nothing; reading it to its end is what runs it.
            iterate::read_all(link, iterate::Pause::End)
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

/// Puts networks into a trie.
fn fill(ebpf: &mut Ebpf, name: &str, networks: &[IpNet]) -> Result<()> {
    let mut trie = trie(ebpf, name)?;
    for prefix in selection::prefixes(networks) {
        let (bits, address) = prefix;
        trie.insert(&key(prefix), 1, 0)
            .with_context(|| format!("cannot filter on {address}/{bits}"))?;
    }
    Ok(())
}

type Trie<'a> = lpm_trie::LpmTrie<&'a mut MapData, Address, u8>;

fn trie<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<Trie<'a>> {
    let map = ebpf
        .map_mut(name)
        .with_context(|| format!("the kernel side has no map {name}"))?;
    Ok(map.try_into()?)
}

/// A row of a trie: how many bits of which address.
pub(super) type Prefix = (u32, Ipv6Addr);

fn key((bits, address): Prefix) -> lpm_trie::Key<Address> {
    lpm_trie::Key::new(bits, address.octets())
}

/// Adds those networks to a trie that it does not have, and gives what was added.
pub(super) fn add(ebpf: &mut Ebpf, name: &str, networks: &[IpNet]) -> Result<Vec<Prefix>> {
    /// `BPF_NOEXIST` of linux/bpf.h.
    const ONLY_NEW: u64 = 1;
    let mut trie = trie(ebpf, name)?;
    let mut added = Vec::new();
    for prefix in selection::prefixes(networks) {
        // The user may filter on the same one, which then stays.
        if trie.insert(&key(prefix), 1, ONLY_NEW).is_ok() {
            added.push(prefix);
        }
    }
    Ok(added)
}

/// Removes from a trie what was added.
pub(super) fn remove(ebpf: &mut Ebpf, name: &str, added: &[Prefix]) -> Result<()> {
    let mut trie = trie(ebpf, name)?;
    for prefix in added {
        trie.remove(&key(*prefix)).with_context(|| {
            let (bits, address) = prefix;
            format!("cannot stop to let {address}/{bits} through the filter")
        })?;
    }
    Ok(())
}

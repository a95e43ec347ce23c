//! Looks at all listeners once: asks the kernel in every network namespace, and finds
//! whose they are.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    net::SocketAddr,
    time::Duration,
};

use queue_trace_common::queue::Depths;

use crate::{
    kernel::{netns, probe::Iterators, selection::Selection},
    listeners::{
        AcceptGauge, Cgroup, LimitFrom, Row, SynGauge, diag,
        diag::{Listening, takes},
        group, language, owners,
    },
    model::{clock::wall_now, runtime, socket::Listener},
};

/// The listeners of a moment.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// By namespace, port, address, and the order in which they were made.
    pub rows: Vec<Row>,
    /// Namespaces that could not be looked into, and why.
    pub notes: Vec<String>,
}

/// What one namespace holds.
struct Found {
    listening: Vec<Listening>,
    half_open: Vec<diag::HalfOpen>,
    waiting: Vec<diag::Waiting>,
    somaxconn: Option<u32>,
}

/// Looks at the listeners that pass the filters, and finds whose they are: by the kernel's
/// own lists if there are `iterators`, else by `/proc`.
#[must_use]
pub fn look(selection: &Selection, mut iterators: Option<Iterators<'_>>) -> Look {
    let mut look = gauges(selection, iterators.as_mut());
    own(&mut look.rows, iterators);
    look
}

/// The same without looking for their owners, which takes a look at every process.
#[must_use]
pub(crate) fn gauges(selection: &Selection, mut iterators: Option<&mut Iterators<'_>>) -> Look {
    let mut look = Look::default();
    for (id, way) in &selection.namespaces() {
        let found = match netns::inside(*id, way, || find(selection)) {
            Ok(found) => found,
            // It ended while we looked.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let note = format!("the listeners of netns {id} cannot be listed: {error}");
                look.notes.push(note);
                continue;
            }
        };
        if found.listening.is_empty() {
            continue;
        }
        let depths = iterators.as_deref_mut().map(|all| all.depths(*id, way));
        let depths = depths.and_then(|depths| {
            let logged = |error| log::info!("netns {id}: {error:#}");
            depths.map_err(logged).ok()
        });
        look.rows.extend(rows(*id, &found).map(|mut row| {
            if let Some(depths) = &depths {
                deepen(&mut row, depths);
            }
            row
        }));
    }
    group::find(&mut look.rows);
    sort(&mut look.rows);
    look
}

/// Adds what the kernel's iterator tells.
fn deepen(row: &mut Row, depths: &HashMap<u64, Depths>) {
    let Some(depths) = row.listener.inode.and_then(|inode| depths.get(&inode)) else {
        return;
    };
    row.syn_queue = Some(SynGauge {
        depth: depths.syn_depth,
        young: depths.syn_young,
        limit: row.accept_queue.limit,
        ..SynGauge::default()
    });
    row.place = (depths.size > 0).then_some((depths.index, depths.size));
}

/// In the order in which a person looks for them.
pub(crate) fn sort(rows: &mut [Row]) {
    rows.sort_by_key(|row| {
        let listener = row.listener;
        (
            row.netns,
            listener.port,
            listener.addr,
            listener.inode,
            listener.cookie,
        )
    });
}

/// What is in the calling thread's namespace.
fn find(selection: &Selection) -> io::Result<Found> {
    let mut listening = diag::listening()?;
    listening.retain(|found| selection.has(found.address));
    let crowded: HashSet<_> = listening
        .iter()
        .filter(|found| found.depth > 0)
        .map(|found| found.address.port())
        .collect();
    let mut waiting = Vec::new();
    for port in crowded {
        waiting.extend(diag::waiting(port)?);
    }
    let somaxconn = fs::read_to_string("/proc/sys/net/core/somaxconn").ok();
    Ok(Found {
        half_open: if listening.is_empty() {
            Vec::new()
        } else {
            diag::half_open()?
        },
        listening,
        waiting,
        somaxconn: somaxconn.and_then(|text| text.trim().parse().ok()),
    })
}

fn rows(netns: u32, found: &Found) -> impl Iterator<Item = Row> {
    let time = wall_now();
    found.listening.iter().map(move |listening| Row {
        time,
        netns,
        listener: Listener {
            addr: Some(listening.address.ip()),
            port: listening.address.port(),
            cookie: Some(listening.cookie),
            inode: (listening.inode != 0).then_some(listening.inode.into()),
            device: (listening.device != 0).then_some(listening.device),
        },
        processes: Vec::new(),
        cgroup: listening
            .cgroup
            .and_then(Cgroup::of_number)
            .unwrap_or_default(),
        group: None,
        accept_queue: AcceptGauge {
            depth: listening.depth,
            limit: listening.limit,
            limit_from: found
                .somaxconn
                .map(|somaxconn| LimitFrom::of(listening.limit, somaxconn)),
            asked: None,
            somaxconn: found.somaxconn,
            ..AcceptGauge::default()
        },
        syn_queue: syn_queue(listening, found),
        drops: None,
        counts: None,
        accept_latency_us: None,
        handshake_us: None,
        oldest_waiting_us: oldest(listening, found),
        default_of: None,
        threads: None,
        descriptors: None,
        entered: None,
        waits: None,
        waited_sum_ns: None,
        place: None,
        device: listening.device,
        closed: false,
    })
}

/// The listeners that get what is sent to an address: those bound to it go before those
/// bound to any.
fn takers(found: &Found, local: SocketAddr) -> Vec<&Listening> {
    let all = || found.listening.iter();
    let exact: Vec<_> = all().filter(|one| one.address == local).collect();
    if !exact.is_empty() {
        return exact;
    }
    let same_family = |one: &&Listening| one.address.is_ipv4() == local.is_ipv4();
    let any: Vec<_> = all()
        .filter(|one| takes(one.address, one.only_v6, local))
        .collect();
    let own: Vec<_> = any.iter().copied().filter(same_family).collect();
    if own.is_empty() { any } else { own }
}

/// The SYN queue, if all requests sent to the listener are its own.
fn syn_queue(listening: &Listening, found: &Found) -> Option<SynGauge> {
    let mut gauge = SynGauge {
        limit: listening.limit,
        ..SynGauge::default()
    };
    let twins = found
        .listening
        .iter()
        .filter(|one| one.address == listening.address);
    if twins.count() > 1 {
        return None;
    }
    for request in &found.half_open {
        let takers = takers(found, request.local);
        if takers.iter().any(|taker| taker.cookie == listening.cookie) {
            gauge.depth += 1;
            gauge.young += u32::from(request.young);
        }
    }
    Some(gauge)
}

/// The age of the oldest connection in the accept queue, if it can be none of another
/// listener's.
fn oldest(listening: &Listening, found: &Found) -> Option<u64> {
    if listening.depth == 0 {
        return None;
    }
    let mine = |local| {
        let takers = takers(found, local);
        let mut crowded = takers.iter().filter(|taker| taker.depth > 0);
        crowded.next().map(|taker| taker.cookie) == Some(listening.cookie)
            && crowded.next().is_none()
    };
    let ages = found.waiting.iter().filter(|waiting| mine(waiting.local));
    ages.map(|waiting| waiting.age)
        .max()
        .map(|age: Duration| age.as_micros() as u64)
}

/// Says whose they are.
fn own(rows: &mut [Row], iterators: Option<Iterators<'_>>) {
    let sockets: HashSet<_> = rows.iter().filter_map(|row| row.listener.inode).collect();
    let told = iterators.and_then(|mut all| {
        let logged = |error| log::info!("{error:#}");
        all.owners().map_err(logged).ok()
    });
    let owners = told.unwrap_or_else(|| owners::of(&sockets));
    let mut programs: HashMap<u32, (Option<String>, Option<&str>)> = HashMap::new();
    let mut cgroups: HashMap<u32, Option<Cgroup>> = HashMap::new();
    for row in rows {
        let processes = row.listener.inode.and_then(|inode| owners.get(&inode));
        row.processes = processes.cloned().unwrap_or_default();
        for process in &row.processes {
            programs
                .entry(process.pid)
                .or_insert_with_key(|pid| (owners::program(*pid), language::of(*pid)));
        }
        if let Some(first) = row.processes.first() {
            let cgroup = cgroups
                .entry(first.pid)
                .or_insert_with_key(|pid| Cgroup::of_process(*pid));
            if let Some(cgroup) = cgroup {
                row.cgroup = cgroup.clone();
            }
        }
        let names = row.processes.iter().flat_map(|process| {
            let known = programs.get(&process.pid);
            let program = known.and_then(|(program, _)| program.as_deref());
            let language = known.and_then(|(_, language)| *language);
            let names = [program, language, Some(process.comm.as_str())];
            names.into_iter().flatten()
        });
        let AcceptGauge {
            limit, somaxconn, ..
        } = row.accept_queue;
        row.default_of = runtime::of(limit, somaxconn, names).map(|default| default.name);
        // While nobody accepts it is of interest what they do instead.
        if row.accept_queue.is_full() && !row.processes.is_empty() {
            row.threads = Some(owners::threads(&row.processes));
            row.descriptors = owners::descriptors(&row.processes);
        }
    }
}

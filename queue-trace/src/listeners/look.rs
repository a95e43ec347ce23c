//! Looks at all listeners once: asks the kernel in every network namespace, and finds
//! whose they are. What it takes grows with the listeners, the connections that wait and the
//! processes, and no faster.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use queue_trace_common::queue::Depths;
use rustix::net::{AddressFamily, SocketType, netdevice::index_to_name, socket};

use crate::{
    kernel::{
        netns::{self, NetnsPath},
        probe::{HeldListener, Iterators},
        selection::Selection,
        text::text,
    },
    listeners::{
        LimitFrom,
        cgroup::{Cgroup, Folders},
        diag::{self, Listening},
        group, language,
        owners::{self, Owners},
        takers::Takers,
    },
    model::{
        clock::wall_now,
        event::rfc3339,
        runtime,
        snapshot::{Descriptors, Gauge, Snapshot},
        socket::{Listener, Process},
    },
};

/// The listeners of a moment.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// By namespace, port, address, and the order in which they were made.
    pub rows: Vec<Snapshot>,
    /// What could not be looked at, and why, a sentence each.
    pub notes: Vec<String>,
    /// The namespaces into which none of the listed ways leads any more.
    pub(super) gone: BTreeSet<u32>,
}

/// How a look is done.
#[derive(Clone, Copy)]
pub struct How<'a> {
    /// Which listeners are wanted.
    pub selection: &'a Selection,
    /// Only in these namespaces; `None`: in all.
    pub only: Option<&'a BTreeSet<u32>>,
    /// The namespaces that there are, if somebody has listed them.
    pub listed: Option<&'a BTreeMap<u32, NetnsPath>>,
    /// The kernel's own lists, which tell more than `/proc` does.
    pub iterators: Option<&'a Iterators>,
    /// Set by somebody else: what is left is of no interest any more.
    pub given_up: Option<&'a AtomicBool>,
}

impl<'a> How<'a> {
    /// All that is wanted.
    #[must_use]
    pub fn all(selection: &'a Selection, iterators: Option<&'a Iterators>) -> Self {
        Self {
            selection,
            only: None,
            listed: None,
            iterators,
            given_up: None,
        }
    }

    fn is_given_up(&self) -> bool {
        self.given_up
            .is_some_and(|given_up| given_up.load(Ordering::Relaxed))
    }
}

/// What one namespace holds.
struct Contents {
    listening: Vec<Listening>,
    takers: Takers,
    /// Whether the requests were counted.
    requests: bool,
    somaxconn: Option<u32>,
    /// The names of the devices that listeners are bound to, by number.
    devices: HashMap<u32, String>,
}

/// Looks at the listeners that pass the filters, and finds whose they are: by the kernel's
/// own lists if there are iterators, else by `/proc`.
#[must_use]
pub fn look(how: How<'_>, folders: &mut Folders) -> Look {
    all_gauges(how, folders).owned(how)
}

/// The same without looking for their owners yet, of whom much is found out.
#[must_use]
pub(crate) fn all_gauges(how: How<'_>, folders: &mut Folders) -> Gauged {
    gauge(how, folders, 0)
}

/// The same without looking for their owners, which takes a look at every process.
#[must_use]
pub(crate) fn gauges(how: How<'_>, folders: &mut Folders) -> Gauged {
    gauge(how, folders, FEW)
}

/// `few`: in more namespaces than these all open files are walked over.
fn gauge(how: How<'_>, folders: &mut Folders, few: usize) -> Gauged {
    let mut found = Found::of(how, folders);
    let walk = how.iterators.filter(|_| found.inhabited.len() > few);
    let held = walk.and_then(held);
    found.deepen(how, held.as_ref(), folders);
    Gauged {
        look: found.look(),
        held,
    }
}

/// A look that has not asked yet whose the listeners are.
pub(crate) struct Gauged {
    /// The listeners.
    pub look: Look,
    /// What processes hold, if it was looked at.
    held: Option<HeldListeners>,
}

impl Gauged {
    /// Finds whose they are.
    pub fn owned(mut self, how: How<'_>) -> Look {
        let held = self.held.or_else(|| how.iterators.and_then(held));
        own(&mut self.look.rows, held.as_ref());
        self.look
    }
}

/// In more namespaces than these, one walk over all open files is cheaper than a list of each
/// one's sockets. In fewer there is none: while it looks at an open socket, a process that closes it
/// has not given its port back.
const FEW: usize = 4;

type HeldListeners = HashMap<u64, HeldListener>;

fn held(iterators: &Iterators) -> Option<HeldListeners> {
    let logged = |error| log::info!("{error:#}");
    iterators.held().map_err(logged).ok()
}

/// What a look has found so far.
struct Found {
    look: Look,
    /// The namespaces that have listeners.
    inhabited: BTreeMap<u32, NetnsPath>,
}

impl Found {
    /// What the kernel's socket diagnosis tells in every namespace.
    fn of(how: How<'_>, folders: &mut Folders) -> Self {
        let mut look = Look::default();
        let mut failed: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        let listed = match how.listed {
            Some(listed) => Cow::Borrowed(listed),
            None => Cow::Owned(how.selection.namespaces()),
        };
        let is_wanted = |id: &u32| how.only.is_none_or(|only| only.contains(id));
        let wanted: Vec<_> = listed.iter().filter(|(id, _)| is_wanted(id)).collect();
        // Else the kernel's own lists tell of the requests.
        let requests = how.iterators.is_none();
        let visits = netns::each_inside(wanted.iter().map(|(id, path)| (**id, *path)), |_| {
            (!how.is_given_up()).then(|| find(how.selection, requests))
        });
        if visits.len() < wanted.len() {
            let note = "the look at the listeners was cut short: some are left out";
            look.notes.push(note.to_owned());
        }
        let mut inhabited = BTreeMap::new();
        for (id, found) in visits {
            match found {
                Ok(found) if found.listening.is_empty() => {}
                Ok(found) => {
                    look.rows.extend(rows(id, &found, folders));
                    inhabited.extend(listed.get(&id).map(|path| (id, path.clone())));
                }
                // It ended while we looked.
                Err(error) if netns::is_gone(&error) => {
                    look.gone.insert(id);
                }
                Err(error) => failed.entry(error.to_string()).or_default().push(id),
            }
        }
        look.notes
            .extend(failed.iter().map(|(why, ids)| note(why, ids)));
        Self { look, inhabited }
    }

    /// Adds what the kernel's iterators tell: of those that processes hold, by `held`; of the
    /// others by a list of their namespace.
    fn deepen(&mut self, how: How<'_>, held: Option<&HeldListeners>, folders: &mut Folders) {
        let Some(iterators) = how.iterators else {
            return;
        };
        let mut rest = BTreeSet::new();
        for row in &mut self.look.rows {
            let Some(inode) = row.listener.inode else {
                continue;
            };
            match held.and_then(|held| held.get(&inode)) {
                Some(held) => deepen(row, &held.depths),
                None => {
                    rest.insert(row.netns);
                }
            }
        }
        for id in rest {
            let Some(path) = self.inhabited.get(&id) else {
                continue;
            };
            let logged = |error| log::info!("netns {id}: {error:#}");
            let depths = iterators.depths(id, path).map_err(logged);
            let mut own = self.look.rows.iter_mut().filter(|row| row.netns == id);
            if let Ok(depths) = depths {
                for row in own {
                    if let Some(depths) = row.listener.inode.and_then(|inode| depths.get(&inode)) {
                        deepen(row, depths);
                    }
                }
            } else if own.any(|row| row.syn_queue.is_none())
                && let Ok(found) = netns::inside(id, path, || find(how.selection, true))
            {
                // The requests have to be counted one by one after all.
                self.look.rows.retain(|row| row.netns != id);
                self.look.rows.extend(rows(id, &found, folders));
            }
        }
    }

    fn look(mut self) -> Look {
        group::find(&mut self.look.rows);
        sort(&mut self.look.rows);
        self.look
    }
}

/// The inode numbers of the sockets that listen, by namespace: of those that could be looked
/// into.
pub(crate) fn sockets(selection: &Selection) -> HashMap<u32, HashSet<u64>> {
    let namespaces = selection.namespaces();
    let all = namespaces.iter().map(|(id, path)| (*id, path));
    let all = netns::each_inside(all, |_| Some(diag::listening())).into_iter();
    let all = all.filter_map(|(id, listening)| {
        let inodes = listening.ok()?.into_iter();
        Some((id, inodes.map(|one| u64::from(one.inode)).collect()))
    });
    all.collect()
}

/// That namespaces could not be looked into: one sentence, however many there are.
fn note(why: &str, ids: &[u32]) -> String {
    match ids {
        [id] => format!("the listeners of netns {id} cannot be listed: {why}"),
        ids => {
            let first: Vec<_> = ids.iter().take(3).map(u32::to_string).collect();
            let more = if ids.len() > first.len() { ", …" } else { "" };
            format!(
                "the listeners of {} network namespaces cannot be listed ({}{more}): {why}",
                ids.len(),
                first.join(", ")
            )
        }
    }
}

/// Adds what the kernel's iterators tell of one.
fn deepen(row: &mut Snapshot, depths: &Depths) {
    row.syn_queue = Some(Gauge {
        depth: Some(depths.syn_depth),
        young: Some(depths.syn_young),
        limit: row.limit(),
        ..Gauge::default()
    });
    row.place = (depths.size > 0).then_some((depths.index, depths.size));
}

/// In the order in which a person looks for them.
pub(crate) fn sort(rows: &mut [Snapshot]) {
    // They are large: each is moved once.
    rows.sort_by_cached_key(|row| {
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

/// What is in the calling thread's namespace; the half-open requests if they are asked for.
fn find(selection: &Selection, requests: bool) -> io::Result<Contents> {
    let mut listening = diag::listening()?;
    listening.retain(|found| selection.has(found.address));
    let mut takers = Takers::of(&listening);
    let crowded: HashSet<_> = listening
        .iter()
        .filter(|found| found.depth > 0)
        .map(|found| found.address.port())
        .collect();
    if !crowded.is_empty() {
        diag::waiting(&crowded, |waiting| takers.add_waiting(&waiting))?;
    }
    let requests = requests && !listening.is_empty();
    if requests {
        diag::half_open(|request| takers.add_request(&request))?;
    }
    let devices = listening.iter().map(|found| found.device);
    let devices = device_names(devices.filter(|device| *device != 0).collect());
    let somaxconn = text("/proc/sys/net/core/somaxconn".as_ref()).ok();
    Ok(Contents {
        listening,
        takers,
        requests,
        devices,
        somaxconn: somaxconn.and_then(|text| text.trim().parse().ok()),
    })
}

/// The names of devices in the calling thread's namespace. One that was removed, or has a name
/// that is no text, has none.
fn device_names(numbers: BTreeSet<u32>) -> HashMap<u32, String> {
    if numbers.is_empty() {
        return HashMap::new();
    }
    // Any socket will do.
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)
        .or_else(|_| socket(AddressFamily::UNIX, SocketType::DGRAM, None));
    let Ok(socket) = socket else {
        return HashMap::new();
    };
    let named = |number: u32| Some((number, index_to_name(&socket, number).ok()?));
    numbers.into_iter().filter_map(named).collect()
}

fn rows(netns: u32, found: &Contents, folders: &mut Folders) -> impl Iterator<Item = Snapshot> {
    let time = rfc3339(wall_now());
    found.listening.iter().map(move |listening| {
        let cgroup = listening.cgroup.and_then(|number| folders.cgroup(number));
        let mut row = Snapshot {
            time: Some(time.clone()),
            netns,
            listener: Listener {
                addr: Some(listening.address.ip()),
                port: listening.address.port(),
                cookie: Some(listening.cookie),
                inode: (listening.inode != 0).then_some(listening.inode.into()),
                device: (listening.device != 0).then_some(listening.device),
            },
            device_name: found.devices.get(&listening.device).cloned(),
            processes: Some(Vec::new()),
            accept_queue: Some(Gauge {
                depth: Some(listening.depth),
                limit: Some(listening.limit),
                limit_from: found
                    .somaxconn
                    .map(|somaxconn| LimitFrom::of(listening.limit, somaxconn).name().to_owned()),
                somaxconn: found.somaxconn,
                ..Gauge::default()
            }),
            syn_queue: syn_queue(listening, found),
            oldest_waiting_us: oldest(listening, found),
            ..Snapshot::default()
        };
        if let Some(cgroup) = cgroup {
            cgroup.describe(&mut row);
        }
        row
    })
}

/// The SYN queue, if all requests sent to the listener are its own.
fn syn_queue(listening: &Listening, found: &Contents) -> Option<Gauge> {
    let queues = found.takers.at(listening.address)?;
    (found.requests && queues.listeners == 1).then(|| Gauge {
        depth: Some(queues.requests),
        young: Some(queues.young),
        limit: Some(listening.limit),
        ..Gauge::default()
    })
}

/// The age of the oldest connection in the accept queue, if it can be none of another
/// listener's.
fn oldest(listening: &Listening, found: &Contents) -> Option<u64> {
    let queues = found.takers.at(listening.address)?;
    let age = queues
        .oldest
        .filter(|_| listening.depth > 0 && queues.crowded == 1)?;
    u64::try_from(age.as_micros()).ok()
}

/// Says whose they are: by what processes hold, or by `/proc`.
fn own(rows: &mut [Snapshot], held: Option<&HeldListeners>) {
    let sockets: HashSet<_> = rows.iter().filter_map(|row| row.listener.inode).collect();
    let by_proc = match held {
        Some(_) => Owners::new(),
        None => owners::of(&sockets),
    };
    let owners = |inode: u64| match held {
        Some(held) => held.get(&inode).map(|one| &one.processes),
        None => by_proc.get(&inode),
    };
    let mut known = KnownProcesses::default();
    for row in rows {
        let processes = row.listener.inode.and_then(owners);
        let processes = processes.cloned().unwrap_or_default();
        if let Some(cgroup) = processes.first().and_then(|first| known.cgroup(first.pid)) {
            cgroup.describe(row);
        }
        if let Some((limit, somaxconn)) = row.limits() {
            let names = known.names(&processes);
            let default = runtime::of(limit, somaxconn, names.iter().map(String::as_str));
            row.default_of = default.map(|default| default.name.to_owned());
        }
        // While nobody accepts it is of interest what they do instead.
        if row.is_full() && !processes.is_empty() {
            row.threads = Some(known.threads(&processes));
            row.descriptors = known.descriptors(&processes);
        }
        row.processes = Some(processes);
    }
}

/// What is known of processes, each of which is looked at once.
#[derive(Default)]
struct KnownProcesses {
    programs: HashMap<u32, Vec<String>>,
    cgroups: HashMap<u32, Option<Cgroup>>,
    threads: HashMap<u32, BTreeMap<String, u32>>,
    descriptors: HashMap<u32, Option<Descriptors>>,
}

impl KnownProcesses {
    fn cgroup(&mut self, pid: u32) -> Option<&Cgroup> {
        let cgroup = self.cgroups.entry(pid);
        cgroup.or_insert_with(|| Cgroup::of_process(pid)).as_ref()
    }

    /// What they run, and are called.
    fn names(&mut self, processes: &[Process]) -> Vec<String> {
        let mut names = Vec::new();
        for process in processes {
            let programs = self.programs.entry(process.pid).or_insert_with_key(|pid| {
                let language = language::of(*pid).map(str::to_owned);
                [owners::program(*pid), language]
                    .into_iter()
                    .flatten()
                    .collect()
            });
            names.extend(programs.iter().cloned());
            names.push(process.comm.clone());
        }
        names
    }

    /// Those of the process that has least room for more.
    fn descriptors(&mut self, processes: &[Process]) -> Option<Descriptors> {
        let all = processes.iter().take(owners::PROCESSES);
        let all = all.filter_map(|process| {
            let known = self.descriptors.entry(process.pid);
            *known.or_insert_with_key(|pid| owners::descriptors(*pid))
        });
        all.min_by_key(|one| one.limit.saturating_sub(one.open))
    }

    fn threads(&mut self, processes: &[Process]) -> BTreeMap<String, u32> {
        let mut sum = BTreeMap::new();
        for process in processes.iter().take(owners::PROCESSES) {
            let threads = self.threads.entry(process.pid);
            for (doing, count) in threads.or_insert_with_key(|pid| owners::threads(*pid)) {
                *sum.entry(doing.clone()).or_default() += *count;
            }
        }
        sum
    }
}

//! What of a recording is wanted: the live stream's filters, without a kernel to apply them.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use anyhow::{Result, bail};
use ipnet::IpNet;
use queue_trace_common::{counter::DROP, outcome};

use crate::{
    model::{
        event::{Event, outcome_named},
        ledger::Ledger,
        socket::Listener,
    },
    options::{Filters, ListenerFilters, NetnsArg},
    recording::{Belongs, Line, Members},
};

const FILTERED: &str = "a filter leaves out some packets";

/// What of a recording is wanted: the live stream's filters, without a kernel to do it.
pub struct Only {
    filters: Filters,
    pub(crate) outcomes: outcome::Set,
    netns: Vec<u32>,
    /// The addresses that wanted listeners are bound to.
    bound: Vec<IpNet>,
    /// Which listeners belong to an owner that is named, if one is.
    members: Option<Members>,
    /// Lines about listeners of which is not known yet whose they are.
    pending: Pending,
    /// Whether ledgers are left as they are. They prove that the recording is whole, which is
    /// what a conclusion needs, whatever part of it is looked at.
    keeps_ledgers: bool,
    /// The filters that the header adds to those that it has.
    words: Vec<String>,
    left_out: LeftOut,
}

/// What a filter left out, as far as that says something of what it let through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Drops at other listeners, by namespace.
    other_drops: BTreeMap<u32, u64>,
    /// Events without an address, as they were rate-limited, of which a filter on addresses cannot
    /// say anything.
    pub without_address: u64,
    /// Events at listeners whose owner never became known.
    pub without_owner: u64,
    /// Whether any `listener` line was read, wanted or not.
    pub any_listener: bool,
    /// The filters on owners and devices that no listener fits, as they are on the command line.
    pub fits_nobody: Option<String>,
    /// What the recording itself was made with: `None` if it does not say.
    pub made_with: Option<Vec<String>>,
}

impl LeftOut {
    /// That nothing is shown as nobody is called so, in words.
    #[must_use]
    pub fn nobody(&self) -> Option<String> {
        let words = self.fits_nobody.as_ref()?;
        Some(format!("no listener was seen that fits {words}"))
    }

    /// What is missing for lack of knowledge, a sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.without_address > 0 {
            notes.push(format!(
                "{} rate-limited events have no addresses, so a filter on addresses leaves them out",
                self.without_address
            ));
        }
        if self.without_owner > 0 {
            notes.push(format!(
                "{} events are left out: it is not known whose their listeners are",
                self.without_owner
            ));
        }
        notes
    }
}

/// Lines that wait for what their listener is, by namespace and port.
#[derive(Debug, Default)]
struct Pending {
    lines: HashMap<(u32, u16), Vec<Line>>,
    count: usize,
}

/// Lines that wait at most.
const MOST_PENDING: usize = 10_000;

impl Only {
    /// What the filters of the command line ask for.
    ///
    /// # Errors
    /// If a namespace is named by a path, which a recording does not know.
    pub fn from_cli(filters: &Filters) -> Result<Self> {
        let mut netns = Vec::new();
        for arg in &filters.listeners.netns {
            match arg {
                NetnsArg::Id(id) => netns.push(*id),
                NetnsArg::Path(path) => bail!(
                    "--netns {}: a recording knows namespaces by number only, as the live stream shows them",
                    path.display()
                ),
            }
        }
        Ok(Self {
            outcomes: filters.outcomes(),
            netns,
            ..Self::unfiltered(filters)
        })
    }

    /// All that these filters name, of each outcome, in every namespace.
    fn unfiltered(filters: &Filters) -> Self {
        Self {
            words: filters.words(),
            members: Members::of(&filters.listeners),
            filters: filters.clone(),
            outcomes: outcome::Set::MAX,
            netns: Vec::new(),
            bound: Vec::new(),
            pending: Pending::default(),
            keeps_ledgers: false,
            left_out: LeftOut::default(),
        }
    }

    /// The ports and the owners alone, of a stream that has been filtered by the rest.
    #[must_use]
    pub fn in_user_space(listeners: &ListenerFilters) -> Self {
        let filters = Filters {
            listeners: ListenerFilters {
                addrs: Vec::new(),
                netns: Vec::new(),
                ..listeners.clone()
            },
            all: true,
            ..Filters::default()
        };
        Self::unfiltered(&filters).for_conclusions()
    }

    /// The same for a conclusion, with ledgers left as they are.
    #[must_use]
    pub fn for_conclusions(self) -> Self {
        Self {
            keeps_ledgers: true,
            // Unless some are named, all that there are.
            outcomes: match self.filters.events.is_empty() {
                true => outcome::Set::MAX,
                false => self.outcomes,
            },
            ..self
        }
    }

    /// Everything that happened at these listeners.
    pub(crate) fn listeners(listeners: &ListenerFilters) -> Result<Self> {
        let filters = Filters {
            listeners: ListenerFilters {
                addrs: Vec::new(),
                ..listeners.clone()
            },
            all: true,
            ..Filters::default()
        };
        Ok(Self {
            bound: listeners.addrs.clone(),
            ..Self::from_cli(&filters)?
        })
    }

    /// What a line says of whose its listener is, before any line is filtered by it.
    pub(crate) fn learn(&mut self, line: &Line) {
        if let (Some(members), Line::Listener(snapshot)) = (&mut self.members, line) {
            members.learn(snapshot);
        }
    }

    /// Whether something can be left out until it is known whose it is.
    pub(crate) fn names_owners(&self) -> bool {
        self.members.is_some()
    }

    /// Takes in what a line says, however it is filtered.
    pub fn note(&mut self, line: &Line) {
        self.learn(line);
        match line {
            Line::Header(header) => self.left_out.made_with.clone_from(&header.attach.filters),
            Line::Listener(_) => self.left_out.any_listener = true,
            _ => {}
        }
    }

    /// Whether every line passes as it is.
    #[must_use]
    pub fn passes_all(&self) -> bool {
        self.words.is_empty()
            && self.outcomes == outcome::Set::MAX
            && self.bound.is_empty()
            && (self.filters.slow.is_none() || self.filters.shows_accepted())
    }

    /// The lines that the live stream would have written with this filter, now that this one is
    /// read: itself, and those that waited for it.
    pub fn take(&mut self, line: &Line) -> Vec<Line> {
        self.note(line);
        let mut passed = Vec::new();
        match self.belongs(line) {
            // Another one will say, or none will.
            Belongs::Unknown if matches!(line, Line::Listener(_)) => {}
            Belongs::Unknown => self.wait(line),
            Belongs::Yes | Belongs::No => passed.extend(self.decided(line)),
        }
        if let Line::Listener(snapshot) = line {
            passed.extend(self.waited_for(snapshot.netns, snapshot.listener.port));
        }
        passed
    }

    /// A line that is known to pass or not.
    fn decided(&mut self, line: &Line) -> Option<Line> {
        let narrowed = self.narrowed(line);
        if narrowed.is_none() {
            self.leave_out(line);
        }
        narrowed
    }

    fn wait(&mut self, line: &Line) {
        let Some((netns, listener)) = at(line) else {
            return;
        };
        if self.pending.count >= MOST_PENDING {
            self.left_out.without_owner += events(line);
            return;
        }
        self.pending.count += 1;
        let lines = self.pending.lines.entry((netns, listener.port));
        lines.or_default().push(line.clone());
    }

    fn waited_for(&mut self, netns: u32, port: u16) -> Vec<Line> {
        let Some(lines) = self.pending.lines.remove(&(netns, port)) else {
            return Vec::new();
        };
        self.pending.count -= lines.len();
        let mut passed = Vec::new();
        for line in lines {
            match self.belongs(&line) {
                Belongs::Unknown => self.wait(&line),
                Belongs::Yes | Belongs::No => passed.extend(self.decided(&line)),
            }
        }
        passed
    }

    /// What was left out, when there are no more lines.
    pub fn finish(&mut self) -> &LeftOut {
        let pending = std::mem::take(&mut self.pending);
        for line in pending.lines.values().flatten() {
            self.left_out.without_owner += events(line);
        }
        let nobody = self.members.as_ref().filter(|members| !members.any());
        self.left_out.fits_nobody = nobody.map(|_| self.filters.listeners.owner_words().join(" "));
        &self.left_out
    }

    fn leave_out(&mut self, line: &Line) {
        match line {
            Line::Event(event) if event.is_held_back() && self.is_between() => {
                self.left_out.without_address += event.count;
            }
            Line::Total(total) if total.outcome.moves & DROP != 0 && !self.is_between() => {
                let drops = self.left_out.other_drops.entry(total.netns).or_default();
                *drops = drops.saturating_add(total.count);
            }
            _ => {}
        }
    }

    /// How many drops of a namespace are at listeners that are left out: those that a ledger has
    /// already, and those that were left out here.
    fn other_drops(&self, ledger: &Ledger) -> Option<u64> {
        let here = (self.leaves_listeners_out() && !self.is_between()).then(|| {
            let drops = self.left_out.other_drops.get(&ledger.netns);
            drops.copied().unwrap_or(0)
        });
        match (ledger.other_drops, here) {
            (Some(before), Some(here)) => Some(before.saturating_add(here)),
            (before, here) => before.or(here),
        }
    }

    /// Whether a line is about a listener of an owner that is named. What is about no listener is.
    fn belongs(&self, line: &Line) -> Belongs {
        match (&self.members, at(line)) {
            (Some(members), Some((netns, listener))) => members.has(netns, listener),
            _ => Belongs::Yes,
        }
    }

    /// A line as the live stream would have written it with this filter; `None` if it would not have.
    pub(crate) fn narrowed(&self, line: &Line) -> Option<Line> {
        if !self.passes(line) {
            return None;
        }
        let wanted = |name: &str| {
            outcome_named(name).is_none_or(|outcome| self.outcomes & outcome.bit() != 0)
        };
        Some(match line {
            Line::Header(header) => {
                let mut header = header.clone();
                if let Some(outcomes) = &mut header.attach.outcomes {
                    outcomes.retain(|name| wanted(name));
                }
                if let Some(filters) = &mut header.attach.filters {
                    let more = self.words.iter().filter(|word| !filters.contains(word));
                    let more: Vec<_> = more.cloned().collect();
                    filters.extend(more);
                }
                Line::Header(header)
            }
            // They are of all clients: which part is of those wanted nobody knows.
            Line::Counts(_) | Line::Total(_) | Line::Clients(_) if self.is_between() => {
                return None;
            }
            Line::Counts(counts) => {
                let mut counts = counts.clone();
                counts.outcomes.retain(|name, _| wanted(name));
                if counts.outcomes.is_empty() {
                    return None;
                }
                Line::Counts(counts)
            }
            Line::Ledger(ledger) if self.leaves_packets_out() => {
                let mut ledger = Ledger {
                    other_drops: self.other_drops(ledger),
                    ..ledger.clone()
                };
                if !self.keeps_ledgers {
                    ledger.unexplained = None;
                    ledger.note = Some(FILTERED.to_owned());
                }
                Line::Ledger(ledger)
            }
            line => line.clone(),
        })
    }

    /// Whether totals cannot be told for lack of their clients.
    pub(crate) fn is_between(&self) -> bool {
        !self.filters.listeners.addrs.is_empty() || !self.filters.clients.is_empty()
    }

    /// Whether packets of a namespace are left out that its counters count.
    fn leaves_packets_out(&self) -> bool {
        self.is_between() || self.leaves_listeners_out()
    }

    fn leaves_listeners_out(&self) -> bool {
        !self.filters.listeners.ports.is_empty() || !self.bound.is_empty() || self.members.is_some()
    }

    pub(crate) fn passes(&self, line: &Line) -> bool {
        self.belongs(line) == Belongs::Yes && self.passes_apart_from_owners(line)
    }

    fn passes_apart_from_owners(&self, line: &Line) -> bool {
        match line {
            Line::Header(_) | Line::Loss(_) | Line::End(_) => true,
            Line::Event(event) => {
                self.outcomes & event.outcome.bit() != 0
                    && self.of(event.netns, &event.listener)
                    && self.between(event)
                    && self.slow_enough(event)
            }
            Line::Total(total) => {
                self.outcomes & total.outcome.bit() != 0 && self.of(total.netns, &total.listener)
            }
            Line::Counts(counts) => self.of(counts.netns, &counts.listener),
            Line::Listener(snapshot) => {
                let addrs = &self.filters.listeners.addrs;
                let listener = &snapshot.listener;
                self.of(snapshot.netns, listener)
                    && listener.addr.is_none_or(|addr| is_bound_to(addrs, addr))
            }
            Line::Clients(clients) => self.of(clients.netns, &clients.listener),
            Line::Ledger(ledger) => self.netns.is_empty() || self.netns.contains(&ledger.netns),
        }
    }

    fn of(&self, netns: u32, listener: &Listener) -> bool {
        let ports = &self.filters.listeners.ports;
        (self.netns.is_empty() || self.netns.contains(&netns))
            && (ports.is_empty() || ports.iter().any(|range| range.contains(&listener.port)))
            && listener
                .addr
                .is_none_or(|addr| is_bound_to(&self.bound, addr))
    }

    /// With `--slow` alone, accepted connections are shown only if they were slow.
    fn slow_enough(&self, event: &Event) -> bool {
        let Filters { slow, .. } = &self.filters;
        let least = slow.filter(|_| !self.filters.shows_accepted());
        let (Some(least), outcome::ACCEPTED) = (least, event.outcome.tag) else {
            return true;
        };
        event
            .waited_us
            .is_some_and(|us| u128::from(us) >= least.as_micros())
    }

    /// As in the kernel: what has no addresses does not fit a filter on them.
    fn between(&self, event: &Event) -> bool {
        let Filters {
            listeners, clients, ..
        } = &self.filters;
        let fits = |nets: &[IpNet], addr: Option<IpAddr>| {
            nets.is_empty() || addr.is_some_and(|addr| nets.iter().any(|net| net.contains(&addr)))
        };
        fits(&listeners.addrs, event.local) && fits(clients, event.client.map(|client| client.addr))
    }
}

/// A listener bound to any address takes what is sent to each.
fn is_bound_to(networks: &[IpNet], addr: IpAddr) -> bool {
    networks.is_empty()
        || addr.is_unspecified()
        || networks.iter().any(|network| network.contains(&addr))
}

/// The listener that a line is about.
fn at(line: &Line) -> Option<(u32, &Listener)> {
    match line {
        Line::Event(event) => Some((event.netns, &event.listener)),
        Line::Listener(snapshot) => Some((snapshot.netns, &snapshot.listener)),
        Line::Counts(counts) => Some((counts.netns, &counts.listener)),
        Line::Total(total) => Some((total.netns, &total.listener)),
        Line::Clients(clients) => Some((clients.netns, &clients.listener)),
        Line::Header(_) | Line::Loss(_) | Line::Ledger(_) | Line::End(_) => None,
    }
}

/// How many events a line stands for, apart from those that other lines stand for as well.
fn events(line: &Line) -> u64 {
    match line {
        Line::Event(event) => event.count,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;

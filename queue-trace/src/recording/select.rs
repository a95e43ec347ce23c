//! What of a recording is wanted: the live stream's filters, without a kernel to apply them.

use std::net::IpAddr;

use anyhow::{Result, bail};
use ipnet::IpNet;
use queue_trace_common::outcome;

use crate::{
    model::{
        event::{Event, outcome_named},
        ledger::Ledger,
        socket::Listener,
    },
    options::{Filters, ListenerFilters, NetnsArg},
    recording::Line,
};

const FILTERED: &str = "a filter leaves out some packets";

/// What of a recording is wanted: the live stream's filters, without a kernel to do it.
pub(crate) struct Only {
    filters: Filters,
    pub(crate) outcomes: outcome::Set,
    netns: Vec<u32>,
    /// The addresses that wanted listeners are bound to.
    bound: Vec<IpNet>,
}

impl Only {
    pub(crate) fn from_cli(filters: &Filters) -> Result<Self> {
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
            filters: filters.clone(),
            outcomes: filters.outcomes(),
            netns,
            bound: Vec::new(),
        })
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
            Line::Ledger(ledger) if self.leaves_packets_out() => Line::Ledger(Ledger {
                unexplained: None,
                note: Some(FILTERED.to_owned()),
                ..ledger.clone()
            }),
            line => line.clone(),
        })
    }

    /// Whether totals cannot be told for lack of their clients.
    pub(crate) fn is_between(&self) -> bool {
        !self.filters.listeners.addrs.is_empty() || !self.filters.clients.is_empty()
    }

    /// Whether packets of a namespace are left out that its counters count.
    fn leaves_packets_out(&self) -> bool {
        self.is_between() || !self.filters.listeners.ports.is_empty() || !self.bound.is_empty()
    }

    pub(crate) fn passes(&self, line: &Line) -> bool {
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
            Line::Listener(snapshot) => self.of(snapshot.netns, &snapshot.listener),
            Line::Clients(clients) => self.of(clients.netns, &clients.listener),
            Line::Ledger(ledger) => self.netns.is_empty() || self.netns.contains(&ledger.netns),
        }
    }

    fn of(&self, netns: u32, listener: &Listener) -> bool {
        let ports = &self.filters.listeners.ports;
        (self.netns.is_empty() || self.netns.contains(&netns))
            && (ports.is_empty() || ports.iter().any(|range| range.contains(&listener.port)))
            && listener.addr.is_none_or(|addr| self.bound_to(addr))
    }

    /// A listener bound to any address takes what is sent to each.
    fn bound_to(&self, addr: IpAddr) -> bool {
        self.bound.is_empty()
            || addr.is_unspecified()
            || self.bound.iter().any(|net| net.contains(&addr))
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

//! Named cases of refused handshakes, each on a fresh namespace of its own.
//!
//! A case goes in two phases, so that a tracer can attach in between:
//! [`Scenario::prepare`] sets the stage (namespace, sysctls, listener) and
//! [`Stage::run`] plays the traffic, then reports what it imposed on the kernel,
//! in the words of the tracer's verdicts. The report comes from what was sent and
//! what was heard, never from the kernel's counters, so the two can be compared.

mod registry;
#[cfg(test)]
mod tests;
mod traffic;

use std::{
    collections::BTreeMap,
    fmt,
    net::{SocketAddr, TcpListener},
};

use anyhow::{Context, Result};
use queue_trace_common::outcome::Outcome;
pub use registry::SCENARIOS;
use traffic::Traffic;

use crate::lab::{Connect, Ending, Family, Netns, listen};

/// Every case listens here, in a namespace where the port is free.
const PORT: u16 = 8080;

/// A case that can be played.
#[derive(Debug)]
pub struct Scenario {
    /// Its name, in kebab case.
    pub name: &'static str,
    /// What it shows, in one sentence.
    pub about: &'static str,
    backlog: i32,
    sysctls: &'static [(&'static str, &'static str)],
    play: fn(&mut Traffic) -> Result<String>,
}

/// The case of that name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Sets the stage: a namespace with the case's sysctls and its listener.
    pub fn prepare(&'static self, family: Family) -> Result<Stage> {
        let netns = Netns::new()?;
        for (name, value) in self.sysctls {
            netns.set_sysctl(name, value)?;
        }
        let address = SocketAddr::new(family.loopback(), PORT);
        let listener = netns.run(|| listen(address, self.backlog))?;
        Ok(Stage {
            scenario: self,
            address,
            clients: Vec::new(),
            listener,
            netns,
        })
    }
}

/// A case ready to be played. Dropping it ends its clients, its listener and its
/// namespace.
#[derive(Debug)]
pub struct Stage {
    scenario: &'static Scenario,
    address: SocketAddr,
    clients: Vec<Connect>,
    listener: TcpListener,
    netns: Netns,
}

impl Stage {
    /// The namespace in which everything happens.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// The listener that refuses. Nobody accepts from it.
    pub fn listener(&self) -> &TcpListener {
        &self.listener
    }

    /// Where the listener listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Plays the traffic, up to the point where the kernel has dealt with all of
    /// it. Real clients stay open until the stage is dropped.
    pub fn run(&mut self) -> Result<Report> {
        let Self {
            scenario,
            address,
            netns,
            ..
        } = self;
        let (report, clients) = netns
            .run(|| {
                let mut traffic = Traffic::new(*address, scenario.backlog)?;
                let did = (scenario.play)(&mut traffic)?;
                traffic.finish(did)
            })
            .with_context(|| format!("cannot play the scenario {}", scenario.name))?;
        self.clients.extend(clients);
        Ok(report)
    }
}

/// What a case did.
#[derive(Clone, Debug)]
pub struct Report {
    /// In one sentence.
    pub did: String,
    /// The listener concerned.
    pub listener: SocketAddr,
    /// Handshakes begun.
    pub attempted: u32,
    /// How they ended for those clients that listened for an answer.
    pub endings: BTreeMap<Ending, u32>,
    /// What it made the kernel do.
    pub imposed: Vec<Imposed>,
}

/// A number of equal decisions that a case imposed on the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Imposed {
    /// The decision, as the tracer names it.
    pub outcome: &'static Outcome,
    /// How many times.
    pub count: u32,
}

impl fmt::Display for Imposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.count, self.outcome.verdict)?;
        let cause = self.outcome.cause;
        cause.map_or(Ok(()), |cause| write!(f, " ({cause})"))
    }
}

//! A case on its stage: the namespace, the listener, and the traffic once it is played.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};

use crate::lab::{
    Connect, Family, Netns, listen,
    scenario::{report::Report, traffic::Traffic},
};

/// Every case listens here, in a namespace where the port is free.
const PORT: u16 = 8080;

/// A case that can be played.
#[derive(Debug)]
pub struct Scenario {
    /// Its name, in kebab case.
    pub name: &'static str,
    /// What it shows, in one sentence.
    pub about: &'static str,
    pub(super) backlog: i32,
    pub(super) sysctls: &'static [(&'static str, &'static str)],
    pub(super) play: fn(&mut Traffic) -> Result<String>,
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

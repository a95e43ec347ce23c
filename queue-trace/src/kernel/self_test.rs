//! The self-test at start: handshakes on listeners of a private network namespace, by
//! which every attached program must fire. A function that the compiler inlined, or
//! that the kernel cannot really be watched at, shows here and not in a missing
//! verdict. That they fired is known from the kernel's own run counts.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::{
    kernel::{mark, probe::Probe},
    lab::{
        Ending, Family, Listen, Netns, Pace, connect_each,
        raw::{Peer, Wire},
    },
};

/// What the self-test found.
#[derive(Debug)]
pub struct Canary {
    /// The namespace that it used, whose records are not the user's.
    pub netns: u32,
    /// Programs that should have fired and did not.
    pub silent: BTreeSet<String>,
}

/// Programs whose event the self-test does not make: a timer takes a second, and an
/// ICMP error and the iterators say nothing of a handshake, and no listener is closed on
/// connections that wait.
const NOT_MADE: [&str; 7] = [
    "timer",
    "icmp",
    "retransmit_synack",
    "listeners_at_start",
    "forget",
    "held_sockets",
    "queue_depths",
];

const PORT: u16 = 8080;
const PATIENCE: Duration = Duration::from_secs(3);
const COOKIES: &str = "net.ipv4.tcp_syncookies";
const MAX_SYN_BACKLOG: &str = "net.ipv4.tcp_max_syn_backlog";

/// Makes the handshakes and looks which programs fired.
///
/// # Errors
/// If the self-test cannot be made here; nothing is known then.
pub fn run(probe: &Probe) -> Result<Canary> {
    let _counting = probe.count_runs()?;
    let netns = Netns::new()?;
    netns.set_sysctl(mark::SYSCTL, mark::own())?;
    let mut expected: BTreeSet<_> = probe
        .runs()?
        .into_iter()
        .map(|program| program.name)
        .filter(|name| !NOT_MADE.iter().any(|prefix| name.starts_with(prefix)))
        .collect();
    let mut leave_out = |part: &str| expected.retain(|name| !name.contains(part));
    handshakes(&netns, Family::V4)?;
    last_quarter(&netns)?;
    // Kernels without IPv6 or MPTCP have nothing there to see.
    if handshakes(&netns, Family::V6).is_err() {
        leave_out("_v6_");
        leave_out("mptcp6");
    }
    for (family, programs) in [(Family::V4, "mptcp4"), (Family::V6, "mptcp6")] {
        if mptcp(&netns, family).is_err() {
            leave_out(programs);
        }
    }
    for program in probe.runs()? {
        if program.runs > 0 {
            expected.remove(&program.name);
        }
    }
    Ok(Canary {
        netns: netns.id(),
        silent: expected,
    })
}

/// A handshake through the queues, taken by the application, and one by cookie.
fn handshakes(netns: &Netns, family: Family) -> Result<()> {
    for cookies in ["0", "2"] {
        netns.set_sysctl(COOKIES, cookies)?;
        connect(netns, family, Listen::default())?;
    }
    Ok(())
}

fn mptcp(netns: &Netns, family: Family) -> Result<()> {
    let mptcp = Listen {
        mptcp: true,
        ..Listen::default()
    };
    connect(netns, family, mptcp)
}

fn connect(netns: &Netns, family: Family, listen: Listen) -> Result<()> {
    let address = SocketAddr::new(family.loopback(), PORT);
    netns.run(|| {
        let listener = listen.on(address)?;
        let clients = connect_each(address, 1, Pace::OneByOne, PATIENCE, None)?;
        ensure!(
            clients
                .iter()
                .all(|client| client.ending() == Ending::Connected),
            "a client could not connect over {family}"
        );
        listener.accept().context("cannot accept")?;
        Ok(())
    })
}

/// The rule that keeps the last quarter of tcp_max_syn_backlog for known peers.
fn last_quarter(netns: &Netns) -> Result<()> {
    const LIMIT: u32 = 4;
    netns.set_sysctl(COOKIES, "0")?;
    netns.set_sysctl(MAX_SYN_BACKLOG, LIMIT)?;
    let address = SocketAddr::new(Family::V4.loopback(), PORT);
    netns.run(|| {
        let _listener = Listen::default().on(address)?;
        let mut wire = Wire::open(Family::V4)?;
        let mut peers = Vec::new();
        for _ in 0..=LIMIT {
            let peer = Peer::new(&mut wire, address)?;
            peer.syn(&wire)?;
            peers.push(peer);
        }
        wire.settle()?;
        // Half-open requests would outlive the namespace's listener.
        for peer in &peers {
            peer.rst(&wire)?;
        }
        wire.settle()
    })
}

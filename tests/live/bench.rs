//! What the tests of rare outcomes, of listeners and of namespaces share: peers that
//! are let in, and what was told of one listener.

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use live_tests::{Recording, Sums, Total};
use queue_trace::lab::{
    Listen, Netns,
    raw::{RawPeer, Wire},
};
use rustix::{
    fs::fstat,
    thread::{CpuSet, sched_getaffinity, sched_setaffinity},
};

/// Within it even an emulated machine answers.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Peers that have sent their SYN and heard its answer.
pub(crate) fn half_open(
    wire: &mut Wire,
    listener: SocketAddr,
    count: usize,
) -> Result<Vec<RawPeer>> {
    let begin = |_| {
        let mut peer = RawPeer::new(wire, listener)?;
        peer.syn(wire)?;
        peer.syn_ack(wire, PATIENCE)?.context("no SYN-ACK")?;
        Ok(peer)
    };
    (0..count).map(begin).collect()
}

/// Peers that have finished their handshakes.
pub(crate) fn let_in(wire: &mut Wire, listener: SocketAddr, count: usize) -> Result<Vec<RawPeer>> {
    let peers = half_open(wire, listener, count)?;
    for peer in &peers {
        peer.ack(wire)?;
    }
    wire.settle()?;
    Ok(peers)
}

/// SYNs of new peers, of which nothing more comes.
pub(crate) fn syns(wire: &mut Wire, listener: SocketAddr, count: usize) -> Result<()> {
    for _ in 0..count {
        RawPeer::new(wire, listener)?.syn(wire)?;
    }
    wire.settle()
}

/// A listener of some kind in a namespace.
pub(crate) fn listen(netns: &Netns, address: SocketAddr, how: &Listen) -> TcpListener {
    netns.run(|| how.on(address)).unwrap()
}

/// The inode number by which a listener is told from others at its address.
pub(crate) fn inode(listener: &impl AsFd) -> u64 {
    fstat(listener).unwrap().st_ino
}

/// All that was counted in a namespace, timers too.
pub(crate) fn totals(recording: &Recording, netns: u32) -> Sums {
    sum_up(recording, |total| total.netns == netns)
}

/// What was counted at one listener, timers aside: those of half-open requests fire when a
/// test takes long. Its events say the same.
pub(crate) fn totals_of(recording: &Recording, inode: u64) -> Sums {
    let totals = sum_up(recording, |total| {
        total.listener.inode == Some(inode) && total.step != "timer"
    });
    let mut events = Sums::new();
    for event in recording.events() {
        if event.listener.inode == Some(inode) && event.step != "timer" {
            *events.entry(event.name()).or_default() += event.count;
        }
    }
    assert_eq!(events, totals, "events and totals of listener {inode}");
    totals
}

fn sum_up(recording: &Recording, wanted: impl Fn(&&Total) -> bool) -> Sums {
    let mut sums = Sums::new();
    for total in recording.totals().filter(wanted) {
        let name = match &total.cause {
            Some(cause) => format!("{}:{cause}", total.verdict),
            None => total.verdict.clone(),
        };
        *sums.entry(name).or_default() += total.count;
    }
    sums
}

/// Waits for something that takes the kernel a while.
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// The CPUs that this thread may use.
pub(crate) fn cpus() -> Vec<usize> {
    let set = sched_getaffinity(None).unwrap();
    (0..CpuSet::MAX_CPU)
        .filter(|&cpu| set.is_set(cpu))
        .collect()
}

/// Keeps the calling thread, and those that it starts, on one CPU.
pub(crate) fn pin(cpu: usize) {
    let mut only = CpuSet::new();
    only.set(cpu);
    sched_setaffinity(None, &only).unwrap();
}

/// Accepts so many connections, and no more are there.
pub(crate) fn accept_all(listener: &TcpListener, count: usize) {
    assert_eq!(drain(listener), count, "accepted");
}

/// Accepts what is there; how many.
pub(crate) fn drain(listener: &TcpListener) -> usize {
    listener.set_nonblocking(true).unwrap();
    let mut count = 0;
    loop {
        match listener.accept() {
            Ok(_) => count += 1,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return count,
            Err(error) => panic!("{error}"),
        }
    }
}

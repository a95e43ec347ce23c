//! A SYN flood: very many clients that never say more than SYN.

use std::{
    io::IoSlice,
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow};
use rustix::{
    io::Errno,
    net::{MMsgHdr, SendAncillaryBuffer, SendFlags, addr::SocketAddrArg, sendmmsg},
};

use crate::lab::{
    Family, loopback,
    raw::{
        flood_client,
        segment::{Flags, Segment},
        wire::Sender,
    },
};

/// SYNs to a system call.
const BATCH: u32 = 64;

/// What to send. Each SYN is from another client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flood {
    /// How many SYNs in all.
    pub count: u32,
    /// How many threads share them.
    pub threads: u32,
    /// No more than so many a second from all threads together; as fast as
    /// possible if `None`.
    pub per_second: Option<u32>,
    /// The number of the first client: floods whose ranges do not overlap have no
    /// client in common.
    pub first: u32,
    /// How many networks (/24, or /64 of IPv6) they come from: 512 at most, of IPv6 65,536.
    pub networks: u32,
    /// Waits while a CPU is behind with what it received, so that nothing is lost.
    pub patient: bool,
}

impl Flood {
    /// So many SYNs from one thread, as fast as the kernel takes them.
    pub fn of(count: u32) -> Self {
        Self {
            count,
            threads: 1,
            per_second: None,
            first: 0,
            networks: 1,
            patient: true,
        }
    }

    /// So many, as fast as can be: for measurements.
    pub fn hasty(count: u32) -> Self {
        Self {
            patient: false,
            ..Self::of(count)
        }
    }
}

/// What became of a flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flooded {
    /// SYNs sent.
    pub sent: u32,
    /// Packets that `lo` lost meanwhile, before any TCP saw them: SYNs, or answers.
    /// There are none as long as fewer than `net.core.netdev_max_backlog` (1000)
    /// are under way, as after a patient flood.
    pub lost: u64,
}

/// Floods `listener` from the calling thread's namespace; returns when all is sent.
pub fn flood(listener: SocketAddr, flood: &Flood) -> Result<Flooded> {
    let family = Family::of(listener);
    loopback::route_test_range(family)?;
    if flood.networks > 1 {
        loopback::route_wide_range(family)?;
    }
    let lost_before = loopback::lost_packets()?;
    let threads = flood.threads.max(1);
    let share = |thread: u32| {
        let start = u64::from(flood.count) * u64::from(thread) / u64::from(threads);
        flood.first + start as u32
    };
    let pace = flood
        .per_second
        .map(|rate| Duration::from_secs(1) * threads / rate.max(1));
    thread::scope(|scope| {
        let senders: Vec<_> = (0..threads)
            .map(|thread| {
                let clients = share(thread)..share(thread + 1);
                scope.spawn(move || send_syns(listener, flood, clients, pace))
            })
            .collect();
        senders.into_iter().try_for_each(|s| {
            s.join()
                .map_err(|_| anyhow!("a flooding thread panicked"))?
        })
    })?;
    Ok(Flooded {
        sent: flood.count,
        lost: loopback::lost_packets()? - lost_before,
    })
}

fn send_syns(
    listener: SocketAddr,
    flood: &Flood,
    clients: std::ops::Range<u32>,
    pace: Option<Duration>,
) -> Result<()> {
    let family = Family::of(listener);
    let sender = Sender::open(family)?;
    let started = Instant::now();
    let mut packets = vec![Vec::new(); BATCH as usize];
    // A paced flood goes one by one, or its bursts would be faster than its rate.
    let batch = if pace.is_some() { 1 } else { BATCH };
    let mut next = clients.start;
    while next < clients.end {
        if let Some(pace) = pace {
            let due = started + pace * (next - clients.start);
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        if flood.patient {
            loopback::wait_for_backlogs()?;
        }
        let length = batch.min(clients.end - next);
        let packets = &mut packets[..length as usize];
        for (n, packet) in (next..).zip(packets.iter_mut()) {
            let syn = Segment {
                source: flood_client(family, flood.networks, n),
                destination: listener,
                sequence: n,
                acknowledgment: 0,
                flags: Flags::SYN,
            };
            syn.write(packet, &[])?;
        }
        send_batch(&sender, listener, packets).context("cannot send SYNs (sendmmsg)")?;
        next += length;
    }
    Ok(())
}

fn send_batch(sender: &Sender, listener: SocketAddr, packets: &[Vec<u8>]) -> Result<(), Errno> {
    let address = SocketAddr::new(listener.ip(), 0).as_any();
    let slices: Vec<_> = packets
        .iter()
        .map(|packet| [IoSlice::new(packet)])
        .collect();
    let mut control: Vec<_> = packets
        .iter()
        .map(|_| SendAncillaryBuffer::default())
        .collect();
    let mut messages: Vec<_> = slices
        .iter()
        .zip(&mut control)
        .map(|(slice, control)| MMsgHdr::new_with_addr(&address, slice, control))
        .collect();
    let mut sent = 0;
    while sent < messages.len() {
        match sendmmsg(sender.socket(), &mut messages[sent..], SendFlags::empty()) {
            Ok(count) => sent += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

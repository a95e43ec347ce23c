//! The pieces of which the cases are played, and the tally of what they did.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use queue_trace_common::outcome::OUTCOMES;

use crate::lab::{
    Connect, Ending, Family, Pace, connect_each, half_open,
    raw::{Flood, PeerAnswer, RawPeer, Wire, flood},
    scenario::report::{Imposed, Report},
};

/// Within it an answer on `lo` comes even on a slow, emulated machine.
const ANSWER: Duration = Duration::from_secs(2);

/// Traffic at one listener, in the calling thread's namespace.
pub(super) struct Traffic {
    /// The backlog that the listener was given.
    pub backlog: u32,
    listener: SocketAddr,
    wire: Wire,
    clients: Vec<Connect>,
    attempted: u32,
    endings: BTreeMap<Ending, u32>,
    imposed: Vec<Imposed>,
}

impl Traffic {
    pub(super) fn new(listener: SocketAddr, backlog: i32) -> Result<Self> {
        Ok(Self {
            backlog: backlog.unsigned_abs(),
            listener,
            wire: Wire::open(Family::of(listener))?,
            clients: Vec::new(),
            attempted: 0,
            endings: BTreeMap::new(),
            imposed: Vec::new(),
        })
    }

    /// How many connections the accept queue holds.
    pub(super) fn accept_capacity(&self) -> u32 {
        self.backlog + 1
    }

    /// Notes that the kernel had to decide so, that often.
    pub(super) fn impose(&mut self, count: u32, outcome: u8) {
        let outcome = &OUTCOMES[usize::from(outcome)];
        self.imposed.push(Imposed { outcome, count });
    }

    /// Real clients, all of which must end as `expected`.
    pub(super) fn clients(
        &mut self,
        count: u32,
        pace: Pace,
        timeout: Duration,
        expected: Ending,
    ) -> Result<()> {
        let clients = connect_each(self.listener, count as usize, pace, timeout, None)?;
        self.wire.settle()?;
        self.attempted += count;
        for client in &clients {
            let ending = client.ending();
            ensure!(
                ending == expected,
                "a client was to end as {expected:?} and ended as {ending:?}"
            );
            self.ended(ending);
        }
        // One that timed out would send its SYN again: that is another drop.
        let keep = |client: &Connect| client.ending() != Ending::TimedOut;
        self.clients.extend(clients.into_iter().filter(keep));
        Ok(())
    }

    /// Peers that have each sent a SYN and heard its SYN-ACK.
    pub(super) fn peers_with_syn_ack(&mut self, count: u32) -> Result<Vec<RawPeer>> {
        let mut peers = Vec::new();
        for _ in 0..count {
            let mut peer = RawPeer::new(&mut self.wire, self.listener)?;
            peer.syn(&self.wire)?;
            self.attempted += 1;
            let heard = peer.syn_ack(&mut self.wire, ANSWER)?;
            heard.with_context(|| format!("no SYN-ACK for {}", peer.address()))?;
            peers.push(peer);
        }
        Ok(peers)
    }

    /// Lets each peer finish its handshake, with data or bare. They believe that
    /// they are connected, as nobody tells them otherwise.
    pub(super) fn finish_handshakes(&mut self, peers: &[RawPeer], data: &[u8]) -> Result<()> {
        for peer in peers {
            peer.ack_with_data(&self.wire, data)?;
            self.ended(Ending::Connected);
        }
        self.wire.settle()
    }

    /// Lets each peer finish its handshake with data, and hear a reset for it.
    pub(super) fn finish_and_be_reset(&mut self, peers: &mut [RawPeer], data: &[u8]) -> Result<()> {
        for peer in peers {
            peer.ack_with_data(&self.wire, data)?;
            self.expect_reset(peer)?;
            self.ended(Ending::Reset);
        }
        self.wire.settle()
    }

    /// New peers that acknowledge what was never sent, and are reset for it.
    pub(super) fn bogus_acks(&mut self, count: u32) -> Result<()> {
        for _ in 0..count {
            let mut peer = RawPeer::new(&mut self.wire, self.listener)?;
            peer.bogus_ack(&self.wire)?;
            self.expect_reset(&mut peer)?;
        }
        self.wire.settle()
    }

    fn expect_reset(&mut self, peer: &mut RawPeer) -> Result<()> {
        let answer = peer.answer(&mut self.wire, ANSWER)?;
        let address = peer.address();
        ensure!(
            answer == Some(PeerAnswer::Reset),
            "{address} was to be reset, and heard {answer:?}"
        );
        Ok(())
    }

    /// `count` SYNs of which nothing more comes; how many are half-open after it.
    pub(super) fn flood(&mut self, count: u32) -> Result<u32> {
        let flooded = flood(self.listener, &Flood::of(count))?;
        self.wire.settle()?;
        ensure!(flooded.lost == 0, "lo lost {} packets", flooded.lost);
        self.attempted += flooded.sent;
        Ok(half_open(self.listener)? as u32)
    }

    pub(super) fn finish(mut self, did: String) -> Result<(Report, Vec<Connect>)> {
        self.wire.settle()?;
        let report = Report {
            did,
            listener: self.listener,
            attempted: self.attempted,
            endings: self.endings,
            imposed: self.imposed,
        };
        Ok((report, self.clients))
    }

    fn ended(&mut self, ending: Ending) {
        *self.endings.entry(ending).or_default() += 1;
    }
}

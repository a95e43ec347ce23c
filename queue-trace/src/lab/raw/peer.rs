//! A hand-made client: one step of its handshake per call.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::lab::{
    Family,
    raw::{
        segment::{Flags, Segment},
        wire::Wire,
    },
};

/// What a listener answered to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAnswer {
    /// A SYN-ACK, with the listener's initial sequence number (or cookie).
    SynAck(u32),
    /// A reset.
    Reset,
}

/// A client of one listener. It answers nothing by itself.
#[derive(Clone, Debug)]
pub struct RawPeer {
    address: SocketAddr,
    listener: SocketAddr,
    isn: u32,
    listener_isn: Option<u32>,
}

impl RawPeer {
    /// A client with an address of its own on the test range.
    pub fn new(wire: &mut Wire, listener: SocketAddr) -> Result<Self> {
        ensure!(
            Family::of(listener) == wire.family(),
            "the wire is {}, the listener {listener}",
            wire.family()
        );
        Ok(Self::at(wire.next_address(), listener))
    }

    /// A client with any address, which may be nobody's, and need not be routed.
    pub fn at(address: SocketAddr, listener: SocketAddr) -> Self {
        Self {
            address,
            listener,
            isn: 0x1000_0000 + (u32::from(address.port()) << 8),
            listener_isn: None,
        }
    }

    /// Its address and port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends its SYN; sent again, it is a retransmission.
    pub fn syn(&self, wire: &Wire) -> Result<()> {
        self.syn_with_data(wire, &[])
    }

    /// The same with data, as for fast open.
    pub fn syn_with_data(&self, wire: &Wire, data: &[u8]) -> Result<()> {
        wire.send(&self.segment(Flags::SYN, self.isn, 0), data)
    }

    /// Sends its SYN with a wrong checksum.
    pub fn damaged_syn(&self, wire: &Wire) -> Result<()> {
        wire.send_damaged(&self.segment(Flags::SYN, self.isn, 0))
    }

    /// Waits for a SYN-ACK and remembers its sequence number; `None` if there was
    /// none within `timeout`.
    pub fn syn_ack(&mut self, wire: &mut Wire, timeout: Duration) -> Result<Option<u32>> {
        let heard = wire.receive(self.listener, self.address, |f| f.syn && f.ack, timeout)?;
        if let Some(segment) = heard {
            self.listener_isn = Some(segment.sequence);
        }
        Ok(heard.map(|segment| segment.sequence))
    }

    /// Waits for a SYN-ACK or a reset.
    pub fn answer(&mut self, wire: &mut Wire, timeout: Duration) -> Result<Option<PeerAnswer>> {
        let wanted = |f: Flags| f.rst || (f.syn && f.ack);
        let heard = wire.receive(self.listener, self.address, wanted, timeout)?;
        Ok(heard.map(|segment| match segment.flags.rst {
            true => PeerAnswer::Reset,
            false => PeerAnswer::SynAck(*self.listener_isn.insert(segment.sequence)),
        }))
    }

    /// Sends the third packet of the handshake, bare.
    pub fn ack(&self, wire: &Wire) -> Result<()> {
        self.ack_with_data(wire, &[])
    }

    /// Sends the third packet of the handshake with data in it.
    pub fn ack_with_data(&self, wire: &Wire, data: &[u8]) -> Result<()> {
        wire.send(&self.final_ack()?, data)
    }

    /// Sends the third packet of the handshake with a timestamp that echoes `echoed`, in
    /// which a SYN cookie keeps the options of the SYN.
    pub fn ack_with_timestamp(&self, wire: &Wire, echoed: u32) -> Result<()> {
        wire.send_with_timestamp(&self.final_ack()?, 1, echoed)
    }

    fn final_ack(&self) -> Result<Segment> {
        let acknowledgment = self.heard()?.wrapping_add(1);
        Ok(self.segment(Flags::ACK, self.isn.wrapping_add(1), acknowledgment))
    }

    /// Says by an ICMP error that the SYN-ACK did not reach it.
    pub fn unreachable(&self, wire: &Wire) -> Result<()> {
        wire.send_unreachable(&Segment {
            source: self.listener,
            destination: self.address,
            sequence: self.heard()?,
            acknowledgment: self.isn.wrapping_add(1),
            flags: Flags::SYN_ACK,
        })
    }

    fn heard(&self) -> Result<u32> {
        let address = self.address;
        self.listener_isn
            .with_context(|| format!("{address} has had no SYN-ACK that it could refer to"))
    }

    /// Acknowledges a SYN-ACK that no listener ever sent, as a forged cookie does.
    pub fn bogus_ack(&self, wire: &Wire) -> Result<()> {
        let made_up = self.isn ^ 0x5eed_5eed;
        wire.send(
            &self.segment(Flags::ACK, self.isn.wrapping_add(1), made_up),
            &[],
        )
    }

    /// Resets the connection.
    pub fn rst(&self, wire: &Wire) -> Result<()> {
        wire.send(&self.segment(Flags::RST, self.isn.wrapping_add(1), 0), &[])
    }

    fn segment(&self, flags: Flags, sequence: u32, acknowledgment: u32) -> Segment {
        Segment {
            source: self.address,
            destination: self.listener,
            sequence,
            acknowledgment,
            flags,
        }
    }
}

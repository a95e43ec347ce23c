//! A SYN that was refused before the queues of a listener saw it, on its way out.

use crate::{
    emit::{self, Verdict},
    read::{
        packet::{Packet, Peer},
        socket::Identity,
    },
};

/// A SYN that was refused before the queues of a listener saw it.
pub struct Refused {
    /// The outcome's tag.
    pub outcome: u8,
    /// Its listener; 0 where there is none, or it could not be told.
    pub sk: u64,
    /// The network namespace.
    pub net: u64,
    /// Where it is counted.
    pub listener: Identity,
    /// The port that it was for.
    pub port: u16,
    /// What it says.
    pub packet: Packet,
}

/// Tells it.
#[inline(always)]
pub fn tell(refused: Refused) {
    emit::verdict_with(
        &Verdict {
            outcome: refused.outcome,
            moved: 0,
            count: 1,
            sk: refused.sk,
            net: refused.net,
            listener: refused.listener,
            by_softirq: false,
            retransmits: 0,
        },
        true,
        || Some(Peer::from(refused.packet)),
        |record| record.port = refused.port,
    );
}

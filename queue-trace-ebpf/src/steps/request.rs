//! A half-open request as the packet in hand: its timer fires, or an ICMP error hits
//! it. It may be freed before the kernel function returns, so what a record says of
//! it is copied when the frame is opened.

use queue_trace_common::{counter::Moved, field};

use crate::{
    emit::{self, Verdict},
    filter, frame,
    read::{
        memory::{self, Plain},
        packet::Peer,
        socket::{self, Identity},
    },
    state::types::{Call, Frame, Request},
};

/// Opens a frame for a request, if its listener and its client pass the filter.
#[inline(always)]
pub fn open<const WHICH: Moved>(call: Call, hook: usize, request: u64) {
    let Some(sk) = memory::get::<u64>(request, field::REQ_LISTENER) else {
        return;
    };
    let sk = Plain(sk);
    if sk.0 == 0 || !filter::port(sk) {
        return frame::skip();
    }
    let Some(peer) = socket::peer_of(request) else {
        return;
    };
    if !filter::netns_of(sk) || !filter::pair(&peer.local, &peer.client) {
        return frame::skip();
    }
    if let Some(frame) = frame::open::<WHICH>(call, hook, sk, 0, request) {
        frame.of = Request {
            local: peer.local,
            client: peer.client,
            client_port: peer.client_port,
            retransmits: memory::value(request, field::REQ_RETRANSMITS),
            _pad: [0; 5],
        };
    }
}

/// Tells an outcome of the request of a frame that was closed.
#[inline(always)]
pub fn tell(outcome: u8, frame: &Frame, moved: Moved, retransmits_more: u8) {
    let request = &frame.of;
    emit::verdict(
        &Verdict {
            outcome,
            moved,
            count: 1,
            sk: frame.sk,
            net: frame.net,
            listener: Identity::of(Plain(frame.sk), Plain(frame.net)),
            by_softirq: true,
            retransmits: request.retransmits + retransmits_more,
        },
        || {
            Some(Peer {
                local: request.local,
                client: request.client,
                client_port: request.client_port,
            })
        },
    );
}

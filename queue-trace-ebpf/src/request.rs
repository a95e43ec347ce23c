//! A half-open request as the packet in hand: its timer fires, or an ICMP error hits
//! it. It may be freed before the kernel function returns, so what a record says of
//! it is copied when the frame is opened.

use queue_trace_common::{counter::Moved, field};

use crate::{
    emit::{self, Peer, Verdict},
    evidence::{self, Call, Frame, Request},
    filter,
    listener::{self, Identity},
    memory::{self, Plain},
};

/// The two ends of a connection, from its socket or its request: both begin with a
/// `struct sock_common`.
#[inline(always)]
pub fn peer_of(sk: u64) -> Option<Peer> {
    let mut peer = Peer {
        local: [0; 16],
        client: [0; 16],
        client_port: 0,
    };
    let mut port = 0;
    let status = listener::fetch_bound_addr(&mut peer.local, sk)
        | listener::fetch_peer_addr(&mut peer.client, sk)
        | memory::fetch_field(&mut port, sk, field::SK_PEER_PORT);
    peer.client_port = u16::from_be(port);
    status.ok().then_some(peer)
}

/// Opens a frame for a request, if its listener and its client pass the filter.
#[inline(always)]
pub fn open(call: Call, hook: usize, request: u64) {
    let Some(sk) = memory::get::<u64>(request, field::REQ_LISTENER) else {
        return;
    };
    let sk = Plain(sk);
    if sk.0 == 0 || !filter::port(sk) {
        return evidence::skip();
    }
    let Some(peer) = peer_of(request) else {
        return;
    };
    if !filter::netns_of(sk) || !filter::pair(&peer.local, &peer.client) {
        return evidence::skip();
    }
    evidence::open(call, hook, sk, 0, request);
    if let Some(cpu) = evidence::cpu() {
        cpu.request = Request {
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
    let Some(cpu) = evidence::cpu() else { return };
    let request = &cpu.request;
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

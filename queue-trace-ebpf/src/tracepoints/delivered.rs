//! Tracepoint mode where the kernel shows each packet to a program right before the socket
//! that it was looked up for decides on it: then the listener is known, not looked for.
//!
//! The program is one of type `cgroup_skb/ingress` at the root of the cgroups, which runs in
//! the socket's own filter: after the lookup (redirection, devices, groups, programs that
//! select), before `tcp_conn_request` and `tcp_check_req`. It opens a frame; the end of the
//! same buffer closes it, and what the counters did in between was done for this packet. It
//! is in the packets' way, so it says yes to all of them.
//!
//! ICMP errors reach no socket's filter. Their frame is opened where they are received.

use aya_ebpf::{
    bindings::__sk_buff, helpers::generated, macros::cgroup_skb, programs::SkBuffContext,
};
use queue_trace_common::{
    counter::{
        self, COOKIE_FAILED, COOKIE_RECV, COOKIE_SENT, DROP, EMBRYONIC_RST, Moved, OVERFLOW,
        QUEUE_DROP,
    },
    field, outcome,
    queue::QueueKey,
    settings::typed,
};

use crate::{
    emit::{self, Closed, Verdict},
    filter, frame,
    queues::gauge,
    read::{
        counters::{self, Movement},
        memory::{self, Plain, Pointer, Typed},
        packet::{self, Packet, Peer, flag},
        socket::{self, Identity},
    },
    state::{
        config,
        tally::{self, Here},
        types::{Call, Delivered},
    },
    steps::syn,
};

/// What a SYN may move, and what of it never with an overflow.
const SYN: Moved = Call::Syn.counters();
const SYN_ALONE: Moved = Call::Syn.alone();

/// The same of what else a listener is handed, and of ICMP errors.
const ACK: Moved = Call::Ack.counters() | Call::Icmp.counters();
const ACK_ALONE: Moved = Call::Ack.alone();

/// What tells the frame's listener from others.
#[inline(always)]
fn identity(frame: &Delivered) -> Identity {
    Identity {
        inode: frame.inode,
        ..Identity::at_port(Plain(frame.net), frame.port)
    }
}

/// This CPU's frame.
#[inline(always)]
fn frame_of(here: Here) -> &'static mut Delivered {
    // SAFETY: this CPU's copy. Packets are delivered and end with bottom halves off, one
    // after the other; what frees other buffers elsewhere compares one word and leaves.
    unsafe { &mut (*here.own()).delivered }
}

#[cgroup_skb(ingress)]
fn packet_delivered(ctx: SkBuffContext) -> i32 {
    enter(ctx.skb.skb);
    1
}

/// A packet is about to be handed to a socket.
#[inline(always)]
fn enter(skb: *mut __sk_buff) {
    let (_, _, listen) = config::tcp_states();
    // SAFETY: the context of this program type; the verifier checks each access.
    let sk = unsafe { (*skb).__bindgen_anon_2.sk };
    if sk.is_null() {
        return;
    }
    // SAFETY: as above; the verifier knows this pointer for a socket's beginning.
    if unsafe { (*sk).state } != u32::from(listen) {
        return;
    }
    // SAFETY: takes a socket, and gives it its type if it is one of TCP.
    let sk = unsafe { generated::bpf_skc_to_tcp_sock(sk.cast()) };
    if sk.is_null() {
        return;
    }
    let sk = Typed(sk as u64);
    if !filter::port(sk) || !filter::netns_of(sk) {
        return;
    }
    let Some(here) = Here::find() else { return };
    let frame = frame_of(here);
    let skb = memory::plain(skb as u64);
    if frame.skb != 0 {
        left_open(here, frame);
    }
    let net = sk.follow::<{ field::SK_NET }>();
    let counters = counters::of(net, frame::cpu_offset(here));
    frame.counters = counters;
    frame.flags = packet::flags(skb);
    let (begun, watches) = if is_syn(frame.flags) {
        (
            counters::read::<SYN>(&mut frame.before, counters),
            config::wants(outcome::FAST_OPEN_REFUSED) && syn::serves_fast_open(net),
        )
    } else {
        (
            counters::read::<ACK>(&mut frame.before, counters),
            config::wants(outcome::ACK_DEFERRED),
        )
    };
    if !begun {
        return;
    }
    frame.inode = socket::inode(sk);
    frame.port = sk.load::<_, { field::SK_PORT }>();
    frame.watches = watches.into();
    if watches {
        frame.sole = sole_now(frame);
    }
    frame.child = 0;
    frame.net = net.address();
    frame.sk = sk.address();
    frame.skb = skb;
}

#[inline(always)]
fn is_syn(flags: u8) -> bool {
    flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
}

/// The counter of [`SOLE`](counter::SOLE) that the packet in hand may move.
#[inline(always)]
fn sole_now(frame: &Delivered) -> u64 {
    let now = if is_syn(frame.flags) {
        counters::sole::<{ counter::FAST_OPEN_FULL }>(frame.counters)
    } else {
        counters::sole::<{ counter::DEFERRED }>(frame.counters)
    };
    now.unwrap_or(0)
}

/// A packet was received. An ICMP error will reach no socket.
#[inline(always)]
pub fn received(skb: u64) {
    if packet::is_icmp_error(skb) {
        icmp(skb);
    }
}

/// The same, of a packet whose type the verifier knows.
#[inline(always)]
pub fn received_typed(skb: Typed) {
    if packet::begins_with_icmp_error(skb) {
        icmp(memory::plain(skb.0));
    }
}

/// Opens a frame for an ICMP error. Rare, so a function of its own.
#[inline(never)]
fn icmp(skb: u64) {
    let net = Plain(skb)
        .follow::<{ field::SKB_DEV }>()
        .follow::<{ field::DEV_NET }>();
    // Which port the error is about is inside it, and not looked for.
    if config::filters_ports() || !filter::netns(net) {
        return;
    }
    let Some(here) = Here::find() else { return };
    let frame = frame_of(here);
    if frame.skb != 0 {
        left_open(here, frame);
    }
    let counters = counters::of(net, frame::cpu_offset(here));
    frame.counters = counters;
    if !counters::read::<ACK>(&mut frame.before, counters) {
        return;
    }
    frame.inode = 0;
    frame.port = 0;
    frame.flags = 0;
    frame.watches = 0;
    frame.child = 0;
    frame.net = net.0;
    frame.sk = 0;
    frame.skb = skb;
}

/// A frame is open although a packet comes: the kernel kept its packet, or looks up the socket of
/// the same one again, or the program that should have seen the end was kept from running. What
/// moved was moved for it.
#[inline(never)]
fn left_open(here: Here, frame: &mut Delivered) {
    settle(here, frame, 0, false);
}

/// A packet was freed. If it is the one in hand, its verdict is told. `consumed`: as if all were
/// well.
#[inline(always)]
pub fn freed(skb: u64, consumed: bool) {
    let Some(here) = Here::find() else { return };
    let frame = frame_of(here);
    if frame.skb == skb {
        settle(here, frame, skb, consumed);
    }
}

/// Closes a frame and tells the verdict. `skb` 0: the packet cannot be read any more. A function of
/// its own: what it saves and restores is not for the many packets that are in no frame.
#[inline(never)]
fn settle(here: Here, frame: &mut Delivered, skb: u64, consumed: bool) {
    frame.skb = 0;
    let movement = if is_syn(frame.flags) {
        Movement::since::<SYN, SYN_ALONE>(&frame.before, frame.counters, &mut frame.after)
    } else {
        Movement::since::<ACK, ACK_ALONE>(&frame.before, frame.counters, &mut frame.after)
    };
    let Some(movement) = movement else { return };
    let moved = movement.moved;
    let sole = frame.watches != 0 && sole_now(frame) != frame.sole;
    let decided = match decide(frame, consumed, moved) {
        None if sole && !is_syn(frame.flags) => Some(outcome::ACK_DEFERRED),
        decided => decided,
    };
    let Some(outcome) = decided else {
        return;
    };
    let (outcome, moved) = frame::forget_range(&mut frame.verdict, outcome, moved);
    if sole && is_syn(frame.flags) {
        refused_fast_open(frame, skb);
    }
    if movement.more_than_once {
        tally::lost(|loss| &mut loss.ambiguous);
    }
    if !emit::matters(outcome, moved) || skb != 0 && !filter::addresses(skb) {
        return;
    }
    let key = QueueKey {
        sk: frame.sk,
        inode: frame.inode,
    };
    if outcome == outcome::QUEUED {
        gauge::syn_rose(&key);
    }
    if outcome == outcome::ESTABLISHED_FAST_OPEN {
        rose(frame);
    }
    let is_read = skb != 0 && frame.sk != 0;
    tell(here, frame, outcome, moved, || {
        if !is_read {
            return None;
        }
        Packet::of(skb).map(Peer::from)
    });
}

/// Tells a verdict that matters.
#[inline(always)]
fn tell(
    here: Here,
    frame: &Delivered,
    outcome: u8,
    moved: Moved,
    peer: impl FnOnce() -> Option<Peer>,
) {
    let net = frame.net;
    let closed = Closed {
        sk: frame.sk,
        net,
        verdict: frame.verdict,
    };
    let listener = || (frame.inode, frame.port);
    if let Some(typed) = Typed::cast::<{ typed::NAMESPACE }>(net) {
        emit::tell(here, &closed, outcome, moved, listener, || typed, peer);
    } else {
        emit::tell(here, &closed, outcome, moved, listener, || Plain(net), peer);
    }
}

/// The fast-open queue was full. What became of the SYN is a verdict of its own. Rare, so a
/// function of its own.
#[inline(never)]
fn refused_fast_open(frame: &Delivered, skb: u64) {
    if skb != 0 && !filter::addresses(skb) {
        return;
    }
    emit::verdict(
        &Verdict {
            outcome: outcome::FAST_OPEN_REFUSED,
            moved: 0,
            count: 1,
            sk: frame.sk,
            net: frame.net,
            listener: identity(frame),
            by_softirq: false,
            retransmits: 0,
        },
        || {
            if skb == 0 {
                return None;
            }
            Packet::of(skb).map(Peer::from)
        },
    );
}

/// A connection entered the listener's accept queue.
#[inline(always)]
fn rose(frame: &Delivered) {
    let key = QueueKey {
        sk: frame.sk,
        inode: frame.inode,
    };
    let (depth, limit) = match Typed::cast::<{ typed::LISTENER }>(frame.sk) {
        Some(sk) => gauge::accept_queue(sk),
        None => gauge::accept_queue(Plain(frame.sk)),
    };
    gauge::accept_rose(&key, depth, limit, gauge::UNKNOWN);
}

/// The verdict, from the counters that the packet moved and how it ended.
#[inline(always)]
fn decide(frame: &Delivered, consumed: bool, moved: Moved) -> Option<u8> {
    if frame.sk == 0 {
        return (moved == DROP).then_some(outcome::REQUEST_ABORTED);
    }
    if is_syn(frame.flags) {
        if moved & OVERFLOW != 0 {
            return Some(outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL);
        }
        if moved & QUEUE_DROP != 0 {
            return Some(outcome::SYN_DROPPED_SYN_QUEUE_FULL);
        }
        if moved & COOKIE_SENT != 0 && moved & DROP == 0 {
            return Some(syn::cookie_cause(Plain(frame.net)));
        }
        if moved & DROP != 0 {
            return Some(outcome::SYN_DROPPED_OTHER);
        }
        if !consumed {
            return None;
        }
        // Every SYN that `tcp_conn_request` has had is consumed.
        return Some(if frame.child == 0 {
            outcome::QUEUED
        } else {
            outcome::ESTABLISHED_FAST_OPEN
        });
    }
    if moved & OVERFLOW != 0 {
        return Some(if moved & COOKIE_RECV != 0 {
            outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL
        } else if moved & EMBRYONIC_RST != 0 {
            outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET
        } else {
            outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL
        });
    }
    if moved & COOKIE_FAILED != 0 {
        return Some(outcome::COOKIE_FAILED_INVALID);
    }
    if moved & COOKIE_RECV != 0 {
        return Some(outcome::COOKIE_DROPPED_OTHER);
    }
    if frame.child != 0 && !is_listening(frame.sk) {
        return Some(outcome::ACK_DROPPED_LISTENER_CLOSING);
    }
    (moved & DROP != 0).then_some(outcome::ACK_DROPPED_OTHER)
}

#[inline(always)]
fn is_listening(sk: u64) -> bool {
    let (_, _, listen) = config::tcp_states();
    memory::value::<u8>(sk, field::SK_STATE) == listen
}

/// A connection was made for the packet in hand.
#[inline(always)]
pub fn made(child: u64) {
    let Some(here) = Here::find() else { return };
    let frame = frame_of(here);
    if frame.skb != 0 {
        frame.child = child;
    }
}

/// A connection is established. In the frame of its ACK, unless it came by fast open, which
/// was told at its SYN.
#[inline(always)]
pub fn completed(child: u64) {
    let Some(here) = Here::find() else { return };
    let frame = frame_of(here);
    if frame.skb == 0 || frame.child != child {
        return;
    }
    frame.skb = 0;
    if !counters::read::<COOKIE_RECV>(&mut frame.after, frame.counters) {
        return;
    }
    const RECV: usize = COOKIE_RECV.trailing_zeros() as usize;
    let (outcome, moved) = if frame.before[RECV] == frame.after[RECV] {
        (outcome::ESTABLISHED_HANDSHAKE, 0)
    } else {
        (outcome::ESTABLISHED_COOKIE, COOKIE_RECV)
    };
    let (outcome, moved) = frame::forget_range(&mut frame.verdict, outcome, moved);
    if !filter::ends(child) {
        return;
    }
    rose(frame);
    if emit::matters(outcome, moved) {
        tell(here, frame, outcome, moved, || socket::peer_of(child));
    }
}

//! Tracepoint mode, for kernels that allow neither fentry nor kprobes: the verdicts
//! of a received packet from tracepoints alone.
//!
//! A packet that is refused is freed at once by the CPU that refused it, with
//! nothing of TCP in between. So where a packet is freed (`consume_skb`,
//! `kfree_skb`), what this CPU's counters did since they were last looked at was
//! done for that packet. `netif_receive_skb` only makes sure that they were looked
//! at before a namespace's first packet on this CPU.
//!
//! The kernel does not let a program interrupt itself: it skips the second run. An
//! application's own free is often interrupted by packets. So each program is attached
//! twice, and the second one does what the first was kept from. Should both be
//! skipped, the movement is found at the next free: no count is lost, and two at once
//! are counted as `ambiguous`.

use aya_ebpf::{
    macros::{btf_tracepoint, raw_tracepoint},
    programs::{BtfTracePointContext, RawTracePointContext},
};
use queue_trace_common::{
    counter::{
        self, ALL, COOKIE_FAILED, COOKIE_RECV, COOKIE_SENT, DROP, EMBRYONIC_RST, Moved, OVERFLOW,
        QUEUE_DROP,
    },
    field, outcome,
    queue::QueueKey,
    settings::{Baseline, typed},
};

use super::{
    delivered,
    freed::Freed,
    listeners::{self, Found},
    turn::{CONSUME, KFREE, STATE, Turn, is_done, was_taken},
};
use crate::{
    emit::{self, Verdict},
    filter, frame,
    queues::{gauge, kept, owner},
    read::{
        counters::{self, Movement},
        memory::{self, Plain, Pointer, Typed},
        packet::{self, Packet, Peer, flag},
        socket::{self, Identity},
    },
    state::{
        config,
        maps::BASELINES,
        tally::{self, Here},
        types::Counters,
    },
    steps::{close, syn},
};

/// What tells a namespace from all others, also from an earlier one that had its
/// address; 0 if there is none.
#[inline(always)]
fn identity(net: impl Pointer) -> u64 {
    // Old kernels have no such number, or none until somebody asks for it.
    match net.load::<_, { field::NET_COOKIE }>() {
        0 => net.address(),
        cookie => cookie,
    }
}

/// This CPU's baseline of the namespace of an identity, if it has one.
#[inline(always)]
fn baseline_of(identity: u64) -> Option<&'static mut Baseline> {
    let baseline = BASELINES.get_ptr_mut(identity)?;
    // SAFETY: this CPU's copy. What an application frees carries no route, so only what
    // runs in softirq, one program after the other, gets so far.
    let baseline = unsafe { &mut *baseline };
    // Another CPU's insertion makes an empty entry for this one.
    (baseline.address != 0).then_some(baseline)
}

/// Makes sure that the namespace has a baseline on this CPU.
#[inline(always)]
fn prime(net: impl Pointer) {
    let identity = identity(net);
    if identity != 0 && baseline_of(identity).is_none() {
        set_baseline(identity, memory::plain(net.address()));
    }
}

/// Gives a namespace its baseline. Rare, and a function of its own for the stack's sake.
#[inline(never)]
fn set_baseline(identity: u64, net: u64) {
    let net = Plain(net);
    let Some(here) = Here::find() else { return };
    let address = counters::of(net, frame::cpu_offset(here));
    let mut baseline = Baseline {
        net: net.address(),
        address,
        values: [0; counter::COUNT],
        now: [0; counter::COUNT],
        sole: [0; _],
        netns: net.load::<_, { field::NET_ID }>(),
        verdict: 0,
    };
    if !counters::read::<ALL>(&mut baseline.values, address) {
        return;
    }
    baseline.sole = [
        counters::sole::<{ counter::DEFERRED }>(address).unwrap_or(0),
        counters::sole::<{ counter::FAST_OPEN_FULL }>(address).unwrap_or(0),
    ];
    // Sets this CPU's copy alone, also where the entry exists. Where there is no room, each
    // packet that ends is counted as one without a baseline.
    let _ = BASELINES.insert(identity, &baseline, 0);
}

/// The identity of the namespace of a packet that was delivered to this host: that of the
/// device of its route, which is the loopback device for what is ours. 0 if it has no route.
#[inline(always)]
fn identity_of(skb: u64) -> u64 {
    match Typed::cast::<{ typed::PACKET }>(skb) {
        Some(packet) => Typed::cast::<{ typed::ROUTE }>(route_of(packet)).map_or(0, |route| {
            identity(net_of(route.follow::<{ field::DST_DEV }>()))
        }),
        None => match route_of(Plain(skb)) {
            0 => 0,
            route => identity(net_of(Plain(route).follow::<{ field::DST_DEV }>())),
        },
    }
}

#[inline(always)]
fn route_of(packet: impl Pointer) -> u64 {
    packet.load::<u64, { field::SKB_DST }>() & packet::ROUTE
}

#[inline(always)]
fn net_of<P: Pointer>(device: P) -> P {
    device.follow::<{ field::DEV_NET }>()
}

/// A packet was freed.
#[inline(always)]
fn freed(skb: u64, how: Freed) {
    let identity = identity_of(skb);
    if identity == 0 {
        return;
    }
    let Some(baseline) = baseline_of(identity) else {
        return without_baseline(skb);
    };
    let net = baseline.net;
    if !counters::read::<ALL>(&mut baseline.now, baseline.address) {
        return;
    }
    let movement = Movement::between::<ALL>(&baseline.values, &baseline.now);
    let moved = movement.moved;
    let may_be_queued = how == Freed::Consumed && config::wanted() & (1 << outcome::QUEUED) != 0;
    let sole = sole_movement(baseline, how);
    if moved == 0 && !may_be_queued && sole == 0 {
        return;
    }
    let Some(packet) = Packet::of(skb) else {
        return;
    };
    let syn = is_syn(&packet);
    if sole != 0 && packet.at_tcp && syn == (how == Freed::Consumed) {
        let which = sole_of(how);
        baseline.sole[which] = baseline.sole[which].wrapping_add(sole);
        told_alone(net, &packet, sole, syn);
    }
    let Some(outcome) = decide(&packet, how, moved, net) else {
        // Only resets of half-open connections: they decide nothing.
        if moved == EMBRYONIC_RST {
            baseline.values = baseline.now;
        }
        return;
    };
    let (outcome, moved) = frame::forget_range(&mut baseline.verdict, outcome, moved);
    let count = if movement.more_than_once {
        most(&baseline.values, &baseline.now)
    } else {
        1
    };
    baseline.values = baseline.now;
    if !wanted(net, &packet) {
        return;
    }
    if movement.more_than_once {
        tally::lost(|loss| &mut loss.ambiguous);
    }
    let sk = match how {
        // Which request an ICMP error was about is inside it, and not looked for.
        _ if packet.icmp => 0,
        Freed::Dropped(sk) if sk != 0 => sk,
        _ => {
            let found = listeners::find(net, &packet);
            if outcome == outcome::QUEUED && found == Found::Nobody {
                return;
            }
            unless_contradicted(outcome, found.sk())
        }
    };
    let port = if packet.icmp { 0 } else { packet.local_port };
    let listener = identify(sk, net, port);
    if outcome == outcome::QUEUED {
        gauge::syn_rose(&QueueKey {
            sk,
            inode: listener.inode,
        });
    }
    emit::verdict(
        &Verdict {
            outcome,
            moved,
            count,
            sk,
            net,
            listener,
            by_softirq: false,
            retransmits: 0,
        },
        || (!packet.icmp).then(|| Peer::from(packet)),
    );
}

/// The counter of [`SOLE`](counter::SOLE) that moves with packets that end so.
#[inline(always)]
fn sole_of(how: Freed) -> usize {
    if how == Freed::Consumed {
        counter::FAST_OPEN_FULL
    } else {
        counter::DEFERRED
    }
}

/// How far it moved, if its outcome is wanted.
#[inline(always)]
fn sole_movement(baseline: &Baseline, how: Freed) -> u64 {
    let outcome = if how == Freed::Consumed {
        outcome::FAST_OPEN_REFUSED
    } else {
        outcome::ACK_DEFERRED
    };
    if !config::wants(outcome) {
        return 0;
    }
    let which = sole_of(how);
    let now = if how == Freed::Consumed {
        counters::sole::<{ counter::FAST_OPEN_FULL }>(baseline.address)
    } else {
        counters::sole::<{ counter::DEFERRED }>(baseline.address)
    };
    now.map_or(0, |now| now.wrapping_sub(baseline.sole[which]))
}

/// Tells what a counter tells by itself. What else became of the packet is a verdict of its own.
/// Rare, so a function of its own.
#[inline(never)]
fn told_alone(net: u64, packet: &Packet, count: u64, syn: bool) {
    if !wanted(net, packet) {
        return;
    }
    if count > 1 {
        tally::lost(|loss| &mut loss.ambiguous);
    }
    let sk = listeners::find(net, packet).sk();
    emit::verdict(
        &Verdict {
            outcome: if syn {
                outcome::FAST_OPEN_REFUSED
            } else {
                outcome::ACK_DEFERRED
            },
            moved: 0,
            count: count as u32,
            sk,
            net,
            listener: identify(sk, net, packet.local_port),
            by_softirq: false,
            retransmits: 0,
        },
        || {
            Some(Peer {
                local: packet.local,
                client: packet.client,
                client_port: packet.client_port,
            })
        },
    );
}

#[inline(always)]
fn is_syn(packet: &Packet) -> bool {
    packet.flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN
}

/// A packet ended before its namespace's counters were known on this CPU. What is only sent has
/// not been to TCP, and is no loss. Rare, so a function of its own.
#[inline(never)]
fn without_baseline(skb: u64) {
    if Packet::of(skb).is_some_and(|packet| packet.at_tcp) {
        tally::lost(|loss| &mut loss.no_baseline);
    }
}

/// The socket that was concluded, or 0 where its own queues say that it cannot be the one: a packet
/// may be redirected to another port, or a program may select the socket.
#[inline(never)]
fn unless_contradicted(outcome: u8, sk: u64) -> u64 {
    let full = match outcome {
        outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL
        | outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL
        | outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET
        | outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL => {
            let (depth, limit) = gauge::accept_queue(Plain(sk));
            depth > limit
        }
        outcome::SYN_DROPPED_SYN_QUEUE_FULL | outcome::COOKIE_SENT_FULL => {
            let depth: u32 = Plain(sk).load::<_, { field::SYN_DEPTH }>();
            let (_, limit) = gauge::accept_queue(Plain(sk));
            depth >= limit
        }
        _ => return sk,
    };
    if full { sk } else { 0 }
}

/// The farthest that a deciding counter moved: how many packets the movement stands
/// for.
#[inline(never)]
fn most(before: &Counters, now: &Counters) -> u32 {
    let mut most = 1;
    let mut index = 0;
    while index < EMBRYONIC_RST.trailing_zeros() as usize {
        most = core::cmp::max(most, now[index].wrapping_sub(before[index]));
        index += 1;
    }
    most as u32
}

/// What tells the listener from others: itself, or where it listens if it is not known.
#[inline(always)]
fn identify(sk: u64, net: u64, port: u16) -> Identity {
    if sk == 0 {
        Identity::at_port(Plain(net), port)
    } else {
        Identity::of(Plain(sk), Plain(net))
    }
}

#[inline(never)]
fn wanted(net: u64, packet: &Packet) -> bool {
    let (ports, _, _) = config::filters();
    (!ports || config::port_wanted(packet.local_port))
        && filter::netns(Plain(net))
        && filter::pair(&packet.local, &packet.client)
}

/// The verdict on a packet, from the counters that it moved.
#[inline(always)]
fn decide(packet: &Packet, how: Freed, moved: Moved, net: u64) -> Option<u8> {
    if packet.icmp {
        return (moved == DROP).then_some(outcome::REQUEST_ABORTED);
    }
    if is_syn(packet) {
        if moved & OVERFLOW != 0 {
            return Some(outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL);
        }
        if moved & QUEUE_DROP != 0 {
            return Some(outcome::SYN_DROPPED_SYN_QUEUE_FULL);
        }
        if moved & COOKIE_SENT != 0 && moved & DROP == 0 {
            return Some(syn::cookie_cause(Plain(net)));
        }
        if moved & DROP != 0 {
            return Some(outcome::SYN_DROPPED_OTHER);
        }
        let queued = moved == 0 && how == Freed::Consumed && packet.at_tcp;
        return queued.then_some(outcome::QUEUED);
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
    if moved & COOKIE_RECV != 0 && how != Freed::Consumed {
        return Some(outcome::COOKIE_DROPPED_OTHER);
    }
    (moved & DROP != 0).then_some(outcome::ACK_DROPPED_OTHER)
}

#[raw_tracepoint(tracepoint = "netif_receive_skb")]
fn packet_received(ctx: RawTracePointContext) -> i32 {
    let skb: u64 = ctx.arg(0);
    if config::sees_delivery() {
        delivered::received(skb);
        return 0;
    }
    match Typed::cast::<{ typed::PACKET }>(skb) {
        Some(packet) => prime(net_of(packet.follow::<{ field::SKB_DEV }>())),
        None => prime(net_of(Plain(skb).follow::<{ field::SKB_DEV }>())),
    }
    0
}

// Where packets are seen at delivery and the verifier knows the type of a tracepoint's argument: it
// trusts that pointer, so that a load through it is one instruction.
#[btf_tracepoint(function = "netif_receive_skb")]
fn packet_received_typed(ctx: BtfTracePointContext) -> i32 {
    delivered::received_typed(Typed(ctx.arg(0)));
    0
}

#[raw_tracepoint(tracepoint = "consume_skb")]
fn packet_consumed(ctx: RawTracePointContext) -> i32 {
    consume(&ctx, Turn::First);
    0
}

#[raw_tracepoint(tracepoint = "consume_skb")]
fn packet_consumed_again(ctx: RawTracePointContext) -> i32 {
    consume(&ctx, Turn::Second);
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn packet_dropped(ctx: RawTracePointContext) -> i32 {
    kfree(&ctx, Turn::First);
    0
}

#[raw_tracepoint(tracepoint = "kfree_skb")]
fn packet_dropped_again(ctx: RawTracePointContext) -> i32 {
    kfree(&ctx, Turn::Second);
    0
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
fn socket_state(ctx: RawTracePointContext) -> i32 {
    state(&ctx, Turn::First);
    0
}

#[raw_tracepoint(tracepoint = "inet_sock_set_state")]
fn socket_state_again(ctx: RawTracePointContext) -> i32 {
    state(&ctx, Turn::Second);
    0
}

#[inline(always)]
fn consume(ctx: &RawTracePointContext, turn: Turn) {
    let skb: u64 = ctx.arg(0);
    if config::sees_delivery() {
        delivered::freed(skb, true);
    } else {
        consumed_in(turn, skb);
    }
}

#[inline(always)]
fn kfree(ctx: &RawTracePointContext, turn: Turn) {
    let skb: u64 = ctx.arg(0);
    if config::sees_delivery() {
        return delivered::freed(skb, false);
    }
    let rx_sk = if config::kfree_has_sk() {
        ctx.arg(3)
    } else {
        0
    };
    dropped_in(turn, skb, rx_sk);
}

// Functions of their own, as what they take is not for where packets are seen at delivery.

#[inline(never)]
fn consumed_in(turn: Turn, skb: u64) {
    if !is_done(turn, CONSUME, skb) {
        freed(skb, Freed::Consumed);
    }
}

#[inline(never)]
fn dropped_in(turn: Turn, skb: u64, sk: u64) {
    if !is_done(turn, KFREE, skb) {
        freed(skb, Freed::Dropped(sk));
    }
}

/// `inet_sock_set_state(sk, old, new)`: connections that are established, and
/// listeners that come and go.
#[inline(always)]
fn state(ctx: &RawTracePointContext, turn: Turn) {
    let (old, new) = (ctx.arg::<u32>(1) as u8, ctx.arg::<u32>(2) as u8);
    let (established, syn_recv, listen) = config::tcp_states();
    let is_completed = old == syn_recv && new == established;
    if old != listen && new != listen && !is_completed {
        return;
    }
    let sk: u64 = ctx.arg(0);
    if was_taken(turn, STATE, sk ^ u64::from(new)) {
        return;
    }
    let sees_delivery = config::sees_delivery();
    if new == listen {
        let Some(net) = net_of_socket(sk) else { return };
        if !sees_delivery {
            listeners::remember(sk, net);
        }
        owner::made(sk, net);
    } else if old == listen && new == syn_recv {
        // The beginning of a connection, which is a copy of its listener.
        if sees_delivery {
            delivered::made(sk);
        }
    } else if old == listen {
        if !sees_delivery {
            listeners::forget(sk);
        }
        close::closed(sk);
    } else if sees_delivery {
        delivered::completed(sk);
    } else if let Some(net) = net_of_socket(sk) {
        completed(sk, net);
    }
}

#[inline(always)]
fn net_of_socket(sk: u64) -> Option<u64> {
    memory::get(sk, field::SK_NET)
}

/// A connection was made. Whether by a cookie, the counters tell.
#[inline(always)]
fn completed(sk: u64, net: u64) {
    let Some(baseline) = baseline_of(identity(Plain(net))) else {
        return;
    };
    if !counters::read::<ALL>(&mut baseline.now, baseline.address) {
        return;
    }
    const RECV: usize = COOKIE_RECV.trailing_zeros() as usize;
    let by_cookie = baseline.now[RECV] != baseline.values[RECV];
    baseline.values[RECV] = baseline.now[RECV];
    let Some(peer) = socket::peer_of(sk) else {
        return;
    };
    let Some(local_port) = memory::get::<u16>(sk, field::SK_PORT) else {
        return;
    };
    let packet = Packet {
        local: peer.local,
        local_port,
        client: peer.client,
        client_port: peer.client_port,
        flags: flag::ACK,
        at_tcp: true,
        icmp: false,
    };
    if !wanted(net, &packet) {
        return;
    }
    let (outcome, moved) = if by_cookie {
        (outcome::ESTABLISHED_COOKIE, COOKIE_RECV)
    } else {
        (outcome::ESTABLISHED_HANDSHAKE, 0)
    };
    let (outcome, moved) = frame::forget_range(&mut baseline.verdict, outcome, moved);
    let sk = listeners::find(net, &packet).sk();
    if sk != 0 {
        let (depth, limit) = gauge::accept_queue(Plain(sk));
        gauge::accept_rose(&kept::key_of(Plain(sk)), depth, limit, gauge::UNKNOWN);
    }
    emit::verdict(
        &Verdict {
            outcome,
            moved,
            count: 1,
            sk,
            net,
            listener: identify(sk, net, local_port),
            by_softirq: false,
            retransmits: 0,
        },
        || Some(peer),
    );
}

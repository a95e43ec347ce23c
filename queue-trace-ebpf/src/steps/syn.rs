//! Step SYN: `tcp_v4_conn_request` and its relatives, which decide what becomes of
//! a SYN that reached a listener. They return 0 whatever happened, and the packet is
//! freed as if all were well, so the counters and the nested calls are the evidence.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use queue_trace_common::{
    counter::{self, COOKIE_SENT, DO_COOKIES, DROP, Moved, OVERFLOW, QUEUE_DROP},
    field, hook, outcome,
    queue::QueueKey,
};

use super::shells::{alike, decides, nested_exit};
use crate::{
    emit::{self, Verdict},
    filter, frame,
    queues::gauge,
    read::{
        memory::{self, Plain, Pointer, Typed},
        packet::{self, Packet, Peer},
        socket::{self, Identity},
    },
    state::{
        config,
        maps::SYN_REST,
        tally::Here,
        types::{Call, Frame, saw},
    },
};

/// A SYN enters, of a port that is wanted.
#[inline(always)]
fn enter(hook: usize, sk: impl Pointer, skb: u64) {
    if !filter::netns_of(sk) || !filter::addresses(skb) {
        return frame::skip();
    }
    let _ = frame::open::<{ Call::Syn.counters() }>(Call::Syn, hook, sk, skb, 0);
}

/// It leaves. `skb` is 0 where the program does not see it, and the listener is then asked
/// of the frame. What is returned says nothing.
#[inline(always)]
fn exit<P: Pointer>(
    hook: Option<usize>,
    skb: u64,
    _returned: impl FnOnce() -> u64,
    listener: impl FnOnce(&Frame) -> P,
) {
    let Some(here) = Here::find() else { return };
    let Some((frame, moved)) =
        frame::close::<{ Call::Syn.counters() }, { Call::Syn.alone() }>(here, Call::Syn, hook, skb)
    else {
        return;
    };
    let sk = listener(frame);
    let outcome = decide(frame, moved, || sk.follow::<{ field::SK_NET }>());
    let (outcome, moved) = frame::forget_range(&mut frame.verdict, outcome, moved);
    if frame::watched_moved::<{ counter::FAST_OPEN_FULL }>(frame) {
        refused_fast_open(frame, socket::inode(sk));
    }
    if outcome == outcome::QUEUED {
        gauge::syn_rose(&QueueKey {
            sk: frame.sk,
            inode: socket::inode(sk),
        });
    }
    emit::packet(here, frame, outcome, moved, sk);
}

/// The verdict. The order is that of the evidence's strength: a request that was
/// queued was queued, even if a fast-open attempt inside moved the drop counters.
#[inline(always)]
fn decide<P: Pointer>(frame: &Frame, moved: Moved, net: impl FnOnce() -> P) -> u8 {
    if frame.saw & saw::QUEUED != 0 {
        return outcome::QUEUED;
    }
    if frame.saw & saw::DUPLICATE != 0 {
        return outcome::SYN_DROPPED_DUPLICATE;
    }
    if moved & OVERFLOW != 0 {
        return outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL;
    }
    if moved & QUEUE_DROP != 0 {
        return outcome::SYN_DROPPED_SYN_QUEUE_FULL;
    }
    if moved & COOKIE_SENT != 0 && moved & DROP == 0 {
        return cookie_cause(net());
    }
    if moved & DROP == 0 {
        // After the request is allocated every end but one moves a counter or is
        // seen in hash_add: a fast-open connection was made.
        return if frame.saw & saw::ALLOC != 0 && config::tells(outcome::ESTABLISHED_FAST_OPEN) {
            outcome::ESTABLISHED_FAST_OPEN
        } else {
            outcome::SYN_DROPPED_OTHER
        };
    }
    if frame.saw & saw::PROVEN_ASKED != 0 {
        return outcome::SYN_DROPPED_LAST_QUARTER;
    }
    if frame.saw & saw::REFUSED != 0 {
        return outcome::SYN_DROPPED_SECURITY;
    }
    // What is left is told by what was not called.
    if frame.saw & saw::ALLOC != 0 {
        if config::tells(outcome::SYN_DROPPED_NO_ROUTE) {
            return outcome::SYN_DROPPED_NO_ROUTE;
        }
    } else if moved & DO_COOKIES == 0 && was_sent_to_many(frame.skb) {
        if config::tells(outcome::SYN_DROPPED_NOT_UNICAST) {
            return outcome::SYN_DROPPED_NOT_UNICAST;
        }
    } else if config::tells(outcome::SYN_DROPPED_NO_MEMORY) {
        return outcome::SYN_DROPPED_NO_MEMORY;
    }
    outcome::SYN_DROPPED_OTHER
}

/// Whether a SYN came to more than an address of this host, which is asked before all else. Rare, so
/// a function of its own.
#[inline(never)]
fn was_sent_to_many(skb: u64) -> bool {
    !packet::is_unicast(skb)
}

/// Why a cookie was sent: tcp_syncookies=2 sends one whatever the queue.
#[inline(always)]
pub fn cookie_cause(net: impl Pointer) -> u8 {
    if net.load_uint::<{ field::NET_SYNCOOKIES }>() == 2 {
        outcome::COOKIE_SENT_ALWAYS
    } else {
        outcome::COOKIE_SENT_FULL
    }
}

decides!(enter exit, SYN_V4 syn_v4_enter syn_v4_exit syn_v4_exit_alone syn_v4_enter_kprobe syn_v4_exit_kprobe, SYN_REST);
decides!(enter exit, SYN_V6 syn_v6_enter syn_v6_exit syn_v6_exit_alone syn_v6_enter_kprobe syn_v6_exit_kprobe, SYN_REST);
decides!(enter exit, SYN_MPTCP4 syn_mptcp4_enter syn_mptcp4_exit syn_mptcp4_exit_alone syn_mptcp4_enter_kprobe syn_mptcp4_exit_kprobe, SYN_REST);
decides!(enter exit, SYN_MPTCP6 syn_mptcp6_enter syn_mptcp6_exit syn_mptcp6_exit_alone syn_mptcp6_enter_kprobe syn_mptcp6_exit_kprobe, SYN_REST);
alike!(exit, SYN_V4 syn_rest syn_rest_kprobe);

// void on some kernels, where it always adds; a bool is only the low byte.
nested_exit!(HASH_ADD hash_add_exit hash_add_exit_kprobe |returned| {
    if config::hash_add_tells() && returned() as u8 == 0 { saw::DUPLICATE } else { saw::QUEUED }
});

/// Whether a namespace takes fast-open connections (`TFO_SERVER_ENABLE`, include/net/tcp.h).
#[inline(always)]
pub fn serves_fast_open(net: impl Pointer) -> bool {
    net.load_uint::<{ field::NET_FAST_OPEN }>() & 2 != 0
}

/// A request was allocated: the SYN got past the queues, and `tcp_try_fastopen` comes after this.
#[inline(always)]
fn allocated<P: Pointer>(more: impl FnOnce() -> u32, net: impl FnOnce(&Frame) -> P) {
    let Some(frame) = frame::opened() else { return };
    frame.saw |= saw::ALLOC | more();
    if config::wants(outcome::FAST_OPEN_REFUSED)
        && serves_fast_open(net(frame))
        && frame.call == Call::Syn as u32
    {
        frame::watch::<{ counter::FAST_OPEN_FULL }>(frame);
    }
}

// `security_inet_conn_request(sk, ...)`, which is asked about a request right after it was
// allocated.

#[inline(always)]
fn refused_if(returned: u64) -> u32 {
    if returned as u32 == 0 {
        0
    } else {
        saw::REFUSED
    }
}

#[fexit]
fn security_exit(ctx: FExitContext) -> i32 {
    let refused = || refused_if(memory::returned::<{ hook::SECURITY }>(&ctx));
    allocated(refused, |_| Typed(ctx.arg(0)).follow::<{ field::SK_NET }>());
    0
}

#[kretprobe]
fn security_exit_kprobe(ctx: RetProbeContext) -> u32 {
    allocated(|| refused_if(ctx.ret()), |frame| Plain(frame.net));
    0
}

// `inet_reqsk_alloc(ops, sk, ...)`, on kernels without security modules.

#[fexit]
fn alloc_exit(ctx: FExitContext) -> i32 {
    if memory::returned::<{ hook::ALLOC }>(&ctx) != 0 {
        allocated(|| 0, |_| Typed(ctx.arg(1)).follow::<{ field::SK_NET }>());
    }
    0
}

#[kretprobe]
fn alloc_exit_kprobe(ctx: RetProbeContext) -> u32 {
    if ctx.ret::<u64>() != 0 {
        allocated(|| 0, |frame| Plain(frame.net));
    }
    0
}

/// The fast-open queue was full. What became of the SYN is a verdict of its own. Rare, so a
/// function of its own.
#[inline(never)]
fn refused_fast_open(frame: &Frame, inode: u64) {
    let port = memory::value(frame.sk, field::SK_PORT);
    emit::verdict(
        &Verdict {
            outcome: outcome::FAST_OPEN_REFUSED,
            moved: 0,
            count: 1,
            sk: frame.sk,
            net: frame.net,
            listener: Identity {
                inode,
                ..Identity::at_port(Plain(frame.net), port)
            },
            by_softirq: false,
            retransmits: 0,
        },
        || Packet::of(frame.skb).map(Peer::from),
    );
}

#[fentry]
fn proven_enter(_: FEntryContext) -> i32 {
    frame::note(|| saw::PROVEN_ASKED);
    0
}

#[kprobe]
fn proven_enter_kprobe(_: ProbeContext) -> u32 {
    frame::note(|| saw::PROVEN_ASKED);
    0
}

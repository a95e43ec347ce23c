//! Step ACK: `tcp_check_req`, which completes a half-open request, and
//! `cookie_v4_check` / `cookie_v6_check`, which make a connection of a cookie that
//! came back. The first puts it into the accept queue, too: that this begins is noted in `wait`.

use aya_ebpf::{
    macros::{fentry, fexit, kprobe, kretprobe},
    programs::{FEntryContext, FExitContext, ProbeContext, RetProbeContext},
};
use queue_trace_common::{
    counter::{self, COOKIE_FAILED, COOKIE_RECV, DROP, EMBRYONIC_RST, Moved, OVERFLOW},
    field, hook, outcome,
};

use super::shells::{alike, decides, nested_exit};
use crate::{
    emit, filter, frame,
    queues::wait,
    read::{
        memory::{self, Plain, Pointer, Typed},
        packet::{self, flag},
    },
    state::{
        config,
        maps::COOKIE_REST,
        tally::Here,
        types::{Call, Frame, saw},
    },
};

/// A packet enters, of a port that is wanted.
#[inline(always)]
fn enter(call: Call, hook: usize, sk: impl Pointer, skb: u64, request: u64) {
    if !filter::netns_of(sk) || !filter::addresses(skb) {
        return frame::skip();
    }
    let opened = frame::open::<{ Call::Ack.counters() }>(call, hook, sk, skb, request);
    if call == Call::Ack
        && config::wants(outcome::ACK_DEFERRED)
        && let Some(frame) = opened
    {
        frame::watch::<{ counter::DEFERRED }>(frame);
    }
}

/// It leaves. `skb` is 0 where the program does not see it, and the listener is then asked
/// of the frame.
#[inline(always)]
fn exit<P: Pointer>(
    call: Call,
    hook: Option<usize>,
    skb: u64,
    returned: impl FnOnce() -> u64,
    listener: impl FnOnce(&Frame) -> P,
) {
    let Some(here) = Here::find() else { return };
    let Some((frame, moved)) =
        frame::close::<{ Call::Ack.counters() }, { Call::Ack.alone() }>(here, call, hook, skb)
    else {
        return;
    };
    let sk = listener(frame);
    let returned = returned();
    let outcome = if call == Call::Cookie {
        decide_cookie(frame, moved, returned)
    } else {
        decide(frame, moved, returned)
    };
    if let Some(outcome) = outcome {
        let (outcome, moved) = frame::forget_range(&mut frame.verdict, outcome, moved);
        emit::packet(here, frame, outcome, moved, sk);
    }
}

/// `tcp_check_req` returns the new connection, the listener itself (an ACK that
/// does not belong to the request; a reset follows), or NULL.
#[inline(always)]
fn decide(frame: &Frame, moved: Moved, returned: u64) -> Option<u8> {
    if returned == frame.sk {
        return None;
    }
    if returned != 0 {
        return Some(outcome::ESTABLISHED_HANDSHAKE);
    }
    if moved & OVERFLOW != 0 {
        return Some(if moved & EMBRYONIC_RST != 0 {
            outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET
        } else {
            outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL
        });
    }
    let dropped = moved & DROP != 0;
    if dropped && frame.saw & saw::NO_CHILD != 0 {
        return Some(outcome::ACK_DROPPED_NO_MEMORY);
    }
    // The connection was made, and either dropped, as the listener had given back its
    // port, or not added, though it was to be: then the listener left LISTEN, or another CPU
    // completed the same request (the packet is looked up again).
    let unwanted = frame.saw & saw::ADDING != 0 || dropped && frame.saw & saw::CHILD != 0;
    if unwanted && !is_listening(frame.sk) {
        return Some(outcome::ACK_DROPPED_LISTENER_CLOSING);
    }
    if dropped {
        return Some(outcome::ACK_DROPPED_OTHER);
    }
    if frame::watched_moved::<{ counter::DEFERRED }>(frame) {
        return Some(outcome::ACK_DEFERRED);
    }
    // A retransmitted SYN, a packet out of window, a reset: no verdict on the handshake.
    None
}

#[inline(always)]
fn is_listening(sk: u64) -> bool {
    let (_, _, listen) = config::tcp_states();
    memory::value::<u8>(sk, field::SK_STATE) == listen
}

/// `cookie_v[46]_check` returns the new connection, NULL, or the listener itself
/// (no cookie, or one that does not validate; a reset follows).
#[inline(always)]
fn decide_cookie(frame: &Frame, moved: Moved, returned: u64) -> Option<u8> {
    if returned == frame.sk {
        if moved & COOKIE_FAILED != 0 {
            return Some(outcome::COOKIE_FAILED_INVALID);
        }
        return (moved & COOKIE_RECV != 0).then_some(outcome::COOKIE_FAILED_OPTIONS);
    }
    if returned != 0 {
        return Some(outcome::ESTABLISHED_COOKIE);
    }
    if moved & OVERFLOW != 0 {
        return Some(outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL);
    }
    (moved & (COOKIE_RECV | DROP) != 0).then_some(outcome::COOKIE_DROPPED_OTHER)
}

/// Of other packets than ACKs the function gives the listener back at once, whatever it is (`!th->ack
/// || th->rst`, net/ipv4/syncookies.c). A reset comes here for each cookie that nobody asked for.
#[inline(always)]
fn enter_cookie(hook: usize, sk: impl Pointer, skb: u64) {
    if packet::flags(skb) & (flag::ACK | flag::RST) != flag::ACK {
        return frame::skip();
    }
    enter(Call::Cookie, hook, sk, skb, 0);
}

#[inline(always)]
fn exit_cookie<P: Pointer>(
    hook: Option<usize>,
    skb: u64,
    returned: impl FnOnce() -> u64,
    listener: impl FnOnce(&Frame) -> P,
) {
    exit(Call::Cookie, hook, skb, returned, listener);
}

// The fourth argument says that `sk` is a fast-open connection, not a listener.

#[fentry]
fn ack_enter(ctx: FEntryContext) -> i32 {
    let sk = Typed(ctx.arg(0));
    if ctx.arg::<u64>(3) as u8 == 0 && filter::port(sk) {
        enter(Call::Ack, hook::ACK, sk, ctx.arg(1), ctx.arg(2));
    }
    0
}

#[fexit]
fn ack_exit(ctx: FExitContext) -> i32 {
    let sk = Typed(ctx.arg(0));
    if ctx.arg::<u64>(3) as u8 == 0 && filter::port(sk) {
        let returned = || memory::returned::<{ hook::ACK }>(&ctx);
        exit(Call::Ack, Some(hook::ACK), ctx.arg(1), returned, |_| sk);
        wait::entered(Some(sk), returned());
    }
    0
}

#[kprobe]
fn ack_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let (Some(sk), Some(skb), Some(request), Some(fast_open)) =
        (ctx.arg(0), ctx.arg(1), ctx.arg(2), ctx.arg::<u64>(3))
        && fast_open as u8 == 0
    {
        let sk = Plain(sk);
        if filter::port(sk) {
            enter(Call::Ack, hook::ACK, sk, skb, request);
        } else {
            // Its exit will not see the listener.
            frame::skip();
        }
    }
    0
}

#[kretprobe]
fn ack_exit_kprobe(ctx: RetProbeContext) -> u32 {
    exit(
        Call::Ack,
        Some(hook::ACK),
        0,
        || ctx.ret(),
        |frame| Plain(frame.sk),
    );
    wait::entered(None, ctx.ret());
    0
}

decides!(enter_cookie exit_cookie, COOKIE_V4 cookie_v4_enter cookie_v4_exit cookie_v4_exit_alone cookie_v4_enter_kprobe cookie_v4_exit_kprobe, COOKIE_REST);
decides!(enter_cookie exit_cookie, COOKIE_V6 cookie_v6_enter cookie_v6_exit cookie_v6_exit_alone cookie_v6_enter_kprobe cookie_v6_exit_kprobe, COOKIE_REST);
alike!(exit_cookie, COOKIE_V4 cookie_rest cookie_rest_kprobe);

nested_exit!(CHILD child_exit child_exit_kprobe |returned| {
    if returned() == 0 { saw::NO_CHILD } else { saw::CHILD }
});

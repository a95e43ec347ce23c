//! Step accept: `inet_csk_accept`, by which the application takes a connection. It
//! runs in the application's context, under the socket's lock, and may sleep.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid},
    macros::{fexit, kprobe, kretprobe},
    programs::{FExitContext, ProbeContext, RetProbeContext},
};
use queue_trace_common::{
    field, hook, outcome,
    record::{self, Record},
};

use crate::{
    emit::{self, Verdict},
    filter,
    queues::{gauge, wait},
    read::{
        memory::{self, Plain, Pointer, Typed},
        socket::{self, Identity},
    },
    state::{config, maps::ACCEPTING, tally},
};

#[inline(always)]
fn exit(sk: impl Pointer, child: u64) {
    if child == 0 || !filter::port(sk) || !filter::netns_of(sk) {
        return;
    }
    let waited_ns = wait::left(child);
    gauge::accept_fell(sk);
    if !emit::matters(outcome::ACCEPTED, 0) {
        return;
    }
    let net = sk.follow::<{ field::SK_NET }>();
    let Some(peer) = socket::peer_of(child) else {
        return;
    };
    if !filter::pair(&peer.local, &peer.client) {
        return;
    }
    emit::verdict_with(
        &Verdict {
            outcome: outcome::ACCEPTED,
            moved: 0,
            count: 1,
            sk: sk.address(),
            net: net.address(),
            listener: Identity::of(sk, net),
            by_softirq: false,
            retransmits: 0,
        },
        waited_ns >= config::slow_ns(),
        || Some(peer),
        |out| who_accepted(out, waited_ns),
    );
}

/// How long it waited, and who took it: accept() runs in the application's own context.
#[inline(always)]
fn who_accepted(out: &mut Record, waited_ns: u64) {
    if waited_ns != 0 {
        out.waited_ns = waited_ns;
        out.present |= record::WAITED;
    }
    if let Ok(comm) = bpf_get_current_comm() {
        out.comm = comm;
        out.pid = (bpf_get_current_pid_tgid() >> 32) as u32;
        out.present |= record::ACCEPTED;
    }
}

#[fexit]
fn accept_exit(ctx: FExitContext) -> i32 {
    let child = memory::returned::<{ hook::ACCEPT }>(&ctx);
    exit(Typed(ctx.arg(0)), child);
    0
}

#[kprobe]
fn accept_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg::<u64>(0) {
        let thread = bpf_get_current_pid_tgid();
        // If there is no room, the exit is counted as unpaired.
        let _ = ACCEPTING.insert(thread, sk, 0);
    }
    0
}

#[kretprobe]
fn accept_exit_kprobe(ctx: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: only this thread writes its own entry; the value is copied out.
    let Some(sk) = (unsafe { ACCEPTING.get(thread) }).copied() else {
        tally::lost(|loss| &mut loss.unpaired);
        return 0;
    };
    // Or an exit whose entry is missed would find the listener of an earlier call.
    let _ = ACCEPTING.remove(thread);
    exit(Plain(sk), ctx.ret());
    0
}

//! Whose listener it is: noted when listen() is called, which runs in the owner's own
//! context (no packet does), and when it is closed.

use aya_ebpf::{
    helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns, generated},
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use queue_trace_common::{
    field,
    queue::{Queue, QueueKey},
};

use super::{gauge, kept};
use crate::{
    filter,
    read::memory::{self, Plain},
    state::{
        listening,
        maps::{ASKED, QUEUES},
        tally,
    },
};

/// A socket begins to listen: the calling thread's process owns it.
#[inline(never)]
pub fn made(sk: u64, net: u64) {
    listening::changes();
    if !filter::netns(Plain(net)) {
        return;
    }
    let key = kept::key_of(Plain(sk));
    let Some(queue) = kept::queue(&key) else {
        return;
    };
    if let Ok(comm) = bpf_get_current_comm() {
        queue.comm = comm;
    }
    let thread = bpf_get_current_pid_tgid();
    queue.pid = (thread >> 32) as u32;
    // SAFETY: only this thread writes its own entry; the value is copied out.
    if let Some(asked) = unsafe { ASKED.get(thread) }.copied() {
        queue.asked = asked;
        // A listener that is made without the call has not asked for it.
        let _ = ASKED.remove(thread);
    }
    // SAFETY: plain helpers without arguments.
    unsafe {
        queue.cgroup = generated::bpf_get_current_cgroup_id();
        queue.made_ns = bpf_ktime_get_ns();
    }
    // It may be one that was shut down, and listens again.
    queue.closed_ns = 0;
    tally::listeners_changed();
}

/// What is kept of a listener that ends. A function of its own, for the verifier's sake.
#[inline(never)]
fn ending(key: &QueueKey, port: u16) -> Option<&'static mut Queue> {
    // SAFETY: as in `queue`.
    if let Some(queue) = QUEUES.get_ptr_mut(key).map(|queue| unsafe { &mut *queue }) {
        return Some(queue);
    }
    if key.inode == 0 || !filter::netns_of(Plain(key.sk)) {
        return None;
    }
    let queue = kept::queue(key)?;
    // One that the kernel chose is given back already.
    queue.port = port;
    Some(queue)
}

/// A socket that listened on that port ends listening. Also one to which nothing came while
/// attached: what comes now will find nobody.
#[inline(always)]
pub fn closed(sk: u64, port: u16) {
    let key = kept::key_of(Plain(sk));
    let Some(queue) = ending(&key, port) else {
        return;
    };
    queue.accept_depth = memory::value(sk, field::SK_DEPTH);
    queue.accept_limit = memory::value(sk, field::SK_LIMIT);
    gauge::no_longer_full(queue);
    // close() says so before it ends listening (net/ipv4/tcp.c, `__tcp_close`); shutdown() and
    // connect() to AF_UNSPEC do not.
    let shutdown = memory::get::<u8>(sk, field::SK_SHUTDOWN).unwrap_or(1);
    queue.released = u16::from(shutdown != 0);
    // SAFETY: a plain helper without arguments.
    queue.closed_ns = unsafe { bpf_ktime_get_ns() };
    tally::listeners_changed();
}

// The system call listen(fd, backlog), which lowers the backlog to somaxconn before anybody
// else sees it.

#[inline(always)]
fn call(backlog: i32) {
    // The oldest makes room: not known is all that follows.
    let _ = ASKED.insert(bpf_get_current_pid_tgid(), backlog, 0);
}

#[fentry]
fn listen_call_enter(ctx: FEntryContext) -> i32 {
    call(ctx.arg::<u64>(1) as i32);
    0
}

#[kprobe]
fn listen_call_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(backlog) = ctx.arg::<u64>(1) {
        call(backlog as i32);
    }
    0
}

// `inet_csk_listen_start` runs in listen(), with the socket's lock held.

#[inline(always)]
fn enter(sk: u64) {
    if let Some(net) = memory::get::<u64>(sk, field::SK_NET) {
        made(sk, net);
    }
}

#[fentry]
fn listen_enter(ctx: FEntryContext) -> i32 {
    enter(memory::plain(ctx.arg(0)));
    0
}

#[kprobe]
fn listen_enter_kprobe(ctx: ProbeContext) -> u32 {
    if let Some(sk) = ctx.arg(0) {
        enter(sk);
    }
    0
}

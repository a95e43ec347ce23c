//! Out of the kernel: exact counts, records, and what was lost.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_log_ebpf::{debug, macro_support::Level};
use queue_trace_common::{
    counter::Moved,
    field,
    record::{self, Record},
    settings::{Address, CountKey, Counted, Loss, RECORD_BURST_NS},
};

use crate::{
    evidence::{self, Frame},
    globals::{self, COUNTS, CPU, LOSS, OVERFLOWED, RECORDS},
    listener, memory,
    packet::Packet,
};

/// The other side of the connection.
pub struct Peer {
    /// The address that the client talks to.
    pub local: Address,
    /// The client's address.
    pub client: Address,
    /// The client's port.
    pub client_port: u16,
}

impl From<Packet> for Peer {
    #[inline(always)]
    fn from(packet: Packet) -> Self {
        Self {
            local: packet.local,
            client: packet.client,
            client_port: packet.client_port,
        }
    }
}

/// A verdict on its way out.
pub struct Verdict {
    /// The outcome's tag.
    pub outcome: u8,
    /// Counters that moved with it.
    pub moved: Moved,
    /// How many events it stands for.
    pub count: u32,
    /// The listener; 0 where it could not be told.
    pub sk: u64,
    /// The network namespace.
    pub net: u64,
    /// The listening port, where there is no listener to ask.
    pub port: u16,
    /// SYN-ACKs retransmitted so far.
    pub retransmits: u8,
}

/// Tells the verdict on the packet of a frame that was closed.
#[inline(always)]
pub fn packet(frame: &mut Frame, outcome: u8, moved: Moved) {
    let skb = frame.skb;
    verdict(
        &Verdict {
            outcome: evidence::through(&mut frame.outcome, outcome),
            moved,
            count: 1,
            sk: frame.sk,
            net: frame.net,
            port: 0,
            retransmits: 0,
        },
        || Packet::of(skb).map(Peer::from),
    );
}

/// Counts a verdict, and sends a record of it if one is wanted. `peer` is asked
/// only then.
#[inline(always)]
pub fn verdict(verdict: &Verdict, peer: impl FnOnce() -> Option<Peer>) {
    let netns: u32 = memory::value(verdict.net, field::NET_ID);
    let mut port = verdict.port;
    let mut inode = 0;
    if verdict.sk != 0 {
        port = memory::value(verdict.sk, field::SK_PORT);
        inode = listener::inode(verdict.sk);
    }
    let key = CountKey {
        netns_cookie: memory::value(verdict.net, field::NET_COOKIE),
        sk: verdict.sk,
        inode,
        netns,
        port,
        outcome: verdict.outcome,
        moved: verdict.moved,
    };
    let counted = count(&key, u64::from(verdict.count));
    if aya_log_ebpf::macro_support::level_enabled(Level::Debug) {
        log(&key, verdict.count);
    }

    if globals::wanted() & (1 << verdict.outcome) == 0 {
        return;
    }
    // SAFETY: a plain helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if !within_allowance(now) {
        return hold(counted, verdict.count);
    }
    let Some(mut entry) = RECORDS.reserve::<Record>(0) else {
        lost(|loss| &mut loss.ring_full);
        return hold(counted, verdict.count);
    };
    // SAFETY: reserved for a Record and ours until submitted; plain data, for which
    // all bytes zero is a value.
    let out = unsafe {
        entry.as_mut_ptr().write_bytes(0, 1);
        &mut *entry.as_mut_ptr()
    };
    out.version = record::VERSION;
    out.mono_ns = now;
    // SAFETY: a plain helper without arguments.
    out.cpu = unsafe { bpf_get_smp_processor_id() };
    out.outcome = verdict.outcome;
    out.moved = verdict.moved;
    out.count = verdict.count;
    out.netns = netns;
    out.port = port;
    out.retransmits = verdict.retransmits;
    if inode != 0 {
        out.inode = inode;
        out.present |= record::INODE;
    }
    if verdict.sk != 0 {
        listener::describe(out, verdict.sk);
    }
    listener::sysctls(out, verdict.net);
    if let Some(peer) = peer() {
        out.local_addr = peer.local;
        out.client_addr = peer.client;
        out.client_port = peer.client_port;
        out.present |= record::PACKET;
    }
    entry.submit(0);
}

/// For `-vv`. Without it the level is a constant to the verifier, which removes the
/// call. A function of its own, for the stack's sake.
#[inline(never)]
fn log(key: &CountKey, count: u32) {
    debug!(
        &(),
        "outcome {} x{} moved {:x} listener {:x} netns {} port {}",
        key.outcome,
        count,
        key.moved,
        key.sk,
        key.netns,
        key.port
    );
}

/// Counts, and gives the place of the count, if there was room for one.
#[inline(always)]
fn count(key: &CountKey, by: u64) -> Option<*mut Counted> {
    if let Some(counted) = COUNTS.get_ptr_mut(key) {
        // SAFETY: this CPU's copy; programs that count run in softirq or under the
        // socket lock, and none interrupts another on the same key.
        unsafe { (*counted).seen += by };
        return Some(counted);
    }
    let first = Counted { seen: by, held: 0 };
    if COUNTS.insert(key, first, 0).is_ok() {
        return COUNTS.get_ptr_mut(key);
    }
    lost(|loss| &mut loss.map_full);
    if let Some(value) = OVERFLOWED.get_ptr_mut(u32::from(key.outcome)) {
        // SAFETY: as above.
        unsafe { *value += by };
    }
    None
}

/// Notes that events are in the counts and not in the stream.
#[inline(always)]
fn hold(counted: Option<*mut Counted>, by: u32) {
    if let Some(counted) = counted {
        // SAFETY: as in `count`.
        unsafe { (*counted).held += u64::from(by) };
    }
}

/// Whether this CPU may send another record: each moves its account forward by the
/// record's cost, and the account may be ahead of the clock by a burst.
#[inline(always)]
fn within_allowance(now: u64) -> bool {
    let cost = globals::record_cost_ns();
    if cost == 0 {
        return true;
    }
    let Some(cpu) = CPU.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: this CPU's copy.
    let account = unsafe { &mut (*cpu).account_ns };
    let from = if *account > now { *account } else { now };
    if from - now > RECORD_BURST_NS {
        return false;
    }
    *account = from + cost;
    true
}

/// Adds one to a loss counter.
#[inline(always)]
pub fn lost(which: impl FnOnce(&mut Loss) -> &mut u64) {
    if let Some(loss) = LOSS.get_ptr_mut(0) {
        // SAFETY: this CPU's copy.
        *which(unsafe { &mut *loss }) += 1;
    }
}

//! Out of the kernel: exact counts, records, and what was lost.

use aya_ebpf::{
    helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_jiffies64},
    maps::ring_buf::RingBufEntry,
};
use aya_log_ebpf::debug;
use queue_trace_common::{
    counter::Moved,
    field,
    record::{self, Record},
    settings::{CountKey, Counted, RECORD_BURST_NS, Slot},
};

use crate::{
    filter,
    read::{
        memory::Pointer,
        packet::{Packet, Peer},
        socket::{self, Identity},
    },
    state::{
        config, listening,
        maps::{BY_NETNS, COUNTS, IF_MISSING, RECORDS, UNLISTED},
        tally::{self, Here},
        types::Frame,
    },
};

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
    /// What tells the listener from others.
    pub listener: Identity,
    /// Whether it comes in softirq, where no other program of this CPU that counts can come
    /// between: then it may have a slot.
    pub by_softirq: bool,
    /// SYN-ACKs retransmitted so far.
    pub retransmits: u8,
}

/// Tells the verdict on the packet of a frame that was closed.
#[inline(always)]
pub fn packet(here: Here, frame: &Frame, outcome: u8, moved: Moved, sk: impl Pointer) {
    if !matters(outcome, moved) {
        return;
    }
    let closed = Closed {
        sk: frame.sk,
        net: frame.net,
        verdict: frame.verdict,
    };
    let listener = || (socket::inode(sk), sk.load::<_, { field::SK_PORT }>());
    let net = || sk.follow::<{ field::SK_NET }>();
    tell(here, &closed, outcome, moved, listener, net, || {
        Packet::of(frame.skb).map(Peer::from)
    });
}

/// A packet whose frame was closed, and what is known of it.
pub struct Closed {
    /// The listener.
    pub sk: u64,
    /// The network namespace.
    pub net: u64,
    /// The verdict; see [`forget_range`](crate::frame::forget_range).
    pub verdict: u32,
}

/// Tells a verdict that [`matters`]. `listener`: its inode number and port; `net`: the namespace,
/// as a pointer; `peer`: who sent it. Neither is asked for most packets of a flood.
#[inline(always)]
pub fn tell<P: Pointer>(
    here: Here,
    closed: &Closed,
    outcome: u8,
    moved: Moved,
    listener: impl Fn() -> (u64, u16),
    net: impl FnOnce() -> P,
    peer: impl FnOnce() -> Option<Peer>,
) {
    let mut ticket = ask(here, outcome, || listener().1, true);
    if ticket.record.is_none()
        && let Some(slot) = known(here, closed)
    {
        slot.counted.seen += 1;
        slot.counted.held += ticket.held;
        return;
    }
    // Before the listener is looked at.
    let now = listening::now();
    let (inode, port) = listener();
    let verdict = Verdict {
        outcome,
        moved,
        count: 1,
        sk: closed.sk,
        net: closed.net,
        listener: Identity {
            inode,
            ..Identity::at_port(net(), port)
        },
        by_softirq: true,
        retransmits: 0,
    };
    if let Some(record) = &mut ticket.record {
        fill(record, &verdict, peer, |_| {});
    }
    let is_counted = count(here, &verdict, ticket.held, now);
    ticket.send_if(is_counted);
}

/// The slot of a verdict whose listener was looked at since a socket last began or ended listening:
/// it is the same still, and so is its namespace.
#[inline(always)]
fn known(here: Here, closed: &Closed) -> Option<&'static mut Slot> {
    if config::softirqs_mix() || !config::sees_listening() {
        return None;
    }
    let now = listening::now();
    for index in places(closed.sk, closed.verdict as u8) {
        let slot = here.slot(index);
        let key = &slot.key;
        if slot.looked_at == now
            && key.sk == closed.sk
            && what_of(key) >> 16 == closed.verdict
            && key.netns != 0
        {
            return Some(slot);
        }
    }
    None
}

/// Port, outcome and counters of a key, in one word.
#[inline(always)]
fn what_of(key: &CountKey) -> u32 {
    const {
        assert!(core::mem::offset_of!(CountKey, port) % 4 == 0);
        assert!(core::mem::offset_of!(CountKey, port) + 4 == size_of::<CountKey>());
        assert!(core::mem::offset_of!(CountKey, moved) + 1 == size_of::<CountKey>());
        assert!(cfg!(target_endian = "little"));
    }
    // SAFETY: the key's last four bytes, whose place is that of a word.
    unsafe {
        (&raw const *key)
            .cast::<u32>()
            .add(size_of::<CountKey>() / 4 - 1)
            .read()
    }
}

/// Counts a verdict, and sends a record of it if one is wanted. `peer` is asked
/// only then.
#[inline(always)]
pub fn verdict(what: &Verdict, peer: impl FnOnce() -> Option<Peer>) {
    verdict_with(what, true, peer, |_| {});
}

/// The same for a verdict that is not `shown` whenever its outcome is, and of which there
/// is `more` to say.
#[inline(always)]
pub fn verdict_with(
    verdict: &Verdict,
    shown: bool,
    peer: impl FnOnce() -> Option<Peer>,
    more: impl FnOnce(&mut Record),
) {
    if !matters(verdict.outcome, verdict.moved) {
        return;
    }
    let Some(here) = Here::find() else { return };
    let mut ticket = ask(here, verdict.outcome, || verdict.listener.port, shown);
    if let Some(record) = &mut ticket.record {
        fill(record, verdict, peer, more);
    }
    let held = ticket.held * u64::from(verdict.count);
    let is_counted = count(here, verdict, held, listening::NEVER);
    ticket.send_if(is_counted);
}

/// Whether a record goes with a verdict. It is filled before the verdict is counted, and sent after:
/// so the verifier follows what fills it once, and not once for each place of a count.
struct Ticket {
    /// Room for it.
    record: Option<RingBufEntry<Record>>,
    /// 1: one was wanted, and is not in the stream.
    held: u64,
}

impl Ticket {
    const NONE: Self = Self {
        record: None,
        held: 0,
    };

    const HELD: Self = Self {
        record: None,
        held: 1,
    };

    #[inline(always)]
    fn send_if(self, is_counted: bool) {
        if let Some(record) = self.record {
            if is_counted {
                record.submit(0);
            } else {
                record.discard(0);
            }
        }
    }
}

/// Asks for a record, if one is wanted and may be sent.
#[inline(always)]
fn ask(here: Here, outcome: u8, port: impl FnOnce() -> u16, shown: bool) -> Ticket {
    if config::debug() {
        log(outcome, port());
    }
    if !shown || !wanted(outcome) {
        return Ticket::NONE;
    }
    let Some(now) = within_allowance(here) else {
        return Ticket::HELD;
    };
    let Some(mut record) = RECORDS.reserve::<Record>(0) else {
        tally::lost(|loss| &mut loss.records);
        return Ticket::HELD;
    };
    // SAFETY: reserved for a Record and ours until submitted; plain data of whole words, for
    // which all zero is a value. Volatile, as the compiler would else call a function that
    // writes byte by byte.
    let out = unsafe {
        let words = record.as_mut_ptr().cast::<u64>();
        for word in 0..record::SIZE / 8 {
            words.add(word).write_volatile(0);
        }
        &mut *record.as_mut_ptr()
    };
    out.mono_ns = now;
    Ticket {
        record: Some(record),
        held: 0,
    }
}

/// Says all of a verdict in its record.
#[inline(always)]
fn fill(
    record: &mut RingBufEntry<Record>,
    verdict: &Verdict,
    peer: impl FnOnce() -> Option<Peer>,
    more: impl FnOnce(&mut Record),
) {
    // SAFETY: set to zero by `ask`.
    let out = unsafe { &mut *record.as_mut_ptr() };
    out.version = record::VERSION;
    // SAFETY: a plain helper without arguments.
    out.cpu = unsafe { bpf_get_smp_processor_id() };
    out.outcome = verdict.outcome;
    out.moved = verdict.moved;
    out.count = verdict.count;
    out.netns = verdict.listener.netns;
    out.port = verdict.listener.port;
    out.retransmits = verdict.retransmits;
    if verdict.listener.inode != 0 {
        out.inode = verdict.listener.inode;
        out.present |= record::INODE;
    }
    if verdict.sk != 0 {
        socket::describe(out, verdict.sk);
    }
    socket::sysctls(out, verdict.net);
    more(out);
    if let Some(peer) = peer() {
        out.local_addr = peer.local;
        out.client_addr = peer.client;
        out.client_port = peer.client_port;
        out.present |= record::PACKET;
    }
}

/// Whether anybody asks for it, or the ledger would miss it.
#[inline(always)]
pub fn matters(outcome: u8, moved: Moved) -> bool {
    moved != 0 || wanted(outcome)
}

#[inline(always)]
fn wanted(outcome: u8) -> bool {
    config::wanted() & (1 << outcome) != 0
}

/// For `-vv`. Without it nobody asks, which is a constant to the verifier: it removes the
/// call. A function of its own, for the stack's sake.
#[inline(never)]
fn log(outcome: u8, port: u16) {
    debug!(&(), "outcome {} port {}", outcome, port);
}

/// Where a count begins.
static NOTHING_COUNTED: Counted = Counted { seen: 0, held: 0 };

/// Counts, with how many of them were `held` back. Whether it is to be counted at all. `looked_at`:
/// when the listener was looked at, see [`listening`].
#[inline(always)]
fn count(here: Here, verdict: &Verdict, held: u64, looked_at: u64) -> bool {
    let Identity {
        inode,
        netns_cookie,
        netns,
        port,
    } = verdict.listener;
    let key = &CountKey {
        netns_cookie,
        // A socket without an inode is closed: what still comes of it is counted by its port, as
        // nobody would know when the place can be given back.
        sk: if inode == 0 { 0 } else { verdict.sk },
        inode,
        netns,
        port,
        outcome: verdict.outcome,
        moved: verdict.moved,
    };
    let by = Counted {
        seen: u64::from(verdict.count),
        held,
    };
    // Where softirqs mix one may come between after all.
    if verdict.by_softirq && !config::softirqs_mix() {
        let Some(slot) = slot(here, key, verdict.net, looked_at) else {
            return false;
        };
        if let Some(counted) = slot {
            // SAFETY: this CPU's copy, and nothing comes between.
            unsafe { (*counted).add(&by) };
            return true;
        }
    }
    let mut place = COUNTS.get_ptr_mut(key);
    if place.is_none() {
        if filter::is_foreign_self_test(verdict.net) {
            return false;
        }
        // If there is no room, nothing is found below.
        let _ = COUNTS.insert(key, &NOTHING_COUNTED, IF_MISSING);
        place = COUNTS.get_ptr_mut(key);
    }
    if let Some(counted) = place {
        add(counted, &by);
        tally::counts_changed();
    } else {
        by_port(key, &by);
    }
    true
}

/// Adds to a count to which other CPUs may add, too.
#[inline(always)]
fn add(counted: *mut Counted, by: &Counted) {
    // SAFETY: found in a map, and only added to, by one instruction a word. No other reference to
    // the words lives meanwhile.
    let (seen, held) = unsafe { (&mut (*counted).seen, &mut (*counted).held) };
    tally::add(seen, by.seen);
    if by.held != 0 {
        tally::add(held, by.held);
    }
}

/// Counts what found no room by listener by its port, or else by its namespace alone. Rare, so a
/// function of its own.
#[inline(never)]
fn by_port(key: &CountKey, by: &Counted) {
    let mut key = *key;
    for word in [&raw mut key.sk, &raw mut key.inode] {
        // SAFETY: words of the key. Volatile, as the compiler would else call a function that
        // writes byte by byte.
        unsafe { word.write_volatile(0) };
    }
    let mut place = UNLISTED.get_ptr_mut(&key);
    if place.is_none() {
        // If there is no room, nothing is found below.
        let _ = UNLISTED.insert(&key, &NOTHING_COUNTED, IF_MISSING);
        place = UNLISTED.get_ptr_mut(&key);
    }
    if place.is_none() {
        key.port = 0;
        place = BY_NETNS.get_ptr_mut(&key);
    }
    if place.is_none() {
        let _ = BY_NETNS.insert(&key, &NOTHING_COUNTED, IF_MISSING);
        place = BY_NETNS.get_ptr_mut(&key);
    }
    let Some(counted) = place else {
        return tally::lost_many(by.seen, |loss| &mut loss.uncounted);
    };
    add(counted, by);
    tally::lost_many(by.seen, |loss| &mut loss.by_port);
    tally::counts_changed();
}

/// The slot of a key, if it has it or can have it. `None`: it is not to be counted.
#[inline(always)]
fn slot(here: Here, key: &CountKey, net: u64, looked_at: u64) -> Option<Option<*mut Counted>> {
    for index in places(key.sk, key.outcome) {
        let slot = here.slot(index);
        if slot.key.netns == 0 {
            if filter::is_foreign_self_test(net) {
                return None;
            }
            slot.key = *key;
        }
        if slot.key == *key {
            // Without a listener it is not known by its address.
            slot.looked_at = if key.sk == 0 {
                listening::NEVER
            } else {
                looked_at
            };
            return Some(Some(&raw mut slot.counted));
        }
    }
    Some(None)
}

/// Where the slot of a listener's outcome may be. A listener is some KiB large; its outcomes are
/// spread by their own number. Where two keys meet, the second has another place.
#[inline(always)]
fn places(sk: u64, outcome: u8) -> [usize; 2] {
    let hash = (sk >> 6 ^ sk >> 12 ^ u64::from(outcome)) as usize;
    [hash, hash.wrapping_mul(0x9e37_79b9) >> 8]
}

/// The time, if this CPU may send another record: each moves its account forward by the
/// record's cost, and the account may be ahead of the clock by a burst. Once it is, the
/// clock, which takes its time, is not asked again within the same tick of the kernel.
#[inline(always)]
fn within_allowance(here: Here) -> Option<u64> {
    let cost = config::record_cost_ns();
    if cost == 0 {
        // SAFETY: a plain helper without arguments.
        return Some(unsafe { bpf_ktime_get_ns() });
    }
    let own = here.own();
    // accept() is interrupted by packets, which use the same account. Each word is read once
    // and written whole, so a record too many is the worst that comes of it.
    // SAFETY: this CPU's copy, of plain words.
    let (account, used_up_at) = unsafe { (&raw mut (*own).account_ns, &raw mut (*own).used_up_at) };
    // SAFETY: a plain helper without arguments; a load, once verified.
    let tick = unsafe { bpf_jiffies64() };
    // SAFETY: as above.
    if unsafe { used_up_at.read_volatile() } == tick {
        return None;
    }
    // SAFETY: as above.
    let until = unsafe { account.read_volatile() };
    // SAFETY: as above.
    let now = unsafe { bpf_ktime_get_ns() };
    let from = if until > now { until } else { now };
    if from - now > RECORD_BURST_NS {
        // SAFETY: as above.
        unsafe { used_up_at.write_volatile(tick) };
        return None;
    }
    // SAFETY: as above.
    unsafe { account.write_volatile(from + cost) };
    Some(now)
}

//! Out of the kernel: exact counts, records, and what was lost.

use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns, generated::bpf_jiffies64};
use aya_log_ebpf::debug;
use queue_trace_common::{
    counter::Moved,
    field,
    record::{self, Record},
    settings::{self, CountKey, Counted, RECORD_BURST_NS, Slot},
};

use crate::{
    filter,
    read::{
        memory::Pointer,
        packet::{Packet, Peer},
        socket::{self, Identity},
    },
    state::{
        config,
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

/// Tells the verdict on the packet of a frame that was closed. `inode`: the listener's.
#[inline(always)]
pub fn packet(
    here: Here,
    frame: &mut Frame,
    outcome: u8,
    moved: Moved,
    sk: impl Pointer,
    inode: u64,
) {
    if !matters(outcome, moved) {
        return;
    }
    let skb = frame.skb;
    let port = sk.load::<_, { field::SK_PORT }>();
    let of = |listener| Verdict {
        outcome,
        moved,
        count: 1,
        sk: frame.sk,
        net: frame.net,
        listener,
        by_softirq: true,
        retransmits: 0,
    };
    let (verdict, place) = if let Some(slot) = latest(here, frame, inode, port) {
        slot.counted.seen += 1;
        let listener = Identity {
            inode,
            netns_cookie: slot.key.netns_cookie,
            netns: slot.key.netns,
            port,
        };
        let place = Place {
            counted: &raw mut slot.counted,
            in_slot: true,
        };
        (of(listener), Some(place))
    } else {
        let verdict = of(Identity {
            inode,
            ..Identity::at_port(sk.follow::<{ field::SK_NET }>(), port)
        });
        let Some(place) = count(here, &verdict, &mut frame.latest) else {
            return;
        };
        (verdict, place)
    };
    tell(
        here,
        &verdict,
        place,
        true,
        || Packet::of(skb).map(Peer::from),
        |_| {},
    );
}

/// The slot that was counted in last on this CPU, if a verdict is to be counted there again. A
/// socket that is known by its address and its inode number stays in its namespace.
#[inline(always)]
fn latest(here: Here, frame: &Frame, inode: u64, port: u16) -> Option<&'static mut Slot> {
    if config::softirqs_mix() || inode == 0 {
        return None;
    }
    let slot = here.slot(frame.latest as usize);
    let key = &slot.key;
    let what = u32::from(port) | frame.verdict << 16;
    (key.sk == frame.sk && key.inode == inode && what_of(key) == what && key.netns != 0)
        .then_some(slot)
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
    if let Some(here) = Here::find()
        && let Some(place) = count(here, verdict, &mut 0)
    {
        tell(here, verdict, place, shown, peer, more);
    }
}

/// Sends a record of a verdict that was counted, if one is wanted.
#[inline(always)]
fn tell(
    here: Here,
    verdict: &Verdict,
    counted: Option<Place>,
    shown: bool,
    peer: impl FnOnce() -> Option<Peer>,
    more: impl FnOnce(&mut Record),
) {
    if config::debug() {
        log(verdict.outcome, verdict.listener.port);
    }

    if !shown || !wanted(verdict.outcome) {
        return;
    }
    let Some(now) = within_allowance(here) else {
        return hold(counted, verdict.count);
    };
    let Some(mut entry) = RECORDS.reserve::<Record>(0) else {
        tally::lost(|loss| &mut loss.records);
        return hold(counted, verdict.count);
    };
    // SAFETY: reserved for a Record and ours until submitted; plain data of whole words, for
    // which all zero is a value. Volatile, as the compiler would else call a function that
    // writes byte by byte.
    let out = unsafe {
        let words = entry.as_mut_ptr().cast::<u64>();
        for word in 0..record::SIZE / 8 {
            words.add(word).write_volatile(0);
        }
        &mut *entry.as_mut_ptr()
    };
    out.version = record::VERSION;
    out.mono_ns = now;
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
    entry.submit(0);
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

/// Where a verdict was counted.
struct Place {
    counted: *mut Counted,
    /// In a slot, which is read anyway; else in the map, which is only searched when it changed.
    in_slot: bool,
}

/// Where a count begins.
static NOTHING_COUNTED: Counted = Counted { seen: 0, held: 0 };

/// Counts, and gives the place of the count, if there was room for one. `None`: it is not to be
/// counted. `latest`: for the slot's number, if it has one.
#[inline(always)]
fn count(here: Here, verdict: &Verdict, latest: &mut u64) -> Option<Option<Place>> {
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
    let by = u64::from(verdict.count);
    // Where softirqs mix one may come between after all.
    if verdict.by_softirq
        && !config::softirqs_mix()
        && let Some(counted) = slot(here, key, verdict.net, latest)?
    {
        // SAFETY: this CPU's copy, and nothing comes between.
        unsafe { (*counted).seen += by };
        return Some(Some(Place {
            counted,
            in_slot: true,
        }));
    }
    let mut place = COUNTS.get_ptr_mut(key);
    if place.is_none() {
        if filter::is_foreign_self_test(verdict.net) {
            return None;
        }
        // If there is no room, nothing is found below.
        let _ = COUNTS.insert(key, &NOTHING_COUNTED, IF_MISSING);
        place = COUNTS.get_ptr_mut(key);
    }
    if let Some(counted) = place {
        // SAFETY: this CPU's copy. What counts the outcomes of packets runs with bottom halves
        // off, where none interrupts another; what counts accept() and close() is one program
        // each, and the kernel lets none interrupt itself on a CPU. So no two are at the same
        // key. Where softirqs mix that holds by the second reason for each hook.
        unsafe { (*counted).seen += by };
        tally::counts_changed();
        return Some(Some(Place {
            counted,
            in_slot: false,
        }));
    }
    Some(by_port(key, by))
}

/// Counts what found no room by listener by its port, or else by its namespace alone. Rare, so a
/// function of its own.
#[inline(never)]
fn by_port(key: &CountKey, by: u64) -> Option<Place> {
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
        tally::lost_many(by, |loss| &mut loss.uncounted);
        return None;
    };
    // SAFETY: as in `count`.
    unsafe { (*counted).seen += by };
    tally::lost_many(by, |loss| &mut loss.by_port);
    tally::counts_changed();
    Some(Place {
        counted,
        in_slot: false,
    })
}

/// The slot of a key, if it has it or can have it. `None`: it is not to be counted. `latest`: for
/// its number.
#[inline(always)]
fn slot(here: Here, key: &CountKey, net: u64, latest: &mut u64) -> Option<Option<*mut Counted>> {
    // A listener is some KiB large; its outcomes are spread by their own number. Where two keys
    // meet, the second has another place.
    let hash = (key.sk >> 6 ^ key.sk >> 12 ^ u64::from(key.outcome)) as usize;
    for index in [hash, hash.wrapping_mul(0x9e37_79b9) >> 8] {
        let slot = here.slot(index);
        if slot.key.netns == 0 {
            if filter::is_foreign_self_test(net) {
                return None;
            }
            slot.key = *key;
        }
        if slot.key == *key {
            *latest = (index % settings::SLOTS) as u64;
            return Some(Some(&raw mut slot.counted));
        }
    }
    Some(None)
}

/// Notes that events are in the counts and not in the stream.
#[inline(always)]
fn hold(place: Option<Place>, by: u32) {
    if let Some(Place { counted, in_slot }) = place {
        // SAFETY: as in `count`.
        unsafe { (*counted).held += u64::from(by) };
        if !in_slot {
            tally::counts_changed();
        }
    }
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

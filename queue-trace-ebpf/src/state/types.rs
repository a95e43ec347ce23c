//! What the maps hold that only the kernel side sees.

use queue_trace_common::{
    counter::{self, Moved, OVERFLOW},
    outcome::{self, OUTCOMES, Step},
    queue::QueueKey,
    settings::{Address, OWN, Tally},
};

/// Values of the counters, in the order of [`counter::COUNTERS`].
pub type Counters = [u64; counter::COUNT];

/// What a frame was opened for.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Call {
    /// Nothing: no frame is open, or the packet is filtered out.
    None = 0,
    /// `tcp_v4_conn_request` and its relatives.
    Syn,
    /// `tcp_check_req`.
    Ack,
    /// `cookie_v4_check`, `cookie_v6_check`.
    Cookie,
    /// `reqsk_timer_handler`.
    Timer,
    /// `tcp_req_err`.
    Icmp,
}

impl Call {
    /// The counters that its outcomes move, or may move.
    pub const fn counters(self) -> Moved {
        self.counters_with(0)
    }

    /// Those of its counters that none of its outcomes moves with [`OVERFLOW`].
    pub const fn alone(self) -> Moved {
        self.counters() & !self.counters_with(OVERFLOW)
    }

    /// The counters of its outcomes that move, or may move, others.
    const fn counters_with(self, others: Moved) -> Moved {
        let step = match self {
            Self::None => return 0,
            Self::Syn => Step::Syn,
            Self::Ack | Self::Cookie => Step::Ack,
            Self::Timer => Step::Timer,
            Self::Icmp => Step::Icmp,
        };
        let mut counters = 0;
        let mut tag = 0;
        while tag < outcome::COUNT {
            let outcome = &OUTCOMES[tag];
            let moves = outcome.moves | outcome.may_move;
            if outcome.step as u8 == step as u8 && moves & others == others {
                counters |= moves;
            }
            tag += 1;
        }
        counters
    }
}

/// A nested function that was called, or what it returned.
pub mod saw {
    /// A request was allocated.
    pub const ALLOC: u32 = 1 << 0;
    /// A security module refused.
    pub const REFUSED: u32 = 1 << 2;
    /// `tcp_peer_is_proven` was asked, which only the last-quarter rule does.
    pub const PROVEN_ASKED: u32 = 1 << 3;
    /// The request entered the SYN queue.
    pub const QUEUED: u32 = 1 << 4;
    /// The request was in the SYN queue already.
    pub const DUPLICATE: u32 = 1 << 5;
    /// The connection could not be allocated.
    pub const NO_CHILD: u32 = 1 << 6;
    /// It was made.
    pub const CHILD: u32 = 1 << 9;
    /// `inet_csk_complete_hashdance` was called, which gives what `tcp_check_req` then returns.
    pub const ADDING: u32 = 1 << 7;
    /// The SYN-ACK was sent again.
    pub const RETRANSMITTED: u32 = 1 << 8;
    /// No function: a counter of [`SOLE`](queue_trace_common::counter::SOLE) is watched.
    pub const WATCHES: u32 = 1 << 10;
}

/// What is remembered of the packet in hand.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Frame {
    /// What the frame was opened for; a [`Call`].
    pub call: u32,
    /// The verdict; see [`forget_range`](crate::frame::forget_range).
    pub verdict: u32,
    /// Nested functions seen; [`saw`].
    pub saw: u32,
    /// The hook that opened it.
    pub hook: u32,
    /// The listener.
    pub sk: u64,
    /// The packet.
    pub skb: u64,
    /// The half-open request, where there is one.
    pub request: u64,
    /// The network namespace.
    pub net: u64,
    /// This CPU's counters of that namespace.
    pub counters: u64,
    /// Their values at entry.
    pub before: Counters,
    /// Their values at the return.
    pub after: Counters,
    /// The half-open request whose timer fired: it may be gone when the timer ends.
    pub of: Request,
    /// Where softirqs mix: the counters when the task was taken off its CPU.
    pub paused: Counters,
    /// and how often it was put back.
    pub pauses: u64,
    /// The counter of [`SOLE`](counter::SOLE) that is watched, at entry.
    pub sole: u64,
    /// Where softirqs mix: when the task was taken off its CPU,
    pub sole_paused: u64,
    /// and when the frame was closed.
    pub sole_after: u64,
}

/// What only the kernel side sees of a CPU's memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Own {
    /// The packet in hand, except where softirqs mix.
    pub frame: Frame,
    /// The same in tracepoint mode.
    pub delivered: Delivered,
    /// See [`per_cpu_offset`](crate::read::memory::per_cpu_offset); kept, as it never changes.
    pub offset: u64,
    /// Until when the records sent so far use up the allowance.
    pub account_ns: u64,
    /// The kernel's tick at which it was found used up.
    pub used_up_at: u64,
    /// The outcome that the reason for freeing a packet tells, while it is passed through.
    pub refused: u64,
}

const _: () = assert!(size_of::<Own>() <= 64 * OWN && align_of::<Own>() <= align_of::<Tally>());

/// A half-open request, copied.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Request {
    /// The address that the client talks to.
    pub local: Address,
    /// The client's address.
    pub client: Address,
    /// The client's port.
    pub client_port: u16,
    /// SYN-ACKs retransmitted so far.
    pub retransmits: u8,
    /// Padding.
    pub _pad: [u8; 5],
}

/// The connection that is entering a queue on this CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Entering {
    /// Its `struct sock`; 0: filtered out.
    pub child: u64,
    /// The listener.
    pub listener: QueueKey,
    /// How long its handshake took, microseconds; see [`UNKNOWN`](crate::queues::gauge::UNKNOWN).
    pub took_us: u64,
}

/// A port of a namespace.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Port {
    /// What tells the namespace from an earlier one of its number.
    pub netns_cookie: u64,
    /// The namespace's number.
    pub netns: u32,
    /// Host order.
    pub port: u16,
    /// Padding.
    pub _pad: u16,
}

/// Where a listener is looked up by a packet's destination.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ListenerKey {
    /// The address it is bound to; `0.0.0.0` and `::` take what is sent to any.
    pub addr: Address,
    /// `struct net`.
    pub net: u64,
    /// Host order.
    pub port: u16,
    /// Padding.
    pub _pad: [u16; 3],
}

/// The listeners that share an address and a port.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Sharing {
    /// The sum of the addresses of their `struct sock`: of one, its address.
    pub sockets: u64,
    /// How many there are.
    pub count: u64,
    /// How many of them take only what comes by one device.
    pub on_devices: u64,
}

/// The packet that a listener, or the kernel's ICMP, has in hand on this CPU.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Delivered {
    /// The packet; 0: none.
    pub skb: u64,
    /// The listener; 0: it is an ICMP error.
    pub sk: u64,
    /// The network namespace.
    pub net: u64,
    /// This CPU's counters of it.
    pub counters: u64,
    /// The connection that was made for it; 0: none (yet).
    pub child: u64,
    /// The listener's inode number.
    pub inode: u64,
    /// Counters before.
    pub before: Counters,
    /// Counters at the end.
    pub after: Counters,
    /// The counter of [`SOLE`](counter::SOLE) that is watched, before.
    pub sole: u64,
    /// The verdict; see [`forget_range`](crate::frame::forget_range).
    pub verdict: u32,
    /// The listener's port.
    pub port: u16,
    /// TCP flags.
    pub flags: u8,
    /// 1: a counter of [`SOLE`](counter::SOLE) is watched.
    pub watches: u8,
}

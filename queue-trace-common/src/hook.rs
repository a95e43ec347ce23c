//! The registry of hooks: every kernel function that is watched, the prototype that
//! is relied on, and the programs that watch it.
//!
//! Prototypes are checked against the running kernel's BTF before anything is
//! attached; a function that changed beyond what is listed is refused by name.

use crate::outcome::{self, Set};

/// What goes without the hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A main verdict.
    Main,
    /// A finer cause: without it the verdict says `other`.
    Cause,
    /// Nothing: kernels have the function only with an optional part (MPTCP, security
    /// modules), and without that part there is nothing to see.
    Optional,
}

/// One row of the registry.
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    /// Its index in [`HOOKS`].
    pub index: usize,
    /// Its programs are `NAME_enter` and `NAME_exit` (either may be missing), with
    /// `_kprobe` behind in the second family.
    pub name: &'static str,
    /// The kernel function.
    pub function: &'static str,
    /// The arguments that are read, first to last: `*name` a pointer to that
    /// struct, else the name of the scalar's type.
    pub arguments: &'static [&'static str],
    /// Fewest and most arguments of the prototypes known.
    pub arity: (u8, u8),
    /// What goes without it.
    pub need: Need,
    /// The outcomes that it serves: those that it sees, or, if it is one of [`TELLING`], that
    /// cannot be told from others without it.
    pub serves: Set,
}

macro_rules! hooks {
    ($($konst:ident $name:literal $function:literal [$($argument:literal),*] $arity:expr, $need:ident, $serves:expr;)*) => {
        /// Every hook, at its index.
        pub static HOOKS: [Hook; COUNT] = [
            $(Hook {
                index: $konst,
                name: $name,
                function: $function,
                arguments: &[$($argument),*],
                arity: $arity,
                need: Need::$need,
                serves: $serves,
            },)*
        ];
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "only numbers the constants")]
        enum Index { $($konst,)* COUNT }
        /// How many hooks there are.
        pub const COUNT: usize = Index::COUNT as usize;
        $(
            #[doc = concat!("Index of `", $function, "`.")]
            pub const $konst: usize = Index::$konst as usize;
        )*
    };
}

// What the functions that decide on a packet can decide.
const SYN: Set = bits(&[
    outcome::COOKIE_SENT_FULL,
    outcome::COOKIE_SENT_ALWAYS,
    outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::SYN_DROPPED_SYN_QUEUE_FULL,
    outcome::SYN_DROPPED_OTHER,
    outcome::ESTABLISHED_FAST_OPEN,
    outcome::FAST_OPEN_REFUSED,
]);
const ACK_STEP: Set = bits(&[
    outcome::ESTABLISHED_HANDSHAKE,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    outcome::ACK_DROPPED_OTHER,
    outcome::ACK_DEFERRED,
]);
const COOKIE: Set = bits(&[
    outcome::ESTABLISHED_COOKIE,
    outcome::COOKIE_FAILED_INVALID,
    outcome::COOKIE_FAILED_OPTIONS,
    outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::COOKIE_DROPPED_OTHER,
]);
const NOBODY: Set = bits(&[outcome::SYN_REFUSED_NO_LISTENER]);
const TIMERS: Set = bits(&[outcome::SYNACK_RETRANSMITTED, outcome::REQUEST_EXPIRED]);

const fn bits(tags: &[u8]) -> Set {
    let mut set = 0;
    let mut index = 0;
    while index < tags.len() {
        set |= 1 << tags[index];
        index += 1;
    }
    set
}

hooks! {
    SYN_V4 "syn_v4" "tcp_v4_conn_request" ["*sock", "*sk_buff"] (2, 2), Main, SYN;
    SYN_V6 "syn_v6" "tcp_v6_conn_request" ["*sock", "*sk_buff"] (2, 2), Main, SYN;
    SYN_MPTCP4 "syn_mptcp4" "subflow_v4_conn_request" ["*sock", "*sk_buff"] (2, 2), Optional, SYN;
    SYN_MPTCP6 "syn_mptcp6" "subflow_v6_conn_request" ["*sock", "*sk_buff"] (2, 2), Optional, SYN;
    ALLOC "alloc" "inet_reqsk_alloc" ["*request_sock_ops", "*sock"] (3, 3), Cause,
        bits(&[
            outcome::SYN_DROPPED_NO_MEMORY,
            outcome::SYN_DROPPED_NOT_UNICAST,
            outcome::SYN_DROPPED_NO_ROUTE,
            outcome::ESTABLISHED_FAST_OPEN,
            outcome::FAST_OPEN_REFUSED,
        ]);
    SECURITY "security" "security_inet_conn_request" ["*sock"] (3, 3), Optional,
        bits(&[outcome::SYN_DROPPED_SECURITY, outcome::SYN_DROPPED_NO_ROUTE]);
    PROVEN "proven" "tcp_peer_is_proven" [] (2, 2), Cause,
        bits(&[outcome::SYN_DROPPED_LAST_QUARTER, outcome::SYN_DROPPED_NO_ROUTE]);
    HASH_ADD "hash_add" "inet_csk_reqsk_queue_hash_add" [] (2, 3), Main,
        bits(&[outcome::QUEUED, outcome::SYN_DROPPED_DUPLICATE, outcome::ESTABLISHED_FAST_OPEN]);
    ACK "ack" "tcp_check_req" ["*sock", "*sk_buff", "*request_sock", "bool"] (5, 6), Main, ACK_STEP;
    CHILD "child" "tcp_create_openreq_child" [] (3, 3), Cause,
        bits(&[outcome::ACK_DROPPED_NO_MEMORY, outcome::ACK_DROPPED_LISTENER_CLOSING]);
    HASHDANCE "hashdance" "inet_csk_complete_hashdance" ["*sock", "*sock", "*request_sock", "bool"] (4, 4), Cause,
        bits(&[outcome::ACK_DROPPED_LISTENER_CLOSING]);
    COOKIE_V4 "cookie_v4" "cookie_v4_check" ["*sock", "*sk_buff"] (2, 2), Main, COOKIE;
    COOKIE_V6 "cookie_v6" "cookie_v6_check" ["*sock", "*sk_buff"] (2, 2), Main, COOKIE;
    TIMER "timer" "reqsk_timer_handler" ["*timer_list"] (1, 1), Cause, TIMERS;
    ICMP "icmp" "tcp_req_err" ["*sock"] (3, 3), Cause, bits(&[outcome::REQUEST_ABORTED]);
    ACCEPT "accept" "inet_csk_accept" ["*sock"] (2, 4), Main, bits(&[outcome::ACCEPTED]);
    STOP "stop" "inet_csk_listen_stop" ["*sock"] (1, 1), Cause,
        bits(&[outcome::QUEUE_DISCARDED, outcome::SYN_REFUSED_NO_LISTENER]);
    LISTEN_CALL "listen_call" "__sys_listen" ["int", "int"] (2, 2), Optional, 0;
    LISTEN "listen" "inet_csk_listen_start" ["*sock"] (1, 2), Cause, 0;
    QUEUE_ADD "queue_add" "inet_csk_reqsk_queue_add" ["*sock", "*request_sock", "*sock"] (3, 3), Cause, 0;
    FORGET "forget" "inet_child_forget" ["*sock", "*request_sock", "*sock"] (3, 3), Cause, 0;
    RESET_V4 "reset_v4" "tcp_v4_send_reset" ["*sock", "*sk_buff"] (2, 3), Cause, NOBODY;
    RESET_V6 "reset_v6" "tcp_v6_send_reset" ["*sock", "*sk_buff"] (2, 3), Cause, NOBODY;
}

/// The hooks by which the statistics of the queues are kept, whatever outcomes are wanted.
pub const KEEP_QUEUES: [usize; 8] = [
    ACK,
    HASHDANCE,
    ACCEPT,
    STOP,
    LISTEN_CALL,
    LISTEN,
    QUEUE_ADD,
    FORGET,
];

/// The hooks of functions that are called within those that decide: that they were called, or
/// what they returned, tells causes apart. And that of the end of a listener, after which a port is
/// one that has nobody. An outcome needs all those that serve it.
pub const TELLING: [usize; 7] = [ALLOC, SECURITY, PROVEN, HASH_ADD, CHILD, HASHDANCE, STOP];

/// Hooks that are not attached where the kernel has another one, which tells the same. It asks its
/// security modules about a request that it has allocated, before it does anything else with it
/// (`tcp_conn_request`, net/ipv4/tcp_input.c).
pub const TOLD_BY: [(usize, usize); 1] = [(ALLOC, SECURITY)];

/// Hooks at one end of whose functions the same is to be done. Where the functions have one
/// prototype, the program of each goes on in one that they share, so that the kernel verifies it
/// once.
pub struct Alike {
    /// That program.
    pub rest: &'static str,
    /// The end at which it is done, as the programs' names have it.
    pub end: &'static str,
    /// The hooks.
    pub hooks: &'static [usize],
}

/// All that are alike.
pub static ALIKE: [Alike; 3] = [
    Alike {
        rest: "syn_rest",
        end: "exit",
        hooks: &[SYN_V4, SYN_V6, SYN_MPTCP4, SYN_MPTCP6],
    },
    Alike {
        rest: "cookie_rest",
        end: "exit",
        hooks: &[COOKIE_V4, COOKIE_V6],
    },
    Alike {
        rest: "reset_rest",
        end: "enter",
        hooks: &[RESET_V4, RESET_V6],
    },
];

/// The hooks at whose entry a frame is opened, which their exits and those of [`TELLING`] go by. So
/// these entries are attached last and detached first: of a packet all is seen, or nothing.
pub const OPENING: [usize; 9] = [
    SYN_V4, SYN_V6, SYN_MPTCP4, SYN_MPTCP6, ACK, COOKIE_V4, COOKIE_V6, TIMER, ICMP,
];

/// For each outcome the hooks of [`TELLING`] that it needs, a bit each. What is called observable
/// and what is decided both follow from this.
pub static NEEDS: [u32; outcome::COUNT] = needs();

const fn needs() -> [u32; outcome::COUNT] {
    let mut needs = [0; outcome::COUNT];
    let mut tag = 0;
    while tag < outcome::COUNT {
        needs[tag] = needed_by(tag as u8);
        tag += 1;
    }
    needs
}

/// The hooks of [`TELLING`] that an outcome needs, a bit each.
#[must_use]
pub const fn needed_by(tag: u8) -> u32 {
    let mut hooks = 0;
    let mut place = 0;
    while place < TELLING.len() {
        let hook = &HOOKS[TELLING[place]];
        if hook.serves >> tag & 1 != 0 {
            hooks |= hook.bit();
        }
        place += 1;
    }
    hooks
}

impl Hook {
    /// The hook in a set of hooks, a bit for each index.
    #[must_use]
    pub const fn bit(&self) -> u32 {
        1 << self.index
    }
}

const _: () = assert!(COUNT <= 32);

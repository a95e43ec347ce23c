//! The registry of outcomes: every verdict with every cause it can have.
//!
//! A new cause is one row here and the hook that detects it, nothing else: the
//! command line, the decoder, the JSON, the ledger and the documentation follow.

use crate::counter::{
    COOKIE_FAILED, COOKIE_RECV, COOKIE_SENT, DO_COOKIES, DROP, EMBRYONIC_RST, Moved, OVERFLOW,
    QUEUE_DROP,
};

/// Where in the life of a handshake the kernel decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// A SYN came, for a listener or for nobody.
    Syn,
    /// The final ACK of a handshake, or a cookie, reached the listener.
    Ack,
    /// The timer of a half-open request fired.
    Timer,
    /// An ICMP error reached a half-open request.
    Icmp,
    /// The application called accept().
    Accept,
    /// The listener was closed.
    Close,
}

impl Step {
    /// The name in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Syn => "syn",
            Self::Ack => "ack",
            Self::Timer => "timer",
            Self::Icmp => "icmp",
            Self::Accept => "accept",
            Self::Close => "close",
        }
    }
}

/// Whether the outcome is shown by default, or with `--all` or by name only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A handshake was refused, or made to pay for a full queue.
    Refusal,
    /// The normal course of handshakes, and what befalls a client that went silent.
    Routine,
}

/// One row of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcome {
    /// The tag on the wire: the row's index in [`OUTCOMES`].
    pub tag: u8,
    /// Where the kernel decided.
    pub step: Step,
    /// What the kernel did, as in JSON and `--event`.
    pub verdict: &'static str,
    /// Why, as in JSON and `--event`; `None` where there is nothing to tell apart.
    pub cause: Option<&'static str>,
    /// Whether it is shown by default.
    pub kind: Kind,
    /// Counters that the kernel moves with every such outcome.
    pub moves: Moved,
    /// Counters that may move besides.
    pub may_move: Moved,
    /// What happened, in one sentence without a full stop.
    pub says: &'static str,
}

macro_rules! outcomes {
    ($($konst:ident $step:ident $verdict:literal $cause:expr, $kind:ident, $moves:expr, $may:expr, $says:literal;)*) => {
        /// Every outcome, at the index that is its tag.
        pub static OUTCOMES: [Outcome; COUNT] = [
            $(Outcome {
                tag: $konst,
                step: Step::$step,
                verdict: $verdict,
                cause: $cause,
                kind: Kind::$kind,
                moves: $moves,
                may_move: $may,
                says: $says,
            },)*
        ];
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "only numbers the constants")]
        enum Index { $($konst,)* COUNT }
        /// How many outcomes there are.
        pub const COUNT: usize = Index::COUNT as usize;
        $(
            #[doc = concat!("Tag: ", $says, ".")]
            pub const $konst: u8 = Index::$konst as u8;
        )*
    };
}

const NONE: Moved = 0;

outcomes! {
    QUEUED Syn "queued" None, Routine, NONE, OVERFLOW | DROP,
        "The SYN entered the SYN queue and a SYN-ACK was sent";
    COOKIE_SENT_FULL Syn "cookie_sent" Some("syn_queue_full"), Refusal, COOKIE_SENT | DO_COOKIES, NONE,
        "The SYN queue was full, so a SYN cookie was sent instead of queueing";
    COOKIE_SENT_ALWAYS Syn "cookie_sent" Some("always"), Refusal, COOKIE_SENT | DO_COOKIES, NONE,
        "tcp_syncookies=2 answers every SYN with a cookie";
    SYN_DROPPED_ACCEPT_QUEUE_FULL Syn "syn_dropped" Some("accept_queue_full"), Refusal, OVERFLOW | DROP, DO_COOKIES,
        "The accept queue was full, so the SYN was dropped";
    SYN_DROPPED_SYN_QUEUE_FULL Syn "syn_dropped" Some("syn_queue_full"), Refusal, QUEUE_DROP | DROP, NONE,
        "The SYN queue was full and cookies are off, so the SYN was dropped";
    SYN_DROPPED_LAST_QUARTER Syn "syn_dropped" Some("last_quarter"), Refusal, DROP, NONE,
        "Cookies are off and under a quarter of tcp_max_syn_backlog was left, which is kept for peers known to be alive";
    SYN_DROPPED_NO_MEMORY Syn "syn_dropped" Some("no_memory"), Refusal, DROP, DO_COOKIES,
        "The kernel could not allocate the request";
    SYN_DROPPED_NO_ROUTE Syn "syn_dropped" Some("no_route"), Refusal, DROP, DO_COOKIES,
        "There was no route back to the client";
    SYN_DROPPED_SECURITY Syn "syn_dropped" Some("security"), Refusal, DROP, DO_COOKIES,
        "A security module refused the connection";
    SYN_DROPPED_NOT_UNICAST Syn "syn_dropped" Some("not_unicast"), Refusal, DROP, NONE,
        "The SYN was sent to a broadcast or multicast address";
    SYN_DROPPED_DUPLICATE Syn "syn_dropped" Some("duplicate"), Refusal, NONE, NONE,
        "Another CPU had just queued the same SYN";
    SYN_DROPPED_OTHER Syn "syn_dropped" Some("other"), Refusal, NONE, DROP | DO_COOKIES | COOKIE_SENT,
        "The SYN was dropped and the evidence does not tell why";
    SYN_DROPPED_MD5 Syn "syn_dropped" Some("md5"), Refusal, NONE, NONE,
        "The SYN lacked the TCP MD5 signature that the listener asks for, or had one that is wrong or not asked for";
    SYN_DROPPED_AO Syn "syn_dropped" Some("ao"), Refusal, NONE, NONE,
        "The SYN lacked the TCP Authentication Option that the listener asks for, or had one that is wrong or not asked for";
    SYN_DROPPED_MIN_TTL Syn "syn_dropped" Some("min_ttl"), Refusal, NONE, NONE,
        "The SYN had come over more hops than the listener allows";
    SYN_DROPPED_SOCKET_FILTER Syn "syn_dropped" Some("socket_filter"), Refusal, NONE, NONE,
        "A filter program of the listener's socket, or of its cgroup, dropped the SYN";
    SYN_DROPPED_POLICY Syn "syn_dropped" Some("policy"), Refusal, NONE, NONE,
        "An IPsec policy dropped the SYN";
    SYN_DROPPED_CHECKSUM Syn "syn_dropped" Some("checksum"), Refusal, NONE, NONE,
        "The SYN's checksum was wrong";
    FAST_OPEN_REFUSED Syn "fast_open_refused" None, Refusal, NONE, NONE,
        "The fast-open queue was full, so the SYN's data and cookie were ignored and it went the normal way";
    SYN_REFUSED_NO_LISTENER Syn "syn_refused" Some("no_listener"), Refusal, NONE, NONE,
        "Nobody listened on the port, so the SYN was answered with a reset";
    ESTABLISHED_HANDSHAKE Ack "established" Some("handshake"), Routine, NONE, NONE,
        "The final ACK came and the connection entered the accept queue";
    ESTABLISHED_COOKIE Ack "established" Some("cookie"), Routine, NONE, COOKIE_RECV,
        "A valid cookie came back and the connection entered the accept queue";
    ESTABLISHED_FAST_OPEN Ack "established" Some("fast_open"), Routine, NONE, NONE,
        "The SYN carried a valid fast-open cookie and the connection entered the accept queue";
    ACK_DEFERRED Ack "ack_deferred" None, Routine, NONE, NONE,
        "The final ACK had no data, so TCP_DEFER_ACCEPT dropped it: the client is connected, and here the request stays half-open";
    ACK_DROPPED_ACCEPT_QUEUE_FULL Ack "ack_dropped" Some("accept_queue_full"), Refusal, OVERFLOW | DROP, NONE,
        "The accept queue was full, so the final ACK was dropped: the client believes it is connected";
    ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET Ack "ack_dropped" Some("accept_queue_full_reset"), Refusal, OVERFLOW | DROP | EMBRYONIC_RST, NONE,
        "The accept queue was full and tcp_abort_on_overflow=1, so the client was reset";
    ACK_DROPPED_NO_MEMORY Ack "ack_dropped" Some("no_memory"), Refusal, DROP, EMBRYONIC_RST,
        "The kernel could not allocate the connection";
    ACK_DROPPED_LISTENER_CLOSING Ack "ack_dropped" Some("listener_closing"), Refusal, NONE, DROP | EMBRYONIC_RST,
        "The listener was closed while the connection was entering its accept queue";
    ACK_DROPPED_OTHER Ack "ack_dropped" Some("other"), Refusal, DROP, EMBRYONIC_RST,
        "The final ACK was dropped and the evidence does not tell why";
    COOKIE_FAILED_INVALID Ack "cookie_failed" Some("invalid"), Refusal, COOKIE_FAILED, NONE,
        "An ACK came back with a cookie that does not validate, so it was answered with a reset";
    COOKIE_FAILED_OPTIONS Ack "cookie_failed" Some("options"), Refusal, COOKIE_RECV, NONE,
        "A valid cookie came back for TCP options that are switched off here, so it was answered with a reset";
    COOKIE_DROPPED_ACCEPT_QUEUE_FULL Ack "cookie_dropped" Some("accept_queue_full"), Refusal, OVERFLOW | DROP, COOKIE_RECV,
        "A valid cookie came back and the accept queue was full: the client believes it is connected";
    COOKIE_DROPPED_OTHER Ack "cookie_dropped" Some("other"), Refusal, NONE, COOKIE_RECV | DROP,
        "A valid cookie came back and was dropped for another reason than a full accept queue";
    SYNACK_RETRANSMITTED Timer "synack_retransmitted" None, Routine, NONE, NONE,
        "No final ACK came, so the SYN-ACK was sent again";
    REQUEST_EXPIRED Timer "request_expired" None, Routine, NONE, NONE,
        "No final ACK was accepted in time, so the half-open request was removed";
    REQUEST_ABORTED Icmp "request_aborted" Some("icmp_error"), Routine, DROP, NONE,
        "An ICMP error removed the half-open request";
    ACCEPTED Accept "accepted" None, Routine, NONE, NONE,
        "The application took the connection";
    QUEUE_DISCARDED Close "queue_discarded" None, Refusal, NONE, NONE,
        "The listener was closed with connections that nobody had accepted: each was reset";
}

/// The outcome that each counter of [`SOLE`](crate::counter::SOLE) tells, in its order.
pub const BY_SOLE: [u8; crate::counter::SOLE.len()] = [ACK_DEFERRED, FAST_OPEN_REFUSED];

// A set of outcomes is a u64 on the wire.
const _: () = assert!(COUNT <= 64);

/// A set of outcomes, a bit for each tag.
pub type Set = u64;

impl Outcome {
    /// The row of a tag; `None` for a tag that this version does not know.
    #[must_use]
    pub fn of(tag: u8) -> Option<&'static Self> {
        OUTCOMES.get(usize::from(tag))
    }

    /// The set that holds only this outcome.
    #[must_use]
    pub const fn bit(&self) -> Set {
        1 << self.tag
    }

    /// Whether a packet of this outcome may have moved exactly these counters.
    #[must_use]
    pub const fn explains(&self, moved: Moved) -> bool {
        moved & self.moves == self.moves && moved & !(self.moves | self.may_move) == 0
    }
}

/// The outcomes of one kind.
#[must_use]
pub fn of_kind(kind: Kind) -> Set {
    OUTCOMES
        .iter()
        .filter(|outcome| outcome.kind == kind)
        .fold(0, |set, outcome| set | outcome.bit())
}

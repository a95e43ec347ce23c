//! The registry of rules: each looks for one fault in a [`Case`], fires on evidence only,
//! and names its thresholds. The functions are in a file for each kind of fault.

mod accept_queue;
mod aftermath;
mod flood;

use queue_trace_common::outcome::{
    self, OUTCOMES, QUEUE_DISCARDED, REQUEST_EXPIRED, SYNACK_RETRANSMITTED, Set,
};
use serde::Serialize;

use crate::diagnose::{
    case::{ACCEPT_FULL, Case, set_of},
    finding::{Finding, Threshold},
};

/// How bad a finding is, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Harm {
    /// Clients are not served at all.
    Outage,
    /// Some clients are refused.
    Refusing,
    /// It works, but at a cost, or not for long.
    Degraded,
    /// What made another finding possible, or worse.
    Setting,
}

impl Harm {
    /// As it is shown.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Outage => "OUTAGE",
            Self::Refusing => "REFUSING",
            Self::Degraded => "DEGRADED",
            Self::Setting => "SETTING",
        }
    }
}

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// How bad what it finds is.
    pub harm: Harm,
    /// The outcomes that must have been looked for, so that absence means something.
    pub needs: Set,
    /// The numbers that it compares with.
    pub thresholds: &'static [Threshold],
    /// The mechanism, for people.
    pub why: &'static str,
    /// Looks for the fault.
    pub find: fn(&Rule, &Case) -> Vec<Finding>,
}

impl Rule {
    /// The threshold of that name.
    ///
    /// # Panics
    /// If the rule has none: a mistake in the registry, which a test finds.
    #[must_use]
    pub fn threshold(&self, name: &str) -> u64 {
        let threshold = self
            .thresholds
            .iter()
            .find(|threshold| threshold.name == name);
        threshold.map_or_else(
            || panic!("{} has no threshold {name}", self.name),
            |t| t.value,
        )
    }
}

const fn at_least(name: &'static str, value: u64) -> Threshold {
    Threshold { name, value }
}

/// Every rule.
pub static RULES: [Rule; 14] = [
    Rule {
        name: "accept-stopped",
        harm: Harm::Outage,
        needs: accept_queue::NEEDS,
        thresholds: &[at_least("seconds without accept()", 3)],
        why: "Connections leave the accept queue only when the application calls accept(). While it does not, the \
              queue stays full and the kernel drops every further handshake; clients see timeouts. No backlog \
              is long enough for an application that has stopped.",
        find: accept_queue::stopped,
    },
    Rule {
        name: "reuseport-worker-stuck",
        harm: Harm::Refusing,
        needs: accept_queue::NEEDS,
        thresholds: &[
            at_least("seconds from the first refusal to the last", 2),
            at_least("connections that siblings took", 5),
            at_least(
                "percent of its handshakes that a sibling refused, at most",
                10,
            ),
        ],
        why: "With SO_REUSEPORT the kernel gives each connection to one socket of the group by a hash of its addresses. \
              It does not look at the queues: what falls to a socket whose worker is stuck is refused, while its \
              siblings are idle.",
        find: accept_queue::stuck_worker,
    },
    Rule {
        name: "accept-too-slow",
        harm: Harm::Refusing,
        needs: accept_queue::NEEDS,
        thresholds: &[
            at_least("seconds with refusals", 5),
            at_least("percent of the seconds between first and last refusal", 50),
        ],
        why: "The application accepts, but for a long time more slowly than connections come. A longer backlog only \
              makes clients wait longer before they are refused.",
        find: accept_queue::too_slow,
    },
    Rule {
        name: "backlog-too-small-for-bursts",
        harm: Harm::Refusing,
        needs: accept_queue::NEEDS,
        thresholds: &[at_least("seconds that a burst lasts at most", 2)],
        why: "Connections come in bursts larger than the backlog; between the bursts the application empties the queue. \
              A SYN that is dropped costs its client a second at least, as it is sent again after 1, 2, 4 … seconds.",
        find: accept_queue::bursts,
    },
    Rule {
        name: "accept-queue-full",
        harm: Harm::Refusing,
        needs: ACCEPT_FULL,
        thresholds: &[],
        why: "The accept queue was full: connections came faster than the application called accept(). Whether it \
              was stuck, too slow, or only surprised by a burst takes longer to tell, or the outcomes that --all adds.",
        find: accept_queue::full,
    },
    Rule {
        name: "clients-hang",
        harm: Harm::Refusing,
        needs: set_of(&[
            outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL,
            outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
        ]),
        thresholds: &[],
        why: "The client had its SYN-ACK, so for the client the connection exists and it sends its request. Here the final \
              ACK was dropped, because the accept queue was full. Without a cookie the kernel sends the SYN-ACK again \
              and the client may still get in; after a cookie nothing is remembered, and the client hangs until its own timeout.",
        find: accept_queue::hang,
    },
    Rule {
        name: "abort-on-overflow",
        harm: Harm::Refusing,
        needs: set_of(&[outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET]),
        thresholds: &[],
        why: "net.ipv4.tcp_abort_on_overflow=1 resets a client whose final ACK finds the accept queue full, instead \
              of leaving it a second chance when the SYN-ACK is sent again.",
        find: accept_queue::abort,
    },
    Rule {
        name: "syn-flood-few-networks",
        harm: Harm::Refusing,
        needs: flood::NEEDS,
        thresholds: &flood::THRESHOLDS,
        why: "Half-open requests fill the SYN queue when SYNs come and no final ACKs. These came from few networks.",
        find: flood::few,
    },
    Rule {
        name: "syn-flood-many-networks",
        harm: Harm::Refusing,
        needs: flood::NEEDS,
        thresholds: &flood::THRESHOLDS,
        why: "Half-open requests fill the SYN queue when SYNs come and no final ACKs. These came from many networks, \
              so their source addresses are probably forged; blocking them one by one is no use.",
        find: flood::many,
    },
    Rule {
        name: "syncookies-off",
        harm: Harm::Refusing,
        needs: set_of(&[outcome::SYN_DROPPED_SYN_QUEUE_FULL]),
        thresholds: &[],
        why: "With net.ipv4.tcp_syncookies=0 a full SYN queue refuses every SYN, of real clients as well. With cookies \
              the kernel answers without remembering anything, and only who really is there comes back.",
        find: flood::cookies_off,
    },
    Rule {
        name: "listener-closed-on-clients",
        harm: Harm::Refusing,
        needs: set_of(&[QUEUE_DISCARDED]),
        thresholds: &[],
        why: "The listener was closed, by a restart or a reload, with connections in its accept queue. The kernel resets \
              each of them: for the client a connection that was open breaks.",
        find: aftermath::closed,
    },
    Rule {
        name: "syn-acks-unanswered",
        harm: Harm::Degraded,
        needs: set_of(&[SYNACK_RETRANSMITTED, REQUEST_EXPIRED]) | flood::NEEDS,
        thresholds: &[
            at_least("SYN-ACKs sent again", 5),
            at_least("percent of handshakes that were finished, at most", 90),
        ],
        why: "SYNs arrive and are answered, and no final ACK comes back: the SYN-ACK or the ACK is lost on the way. \
              Often the way back differs from the way in: routing, a firewall or its connection tracking, a load balancer.",
        find: aftermath::unanswered,
    },
    Rule {
        name: "backlog-clamped-or-default",
        harm: Harm::Setting,
        needs: 0,
        thresholds: &[],
        why: "The limit of both queues is the smaller of what the application passes to listen() and net.core.somaxconn at that \
              moment. A queue that overflowed had this limit.",
        find: accept_queue::limit,
    },
    Rule {
        name: "refused-otherwise",
        harm: Harm::Degraded,
        needs: 0,
        thresholds: &[],
        why: "Handshakes were refused for a reason that has nothing to do with full queues.",
        find: aftermath::otherwise,
    },
];

/// The outcomes of a set, by name.
#[must_use]
pub fn names(set: Set) -> Vec<String> {
    let outcomes = OUTCOMES.iter().filter(|o| set & o.bit() != 0);
    outcomes
        .map(|o| crate::model::event::Name(o).to_string())
        .collect()
}

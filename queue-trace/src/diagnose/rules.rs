//! The registry of rules: each looks for one fault in a [`Case`], fires on evidence only,
//! and names its thresholds. The functions are in a file for each kind of fault.

mod accept_queue;
mod aftermath;
mod clients;
pub mod flood;
mod group;

use queue_trace_common::outcome::{
    self, OUTCOMES, QUEUE_DISCARDED, QUEUED, REQUEST_EXPIRED, SYNACK_RETRANSMITTED, Set,
};
use serde::Serialize;

use super::{
    case::{ACCEPT_FULL, Case, Key, set_of},
    episode::{BURST_SECONDS, STOPPED_SECONDS, STOPPED_TIMES},
    finding::{Finding, NotJudged, Threshold},
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
    /// The outcomes that must have been looked for, so that absence means something: any of
    /// these sets is enough.
    pub needs: &'static [Set],
    /// Seconds that must have been observed.
    pub seconds: u64,
    /// The numbers that it compares with.
    pub thresholds: &'static [Threshold],
    /// The mechanism, for people.
    pub why: &'static str,
    /// Looks for the fault.
    pub find: fn(&Rule, &Case) -> Vec<Finding>,
}

impl Rule {
    /// Whether what it needs was looked for.
    #[must_use]
    pub fn is_told(&self, case: &Case) -> bool {
        self.needs.iter().any(|set| case.tells(*set))
    }

    /// Why its silence proves nothing, if it does not.
    #[must_use]
    pub fn not_judged(&self, case: &Case) -> Option<NotJudged> {
        let mut needs = Vec::new();
        let reason = if !self.is_told(case) {
            // The nearest way to judge it.
            let missing = self.needs.iter().map(|set| set & !case.told);
            let missing = missing.min_by_key(|set| set.count_ones()).unwrap_or(0);
            needs = names(missing);
            let family = case
                .header
                .as_ref()
                .map_or("an unknown way", |header| &header.attach.family);
            format!(
                "not looked for, or not observable by {family}: {}",
                needs.join(", ")
            )
        } else if case.seconds() < self.seconds as f64 {
            format!("{:.1} s are too short to tell", case.seconds())
        } else {
            return None;
        };
        Some(NotJudged {
            rule: self.name,
            needs,
            reason,
        })
    }

    /// What it finds. An owner that was guessed is not named.
    #[must_use]
    pub fn findings(&self, case: &Case) -> Vec<Finding> {
        let findings = (self.find)(self, case).into_iter();
        let of_group = |finding: Finding| {
            let key: Key = finding.key;
            match case.listeners.get(&key) {
                Some(history) => group::of_group(finding, case, &key, history),
                None => finding,
            }
        };
        findings.map(of_group).collect()
    }

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

/// Most can be judged at once.
const AT_ONCE: u64 = 1;

/// Every rule.
pub static RULES: [Rule; 16] = [
    Rule {
        name: "accept-stopped",
        harm: Harm::Outage,
        needs: &[accept_queue::NEEDS],
        seconds: STOPPED_SECONDS,
        thresholds: &[
            at_least("seconds in which nothing was taken", STOPPED_SECONDS),
            at_least(
                "times as long as it usually takes to the next",
                STOPPED_TIMES,
            ),
        ],
        why: "Connections leave the accept queue only when the application calls accept() and it succeeds. While it does not, the \
              queue stays full and the kernel drops every further handshake; clients see timeouts. No backlog \
              is long enough for an application that takes nothing.",
        find: accept_queue::stopped,
    },
    Rule {
        name: "reuseport-worker-stuck",
        harm: Harm::Refusing,
        needs: &[accept_queue::NEEDS],
        seconds: group::LASTS,
        thresholds: &[
            at_least("seconds from the first refusal to the last", group::LASTS),
            at_least("connections that siblings took", group::TOOK),
            at_least(
                "percent of its handshakes that a sibling refused, at most",
                group::REFUSED_PERCENT,
            ),
        ],
        why: "With SO_REUSEPORT the kernel gives each connection to one socket of the group by a hash of its addresses. \
              It does not look at the queues: what falls to a socket whose worker is stuck is refused, while its \
              siblings are idle.",
        find: group::stuck_worker,
    },
    Rule {
        name: "accept-too-slow",
        harm: Harm::Refusing,
        needs: &[accept_queue::NEEDS],
        seconds: AT_ONCE,
        thresholds: &[at_least("seconds that the queue stays full", BURST_SECONDS)],
        why: "The application accepts, but for a long time more slowly than connections come. A longer backlog only \
              makes clients wait longer before they are refused.",
        find: accept_queue::too_slow,
    },
    Rule {
        name: "backlog-too-small-for-bursts",
        harm: Harm::Refusing,
        needs: &[accept_queue::NEEDS],
        seconds: AT_ONCE,
        thresholds: &[at_least(
            "seconds that the queue is full in a burst, less than",
            BURST_SECONDS,
        )],
        why: "Connections come in bursts larger than the backlog; between the bursts the application empties the queue. \
              A SYN that is dropped costs its client a second at least, as it is sent again after 1, 2, 4 … seconds.",
        find: accept_queue::bursts,
    },
    Rule {
        name: "accept-queue-full",
        harm: Harm::Refusing,
        needs: &[ACCEPT_FULL],
        seconds: AT_ONCE,
        thresholds: &[],
        why: "The accept queue was full: connections came faster than the application called accept(). Whether it \
              was stuck, too slow, or only surprised by a burst takes longer to tell, or the outcomes that --all adds.",
        find: accept_queue::full,
    },
    Rule {
        name: "clients-hang",
        harm: Harm::Refusing,
        needs: &[set_of(&[
            outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL,
            outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
        ])],
        seconds: AT_ONCE,
        thresholds: &[],
        why: "The client had its SYN-ACK, so for the client the connection exists and it sends its request. Here the final \
              ACK was dropped, because the accept queue was full. Without a cookie the kernel sends the SYN-ACK again \
              and the client may still get in; after a cookie nothing is remembered, and the client hangs until its own timeout.",
        find: clients::hang,
    },
    Rule {
        name: "abort-on-overflow",
        harm: Harm::Refusing,
        needs: &[set_of(&[outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET])],
        seconds: AT_ONCE,
        thresholds: &[],
        why: "net.ipv4.tcp_abort_on_overflow=1 resets a client whose final ACK finds the accept queue full, instead \
              of leaving it a second chance when the SYN-ACK is sent again.",
        find: clients::abort,
    },
    Rule {
        name: "syn-flood-few-networks",
        harm: Harm::Refusing,
        needs: &[flood::NEEDS],
        seconds: AT_ONCE,
        thresholds: &flood::THRESHOLDS,
        why: "Half-open requests fill the SYN queue when SYNs come and no final ACKs. These came from few networks.",
        find: flood::few,
    },
    Rule {
        name: "syn-flood-many-networks",
        harm: Harm::Refusing,
        needs: &[flood::NEEDS],
        seconds: AT_ONCE,
        thresholds: &flood::THRESHOLDS,
        why: "Half-open requests fill the SYN queue when SYNs come and no final ACKs. These came from many networks, \
              so their source addresses are probably forged; blocking them one by one is no use.",
        find: flood::many,
    },
    Rule {
        name: "syncookies-off",
        harm: Harm::Refusing,
        needs: &[set_of(&[outcome::SYN_DROPPED_SYN_QUEUE_FULL])],
        seconds: AT_ONCE,
        thresholds: &[],
        why: "With net.ipv4.tcp_syncookies=0 a full SYN queue refuses every SYN, of real clients as well, and so does the last quarter of \
              tcp_max_syn_backlog, of clients that are not known. With cookies the kernel answers without remembering anything, and \
              only a client that really is there comes back.",
        find: flood::cookies_off,
    },
    Rule {
        name: "listener-closed-on-clients",
        harm: Harm::Refusing,
        needs: &[set_of(&[QUEUE_DISCARDED])],
        seconds: AT_ONCE,
        thresholds: &[],
        why: "The listener was closed, by a restart or a reload, with connections in its accept queue. The kernel resets \
              each of them: for the client a connection that was open breaks.",
        find: aftermath::closed,
    },
    Rule {
        name: "syn-queue-too-small",
        harm: Harm::Degraded,
        needs: &[flood::NEEDS],
        seconds: AT_ONCE,
        thresholds: &[at_least("percent of the SYN cookies that came back", 50)],
        why: "More handshakes were on their way at once than the backlog allows, which bounds the SYN queue as well. The kernel then answers \
              with SYN cookies and logs \"Possible SYN flooding\". Clients get in, but a connection made by cookie has no window \
              scaling and no SACK unless TCP timestamps are on, and no second chance if its ACK is lost.",
        find: flood::queue_full,
    },
    Rule {
        name: "syn-queue-full",
        harm: Harm::Degraded,
        needs: &[set_of(&[
            outcome::COOKIE_SENT_FULL,
            outcome::SYN_DROPPED_SYN_QUEUE_FULL,
        ])],
        seconds: AT_ONCE,
        thresholds: &[],
        why: "The SYN queue was full, by a small flood, a scan, or clients that gave up.",
        find: flood::queue_full,
    },
    Rule {
        name: "syn-acks-unanswered",
        harm: Harm::Degraded,
        needs: &[
            set_of(&[SYNACK_RETRANSMITTED, REQUEST_EXPIRED]) | flood::NEEDS,
            // Events of SYNs tell how old the requests in the queue are.
            set_of(&[QUEUED]) | flood::NEEDS,
        ],
        seconds: 3,
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
        needs: &[ACCEPT_FULL],
        seconds: AT_ONCE,
        thresholds: &[],
        why: "The limit of both queues is the smaller of what the application passes to listen() and net.core.somaxconn at that \
              moment. A queue that overflowed had this limit.",
        find: accept_queue::limit,
    },
    Rule {
        name: "refused-otherwise",
        harm: Harm::Degraded,
        // Where a cause of its own cannot be told, it is among these.
        needs: &[set_of(&[
            outcome::SYN_DROPPED_OTHER,
            outcome::ACK_DROPPED_OTHER,
            outcome::COOKIE_FAILED_INVALID,
            outcome::COOKIE_DROPPED_OTHER,
        ])],
        seconds: AT_ONCE,
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

//! The registry of rules: each looks for one fault in a [`Case`], fires on evidence only,
//! and names its thresholds. The functions are in a file for each kind of fault.

mod accept_queue;
mod aftermath;
mod clients;
mod evidence;
pub mod flood;
mod gap;
mod group;
mod stall;

use queue_trace_common::outcome::{
    self, QUEUE_DISCARDED, QUEUED, REQUEST_EXPIRED, SYNACK_RETRANSMITTED,
};

use super::{
    case::{ACCEPT_FULL, Case, set_of},
    episode::{
        BURST_SECONDS, Episode, STOPPED_SECONDS, STOPPED_SEEN_SECONDS, STOPPED_TIMES, Trouble,
    },
    finding::{Finding, Harm},
    rule::{Rule, at_least},
};

/// Most can be judged at once.
const AT_ONCE: u64 = 1;

/// Every rule.
pub static RULES: [Rule; 17] = [
    Rule {
        name: "accept-stopped",
        harm: Harm::Outage,
        needs: &[accept_queue::NEEDS],
        seconds: STOPPED_SECONDS,
        thresholds: &[
            at_least("seconds in which nothing was taken", STOPPED_SECONDS),
            at_least(
                "the same if a look at its owner found what keeps it from accepting",
                STOPPED_SEEN_SECONDS,
            ),
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
        name: group::STUCK,
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
        name: "restart-gap",
        harm: Harm::Refusing,
        needs: &[gap::NEEDS],
        seconds: AT_ONCE,
        thresholds: &[],
        why: "The kernel answers a SYN for a port on which nobody listens with a reset. The client sees \"connection refused\" at once, \
              and the kernel does not try again for it, as it does when a SYN is dropped. Between the end of the old listener and \
              listen() of the new one every client is refused.",
        find: gap::restart,
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

/// What a rule finds. An owner that was guessed is not named.
#[must_use]
pub fn findings(rule: &Rule, case: &Case) -> Vec<Finding> {
    let findings = (rule.find)(rule, case).into_iter();
    let of_group = |finding: Finding| {
        let key = finding.key;
        match case.listeners.get(&key) {
            Some(history) => group::of_group(finding, case, &key, history),
            None => finding,
        }
    };
    findings.map(without_wrong_owner).map(of_group).collect()
}

/// Packets of a full queue cannot be those of a listener whose queue was never that deep: whose they
/// were is then unknown.
fn without_wrong_owner(finding: Finding) -> Finding {
    let refused = |one: &&Episode| one.trouble == Trouble::AcceptQueueFull && one.packets >= 3;
    let mut refused = finding.episodes.iter().filter(refused).peekable();
    let had_room = |one: &Episode| matches!((one.deepest_at_refusals, one.limit), (Some(deepest), Some((least, _))) if deepest < least);
    if refused.peek().is_none() || !refused.all(had_room) || finding.rule == group::STUCK {
        return finding;
    }
    Finding {
        owner: None,
        inode: None,
        ..finding
    }
    .because("the queue of the listener that these packets were put down to was not full: they were another one's, and its owner is not known")
}

//! Faults outside the queues: listeners that close, answers that get lost, and refusals for
//! other reasons.

use queue_trace_common::outcome::{
    ACK_DEFERRED, ACK_DROPPED_LISTENER_CLOSING, ACK_DROPPED_NO_MEMORY, ACK_DROPPED_OTHER,
    COOKIE_DROPPED_OTHER, COOKIE_FAILED_INVALID, FAST_OPEN_REFUSED, Outcome, QUEUE_DISCARDED,
    REQUEST_EXPIRED, SYN_DROPPED_AO, SYN_DROPPED_CHECKSUM, SYN_DROPPED_MD5, SYN_DROPPED_MIN_TTL,
    SYN_DROPPED_NO_MEMORY, SYN_DROPPED_NO_ROUTE, SYN_DROPPED_NOT_UNICAST, SYN_DROPPED_OTHER,
    SYN_DROPPED_POLICY, SYN_DROPPED_SECURITY, SYN_DROPPED_SOCKET_FILTER, SYNACK_RETRANSMITTED,
};

use super::super::rule::{Rule, names};
use crate::diagnose::{
    case::{ACCEPT_FULL, Case, ENTERED, History, Key, SYN_FULL, set_of},
    finding::Finding,
    when::plural,
};

pub(super) fn closed(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let count = history.count_of(QUEUE_DISCARDED);
        if count == 0 {
            continue;
        }
        let late = history.count_of(ACK_DROPPED_LISTENER_CLOSING);
        let successor = case.listeners.iter().any(|(other, successor)| {
            other.netns == key.netns
                && other.inode != key.inode
                && other.inode.is_some()
                && successor.listener.may_replace(&history.listener)
        });
        let grouped = history
            .snapshot
            .as_ref()
            .is_some_and(|snapshot| snapshot.group.is_some());
        let (connections, were) = (
            plural(count, "connection"),
            if count == 1 { "it was" } else { "each was" },
        );
        let mut finding = rule.finding(key,
            history,
            count,
            format!(
                "The listener was closed with {connections} that nobody had accepted: {were} reset{}.",
                if grouped {
                    ", unless net.ipv4.tcp_migrate_req=1 gave them to a sibling of the SO_REUSEPORT group"
                } else {
                    ""
                }
            ),
        )
        .between(history.time_of(set_of(&[QUEUE_DISCARDED])))
        .because(format!("{connections} in the accept queue at close"));
        if let (Some(deepest), Some(limit)) = (history.deepest, history.limit) {
            finding = finding.because(format!(
                "before that the queue was {deepest} deep at most, its limit was {limit}"
            ));
        }
        if late > 0 {
            finding = finding.because(format!("{late} more were just entering the queue"));
        }
        if successor {
            finding = finding
                .because("another socket listens on the port as well: a restart or a reload");
        }
        findings.push(finding.remedy(
            "hand the listening socket over at a restart: systemd socket activation, or the server's own reload (nginx -s reload, haproxy -x with expose-fd listeners)",
            "The queue then survives, as the socket is never closed. Else take the server out of the load balancer first and close when its queue is empty.",
        ));
    }
    findings
}

/// Requests whose SYN-ACK was sent again, and those that expired: where timers are seen, by them; else
/// by the requests in the SYN queue.
fn unfinished(case: &Case, history: &History) -> (u64, u64, bool) {
    let timers = set_of(&[SYNACK_RETRANSMITTED, REQUEST_EXPIRED]);
    let again = history.count_of(SYNACK_RETRANSMITTED);
    let expired = history.count_of(REQUEST_EXPIRED);
    let in_queue = u64::from(history.unanswered.unwrap_or(0));
    if case.tells(timers) {
        (again, expired, true)
    } else {
        (again.max(in_queue), expired.max(in_queue), false)
    }
}

/// Final ACKs that arrived and were put off: this listener's where they are seen, else those of its
/// namespace.
fn deferred(case: &Case, key: &Key, history: &History) -> u64 {
    if case.tells(set_of(&[ACK_DEFERRED])) {
        return history.count_of(ACK_DEFERRED);
    }
    let ledger = case.ledgers.get(&key.netns);
    let line = ledger.and_then(|ledger| ledger.front(ACK_DEFERRED));
    line.and_then(|line| line.kernel).unwrap_or(0)
}

pub(super) fn unanswered(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let (again, expired, timers) = unfinished(case, history);
        let entered = history.count(ENTERED);
        // A flood leaves unanswered SYN-ACKs as well; that is another finding.
        let flooded = history.count(SYN_FULL) > 0 || history.in_last_quarter > 0;
        let open = expired.max(1);
        let percent = rule.threshold("percent of handshakes that were finished, at most");
        let finished = entered.saturating_mul(100) > (entered + open).saturating_mul(percent);
        // With TCP_DEFER_ACCEPT the final ACKs arrive, and the request stays until data comes.
        let again_for_want = again.saturating_sub(deferred(case, key, history));
        if again_for_want < rule.threshold("SYN-ACKs sent again")
            || flooded
            || finished
            || !rule.is_told(case)
        {
            continue;
        }
        // The timer also sends again what a full accept queue refused.
        if history.count(ACCEPT_FULL) > 0 {
            continue;
        }
        let (what, evidence) = if timers {
            (
                format!(
                    "{again} SYN-ACKs were sent again and {expired} requests expired, while {entered} connections came in"
                ),
                format!(
                    "{again} SYN-ACKs sent again, {expired} half-open requests expired, {entered} handshakes finished"
                ),
            )
        } else {
            (
                format!(
                    "{again} half-open requests at once had waited so long that their SYN-ACK was sent again, while {entered} connections came in"
                ),
                format!(
                    "{again} requests in the SYN queue are not young (ss -tn state syn-recv shows them), {entered} handshakes finished"
                ),
            )
        };
        let set = set_of(&[SYNACK_RETRANSMITTED, REQUEST_EXPIRED]);
        findings.push(
            rule.finding(key,
                history,
                again + expired,
                format!("Clients' SYNs arrive, but their final ACKs do not: {what}."),
            )
            .between(history.time_of(set))
            .because(evidence)
            .because("the SYN queue was never full, so it is no flood that fills it")
            .remedy(
                format!("tcpdump -nni any 'tcp port {}'", key.port),
                "Shows on which interface the SYN-ACK leaves, and whether the ACK comes back. It should leave where the SYN came in.",
            )
            .remedy(
                "ip route get CLIENT-ADDRESS; conntrack -S; nft list ruleset",
                "The way back, connection tracking that is full or sees one direction only (insert_failed, invalid), and rules that drop it.",
            ),
        );
    }
    findings
}

/// Refusals that no other rule is about, and what to do about each.
const OTHERS: [(u8, &str, &str); 16] = [
    (
        SYN_DROPPED_NO_MEMORY,
        "cat /proc/net/sockstat; dmesg",
        "The kernel could not allocate the request: the machine or its cgroup is out of memory.",
    ),
    (
        ACK_DROPPED_NO_MEMORY,
        "cat /proc/net/sockstat; sysctl net.ipv4.tcp_mem",
        "The kernel could not allocate the connection: out of memory, or of the share that TCP may use. tcp_mem is shown outside of containers only.",
    ),
    (
        SYN_DROPPED_NO_ROUTE,
        "ip route get CLIENT-ADDRESS",
        "There is no route back to the client: mind policy routing and the source address.",
    ),
    (
        SYN_DROPPED_SECURITY,
        "journalctl -k | grep -E 'avc|apparmor'",
        "A security module (SELinux, AppArmor, BPF LSM) refuses these connections: correct its policy.",
    ),
    (
        SYN_DROPPED_NOT_UNICAST,
        "ip addr",
        "SYNs are sent to a broadcast or multicast address, which is a mistake of the sender, or a scan.",
    ),
    (
        SYN_DROPPED_MD5,
        "nstat -az 'TcpExtTCPMD5*'",
        "NotFound: the client sends no signature. Unexpected: the listener has no key for the client. Failure: the keys differ. Compare the keys and addresses of both sides.",
    ),
    (
        SYN_DROPPED_AO,
        "nstat -az 'TcpExtTCPAO*'",
        "Required: the client sends no TCP Authentication Option. KeyNotFound: the listener has no such key. Bad: the keys differ. Compare keys, ids and addresses of both sides.",
    ),
    (
        SYN_DROPPED_MIN_TTL,
        "tcpdump -nni any -v 'tcp[tcpflags] & tcp-syn != 0'",
        "Shows the TTL that SYNs arrive with. The listener drops those below its IP_MINTTL (ttl-security): the client is farther away, or sends with a lower TTL than 255.",
    ),
    (
        SYN_DROPPED_SOCKET_FILTER,
        "ss -ltnbp",
        "Shows the BPF filters of listeners. A filter of the cgroup drops SYNs as well, such as that of systemd's IPAddressDeny= (bpftool cgroup tree).",
    ),
    (
        SYN_DROPPED_POLICY,
        "ip xfrm policy; cat /proc/net/xfrm_stat",
        "An IPsec policy drops these SYNs: they came in the clear where it asks for IPsec, or it blocks them.",
    ),
    (
        FAST_OPEN_REFUSED,
        "nstat -az TcpExtTCPFastOpenListenOverflow",
        "More handshakes by fast open were unfinished at once than the listener allows: raise its TCP_FASTOPEN option (nginx: `listen 80 fastopen=256;`). Clients connect all the same, a round trip later. Unfinished ones that only pile up are a flood.",
    ),
    (
        SYN_DROPPED_CHECKSUM,
        "nstat -az TcpInCsumErrors",
        "Packets are damaged on the way, often by a network card, a driver or a tunnel: ethtool -S DEVICE has their counters.",
    ),
    (
        SYN_DROPPED_OTHER,
        "queue-trace check",
        "The evidence does not tell why. Attached by fentry or kprobe more causes can be told.",
    ),
    (
        ACK_DROPPED_OTHER,
        "queue-trace check",
        "The evidence does not tell why. Attached by fentry or kprobe more causes can be told.",
    ),
    (
        COOKIE_DROPPED_OTHER,
        "queue-trace check",
        "A valid cookie was refused for another reason than a full queue, such as memory or a route.",
    ),
    (
        COOKIE_FAILED_INVALID,
        "queue-trace replay --event cookie_failed FILE",
        "ACKs came with cookies that this machine never sent: forged, older than two minutes, or meant for another machine behind the same address.",
    ),
];

pub(super) fn otherwise(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        for (tag, command, caveat) in OTHERS {
            let mut count = history.count_of(tag);
            if tag == SYN_DROPPED_OTHER {
                // What is probably the rule of the last quarter is a finding of its own.
                count = count.saturating_sub(history.in_last_quarter);
            }
            let Some(outcome) = Outcome::of(tag).filter(|_| count > 0) else {
                continue;
            };
            findings.push(
                rule.finding(
                    key,
                    history,
                    count,
                    format!("{}: {}.", plural(count, "time"), outcome.says),
                )
                .between(history.time_of(set_of(&[tag])))
                .because(format!(
                    "{count} verdicts {}",
                    names(set_of(&[tag])).join("")
                ))
                .remedy(command, caveat),
            );
        }
    }
    findings
}

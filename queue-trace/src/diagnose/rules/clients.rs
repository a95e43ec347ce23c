//! What a full accept queue means to clients: those that believe they are connected, and those
//! that are reset.

use queue_trace_common::outcome::{
    ACK_DROPPED_ACCEPT_QUEUE_FULL, ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
};

use super::{super::rule::Rule, evidence::with_queue};
use crate::diagnose::{
    case::{Case, History, set_of},
    episode::{Episode, Pattern, Trouble},
    finding::Finding,
    when::{When, plural},
};

const ALL: [Pattern; 4] = [
    Pattern::TookNothing,
    Pattern::TooSlow,
    Pattern::Bursts,
    Pattern::Unclear,
];

/// The episodes in which outcomes of these tags were.
fn episodes(history: &History, tags: &[u8]) -> Option<When> {
    let set = set_of(tags);
    let with = |episode: &Episode| episode.count(set) > 0;
    When::of(history, Trouble::AcceptQueueFull, with, &ALL)
}

/// A finding with its time: of its episodes, or between its first packet and its last.
fn timed(finding: Finding, history: &History, tags: &[u8]) -> Finding {
    match episodes(history, tags) {
        Some(when) => with_queue(finding.at(&when), history, Some(when.first())),
        None => with_queue(
            finding.between(history.time_of(set_of(tags))),
            history,
            None,
        ),
    }
}

pub(super) fn hang(rule: &Rule, case: &Case) -> Vec<Finding> {
    const TAGS: [u8; 2] = [
        ACK_DROPPED_ACCEPT_QUEUE_FULL,
        COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
    ];
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let acks = history.count_of(ACK_DROPPED_ACCEPT_QUEUE_FULL);
        let cookies = history.count_of(COOKIE_DROPPED_ACCEPT_QUEUE_FULL);
        if acks + cookies == 0 {
            continue;
        }
        let what = match (acks, cookies) {
            (acks, 0) => format!(
                "Clients hang: {} dropped of clients that believe they are connected.",
                plural_was(acks, "final ACK")
            ),
            (0, cookies) => format!(
                "Clients hang: {} refused of clients that believe they are connected.",
                plural_was(cookies, "valid SYN cookie")
            ),
            (acks, cookies) => format!(
                "Clients hang: {} dropped and {} refused of clients that believe they are connected.",
                plural_was(acks, "final ACK"),
                plural_was(cookies, "valid SYN cookie")
            ),
        };
        let finding = rule.finding(key, history, acks + cookies, what);
        findings.push(timed(finding, history, &TAGS).remedy(
            "make the accept queue drain; see the finding about this listener's accept queue",
            "tcp_abort_on_overflow=1 would turn the hanging into resets: clients fail at once instead, also those that would have got in at the second try.",
        ));
    }
    findings
}

fn plural_was(count: u64, what: &str) -> String {
    let was = if count == 1 { "was" } else { "were" };
    format!("{} {was}", plural(count, what))
}

pub(super) fn abort(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let count = history.count_of(ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET);
        if count == 0 {
            continue;
        }
        let finding = rule.finding(key,
            history,
            count,
            format!(
                "{} reset at the final ACK, because tcp_abort_on_overflow=1 and the accept queue was full.",
                plural_was(count, "connection")
            ),
        );
        let finding = timed(finding, history, &[ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET]);
        findings.push(finding.remedy(
            "sysctl -w net.ipv4.tcp_abort_on_overflow=0",
            "In the listener's network namespace; takes effect at once. Clients then retry instead of failing, so a short burst goes unnoticed. \
             Leave it at 1 only if clients are to go elsewhere at once.",
        ));
    }
    findings
}

//! The evidence that all findings about a full accept queue share, in words.

use queue_trace_common::outcome::{
    ACK_DROPPED_ACCEPT_QUEUE_FULL, ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    COOKIE_DROPPED_ACCEPT_QUEUE_FULL, SYN_DROPPED_ACCEPT_QUEUE_FULL,
};

use crate::{
    diagnose::{case::History, episode::Episode, finding::Finding, when::plural},
    model::words::short_time,
};

/// What was refused, by the kind of packet.
fn refusals(count: impl Fn(u8) -> u64) -> String {
    let parts: Vec<_> = [
        (SYN_DROPPED_ACCEPT_QUEUE_FULL, "SYN dropped", "SYNs dropped"),
        (
            ACK_DROPPED_ACCEPT_QUEUE_FULL,
            "final ACK dropped",
            "final ACKs dropped",
        ),
        (
            ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
            "client reset at its final ACK",
            "clients reset at their final ACK",
        ),
        (
            COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
            "valid cookie refused",
            "valid cookies refused",
        ),
    ]
    .into_iter()
    .map(|(tag, one, many)| (count(tag), one, many))
    .filter(|(count, ..)| *count > 0)
    .map(|(count, one, many)| format!("{count} {}", if count == 1 { one } else { many }))
    .collect();
    parts.join(", ")
}

/// How many of the connections that were refused got in later.
fn got_in(episode: &Episode) -> String {
    let all = episode.connections;
    let later = episode.served_later;
    match (later.count, all.count) {
        (0, 1) => "the connection was not seen to get in later".to_owned(),
        (0, _) => format!(
            "none of the {} connections was seen to get in later",
            all.words()
        ),
        (count, all) if count >= all => format!(
            "{} refused at first got in later",
            plural(all, "connection")
        ),
        _ => format!(
            "{} of the {} connections got in later",
            later.words(),
            all.words()
        ),
    }
}

/// The evidence that all findings about a full queue share: of an episode, and of the listener.
pub(super) fn with_queue(finding: Finding, history: &History, worst: Option<&Episode>) -> Finding {
    let all = refusals(|tag| history.count_of(tag));
    let mut finding = finding.because(format!("{all} for a full accept queue"));
    if let Some(worst) = worst.filter(|worst| worst.connections.count > 0) {
        finding = finding.because(format!("in the worst episode {}", got_in(worst)));
    }
    let limit = worst.and_then(|worst| worst.limit);
    let deepest = worst.map_or(history.deepest, |worst| {
        worst.deepest_at_refusals.or(worst.deepest)
    });
    let limits = match (limit, history.limit) {
        (Some((least, most)), _) if least != most => Some(format!("{least} to {most}")),
        (Some((limit, _)), _) | (None, Some(limit)) => Some(limit.to_string()),
        (None, None) => None,
    };
    if let (Some(deepest), Some(limits)) = (deepest, limits) {
        let later = history.limit.filter(|now| {
            limit.is_some_and(|(least, most)| !(least..=most).contains(now)) && !history.is_closed()
        });
        let later = later.map_or(String::new(), |now| format!("; later its limit was {now}"));
        finding = finding.because(format!(
            "the accept queue was {deepest} deep at most and its limit was {limits} when it refused (full means deeper than the limit){later}"
        ));
    }
    if let Some(waited) = history.oldest_waiting_us.filter(|us| *us > 0) {
        finding = finding.because(format!(
            "the oldest connection had been waiting for {}",
            short_time(waited)
        ));
    }
    finding
}

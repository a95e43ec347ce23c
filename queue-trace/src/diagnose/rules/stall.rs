//! Why the application did not accept, as the looks at its owner found it in the time of an
//! episode.

use crate::{
    diagnose::{
        case::{History, Stalled},
        episode::Episode,
        finding::Finding,
        when::{When, plural},
    },
    model::{
        clock::NS_PER_SECOND,
        stall::cause::{CAUSES, StallReason, conclude},
    },
};

/// Looks come once a second: the first one after the last packet still tells of the time before.
const AFTER_NS: i128 = 2 * NS_PER_SECOND;

/// One look of so many must have found a cause before it is called the cause: what fewer found is
/// evidence, and no more.
const PART: u64 = 3;

/// The cause that is about file descriptors.
pub(super) const DESCRIPTORS: &str = "descriptors";

/// Whether more threads would accept more, as far as the cause tells.
pub(super) fn more_threads_help(finding: &Finding) -> bool {
    !finding.cause.is_some_and(keeps_all_threads)
}

/// Whether a look, in the longest time in which nothing left the queue, found what keeps all threads
/// of the owner from accepting, and no look found something else.
pub(super) fn could_not_accept(history: &History, episode: &Episode) -> bool {
    let from = episode.still_since_ns;
    let to = from + episode.longest_still_ns;
    let inside = |one: &&Stalled| one.from <= to && one.to >= from;
    let causes = history.stalls.iter().filter(inside);
    let mut causes = causes.filter_map(|one| one.cause).peekable();
    causes.peek().is_some() && causes.all(keeps_all_threads)
}

fn keeps_all_threads(cause: &str) -> bool {
    let mut causes = CAUSES.iter();
    causes.any(|one| one.name == cause && one.keeps_all_threads)
}

/// The cause that most looks found in the worst episode, or in all if there was none in that, and
/// how many of how many found it.
fn found(history: &History, when: &When) -> Option<(StallReason, u64, u64)> {
    let worst = when.first();
    let in_span = |from: i128, to: i128| {
        let inside = move |one: &&Stalled| one.from <= to + AFTER_NS && one.to >= from;
        let all: Vec<_> = history.stalls.iter().filter(inside).collect();
        let looks = all.iter().map(|one| one.looks).sum();
        let mut by_cause: Vec<_> = CAUSES
            .iter()
            .filter_map(|cause| {
                let of_it = all.iter().filter(|one| one.cause == Some(cause.name));
                let best = of_it.clone().max_by_key(|one| one.looks)?;
                Some((of_it.map(|one| one.looks).sum::<u64>(), best))
            })
            .collect();
        by_cause.sort_by_key(|(looks, _)| std::cmp::Reverse(*looks));
        let (of_it, best) = by_cause.first()?;
        Some((conclude(&best.snapshot)?, *of_it, looks))
    };
    let (from, to) = when.span();
    in_span(worst.begin_ns, worst.end_ns)
        .or_else(|| in_span(from, to))
        .or_else(|| {
            // A line without a time.
            let snapshot = history
                .snapshot
                .as_ref()
                .filter(|_| history.stalls.is_empty())?;
            Some((conclude(snapshot)?, 1, 1))
        })
}

/// Adds the cause to a finding: to its sentence, its evidence and, before all others, its remedies.
pub(super) fn with_cause(finding: Finding, history: &History, when: &When) -> Finding {
    let mut finding = finding;
    if let Some((conclusion, of_it, looks)) = found(history, when) {
        let StallReason {
            cause,
            words,
            remedies,
        } = conclusion;
        finding = finding.because(format!(
            "{} (cause {}): so found {of_it} of {} at the owner while the queue was full",
            cause.says,
            cause.name,
            plural(looks, "look")
        ));
        if of_it.saturating_mul(PART) >= looks {
            finding.cause = Some(cause.name);
            finding.what.push_str(&format!(" Why: {words}."));
            for (command, caveat) in remedies {
                finding = finding.remedy(command, caveat);
            }
        }
    }
    let unread = history
        .stalls
        .iter()
        .filter_map(|one| one.snapshot.stall.as_ref());
    let mut unread: Vec<_> = unread
        .flat_map(|stall| stall.unread.iter().cloned())
        .collect();
    unread.sort();
    unread.dedup();
    if !unread.is_empty() {
        finding = finding.because(format!("not known of its owner: {}", unread.join("; ")));
    }
    finding
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_named_here_is_in_the_registry() {
        assert!(CAUSES.iter().any(|cause| cause.name == DESCRIPTORS));
    }
}

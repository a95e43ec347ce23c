//! One socket of a `SO_REUSEPORT` group that refuses while its siblings take connections.

use super::{super::rule::Rule, evidence::with_queue, stall::with_cause};
use crate::{
    diagnose::{
        case::{ACCEPT_FULL, Case, ENTERED, History, Key},
        episode::{Episode, Pattern, Trouble},
        finding::Finding,
        when::{When, refused},
    },
    model::{clock::NS_PER_SECOND, snapshot::Snapshot},
};

/// The rule's name.
pub(super) const STUCK: &str = "reuseport-worker-stuck";
/// Its thresholds.
pub(super) const LASTS: u64 = 2;
pub(super) const TOOK: u64 = 5;
pub(super) const REFUSED_PERCENT: u64 = 10;

/// The members of a group that go on while one is stuck.
#[derive(Default)]
struct Siblings {
    count: usize,
    took: u64,
    refused: u64,
}

/// Whether by tracepoints alone the socket within a group was guessed.
fn is_guessed(case: &Case) -> bool {
    let header = case.header.as_ref();
    header.is_some_and(|header| {
        let limits = header.attach.limits.iter();
        header.attach.family == "tracepoint"
            && limits.clone().any(|limit| limit.contains("SO_REUSEPORT"))
    })
}

/// The other sockets of the same address, port and device.
fn siblings<'a>(
    case: &'a Case,
    key: &'a Key,
    history: &'a History,
) -> impl Iterator<Item = (&'a Key, &'a History)> {
    case.listeners
        .iter()
        .filter(move |(other, _)| {
            other.netns == key.netns && other.inode != key.inode && other.inode.is_some()
        })
        .filter(move |(_, sibling)| sibling.listener.is_bound_like(&history.listener))
}

/// Episodes of a socket that does not take what falls to it.
fn stuck(case: &Case, history: &History) -> Option<When> {
    let is_stuck = |episode: &Episode| {
        let lasts = episode.duration_ns() >= i128::from(LASTS) * NS_PER_SECOND;
        let pattern = episode.pattern(case.told);
        lasts && matches!(pattern, Pattern::TookNothing | Pattern::Unclear)
    };
    let patterns = [Pattern::TookNothing];
    When::of(history, Trouble::AcceptQueueFull, is_stuck, &patterns)
}

/// The siblings that went on, if the listener is stuck among them.
fn alive(case: &Case, key: &Key, history: &History) -> Option<(When, Siblings)> {
    key.inode?;
    let when = stuck(case, history)?;
    let (from, to) = when.span();
    let mut alive = Siblings::default();
    siblings(case, key, history)
        // At the same time, so that it is no successor.
        .filter(|(_, sibling)| {
            sibling
                .time_of(ENTERED)
                .is_some_and(|(first, last)| first <= to && last >= from)
        })
        .map(|(_, sibling)| (sibling.count(ENTERED), sibling.count(ACCEPT_FULL)))
        .filter(|(took, refused)| {
            let most = took.saturating_mul(REFUSED_PERCENT);
            *took > 0 && refused.saturating_mul(100 - REFUSED_PERCENT) <= most
        })
        .for_each(|(took, refused)| {
            alive.count += 1;
            alive.took = alive.took.saturating_add(took);
            alive.refused = alive.refused.saturating_add(refused);
        });
    (alive.took >= TOOK).then_some((when, alive))
}

/// Whether the listener is a stuck one of a group.
pub(super) fn is_stuck(case: &Case, key: &Key, history: &History) -> bool {
    if is_guessed(case) {
        return full_member(case, key, history).is_some();
    }
    alive(case, key, history).is_some()
}

/// Whether it is not known which socket of its group a packet was for.
pub(super) fn is_guessed_member(case: &Case, key: &Key, history: &History) -> bool {
    is_guessed(case) && members(case, key, history).nth(1).is_some()
}

/// All sockets of a group, this one too, that are open.
fn members<'a>(
    case: &'a Case,
    key: &'a Key,
    history: &'a History,
) -> impl Iterator<Item = (&'a Key, &'a History)> {
    std::iter::once((key, history))
        .chain(siblings(case, key, history))
        .filter(|(_, member)| !member.is_closed())
}

/// The one member of a group with a full queue, when listeners were looked at last, and how many
/// others had room.
fn full_member<'a>(
    case: &'a Case,
    key: &'a Key,
    history: &'a History,
) -> Option<(&'a Key, &'a History, usize)> {
    let is_full = |history: &History| {
        let snapshot = history.snapshot.as_ref()?;
        Some(snapshot.accept_queue.as_ref()?.is_full())
    };
    let full = |member: &(&Key, &History)| is_full(member.1) == Some(true);
    let mut all_full = members(case, key, history).filter(full);
    let (member, history_of_it) = all_full.next()?;
    let others = members(case, key, history);
    let others = others
        .filter(|(_, other)| is_full(other) == Some(false))
        .count();
    (all_full.next().is_none() && others > 0).then_some((member, history_of_it, others))
}

/// Where the socket of a packet is not known within a group: the one whose own queue is full.
fn stuck_by_its_queue(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for (key, history) in &case.listeners {
        let lasts = |one: &Episode| one.duration_ns() >= i128::from(LASTS) * NS_PER_SECOND;
        let when = When::of(history, Trouble::AcceptQueueFull, lasts, &[]);
        let (Some(when), Some((member, stuck, others))) = (when, full_member(case, key, history))
        else {
            continue;
        };
        if findings.iter().any(|finding| finding.key == *member) {
            continue;
        }
        let queue = stuck
            .snapshot
            .as_ref()
            .and_then(|s| s.accept_queue.as_ref());
        let depth = queue.and_then(|queue| queue.depth).unwrap_or(0);
        let inode = member.inode.unwrap_or(0);
        let finding = rule
            .finding(
                member,
                stuck,
                when.packets(),
                format!(
                    "One socket of a SO_REUSEPORT group (inode {inode}) is stuck: its own queue was full ({depth} deep) while {others} of its siblings had room; {} that fell to the group refused.",
                    refused(when.first()),
                ),
            )
            .at(&when)
            .because("by tracepoints the socket of a packet is not known within the group, so this is concluded from the queues as they were looked at last");
        let finding = with_cause(with_threads(finding, stuck), stuck, &when);
        findings.push(remedies(finding, member));
    }
    findings
}

fn with_threads(finding: Finding, history: &History) -> Finding {
    match history.snapshot.as_ref().and_then(Snapshot::thread_words) {
        Some(words) => finding.because(format!(
            "what its threads did instead, when it was looked at last: {words}"
        )),
        None => finding,
    }
}

fn remedies(finding: Finding, key: &Key) -> Finding {
    let inode = key.inode.unwrap_or(0);
    finding
        .remedy(
            format!("ss -ltnpe 'sport = :{}' | grep -w ino:{inode}", key.port),
            "Names the processes that have this socket open. Of nginx these are all workers: then the next command says which one is to accept from it.",
        )
        .remedy(
            format!("grep -ls '^tfd:.* ino:{inode:x} ' /proc/[0-9]*/fdinfo/* | cut -d/ -f3 | sort -u"),
            "Prints the process that waits for this socket by epoll. See what it does instead (cat /proc/PID/task/*/wchan), then restart that worker alone.",
        )
        .remedy(
            "let workers share one socket instead of SO_REUSEPORT (nginx: leave out `reuseport`)",
            "Then any worker takes any connection and one that is stuck costs none. The workers contend for one queue.",
        )
}

pub(super) fn stuck_worker(rule: &Rule, case: &Case) -> Vec<Finding> {
    if is_guessed(case) {
        return stuck_by_its_queue(rule, case);
    }
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let Some((when, siblings)) = alive(case, key, history) else {
            continue;
        };
        let refused_by_them = match siblings.refused {
            0 => "none".to_owned(),
            refused => refused.to_string(),
        };
        let inode = key.inode.unwrap_or(0);
        let mut finding = rule.finding(key,
            history,
            when.packets(),
            format!(
                "One socket of a SO_REUSEPORT group (inode {inode}) is stuck: {} that fell to it refused, \
                 while {} of its siblings took {} connections and refused {refused_by_them}.",
                refused(when.first()),
                siblings.count,
                siblings.took
            ),
        )
        .at(&when);
        let place = history
            .snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.group);
        if let Some(group) = place {
            finding = finding.because(format!(
                "it is number {} of a group of {}",
                group.index.saturating_add(1),
                group.size
            ));
        }
        finding = with_queue(finding, history, Some(when.first()));
        let finding = with_cause(with_threads(finding, history), history, &when);
        findings.push(remedies(finding, key));
    }
    findings
}

/// Of a listener in a group whose sockets cannot be told apart: what is known of the group instead of
/// an owner that was guessed.
pub(super) fn of_group(finding: Finding, case: &Case, key: &Key, history: &History) -> Finding {
    let members: Vec<_> = siblings(case, key, history)
        .filter(|(_, sibling)| !sibling.is_closed())
        .collect();
    if !is_guessed(case) || members.is_empty() || finding.rule == STUCK {
        return finding;
    }
    let mut finding = finding;
    finding.inode = None;
    finding.owner = Some(format!(
        "one of a SO_REUSEPORT group of {}",
        members.len() + 1
    ));
    finding = finding.because(
        "by tracepoints the socket of a packet is not known within a SO_REUSEPORT group: the numbers are the group's",
    );
    let all = std::iter::once((key, history)).chain(members);
    for (member, history) in all {
        let snapshot = history.snapshot.as_ref();
        let queue = snapshot.and_then(|snapshot| snapshot.accept_queue.as_ref());
        if let (Some(queue), Some(inode)) = (queue.filter(|queue| queue.is_full()), member.inode) {
            let owner = snapshot.and_then(Snapshot::owner);
            finding = finding.because(format!(
                "full when it was looked at last: the socket with inode {inode} ({} of {}), of {}",
                queue.depth.unwrap_or(0),
                queue.limit.unwrap_or(0),
                owner.as_deref().unwrap_or("an unknown owner")
            ));
        }
    }
    finding
}

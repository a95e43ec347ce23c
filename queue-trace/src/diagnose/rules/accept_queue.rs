//! Faults that show as a full accept queue.

use queue_trace_common::outcome::{
    ACCEPTED, ACK_DROPPED_ACCEPT_QUEUE_FULL, ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    COOKIE_DROPPED_ACCEPT_QUEUE_FULL, ESTABLISHED_COOKIE, ESTABLISHED_HANDSHAKE,
    SYN_DROPPED_ACCEPT_QUEUE_FULL, Set,
};

use crate::{
    diagnose::{
        case::{ACCEPT_FULL, Case, ENTERED, History, Key, set_of},
        finding::Finding,
        rules::Rule,
    },
    model::{clock::NS_PER_SECOND, snapshot::Snapshot, words::short_time},
};

/// What tells how a queue came to be full: refusals, and connections that enter. Fast open
/// is left out: not every way to attach tells it.
pub(super) const NEEDS: Set = set_of(&[
    SYN_DROPPED_ACCEPT_QUEUE_FULL,
    ACK_DROPPED_ACCEPT_QUEUE_FULL,
    ESTABLISHED_HANDSHAKE,
    ESTABLISHED_COOKIE,
]);

/// How a listener's accept queue came to be full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pattern {
    /// It never was.
    Never,
    /// Nothing left it for so many seconds, and all the while clients were refused.
    Stopped(i64),
    /// Refusals in so many seconds, of so many from the first to the last.
    Slow(i64, i64),
    /// So many times, each short, and emptied in between.
    Bursts(usize),
    /// It cannot be told.
    Unclear,
}

/// Evidence that connections left the queue: accept() was seen, or where that cannot be
/// seen, connections entered a queue that had been full.
fn leaving(case: &Case) -> Set {
    let accepted = set_of(&[ACCEPTED]);
    if case.tells(accepted) {
        accepted
    } else {
        ENTERED
    }
}

fn pattern(case: &Case, history: &History) -> Pattern {
    if history.count(ACCEPT_FULL) == 0 {
        return Pattern::Never;
    }
    let leaves = leaving(case);
    if !case.tells(NEEDS) {
        return Pattern::Unclear;
    }
    let seen = leaves == set_of(&[ACCEPTED]);
    let limit = |rule: &str, name: &str| {
        let rule = super::RULES.iter().find(|r| r.name == rule);
        rule.map_or(i64::MAX, |rule| rule.threshold(name) as i64)
    };
    let refused: Vec<_> = history
        .slots
        .iter()
        .filter(|(_, slot)| slot.count(ACCEPT_FULL) > 0)
        .map(|(at, slot)| (*at, slot.count(leaves) > 0))
        .collect();
    let (Some((first, _)), Some((last, _))) = (refused.first(), refused.last()) else {
        return Pattern::Unclear;
    };

    // The longest time from one slot with refusals to another, with nothing leaving in
    // between or in the latter: nothing can have left unseen, as the next client would have
    // got in.
    let left = |from: i64, to: i64| {
        if from >= to {
            return false;
        }
        let mut between = history
            .slots
            .range(from..to)
            .map(|(_, slot)| slot.count(leaves));
        between.any(|count| count > 0)
    };
    let mut longest = 0;
    let mut since = *first;
    for (at, leaving) in &refused {
        if *leaving || left(since + 1, *at) {
            since = *at;
        }
        longest = longest.max(at - since);
    }
    let longest = longest * case.width;
    if longest >= limit("accept-stopped", "seconds without accept()") {
        return Pattern::Stopped(longest);
    }

    let slots = refused.len() as i64;
    let of = last - first + 1;
    let busy = refused.iter().filter(|(_, leaving)| *leaving).count() as i64;
    let (least, percent) = (
        limit("accept-too-slow", "seconds with refusals"),
        limit(
            "accept-too-slow",
            "percent of the seconds between first and last refusal",
        ),
    );
    if slots * case.width >= least && slots * 100 >= of * percent && busy * 2 >= slots {
        return Pattern::Slow(slots * case.width, of * case.width);
    }

    // Runs of neighbouring slots with refusals, each followed by connections that leave.
    let most = limit(
        "backlog-too-small-for-bursts",
        "seconds that a burst lasts at most",
    );
    let mut bursts = 0;
    let mut at = 0;
    while at < refused.len() {
        let begin = at;
        while at + 1 < refused.len() && refused[at + 1].0 == refused[at].0 + 1 {
            at += 1;
        }
        let (from, to) = (refused[begin].0, refused[at].0);
        let long = (to - from) * case.width > most;
        let drained = if seen {
            // In the slot of its end, or in the two after it.
            left(to, to + 3)
        } else {
            // The queue was full: who enters it later finds a place that accept() made. After
            // the last burst there may be nobody to prove it.
            left(to + 1, i64::MAX) || (bursts > 0 && at + 1 == refused.len())
        };
        if long || !drained {
            return Pattern::Unclear;
        }
        bursts += 1;
        at += 1;
    }
    Pattern::Bursts(bursts)
}

fn histories(case: &Case) -> impl Iterator<Item = (&Key, &History)> {
    case.listeners.iter()
}

/// The members of the listener's group that are other sockets of the same address.
fn siblings<'a>(
    case: &'a Case,
    key: &'a Key,
    history: &'a History,
) -> impl Iterator<Item = &'a History> {
    histories(case)
        .filter(move |(other, _)| {
            other.netns == key.netns
                && other.port == key.port
                && other.inode != key.inode
                && other.inode.is_some()
        })
        .map(|(_, sibling)| sibling)
        .filter(move |sibling| sibling.listener.addr == history.listener.addr)
}

/// Whether the listener is one of a group whose other members took connections.
fn is_stuck_worker(rule: &Rule, case: &Case, key: &Key, history: &History) -> Option<Siblings> {
    let (from, to) = history.time_of(ACCEPT_FULL)?;
    let long = (to - from) / NS_PER_SECOND
        >= i128::from(rule.threshold("seconds from the first refusal to the last"));
    // What it let in itself filled its queue; then nothing left it any more.
    let stuck = matches!(
        pattern(case, history),
        Pattern::Stopped(_) | Pattern::Unclear
    );
    if key.inode.is_none() || !long || !stuck {
        return None;
    }
    let most = rule.threshold("percent of its handshakes that a sibling refused, at most");
    let mut alive = Siblings::default();
    siblings(case, key, history)
        // At the same time, so that it is no successor.
        .filter(|sibling| {
            sibling
                .time_of(ENTERED)
                .is_some_and(|(first, last)| first <= to && last >= from)
        })
        .map(|sibling| (sibling.count(ENTERED), sibling.count(ACCEPT_FULL)))
        .filter(|(took, refused)| *took > 0 && refused.saturating_mul(100 - most) <= took * most)
        .for_each(|(took, refused)| {
            alive.count += 1;
            alive.took += took;
            alive.refused += refused;
        });
    (alive.took >= rule.threshold("connections that siblings took")).then_some(alive)
}

/// The members of a group that go on while one is stuck.
#[derive(Default)]
struct Siblings {
    count: usize,
    took: u64,
    refused: u64,
}

fn stuck_rule() -> Option<&'static Rule> {
    super::RULES
        .iter()
        .find(|rule| rule.name == "reuseport-worker-stuck")
}

/// What was refused, in words.
fn refusals(history: &History) -> String {
    let parts: Vec<_> = [
        (SYN_DROPPED_ACCEPT_QUEUE_FULL, "SYNs dropped"),
        (ACK_DROPPED_ACCEPT_QUEUE_FULL, "final ACKs dropped"),
        (
            ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
            "clients reset at their final ACK",
        ),
        (COOKIE_DROPPED_ACCEPT_QUEUE_FULL, "valid cookies refused"),
    ]
    .into_iter()
    .map(|(tag, words)| (history.count_of(tag), words))
    .filter(|(count, _)| *count > 0)
    .map(|(count, words)| format!("{count} {words}"))
    .collect();
    parts.join(", ")
}

/// With what the threads do that do not accept.
fn with_threads(finding: Finding, history: &History) -> Finding {
    let told = history.snapshot.as_ref();
    match told.and_then(Snapshot::thread_words) {
        Some(words) => finding.because(format!(
            "what its threads did instead, when it was looked at last: {words}"
        )),
        None => finding,
    }
}

/// The evidence that all findings about a full queue share.
fn with_queue(finding: Finding, history: &History) -> Finding {
    let mut finding = finding.because(format!("{} for a full accept queue", refusals(history)));
    if let (Some(deepest), Some(limit)) = (history.deepest, history.limit) {
        finding = finding.because(format!(
            "the accept queue was {deepest} deep at most, its limit is {limit} (full means deeper than the limit)"
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

pub(super) fn stopped(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in histories(case) {
        let Pattern::Stopped(seconds) = pattern(case, history) else {
            continue;
        };
        if stuck_rule().is_some_and(|stuck| is_stuck_worker(stuck, case, key, history).is_some()) {
            continue;
        }
        let count = history.count(ACCEPT_FULL);
        let how = if case.tells(set_of(&[ACCEPTED])) {
            "accept() took nothing"
        } else {
            "nothing left the queue: no connection entered it although every place that accept() makes lets one in"
        };
        let finding = Finding::new(
            rule,
            key.netns,
            history,
            count,
            format!(
                "The application stopped calling accept() for at least {seconds} s; {count} handshakes were refused meanwhile and around."
            ),
        )
        .because(format!("for {seconds} s with refusals, {how}"));
        findings.push(
            with_threads(with_queue(finding, history), history)
                .remedy(
                    format!("ss -ltnp 'sport = :{}'", key.port),
                    "Names the process. Then see what its threads wait for: cat /proc/PID/task/*/{comm,wchan}, \
                     or a stack dump of its runtime (jstack, py-spy, gdb -p). Take it before a restart removes the evidence.",
                )
                .remedy(
                    "restart the application",
                    "Brings service back. The connections in the queue are reset by it.",
                ),
        );
    }
    findings
}

pub(super) fn stuck_worker(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in histories(case) {
        let Some(alive) = is_stuck_worker(rule, case, key, history) else {
            continue;
        };
        let Siblings {
            count: siblings,
            took,
            refused,
        } = alive;
        let refused = match refused {
            0 => "none".to_owned(),
            refused => refused.to_string(),
        };
        let count = history.count(ACCEPT_FULL);
        let inode = key.inode.unwrap_or(0);
        let mut finding = Finding::new(
            rule,
            key.netns,
            history,
            count,
            format!(
                "One socket of a SO_REUSEPORT group (inode {inode}) is stuck: {count} handshakes that fell to it were refused, \
                 while {siblings} of its siblings took {took} connections and refused {refused}."
            ),
        );
        let index = history
            .snapshot
            .as_ref()
            .and_then(|snapshot| snapshot.group);
        if let Some(group) = index {
            finding = finding.because(format!(
                "it is number {} of a group of {}",
                group.index, group.size
            ));
        }
        if case
            .header
            .as_ref()
            .is_some_and(|header| header.attach.family == "tracepoint")
        {
            finding = finding.because(
                "by tracepoints alone the socket of a SYN may be told wrongly within a group: look at both with ss",
            );
        }
        findings.push(
            with_threads(with_queue(finding, history), history)
                .remedy(
                    format!("ss -ltnpe 'sport = :{}' | grep -w ino:{inode}", key.port),
                    "Names the process that holds this socket. See what it waits for (cat /proc/PID/task/*/wchan), then restart that worker alone.",
                )
                .remedy(
                    "let workers share one socket instead of SO_REUSEPORT (nginx: leave out `reuseport`)",
                    "Then any worker takes any connection and one that is stuck costs none. The workers contend for one queue.",
                ),
        );
    }
    findings
}

pub(super) fn too_slow(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in histories(case) {
        let Pattern::Slow(seconds, of) = pattern(case, history) else {
            continue;
        };
        let count = history.count(ACCEPT_FULL);
        let entered = history.count(ENTERED);
        let finding = Finding::new(
            rule,
            key.netns,
            history,
            count,
            format!(
                "The application accepts too slowly: in {seconds} of {of} s clients were refused, {count} handshakes, while {entered} connections got in."
            ),
        )
        .because(format!("refusals in {seconds} s of {of} s, with connections leaving the queue all along"));
        findings.push(
            with_queue(finding, history)
                .remedy(
                    "accept in more threads or processes, or do less between two calls of accept()",
                    "Look at what the accepting thread does: TLS handshakes, DNS, logging and locks in it are the usual reasons.",
                )
                .remedy(
                    format!("limit new connections in front of port {}", key.port),
                    "A load balancer that queues or refuses is kinder than SYNs that are dropped.",
                ),
        );
    }
    findings
}

pub(super) fn bursts(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in histories(case) {
        let Pattern::Bursts(bursts) = pattern(case, history) else {
            continue;
        };
        let count = history.count(ACCEPT_FULL);
        let limit = history
            .limit
            .map_or_else(|| "?".to_owned(), |limit| limit.to_string());
        let finding = Finding::new(
            rule,
            key.netns,
            history,
            count,
            format!(
                "The backlog of {limit} is too small for the bursts that come: {bursts} times the queue was full for a moment \
                 and then emptied, and {count} handshakes were refused."
            ),
        )
        .because(if case.tells(set_of(&[ACCEPTED])) {
            format!("{bursts} bursts, after each of which accept() emptied the queue within 2 s")
        } else {
            format!("{bursts} bursts, and connections entered the queue again between them")
        });
        findings.push(raise_limit(with_queue(finding, history), history));
    }
    findings
}

/// The remedies that raise the limit.
fn raise_limit(finding: Finding, history: &History) -> Finding {
    let somaxconn = history.somaxconn();
    let wanted = history.limit.map_or(4096, |limit| {
        (limit.max(1).saturating_mul(8)).clamp(1024, 65535)
    });
    let mut finding = finding.remedy(
        format!("set the application's backlog to {wanted}, then restart it"),
        "Its argument of listen(), e.g. `listen 80 backlog=…;` in nginx, `tcp-backlog` in Redis. Only listen() takes a new limit. \
         A longer queue hides a slow application: clients wait in it.",
    );
    if somaxconn.is_none_or(|somaxconn| somaxconn < wanted) {
        finding = finding.remedy(
            format!("sysctl -w net.core.somaxconn={wanted}"),
            "In the application's network namespace, before the restart, as it caps what listen() asks. Containers have their own.",
        );
    }
    finding
}

pub(super) fn full(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in histories(case) {
        let stuck =
            stuck_rule().is_some_and(|stuck| is_stuck_worker(stuck, case, key, history).is_some());
        if pattern(case, history) != Pattern::Unclear || stuck {
            continue;
        }
        let count = history.count(ACCEPT_FULL);
        let finding = Finding::new(
            rule,
            key.netns,
            history,
            count,
            format!(
                "{count} handshakes were refused because the accept queue was full; how it came to be full cannot be told from this."
            ),
        );
        findings.push(
            with_queue(finding, history)
                .remedy(
                    "queue-trace diagnose --for 30s",
                    "While it happens: looks at the normal course as well, and tells a stuck application from a burst.",
                )
                .remedy(
                    format!("ss -ltnp 'sport = :{}'", key.port),
                    "Recv-Q is the depth and Send-Q the limit, and it names the process. A Recv-Q that stays above Send-Q means that nobody accepts.",
                ),
        );
    }
    findings
}

pub(super) fn hang(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in histories(case) {
        let acks = history.count_of(ACK_DROPPED_ACCEPT_QUEUE_FULL);
        let cookies = history.count_of(COOKIE_DROPPED_ACCEPT_QUEUE_FULL);
        if acks + cookies == 0 {
            continue;
        }
        let finding = Finding::new(
            rule,
            key.netns,
            history,
            acks + cookies,
            format!(
                "Clients hang: {} times the client was connected as far as it knows and was refused here{}.",
                acks + cookies,
                if cookies > 0 {
                    format!(", {cookies} times with a valid SYN cookie")
                } else {
                    String::new()
                }
            ),
        );
        findings.push(with_queue(finding, history).remedy(
            "make the accept queue drain; see the finding about this listener's accept queue",
            "tcp_abort_on_overflow=1 would turn the hanging into resets: clients fail at once instead, also those that would have got in at the second try.",
        ));
    }
    findings
}

pub(super) fn abort(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in histories(case) {
        let count = history.count_of(ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET);
        if count == 0 {
            continue;
        }
        let finding = Finding::new(
            rule,
            key.netns,
            history,
            count,
            format!(
                "{count} clients were reset at their final ACK, because tcp_abort_on_overflow=1 and the accept queue was full."
            ),
        );
        findings.push(with_queue(finding, history).remedy(
            "sysctl -w net.ipv4.tcp_abort_on_overflow=0",
            "In the listener's network namespace; takes effect at once. Clients then retry instead of failing, so a short burst goes unnoticed. \
             Leave it at 1 only if clients are to go elsewhere at once.",
        ));
    }
    findings
}

pub(super) fn limit(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in histories(case) {
        let refused = history.count(ACCEPT_FULL);
        let Some(limit) = history.limit.filter(|_| refused > 0) else {
            continue;
        };
        // With an application that has stopped no limit would do.
        if matches!(pattern(case, history), Pattern::Stopped(_)) {
            continue;
        }
        let snapshot = history.snapshot.as_ref();
        let queue = snapshot.and_then(|snapshot| snapshot.accept_queue.as_ref());
        let from = queue.and_then(|queue| queue.limit_from.as_deref());
        let clamped =
            from == Some("somaxconn") || (from.is_none() && history.somaxconn() == Some(limit));
        let asked = match queue.and_then(|queue| queue.asked) {
            Some(asked) => format!("asked for {asked}"),
            None => "asked for as much or more".to_owned(),
        };
        let runtime = snapshot.and_then(|snapshot| snapshot.default_of.as_deref());
        let what = match runtime {
            Some(runtime) if !clamped => format!(
                "The backlog of {limit} is the default of {runtime}: nobody chose it for this service."
            ),
            _ if clamped => format!(
                "The backlog is cut to {limit} by net.core.somaxconn={limit}: the application {asked}."
            ),
            _ => continue,
        };
        let finding = Finding::new(rule, key.netns, history, refused, what);
        findings.push(raise_limit(with_queue(finding, history), history));
    }
    findings
}

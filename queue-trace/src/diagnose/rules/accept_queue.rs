//! Faults that show as a full accept queue: what its episodes tell of the application.

use queue_trace_common::outcome::{
    ACCEPTED, ACK_DROPPED_ACCEPT_QUEUE_FULL, ESTABLISHED_COOKIE, ESTABLISHED_HANDSHAKE,
    SYN_DROPPED_ACCEPT_QUEUE_FULL, Set,
};

use super::{
    super::rule::Rule,
    evidence::with_queue,
    group,
    stall::{DESCRIPTORS, could_not_accept, more_threads_help, with_cause},
};
use crate::{
    diagnose::{
        case::{ACCEPT_FULL, Case, ENTERED, History, Key, set_of},
        episode::{BURST_SECONDS, Episode, Pattern, STOPPED_SEEN_SECONDS, Trouble},
        finding::Finding,
        when::{When, duration, plural, refused},
    },
    model::{
        clock::NS_PER_SECOND,
        runtime,
        snapshot::{Descriptors, Snapshot},
    },
};

/// What tells how a queue came to be full: refusals, and connections that enter. Fast open
/// is left out: not every way to attach tells it.
pub(super) const NEEDS: Set = set_of(&[
    SYN_DROPPED_ACCEPT_QUEUE_FULL,
    ACK_DROPPED_ACCEPT_QUEUE_FULL,
    ESTABLISHED_HANDSHAKE,
    ESTABLISHED_COOKIE,
]);

/// The pattern of an episode, in the light of what is known of its owner and of the listener's
/// others: a pause for which a cause was seen is a stop, however short. A short one after which
/// nobody came to show that the queue had room again is a burst like those before it.
fn pattern(case: &Case, key: &Key, history: &History, episode: &Episode) -> Pattern {
    // What several sockets did is no pattern of one.
    if group::is_guessed_member(case, key, history) {
        return Pattern::Unclear;
    }
    let pattern = episode.pattern(case.told);
    if matches!(pattern, Pattern::Bursts | Pattern::Unclear)
        && case.tells(NEEDS)
        && episode.took_nothing_for(STOPPED_SEEN_SECONDS)
        && could_not_accept(history, episode)
    {
        return Pattern::TookNothing;
    }
    let short = episode.longest_run_ns < i128::from(BURST_SECONDS) * NS_PER_SECOND;
    if pattern != Pattern::Unclear || !short || !case.tells(NEEDS) {
        return pattern;
    }
    let others = history.detector.episodes(Trouble::AcceptQueueFull);
    let mut others = others.iter().map(|other| other.pattern(case.told));
    let bursts = others.clone().any(|other| other == Pattern::Bursts);
    if bursts && others.all(|other| matches!(other, Pattern::Bursts | Pattern::Unclear)) {
        Pattern::Bursts
    } else {
        pattern
    }
}

/// The episodes of a pattern, of listeners that are not one stuck socket of a group.
fn each<'a>(
    case: &'a Case,
    wanted: Pattern,
) -> impl Iterator<Item = (&'a Key, &'a History, When)> + 'a {
    case.listeners.iter().filter_map(move |(key, history)| {
        if group::is_stuck(case, key, history) {
            return None;
        }
        let when = When::of(
            history,
            Trouble::AcceptQueueFull,
            |episode| pattern(case, key, history, episode) == wanted,
            &[wanted],
        )?;
        Some((key, history, when))
    })
}

/// That the owner could not accept, if that is so.
fn with_descriptors(finding: Finding, history: &History) -> Finding {
    let snapshot = history.snapshot.as_ref();
    match snapshot.and_then(Snapshot::descriptors_used_up) {
        Some(used) => finding.because(format!(
            "its owner is out of file descriptors ({used}): accept() fails with EMFILE"
        )),
        None => finding,
    }
}

/// What the owner's threads do that do not accept, and whether it could.
fn with_owner(finding: Finding, history: &History) -> Finding {
    let finding = with_descriptors(finding, history);
    let snapshot = history.snapshot.as_ref();
    match snapshot.and_then(Snapshot::thread_words) {
        Some(words) => finding.because(format!(
            "what its threads did instead, when it was looked at last: {words}"
        )),
        None => finding,
    }
}

/// Whether its owner cannot accept for want of file descriptors.
fn lacks_descriptors(history: &History) -> Option<&Descriptors> {
    let descriptors = history.snapshot.as_ref()?.descriptors.as_ref();
    descriptors.filter(|descriptors| descriptors.is_used_up())
}

/// The remedies for an owner that is out of file descriptors.
fn more_descriptors(finding: Finding, history: &History) -> Finding {
    // Where this is the cause, it has them already.
    let Some(used) = lacks_descriptors(history).filter(|_| finding.cause != Some(DESCRIPTORS))
    else {
        return finding;
    };
    let wanted = used.limit.saturating_mul(4).max(65_536);
    let pid = used.pid;
    finding
        .remedy(
            format!("prlimit --pid {pid} --nofile={wanted}:{wanted}"),
            "Takes effect at once, until a restart: LimitNOFILE= in its systemd unit, or --ulimit nofile= of its container, makes it last.",
        )
        .remedy(
            format!("ls -l /proc/{pid}/fd | awk '{{print $NF}}' | sort | uniq -c | sort -rn | head"),
            "Shows what the descriptors are used for. A number that only grows is a leak, for which no limit is high enough.",
        )
}

pub(super) fn stopped(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history, when) in each(case, Pattern::TookNothing) {
        let worst = when.whole().iter().max_by_key(|one| one.longest_still_ns);
        let Some(worst) = worst else { continue };
        let still = duration(worst.longest_still_ns);
        let how = if case.tells(set_of(&[ACCEPTED])) {
            "no accept() took a connection"
        } else {
            "no connection entered the full queue, although every place that accept() makes lets one in"
        };
        let finding = rule
            .finding(
                key,
                history,
                when.packets(),
                format!(
                    "The application took nothing from its accept queue for {still}: {} refused.",
                    refused(worst)
                ),
            )
            .at(&when)
            .because(format!("for {still}, in which clients were refused, {how}"));
        let finding = with_owner(with_queue(finding, history, Some(worst)), history);
        let finding = with_cause(finding, history, &when);
        let mut finding = more_descriptors(finding, history);
        finding = finding.remedy(
            format!("ss -ltnp 'sport = :{}'", key.port),
            "Names the process. Then see what its threads wait for: cat /proc/PID/task/*/{comm,wchan}, \
             or a stack dump of its runtime (jstack, py-spy, gdb -p). Take it before a restart removes the evidence.",
        );
        if when.is_ongoing() {
            finding = finding.remedy(
                "restart the application",
                "Brings service back if it does not go on by itself. The connections in the queue are reset by it.",
            );
        }
        findings.push(finding);
    }
    findings
}

pub(super) fn too_slow(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history, when) in each(case, Pattern::TooSlow) {
        let worst = when.first();
        let left = worst.left.unwrap_or(0);
        let lasted = worst.observed_ns().max(1);
        let pace = match left {
            0 => String::new(),
            left => format!(" (one in {})", duration(lasted / i128::from(left))),
        };
        let waiting = worst
            .connections
            .count
            .saturating_sub(worst.served_later.count);
        let came = worst.count(ENTERED).saturating_add(waiting);
        let finding = rule.finding(key,
            history,
            when.packets(),
            format!(
                "The application takes connections more slowly than they come: {left} in {}{pace}, while {came} came; {} refused.",
                duration(lasted),
                refused(worst)
            ),
        )
        .at(&when)
        .because(format!(
            "refusals in {} of {}, and the queue never fell to half of its limit for {}",
            plural(worst.seconds, "second"),
            duration(lasted),
            duration(worst.longest_run_ns)
        ));
        let finding = with_descriptors(with_queue(finding, history, Some(worst)), history);
        let finding = with_cause(finding, history, &when);
        let finding = if lacks_descriptors(history).is_some() {
            // One is taken whenever another ends: more threads would not take more.
            more_descriptors(finding, history)
        } else if !more_threads_help(&finding) {
            finding
        } else {
            // Twice as many take twice as much; one more than is needed leaves it room.
            let workers = match left {
                0 => "more threads or processes".to_owned(),
                left => format!(
                    "at least {} times as many threads or processes",
                    (came / left).saturating_add(1).max(2)
                ),
            };
            finding.remedy(
                format!("accept in {workers}, or do less between two calls of accept()"),
                "Look at what the accepting thread does: requests that are served one after the other, TLS handshakes, DNS, logging and locks in it \
                 are the usual reasons. A longer backlog only makes clients wait longer, and a restart resets those that wait.",
            )
        };
        findings.push(finding.remedy(
            format!("limit new connections in front of port {}", key.port),
            "A load balancer that queues or refuses is kinder than SYNs that are dropped.",
        ));
    }
    findings
}

pub(super) fn bursts(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history, when) in each(case, Pattern::Bursts) {
        let deepest = when.whole().iter().max_by_key(|one| one.enough());
        let Some(deepest) = deepest else { continue };
        let enough = deepest.enough();
        let limit = deepest
            .limit
            .map_or_else(|| "?".to_owned(), |(_, most)| most.to_string());
        let bursts: u64 = when.whole().iter().map(|one| one.drained.max(1)).sum();
        let needed = enough.map_or(String::new(), |enough| {
            let about = match (deepest.unnamed, deepest.deepest_burst.error_percent) {
                (0, 0) => "",
                (0, _) => "about ",
                _ => "at least ",
            };
            format!("; the deepest burst needed a backlog of {about}{enough}")
        });
        let finding = rule.finding(key,
            history,
            when.packets(),
            format!(
                "The backlog of {limit} is too small for the bursts that come: the queue was full in {}, and empty again after each; {} refused{needed}.",
                plural(bursts, "burst"),
                refused(when.first())
            ),
        )
        .at(&when)
        .because(format!(
            "the longest of them was full for {}, and then the queue was seen at half of its limit or less",
            duration(deepest.longest_run_ns)
        ));
        let finding = with_queue(finding, history, Some(deepest));
        let then = deepest.limit.map(|(_, most)| u64::from(most));
        findings.push(raise_limit(finding, history, then, enough));
    }
    findings
}

/// The backlog to set: what was enough, and a third more, as a round number.
fn recommended(enough: u64) -> u32 {
    let roomy = enough.saturating_mul(4) / 3;
    u32::try_from(roomy)
        .unwrap_or(u32::MAX)
        .clamp(16, 32_768)
        .next_power_of_two()
        .min(65_535)
}

/// The remedies that raise the limit to what the deepest burst needed. `then`: the largest limit that
/// was in force.
pub(super) fn raise_limit(
    finding: Finding,
    history: &History,
    then: Option<u64>,
    enough: Option<u64>,
) -> Finding {
    let somaxconn = history.somaxconn();
    let limit = u64::from(history.limit.unwrap_or(0));
    if let (Some(then), Some(enough)) = (then, enough)
        && limit > then
        && limit >= enough
    {
        return finding.remedy(
            format!("leave the backlog at {limit}"),
            format!(
                "It was raised since, from {then}, and holds what the deepest burst needed ({enough})."
            ),
        );
    }
    let wanted = recommended(enough.unwrap_or(limit.saturating_mul(2)).max(limit));
    let snapshot = history.snapshot.as_ref();
    let place = snapshot.and_then(runtime::setting).unwrap_or(
        "its argument of listen(), e.g. `listen 80 backlog=…;` in nginx, `tcp-backlog` in Redis",
    );
    let mut finding = finding;
    if somaxconn.is_none_or(|somaxconn| somaxconn < wanted) {
        finding = finding.remedy(
            format!("sysctl -w net.core.somaxconn={wanted}"),
            "In the application's network namespace, before it is restarted, as it caps what listen() asks. Containers have their own.",
        );
    }
    let queue = snapshot.and_then(|snapshot| snapshot.accept_queue.as_ref());
    let from = queue.and_then(|queue| queue.limit_from.as_deref());
    let restart = match from {
        Some("somaxconn" | "earlier_somaxconn" | "backlog_or_earlier_somaxconn") => {
            " If it asks for as much already, the restart alone is enough."
        }
        _ => "",
    };
    finding.remedy(
        format!("set the application's backlog to {wanted}, then restart it"),
        format!(
            "Where: {place}. Only listen() takes a new limit.{restart} A longer queue hides a slow application: clients wait in it."
        ),
    )
}

pub(super) fn full(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut told: Vec<Key> = Vec::new();
    for (key, history, when) in each(case, Pattern::Unclear) {
        told.push(*key);
        let finding = rule.finding(key,
            history,
            when.packets(),
            format!(
                "The accept queue was full: {} refused; how it came to be full cannot be told from this.",
                refused(when.first())
            ),
        )
        .at(&when);
        let finding = with_queue(finding, history, Some(when.first()));
        let finding = with_cause(with_descriptors(finding, history), history, &when);
        findings.push(watch(more_descriptors(finding, history), key.port));
    }
    // Known as a number alone: no line tells when.
    for (key, history) in &case.listeners {
        let count = history.count(ACCEPT_FULL);
        if count == 0
            || !history
                .detector
                .episodes(Trouble::AcceptQueueFull)
                .is_empty()
        {
            continue;
        }
        let finding = rule.finding(
            key,
            history,
            count,
            format!(
                "The accept queue was full: {} refused; when is not told.",
                plural(count, "packet")
            ),
        );
        findings.push(watch(with_queue(finding, history, None), key.port));
    }
    findings
}

fn watch(finding: Finding, port: u16) -> Finding {
    finding
        .remedy(
            "queue-trace diagnose --for 30s",
            "While it happens: looks at the normal course as well, and tells a stuck application from a burst.",
        )
        .remedy(
            format!("ss -ltnp 'sport = :{port}'"),
            "Recv-Q is the depth and Send-Q the limit, and it names the process. A Recv-Q that stays above Send-Q means that nobody accepts.",
        )
}

pub(super) fn limit(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        // With an application that is stuck or too slow no limit would do.
        let of_limit = |episode: &Episode| {
            matches!(
                pattern(case, key, history, episode),
                Pattern::Bursts | Pattern::Unclear
            )
        };
        let patterns = [Pattern::Bursts, Pattern::Unclear];
        let Some(when) = When::of(history, Trouble::AcceptQueueFull, of_limit, &patterns) else {
            continue;
        };
        if group::is_stuck(case, key, history) {
            continue;
        }
        let worst = when.first();
        let Some((_, limit)) = worst.limit else {
            continue;
        };
        let Some(what) = limit_says(history, limit) else {
            continue;
        };
        let enough = when.whole().iter().filter_map(Episode::enough).max();
        let finding = rule.finding(key, history, when.packets(), what).at(&when);
        let finding = with_queue(finding, history, Some(worst));
        let then = Some(u64::from(limit));
        findings.push(raise_limit(finding, history, then, enough));
    }
    findings
}

/// What set the limit that was in force, if it is worth a word.
fn limit_says(history: &History, limit: u32) -> Option<String> {
    let snapshot = history.snapshot.as_ref();
    // What was told of another limit says nothing of this one.
    let queue = snapshot.and_then(|snapshot| snapshot.accept_queue.as_ref());
    let queue = queue.filter(|queue| queue.limit == Some(limit));
    let from = queue.and_then(|queue| queue.limit_from.as_deref());
    let asked = queue.and_then(|queue| queue.asked);
    let at_refusal = history.sysctls.map(|sysctls| sysctls.somaxconn);
    let asks = match asked {
        Some(asked) => format!("the application asked for {asked}"),
        None => "the application asked for as much or more".to_owned(),
    };
    let earlier = from == Some("earlier_somaxconn")
        || asked.is_some_and(|asked| i64::from(asked) > i64::from(limit))
            && at_refusal != Some(limit);
    if from == Some("somaxconn") || (from.is_none() && at_refusal == Some(limit)) {
        return Some(format!(
            "The backlog is cut to {limit} by net.core.somaxconn={limit}: {asks}."
        ));
    }
    let now = history.somaxconn();
    let now = now.map_or(String::new(), |now| {
        format!("; net.core.somaxconn is {now} now, and only a new listen() takes it")
    });
    if earlier {
        return Some(format!(
            "The backlog was cut to {limit} by net.core.somaxconn when the application called listen(): {asks}{now}."
        ));
    }
    // The default, too, is that of the limit that was told with it.
    let default_of = snapshot.filter(|_| queue.is_some());
    if let Some(runtime) = default_of.and_then(|snapshot| snapshot.default_of.as_deref()) {
        return Some(format!(
            "The backlog of {limit} is the default of {runtime}: nobody chose it for this service."
        ));
    }
    (asked.is_none() && runtime::is_default_somaxconn(limit) && history.somaxconn() != Some(limit)).then(|| {
        format!(
            "The backlog of {limit} is what the application asked for, or net.core.somaxconn at the time of its listen() ({limit} is a kernel's default){now}."
        )
    })
}

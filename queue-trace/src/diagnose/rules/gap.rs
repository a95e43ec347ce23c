//! The fault that nobody listens: between the end of a listener and the start of the next one.

use std::cmp::Reverse;

use queue_trace_common::outcome::Set;

use super::super::rule::Rule;
use crate::{
    diagnose::{
        case::{Case, History, Key},
        episode::{Episode, NOBODY, Pattern, Trouble},
        finding::{Finding, Harm},
        when::{When, duration, plural},
    },
    model::{clock::NS_PER_SECOND, event::rfc3339, snapshot::Snapshot},
};

/// What must have been looked for.
pub(super) const NEEDS: Set = NOBODY;

/// The times of listeners and of packets are told by two clocks that are put together: a packet may
/// seem to come so long before the end of the listener, or after the start of the next one.
const SLACK_NS: i128 = NS_PER_SECOND / 20;

/// A time without a listener.
#[derive(Debug)]
struct Gap<'a> {
    /// The end of the last listener before it.
    from: Option<(i128, &'a History)>,
    /// The start of the first one after it.
    to: Option<(i128, &'a History)>,
    /// How long somebody listened in between: restarts that follow each other closely are one
    /// episode.
    listened_ns: i128,
}

impl<'a> Gap<'a> {
    /// The one in which SYNs of an episode were refused.
    fn around(case: &'a Case, key: &Key, history: &History, episode: &Episode) -> Self {
        let sent_to = history.sent_to();
        let others = case.listeners.iter().filter(|(other, history)| {
            (other.netns, other.port) == (key.netns, key.port)
                && other.inode.is_some()
                && sent_to.is_none_or(|addr| history.listener.serves(addr))
        });
        let others: Vec<_> = others.map(|(_, history)| history).collect();
        let ends = others
            .iter()
            .filter_map(|history| Some((history.closed?, *history)));
        let from = ends
            .filter(|(at, _)| *at <= episode.begin_ns + SLACK_NS)
            .max_by_key(|(at, _)| *at);
        let starts = others
            .iter()
            .filter_map(|history| Some((history.listened?, *history)));
        let to = starts
            .filter(|(at, _)| *at >= episode.end_ns - SLACK_NS)
            .min_by_key(|(at, _)| *at);
        let within = |history: &&History| {
            let (listened, closed) = (history.listened?, history.closed?);
            let (from, to) = (from?.0, to.map_or(i128::MAX, |(at, _)| at));
            (listened >= from && closed <= to && closed > listened).then_some((listened, closed))
        };
        let mut within: Vec<_> = others.iter().filter_map(within).collect();
        within.sort_unstable();
        let mut listened_ns = 0;
        let mut until = i128::MIN;
        for (listened, closed) in within {
            listened_ns += (closed - listened.max(until)).max(0);
            until = until.max(closed);
        }
        Self {
            from,
            to,
            listened_ns,
        }
    }

    /// When it was and how long, as part of a sentence.
    fn words(&self, case: &Case) -> String {
        match (self.from, self.to) {
            (Some((from, before)), Some((to, after))) => format!(
                "for {}, from the end of {} to the start of {}",
                duration((to - from - self.listened_ns).max(0)),
                owner(before),
                owner(after)
            ),
            (Some((from, before)), None) => {
                let until = case.span().map_or(from, |(_, until)| until);
                format!(
                    "for {} at least, from the end of {} until the observation ended",
                    duration((until - from - self.listened_ns).max(0)),
                    owner(before)
                )
            }
            (None, Some((_, after))) => format!("until the start of {}", owner(after)),
            (None, None) => String::new(),
        }
    }

    /// The two moments.
    fn evidence(&self) -> String {
        let moment = |at: Option<(i128, &History)>, what: &str| {
            at.map(|(at, history)| format!("{} {what} at {}", history.name(), rfc3339(at)))
        };
        let moments = [
            moment(self.from, "was closed"),
            moment(self.to, "began to listen"),
        ];
        moments
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(", and ")
    }
}

/// Whose a listener is, or was.
fn owner(history: &History) -> String {
    let owner = history.snapshot.as_ref().and_then(Snapshot::owner);
    owner.unwrap_or_else(|| format!("the listener {}", history.name()))
}

pub(super) fn restart(rule: &Rule, case: &Case) -> Vec<Finding> {
    const ALL: [Pattern; 4] = [
        Pattern::TookNothing,
        Pattern::TooSlow,
        Pattern::Bursts,
        Pattern::Unclear,
    ];
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let Some(when) = When::of(history, Trouble::NoListener, |_| true, &ALL) else {
            continue;
        };
        let when = when.over(|episode| Gap::around(case, key, history, episode).to.is_some());
        let worst = when.first();
        let gap = Gap::around(case, key, history, worst);
        // On a port on which nobody ever listened this is the normal case.
        let Some((_, of)) = gap.from.or(gap.to) else {
            continue;
        };
        let mut finding = rule
            .finding(
                key,
                history,
                when.packets(),
                format!(
                    "Nobody listened on :{} {}; {} were refused.",
                    key.port,
                    gap.words(case),
                    refused(worst)
                ),
            )
            .at(&when)
            .because(gap.evidence())
            .because("the resets were sent by the kernel, as it found no socket for these SYNs");
        finding.listener = of.name();
        finding.owner = of.snapshot.as_ref().and_then(Snapshot::owner);
        if gap.to.is_none() {
            finding.harm = Harm::Outage;
        }
        let mut others: Vec<_> = when.whole().iter().skip(1).collect();
        others.sort_by_key(|episode| Reverse(episode.packets));
        for episode in others.into_iter().take(2) {
            let gap = Gap::around(case, key, history, episode);
            finding = finding.because(format!(
                "another time nobody listened {}; {} were refused",
                gap.words(case),
                refused(episode)
            ));
        }
        findings.push(
            finding
                .remedy(
                    format!("systemd socket activation: a .socket unit with ListenStream={}", key.port),
                    "systemd keeps the listening socket open, and connections wait in its queue while the service restarts. The server must take the socket from it.",
                )
                .remedy(
                    "start the new process before the old one ends: the server's own reload (nginx -s reload, haproxy -sf), or SO_REUSEPORT in both",
                    "The new socket listens before the old one is closed, so the port is never without a listener. What waits in the old socket's queue is reset at its end, unless net.ipv4.tcp_migrate_req=1.",
                )
                .remedy(
                    "drain first: take this server out of the load balancer, restart it, and put it back once it listens",
                    "Clients are then sent elsewhere meanwhile. A health check alone notices too late for a restart of a second.",
                ),
        );
    }
    findings
}

/// What was refused in an episode.
fn refused(episode: &Episode) -> String {
    let syns = plural(episode.packets, "SYN");
    let least = match episode.unnamed {
        0 => "",
        _ => "at least ",
    };
    match episode.clients.count {
        0 => syns,
        1 => format!("{syns} of {least}1 client"),
        _ => format!("{syns} of {least}{} clients", episode.clients.words()),
    }
}

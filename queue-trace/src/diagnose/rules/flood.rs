//! SYN queues that were full: by floods of SYNs that are never followed by an ACK, and by real
//! clients.

use std::collections::BTreeSet;

use ipnet::IpNet;
use queue_trace_common::outcome::{
    COOKIE_SENT_FULL, ESTABLISHED_COOKIE, ESTABLISHED_HANDSHAKE, SYN_DROPPED_LAST_QUARTER,
    SYN_DROPPED_SYN_QUEUE_FULL, Set,
};

use super::{
    super::rule::{Rule, at_least},
    accept_queue::raise_limit,
};
use crate::{
    diagnose::{
        case::{Case, ENTERED, History, Key, set_of},
        episode::{Episode, Trouble},
        finding::{Finding, Threshold},
        when::{When, plural, refused},
    },
    model::clients::{Clients, Network},
};

/// What tells a flood. Fast open is left out: not every way to attach tells it.
pub(super) const NEEDS: Set = set_of(&[
    COOKIE_SENT_FULL,
    SYN_DROPPED_SYN_QUEUE_FULL,
    ESTABLISHED_HANDSHAKE,
    ESTABLISHED_COOKIE,
]);

const UNANSWERED: &str = "SYNs that found the SYN queue full and of which nothing came";
const COOKIES_BACK: &str = "percent of the SYN cookies that came back, less than";
const ENTERED_PERCENT: &str = "without cookies: percent of them that became connections, at most";
const FEW: &str = "few: networks (/24, /64) that sent most";
const FEW_PERCENT: &str = "few: percent of the SYNs that these sent";

pub(super) static THRESHOLDS: [Threshold; 5] = [
    at_least(UNANSWERED, 100),
    at_least(COOKIES_BACK, 50),
    at_least(ENTERED_PERCENT, 10),
    at_least(FEW, 5),
    at_least(FEW_PERCENT, 80),
];

/// What filled a SYN queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// SYNs that nobody stands behind.
    Flood,
    /// Clients whose cookies came back.
    RealClients,
    /// It cannot be told: there are few of them.
    Unknown,
}

fn threshold(name: &str) -> u64 {
    let known = THRESHOLDS.iter().find(|threshold| threshold.name == name);
    known.map_or(u64::MAX, |threshold| threshold.value)
}

/// What filled the queue, judged against its own time: a flood is no smaller for the healthy
/// hours around it.
fn by(case: &Case, episode: &Episode) -> By {
    if !case.tells(NEEDS) {
        return By::Unknown;
    }
    let (sent, back) = episode.cookies();
    let dropped = episode.packets.saturating_sub(sent);
    if sent > 0 && back.saturating_mul(100) >= sent.saturating_mul(threshold(COOKIES_BACK)) {
        return By::RealClients;
    }
    // Where nothing was answered, nothing can come back: who got in otherwise tells.
    let entered = episode.count(ENTERED).saturating_mul(100);
    let few = entered <= dropped.saturating_mul(threshold(ENTERED_PERCENT));
    let unanswered = sent.saturating_sub(back) + if few { dropped } else { 0 };
    if unanswered >= threshold(UNANSWERED) {
        By::Flood
    } else {
        By::Unknown
    }
}

fn when(case: &Case, history: &History, wanted: By) -> Option<When> {
    let passes = |episode: &Episode| by(case, episode) == wanted;
    When::of(history, Trouble::SynQueueFull, passes, &[])
}

/// The networks that sent most, if they are few.
fn heavy<'a>(rule: &Rule, clients: &'a Clients) -> Option<&'a [Network]> {
    let few = rule.threshold(FEW) as usize;
    let top = &clients.networks[..few.min(clients.networks.len())];
    let sent: u64 = top.iter().map(|network| network.count).sum();
    let percent = rule.threshold(FEW_PERCENT);
    // Of those that are known to come from anywhere.
    let known = clients.events.saturating_sub(clients.unattributed);
    let few = sent.saturating_mul(100) >= known.saturating_mul(percent);
    (known > 0 && few).then_some(top)
}

/// The words and the evidence that both kinds of flood share.
fn finding(
    rule: &Rule,
    key: &Key,
    history: &History,
    clients: &Clients,
    when: &When,
    whence: &str,
) -> Finding {
    let worst = when.first();
    let (sent, back) = worst.cookies();
    let dropped = worst.packets.saturating_sub(sent);
    let came = if sent > 0 {
        format!("{back} of {sent} SYN cookies came back")
    } else {
        format!(
            "{} entered meanwhile",
            plural(worst.count(ENTERED), "connection")
        )
    };
    let finding = rule.finding(key,
        history,
        when.packets(),
        format!(
            "A SYN flood from {whence}: {} found the SYN queue full, at most {} in a second, and {came}.",
            plural(worst.packets, "SYN"),
            worst.worst_second
        ),
    )
    .at(when)
    .because(format!(
        "{sent} were answered with a SYN cookie, {dropped} were dropped"
    ));
    let top = clients.networks.iter().take(5);
    let top: Vec<_> = top
        .map(|network| format!("{} {}", network.network, network.count))
        .collect();
    let more = if clients.overflowed() {
        "more than "
    } else {
        ""
    };
    let estimate = match clients.estimate() {
        all if all.is_empty() => all,
        estimate => format!(" ({estimate})"),
    };
    let unknown = match clients.unattributed {
        0 => String::new(),
        unknown => format!(", {unknown} from unknown networks"),
    };
    let networks = clients.networks.len();
    let networks = match networks {
        1 => "1 network".to_owned(),
        _ => format!("{networks} networks"),
    };
    with_queue(finding, worst).because(format!(
        "of {} SYNs: {}{unknown}; {more}{networks} in all{estimate}",
        clients.events,
        top.join(", "),
    ))
}

fn with_queue(finding: Finding, worst: &Episode) -> Finding {
    match (worst.deepest_syn, worst.limit) {
        (Some(deepest), Some((_, limit))) => finding.because(format!(
            "the SYN queue was {deepest} deep at most, its limit was {limit}"
        )),
        _ => finding,
    }
}

/// The table of nft that drops what these networks send to a port: `nft` commands that take both
/// families.
#[must_use]
pub fn nft_drop(port: u16, networks: &[IpNet]) -> String {
    const TABLE: &str = "inet queue_trace_flood";
    let mut commands = vec![
        format!("add table {TABLE}"),
        format!("add chain {TABLE} in {{ type filter hook input priority -10; policy accept; }}"),
    ];
    for (family, is_v4) in [("ip", true), ("ip6", false)] {
        // One that lies within another is refused by nft.
        let of_family = networks.iter().filter(|net| net.addr().is_ipv4() == is_v4);
        let of_family = IpNet::aggregate(&of_family.copied().collect());
        let nets: BTreeSet<_> = of_family.iter().map(ToString::to_string).collect();
        if !nets.is_empty() {
            let nets = Vec::from_iter(nets).join(", ");
            commands.push(format!(
                "add rule {TABLE} in tcp dport {port} {family} saddr {{ {nets} }} drop"
            ));
        }
    }
    format!("nft '{}'", commands.join("; "))
}

/// The rules of nft that answer SYNs to a port before TCP sees them.
#[must_use]
pub fn nft_synproxy(port: u16) -> String {
    const TABLE: &str = "inet queue_trace_synproxy";
    format!(
        "nft 'add table {TABLE}; \
         add chain {TABLE} pre {{ type filter hook prerouting priority -300; policy accept; }}; \
         add rule {TABLE} pre tcp dport {port} tcp flags syn notrack; \
         add chain {TABLE} in {{ type filter hook input priority 0; policy accept; }}; \
         add rule {TABLE} in tcp dport {port} ct state invalid,untracked synproxy mss 1460 wscale 7 timestamp sack-perm; \
         add rule {TABLE} in tcp dport {port} ct state invalid drop'"
    )
}

pub(super) fn few(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let (Some(when), Some(clients)) = (when(case, history, By::Flood), case.clients_of(key))
        else {
            continue;
        };
        let Some(top) = heavy(rule, &clients) else {
            continue;
        };
        let nets: Vec<_> = top.iter().map(|top| top.network).collect();
        let names: Vec<_> = nets.iter().map(ToString::to_string).collect();
        let whence = format!("few networks ({})", names.join(", "));
        findings.push(
            finding(rule, key, history, &clients, &when, &whence).remedy(
                nft_drop(key.port, &nets),
                "Drops them before TCP sees them. A forged source address may be that of a real client: look at who is behind these networks. \
                 `nft delete table inet queue_trace_flood` removes it.",
            ),
        );
    }
    findings
}

pub(super) fn many(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let (Some(when), Some(clients)) = (when(case, history, By::Flood), case.clients_of(key))
        else {
            continue;
        };
        if heavy(rule, &clients).is_some() {
            continue;
        }
        let whence = match clients.networks.len() {
            0 => "unknown networks",
            _ => "many networks",
        };
        findings.push(
            finding(rule, key, history, &clients, &when, whence)
                .remedy(
                    "sysctl net.ipv4.tcp_syncookies",
                    "Must say 1, in the listener's network namespace: then real clients get in through the flood. Not 2, which uses cookies without need.",
                )
                .remedy(
                    nft_synproxy(key.port),
                    "Answers SYNs before they reach the listener (SYNPROXY; needs the sysctls net.netfilter.nf_conntrack_tcp_loose=0 and net.ipv4.tcp_timestamps=1). \
                     Above some million SYNs a second only the network in front of this machine helps. `nft delete table inet queue_trace_synproxy` removes it.",
                ),
        );
    }
    findings
}

/// Whether cookies were answered by real clients, or too few were sent to say who it was.
pub(super) fn queue_full(rule: &Rule, case: &Case) -> Vec<Finding> {
    let wanted = match rule.name {
        "syn-queue-too-small" => By::RealClients,
        _ => By::Unknown,
    };
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let Some(when) = when(case, history, wanted) else {
            continue;
        };
        let worst = when.first();
        let limit = worst
            .limit
            .map_or_else(|| "?".to_owned(), |(_, most)| most.to_string());
        let (sent, back) = worst.cookies();
        let enough = worst.enough();
        let what = match wanted {
            By::RealClients => format!(
                "The SYN queue (limit {limit}) is too small for the clients that come: {} found it full, {back} of {sent} SYN cookies came back, so these are real clients and no flood.",
                plural(worst.packets, "SYN"),
            ),
            _ => format!(
                "The SYN queue (limit {limit}) was full: {} found it so, {back} of {sent} SYN cookies came back; too few to tell a flood from clients.",
                plural(worst.packets, "SYN"),
            ),
        };
        let finding = rule
            .finding(key, history, when.packets(), what)
            .at(&when)
            .because(format!(
                "{sent} SYNs were answered with a SYN cookie, {} dropped: {}",
                worst.packets.saturating_sub(sent),
                refused(worst)
            ));
        let then = worst.limit.map(|(_, most)| u64::from(most));
        let finding = with_queue(finding, worst);
        findings.push(raise_limit(finding, history, then, enough));
    }
    findings
}

pub(super) fn cookies_off(rule: &Rule, case: &Case) -> Vec<Finding> {
    const DROPPED: Set = set_of(&[SYN_DROPPED_SYN_QUEUE_FULL, SYN_DROPPED_LAST_QUARTER]);
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let full = history.count_of(SYN_DROPPED_SYN_QUEUE_FULL);
        let quarter = history.count_of(SYN_DROPPED_LAST_QUARTER);
        // By tracepoints the rule is not told from others, but what it compares is known.
        let probably = history.in_last_quarter.saturating_sub(quarter);
        let count = full + quarter + probably;
        let sysctls = history
            .sysctls
            .filter(|sysctls| sysctls.tcp_syncookies == 0);
        let Some(sysctls) = sysctls.filter(|_| count > 0) else {
            continue;
        };
        let most = sysctls.tcp_max_syn_backlog;
        let why = match (full, quarter, probably) {
            (_, 0, 0) => "when the SYN queue was full".to_owned(),
            (0, 0, _) => format!(
                "when less than a quarter of tcp_max_syn_backlog ({most}) was left, which is probably why"
            ),
            _ => format!(
                "when the SYN queue was full, or less than a quarter of tcp_max_syn_backlog ({most}) was left"
            ),
        };
        let mut finding = rule.finding(key,
            history,
            count,
            format!("SYN cookies are off: {} dropped {why}.", plural(count, "SYN")),
        )
        .because("net.ipv4.tcp_syncookies was 0 when they were dropped")
        .because(format!(
            "{full} found the SYN queue full, {} the last quarter of tcp_max_syn_backlog ({most}), which is kept for peers that are known",
            if probably > 0 {
                format!("probably {}", quarter + probably)
            } else {
                quarter.to_string()
            }
        ));
        let passes = |episode: &Episode| episode.count(DROPPED) > 0;
        finding = match When::of(history, Trouble::SynQueueFull, passes, &[]) {
            Some(when) => with_queue(finding.at(&when), when.first()),
            None => finding.between(
                history.time_of(set_of(&[queue_trace_common::outcome::SYN_DROPPED_OTHER])),
            ),
        };
        finding = finding.remedy(
            "sysctl -w net.ipv4.tcp_syncookies=1",
            "In the listener's network namespace; takes effect at once. Connections made by cookie lose window scaling and SACK unless TCP timestamps are on.",
        );
        if quarter + probably > 0 {
            let wanted = most
                .saturating_mul(4)
                .max(1024)
                .next_power_of_two()
                .min(1 << 20);
            finding = finding.remedy(
                format!("sysctl -w net.ipv4.tcp_max_syn_backlog={wanted}"),
                "In the listener's network namespace; takes effect at once. Only with cookies off it limits anything.",
            );
        }
        findings.push(finding);
    }
    findings
}

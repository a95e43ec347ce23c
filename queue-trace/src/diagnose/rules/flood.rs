//! Floods of SYNs that are never followed by an ACK.

use ipnet::IpNet;
use queue_trace_common::outcome::{
    COOKIE_SENT_FULL, ESTABLISHED_COOKIE, ESTABLISHED_HANDSHAKE, SYN_DROPPED_LAST_QUARTER,
    SYN_DROPPED_SYN_QUEUE_FULL, Set,
};

use crate::{
    diagnose::{
        case::{Case, ENTERED, History, SYN_FULL, set_of},
        finding::{Finding, Threshold},
        rules::{Rule, at_least},
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

pub(super) static THRESHOLDS: [Threshold; 4] = [
    at_least("SYNs that found the SYN queue full", 100),
    at_least("percent of them that became connections, at most", 10),
    at_least("few: networks (/24, /64) that sent most", 5),
    at_least("few: percent of the SYNs that these sent", 80),
];

/// A flood at a listener: how many SYNs, and how many connections in the same time.
fn flood(rule: &Rule, case: &Case, history: &History) -> Option<(u64, u64)> {
    let syns = history.count(SYN_FULL);
    let entered = history.count(ENTERED);
    let many = syns >= rule.threshold("SYNs that found the SYN queue full");
    let percent = rule.threshold("percent of them that became connections, at most");
    let unfinished = entered.saturating_mul(100) <= syns.saturating_mul(percent);
    (many && unfinished && case.tells(NEEDS)).then_some((syns, entered))
}

/// The networks that sent most, if they are few.
fn heavy<'a>(rule: &Rule, clients: &'a Clients) -> Option<&'a [Network]> {
    let few = rule.threshold("few: networks (/24, /64) that sent most") as usize;
    let top = &clients.networks[..few.min(clients.networks.len())];
    let sent: u64 = top.iter().map(|network| network.count).sum();
    let percent = rule.threshold("few: percent of the SYNs that these sent");
    let few = sent.saturating_mul(100) >= clients.events.saturating_mul(percent);
    few.then_some(top)
}

/// The words and the evidence that both kinds share.
fn finding(
    rule: &Rule,
    netns: u32,
    history: &History,
    clients: &Clients,
    (syns, entered): (u64, u64),
    whence: &str,
) -> Finding {
    let seconds = history
        .time_of(SYN_FULL)
        .map_or(0.0, |(from, to)| (to - from) as f64 / 1e9);
    let cookies = history.count_of(COOKIE_SENT_FULL);
    let mut finding = Finding::new(
        rule,
        netns,
        history,
        syns,
        format!("A SYN flood from {whence}: {syns} SYNs found the SYN queue full within {seconds:.1} s, and {entered} connections came of it all."),
    )
    .because(format!(
        "{cookies} were answered with a SYN cookie, {} were dropped",
        syns - cookies.min(syns)
    ));
    if let (Some(deepest), Some(limit)) = (history.deepest_syn, history.limit) {
        finding = finding.because(format!(
            "the SYN queue was {deepest} deep at most, its limit is {limit}"
        ));
    }
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
    finding.because(format!(
        "of {} SYNs: {}; {more}{} networks in all{estimate}",
        clients.events,
        top.join(", "),
        clients.networks.len()
    ))
}

pub(super) fn few(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let (Some(numbers), Some(clients)) = (flood(rule, case, history), case.clients_of(key))
        else {
            continue;
        };
        let Some(top) = heavy(rule, &clients) else {
            continue;
        };
        let v6 = top.iter().any(|top| matches!(top.network, IpNet::V6(_)));
        let nets: Vec<_> = top.iter().map(|top| top.network.to_string()).collect();
        let (family, chain) = if v6 { ("ip6", "ip6") } else { ("ip", "ip") };
        findings.push(
            finding(rule, key.netns, history, &clients, numbers, &format!("few networks ({})", nets.join(", "))).remedy(
                format!(
                    "nft add table {chain} synflood; nft 'add chain {chain} synflood in {{ type filter hook input priority -10; }}'; \
                     nft add rule {chain} synflood in tcp dport {} {family} saddr '{{ {} }}' drop",
                    key.port,
                    nets.join(", ")
                ),
                "Drops them before TCP sees them. A forged source address may be that of a real client: look at who is behind these networks. \
                 nft delete table … removes it.",
            ),
        );
    }
    findings
}

pub(super) fn many(rule: &Rule, case: &Case) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let (Some(numbers), Some(clients)) = (flood(rule, case, history), case.clients_of(key))
        else {
            continue;
        };
        // Without known sources neither can be said.
        if clients.networks.is_empty() || heavy(rule, &clients).is_some() {
            continue;
        }
        findings.push(
            finding(rule, key.netns, history, &clients, numbers, "many networks")
                .remedy(
                    "sysctl net.ipv4.tcp_syncookies",
                    "Must say 1, in the listener's network namespace: then real clients get in whatever the flood does. Not 2, which uses cookies without need.",
                )
                .remedy(
                    format!(
                        "nft: table inet synproxy, with `tcp dport {} notrack` in prerouting and `synproxy mss 1460 wscale 7 timestamp sack-perm` in input",
                        key.port
                    ),
                    "Answers SYNs before they reach the listener; see nft(8), SYNPROXY STATEMENT. Above some million SYNs a second only the network in front of this machine helps.",
                ),
        );
    }
    findings
}

pub(super) fn cookies_off(rule: &Rule, case: &Case) -> Vec<Finding> {
    let dropped = set_of(&[SYN_DROPPED_SYN_QUEUE_FULL, SYN_DROPPED_LAST_QUARTER]);
    let mut findings = Vec::new();
    for (key, history) in &case.listeners {
        let count = history.count(dropped);
        let off = history
            .sysctls
            .is_some_and(|sysctls| sysctls.tcp_syncookies == 0);
        if count == 0 || !off {
            continue;
        }
        findings.push(
            Finding::new(
                rule,
                key.netns,
                history,
                count,
                format!("SYN cookies are off, so {count} SYNs were dropped when the SYN queue was full."),
            )
            .because("net.ipv4.tcp_syncookies was 0 when they were dropped")
            .because(format!(
                "{} found the SYN queue full, {} the last quarter of tcp_max_syn_backlog kept for known peers",
                history.count_of(SYN_DROPPED_SYN_QUEUE_FULL),
                history.count_of(SYN_DROPPED_LAST_QUARTER)
            ))
            .remedy(
                "sysctl -w net.ipv4.tcp_syncookies=1",
                "In the listener's network namespace; takes effect at once. Connections made by cookie lose window scaling and SACK unless TCP timestamps are on.",
            ),
        );
    }
    findings
}

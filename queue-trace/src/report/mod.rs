//! `queue-trace report`: one self-contained page of an incident. Needs no network when it is
//! made, and none when it is read.

mod charts;
mod episodes;
mod parts;

use jiff::{Timestamp, tz::TimeZone};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use queue_trace_common::outcome::{Kind, OUTCOMES};

use self::{
    charts::{Chart, charts},
    parts::{identity, left_out},
};
use crate::{
    diagnose,
    diagnose::{
        Case, Conclusion, Diagnosis, Finding,
        case::{History, Key},
    },
    model::{
        clock::NS_PER_SECOND, event::Name, ledger::Ledger, snapshot::Latency, words::short_time,
    },
};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const UPLOT: &str = include_str!("vendor/uPlot.iife.min.js");
const UPLOT_STYLE: &str = include_str!("vendor/uPlot.min.css");
const UPLOT_LICENCE: &str = include_str!("vendor/uPlot-LICENSE");

/// Nothing from anywhere else, whatever a recording has in it.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Listeners that have charts of their own.
const CHARTED: usize = 8;
/// Rows of a table.
const ROWS: usize = 1000;
/// Networks in the table of a listener's clients.
const NETWORKS: usize = 10;

/// The page.
#[must_use]
pub fn page(case: &Case) -> String {
    let diagnosis = diagnose::diagnose(case);
    let listeners = by_trouble(case);
    let overview = Vec::from_iter(charts::overview(case));
    let (trouble, rest): (Vec<_>, Vec<_>) = listeners
        .iter()
        .copied()
        .partition(|(_, history)| history.is_in_trouble());
    // Of a recording in which all was well, what was busy.
    let charted = if trouble.is_empty() { rest } else { trouble };
    let histories: Vec<_> = charted
        .into_iter()
        .filter(|(_, history)| history.is_busy())
        .take(CHARTED)
        .enumerate()
        .map(|(number, (key, history))| (key, history, charts(case, history, number)))
        .collect();
    let all = overview
        .iter()
        .chain(histories.iter().flat_map(|(_, _, charts)| charts));
    let data = serde_json::json!({ "charts": all.collect::<Vec<_>>() });
    // In a script nothing ends it but its own end.
    let data = data.to_string().replace('<', "\\u003c");
    let title = title(case);
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (title) }
                style { (PreEscaped(UPLOT_STYLE)) (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p.soft { (span(case)) }
                }
                main {
                    (findings(&diagnosis))
                    section aria-labelledby="course" {
                        h2 #course { "Course of time" }
                        @for chart in &overview { (figure(chart)) }
                        @for (key, history, charts) in histories.iter().filter(|(_, _, charts)| !charts.is_empty()) {
                            h3 { (history.name()) " " span.soft { (identity(key)) } }
                            @for chart in charts { (figure(chart)) }
                        }
                    }
                    (episodes::table(&listeners))
                    (listener_table(&listeners))
                    (client_table(case, &listeners))
                    (ledgers(case, &diagnosis))
                    (environment(case))
                }
                footer {
                    p { "Made by queue-trace " (env!("CARGO_PKG_VERSION")) ". What each verdict means: queue-trace's docs/verdicts.md." }
                    details { summary { "Licence of uPlot, which draws the charts" } pre { (UPLOT_LICENCE) } }
                }
                script type="application/json" #data { (PreEscaped(data)) }
                script { (PreEscaped(UPLOT)) }
                script { (PreEscaped(SCRIPT)) }
            }
        }
    }
    .into_string()
}

fn title(case: &Case) -> String {
    match &case.header {
        Some(header) => format!("Refused connections on {}", header.host),
        None => "Refused connections".to_owned(),
    }
}

/// A moment for people, in UTC, as readers are anywhere.
fn moment(ns: i128, format: &str) -> String {
    Timestamp::from_nanosecond(ns).map_or_else(
        |_| "?".to_owned(),
        |moment| moment.to_zoned(TimeZone::UTC).strftime(format).to_string(),
    )
}

fn span(case: &Case) -> String {
    match case.span() {
        None => "No moment is known.".to_owned(),
        Some((from, to)) => format!(
            "{} to {} UTC, {:.1} s, {} events",
            moment(from, "%Y-%m-%d %H:%M:%S"),
            moment(to, "%H:%M:%S"),
            case.seconds(),
            case.lines
        ),
    }
}

/// The listeners, those with most refusals first.
fn by_trouble(case: &Case) -> Vec<(&Key, &History)> {
    let refusals = queue_trace_common::outcome::of_kind(Kind::Refusal);
    let mut all: Vec<_> = case.listeners.iter().collect();
    all.sort_by_key(|(key, history)| (std::cmp::Reverse(history.count(refusals)), **key));
    all
}

fn findings(diagnosis: &Diagnosis) -> Markup {
    let (class, says) = match diagnosis.verdict {
        Conclusion::Findings => ("findings", format!("{} found.", plural(diagnosis.findings.len(), "finding"))),
        Conclusion::NothingFound => (
            "nothing_found",
            "Nothing wrong: no handshake was refused, every rule could be judged, and the ledger shows none that was missed.".to_owned(),
        ),
        Conclusion::CouldNotTell => (
            "could_not_tell",
            "Could not tell: nothing was found, but something may have been missed.".to_owned(),
        ),
    };
    html! {
        section aria-labelledby="findings" {
            h2 #findings { "What is wrong" }
            @if let Some(answer) = &diagnosis.answer {
                p { strong { (answer.about.join(" ")) } " " (answer.says) }
            }
            p.verdict.(class) { (says) }
            @for finding in &diagnosis.findings { (finding_of(finding)) }
            @if !diagnosis.doubts.is_empty() {
                h3 { "What is missing or in doubt" }
                ul { @for doubt in &diagnosis.doubts { li { (doubt) } } }
            }
            @if !diagnosis.not_judged.is_empty() {
                details {
                    summary { (plural(diagnosis.not_judged.len(), "rule")) " could not be judged" }
                    ul {
                        @for rule in &diagnosis.not_judged {
                            li { (rule.rule) ": " (rule.reason) }
                        }
                    }
                }
            }
        }
    }
}

fn plural(count: usize, what: &str) -> String {
    if count == 1 {
        format!("1 {what}")
    } else {
        format!("{count} {what}s")
    }
}

fn finding_of(finding: &Finding) -> Markup {
    let harm = finding.harm.word();
    html! {
        article {
            h3 {
                span.harm.(harm.to_lowercase()) { (harm) } " " (finding.listener)
                @if let Some(owner) = &finding.owner { " " span.soft { (owner) } }
            }
            p { strong { (finding.what) } }
            dl {
                @if let Some(when) = &finding.when { dt { "When" } dd { (when) } }
                dt { "Evidence" }
                dd { ul { @for evidence in &finding.evidence { li { (evidence) } } } }
                dt { "Why" }
                dd { (finding.why) }
                dt { "What to do" }
                dd {
                    @for remedy in &finding.remedies {
                        pre { code { (remedy.command) } }
                        p { (remedy.caveat) }
                    }
                }
            }
            p.soft {
                "Rule " (finding.rule)
                @for threshold in finding.thresholds { "; " (threshold.name) ": " (threshold.value) }
            }
        }
    }
}

fn figure(chart: &Chart) -> Markup {
    html! {
        figure {
            figcaption { (chart.title) }
            div.chart #(chart.id) role="img" aria-label=(chart.says()) {}
            details {
                summary { "The same as a table" }
                div.scroll {
                    table {
                        thead { tr { th scope="col" { "UTC" } @for series in &chart.series { th.n scope="col" { (series.label) } } } }
                        tbody {
                            @for (time, values) in chart.rows(ROWS) {
                                tr {
                                    th scope="row" { (moment(i128::from(time) * NS_PER_SECOND, "%H:%M:%S")) }
                                    @for value in values {
                                        td.n { @match value { Some(value) => (chart.shown(value)), None => "–" } }
                                    }
                                }
                            }
                        }
                    }
                }
                (left_out(chart.rows(usize::MAX).count(), ROWS, "moments"))
            }
        }
    }
}

/// Those in trouble; the others are counted, and folded.
fn listener_table(listeners: &[(&Key, &History)]) -> Markup {
    let (trouble, well): (Vec<_>, Vec<_>) = listeners
        .iter()
        .partition(|(_, history)| history.is_in_trouble());
    html! {
        section aria-labelledby="listeners" {
            h2 #listeners { "Listeners" }
            @if listeners.is_empty() { p { "The recording tells of no listener." } }
            @if !trouble.is_empty() { (listener_rows(&trouble)) }
            @if !well.is_empty() {
                p { (plural(well.len(), if trouble.is_empty() { "listener" } else { "other listener" })) " refused nothing and had room." }
                details { summary { "Show them" } (listener_rows(&well)) }
            }
        }
    }
}

fn listener_rows(listeners: &[(&Key, &History)]) -> Markup {
    html! {
        div.scroll { table {
            thead { tr {
                th scope="col" { "Listener" } th scope="col" { "Owner" } th.n scope="col" { "Limit" }
                th.n scope="col" { "Deepest" } th.n scope="col" { "Waited" } th scope="col" { "What happened" }
            } }
            tbody {
                @for (key, history) in listeners.iter().take(ROWS) {
                    tr {
                        th scope="row" { (history.name()) br; span.soft { (identity(key)) } }
                        td { (owner(history)) }
                        td.n { (number(history.limit)) @if let Some(from) = limit_words(history) { br; span.soft { (from) } } }
                        td.n { (number(history.deepest)) }
                        td.n.whole { (waited(history)) }
                        td {
                            @for outcome in OUTCOMES.iter().filter(|o| history.count_of(o.tag) > 0) {
                                (history.count_of(outcome.tag)) " × " (Name(outcome).to_string()) br;
                            }
                        }
                    }
                }
            }
        } }
        (left_out(listeners.len(), ROWS, "listeners"))
    }
}

/// What set its limit.
fn limit_words(history: &History) -> Option<String> {
    let words = history.snapshot.as_ref()?.limit_words();
    (!words.is_empty()).then_some(words)
}

/// How long its connections waited for accept().
fn waited(history: &History) -> Markup {
    let latency = history
        .snapshot
        .as_ref()
        .and_then(|told| told.accept_latency_us);
    html! {
        @match latency.and_then(Latency::distribution) {
            Some(spread) => {
                (short_time(spread.p50)) " half" br; (short_time(spread.p99)) " 99%" br; (short_time(spread.max)) " longest"
            },
            None => "–",
        }
    }
}

fn owner(history: &History) -> String {
    let Some(snapshot) = &history.snapshot else {
        return "–".to_owned();
    };
    snapshot.owner().unwrap_or_else(|| "–".to_owned())
}

fn number(number: Option<u32>) -> String {
    number.map_or_else(|| "–".to_owned(), |number| number.to_string())
}

fn client_table(case: &Case, listeners: &[(&Key, &History)]) -> Markup {
    let mut known: Vec<_> = listeners
        .iter()
        .filter_map(|(key, history)| Some((history, case.clients_of(key)?)))
        .collect();
    let all = known.len();
    known.truncate(CHARTED);
    html! {
        section aria-labelledby="clients" {
            h2 #clients { "Clients refused or put off" }
            @if known.is_empty() { p { "No client of a refusal is known." } }
            @for (history, clients) in known {
                h3 { (history.name()) }
                p.soft {
                    "By network (/24, or /64 of IPv6), of " (clients.events) " events"
                    @if clients.told < clients.events { "; " (clients.estimate()) }
                    @if clients.overflowed() { "; there are more networks than are counted apart, so small ones may be missing" } "."
                }
                div.scroll { table {
                    thead { tr { th scope="col" { "Network" } th.n scope="col" { "Events" } th.n scope="col" { "Share" } } }
                    tbody { @for network in clients.networks.iter().take(NETWORKS) {
                        tr {
                            th scope="row" { (network.network) }
                            td.n { (network.count) }
                            td.n { (format!("{:.0} %", 100.0 * network.share(&clients))) }
                        }
                    } }
                } }
                (left_out(clients.networks.len(), NETWORKS, "networks"))
            }
            (left_out(all, CHARTED, "listeners with such clients"))
        }
    }
}

fn ledgers(case: &Case, diagnosis: &Diagnosis) -> Markup {
    html! {
        section aria-labelledby="ledger" {
            h2 #ledger { "Ledger: the kernel's counters beside the verdicts" }
            @for proof in &diagnosis.proof { p { (proof) "." } }
            @if case.ledgers.is_empty() { p { "The recording has none." } }
            @for ledger in case.ledgers.values().take(CHARTED) { (ledger_of(ledger)) }
            (left_out(case.ledgers.len(), CHARTED, "namespaces"))
            @if !case.losses.is_empty() {
                h3 { "Lost on the way" }
                ul { @for (what, count) in &case.losses { li { (count) " " (what) } } }
            }
        }
    }
}

fn ledger_of(ledger: &Ledger) -> Markup {
    html! {
        h3 {
            "netns " (ledger.netns) ": "
            @match ledger.unexplained {
                Some(count) => { "unexplained " (count) },
                None => "not compared",
            }
            @if let Some(note) = &ledger.note { " (" (note) ")" }
        }
        div.scroll { table {
            thead { tr { th scope="col" { "Counter" } th.n scope="col" { "Kernel" } th.n scope="col" { "Seen" } } }
            tbody { @for (name, line) in &ledger.counters {
                tr {
                    th scope="row" { (name) }
                    td.n { @match line.kernel { Some(kernel) => (kernel), None => "?" } }
                    td.n { (line.seen) }
                }
            } }
        } }
    }
}

fn environment(case: &Case) -> Markup {
    html! {
        section aria-labelledby="environment" {
            h2 #environment { "Environment" }
            @if let Some(header) = &case.header {
                dl {
                    dt { "Host" } dd { (header.host) }
                    dt { "Kernel" } dd { (header.kernel) }
                    dt { "Attached by" } dd { (header.attach.family) ", at " (header.attach.hooks.len()) " places" }
                    dt { "Recorded by" } dd { "queue-trace " (header.version) ", from " (header.time) }
                    @if let Some(filters) = header.attach.filters.as_ref().filter(|all| !all.is_empty()) {
                        dt { "Filters, which leave out the rest" } dd { (filters.join(" ")) }
                    }
                    @if !header.attach.limits.is_empty() {
                        dt { "Not observable there" }
                        dd { ul { @for limit in &header.attach.limits { li { (limit) } } } }
                    }
                }
            } @else { p { "The recording has no header, so it is not known." } }
            @let all = case.listeners.values().filter(|history| history.sysctls.is_some());
            @let known: Vec<_> = all.clone().take(ROWS).collect();
            @if !known.is_empty() {
                h3 { "Settings at the listeners" }
                div.scroll { table {
                    thead { tr {
                        th scope="col" { "Listener" } th.n scope="col" { "tcp_syncookies" } th.n scope="col" { "tcp_abort_on_overflow" }
                        th.n scope="col" { "tcp_max_syn_backlog" } th.n scope="col" { "somaxconn" }
                    } }
                    tbody { @for history in known { @if let Some(sysctls) = history.sysctls {
                        tr {
                            th scope="row" { (history.name()) }
                            td.n { (sysctls.tcp_syncookies) } td.n { (sysctls.tcp_abort_on_overflow) }
                            td.n { (sysctls.tcp_max_syn_backlog) } td.n { (sysctls.somaxconn) }
                        }
                    } } }
                } }
                (left_out(all.count(), ROWS, "listeners"))
            }
        }
    }
}

//! The registry of metrics against what is made of it: docs/metrics.md, the dashboards, the
//! rules. With `QUEUE_TRACE_WRITE=1` what is made is written; else it is compared.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::PathBuf};

use queue_trace::{
    agent::registry::{BOUNDS, FROM_ZERO, METRICS, Metric, MetricKind, Scope},
    model::event::Name,
};
use queue_trace_common::outcome::Outcome;
use serde_json::{Value, json};

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Compares a file with what it should be, or writes it.
fn check(name: &str, text: &str) {
    if std::env::var_os("QUEUE_TRACE_WRITE").is_some() {
        fs::write(path(name), text).unwrap();
    }
    assert!(
        read(name) == text,
        "{name} is stale: QUEUE_TRACE_WRITE=1 cargo test -p queue-trace --test metrics"
    );
}

fn table(scope: Scope) -> String {
    let mut text = String::from(
        "| metric | type | labels | OpenTelemetry | what it says |\n|---|---|---|---|---|\n",
    );
    for metric in METRICS.iter().filter(|metric| metric.scope == scope) {
        let labels: Vec<_> = metric
            .labels
            .iter()
            .map(|label| format!("`{label}`"))
            .collect();
        let otel = match (metric.otel, metric.unit) {
            ("", _) => String::new(),
            (name, "") => format!("`{name}`"),
            (name, unit) => format!("`{name}` {unit}"),
        };
        text.push_str(&format!(
            "| `{}` | {} | {} | {otel} | {} |\n",
            metric.name(),
            metric.kind.prometheus(),
            labels.join(", "),
            metric.help
        ));
    }
    text
}

/// A block of code with so many words to a line.
fn code(words: &[String], to_a_line: usize) -> String {
    let lines = words.chunks(to_a_line);
    lines
        .map(|line| format!("    {}\n", line.join(" ")))
        .collect()
}

#[test]
fn the_page_of_metrics_is_the_registry() {
    let from_zero: Vec<_> = FROM_ZERO
        .iter()
        .map(|tag| Name(Outcome::of(*tag).unwrap()).to_string())
        .collect();
    let bounds: Vec<_> = BOUNDS
        .iter()
        .map(|bound| (f64::from(1u32 << bound) / 1e6).to_string())
        .collect();
    let text = read("packaging/metrics.md.in")
        .replace("@LISTENER@\n", &table(Scope::Listener))
        .replace("@HOST@\n", &table(Scope::Host))
        .replace("@AGENT@\n", &table(Scope::Agent))
        .replace("@FROM_ZERO@\n", &code(&from_zero, 1))
        .replace("@BOUNDS@\n", &code(&bounds, 6));
    check("docs/metrics.md", &text);
}

/// The names of metrics in a query.
fn names(query: &str) -> BTreeSet<String> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    query
        .split(|c: char| !word(c))
        .filter(|word| word.contains("queue_trace_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// All names that a scrape of the registry gives, and the labels.
fn known() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for metric in &METRICS {
        let name = metric.name();
        if metric.kind == MetricKind::Histogram {
            names.extend(["_bucket", "_sum", "_count"].map(|part| format!("{name}{part}")));
        }
        names.insert(name);
    }
    // A label, and not a metric.
    names.insert("process_executable_name".to_owned());
    names
}

#[test]
fn the_rules_ask_for_metrics_that_exist() {
    let rules = read("packaging/prometheus/queue-trace.rules.yml");
    let mut known = known();
    let recorded = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("- record: "));
    known.extend(recorded.map(str::to_owned));
    let mut found = 0;
    for line in rules
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
    {
        for name in names(line) {
            assert!(known.contains(&name), "{name} in {line}");
            found += 1;
        }
    }
    assert!(found >= 20, "{found}");
}

/// The alerts lead to pages and headings that are there.
#[test]
fn the_runbooks_of_alerts_are_there() {
    let rules = read("packaging/prometheus/queue-trace.rules.yml");
    let alerts = rules.matches("- alert:").count();
    let runbooks: Vec<_> = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("runbook: "))
        .collect();
    assert_eq!(runbooks.len(), alerts);
    for runbook in runbooks {
        let (file, anchor) = runbook.split_once('#').unwrap_or((runbook, ""));
        let anchor_of = |line: &str| -> String {
            let words = line.trim_start_matches('#').trim().to_lowercase();
            let kept = words
                .chars()
                .filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        };
        let text = read(file);
        let there = text
            .lines()
            .filter(|line| line.starts_with('#'))
            .any(|line| anchor_of(line) == anchor);
        assert!(anchor.is_empty() || there, "{runbook}");
    }
}

fn metric(name: &str) -> &'static Metric {
    let found = METRICS.iter().find(|metric| metric.name() == name);
    found.unwrap_or_else(|| panic!("there is no {name}"))
}

/// A panel: its title, the metric that it is about, its query and legend.
struct Panel {
    title: &'static str,
    metric: &'static str,
    query: &'static str,
    legend: &'static str,
}

const SELECTION: &str = "instance=~\"$instance\"";
const LISTENER: &str = "{{network_local_address}}:{{network_local_port}} {{systemd_unit}}{{k8s_pod_name}} {{process_executable_name}}";

const FLEET: [Panel; 10] = [
    Panel {
        title: "Refused, by host",
        metric: "queue_trace_host_outcomes_total",
        query: "sum by (instance) (rate(queue_trace_host_outcomes_total{SEL,verdict=~\"syn_dropped|ack_dropped|cookie_dropped|queue_discarded\"}[$__rate_interval]))",
        legend: "{{instance}}",
    },
    Panel {
        title: "Refused, by cause",
        metric: "queue_trace_host_outcomes_total",
        query: "sum by (verdict, cause) (rate(queue_trace_host_outcomes_total{SEL,verdict=~\"syn_dropped|ack_dropped|cookie_dropped|queue_discarded\"}[$__rate_interval]))",
        legend: "{{verdict}} {{cause}}",
    },
    Panel {
        title: "Listeners that refuse most",
        metric: "queue_trace_outcomes_total",
        query: "topk(10, sum without (verdict, cause) (rate(queue_trace_outcomes_total{SEL,verdict=~\"syn_dropped|ack_dropped|cookie_dropped\"}[$__rate_interval])) > 0)",
        legend: LISTENER,
    },
    Panel {
        title: "Fullest accept queues",
        metric: "queue_trace_accept_queue_peak",
        query: "topk(10, queue_trace_accept_queue_peak{SEL} / (queue_trace_accept_queue_limit{SEL} + 1))",
        legend: LISTENER,
    },
    Panel {
        title: "Episodes",
        metric: "queue_trace_episodes",
        query: "sum by (instance) (queue_trace_episodes{SEL})",
        legend: "{{instance}}",
    },
    Panel {
        title: "Findings",
        metric: "queue_trace_finding",
        query: "sum by (instance, rule) (queue_trace_finding{SEL})",
        legend: "{{instance}} {{rule}}",
    },
    Panel {
        title: "Unexplained",
        metric: "queue_trace_unexplained_events",
        query: "queue_trace_unexplained_events{SEL}",
        legend: "{{instance}}",
    },
    Panel {
        title: "Losses",
        metric: "queue_trace_loss_total",
        query: "sum by (instance, kind) (rate(queue_trace_loss_total{SEL}[$__rate_interval])) > 0",
        legend: "{{instance}} {{kind}}",
    },
    Panel {
        title: "Memory of the agent",
        metric: "process_resident_memory_bytes",
        query: "process_resident_memory_bytes{SEL} and on (instance) queue_trace_build_info",
        legend: "{{instance}}",
    },
    Panel {
        title: "CPU of the agent",
        metric: "process_cpu_seconds_total",
        query: "rate(process_cpu_seconds_total{SEL}[$__rate_interval]) and on (instance) queue_trace_build_info",
        legend: "{{instance}}",
    },
];

const ONE: [Panel; 10] = [
    Panel {
        title: "Accept queue",
        metric: "queue_trace_accept_queue_connections",
        query: "queue_trace_accept_queue_connections{SEL,network_local_port=~\"$port\"}",
        legend: LISTENER,
    },
    Panel {
        title: "Peak of the accept queue",
        metric: "queue_trace_accept_queue_peak",
        query: "queue_trace_accept_queue_peak{SEL,network_local_port=~\"$port\"}",
        legend: LISTENER,
    },
    Panel {
        title: "Limit of the accept queue",
        metric: "queue_trace_accept_queue_limit",
        query: "queue_trace_accept_queue_limit{SEL,network_local_port=~\"$port\"}",
        legend: LISTENER,
    },
    Panel {
        title: "Time that the accept queue was full",
        metric: "queue_trace_accept_queue_full_seconds_total",
        query: "rate(queue_trace_accept_queue_full_seconds_total{SEL,network_local_port=~\"$port\"}[$__rate_interval])",
        legend: LISTENER,
    },
    Panel {
        title: "Outcomes",
        metric: "queue_trace_outcomes_total",
        query: "sum by (verdict, cause) (rate(queue_trace_outcomes_total{SEL,network_local_port=~\"$port\"}[$__rate_interval]))",
        legend: "{{verdict}} {{cause}}",
    },
    Panel {
        title: "Wait for accept(), 99 of 100",
        metric: "queue_trace_accept_wait_seconds",
        query: "histogram_quantile(0.99, sum by (le, network_local_port) (rate(queue_trace_accept_wait_seconds_bucket{SEL,network_local_port=~\"$port\"}[$__rate_interval])))",
        legend: "{{network_local_port}}",
    },
    Panel {
        title: "Wait for accept(), mean",
        metric: "queue_trace_accept_wait_seconds",
        query: "sum by (network_local_port) (rate(queue_trace_accept_wait_seconds_sum{SEL,network_local_port=~\"$port\"}[$__rate_interval])) / sum by (network_local_port) (rate(queue_trace_accept_wait_seconds_count{SEL,network_local_port=~\"$port\"}[$__rate_interval]))",
        legend: "{{network_local_port}}",
    },
    Panel {
        title: "Oldest connection that waits",
        metric: "queue_trace_oldest_waiting_seconds",
        query: "queue_trace_oldest_waiting_seconds{SEL,network_local_port=~\"$port\"}",
        legend: LISTENER,
    },
    Panel {
        title: "SYN queue",
        metric: "queue_trace_syn_queue_requests",
        query: "queue_trace_syn_queue_requests{SEL,network_local_port=~\"$port\"}",
        legend: LISTENER,
    },
    Panel {
        title: "Sockets, and full ones",
        metric: "queue_trace_listener_full_sockets",
        query: "queue_trace_listener_full_sockets{SEL,network_local_port=~\"$port\"}",
        legend: LISTENER,
    },
];

/// A dashboard in Grafana's JSON.
fn dashboard(uid: &str, title: &str, about: &str, panels: &[Panel], with_port: bool) -> Value {
    let datasource = json!({"type": "prometheus", "uid": "${datasource}"});
    let query_variable = |name: &str, label: &str, query: &str| {
        json!({
            "name": name, "label": label, "type": "query", "datasource": datasource,
            "definition": query, "query": {"query": query, "refId": name},
            "refresh": 2, "multi": true, "includeAll": true, "allValue": ".*", "sort": 3,
            "current": {"text": "All", "value": "$__all"},
        })
    };
    let mut variables = vec![
        json!({"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
            "current": {"text": "default", "value": "default"}}),
        query_variable(
            "instance",
            "Instance",
            "label_values(queue_trace_build_info, instance)",
        ),
    ];
    if with_port {
        variables.push(query_variable(
            "port",
            "Port",
            "label_values(queue_trace_accept_queue_limit{instance=~\"$instance\"}, network_local_port)",
        ));
    }
    let panels = panels.iter().enumerate().map(|(number, panel)| {
        let metric = metric(panel.metric);
        let per_second = panel.query.contains("rate(");
        let unit = match (metric.unit_word(), per_second) {
            (Some("seconds"), _) if panel.query.starts_with("rate(") => "percentunit",
            (Some("seconds"), _) => "s",
            (Some("bytes"), _) => "bytes",
            _ if panel.query.contains(" / (") => "percentunit",
            (None, true) => "cps",
            _ => "short",
        };
        json!({
            "id": number + 1,
            "type": "timeseries",
            "title": panel.title,
            "description": metric.help,
            "datasource": datasource,
            "gridPos": {"h": 8, "w": 12, "x": number % 2 * 12, "y": number / 2 * 8},
            "fieldConfig": {"defaults": {"unit": unit, "min": 0, "custom": {"fillOpacity": 10}}, "overrides": []},
            "options": {"legend": {"displayMode": "list", "placement": "bottom"}, "tooltip": {"mode": "multi", "sort": "desc"}},
            "targets": [{
                "refId": "A", "datasource": datasource,
                "expr": panel.query.replace("SEL", SELECTION),
                "legendFormat": panel.legend,
            }],
        })
    });
    json!({
        "uid": uid, "title": title, "description": about, "tags": ["queue-trace"],
        "schemaVersion": 39, "version": 1, "editable": true, "timezone": "browser", "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels.collect::<Vec<_>>(),
    })
}

#[test]
fn the_dashboards_are_made_of_the_registry() {
    let all = [
        (
            "queue-trace-fleet",
            dashboard(
                "queue-trace-fleet",
                "queue-trace: all hosts",
                "Which hosts and listeners refuse connections, and whether queue-trace sees all.",
                &FLEET,
                false,
            ),
        ),
        (
            "queue-trace-listener",
            dashboard(
                "queue-trace-listener",
                "queue-trace: one listener",
                "The queues of a listener, what was refused, and how long connections waited.",
                &ONE,
                true,
            ),
        ),
    ];
    let known = known();
    for (name, dashboard) in all {
        for panel in dashboard["panels"].as_array().unwrap() {
            let query = panel["targets"][0]["expr"].as_str().unwrap();
            assert!(query.contains(SELECTION), "{query}");
            for name in names(query) {
                assert!(known.contains(&name), "{name} in {query}");
            }
        }
        let text = format!("{}\n", serde_json::to_string_pretty(&dashboard).unwrap());
        check(&format!("packaging/grafana/{name}.json"), &text);
    }
}

/// The Prometheus operator takes the same rules as Prometheus, in a resource of its own.
#[test]
fn the_operators_rules_are_those_of_prometheus() {
    let rules = read("packaging/prometheus/queue-trace.rules.yml");
    let (_, groups) = rules.split_once("groups:\n").unwrap();
    let mut resource = String::from(
        "# Made from packaging/prometheus/queue-trace.rules.yml by queue-trace/tests/metrics.rs.\n\
         apiVersion: monitoring.coreos.com/v1\n\
         kind: PrometheusRule\n\
         metadata:\n  name: queue-trace\n\
         spec:\n  groups:\n",
    );
    for line in groups.lines() {
        match line {
            "" => resource.push('\n'),
            line => resource.push_str(&format!("  {line}\n")),
        }
    }
    check(
        "packaging/kubernetes/components/prometheus-rule/prometheus-rule.yaml",
        &resource,
    );
}

//! A recording of two services on one machine, one of which refuses: asked about one of them,
//! the diagnosis and the page speak of it alone.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, path::PathBuf};

use clap::Parser;
use queue_trace::{
    Cli,
    commands::Command,
    diagnose::{Case, Conclusion, State, diagnose, read_part},
    options::Filters,
    report,
};
use serde_json::{Value, json};

const START: i64 = 1_700_000_000;

fn time(second: i64) -> String {
    queue_trace::model::event::rfc3339(i128::from(START + second) * 1_000_000_000)
}

fn listener(inode: u64, port: u16) -> Value {
    json!({"addr": "0.0.0.0", "port": port, "inode": inode})
}

/// nginx on port 80 serves, and starts again on port 81 with another socket; redis on port 6379
/// refuses.
fn recording(filters: Option<&[&str]>) -> String {
    let outcomes: Vec<_> = queue_trace_common::outcome::OUTCOMES
        .iter()
        .map(|outcome| queue_trace::model::event::Name(outcome).to_string())
        .collect();
    let mut header = json!({
        "type": "header", "schema": 1, "version": "0", "time": time(0), "host": "a", "kernel": "6.12",
        "attach": {"family": "fentry", "hooks": [], "outcomes": outcomes, "limits": []},
    });
    if let Some(filters) = filters {
        header["attach"]["filters"] = json!(filters);
    }
    let snapshot = |second, inode, port, pid: u32, comm: &str, unit: &str| {
        json!({
            "type": "listener", "time": time(second), "netns": 1, "listener": listener(inode, port),
            "processes": [{"pid": pid, "comm": comm}], "cgroup": format!("/system.slice/{unit}"), "unit": unit,
            "accept_queue": {"depth": 0, "limit": 4},
        })
    };
    let counts = |second, inode, port, outcomes: Value| {
        json!({
            "type": "counts", "time": time(second), "mono_ns": (1000 + second) * 1_000_000_000, "netns": 1,
            "listener": listener(inode, port), "outcomes": outcomes,
        })
    };
    let total = |inode, port, verdict: &str, cause: &str, step: &str, count: u64| {
        let mut line = json!({
            "type": "total", "netns": 1, "listener": listener(inode, port), "step": step, "verdict": verdict,
            "count": count,
        });
        if !cause.is_empty() {
            line["cause"] = json!(cause);
        }
        line
    };
    let mut lines = vec![
        header,
        snapshot(0, 1, 80, 10, "nginx", "nginx.service"),
        snapshot(0, 2, 6379, 20, "redis-server", "redis.service"),
    ];
    for second in 1..20 {
        let served = json!({"queued": 3, "established:handshake": 3, "accepted": 3});
        let refused = json!({"syn_dropped:accept_queue_full": 7});
        // Its socket is new, and known a second later.
        let (inode, port) = if second < 10 { (1, 80) } else { (3, 81) };
        lines.push(counts(second, inode, port, served));
        lines.push(counts(second, 2, 6379, refused));
        if second == 10 {
            lines.push(snapshot(11, 3, 81, 30, "nginx", "nginx.service"));
        }
    }
    lines.push(total(1, 80, "queued", "", "syn", 27));
    lines.push(total(3, 81, "queued", "", "syn", 30));
    lines.push(total(
        2,
        6379,
        "syn_dropped",
        "accept_queue_full",
        "syn",
        133,
    ));
    lines.push(json!({
        "type": "ledger", "netns": 1, "lost": 0, "unexplained": 0,
        "counters": {"ListenDrops": {"kernel": 133, "seen": 133}},
    }));
    let count = lines.len();
    lines.push(json!({"type": "end", "time": time(20), "lines": count, "rotated": false}));
    let lines: Vec<_> = lines.iter().map(Value::to_string).collect();
    lines.join("\n") + "\n"
}

fn filters(args: &[&str]) -> Filters {
    let line = ["queue-trace", "diagnose"].iter().chain(args);
    match Cli::try_parse_from(line).unwrap().command {
        Some(Command::Diagnose(args)) => args.filters.for_conclusions(),
        other => panic!("{other:?}"),
    }
}

struct File(PathBuf);

impl Drop for File {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn case(name: &str, text: &str, args: &[&str]) -> Case {
    let name = format!("queue-trace-questions-{}-{name}.jsonl", std::process::id());
    let file = File(std::env::temp_dir().join(name));
    fs::write(&file.0, text).unwrap();
    read_part(std::slice::from_ref(&file.0), &filters(args)).unwrap()
}

#[test]
fn a_service_is_all_of_its_sockets_and_nothing_else() {
    let text = recording(Some(&[]));
    for args in [
        &["--process", "nginx"],
        &["--unit", "nginx"],
        &["-p", "80,81"],
    ] {
        let diagnosis = diagnose(&case("service", &text, args));
        assert_eq!(diagnosis.findings.len(), 0, "{args:?}: {diagnosis:?}");
        let answer = diagnosis.answer.unwrap();
        assert_eq!(answer.state, State::Served, "{args:?}: {answer:?}");
        assert_eq!((answer.listeners, answer.syns), (2, 57), "{args:?}");
        assert_eq!(answer.accepted, Some(57), "{args:?}");
        // The ledger is of all packets, and says what others had.
        let proof = diagnosis.proof.join("\n");
        assert!(proof.contains("133 more drops in netns 1"), "{proof}");
        assert!(proof.contains("every movement is explained"), "{proof}");
        assert_eq!(
            diagnosis.verdict,
            Conclusion::NothingFound,
            "{args:?}: {:?}",
            diagnosis.doubts
        );
    }
    for args in [
        &["--process", "redis-server"],
        &["--process", "20"],
        &["-p", "6379"],
    ] {
        let diagnosis = diagnose(&case("other", &text, args));
        assert_eq!(diagnosis.verdict, Conclusion::Findings, "{args:?}");
        let answer = diagnosis.answer.unwrap();
        assert_eq!((answer.state, answer.refused), (State::Refused, 133));
    }
}

#[test]
fn nobody_asked_is_nobody_answered() {
    let diagnosis = diagnose(&case("all", &recording(Some(&[])), &[]));
    assert!(diagnosis.answer.is_none());
    assert!(!diagnosis.proof.join("\n").contains("more drops"));
    // A namespace is no question about a listener.
    let diagnosis = diagnose(&case("netns", &recording(Some(&[])), &["--netns", "1"]));
    assert!(diagnosis.answer.is_none());
}

#[test]
fn what_the_recording_left_out_is_not_denied() {
    let state = |name, filters: Option<&[&str]>| {
        let diagnosis = diagnose(&case(name, &recording(filters), &["-p", "7070"]));
        assert_eq!(diagnosis.verdict, Conclusion::CouldNotTell);
        diagnosis.answer.unwrap().state
    };
    assert_eq!(state("whole", Some(&[])), State::NobodyListens);
    assert_eq!(state("older", None), State::NoListenerSeen);
    assert_eq!(state("part", Some(&["--port 80"])), State::NoListenerSeen);
    assert_eq!(state("same", Some(&["--port 7070"])), State::NobodyListens);
}

#[test]
fn the_outcomes_that_are_not_asked_for_are_not_judged() {
    let args = ["--event", "syn_dropped", "-p", "6379"];
    let diagnosis = diagnose(&case("event", &recording(Some(&[])), &args));
    assert!(
        diagnosis
            .not_judged
            .iter()
            .any(|rule| rule.needs.iter().any(|need| need == "queued")),
        "{:?}",
        diagnosis.not_judged
    );
}

#[test]
fn the_page_answers_too() {
    let page = report::page(&case("page", &recording(Some(&[])), &["--unit", "nginx"]));
    for words in [
        "--unit nginx.service",
        "57 SYNs arrived",
        "133 more drops in netns 1",
    ] {
        assert!(page.contains(words), "{words}");
    }
    assert!(!page.contains("6379"));
}

//! The rules on recordings of the very faults, made by the live tests (`tests/live/diagnose.rs`)
//! on real kernels; and on recordings of other faults, where they must not fire.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use proptest::prelude::*;
use queue_trace::{
    diagnose,
    diagnose::{Conclusion, Diagnosis, RULES},
    recording::Line,
};

/// Every recording, and the rules that must fire on it: these and no others.
const EXPECTED: &[(&str, &[&str])] = &[
    ("accept-overflow", &["accept-queue-full"]),
    ("delivery-healthy", &[]),
    ("fentry-accept-stopped", &["accept-stopped"]),
    ("fentry-accept-too-slow", &["accept-too-slow"]),
    ("fentry-bursts", &["backlog-too-small-for-bursts"]),
    ("fentry-healthy", &[]),
    ("fentry-listener-closed", &["listener-closed-on-clients"]),
    ("fentry-stuck-worker", &["reuseport-worker-stuck"]),
    ("fentry-syn-acks-unanswered", &["syn-acks-unanswered"]),
    (
        "tracepoint-abort-on-overflow",
        &["abort-on-overflow", "accept-queue-full"],
    ),
    ("tracepoint-accept-stopped", &["accept-stopped"]),
    ("tracepoint-accept-too-slow", &["accept-too-slow"]),
    ("tracepoint-bursts", &["backlog-too-small-for-bursts"]),
    ("tracepoint-chosen", &["backlog-too-small-for-bursts"]),
    (
        "tracepoint-clamped",
        &["backlog-clamped-or-default", "backlog-too-small-for-bursts"],
    ),
    (
        "tracepoint-clients-hang",
        &["accept-queue-full", "clients-hang"],
    ),
    (
        "tracepoint-default",
        &["backlog-clamped-or-default", "backlog-too-small-for-bursts"],
    ),
    (
        "tracepoint-flood-few-no-cookies",
        &["syn-flood-few-networks", "syncookies-off"],
    ),
    ("tracepoint-descriptors", &["accept-stopped"]),
    ("tracepoint-flood-many", &["syn-flood-many-networks"]),
    ("tracepoint-forged-cookies", &["refused-otherwise"]),
    ("tracepoint-healthy", &[]),
    (
        "tracepoint-listener-closed",
        &["listener-closed-on-clients"],
    ),
    ("tracepoint-restart-gap", &["restart-gap"]),
    ("tracepoint-socket-filter", &["refused-otherwise"]),
    (
        "tracepoint-slow-worker",
        &["accept-too-slow", "clients-hang", "syn-queue-too-small"],
    ),
    ("tracepoint-not-polled", &["accept-stopped"]),
    ("tracepoint-throttled", &["accept-stopped"]),
    ("tracepoint-syn-queue-too-small", &["syn-queue-too-small"]),
];

/// A rule that is tested on a course that is made up, in `episodes.rs`.
const MADE_UP: [&str; 1] = ["syn-queue-full"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings")
}

fn path(name: &str) -> PathBuf {
    folder().join(format!("{name}.jsonl"))
}

fn diagnosis(name: &str) -> Diagnosis {
    diagnose::diagnose(&diagnose::read(&[path(name)]).unwrap())
}

#[test]
fn each_rule_fires_on_its_fault_and_on_no_other() {
    for (name, expected) in EXPECTED {
        let diagnosis = diagnosis(name);
        let fired: BTreeSet<_> = diagnosis.findings.iter().map(|f| f.rule).collect();
        let expected: BTreeSet<_> = expected.iter().copied().collect();
        assert_eq!(fired, expected, "{name}: {diagnosis:#?}");
        // The older ones do not tell of SYNs that met no listener, and those by tracepoints do not
        // tell that a listener closed on its clients: they give no all-clear.
        let verdict = match (expected.is_empty(), *name) {
            (false, _) => Conclusion::Findings,
            (true, "delivery-healthy") => Conclusion::NothingFound,
            (true, _) => Conclusion::CouldNotTell,
        };
        assert_eq!(diagnosis.verdict, verdict, "{name}");
    }
}

/// No recording lies about unused, and no rule goes untested.
#[test]
fn every_recording_is_tested_and_every_rule_has_one() {
    let there: BTreeSet<_> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let tested: BTreeSet<_> = EXPECTED
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect();
    assert_eq!(there, tested);
    let fired: BTreeSet<_> = EXPECTED
        .iter()
        .flat_map(|(_, rules)| rules.iter().copied())
        .collect();
    let left: Vec<_> = RULES
        .iter()
        .map(|rule| rule.name)
        .filter(|name| !fired.contains(name) && !MADE_UP.contains(name))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// A recording has the evidence of why the application did not accept, and gives the same cause;
/// one without the evidence gives none.
#[test]
fn the_cause_of_a_stall_is_in_the_recording() {
    for (name, cause, words) in [
        ("tracepoint-throttled", Some("throttled"), "of 10 periods"),
        (
            "tracepoint-not-polled",
            Some("not_polled"),
            "no epoll of its owner has the listener",
        ),
        ("tracepoint-descriptors", Some("descriptors"), "EMFILE"),
        ("tracepoint-accept-stopped", None, ""),
    ] {
        let diagnosis = diagnosis(name);
        let finding = &diagnosis.findings[0];
        assert_eq!(finding.cause, cause, "{name}: {finding:#?}");
        assert_eq!(finding.what.contains(" Why: "), cause.is_some());
        assert!(finding.what.contains(words), "{}", finding.what);
    }
}

/// What a recording calls the cause is not believed.
#[test]
fn a_cause_follows_from_the_evidence() {
    let text = std::fs::read_to_string(path("tracepoint-throttled")).unwrap();
    let lines = text
        .lines()
        .filter(|line| line.contains("\"cause\":\"throttled\""));
    let mut seen = 0;
    for line in lines {
        let forged = line.replace("\"cause\":\"throttled\"", "\"cause\":\"stopped\"");
        let Line::Listener(snapshot) = Line::parse(forged.as_bytes()).unwrap() else {
            panic!("{line}");
        };
        let stall = snapshot.stall.unwrap();
        assert_eq!(stall.cause.as_deref(), Some("throttled"));
        seen += 1;
    }
    assert!(seen > 2, "{seen}");
}

/// Each half of the rule about limits says which of the two it was, and whose default.
#[test]
fn a_limit_is_told_to_be_clamped_or_a_default() {
    for (name, words) in [
        ("tracepoint-clamped", "cut to 8 by net.core.somaxconn"),
        (
            "tracepoint-default",
            "5 is the default of Python's socketserver",
        ),
    ] {
        let diagnosis = diagnosis(name);
        let mut limits = diagnosis.findings.iter();
        let limit = limits.find(|finding| finding.rule == "backlog-clamped-or-default");
        let what = &limit.unwrap().what;
        assert!(what.contains(words), "{what}");
    }
}

/// What is not too small is not to be lowered.
#[test]
fn no_remedy_lowers_a_setting() {
    for finding in diagnosis("tracepoint-default").findings {
        for remedy in finding.remedies {
            assert!(!remedy.command.contains("somaxconn"), "{remedy:?}");
        }
    }
}

fn of_text(text: &str) -> Diagnosis {
    let mut case = diagnose::Case::new();
    for line in text.lines() {
        Line::parse(line.as_bytes()).unwrap().to(&mut case).unwrap();
    }
    diagnose::diagnose(&case)
}

/// Each finding says all that it must say.
#[test]
fn a_finding_has_numbers_evidence_a_reason_and_a_remedy() {
    for (name, _) in EXPECTED {
        for finding in diagnosis(name).findings {
            let rule = finding.rule;
            assert!(
                finding.what.contains(|c: char| c.is_ascii_digit()),
                "{rule}: {}",
                finding.what
            );
            assert!(!finding.evidence.is_empty(), "{rule}");
            assert!(
                finding.why.ends_with('.') || finding.why.ends_with(')'),
                "{rule}"
            );
            assert!(!finding.remedies.is_empty(), "{rule}");
            for remedy in &finding.remedies {
                assert!(
                    !remedy.command.is_empty() && !remedy.caveat.is_empty(),
                    "{rule}"
                );
            }
        }
    }
}

/// Nothing found is no proof where the proof is missing.
#[test]
fn without_a_proof_it_cannot_tell() {
    let text = std::fs::read_to_string(path("tracepoint-healthy")).unwrap();
    let without: Vec<_> = text
        .lines()
        .filter(|line| !line.contains("\"type\":\"ledger\""))
        .collect();
    let diagnosis = of_text(&without.join("\n"));
    assert_eq!(diagnosis.verdict, Conclusion::CouldNotTell);
    assert!(diagnosis.doubts[0].contains("no ledger"), "{diagnosis:#?}");
    let unexplained = text.replace("\"unexplained\":0", "\"unexplained\":3");
    assert_eq!(of_text(&unexplained).verdict, Conclusion::CouldNotTell);
}

#[test]
fn the_exit_status_says_what_was_found() {
    for (name, status) in [
        ("delivery-healthy", 0),
        ("tracepoint-bursts", 1),
        ("tracepoint-healthy", 2),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_queue-trace"))
            .arg("diagnose")
            .arg(path(name))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(status), "{name}");
        assert!(!output.stdout.is_empty());
    }
    // Cut off before its end: nothing found proves nothing.
    let text = std::fs::read(path("tracepoint-healthy")).unwrap();
    let cut = std::env::temp_dir().join(format!("queue-trace-cut-{}.jsonl", std::process::id()));
    std::fs::write(&cut, &text[..text.len() / 2]).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_queue-trace"))
        .arg("diagnose")
        .arg(&cut)
        .output()
        .unwrap();
    std::fs::remove_file(&cut).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stdout).unwrap().contains("no end"));
}

/// What was lost is a doubt, which forbids the all-clear, and stands in the page and in the replay.
#[test]
fn a_loss_is_seen_by_every_reader() {
    let mut text = std::fs::read_to_string(path("delivery-healthy")).unwrap();
    let end = text.trim_end().rfind('\n').unwrap();
    let loss = "\n{\"type\":\"loss\",\"time\":\"2026-08-01T00:00:00Z\",\"failed_reads\":7}";
    text.insert_str(end, loss);
    let file = |end: &str| {
        let name = format!("queue-trace-loss-{}.{end}", std::process::id());
        std::env::temp_dir().join(name)
    };
    let (recording, page) = (file("jsonl"), file("html"));
    std::fs::write(&recording, text).unwrap();
    let run = |args: &[&str], more: &[&Path]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_queue-trace"));
        let output = command.args(args).args(more).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (output.status.code(), text)
    };
    let (status, diagnosis) = run(&["diagnose"], &[&recording]);
    assert_eq!(status, Some(2));
    assert!(diagnosis.contains("7 failed reads"), "{diagnosis}");
    let (_, replayed) = run(&["replay"], &[&recording]);
    assert!(replayed.contains("7 failed reads"), "{replayed}");
    let _ = run(&["report", "-o"], &[&page, &recording]);
    let reported = std::fs::read_to_string(&page).unwrap();
    assert!(reported.contains("7 failed reads"));
    for file in [recording, page] {
        std::fs::remove_file(file).unwrap();
    }
}

/// What `replay --json` writes is a recording: `diagnose` says nothing of damage, and gives no all-clear for
/// what a filter left out.
#[test]
fn a_filtered_recording_is_a_recording() {
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_queue-trace"))
            .args(args)
            .output()
            .unwrap();
        assert!(!output.stdout.is_empty(), "{args:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let healthy = path("delivery-healthy").display().to_string();
    let kept = std::env::temp_dir().join(format!("queue-trace-kept-{}.jsonl", std::process::id()));
    let told_of = |args: &[&str]| {
        std::fs::write(
            &kept,
            run(&[&["replay", "--json"], args, &[&healthy]].concat()),
        )
        .unwrap();
        let told = run(&["diagnose", "--json", &kept.display().to_string()]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let verdict = told["verdict"].as_str().unwrap().to_owned();
        (verdict, told["doubts"].to_string())
    };
    // All of it is the same as before.
    assert_eq!(told_of(&["--all"]), ("nothing_found".into(), "[]".into()));
    // Refusals alone: nothing is damaged, and nothing is cleared.
    assert_eq!(told_of(&[]), ("could_not_tell".into(), "[]".into()));
    // One client: the ledger is not compared, in text neither.
    let one = ["--all", "--client", "192.0.2.9"];
    let (verdict, doubts) = told_of(&one);
    assert_eq!(verdict, "could_not_tell");
    assert!(doubts.contains("not compared, a filter"), "{doubts}");
    let text = run(&[&["replay"], &one[..], &[&healthy]].concat());
    assert!(!text.contains("unexplained 0"), "{text}");
    std::fs::remove_file(&kept).unwrap();
}

/// One line of any type, with any numbers.
fn any_line() -> impl Strategy<Value = String> {
    let moment = (0..100_000u64).prop_map(|s| {
        queue_trace::model::event::rfc3339(
            i128::from(s) * 1_000_000_000 + 1_700_000_000_000_000_000,
        )
    });
    let outcome = proptest::sample::select(&queue_trace_common::outcome::OUTCOMES[..]);
    (moment, outcome, 0..1u64 << 53, 0..3u16, 0..3u64, 0..1u32 << 31, 0..3u8).prop_map(
        |(time, outcome, count, port, inode, depth, kind)| {
            let listener = format!("{{\"port\":{port},\"inode\":{inode}}}");
            let cause = outcome.cause.map_or(String::new(), |cause| format!(",\"cause\":\"{cause}\""));
            let words = format!(
                "\"step\":\"{}\",\"verdict\":\"{}\"{cause}",
                outcome.step.name(),
                outcome.verdict
            );
            match kind {
                0 => format!(
                    "{{\"type\":\"event\",\"time\":\"{time}\",\"mono_ns\":1,{words},\"netns\":1,\"listener\":{listener},\
                     \"client\":{{\"addr\":\"10.0.{port}.1\",\"port\":1}},\"accept_queue\":{{\"depth\":{depth},\"limit\":{depth}}},\"count\":{count}}}"
                ),
                1 => format!(
                    "{{\"type\":\"counts\",\"time\":\"{time}\",\"netns\":1,\"listener\":{listener},\"outcomes\":{{\"{}\":{count}}}}}",
                    queue_trace::model::event::Name(&outcome)
                ),
                _ => format!("{{\"type\":\"total\",\"netns\":1,\"listener\":{listener},{words},\"count\":{count}}}"),
            }
        },
    )
}

proptest! {
    /// Neither the rules nor the page panic, whatever happened.
    #[test]
    fn any_course_of_events_can_be_diagnosed_and_shown(
        headed in any::<bool>(),
        lines in proptest::collection::vec(any_line(), 0..60),
    ) {
        let header = std::fs::read_to_string(path("tracepoint-healthy")).unwrap();
        let mut case = diagnose::Case::new();
        if headed {
            let header = header.lines().next().unwrap();
            Line::parse(header.as_bytes()).unwrap().to(&mut case).unwrap();
        }
        for line in &lines {
            // Numbers that there cannot be are refused.
            if let Ok(line) = Line::parse(line.as_bytes()) {
                line.to(&mut case).unwrap();
            }
        }
        let page = queue_trace::report::page(&case);
        prop_assert!(page.contains("What is wrong"));
    }
}

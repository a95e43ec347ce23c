//! The documentation against the code: every outcome has its section, every line of
//! JSON its fields and its schema, and what the pages say of them is what is so.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path};

use clap::{CommandFactory, Parser};
use jsonschema::Validator;
use queue_trace::{
    commands::Cli,
    diagnose::RULES,
    kernel::{
        decode::decode,
        plan::{Offers, Plan},
    },
    listeners::{
        LimitFrom,
        stall::{PROCESSES, THREADS},
    },
    model::{
        clients::{Clients, Network},
        event::{Event, Name},
        front::FRONT,
        ledger::{BothSides, FrontLine, Ledger},
        lines::{AttachPlan, Counts, End, Header, LossNote, SCHEMA, Total},
        snapshot::{Descriptors, Gauge, Group, Snapshot},
        socket::{Listener, Process},
        stall::{Doing, Epoll, Files, Memory, Pressure, Quota, Role, Stall, cause::CAUSES},
    },
    options::Attach,
};
use queue_trace_common::{
    counter::{COUNTERS, Moved},
    hook,
    loss::Loss,
    outcome::{self, Kind, OUTCOMES, Outcome},
    reason,
    record::{self, Record},
};
use serde_json::{Value, json};

/// A file of the repository.
fn page(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The sections of docs/verdicts.md that are about an outcome: heading and text, with
/// single spaces between words.
fn sections() -> Vec<(String, String)> {
    let page = page("docs/verdicts.md");
    page.split("\n### ")
        .skip(1)
        .map(|section| {
            let (heading, text) = section.split_once('\n').unwrap();
            let text = text.split("\n## ").next().unwrap_or_default();
            let words: Vec<_> = text.split_whitespace().collect();
            (heading.trim_matches('`').to_owned(), words.join(" "))
        })
        .collect()
}

/// The outcome and its section, for every outcome.
fn documented() -> impl Iterator<Item = (&'static Outcome, String)> {
    let sections = sections();
    OUTCOMES.iter().map(move |outcome| {
        let name = Name(outcome).to_string();
        let mut own = sections.iter().filter(|(heading, _)| *heading == name);
        let (_, text) = own
            .next()
            .unwrap_or_else(|| panic!("{name} has no section"));
        assert!(own.next().is_none(), "{name} has two sections");
        (outcome, text.clone())
    })
}

#[track_caller]
fn assert_says(outcome: &Outcome, text: &str, words: &str) {
    assert!(
        text.contains(words),
        "{}: not said: {words}\n{text}",
        Name(outcome)
    );
}

#[test]
fn every_outcome_has_one_section_in_order_and_there_is_no_other() {
    let headings: Vec<_> = sections().into_iter().map(|(heading, _)| heading).collect();
    let named: Vec<_> = OUTCOMES.iter().map(|o| Name(o).to_string()).collect();
    let (mut sorted, mut expected) = (headings.clone(), named.clone());
    sorted.sort();
    expected.sort();
    assert_eq!(sorted, expected);
    assert_eq!(
        headings, named,
        "the sections stand in another order than the registry"
    );
}

#[test]
fn a_section_begins_with_what_the_registry_says() {
    for (outcome, text) in documented() {
        let says = format!("{}.", outcome.says);
        assert!(text.starts_with(&says), "{}: {says}\n{text}", Name(outcome));
    }
}

#[test]
fn the_counters_of_a_section_are_those_of_the_registry() {
    let names = |set: Moved| {
        let names: Vec<_> = COUNTERS
            .iter()
            .enumerate()
            .filter(|(index, _)| set >> index & 1 == 1)
            .map(|(_, counter)| format!("`{}`", counter.name))
            .collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    for (outcome, text) in documented() {
        let counters = format!(
            "- Counters: moves {}; may move {}.",
            names(outcome.moves),
            names(outcome.may_move)
        );
        assert_says(outcome, &text, &counters);
    }
}

#[test]
fn a_section_says_when_its_outcome_is_shown() {
    for (outcome, text) in documented() {
        let shown = match outcome.kind {
            Kind::Refusal => "- Shown: by default.",
            Kind::Routine => "- Shown: with `--all`.",
        };
        assert_says(outcome, &text, shown);
    }
}

#[test]
fn a_section_says_in_which_modes_its_outcome_can_be_told() {
    let everything = (1 << outcome::COUNT) - 1;
    let offers = Offers {
        families: [Ok(()), Ok(()), Ok(())],
        hooks: vec![Ok(()); hook::COUNT],
        delivery: Ok(()),
        reasons: reason::outcomes(&[1; _]),
        counters: everything,
        realtime: false,
    };
    let ways = [Attach::Fentry, Attach::Kprobe, Attach::Tracepoint];
    let plans = ways.map(|attach| Plan::make(attach, everything, &offers).unwrap());
    for (outcome, text) in documented() {
        let modes: Vec<_> = plans
            .iter()
            .filter(|plan| plan.observable & outcome.bit() != 0)
            .map(|plan| plan.family.name())
            .collect();
        assert_says(outcome, &text, &format!("- Modes: {}.", modes.join(", ")));
    }
}

#[test]
fn every_section_has_all_its_parts() {
    for (outcome, text) in documented() {
        for part in ["- Evidence: ", "- Client: ", "- What to do: "] {
            assert_says(outcome, &text, part);
        }
    }
}

/// `--event` takes a verdict, or a verdict with its cause: those documented, all of
/// them, and no other.
#[test]
fn what_event_takes_is_documented() {
    let page = page("docs/verdicts.md");
    let (_, after) = page.split_once("## What `--event` takes\n").unwrap();
    let (text, _) = after.split_once("\n## ").unwrap();
    let verdicts: BTreeSet<_> = text
        .split('`')
        .skip(1)
        .step_by(2)
        .map(str::to_owned)
        .collect();
    let known: BTreeSet<_> = OUTCOMES.iter().map(|o| o.verdict.to_owned()).collect();
    assert_eq!(verdicts, known);
    let headings = sections().into_iter().map(|(heading, _)| heading);
    for value in verdicts.into_iter().chain(headings) {
        let cli = Cli::try_parse_from(["queue-trace", "--event", &value]);
        assert!(cli.is_ok(), "--event {value}: {}", cli.unwrap_err());
    }
}

/// Every long option is in docs/reference.md, and every option there exists.
#[test]
fn the_options_in_the_reference_are_those_of_the_program() {
    let mut options: BTreeSet<String> = BTreeSet::new();
    let command = Cli::command();
    for command in std::iter::once(&command).chain(command.get_subcommands()) {
        options.extend(
            command
                .get_arguments()
                .filter_map(|arg| arg.get_long())
                .map(Into::into),
        );
    }
    let reference = page("docs/reference.md");
    let (_, after) = reference
        .split_once("\n## Options\n")
        .expect("the reference has no Options");
    let (text, _) = after.split_once("\n## ").unwrap();
    let written: BTreeSet<String> = text
        .split("`--")
        .skip(1)
        .map(|rest| {
            rest.chars()
                .take_while(|c| c.is_ascii_alphanumeric() || *c == '-')
                .collect()
        })
        .collect();
    let own: BTreeSet<_> = options
        .into_iter()
        .filter(|name| name != "help" && name != "version")
        .collect();
    assert_eq!(written, own);
}

/// The rules on the page are those of the registry, with their thresholds.
#[test]
fn the_rules_of_the_diagnosis_are_documented() {
    let page = page("docs/diagnose.md");
    let (_, rules) = page.split_once("\n## Rules\n").unwrap();
    let mut named = BTreeSet::new();
    for section in rules.split("\n### ").skip(1) {
        let (heading, text) = section.split_once('\n').unwrap();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        for name in heading.split('`').skip(1).step_by(2) {
            let rule = RULES.iter().find(|rule| rule.name == name);
            let rule = rule.unwrap_or_else(|| panic!("there is no rule {name}"));
            for threshold in rule.thresholds {
                let words = format!("{}: {}", threshold.name, threshold.value);
                assert!(text.contains(&words), "{name}: not said: {words}");
            }
            named.insert(name.to_owned());
        }
    }
    let known: BTreeSet<_> = RULES.iter().map(|rule| rule.name.to_owned()).collect();
    assert_eq!(named, known);
}

/// The causes on the page are those of the registry, in its order, and each says the same.
#[test]
fn the_causes_of_a_stall_are_documented() {
    let page = page("docs/diagnose.md");
    let (_, after) = page
        .split_once("\n## Why the application did not accept\n")
        .unwrap();
    let (text, _) = after.split_once("\n## ").unwrap();
    let sections = text.split("\n### ").skip(1).map(|section| {
        let (heading, text) = section.split_once('\n').unwrap();
        let words: Vec<_> = text.split_whitespace().collect();
        (heading.trim_matches('`').to_owned(), words.join(" "))
    });
    let sections: Vec<_> = sections.collect();
    let named: Vec<_> = sections.iter().map(|(name, _)| name.as_str()).collect();
    let known: Vec<_> = CAUSES.iter().map(|cause| cause.name).collect();
    assert_eq!(named, known);
    for (cause, (name, text)) in CAUSES.iter().zip(&sections) {
        let says = format!("{}.", cause.says);
        assert!(text.starts_with(&says), "{name}: {says}\n{text}");
    }
    let bounds = format!("{PROCESSES} processes and {THREADS} threads");
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(text.contains(&bounds), "not said: {bounds}");
}

/// What a page links to inside the repository is there.
#[test]
fn links_between_pages_lead_somewhere() {
    for (folder, name) in [
        ("", "README.md"),
        ("", "ARCHITECTURE.md"),
        ("", "CHANGELOG.md"),
        ("docs/", "verdicts.md"),
        ("docs/", "diagnose.md"),
        ("docs/", "events.md"),
        ("docs/", "reference.md"),
        ("docs/", "guide.md"),
        ("docs/", "troubleshooting.md"),
        ("docs/", "agent.md"),
        ("docs/", "metrics.md"),
    ] {
        let text = page(&format!("{folder}{name}"));
        for link in text.split("](").skip(1) {
            let (target, _) = link.split_once(')').unwrap();
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            if file.contains("://") {
                continue;
            }
            let file = if file.is_empty() { name } else { file };
            if file.starts_with("docs/pictures/") {
                let picture = Path::new(env!("CARGO_MANIFEST_DIR"))
                    .join("..")
                    .join(folder)
                    .join(file);
                assert!(picture.is_file(), "{folder}{name} shows {target}");
                continue;
            }
            let target_text = page(&format!("{folder}{file}"));
            let anchored = anchor.is_empty()
                || target_text
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .any(|line| anchor_of(line) == anchor);
            assert!(anchored, "{folder}{name} links to {target}");
        }
    }
}

/// The anchor that is made of a heading.
fn anchor_of(heading: &str) -> String {
    heading
        .trim_start_matches('#')
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
            _ => None,
        })
        .collect()
}

/// The lines of the JSON blocks of docs/events.md.
fn examples() -> Vec<Value> {
    let page = page("docs/events.md");
    page.split("```json\n")
        .skip(1)
        .flat_map(|block| block.split("```").next().unwrap_or_default().lines())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

fn schema() -> Value {
    serde_json::from_str(&page("docs/events.schema.json")).unwrap()
}

fn validator() -> Validator {
    jsonschema::options()
        .should_validate_formats(true)
        .build(&schema())
        .unwrap()
}

#[track_caller]
fn assert_valid(validator: &Validator, line: &Value) {
    let faults: Vec<_> = validator.iter_errors(line).map(|e| e.to_string()).collect();
    assert!(faults.is_empty(), "{line}\n{}", faults.join("\n"));
}

const TYPES: [&str; 9] = [
    "header", "listener", "event", "counts", "loss", "total", "clients", "ledger", "end",
];

#[test]
fn the_examples_fit_the_schema_and_show_every_type_of_line() {
    let validator = validator();
    let examples = examples();
    for example in &examples {
        assert_valid(&validator, example);
    }
    let shown: BTreeSet<_> = examples
        .iter()
        .filter_map(|line| line["type"].as_str())
        .collect();
    assert_eq!(shown, BTreeSet::from(TYPES));
}

/// All that can be known of a listener.
fn full_row(limit_from: LimitFrom) -> Snapshot {
    let latency = queue_trace::model::latency::Distribution {
        count: 1,
        ..Default::default()
    };
    let words = || Some("word".to_owned());
    let gauge = Gauge {
        depth: Some(1),
        limit: Some(1),
        high_water: Some(1),
        high_water_time: Some("2026-11-21T08:15:03.000000001Z".to_owned()),
        ..Gauge::default()
    };
    Snapshot {
        time: Some("2026-11-21T08:15:03.000000001Z".to_owned()),
        netns: 1,
        listener: Listener {
            addr: Some([127, 0, 0, 1].into()),
            port: 80,
            cookie: Some(1),
            inode: Some(1),
            device: None,
        },
        processes: Some(vec![Process::default()]),
        cgroup: words(),
        unit: words(),
        container: words(),
        pod: words(),
        group: Some(Group {
            share: Some(0.5),
            size: 1,
            full_among_idle: Some(true),
            ..Group::default()
        }),
        accept_queue: Some(Gauge {
            limit_from: Some(limit_from.name().to_owned()),
            asked: Some(1),
            somaxconn: Some(1),
            full_us: Some(1),
            full_times: Some(1),
            ..gauge.clone()
        }),
        syn_queue: Some(Gauge {
            young: Some(1),
            ..gauge
        }),
        drops: Some([("accept_queue_full".to_owned(), 1)].into()),
        counts: Some([("accepted".to_owned(), 1)].into()),
        accept_latency_us: Some(latency.into()),
        handshake_us: Some(latency.into()),
        oldest_waiting_us: Some(1),
        pod_name: Some("shop/web".to_owned()),
        device_name: Some("eth1".to_owned()),
        default_of: Some("Java".to_owned()),
        threads: Some([("S futex_do_wait".to_owned(), 3)].into()),
        descriptors: Some(Descriptors {
            pid: 812,
            open: 1024,
            limit: 1024,
        }),
        stall: Some(Box::new(full_stall())),
        listen_time: Some("2026-11-23T09:15:01.000000000Z".to_owned()),
        closed: Some(true),
        closed_time: Some("2026-11-23T09:15:02.000000000Z".to_owned()),
        ..Snapshot::default()
    }
}

/// The evidence of a stall with every field that it can have.
fn full_stall() -> Stall {
    let words = || "x".to_owned();
    let pressure = Pressure {
        cpu_us: Some(1),
        io_us: Some(1),
        memory_us: Some(1),
    };
    Stall {
        cause: Some(CAUSES[0].name.to_owned()),
        over_us: Some(1),
        holders: 1,
        looked: 1,
        threads: 1,
        threads_looked: 1,
        doing: vec![Doing {
            count: 1,
            pid: 1,
            tid: 1,
            comm: words(),
            main: true,
            state: "S".to_owned(),
            call: Some("futex".to_owned()),
            on: Some(words()),
            role: Some(Role::Takes),
            kernel: vec![words()],
            run_us: Some(1),
            delay_us: Some(1),
        }],
        tracer: Some(Process {
            pid: 1,
            comm: words(),
        }),
        epoll: Some(Epoll::default()),
        cpu: Some(Quota {
            file: words(),
            quota_us: Some(1),
            period_us: Some(1),
            periods: Some(1),
            throttled_periods: Some(1),
            throttled_us: Some(1),
        }),
        memory: Some(Memory {
            file: words(),
            current: Some(1),
            high: Some(1),
            max: Some(1),
            high_times: Some(1),
            max_times: Some(1),
        }),
        frozen_by: Some(words()),
        pressure: Some(pressure),
        host_pressure: Some(pressure),
        files: Some(Files {
            exempt: true,
            ..Files::default()
        }),
        unread: vec![words()],
    }
}

/// One line of each type as the program writes it, with every field that it can have.
fn full_lines() -> Vec<Value> {
    let everything = (1 << outcome::COUNT) - 1;
    let offers = Offers {
        families: [Err("refused".to_owned()), Ok(()), Ok(())],
        hooks: vec![Ok(()); hook::COUNT],
        delivery: Ok(()),
        reasons: reason::outcomes(&[1; _]),
        counters: outcome::Set::MAX,
        realtime: false,
    };
    let plan = Plan::make(Attach::Auto, everything, &offers).unwrap();
    let header = Header {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        time: queue_trace::model::event::rfc3339(1),
        host: "host".to_owned(),
        kernel: "6.12".to_owned(),
        attach: AttachPlan {
            filters: Some(vec!["--port 80".to_owned()]),
            ..AttachPlan::from(&plan)
        },
    };
    let loss = LossNote::between(&Loss::default(), &Loss::default(), header.time.clone());
    let mut lines = vec![json!(header), json!(loss)];
    for outcome in &OUTCOMES {
        for present in [0, u16::MAX] {
            let record = Record {
                version: record::VERSION,
                outcome: outcome.tag,
                present,
                count: 1,
                port: 8080,
                ..Record::default()
            };
            let event = decode(bytemuck::bytes_of(&record), 0).unwrap();
            lines.push(json!(event));
            // As it is written for events that were held back.
            lines.push(json!(Event {
                cpu: None,
                ..event.clone()
            }));
            lines.push(json!(Total {
                netns: 1,
                listener: event.listener,
                outcome,
                count: 1,
            }));
        }
    }
    lines.push(json!(Counts {
        time: header.time.clone(),
        mono_ns: Some(1),
        netns: 1,
        listener: Listener::default(),
        outcomes: [(Name(&OUTCOMES[0]).to_string(), 1)].into(),
    }));
    lines.push(json!(End {
        time: header.time,
        lines: 1,
        rotated: false,
    }));
    lines.push(json!(Clients {
        netns: 1,
        listener: Listener {
            addr: None,
            port: 8080,
            cookie: None,
            inode: None,
            device: None,
        },
        events: 3,
        told: 2,
        unattributed: 1,
        margin: 0.5,
        networks: vec![Network {
            network: "192.0.2.0/24".parse().unwrap(),
            count: 2,
            over: 1,
        }],
    }));
    for from in [
        LimitFrom::Backlog,
        LimitFrom::Somaxconn,
        LimitFrom::EarlierSomaxconn,
        LimitFrom::BacklogOrEarlierSomaxconn,
    ] {
        lines.push(json!(full_row(from)));
    }
    let seen = BothSides::default();
    let ledger = Ledger::between(1, &seen, &seen, 0, 0);
    lines.push(json!(ledger));
    let front = FrontLine {
        kernel: Some(3),
        seen: Some(2),
    };
    lines.push(json!(Ledger {
        note: Some("why".to_owned()),
        other_drops: Some(3),
        in_front: FRONT
            .iter()
            .map(|row| (Name(row.outcome()).to_string(), front))
            .collect(),
        ..ledger
    }));
    lines.push(json!(Ledger::one_sided(1, &seen.kernel, 0, 0, "why")));
    lines
}

#[test]
fn what_the_program_writes_fits_the_schema() {
    let validator = validator();
    for line in full_lines() {
        assert_valid(&validator, &line);
    }
}

/// The schema leaves room for fields to come, so that a field it forgot would pass. And
/// docs/events.md names every one.
#[test]
fn every_field_is_in_the_schema_and_on_the_page() {
    let schema = schema();
    let page = page("docs/events.md");
    for line in full_lines().iter().chain(&examples()) {
        let kind = line["type"].as_str().unwrap();
        let section = page.split(&format!("\n## {kind}\n")).nth(1).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let shared = page.split("\n## Units and names\n").nth(1).unwrap();
        let shared = shared.split("\n## ").next().unwrap();
        let mut fields = Vec::new();
        fields_of(line, &schema["$defs"][kind], &schema, &mut fields);
        for field in fields {
            let word = format!("`{field}`");
            assert!(
                section.contains(&word) || shared.contains(&word) || field == "type",
                "{kind}: {field} is not explained"
            );
        }
    }
}

/// The names of all fields of a value, each of which its schema must declare.
fn fields_of(value: &Value, declared: &Value, schema: &Value, names: &mut Vec<String>) {
    let declared = match declared["$ref"].as_str() {
        Some(reference) => schema.pointer(reference.trim_start_matches('#')).unwrap(),
        None => declared,
    };
    let Value::Object(fields) = value else { return };
    // A map: its keys are words of a registry.
    if declared["additionalProperties"].is_object() {
        return;
    }
    for (name, value) in fields {
        let property = &declared["properties"][name];
        assert!(
            property.is_object(),
            "the schema does not know {name}: {declared}"
        );
        names.push(name.clone());
        fields_of(value, property, schema, names);
    }
}

#[test]
fn the_schema_knows_the_words_of_the_registry_and_no_others() {
    let schema = schema();
    let listed = |name: &str| -> BTreeSet<String> {
        let words = schema["$defs"][name]["enum"].as_array().unwrap();
        words
            .iter()
            .map(|word| word.as_str().unwrap().to_owned())
            .collect()
    };
    let words = |word: fn(&Outcome) -> Option<&'static str>| -> BTreeSet<String> {
        OUTCOMES
            .iter()
            .filter_map(word)
            .map(str::to_owned)
            .collect()
    };
    assert_eq!(listed("step"), words(|o| Some(o.step.name())));
    assert_eq!(listed("verdict"), words(|o| Some(o.verdict)));
    assert_eq!(listed("cause"), words(|o| o.cause));
}

#[test]
fn the_schema_refuses_what_is_no_such_line() {
    let validator = validator();
    for example in examples() {
        for change in [
            |line: &mut Value| line["type"] = json!("letter"),
            |line: &mut Value| {
                line.as_object_mut().unwrap().remove("type");
            },
            |line: &mut Value| match line.get("netns") {
                Some(_) => line["netns"] = json!(-1),
                None => line["time"] = json!("yesterday"),
            },
        ] {
            let mut line = example.clone();
            change(&mut line);
            assert!(!validator.is_valid(&line), "{line}");
        }
    }
}

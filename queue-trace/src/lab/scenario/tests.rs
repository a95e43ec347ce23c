//! Every case against the kernel's own counters. Live: `cargo test -- --ignored`.

use std::{
    collections::{BTreeMap, HashSet},
    time::{Duration, Instant},
};

use queue_trace_common::{
    counter::{COOKIE_RECV, COUNTERS},
    outcome::{Outcome, Step},
};

use crate::lab::{Family, Netns, scenario::*};

/// The kernel's counters that one such decision moves, each by one. The cookies of
/// the laboratory are the kernel's own, which it counts when they come back.
fn moves(outcome: &Outcome, counter: usize) -> bool {
    let moved = outcome.moves | (outcome.may_move & COOKIE_RECV);
    moved & (1 << counter) != 0
}

fn counters(netns: &Netns) -> BTreeMap<&'static str, u32> {
    let text = netns.netstat().unwrap();
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().unwrap().split(' ');
    let values = lines.next().unwrap().split(' ');
    let all: BTreeMap<&str, &str> = names.zip(values).skip(1).collect();
    COUNTERS
        .iter()
        .map(|counter| (counter.name, all[counter.name].parse().unwrap()))
        .collect()
}

fn play(name: &str) {
    let scenario = find(name).unwrap();
    for family in Family::ALL {
        let mut stage = scenario.prepare(family).unwrap();
        let before = counters(stage.netns());
        assert!(before.values().all(|&count| count == 0), "{before:?}");

        let started = Instant::now();
        let report = stage.run().unwrap();
        let took = started.elapsed();

        let total = |counter: usize| {
            let moving = report.imposed.iter().filter(|i| moves(i.outcome, counter));
            moving.map(|i| i.count).sum::<u32>()
        };
        let names = COUNTERS.iter().map(|counter| counter.name);
        let expected: BTreeMap<_, _> = names.zip((0..).map(total)).collect();
        let imposed: Vec<_> = report.imposed.iter().map(ToString::to_string).collect();
        println!(
            "{name} {family} {took:?}: {}\n  attempted {}, clients {:?}\n  {}\n  {expected:?}",
            report.did,
            report.attempted,
            report.endings,
            imposed.join(", ")
        );
        assert_eq!(counters(stage.netns()), expected, "{name} {family}");
        assert!(took < Duration::from_secs(5), "{name} {family}: {took:?}");
        assert_eq!(report.listener, stage.address());
        assert_handshakes_accounted_for(&report);
    }
}

/// Each handshake begun is answered in exactly one way on its SYN.
fn assert_handshakes_accounted_for(report: &Report) {
    let of_syns = |i: &&Imposed| i.outcome.step == Step::Syn;
    let syns: u32 = report.imposed.iter().filter(of_syns).map(|i| i.count).sum();
    assert_eq!(syns, report.attempted);
}

#[test]
fn names_are_unique_and_kebab_case() {
    let names: HashSet<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    assert_eq!(names.len(), SCENARIOS.len());
    let kebab = |name: &str| name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    assert!(names.iter().all(|name| kebab(name)));
    assert!(find("no-such-case").is_none());
}

macro_rules! live_tests {
    ($($test:ident: $name:literal,)*) => {
        const TESTED: &[&str] = &[$($name),*];
        $(
            #[test]
            #[ignore = "needs root"]
            fn $test() {
                play($name);
            }
        )*
    };
}

live_tests! {
    accept_overflow: "accept-overflow",
    ack_overflow: "ack-overflow",
    abort_on_overflow: "abort-on-overflow",
    syn_flood: "syn-flood",
    last_quarter: "last-quarter",
    cookies: "cookies",
    cookies_always: "cookies-always",
    cookie_dropped: "cookie-dropped",
}

#[test]
fn every_case_has_a_live_test() {
    let names: Vec<_> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
    assert_eq!(names, TESTED);
}

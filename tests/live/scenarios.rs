//! Every case of the laboratory is told exactly: the tracer's verdicts are those that
//! the case imposed on the kernel, no more, no fewer, and the ledger closes.
//!
//! One tracer watches as many cases as `--netns` can name, each in its own namespace.

use live_tests::{Counters, Launch, Shown, imposed};
use queue_trace::lab::{Family, scenario::SCENARIOS};
use queue_trace_common::settings::MAX_NETNS;

#[test]
fn refusals_are_told_over_ipv4() {
    every_case_is_told(Family::V4, Shown::Refusals);
}

#[test]
fn refusals_are_told_over_ipv6() {
    every_case_is_told(Family::V6, Shown::Refusals);
}

#[test]
fn everything_is_told_over_ipv4() {
    every_case_is_told(Family::V4, Shown::All);
}

#[test]
fn everything_is_told_over_ipv6() {
    every_case_is_told(Family::V6, Shown::All);
}

fn every_case_is_told(family: Family, shown: Shown) {
    for scenarios in SCENARIOS.chunks(MAX_NETNS) {
        let mut stages: Vec<_> = scenarios
            .iter()
            .map(|scenario| scenario.prepare(family).unwrap())
            .collect();
        let before: Vec<_> = stages.iter().map(|s| Counters::of(s.netns())).collect();
        let launch = stages.iter().fold(Launch::showing(shown), |launch, stage| {
            launch.on(stage.netns())
        });

        let tracer = launch.start();
        let reports: Vec<_> = stages.iter_mut().map(|s| s.run().unwrap()).collect();
        let recording = tracer.stop();

        for (((scenario, stage), before), report) in
            scenarios.iter().zip(&stages).zip(&before).zip(&reports)
        {
            println!("{} over {family}, {shown:?}: {}", scenario.name, report.did);
            recording.assert_exact(stage.netns(), before, &imposed(report, shown));
        }
    }
}

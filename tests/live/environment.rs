//! The environment can produce every case: the kernel's own counters move as the
//! laboratory says, with no tracer about. Without this the other tests could pass by
//! comparing nothing with nothing.

use std::{env, process::Command};

use live_tests::{Counters, UNPROVEN, attach, program};
use queue_trace::lab::{
    Family,
    scenario::{Report, SCENARIOS},
};
use queue_trace_common::counter::{COOKIE_RECV, COUNTERS, Moved};

#[test]
fn the_harness_knows_what_to_test() {
    println!("{} attached by {}", program().display(), attach().name());
}

#[test]
fn the_kernel_does_what_every_case_imposes() {
    for scenario in SCENARIOS {
        for family in Family::ALL {
            let mut stage = scenario.prepare(family).unwrap();
            let before = Counters::of(stage.netns());
            let report = stage.run().unwrap();
            let after = Counters::of(stage.netns());
            for (index, counter) in COUNTERS.iter().enumerate() {
                let moved = after.since(&before, counter.name);
                let case = format!("{} over {family}: {}", scenario.name, counter.name);
                assert_eq!(moved, imposed_on(1 << index, &report), "{case}");
            }
            let total: u32 = report.imposed.iter().map(|imposed| imposed.count).sum();
            assert_ne!(total, 0, "{} imposes nothing", scenario.name);
        }
    }
}

/// The list of what is not proved names tests of this program.
#[test]
fn what_is_not_proved_is_of_tests_that_exist() {
    let list = Command::new(env::current_exe().unwrap())
        .args(["--list", "--format=terse"])
        .output()
        .unwrap();
    let list = String::from_utf8(list.stdout).unwrap();
    for row in UNPROVEN {
        let listed = format!("{}: test", row.test);
        assert!(list.lines().any(|line| line == listed), "no {}", row.test);
        println!("{}, {}, {:?}: {}", row.test, row.part, row.place, row.why);
    }
}

/// How far a case moves a counter. That a cookie came back is counted whatever
/// becomes of it, as the cookies of the laboratory are the kernel's own.
fn imposed_on(counter: Moved, report: &Report) -> u64 {
    let moves = |outcome: &queue_trace_common::outcome::Outcome| {
        (outcome.moves | (outcome.may_move & COOKIE_RECV)) & counter != 0
    };
    let moving = report
        .imposed
        .iter()
        .filter(|imposed| moves(imposed.outcome));
    moving.map(|imposed| u64::from(imposed.count)).sum()
}

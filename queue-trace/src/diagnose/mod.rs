//! `queue-trace diagnose`: what is wrong, how it is known, and what to change; from a live
//! stream or from a recording.

mod answer;
pub mod case;
pub mod detector;
pub mod distinct;
pub mod episode;
mod finding;
mod history;
mod question;
mod rule;
pub mod rules;
pub mod timeline;
pub mod when;

use anyhow::Result;

pub use self::{
    answer::{Answer, State},
    case::Case,
    finding::{Conclusion, Diagnosis, Finding, Harm, NotJudged, Remedy, Threshold},
    question::Question,
    rule::Rule,
    rules::RULES,
};
use crate::{
    options::Filters,
    recording::{Reader, select::Only},
};

/// Version of the diagnosis as JSON.
const SCHEMA: u32 = 1;

/// Reads a recording into a case.
///
/// # Errors
/// If there is nothing in it that can be read.
pub fn read(files: &[std::path::PathBuf]) -> Result<Case> {
    read_part(files, &Filters::default().for_conclusions())
}

/// Reads into a case what the filters let through of a recording.
///
/// # Errors
/// If there is nothing in it that can be read, or a namespace is named by a path.
pub fn read_part(files: &[std::path::PathBuf], filters: &Filters) -> Result<Case> {
    let mut only = Only::from_cli(filters)?.for_conclusions();
    let mut reader = Reader::open(files)?;
    let mut case = Case::new();
    case.has_whole_counts = !only.is_between();
    case.asked_for = only.outcomes;
    let all = only.passes_all();
    while let Some(entry) = reader.next()? {
        let Some(line) = entry.line else {
            continue;
        };
        // The case refuses a second recording.
        if all {
            only.note(&line);
            line.to(&mut case)?;
            continue;
        }
        for line in only.take(&line) {
            line.to(&mut case)?;
        }
    }
    case.notes = reader.notes().to_vec();
    case.ask(filters, only.finish());
    Ok(case)
}

/// Applies all rules to a case.
#[must_use]
pub fn diagnose(case: &Case) -> Diagnosis {
    let mut findings: Vec<_> = RULES
        .iter()
        .flat_map(|rule| rules::findings(rule, case))
        .collect();
    findings.sort_by(|a, b| a.harm.cmp(&b.harm).then(b.count.cmp(&a.count)));
    let not_judged: Vec<_> = RULES
        .iter()
        .filter_map(|rule| rule.not_judged(case))
        .collect();
    let (proof, mut doubts) = proof(case);
    let answer = answer::answer(case);
    if let Some(answer) = &answer
        && answer.listeners == 0
    {
        doubts.push(
            "no listener was seen that fits the filter, so there is nothing to judge".to_owned(),
        );
    }
    let verdict = if !findings.is_empty() {
        Conclusion::Findings
    } else if doubts.is_empty() && not_judged.is_empty() {
        Conclusion::NothingFound
    } else {
        Conclusion::CouldNotTell
    };
    Diagnosis {
        schema: SCHEMA,
        verdict,
        answer,
        seconds: case.seconds(),
        findings,
        proof,
        doubts,
        not_judged,
    }
}

/// What the ledgers prove, and what speaks against it.
fn proof(case: &Case) -> (Vec<String>, Vec<String>) {
    let mut proof = Vec::new();
    let mut doubts = case.notes.clone();
    doubts.extend(case.timeline.notes());
    for ledger in case.ledgers_asked() {
        proof.extend(ledger.beyond_filter());
        doubts.extend(ledger.only_counted());
        let moved: u64 = ledger
            .counters
            .values()
            .filter_map(|line| line.kernel)
            .sum();
        match ledger.unexplained {
            Some(0) => proof.push(format!(
                "ledger of netns {}: the kernel's counters moved by {moved} in all, every movement is explained by a verdict, {} records lost",
                ledger.netns, ledger.lost
            )),
            Some(count) => doubts.push(format!(
                "ledger of netns {}: {count} movements of the kernel's counters are not explained by verdicts",
                ledger.netns
            )),
            None => doubts.push(format!(
                "ledger of netns {}: not compared, {}",
                ledger.netns,
                ledger.note.as_deref().unwrap_or("it does not say why")
            )),
        }
    }
    if case.ledgers.is_empty() {
        doubts.push("there is no ledger, so nothing proves that all was seen".to_owned());
    }
    for (what, count) in &case.losses {
        // These are in the counts all the same.
        if *what != "records that found the ring full" {
            doubts.push(format!("lost on the way: {count} {what}"));
        }
    }
    if case.crowded_out > 0 {
        doubts.push(format!(
            "{} listeners that were in less trouble than others are left out for lack of room",
            case.crowded_out
        ));
    }
    if case.left_out > 0 {
        proof.push(format!(
            "{} listeners that refused nothing are not kept: those in trouble are",
            case.left_out
        ));
    }
    (proof, doubts)
}

//! `queue-trace diagnose`: what is wrong, how it is known, and what to change; from a live
//! stream or from a recording.

pub mod case;
pub mod detector;
pub mod distinct;
pub mod episode;
mod finding;
mod history;
mod rule;
pub mod rules;
pub mod timeline;
pub mod when;

use anyhow::Result;

pub use self::{
    case::Case,
    finding::{Conclusion, Diagnosis, Finding, Harm, NotJudged, Remedy, Threshold},
    rule::Rule,
    rules::RULES,
};
use crate::recording::Reader;

/// Version of the diagnosis as JSON.
const SCHEMA: u32 = 1;

/// Reads a recording into a case.
///
/// # Errors
/// If there is nothing in it that can be read.
pub fn read(files: &[std::path::PathBuf]) -> Result<Case> {
    let mut reader = Reader::open(files)?;
    let mut case = Case::new();
    while let Some(entry) = reader.next()? {
        if let Some(line) = entry.line {
            // It refuses a second recording.
            line.to(&mut case)?;
        }
    }
    case.notes = reader.notes().to_vec();
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
    let (proof, doubts) = proof(case);
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
    for ledger in case.ledgers.values() {
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
            "{} lines about refusals were left out: more listeners were in trouble than there is room for",
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

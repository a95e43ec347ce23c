//! `queue-trace diagnose`: what is wrong, how it is known, and what to change; from a live
//! stream or from a recording.

pub mod case;
pub mod detector;
pub mod distinct;
pub mod episode;
mod finding;
mod rules;
pub mod timeline;

use std::io::{self, Write};

use anyhow::{Context, Result};

pub use self::{
    case::Case,
    finding::{Diagnosis, Finding, NotJudged, Remedy, Threshold, Verdict},
    rules::{Harm, RULES, Rule},
};
use crate::{cli, recording::Reader};

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
            // A case never refuses a line.
            line.to(&mut case)?;
        }
    }
    case.notes = reader.notes().to_vec();
    Ok(case)
}

/// Diagnoses a recording, says it on standard output, and gives the exit status.
///
/// # Errors
/// If the recording cannot be read, or the output not written.
pub fn run(args: &cli::Diagnose) -> Result<u8> {
    let case = read(&args.files)?;
    show(&case, args.json)
}

/// Says what is wrong in a case on standard output, and gives the exit status.
///
/// # Errors
/// If standard output cannot be written.
pub fn show(case: &Case, json: bool) -> Result<u8> {
    let diagnosis = diagnose(case);
    let mut out = io::stdout().lock();
    let written = if json {
        serde_json::to_writer(&mut out, &diagnosis)
            .map_err(io::Error::from)
            .and_then(|()| out.write_all(b"\n"))
    } else {
        diagnosis.write_text(case, &mut out)
    };
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(diagnosis.verdict.status()),
    }
}

/// Applies all rules to a case.
#[must_use]
pub fn diagnose(case: &Case) -> Diagnosis {
    let mut findings: Vec<_> = RULES
        .iter()
        .flat_map(|rule| (rule.find)(rule, case))
        .collect();
    findings.sort_by(|a, b| a.harm.cmp(&b.harm).then(b.count.cmp(&a.count)));
    let not_judged = RULES
        .iter()
        .filter(|rule| !case.tells(rule.needs))
        .map(|rule| NotJudged {
            rule: rule.name,
            needs: rules::names(rule.needs & !case.told),
        })
        .collect();
    let (proof, doubts) = proof(case);
    let verdict = if !findings.is_empty() {
        Verdict::Findings
    } else if doubts.is_empty() {
        Verdict::NothingFound
    } else {
        Verdict::CouldNotTell
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
            "{} lines were about listeners beyond the first thousand",
            case.crowded_out
        ));
    }
    (proof, doubts)
}

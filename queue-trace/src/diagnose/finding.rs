//! What a rule found, and the diagnosis as a whole: as text and as JSON.

use std::io::{self, Write};

use serde::Serialize;

use crate::{
    diagnose::{
        case::{Case, History},
        rules::{Harm, Rule},
    },
    model::snapshot::Snapshot,
};

/// A finding: what happened, how it is known, why it is so, and what to do.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// How bad it is.
    pub harm: Harm,
    /// How many packets or connections it befell; orders findings of equal harm.
    pub count: u64,
    /// The network namespace.
    pub netns: u32,
    /// The listener, as address and port.
    pub listener: String,
    /// Its inode number, as in `ss -e`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// Who owns it, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What happened, in one sentence.
    pub what: String,
    /// What it rests on, a sentence each.
    pub evidence: Vec<String>,
    /// The mechanism.
    pub why: &'static str,
    /// What to do, best first.
    pub remedies: Vec<Remedy>,
    /// The thresholds that were passed.
    pub thresholds: &'static [Threshold],
}

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Remedy {
    /// The command or the setting.
    pub command: String,
    /// What it does, and the caveat that matters.
    pub caveat: String,
}

/// A number that a rule compares with.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Threshold {
    /// What is compared.
    pub name: &'static str,
    /// With what.
    pub value: u64,
}

impl Finding {
    /// Of a rule, at a listener.
    #[must_use]
    pub fn new(rule: &Rule, netns: u32, history: &History, count: u64, what: String) -> Self {
        let owner = history.snapshot.as_ref().and_then(Snapshot::owner);
        Self {
            rule: rule.name,
            harm: rule.harm,
            count,
            netns,
            listener: history.name(),
            inode: history.listener.inode,
            owner,
            what,
            evidence: Vec::new(),
            why: rule.why,
            remedies: Vec::new(),
            thresholds: rule.thresholds,
        }
    }

    /// With a piece of evidence more.
    #[must_use]
    pub fn because(mut self, evidence: impl Into<String>) -> Self {
        self.evidence.push(evidence.into());
        self
    }

    /// With something to do.
    #[must_use]
    pub fn remedy(mut self, command: impl Into<String>, caveat: impl Into<String>) -> Self {
        self.remedies.push(Remedy {
            command: command.into(),
            caveat: caveat.into(),
        });
        self
    }
}

/// What can be said in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing was found, and the ledger proves that nothing was missed.
    NothingFound,
    /// Something was found.
    Findings,
    /// Nothing was found, but it cannot be said that there was nothing.
    CouldNotTell,
}

impl Verdict {
    /// The exit status.
    #[must_use]
    pub fn status(self) -> u8 {
        match self {
            Self::NothingFound => 0,
            Self::Findings => 1,
            Self::CouldNotTell => 2,
        }
    }
}

/// The diagnosis of a case.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename = "diagnosis")]
pub struct Diagnosis {
    /// Version of this object; the promise of docs/events.md holds for it.
    pub schema: u32,
    /// What can be said.
    pub verdict: Verdict,
    /// Seconds observed.
    pub seconds: f64,
    /// The findings, worst first.
    pub findings: Vec<Finding>,
    /// What the ledgers say, a sentence each.
    pub proof: Vec<String>,
    /// What keeps it from being proved that nothing else happened.
    pub doubts: Vec<String>,
    /// Rules that could not be judged, and for want of what.
    pub not_judged: Vec<NotJudged>,
}

/// A rule that could not be judged.
#[derive(Debug, Clone, Serialize)]
pub struct NotJudged {
    /// The rule's name.
    pub rule: &'static str,
    /// The outcomes that were not looked for, or cannot be told there.
    pub needs: Vec<String>,
}

impl Diagnosis {
    /// As text.
    ///
    /// # Errors
    /// What the writer says.
    pub fn write_text(&self, case: &Case, out: &mut dyn Write) -> io::Result<()> {
        for (number, finding) in self.findings.iter().enumerate() {
            let Finding {
                listener, netns, ..
            } = finding;
            let owner = finding
                .owner
                .as_ref()
                .map_or(String::new(), |owner| format!(", {owner}"));
            writeln!(
                out,
                "{}. {}  {listener}  (netns {netns}{owner})",
                number + 1,
                finding.harm.word()
            )?;
            paragraph(out, "", &finding.what)?;
            for evidence in &finding.evidence {
                paragraph(out, "evidence", evidence)?;
            }
            paragraph(out, "why", finding.why)?;
            for remedy in &finding.remedies {
                writeln!(out, "   {:<9} {}", "do", remedy.command)?;
                paragraph(out, "", &remedy.caveat)?;
            }
            writeln!(out)?;
        }
        match self.verdict {
            Verdict::Findings => {}
            Verdict::NothingFound => writeln!(
                out,
                "Nothing wrong: no handshake was refused in {:.1} s, and nothing was missed.",
                self.seconds
            )?,
            Verdict::CouldNotTell => writeln!(
                out,
                "Could not tell: nothing was found in {:.1} s, but something may have been missed.",
                self.seconds
            )?,
        }
        for proof in &self.proof {
            paragraph(out, "proof", proof)?;
        }
        for doubt in &self.doubts {
            paragraph(out, "doubt", doubt)?;
        }
        if !self.not_judged.is_empty() {
            let names: Vec<_> = self.not_judged.iter().map(|not| not.rule).collect();
            let family = case
                .header
                .as_ref()
                .map_or("?", |header| &header.attach.family);
            let hint = if case.told & super::case::ENTERED == 0 {
                " (a recording made with --all tells more)"
            } else {
                ""
            };
            let text = format!(
                "by {family}, with what was asked for: {}{hint}",
                names.join(", ")
            );
            paragraph(out, "unjudged", &text)?;
        }
        Ok(())
    }
}

/// A label, and text wrapped beside it.
fn paragraph(out: &mut dyn Write, label: &str, text: &str) -> io::Result<()> {
    const WIDTH: usize = 86;
    let mut line = String::new();
    let mut label = label;
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(out, "   {label:<9} {line}")?;
            label = "";
            line.clear();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "   {label:<9} {line}")
}

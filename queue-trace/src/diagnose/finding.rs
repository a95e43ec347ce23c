//! What a rule found, and the diagnosis as a whole: as text and as JSON.

use std::io::{self, Write};

use serde::Serialize;

use super::{
    answer::Answer,
    case::{Case, History, Key},
    episode::Episode,
    when::When,
};
use crate::model::{event::rfc3339, snapshot::Snapshot};

/// A finding: what happened, how it is known, why it is so, and what to do.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// The rule's name.
    pub rule: &'static str,
    /// How bad it is.
    pub harm: Harm,
    /// How many packets or connections it is about; orders findings of equal harm.
    pub count: u64,
    /// The first of them, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// The last of them, RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
    /// How many episodes.
    pub times: u64,
    /// Whether it had not ended when the observation did.
    pub ongoing: bool,
    /// When and how often, and how bad the worst was, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub when: Option<String>,
    /// The worst episodes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub episodes: Vec<Episode>,
    /// The listener, in its case.
    #[serde(skip)]
    pub key: Key,
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
    /// What happened, in one sentence, and why the application did not accept.
    pub what: String,
    /// The name of that cause, where one was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<&'static str>,
    /// What it rests on, a sentence each.
    pub evidence: Vec<String>,
    /// The mechanism.
    pub why: &'static str,
    /// What to do, best first.
    pub remedies: Vec<Remedy>,
    /// The thresholds that were passed.
    pub thresholds: &'static [Threshold],
}

/// Episodes of a finding that are given whole.
const SHOWN: usize = 3;

/// How bad a finding is, worst first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Harm {
    /// Clients are not served at all.
    Outage,
    /// Some clients are refused.
    Refusing,
    /// It works, but at a cost, or not for long.
    Degraded,
    /// What made another finding possible, or worse.
    Setting,
}

impl Harm {
    /// As it is shown.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Outage => "OUTAGE",
            Self::Refusing => "REFUSING",
            Self::Degraded => "DEGRADED",
            Self::Setting => "SETTING",
        }
    }
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
    /// At a listener; of which rule is to be said.
    #[must_use]
    pub(super) fn of(key: &Key, history: &History, count: u64, what: String) -> Self {
        let owner = history.snapshot.as_ref().and_then(Snapshot::owner);
        Self {
            rule: "",
            harm: Harm::Degraded,
            count,
            first: None,
            last: None,
            times: 0,
            ongoing: false,
            when: None,
            episodes: Vec::new(),
            key: *key,
            netns: key.netns,
            listener: history.name(),
            inode: history.listener.inode,
            owner,
            what,
            cause: None,
            evidence: Vec::new(),
            why: "",
            remedies: Vec::new(),
            thresholds: &[],
        }
    }

    /// With when it was.
    #[must_use]
    pub fn at(mut self, when: &When) -> Self {
        let (first, last) = when.span();
        self.first = Some(rfc3339(first));
        self.last = Some(rfc3339(last));
        self.times = when.times();
        self.ongoing = when.is_ongoing();
        self.when = Some(when.words());
        self.episodes = when.worst(SHOWN).cloned().collect();
        self
    }

    /// With the time between its first packet and its last, where no episode is known.
    #[must_use]
    pub fn between(mut self, span: Option<(i128, i128)>) -> Self {
        if let Some((first, last)) = span {
            self.first = Some(rfc3339(first));
            self.last = Some(rfc3339(last));
            self.when = Some(super::when::between(first, last));
        }
        self
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
pub enum Conclusion {
    /// Nothing was found, every rule could be judged, and the ledger shows no refusal that was missed.
    NothingFound,
    /// Something was found.
    Findings,
    /// Nothing was found, but it cannot be said that there was nothing.
    CouldNotTell,
}

impl Conclusion {
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
    pub verdict: Conclusion,
    /// What is said of the port or the service that was asked about, if one was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Answer>,
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
    /// Why it could not be judged, in words.
    pub reason: String,
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
            if let Some(when) = &finding.when {
                paragraph(out, "when", when)?;
            }
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
        if let Some(answer) = &self.answer {
            writeln!(out, "{}", answer.about.join(" "))?;
            paragraph(out, "", &answer.says)?;
            writeln!(out)?;
        }
        match self.verdict {
            Conclusion::Findings => {}
            Conclusion::NothingFound => writeln!(
                out,
                "Nothing wrong: no handshake was refused in {:.1} s, every rule could be judged, and the ledger shows none that was missed.",
                self.seconds
            )?,
            Conclusion::CouldNotTell => writeln!(
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
        self.write_not_judged(case, out)
    }

    /// The rules that could not be judged, those for one reason together.
    fn write_not_judged(&self, case: &Case, out: &mut dyn Write) -> io::Result<()> {
        let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
        for NotJudged { rule, reason, .. } in &self.not_judged {
            match reasons.iter_mut().find(|(known, _)| known == reason) {
                Some((_, rules)) => rules.push(rule),
                None => reasons.push((reason, vec![rule])),
            }
        }
        for (reason, rules) in reasons {
            let text = format!("{}: {reason}", rules.join(", "));
            paragraph(out, "unjudged", &text)?;
        }
        let hint = !self.not_judged.is_empty() && case.told & super::case::ENTERED == 0;
        if hint && !case.listeners.is_empty() {
            paragraph(out, "", "a recording made with --all tells more")?;
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

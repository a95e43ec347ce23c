//! What the agent says on standard output: a line of JSON for each episode that begins or
//! ends, and for each incident recording. A journal or a log shipper takes it from there.

use std::{
    io::{self, Write},
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
};

use serde::Serialize;

use super::{
    labels::Owner,
    recorder::{Finished, diagnosis_of, write_beside},
    trouble::Troubled,
};
use crate::{
    diagnose::{self, Finding},
    model::{clock::wall_now, event::rfc3339, socket::Listener},
    stderr::say,
};

/// The lines.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum IncidentLine<'a> {
    /// An episode began.
    EpisodeBegan(EpisodeLine<'a>),
    /// An episode ended.
    EpisodeEnded(EpisodeLine<'a>),
    /// An incident recording is finished.
    Incident {
        time: String,
        file: &'a Path,
        bytes: u64,
        /// Whether it was ended because of its size.
        cut: bool,
        #[serde(flatten)]
        diagnosis: Option<DiagnosisLine<'a>>,
    },
}

#[derive(Debug, Serialize)]
struct EpisodeLine<'a> {
    time: String,
    netns: u32,
    listener: &'a Listener,
    #[serde(skip_serializing_if = "String::is_empty")]
    owner: String,
    trouble: &'a str,
    #[serde(flatten)]
    numbers: &'a serde_json::Map<String, serde_json::Value>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    findings: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<&'a Path>,
}

#[derive(Debug, Serialize)]
struct DiagnosisLine<'a> {
    verdict: diagnose::Conclusion,
    findings: Vec<FindingLine<'a>>,
    diagnosis: PathBuf,
}

#[derive(Debug, Serialize)]
struct FindingLine<'a> {
    rule: &'a str,
    netns: u32,
    listener: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    owner: Option<&'a str>,
    what: &'a str,
}

/// Whose a listener is, in a few words: the pod or the unit, and the process.
#[must_use]
pub fn owner(owner: &Owner) -> String {
    let pod = owner
        .pod_name
        .as_ref()
        .map(|pod| match &owner.pod_namespace {
            Some(namespace) => format!("{namespace}/{pod}"),
            None => pod.clone(),
        });
    let place = pod.or_else(|| owner.pod_uid.as_ref().map(|uid| format!("pod {uid}")));
    let place = place.or_else(|| owner.container.as_ref().map(|id| format!("container {id}")));
    let place = place.or_else(|| owner.unit.clone());
    let words: Vec<_> = place.into_iter().chain(owner.executable.clone()).collect();
    words.join(" ")
}

/// Says them, and diagnoses recordings in threads of their own.
#[derive(Debug, Default)]
pub struct Announcer {
    /// Whether standard output is for something else.
    silent: bool,
    diagnosing: Vec<JoinHandle<()>>,
}

impl Announcer {
    /// Standard output is for something else.
    #[must_use]
    pub fn nothing() -> Self {
        Self {
            silent: true,
            ..Self::default()
        }
    }

    fn print(&self, line: &IncidentLine<'_>) {
        if !self.silent {
            print(line);
        }
    }

    /// An episode began.
    pub fn began(&self, began: &Troubled, owner: &Owner, file: Option<&Path>) {
        self.print(&IncidentLine::EpisodeBegan(EpisodeLine::of(
            began,
            owner,
            &[],
            file,
        )));
    }

    /// An episode ended.
    pub fn ended(&self, ended: &Troubled, owner: &Owner, findings: &[String], file: Option<&Path>) {
        self.print(&IncidentLine::EpisodeEnded(EpisodeLine::of(
            ended, owner, findings, file,
        )));
    }

    /// A recording is finished: its diagnosis is made, and both are said.
    pub fn recorded(&mut self, finished: Finished) {
        self.diagnosing.retain(|thread| !thread.is_finished());
        let name = "diagnosis".to_owned();
        let diagnosing = thread::Builder::new()
            .name(name)
            .spawn(move || recorded(&finished));
        match diagnosing {
            Ok(thread) => self.diagnosing.push(thread),
            Err(error) => say!("warning: an incident cannot be diagnosed: {error}"),
        }
    }

    /// Something of the recorder failed.
    pub fn cannot_record(&self, error: &io::Error) {
        say!("warning: the incident recording ends here: {error}");
    }

    /// Waits for diagnoses that are being made.
    pub fn wait(&mut self) {
        for thread in self.diagnosing.drain(..) {
            // One that panicked has said so.
            let _ = thread.join();
        }
    }
}

impl<'a> EpisodeLine<'a> {
    fn of(
        troubled: &'a Troubled,
        owner: &Owner,
        findings: &'a [String],
        file: Option<&'a Path>,
    ) -> Self {
        Self {
            time: rfc3339(wall_now()),
            netns: troubled.netns,
            listener: &troubled.listener,
            owner: self::owner(owner),
            trouble: troubled.trouble,
            numbers: &troubled.numbers,
            findings,
            file,
        }
    }
}

/// Diagnoses a recording, writes that beside it, and says both.
pub fn recorded(finished: &Finished) {
    let path = &finished.path;
    let case = diagnose::read(std::slice::from_ref(path));
    let diagnosis = case.map(|case| diagnose::diagnose(&case));
    let beside = diagnosis_of(path);
    let written = diagnosis.and_then(|diagnosis| {
        let mut json = serde_json::to_vec_pretty(&diagnosis)?;
        json.push(b'\n');
        write_beside(&beside, &json)?;
        Ok(diagnosis)
    });
    let diagnosis = match &written {
        Ok(diagnosis) => Some(DiagnosisLine {
            verdict: diagnosis.verdict,
            findings: diagnosis.findings.iter().map(found).collect(),
            diagnosis: beside,
        }),
        Err(error) => {
            say!("warning: {} has no diagnosis: {error:#}", path.display());
            None
        }
    };
    print(&IncidentLine::Incident {
        time: rfc3339(wall_now()),
        file: path,
        bytes: finished.bytes,
        cut: finished.cut,
        diagnosis,
    });
}

fn found(finding: &Finding) -> FindingLine<'_> {
    FindingLine {
        rule: finding.rule,
        netns: finding.netns,
        listener: &finding.listener,
        owner: finding.owner.as_deref(),
        what: &finding.what,
    }
}

/// A line, whole. Whoever reads standard output may have gone; the agent stays.
fn print(line: &IncidentLine<'_>) {
    if let Ok(mut text) = serde_json::to_vec(line) {
        text.push(b'\n');
        let mut out = io::stdout().lock();
        let _ = out.write_all(&text).and_then(|()| out.flush());
    }
}

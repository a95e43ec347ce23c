//! `queue-trace incidents`: the incident recordings in a folder, and what was found in them.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use clap::Args;
use serde::Deserialize;

use crate::agent::recorder::{Folder, KeptRecording};

/// Options of `incidents`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace incidents /var/lib/queue-trace/incidents\n  \
    queue-trace incidents --paths /var/lib/queue-trace/incidents")]
pub struct IncidentsArgs {
    /// The folder that the agent writes to
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,

    /// Only the paths of the recordings, the oldest first
    #[arg(long)]
    pub paths: bool,
}

/// The diagnosis beside a recording, as much as is shown of it.
#[derive(Deserialize)]
struct SavedDiagnosis {
    #[serde(default)]
    seconds: f64,
    #[serde(default)]
    findings: Vec<SavedFinding>,
}

#[derive(Deserialize)]
struct SavedFinding {
    rule: String,
    listener: String,
    #[serde(default)]
    owner: Option<String>,
}

/// Lists them.
///
/// # Errors
/// If the folder cannot be listed, or standard output cannot be written.
pub fn run(args: &IncidentsArgs) -> Result<()> {
    let cannot = || format!("cannot list {}", args.folder.display());
    let kept = Folder::at(&args.folder).list().with_context(cannot)?;
    let mut out = io::stdout().lock();
    let written = kept.iter().try_for_each(|kept| {
        if args.paths {
            writeln!(out, "{}", kept.recording.display())
        } else {
            writeln!(out, "{}", line(kept))
        }
    });
    match written.and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

fn line(kept: &KeptRecording) -> String {
    let name = kept
        .recording
        .file_name()
        .unwrap_or_default()
        .to_string_lossy();
    let diagnosis = kept.diagnosis.as_ref().map(|path| {
        let text = fs::read_to_string(path)?;
        anyhow::Ok(serde_json::from_str::<SavedDiagnosis>(&text)?)
    });
    let (seconds, found) = match diagnosis {
        None => (None, "no diagnosis yet".to_owned()),
        Some(Err(error)) => (None, format!("the diagnosis cannot be read: {error:#}")),
        Some(Ok(diagnosis)) => {
            let words = diagnosis.findings.iter().map(|finding| {
                let owner = finding.owner.as_deref().unwrap_or("owner not known");
                format!("{} at {} ({owner})", finding.rule, finding.listener)
            });
            let words: Vec<_> = words.collect();
            let words = if words.is_empty() {
                "nothing found".to_owned()
            } else {
                words.join("; ")
            };
            (Some(diagnosis.seconds), words)
        }
    };
    let seconds = seconds.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds:.0}s"));
    let size = kept.bytes.div_ceil(1024);
    // Names in a diagnosis are chosen by whoever made the process.
    let found: String = found
        .chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect();
    format!("{name}  {seconds:>6}  {size:>7}K  {found}")
}

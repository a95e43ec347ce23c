//! `queue-trace report`: one page of a recording.

use std::{io::Write, path::PathBuf};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    diagnose,
    options::Filters,
    report::page,
    sink::{Medium, Output},
    stderr::say,
};

/// Options of `report`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  queue-trace report incident.jsonl.zst -o incident.html")]
pub struct ReportArgs {
    /// Recordings, in order of time; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// The page to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub filters: Filters,
}

/// Makes the page of a recording.
///
/// # Errors
/// If the recording cannot be read, or the page not written.
pub fn run(args: &ReportArgs) -> Result<()> {
    let mut output = Output::open(Some(&args.output))?;
    output.is_none_of(&args.files)?;
    let case = diagnose::read_part(&args.files, &args.filters.for_conclusions())?;
    let page = page(&case);
    output
        .write_all(page.as_bytes())
        .and_then(|()| output.finish())
        .with_context(|| format!("cannot write to {}", args.output.display()))?;
    for note in &case.notes {
        say!("note: {note}");
    }
    say!("wrote {}", args.output.display());
    Ok(())
}

//! `queue-trace diagnose`: what is wrong and what to change, live or from a recording.

use std::{
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context, Result};
use clap::Args;

use crate::{
    diagnose::{Case, diagnose, read_part},
    options::{Filters, KernelOptions, duration},
};

/// Options of `diagnose`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace diagnose --for 30s            watch this machine for half a minute\n  \
    queue-trace diagnose --unit nginx         one service: does anything arrive, is all of it served\n  \
    queue-trace diagnose incident.jsonl.zst   a recording, on any machine")]
pub struct DiagnoseArgs {
    /// Recordings, in order of time; - is standard input. Without any, this machine is watched
    #[arg(value_name = "FILE", conflicts_with_all = ["attach", "no_canary", "btf", "rate"])]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub filters: Filters,

    /// How long to watch this machine, e.g. 30s
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = duration, conflicts_with = "files")]
    pub time: Duration,

    /// Write the findings as one JSON object
    #[arg(long)]
    pub json: bool,

    /// Limit of records a second from each CPU; the others are counted all the same.
    /// 0: no limit
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub rate: u32,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: KernelOptions,
}

/// Diagnoses a recording, says it on standard output, and gives the exit status.
///
/// # Errors
/// If the recording cannot be read, or the output not written.
pub fn recorded(args: &DiagnoseArgs) -> Result<u8> {
    let case = read_part(&args.files, &args.filters.for_conclusions())?;
    show(&case, args.json)
}

/// `queue-trace diagnose --for`: watches all that happens for a while and says what is
/// wrong. Gives the exit status.
///
/// # Errors
/// What keeps it from attaching, or standard output from being written.
#[cfg(target_os = "linux")]
pub async fn watch(args: &DiagnoseArgs) -> Result<u8> {
    use crate::{
        kernel::{host::Host, selection::Selection, session},
        options::ListenerFilters,
        recording::{Narrowed, select::Only},
        trace::stream::{Live, Until},
    };

    session::fit(&Host::look())?;
    let filters = args.filters.for_conclusions();
    // Ports and owners are filtered here, and not in the kernel: so the ledger covers all
    // packets, and what happens on other ports is known.
    let in_kernel = Filters {
        listeners: ListenerFilters {
            addrs: filters.listeners.addrs.clone(),
            netns: filters.listeners.netns.clone(),
            ..ListenerFilters::default()
        },
        ..filters.clone()
    };
    let selection = Selection {
        rate: args.rate,
        names_owners: filters.listeners.name_owners(),
        ..Selection::of(&in_kernel)?
    };
    let live = Live::begin(&args.kernel, selection)?;
    live.announce();
    let until = Until {
        count: None,
        duration: Some(args.time),
        reader_is_gone: true,
    };
    let unlisted = live.unlisted().to_vec();
    let mut only = Only::in_user_space(&filters.listeners);
    let mut case = Case::new();
    let mut narrowed = Narrowed::new(&mut case, &mut only);
    live.run(&mut narrowed, until, std::future::pending())
        .await?;
    case.ask(&filters, only.finish());
    if let Some(question) = &mut case.question {
        question.unlisted = unlisted;
        // All that there are were listed, and the filters of the kernel side are the question's.
        question.listed = true;
        question.made_with = Some(Vec::new());
    }
    show(&case, args.json)
}

/// Says what is wrong in a case on standard output, and gives the exit status.
///
/// # Errors
/// If standard output cannot be written.
fn show(case: &Case, json: bool) -> Result<u8> {
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

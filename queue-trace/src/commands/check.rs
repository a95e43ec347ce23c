//! `queue-trace check`: what can be observed on this machine, or on another machine's kernel,
//! and what cannot. `report` holds the forms.

mod report;

use std::{
    io::{self, Write},
    path::Path,
};

use anyhow::{Context, Result};
use clap::Args;

use self::report::Mode;
pub use self::report::{CheckReport, Observability};
use crate::{
    kernel::{
        btf::{Architecture, Types},
        host::Host,
        judgement::{self, Judgement},
        selection::Selection,
        session::{self, Session},
    },
    options::KernelOptions,
};

/// Options of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace check                                     this machine: attaches for a moment\n  \
    queue-trace check --btf vmlinux.btf --release 6.8.0   another machine's kernel, from its types\n\n\
    With --btf nothing is attached. /sys/kernel/btf/vmlinux of the other machine is such a file.")]
pub struct CheckArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: KernelOptions,

    /// The release of the kernel that --btf describes, as uname -r says it there
    #[arg(long, value_name = "RELEASE", requires = "btf")]
    pub release: Option<String>,

    /// Write one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Looks, attaches for a moment, and reports; or judges the kernel that a file describes.
#[must_use]
pub fn check(args: &CheckArgs) -> CheckReport {
    match &args.kernel.btf {
        Some(file) => judge(file, args.release.as_deref()),
        None => look(&args.kernel),
    }
}

/// A kernel that need not run here.
fn judge(file: &Path, release: Option<&str>) -> CheckReport {
    let mut report = CheckReport {
        kernel: release.map(str::to_owned),
        types: Some(file.display().to_string()),
        judged: true,
        ..CheckReport::default()
    };
    let types = match Types::of_file(file) {
        Ok(types) => types,
        Err(error) => {
            report.error = Some(error.to_string());
            return report;
        }
    };
    let judgement = Judgement::of(&types, release);
    report.architecture = judgement.architecture.map(Architecture::name);
    report.set_hooks(&types, None);
    report.set_modes(
        judgement
            .ways
            .iter()
            .map(|(family, plan)| match plan {
                Ok(plan) => Mode::usable(plan),
                Err(why) => Mode::refused(*family, why),
            })
            .collect(),
    );
    report
}

/// This machine.
fn look(kernel: &KernelOptions) -> CheckReport {
    let host = Host::look();
    let mut report = CheckReport {
        kernel: Some(host.release.clone()),
        architecture: Some(std::env::consts::ARCH),
        privileges: Some(host.privileges.to_string()),
        lockdown: host.lockdown.clone(),
        ..CheckReport::default()
    };
    let types = match Types::read(None) {
        Ok(types) => types,
        Err(error) => {
            report.error = Some(error.to_string());
            return report;
        }
    };
    report.types = Some(types.path().display().to_string());
    let everything = Selection {
        outcomes: judgement::everything(),
        ..Selection::default()
    };
    // Attached only for this: what it sees is of no interest here.
    let begun = session::fit(&host).and_then(|()| Session::begin(kernel, &everything));
    match begun {
        Ok(session) => {
            let plan = &session.plan;
            report.set_hooks(&types, Some(plan));
            let refused = plan.passed_over.iter();
            let mut modes: Vec<_> = refused
                .map(|(family, why)| Mode::refused(*family, why))
                .collect();
            modes.push(Mode::usable(plan));
            report.set_modes(modes);
        }
        Err(error) => {
            report.set_hooks(&types, None);
            report.error = Some(format!("{error:#}"));
        }
    }
    report
}

/// Runs the check and gives the exit status.
///
/// # Errors
/// If the report cannot be written.
pub fn run(args: &CheckArgs) -> Result<u8> {
    let report = check(args);
    let mut text = Vec::new();
    match args.json {
        true => report.json(&mut text)?,
        false => report.text(&mut text)?,
    }
    let mut out = io::stdout().lock();
    match out.write_all(&text).and_then(|()| out.flush()) {
        // Whoever reads the first lines only is told the rest by the status.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(report.verdict as u8),
    }
}

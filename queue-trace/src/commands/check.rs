//! `queue-trace check`: what can be observed on this machine, and what cannot.

use std::io::{self, Write};

use anyhow::{Context, Result};
use clap::Args;
use queue_trace_common::{
    hook::{HOOKS, Need},
    outcome::{self, Kind, OUTCOMES, Set},
};

use crate::{
    kernel::{
        btf::Types,
        host::Host,
        plan::{Family, Plan},
        selection::Selection,
        session::{self, Session},
    },
    model::event::Name,
    options::Kernel,
};

/// Options of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  queue-trace check --attach kprobe")]
pub struct CheckArgs {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: Kernel,
}

/// How much can be observed; also the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The main verdicts.
    Main = 0,
    /// Only some of them.
    Some = 1,
    /// None.
    None = 2,
}

/// The verdicts without which a listener's refusals are not told.
const MAIN: [u8; 6] = [
    outcome::COOKIE_SENT_FULL,
    outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::SYN_DROPPED_SYN_QUEUE_FULL,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::COOKIE_FAILED_INVALID,
];

/// Looks, attaches for a moment, and reports.
///
/// # Errors
/// If the report cannot be written.
pub fn check(args: &CheckArgs, out: &mut impl Write) -> io::Result<Verdict> {
    let host = Host::look();
    writeln!(out, "kernel       {}", host.release)?;
    writeln!(out, "privileges   {}", privileges(&host))?;
    if let Some(mode) = &host.lockdown {
        writeln!(out, "lockdown     {mode}")?;
    }
    let types = match Types::read(args.kernel.btf.as_deref()) {
        Ok(types) => types,
        Err(error) => {
            writeln!(out, "types        {error}")?;
            return nothing(out);
        }
    };
    writeln!(out, "types        {}", types.path().display())?;

    if let Err(error) = session::fit(&host) {
        hooks(out, &types, None)?;
        writeln!(out, "\n{error:#}")?;
        return nothing(out);
    }
    let everything = Selection {
        outcomes: outcome::of_kind(Kind::Refusal) | outcome::of_kind(Kind::Routine),
        ..Selection::default()
    };
    // Attached only for this: what it sees is of no interest here.
    match Session::begin(&args.kernel, &everything) {
        Ok(session) => report(out, &types, &session.plan),
        Err(error) => {
            hooks(out, &types, None)?;
            writeln!(out, "\n{error:#}")?;
            nothing(out)
        }
    }
}

fn nothing(out: &mut impl Write) -> io::Result<Verdict> {
    writeln!(out, "\nNothing can be observed.")?;
    Ok(Verdict::None)
}

fn privileges(host: &Host) -> String {
    let privileges = host.privileges;
    if privileges.sys_admin {
        "CAP_SYS_ADMIN".to_owned()
    } else {
        let held: Vec<_> = [
            ("CAP_BPF", privileges.bpf),
            ("CAP_PERFMON", privileges.perfmon),
        ]
        .into_iter()
        .filter_map(|(name, held)| held.then_some(name))
        .collect();
        match held.len() {
            0 => "none of CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN".to_owned(),
            _ => held.join(", "),
        }
    }
}

fn report(out: &mut impl Write, types: &Types, plan: &Plan) -> io::Result<Verdict> {
    for (family, why) in &plan.passed_over {
        writeln!(out, "{:<12} refused: {why}", family.name())?;
    }
    writeln!(out, "{:<12} attached", plan.family.name())?;
    hooks(out, types, Some(plan))?;

    writeln!(out, "\nobservable")?;
    outcomes(out, plan.observable)?;
    if plan.unobservable != 0 {
        writeln!(out, "not observable")?;
        outcomes(out, plan.unobservable)?;
    }
    for limit in plan.limits() {
        writeln!(out, "note: {limit}")?;
    }
    let main = MAIN.iter().fold(0, |set, tag| set | 1 << tag);
    Ok(if plan.observable & main == main {
        writeln!(out, "\nThe main verdicts are observable.")?;
        Verdict::Main
    } else {
        writeln!(out, "\nOnly some of the main verdicts are observable.")?;
        Verdict::Some
    })
}

fn hooks(out: &mut impl Write, types: &Types, plan: Option<&Plan>) -> io::Result<()> {
    let by_hooks = plan.is_none_or(|plan| plan.family != Family::Tracepoint);
    writeln!(out, "\nhooks")?;
    for hook in &HOOKS {
        let left_out = plan.and_then(|plan| {
            let mut left_out = plan.left_out.iter();
            left_out.find_map(|(left, why)| (left.index == hook.index).then_some(why))
        });
        let state = match (types.fits(hook), left_out) {
            (Err(why), _) if hook.need == Need::Optional => format!("- ({why})"),
            (Err(why), _) => format!("MISSING: {why}"),
            (Ok(_), Some(why)) => format!("REFUSED: {why}"),
            (Ok(prototype), None) if !by_hooks => format!("not used      {prototype}"),
            (Ok(prototype), None) => format!(
                "{:<13} {prototype}",
                plan.map_or("present", |plan| plan.family.name())
            ),
        };
        writeln!(out, "  {:<30} {state}", hook.function)?;
    }
    Ok(())
}

fn outcomes(out: &mut impl Write, set: Set) -> io::Result<()> {
    for outcome in OUTCOMES.iter().filter(|o| set & o.bit() != 0) {
        writeln!(out, "  {:<36} {}", Name(outcome).to_string(), outcome.says)?;
    }
    Ok(())
}

/// Runs the check and gives the exit status.
///
/// # Errors
/// If the report cannot be written.
pub fn run(args: &CheckArgs) -> Result<u8> {
    let mut report = Vec::new();
    let verdict = check(args, &mut report)?;
    match io::stdout().write_all(&report) {
        // Whoever reads the first lines only is told the rest by the status.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(verdict as u8),
    }
}

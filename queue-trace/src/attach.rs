//! Attaching: refuses where it cannot go well, tries the best plan first, learns from
//! what the kernel refuses, and tests itself.

use anyhow::{Result, bail};
use bytes::Bytes;

use crate::{
    btf::Types,
    canary, cli,
    decode::decode,
    host::{Host, OLDEST},
    plan::{Offers, Plan, PlanError},
    probe::{AttachError, Probe},
    wanted::Wanted,
};

/// Refuses to begin where it cannot end well, and says what to do.
///
/// # Errors
/// If the kernel is too old, or privileges are missing.
pub fn fit(host: &Host) -> Result<()> {
    if host.too_old() {
        let (major, minor) = OLDEST;
        bail!(
            "Linux {} is too old: queue-trace needs {major}.{minor} or newer (BPF ring buffer)",
            host.release
        );
    }
    if !host.privileges.suffice() {
        bail!(
            "attaching to the kernel takes root, or the capabilities CAP_BPF and CAP_PERFMON: \
             run it with sudo"
        );
    }
    Ok(())
}

/// Attaches by the best plan that the kernel does not refuse.
///
/// # Errors
/// If none is left, or the one asked for is refused.
pub fn attach(
    host: &Host,
    types: &Types,
    kernel: &cli::Kernel,
    wanted: &Wanted,
) -> Result<(Probe, Plan)> {
    let mut offers = Offers::look(host, types);
    loop {
        let plan = Plan::make(kernel.attach, wanted.outcomes, &offers)
            .map_err(|error| with_remedy(error, host))?;
        match Probe::attach(&plan, types, wanted) {
            Ok(probe) => return Ok((probe, plan)),
            Err(AttachError::Refused { hook, why }) => {
                log::debug!("{}: refused: {why}", plan.family.name());
                offers.refused(plan.family, hook, why);
            }
            Err(AttachError::Other(error)) => return Err(error),
        }
    }
}

/// Runs the self-test, notes in the plan what it found, and removes its traces. Gives
/// the records of others that came meanwhile.
///
/// # Errors
/// If the kernel side's maps cannot be read.
pub fn self_test(probe: &mut Probe, plan: &mut Plan) -> Result<Vec<Bytes>> {
    let canary = match canary::sing(probe) {
        Ok(canary) => canary,
        Err(error) => {
            plan.amiss
                .push(format!("the self-test could not be made: {error:#}"));
            return Ok(Vec::new());
        }
    };
    plan.heard(&canary.silent);
    let mut early = Vec::new();
    loop {
        let records = probe.take_records();
        if records.is_empty() {
            break;
        }
        let others = records.into_iter().filter(|record| {
            decode(record.clone(), 0).map_or(true, |event| event.netns != canary.netns)
        });
        early.extend(others);
    }
    probe.forget(canary.netns)?;
    Ok(early)
}

fn with_remedy(error: PlanError, host: &Host) -> anyhow::Error {
    let mut remedy = match &error {
        PlanError::Refused { .. } => {
            "leave --attach out to use what the kernel allows (queue-trace check shows it)"
                .to_owned()
        }
        PlanError::None(_) => "queue-trace check shows what this kernel offers".to_owned(),
    };
    if let Some(mode) = &host.lockdown {
        remedy.push_str(&format!("; the kernel is locked down ({mode})"));
    }
    anyhow::Error::new(error)
        .context(remedy)
        .context("cannot attach")
}

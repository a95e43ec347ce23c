//! The one way to attach: refuses where it cannot go well, tries the best plan first, learns
//! from what the kernel refuses, and tests itself.

#![cfg_attr(
    target_env = "gnu",
    expect(unsafe_code, reason = "giving memory back is a call of the C library")
)]

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use bytes::Bytes;

use crate::{
    kernel::{
        btf::Types,
        decode::decode,
        host::{Host, OLDEST},
        obstacle,
        plan::{Offers, Plan, PlanError},
        probe::{AttachError, Probe},
        selection::Selection,
        self_test::{Faults, SelfTest},
    },
    options::KernelOptions,
};

/// The kernel side, attached and tested.
pub struct Session {
    /// The kernel side at work.
    pub probe: Probe,
    /// How it is attached, and what is therefore observable.
    pub plan: Plan,
    /// The machine.
    pub host: Host,
    /// Records of others that came during the self-test.
    pub early: Vec<Bytes>,
}

impl Session {
    /// Attaches and tests itself.
    ///
    /// # Errors
    /// Whatever keeps it from attaching, with what to do about it.
    pub fn begin(options: &KernelOptions, selection: &Selection) -> Result<Self> {
        let host = Host::look();
        fit(&host)?;
        let types = Types::read(options.btf.as_deref())?;
        let (probe, mut plan, early) = attach(&host, &types, options, selection)?;
        plan.warnings.extend_from_slice(probe.notes());
        // The kernel's types took most of it, and are not needed any more.
        drop(types);
        give_back_memory();
        Ok(Self {
            probe,
            plan,
            host,
            early,
        })
    }
}

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
    if let Some(obstacle) = obstacle::find() {
        bail!(obstacle);
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
fn attach(
    host: &Host,
    types: &Types,
    kernel: &KernelOptions,
    selection: &Selection,
) -> Result<(Probe, Plan, Vec<Bytes>)> {
    let mut offers = Offers::look(host, types);
    let stage = match kernel.no_canary {
        true => None,
        false => Some(SelfTest::set(selection)),
    };
    let let_in = match &stage {
        Some(Ok(stage)) => stage.let_in(selection),
        _ => selection.clone(),
    };
    let mut interrupted = None;
    loop {
        let plan = Plan::make(kernel.attach, selection.outcomes, &offers)
            .map_err(|error| with_remedy(error, host))?;
        match Probe::attach(&plan, types, &let_in) {
            Ok(mut probe) => match self_test(stage.as_ref(), &mut probe, &plan)? {
                Tested::Good(early) => {
                    if let Some(Ok(stage)) = stage {
                        probe.keep_netns(stage.netns.into_handle());
                    }
                    return Ok((probe, plan, early));
                }
                Tested::Unknown(why) => {
                    let mut plan = plan;
                    plan.warnings
                        .push(format!("the self-test could not be made: {why}"));
                    return Ok((probe, plan, Vec::new()));
                }
                // A hook that is silent, or reads something else, is as good as refused.
                Tested::Faulty(faults) => {
                    if let Some(why) = faults.reasons {
                        log::debug!("reasons for freeing a packet: {why}");
                        offers.reasons = 0;
                    }
                    for (hook, why) in faults.hooks {
                        log::debug!("{}: {why}", plan.family.name());
                        offers.refused(plan.family, hook, why);
                    }
                }
            },
            // A signal came meanwhile, which says nothing of the kernel.
            Err(AttachError::Interrupted(why))
                if interrupted.get_or_insert_with(Instant::now).elapsed() < INTERRUPTED =>
            {
                log::debug!("{}: interrupted: {why}", plan.family.name());
            }
            Err(AttachError::Interrupted(why)) => bail!("attaching was interrupted: {why}"),
            Err(AttachError::Refused { hook, why }) => {
                log::debug!("{}: refused: {why}", plan.family.name());
                offers.refused(plan.family, hook, why);
            }
            Err(AttachError::Delivery(why)) => {
                log::debug!("packets are not seen where they are delivered: {why}");
                offers.delivery = Err(why);
            }
            Err(AttachError::Reasons(why)) => {
                log::debug!("reasons for freeing a packet: {why}");
                offers.reasons = 0;
            }
            Err(AttachError::Other(error)) => return Err(error),
        }
    }
}

/// For how long it is tried again when signals come while programs are verified.
const INTERRUPTED: Duration = Duration::from_secs(20);

/// What the self-test said.
enum Tested {
    /// All is well. With the records of others that came meanwhile.
    Good(Vec<Bytes>),
    /// Some hooks do not do their part.
    Faulty(Faults),
    /// It could not be made.
    Unknown(String),
}

/// Runs the self-test, if there is to be one, and removes its traces.
///
/// # Errors
/// If the kernel side's maps cannot be read.
fn self_test(stage: Option<&Result<SelfTest>>, probe: &mut Probe, plan: &Plan) -> Result<Tested> {
    let stage = match stage {
        None => return Ok(Tested::Good(Vec::new())),
        Some(Err(error)) => return Ok(Tested::Unknown(format!("{error:#}"))),
        Some(Ok(stage)) => stage,
    };
    let mut faults = match stage.run(probe, plan) {
        Ok(faults) => faults,
        Err(error) => return Ok(Tested::Unknown(format!("{error:#}"))),
    };
    if !faults.is_empty()
        // On a machine that is very busy a packet of its own may have been late, or a program
        // kept from running by another: only what is so twice is so.
        && let Ok(again) = stage.run(probe, plan)
    {
        faults = again;
    }
    if !faults.is_empty() {
        return Ok(Tested::Faulty(faults));
    }
    let ours = stage.netns.id();
    let mut early = Vec::new();
    loop {
        let records = probe.take_records();
        if records.is_empty() {
            break;
        }
        let others = records
            .into_iter()
            .filter(|record| decode(record.clone(), 0).map_or(true, |event| event.netns != ours));
        early.extend(others);
    }
    probe.forget(ours)?;
    Ok(Tested::Good(early))
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

/// Gives back to the kernel what was freed: a tracer runs for long, on machines that need
/// their memory.
fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes no pointer and touches only what the allocator holds as free.
    unsafe {
        libc::malloc_trim(0);
    }
}

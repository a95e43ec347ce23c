//! Programs that several others go on in (a tail call), so that the kernel verifies what they have
//! in common once. Each has a map, through which the others find it: of its name, in capitals.

use aya::{
    Btf, Ebpf,
    maps::{Map, MapError, ProgramArray},
    programs::{Program, ProgramError, ProgramFd, RawTracePoint},
};
use queue_trace_common::hook::{ALIKE, Alike, Hook};

use super::{
    named::{KPROBE, named},
    reason::reason,
    refusal::{AttachError, refused},
};
use crate::kernel::{btf::Types, plan::Plan};

/// What is in their names.
pub(super) const REST: &str = "_rest";

/// What is done with a packet that was freed for a reason that is asked for.
const REFUSED: &str = "refused_rest";

/// Loads those of the programs that are alike. `btf`: by fentry, else by kprobes. Gives the hooks
/// whose programs go on in them, a bit each: by fentry the others have some that do all themselves.
pub(super) fn of_hooks(
    ebpf: &mut Ebpf,
    plan: &Plan,
    types: &Types,
    btf: Option<&Btf>,
) -> Result<u32, AttachError> {
    let mut shared = 0;
    for alike in &ALIKE {
        let planned = plan.hooks.iter().copied();
        let hooks = planned.filter(|hook| alike.hooks.contains(&hook.index));
        let hooks = match btf {
            Some(_) => of_one_prototype(hooks, |hook| types.prototype_number(hook.function)),
            None => hooks.collect(),
        };
        let Some(first) = hooks.first() else {
            continue;
        };
        let program = load(ebpf, alike, first, btf)
            .map_err(|error| refused(Some(first), reason(&error), &error))?;
        match put(ebpf, alike.rest, &program) {
            Ok(()) => shared |= hooks.iter().map(|hook| hook.bit()).sum::<u32>(),
            Err(error) if btf.is_some() => log::debug!("{}: {error}", alike.rest),
            Err(error) => {
                let error = ProgramError::from(error);
                return Err(refused(Some(first), reason(&error), &error));
            }
        }
    }
    Ok(shared)
}

fn load(
    ebpf: &mut Ebpf,
    alike: &Alike,
    first: &Hook,
    btf: Option<&Btf>,
) -> Result<ProgramFd, ProgramError> {
    let family = if btf.is_some() { "" } else { KPROBE };
    let program = named(ebpf, &format!("{}{family}", alike.rest))?;
    match (program, btf) {
        (Program::FEntry(program), Some(btf)) => program.load(first.function, btf)?,
        (Program::FExit(program), Some(btf)) => program.load(first.function, btf)?,
        (Program::KProbe(program), None) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    Ok(named(ebpf, &format!("{}{family}", alike.rest))?
        .fd()?
        .try_clone()?)
}

/// Those of the hooks whose functions have the prototype of the first one, by their `number`: the
/// kernel lets a program go on in another only where both are of the same
/// (`bpf_prog_map_compatible`, kernel/bpf/core.c).
fn of_one_prototype(
    hooks: impl Iterator<Item = &'static Hook>,
    number: impl Fn(&Hook) -> Option<u32>,
) -> Vec<&'static Hook> {
    let mut hooks: Vec<_> = hooks.collect();
    let first = hooks.first().and_then(|first| number(first));
    hooks.retain(|hook| first.is_some() && number(hook) == first);
    hooks
}

/// Loads that of the programs that look at the kernel's reasons.
pub(super) fn of_reasons(ebpf: &mut Ebpf) -> Result<(), ProgramError> {
    let program: &mut RawTracePoint = named(ebpf, REFUSED)?.try_into()?;
    program.load()?;
    let program = program.fd()?.try_clone()?;
    Ok(put(ebpf, REFUSED, &program)?)
}

fn put(ebpf: &mut Ebpf, rest: &str, program: &ProgramFd) -> Result<(), MapError> {
    let map = ebpf.map_mut(&rest.to_uppercase());
    let map = map.ok_or(MapError::InvalidMapType { map_type: 0 })?;
    let mut map: ProgramArray<_> = map.try_into()?;
    map.set(0, program, 0)
}

/// Takes out the maps. The kernel empties them with their last descriptor, so they are kept until
/// the programs are gone that find others through them.
pub(super) fn take_maps(ebpf: &mut Ebpf) -> Vec<Map> {
    let rests = ALIKE.iter().map(|alike| alike.rest).chain([REFUSED]);
    rests
        .filter_map(|rest| ebpf.take_map(&rest.to_uppercase()))
        .collect()
}

#[cfg(test)]
mod tests {
    use queue_trace_common::hook::{HOOKS, SYN_MPTCP4, SYN_V4, SYN_V6};

    use super::*;

    #[test]
    fn functions_of_another_prototype_share_nothing() {
        let share = |numbers: [Option<u32>; 3]| {
            let hooks = [SYN_V4, SYN_V6, SYN_MPTCP4];
            let number = |hook: &Hook| numbers[hooks.iter().position(|own| *own == hook.index)?];
            let shared = of_one_prototype(hooks.iter().map(|hook| &HOOKS[*hook]), number);
            shared.iter().map(|hook| hook.index).collect::<Vec<_>>()
        };
        assert_eq!(share([Some(7); 3]), [SYN_V4, SYN_V6, SYN_MPTCP4]);
        assert_eq!(share([Some(7), Some(8), Some(7)]), [SYN_V4, SYN_MPTCP4]);
        assert!(share([None; 3]).is_empty());
    }
}

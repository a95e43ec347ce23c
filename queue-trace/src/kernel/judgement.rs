//! What could be observed on a kernel, judged from its types alone: on any machine, nothing is
//! loaded or attached. What the types do not hold is not judged: privileges, lockdown, settings,
//! and what the verifier says of the programs.

use queue_trace_common::outcome::{self, Kind, Set};

use crate::{
    kernel::{
        btf::{Architecture, TRACEPOINTS, Types},
        host::{OLDEST, is_too_old},
        plan::{HookFamily, Offers, Plan},
    },
    options::Attach,
};

/// Everything that is told of anywhere.
#[must_use]
pub fn everything() -> Set {
    outcome::of_kind(Kind::Refusal) | outcome::of_kind(Kind::Routine)
}

/// What was found.
#[derive(Debug)]
pub struct Judgement {
    /// The kernel's architecture, if queue-trace has programs for it.
    pub architecture: Option<Architecture>,
    /// Each way to attach, and the plan for it, or what keeps it from being used.
    pub ways: Vec<(HookFamily, Result<Plan, String>)>,
}

impl Judgement {
    /// Judges a kernel. `release`: what `uname -r` says there, if that is known.
    #[must_use]
    pub fn of(types: &Types, release: Option<&str>) -> Self {
        let offers = match obstacle(types, release) {
            Some(why) => Offers::none(&why),
            None => Offers::judged(types),
        };
        let ways = [
            (HookFamily::Fentry, Attach::Fentry),
            (HookFamily::Kprobe, Attach::Kprobe),
            (HookFamily::Tracepoint, Attach::Tracepoint),
        ];
        Self {
            architecture: types.architecture(),
            ways: ways
                .into_iter()
                .map(|(family, attach)| {
                    let plan = Plan::make(attach, everything(), &offers);
                    (family, plan.map_err(|error| error.reason().to_owned()))
                })
                .collect(),
        }
    }

    /// The best way that can be used.
    #[must_use]
    pub fn best(&self) -> Option<&Plan> {
        self.ways.iter().find_map(|(_, plan)| plan.as_ref().ok())
    }
}

/// What keeps every way from being used.
fn obstacle(types: &Types, release: Option<&str>) -> Option<String> {
    if release.is_some_and(is_too_old) {
        let (major, minor) = OLDEST;
        return Some(format!("it is too old: {major}.{minor} or newer is needed"));
    }
    if types.architecture().is_none() {
        return Some("queue-trace has programs for kernels of x86-64 and arm64 only".to_owned());
    }
    let layout = types
        .fields()
        .map(|_| ())
        .map_err(|error| error.to_string());
    let layout = layout.and_then(|()| types.kernel().map(|_| ()).map_err(|e| e.to_string()));
    types.has_ring_buffer().and(layout).err()
}

impl Offers {
    /// What a kernel offers by its types alone.
    #[must_use]
    pub fn judged(types: &Types) -> Self {
        let mut tracepoints = TRACEPOINTS.iter();
        let absent = tracepoints.find(|name| types.tracepoint(name).is_none());
        Self {
            families: [
                types.has_fentry(),
                types.has_kprobes(),
                match absent {
                    None => Ok(()),
                    Some(name) => Err(format!("the kernel has no tracepoint {name}")),
                },
            ],
            hooks: Self::fitting(types),
            delivery: Ok(()),
            reasons: types.told_by_reasons(),
            counters: types.told_by_counters(),
            realtime: false,
        }
    }
}

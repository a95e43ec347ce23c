//! From facts to a plan: which hooks, attached how, and what is therefore observable.
//! A pure decision; the kernel's refusals come back as facts for the next one.

use std::fmt;

use queue_trace_common::{
    hook::{HOOKS, Hook, KEEP_QUEUES, NEEDS, Need, TELLING, TOLD_BY},
    outcome::{self, OUTCOMES, Set},
    reason,
};

pub use crate::model::event::Name;
use crate::{
    kernel::{
        btf::{TRACEPOINTS, Types},
        host::{self, Host},
    },
    model::lines::AttachPlan,
    options::Attach,
};

/// A way to watch kernel functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookFamily {
    /// fentry and fexit.
    Fentry,
    /// kprobes and kretprobes.
    Kprobe,
    /// Raw tracepoints alone.
    Tracepoint,
}

impl HookFamily {
    /// From the best to the least.
    pub const ALL: [Self; 3] = [Self::Fentry, Self::Kprobe, Self::Tracepoint];

    /// The name in JSON and on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// What the machine offers: found by looking, or learned from a refusal.
#[derive(Debug, Clone)]
pub struct Offers {
    /// For each of [`HookFamily::ALL`], whether it can be had, and if not, why.
    pub families: [Result<(), String>; 3],
    /// For each hook, whether it can be had, and if not, why.
    pub hooks: Vec<Result<(), Without>>,
    /// Whether packets can be seen right before a socket decides on them, and if not, why.
    pub delivery: Result<(), String>,
    /// The outcomes that the kernel tells by its reasons for freeing a packet.
    pub reasons: Set,
    /// The outcomes that it tells by a counter each.
    pub counters: Set,
    /// Whether the kernel is one of PREEMPT_RT. There a packet may be freed between the two programs
    /// that look at the reason for freeing another, which is told twice then. So what a hook can tell
    /// it does.
    pub realtime: bool,
}

/// Why a hook is not to be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Without {
    /// The kernel has no such function, or one that is not known.
    Absent(String),
    /// It is there, and the kernel refuses the hook.
    Refused(String),
}

impl fmt::Display for Without {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Absent(why) | Self::Refused(why)) = self;
        f.write_str(why)
    }
}

impl Offers {
    /// What can be told without trying.
    #[must_use]
    pub fn look(host: &Host, types: &Types) -> Self {
        let fentry = if types.path() == std::path::Path::new(crate::kernel::btf::SYSTEM) {
            host.ftrace.clone()
        } else {
            Err("fentry needs the kernel's own type information".to_owned())
        };
        Self {
            families: [fentry, host.kprobes.clone(), Ok(())],
            hooks: Self::fitting(types),
            delivery: Ok(()),
            reasons: types.told_by_reasons(),
            counters: types.told_by_counters(),
            realtime: host::is_realtime(),
        }
    }

    /// No way at all, for one reason.
    #[must_use]
    pub fn none(why: &str) -> Self {
        Self {
            families: [(); 3].map(|()| Err(why.to_owned())),
            hooks: HOOKS.iter().map(|_| Ok(())).collect(),
            delivery: Err(why.to_owned()),
            reasons: 0,
            counters: 0,
            realtime: false,
        }
    }

    /// For each hook, whether the kernel's function is there as it is known.
    pub(super) fn fitting(types: &Types) -> Vec<Result<(), Without>> {
        let hooks = HOOKS.iter();
        hooks
            .map(|hook| types.fits(hook).map(|_| ()).map_err(Without::Absent))
            .collect()
    }

    /// Whether the kernel tells without this hook what it would: by its reasons for freeing a packet,
    /// or by another hook. If that was refused, this one is not tried: what refuses one refuses both.
    fn tell_without(&self, hook: &Hook) -> bool {
        if !self.realtime && hook.serves != 0 && hook.serves & !self.reasons == 0 {
            return true;
        }
        let mut others = TOLD_BY.iter().filter(|(whose, _)| *whose == hook.index);
        others.any(|(_, by)| !matches!(self.hooks[*by], Err(Without::Absent(_))))
    }

    fn family(&self, family: HookFamily) -> &Result<(), String> {
        &self.families[family as usize]
    }

    /// The kernel refused a hook. What is needed by all takes its family with it.
    pub fn refused(&mut self, family: HookFamily, hook: Option<&Hook>, why: String) {
        match hook {
            Some(hook) if hook.need != Need::Main => {
                self.hooks[hook.index] = Err(Without::Refused(why));
            }
            _ => self.families[family as usize] = Err(why),
        }
    }
}

/// Why nothing can be attached.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlanError {
    /// The way asked for is not to be had.
    #[error("--attach {}: {why}", family.name())]
    Refused {
        /// Which.
        family: HookFamily,
        /// Why.
        why: String,
    },
    /// Nor is any other.
    #[error("this kernel allows no way to watch it: {0}")]
    None(String),
}

impl PlanError {
    /// Why, without the option that asked for it.
    #[must_use]
    pub fn reason(&self) -> &str {
        let (Self::Refused { why, .. } | Self::None(why)) = self;
        why
    }
}

/// The plan.
#[derive(Debug, Clone)]
pub struct Plan {
    /// How hooks are attached.
    pub family: HookFamily,
    /// Better ways that are not to be had, and why.
    pub passed_over: Vec<(HookFamily, String)>,
    /// The hooks to attach.
    pub hooks: Vec<&'static Hook>,
    /// Hooks that were wanted and are left out, and why.
    pub left_out: Vec<(&'static Hook, Without)>,
    /// The outcomes that can be seen, among those wanted.
    pub observable: Set,
    /// Those that cannot, among those wanted.
    pub unobservable: Set,
    /// By tracepoints: whether packets are seen right before a socket decides on them, and if
    /// not, why.
    pub delivery: Result<(), String>,
    /// The outcomes, among those wanted, that are told by the kernel's reasons for freeing a packet.
    pub reasons: Set,
    /// What else is to be known, a sentence each.
    pub warnings: Vec<String>,
}

/// What is attached to beside the tracepoints, at the root of the cgroups.
pub const DELIVERY: &str = "cgroup_skb/ingress";

/// What can be told besides where packets are seen right before a socket decides on them.
const BY_DELIVERY: [u8; 2] = [
    outcome::ESTABLISHED_FAST_OPEN,
    outcome::ACK_DROPPED_LISTENER_CLOSING,
];

/// What tracepoints alone can tell.
const BY_TRACEPOINTS: [u8; 18] = [
    outcome::ACK_DEFERRED,
    outcome::FAST_OPEN_REFUSED,
    outcome::QUEUE_DISCARDED,
    outcome::REQUEST_ABORTED,
    outcome::QUEUED,
    outcome::COOKIE_SENT_FULL,
    outcome::COOKIE_SENT_ALWAYS,
    outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::SYN_DROPPED_SYN_QUEUE_FULL,
    outcome::SYN_DROPPED_OTHER,
    outcome::ESTABLISHED_HANDSHAKE,
    outcome::ESTABLISHED_COOKIE,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    outcome::ACK_DROPPED_OTHER,
    outcome::COOKIE_FAILED_INVALID,
    outcome::COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::COOKIE_DROPPED_OTHER,
];

impl Plan {
    /// The best plan for the outcomes wanted.
    ///
    /// # Errors
    /// [`PlanError`], if the way asked for, or every way, is refused.
    pub fn make(attach: Attach, selection: Set, offers: &Offers) -> Result<Self, PlanError> {
        let asked = match attach {
            Attach::Auto => None,
            Attach::Fentry => Some(HookFamily::Fentry),
            Attach::Kprobe => Some(HookFamily::Kprobe),
            Attach::Tracepoint => Some(HookFamily::Tracepoint),
        };
        let mut passed_over = Vec::new();
        for family in HookFamily::ALL {
            if asked.is_some_and(|asked| asked != family) {
                continue;
            }
            match Self::with(family, selection, offers) {
                Ok(plan) => {
                    return Ok(Self {
                        passed_over,
                        ..plan
                    });
                }
                Err(why) if asked.is_some() => return Err(PlanError::Refused { family, why }),
                Err(why) => passed_over.push((family, why)),
            }
        }
        let reasons: Vec<_> = passed_over
            .iter()
            .map(|(family, why)| format!("{}: {why}", family.name()))
            .collect();
        Err(PlanError::None(reasons.join("; ")))
    }

    fn with(family: HookFamily, selection: Set, offers: &Offers) -> Result<Self, String> {
        offers.family(family).clone()?;
        let mut plan = Self {
            family,
            passed_over: Vec::new(),
            hooks: Vec::new(),
            left_out: Vec::new(),
            observable: selection,
            unobservable: 0,
            delivery: offers.delivery.clone(),
            reasons: 0,
            warnings: Vec::new(),
        };
        // What hooks see by themselves.
        let mut seen: Set = 0;
        if family == HookFamily::Tracepoint {
            let by_delivery = BY_DELIVERY.iter().filter(|_| plan.delivery.is_ok());
            let tells = BY_TRACEPOINTS.iter().chain(by_delivery);
            plan.observable &= tells.fold(offers.reasons, |set, tag| set | 1 << tag);
        } else {
            // What no hook sees.
            let hooked = HOOKS.iter().fold(0, |set, hook| set | hook.serves);
            let by_reason = reason::outcomes(&[1; _]) & !hooked;
            plan.observable &= !by_reason | offers.reasons;
            for hook in &HOOKS {
                if !is_needed(hook, selection) || offers.tell_without(hook) {
                    continue;
                }
                match &offers.hooks[hook.index] {
                    Ok(()) => plan.hooks.push(hook),
                    Err(why) if hook.need == Need::Main => {
                        return Err(format!("{}: {why}", hook.function));
                    }
                    Err(why) => plan.left_out.push((hook, why.clone())),
                }
            }
            let seers = plan
                .hooks
                .iter()
                .filter(|hook| !TELLING.contains(&hook.index));
            seen = seers.fold(0, |set, hook| set | hook.serves);
            for (hook, why) in &plan.left_out {
                if is_missed(hook, why) && !TELLING.contains(&hook.index) {
                    plan.observable &= !hook.serves | seen;
                }
            }
            // What is told apart by nested hooks, as `decide` does it.
            let attached = plan.hook_bits();
            for outcome in &OUTCOMES {
                let needed = NEEDS[usize::from(outcome.tag)];
                if attached & needed != needed {
                    plan.observable &= !outcome.bit();
                }
            }
        }
        let by_sole = outcome::BY_SOLE.iter().fold(0, |set, tag| set | 1 << tag);
        plan.observable &= !by_sole | offers.counters;
        plan.reasons = plan.observable & offers.reasons & !seen;
        plan.unobservable = selection & !plan.observable;
        Ok(plan)
    }

    /// The hooks whose silence means something, as a set: those attached, those of which others tell,
    /// and those of parts that this kernel does not have.
    #[must_use]
    pub fn hook_bits(&self) -> u32 {
        let not_missed = self
            .left_out
            .iter()
            .filter(|(hook, why)| !is_missed(hook, why));
        let hooks = self.hooks.iter().chain(not_missed.map(|(hook, _)| hook));
        let seen = hooks.fold(0, |set, hook| set | hook.bit());
        let attached = |index| self.hooks.iter().any(|hook| hook.index == index);
        let told = TOLD_BY.iter().filter(|(_, by)| attached(*by));
        told.fold(seen, |set, (whose, _)| set | HOOKS[*whose].bit())
    }

    /// What is attached to, by name.
    #[must_use]
    pub fn attached_to(&self) -> Vec<&'static str> {
        match self.family {
            HookFamily::Tracepoint => {
                let delivery = self.delivery.is_ok().then_some(DELIVERY);
                TRACEPOINTS.into_iter().chain(delivery).collect()
            }
            _ => self.hooks.iter().map(|hook| hook.function).collect(),
        }
    }

    /// What cannot be seen and why, one sentence each.
    #[must_use]
    pub fn limits(&self) -> Vec<String> {
        let mut limits = Vec::new();
        if self.family == HookFamily::Tracepoint {
            let reasons: Vec<_> = self
                .passed_over
                .iter()
                .map(|(family, why)| format!("{}: {why}", family.name()))
                .collect();
            if !reasons.is_empty() {
                limits.push(format!("tracepoints only ({})", reasons.join("; ")));
            }
            if let Err(why) = &self.delivery {
                limits.push(format!(
                    "which listener a packet reached is concluded from its address and port, and \
                     unknown where several share them ({why})"
                ));
            }
            limits.push(
                "how long connections wait for accept(), and how long accept queues are full, \
                 cannot be told"
                    .to_owned(),
            );
        }
        if self.unobservable != 0 {
            limits.push(format!("not observable here: {}", names(self.unobservable)));
        }
        for (hook, why) in &self.left_out {
            if is_missed(hook, why) {
                limits.push(format!("not attached: {}: {why}", hook.function));
            }
        }
        limits.extend(self.warnings.iter().cloned());
        limits
    }
}

/// A set of outcomes as the user would name them.
#[must_use]
pub fn names(set: Set) -> String {
    OUTCOMES
        .iter()
        .filter(|outcome| set & outcome.bit() != 0)
        .map(|outcome| Name(outcome).to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether something goes unseen without the hook: not if it is for a part that this
/// kernel does not have.
fn is_missed(hook: &Hook, why: &Without) -> bool {
    hook.need != Need::Optional || matches!(why, Without::Refused(_))
}

/// Hooks that only serve outcomes nobody asked for are not attached, unless they
/// explain movements of the counters that the ledger compares, or keep the queues'
/// statistics.
fn is_needed(hook: &Hook, selection: Set) -> bool {
    let told = TOLD_BY.iter().filter(|(_, by)| *by == hook.index);
    let serves = told.fold(hook.serves, |set, (whose, _)| set | HOOKS[*whose].serves);
    let explains = OUTCOMES
        .iter()
        .any(|o| serves & o.bit() != 0 && (o.moves | o.may_move) != 0);
    explains || serves & selection != 0 || KEEP_QUEUES.contains(&hook.index)
}

impl From<&Plan> for AttachPlan {
    fn from(plan: &Plan) -> Self {
        let told = OUTCOMES
            .iter()
            .filter(|outcome| plan.observable & outcome.bit() != 0);
        Self {
            family: plan.family.name().to_owned(),
            hooks: plan.attached_to().into_iter().map(str::to_owned).collect(),
            outcomes: Some(told.map(|outcome| Name(outcome).to_string()).collect()),
            filters: Some(Vec::new()),
            limits: plan.limits(),
        }
    }
}

#[cfg(test)]
mod tests {
    use queue_trace_common::{
        hook,
        outcome::{Kind, of_kind},
    };

    use super::*;

    fn offers() -> Offers {
        Offers {
            families: [Ok(()), Ok(()), Ok(())],
            hooks: vec![Ok(()); hook::COUNT],
            delivery: Ok(()),
            reasons: reason::outcomes(&[1; _]),
            counters: Set::MAX,
            realtime: false,
        }
    }

    const ALL: Set = (1 << outcome::COUNT) - 1;

    #[test]
    fn fentry_is_preferred_and_sees_everything() {
        let plan = Plan::make(Attach::Auto, ALL, &offers()).unwrap();
        assert_eq!(plan.family, HookFamily::Fentry);
        // Of a SYN that nobody listens for the kernel's reason tells.
        let without = [hook::ALLOC, hook::RESET_V4, hook::RESET_V6];
        let attached = HOOKS.iter().map(|hook| hook.index);
        let attached: Vec<_> = attached.filter(|index| !without.contains(index)).collect();
        let hooks: Vec<_> = plan.hooks.iter().map(|hook| hook.index).collect();
        assert_eq!(hooks, attached);
        assert_eq!(plan.unobservable, 0);
        assert!(plan.limits().is_empty());
    }

    #[test]
    fn of_two_hooks_that_tell_the_same_one_is_attached() {
        let has = |offers: &Offers, selection, index| {
            let plan = Plan::make(Attach::Auto, selection, offers).unwrap();
            plan.hooks.iter().any(|hook| hook.index == index)
        };
        for (hook, by) in TOLD_BY {
            let mut offers = offers();
            for selection in [ALL, HOOKS[hook].serves] {
                assert!(has(&offers, selection, by) && !has(&offers, selection, hook));
            }
            offers.hooks[by] = Err(Without::Refused("EPERM".into()));
            let plan = Plan::make(Attach::Auto, ALL, &offers).unwrap();
            assert_eq!(plan.unobservable, HOOKS[hook].serves | HOOKS[by].serves);
            assert!(!has(&offers, ALL, hook));
            offers.hooks[by] = Err(Without::Absent("no such function".into()));
            assert!(has(&offers, ALL, hook));
        }
    }

    #[test]
    fn hooks_that_nothing_wanted_needs_stay_off() {
        let plan = Plan::make(Attach::Auto, of_kind(Kind::Refusal), &offers()).unwrap();
        let has = |index| plan.hooks.iter().any(|hook| hook.index == index);
        assert!(!has(hook::TIMER));
        assert!(has(hook::ACCEPT), "it tells how long connections wait");
        assert!(has(hook::ICMP), "it explains ListenDrops");
    }

    #[test]
    fn a_refused_main_hook_takes_its_family_with_it() {
        let mut offers = offers();
        offers.refused(HookFamily::Fentry, Some(&HOOKS[hook::ACK]), "EPERM".into());
        let plan = Plan::make(Attach::Auto, ALL, &offers).unwrap();
        assert_eq!(plan.family, HookFamily::Kprobe);
        assert_eq!(plan.passed_over, [(HookFamily::Fentry, "EPERM".to_owned())]);
    }

    #[test]
    fn a_refused_cause_is_left_out_and_said() {
        let mut offers = offers();
        offers.refused(
            HookFamily::Fentry,
            Some(&HOOKS[hook::PROVEN]),
            "inlined".into(),
        );
        let plan = Plan::make(Attach::Auto, ALL, &offers).unwrap();
        assert_eq!(plan.family, HookFamily::Fentry);
        // The last is told by what was not called.
        let lost = [
            outcome::SYN_DROPPED_LAST_QUARTER,
            outcome::SYN_DROPPED_NO_ROUTE,
        ];
        let lost = lost.iter().fold(0, |set, tag| set | 1 << tag);
        assert_eq!(plan.unobservable, lost);
        let limits = plan.limits().join("\n");
        assert!(limits.contains("syn_dropped:last_quarter"), "{limits}");
        assert!(limits.contains("tcp_peer_is_proven: inlined"), "{limits}");
    }

    /// The kernel side decides by the same table (`config::tells`).
    #[test]
    fn without_a_telling_hook_all_that_needs_it_goes_and_nothing_else() {
        for index in TELLING {
            let hook = &HOOKS[index];
            let mut offers = offers();
            for (_, by) in TOLD_BY.iter().filter(|(hook, _)| *hook == index) {
                offers.hooks[*by] = Err(Without::Absent("no such function".into()));
            }
            let told = TOLD_BY.iter().filter(|(_, by)| *by == index);
            let lost = told.fold(hook.bit(), |set, (whose, _)| set | HOOKS[*whose].bit());
            offers.hooks[index] = Err(Without::Refused("silent".into()));
            let Ok(plan) = Plan::make(Attach::Auto, ALL, &offers) else {
                panic!("{} takes everything with it", hook.function);
            };
            if hook.need == Need::Main {
                assert_eq!(plan.family, HookFamily::Tracepoint);
                continue;
            }
            let needed = OUTCOMES
                .iter()
                .filter(|outcome| hook::needed_by(outcome.tag) & lost != 0)
                .fold(0, |set, outcome| set | outcome.bit());
            assert_eq!(plan.unobservable, needed, "{}", hook.function);
            assert_eq!(plan.hook_bits() & hook.bit(), 0, "{}", hook.function);
        }
    }

    #[test]
    fn a_hook_that_stays_silent_is_left_out_and_said() {
        let mut offers = offers();
        let silent = || "it did not run".to_owned();
        offers.refused(
            HookFamily::Fentry,
            Some(&HOOKS[hook::LISTEN_CALL]),
            silent(),
        );
        let plan = Plan::make(Attach::Auto, ALL, &offers).unwrap();
        assert_eq!(
            plan.limits(),
            ["not attached: __sys_listen: it did not run"]
        );

        offers.refused(HookFamily::Fentry, Some(&HOOKS[hook::SYN_V4]), silent());
        offers.refused(HookFamily::Kprobe, Some(&HOOKS[hook::SYN_V4]), silent());
        let plan = Plan::make(Attach::Auto, ALL, &offers).unwrap();
        assert_eq!(plan.family, HookFamily::Tracepoint);
        let limits = plan.limits().join("\n");
        assert!(limits.contains("fentry: it did not run"), "{limits}");
    }

    #[test]
    fn what_a_kernel_has_no_part_for_is_not_missed() {
        let mut offers = offers();
        offers.hooks[hook::SECURITY] = Err(Without::Absent("no such function".into()));
        let plan = Plan::make(Attach::Auto, ALL, &offers).unwrap();
        assert_eq!(plan.unobservable, 0);
        assert!(plan.limits().is_empty());
        assert_ne!(plan.hook_bits() & HOOKS[hook::SECURITY].bit(), 0);

        let refused = Err(Without::Refused("EPERM".into()));
        offers.hooks[hook::SECURITY] = refused;
        let plan = Plan::make(Attach::Auto, ALL, &offers).unwrap();
        // With it goes what it would tell in the place of another.
        let lost = HOOKS[hook::SECURITY].serves | HOOKS[hook::ALLOC].serves;
        assert_eq!(plan.unobservable, lost);
        assert_eq!(plan.hook_bits() & HOOKS[hook::SECURITY].bit(), 0);
    }

    #[test]
    fn a_way_asked_for_by_name_is_had_or_refused() {
        let mut offers = offers();
        offers.families[0] = Err("refused by the kernel".into());
        let error = Plan::make(Attach::Fentry, ALL, &offers).unwrap_err();
        assert_eq!(error.to_string(), "--attach fentry: refused by the kernel");
        let plan = Plan::make(Attach::Tracepoint, ALL, &offers).unwrap();
        assert_eq!(plan.family, HookFamily::Tracepoint);
        assert_ne!(plan.unobservable & (1 << outcome::ACCEPTED), 0);
    }

    #[test]
    fn without_delivery_tracepoints_tell_less_and_say_so() {
        let mut offers = offers();
        let sees = |offers: &Offers| Plan::make(Attach::Tracepoint, ALL, offers).unwrap();
        let plan = sees(&offers);
        assert!(plan.attached_to().contains(&DELIVERY));
        assert_ne!(plan.observable & (1 << outcome::ESTABLISHED_FAST_OPEN), 0);
        assert!(!plan.limits().join("\n").contains("which listener"));

        offers.delivery = Err("cannot mount cgroup2".into());
        let plan = sees(&offers);
        assert!(!plan.attached_to().contains(&DELIVERY));
        assert_eq!(plan.observable & (1 << outcome::ESTABLISHED_FAST_OPEN), 0);
        assert_ne!(plan.observable & (1 << outcome::QUEUE_DISCARDED), 0);
        assert!(plan.limits().join("\n").contains("cannot mount cgroup2"));
    }

    #[test]
    fn that_nobody_listens_is_told_by_reasons_or_by_hooks() {
        const NOBODY: Set = 1 << outcome::SYN_REFUSED_NO_LISTENER;
        let mut offers = offers();
        let plan = Plan::make(Attach::Tracepoint, ALL, &offers).unwrap();
        assert_ne!(plan.observable & NOBODY, 0);
        assert_ne!(plan.reasons & NOBODY, 0);

        offers.reasons = 0;
        let plan = Plan::make(Attach::Tracepoint, ALL, &offers).unwrap();
        assert_eq!((plan.observable & NOBODY, plan.reasons), (0, 0));
        let limits = plan.limits().join("\n");
        assert!(limits.contains("syn_refused:no_listener"), "{limits}");

        // By hooks every kernel can; of what no hook sees none of these can.
        let plan = Plan::make(Attach::Kprobe, ALL, &offers).unwrap();
        let has = |index| plan.hooks.iter().any(|hook| hook.index == index);
        assert!(has(hook::RESET_V4) && has(hook::RESET_V6));
        assert_ne!(plan.observable & NOBODY, 0);
        assert_eq!(plan.unobservable, reason::outcomes(&[1; _]) & !NOBODY);
        // Nor is it told twice.
        for realtime in [false, true] {
            let offers = Offers {
                realtime,
                ..self::offers()
            };
            let plan = Plan::make(Attach::Fentry, ALL, &offers).unwrap();
            let hooked = plan.hooks.iter().any(|hook| hook.index == hook::RESET_V4);
            assert_eq!(hooked, realtime);
            assert_eq!(plan.reasons & NOBODY == 0, realtime);
            assert_ne!(plan.observable & NOBODY, 0);
        }
        offers.hooks[hook::RESET_V4] = Err(Without::Refused("inlined".into()));
        offers.hooks[hook::RESET_V6] = Err(Without::Refused("inlined".into()));
        let plan = Plan::make(Attach::Kprobe, ALL, &offers).unwrap();
        assert_eq!(plan.observable & NOBODY, 0);
    }

    #[test]
    fn an_outcome_whose_counter_a_kernel_lacks_is_unobservable() {
        let sole = outcome::BY_SOLE.iter().fold(0, |set, tag| set | 1 << tag);
        let mut offers = offers();
        for way in [Attach::Fentry, Attach::Tracepoint] {
            let plan = Plan::make(way, ALL, &offers).unwrap();
            assert_eq!(plan.observable & sole, sole);
        }
        offers.counters = 1 << outcome::ACK_DEFERRED;
        for way in [Attach::Fentry, Attach::Kprobe, Attach::Tracepoint] {
            let plan = Plan::make(way, ALL, &offers).unwrap();
            assert_eq!(plan.observable & sole, 1 << outcome::ACK_DEFERRED);
            let limits = plan.limits().join("\n");
            assert!(limits.contains("fast_open_refused"), "{limits}");
        }
    }

    #[test]
    fn nothing_at_all_says_why_for_each() {
        let mut offers = offers();
        for family in HookFamily::ALL {
            offers.refused(family, None, format!("no {}", family.name()));
        }
        let error = Plan::make(Attach::Auto, ALL, &offers)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no fentry") && error.contains("no tracepoint"),
            "{error}"
        );
    }
}

//! What `check` found: the facts, and their two forms, text and JSON. Finds nothing out.

use std::io::{self, Write};

use queue_trace_common::{
    hook::{HOOKS, Hook, Need},
    outcome::{self, OUTCOMES, Set},
};
use serde::Serialize;

use crate::{
    kernel::{
        btf::Types,
        plan::{HookFamily, Plan, Without},
    },
    model::event::Name,
};

/// How much can be observed; also the exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Observability {
    /// The main verdicts.
    Main = 0,
    /// Only some of them.
    Some = 1,
    /// None.
    None = 2,
}

impl Observability {
    const fn says(self) -> &'static str {
        match self {
            Self::Main => "The main verdicts are observable.",
            Self::Some => "Only some of the main verdicts are observable.",
            Self::None => "Nothing can be observed.",
        }
    }
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

/// What was found. The field's names are those of the JSON object.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// Always `check`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The version of queue-trace.
    pub version: &'static str,
    /// The kernel's release; absent if it is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Its architecture; absent if queue-trace has no programs for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<&'static str>,
    /// The privileges that matter; absent if a file was judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub privileges: Option<String>,
    /// The kernel's lockdown mode, unless it is `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lockdown: Option<String>,
    /// The file that the types were read from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub types: Option<String>,
    /// Why nothing could be attached or judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Ways to attach that were tried or judged, the best first.
    pub modes: Vec<Mode>,
    /// Every function that queue-trace knows to watch.
    pub hooks: Vec<HookReport>,
    /// How much can be observed, in the best of these ways.
    pub verdict: Observability,
    /// Whether a file was judged, and nothing attached.
    pub judged: bool,
}

/// A way to attach.
#[derive(Debug, Serialize)]
pub struct Mode {
    /// Its name.
    pub mode: &'static str,
    /// Whether it can be used.
    pub usable: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// The outcomes that are observable.
    pub observable: Vec<String>,
    /// Those that are not.
    pub not_observable: Vec<String>,
    /// What else is to be known of it, a sentence each.
    pub notes: Vec<String>,
    #[serde(skip)]
    sets: (Set, Set),
}

/// A function that queue-trace knows to watch.
#[derive(Debug, Serialize)]
pub struct HookReport {
    /// The kernel function.
    pub function: &'static str,
    /// What goes without it: `main`, `cause` or `optional`.
    pub need: &'static str,
    /// `attached`, `unused`, `present`, `refused` or `missing`.
    pub state: &'static str,
    /// Its prototype, if the kernel has it and it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prototype: Option<String>,
    /// Why it is refused or missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    #[serde(skip)]
    by: &'static str,
}

impl Mode {
    /// A way that can be used.
    #[must_use]
    pub fn usable(plan: &Plan) -> Self {
        Self {
            mode: plan.family.name(),
            usable: true,
            why: None,
            observable: names(plan.observable),
            not_observable: names(plan.unobservable),
            notes: plan.limits(),
            sets: (plan.observable, plan.unobservable),
        }
    }

    /// A way that cannot.
    #[must_use]
    pub fn refused(family: HookFamily, why: &str) -> Self {
        Self {
            mode: family.name(),
            usable: false,
            why: Some(why.to_owned()),
            observable: Vec::new(),
            not_observable: Vec::new(),
            notes: Vec::new(),
            sets: (0, 0),
        }
    }
}

impl Default for CheckReport {
    fn default() -> Self {
        Self {
            kind: "check",
            version: env!("CARGO_PKG_VERSION"),
            kernel: None,
            architecture: None,
            privileges: None,
            lockdown: None,
            types: None,
            error: None,
            modes: Vec::new(),
            hooks: Vec::new(),
            verdict: Observability::None,
            judged: false,
        }
    }
}

impl CheckReport {
    /// Takes in the ways to attach, and judges how much the best tells.
    pub fn set_modes(&mut self, modes: Vec<Mode>) {
        let main = MAIN.iter().fold(0, |set, tag| set | 1 << tag);
        let best = modes.iter().find(|mode| mode.usable);
        self.verdict = match best.map(|mode| mode.sets.0) {
            Some(observable) if observable & main == main => Observability::Main,
            Some(_) => Observability::Some,
            None => Observability::None,
        };
        self.modes = modes;
    }

    /// Takes in the state of every hook. `plan`: what is attached, if anything.
    pub fn set_hooks(&mut self, types: &Types, plan: Option<&Plan>) {
        let row = |hook: &'static Hook| {
            let left_out = plan.and_then(|plan| {
                let mut left_out = plan.left_out.iter();
                left_out.find_map(|(left, why)| (left.index == hook.index).then_some(why))
            });
            let (state, prototype, why) = match (types.fits(hook), left_out) {
                (Err(why), _) => ("missing", None, Some(why)),
                (Ok(prototype), Some(Without::Refused(why) | Without::Absent(why))) => {
                    ("refused", Some(prototype), Some(why.clone()))
                }
                (Ok(prototype), None) => {
                    let state = match plan {
                        None => "present",
                        Some(plan) if plan.hooks.iter().any(|h| h.index == hook.index) => {
                            "attached"
                        }
                        Some(_) => "unused",
                    };
                    (state, Some(prototype), None)
                }
            };
            HookReport {
                function: hook.function,
                need: match hook.need {
                    Need::Main => "main",
                    Need::Cause => "cause",
                    Need::Optional => "optional",
                },
                state,
                prototype: prototype.map(|prototype| prototype.to_string()),
                why,
                by: plan.map_or("present", |plan| plan.family.name()),
            }
        };
        self.hooks = HOOKS.iter().map(row).collect();
    }

    /// As one JSON object on a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn json(&self, out: &mut impl Write) -> io::Result<()> {
        serde_json::to_writer(&mut *out, self)?;
        writeln!(out)
    }

    /// As text.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn text(&self, out: &mut impl Write) -> io::Result<()> {
        for (name, value) in [
            ("kernel", self.kernel.as_deref()),
            ("machine", self.architecture.filter(|_| self.judged)),
            ("privileges", self.privileges.as_deref()),
            ("lockdown", self.lockdown.as_deref()),
            ("types", self.types.as_deref()),
        ] {
            if let Some(value) = value {
                writeln!(out, "{name:<12} {value}")?;
            }
        }
        for mode in &self.modes {
            let state = match (&mode.why, self.judged) {
                (Some(why), true) => format!("cannot be used: {why}"),
                (Some(why), false) => format!("refused: {why}"),
                (None, false) => "attached".to_owned(),
                (None, true) => {
                    let (yes, no) = (mode.observable.len(), mode.not_observable.len());
                    format!("fits: {yes} of {} outcomes are observable", yes + no)
                }
            };
            writeln!(out, "{:<12} {state}", mode.mode)?;
        }
        if !self.hooks.is_empty() {
            writeln!(out, "\nhooks")?;
        }
        for hook in &self.hooks {
            writeln!(out, "  {:<30} {}", hook.function, hook.shown())?;
        }
        if let Some(error) = &self.error {
            writeln!(out, "\n{error}")?;
        }
        for mode in self.modes.iter().filter(|mode| mode.usable) {
            let by = match self.judged {
                true => format!(" by {}", mode.mode),
                false => String::new(),
            };
            writeln!(out, "\nobservable{by}")?;
            outcomes(out, mode.sets.0)?;
            if mode.sets.1 != 0 {
                writeln!(out, "not observable{by}")?;
                outcomes(out, mode.sets.1)?;
            }
            for note in &mode.notes {
                writeln!(out, "note: {note}")?;
            }
        }
        if self.judged {
            writeln!(
                out,
                "\nJudged from the types alone. Privileges, lockdown and settings of the machine \
                 are not known."
            )?;
        }
        writeln!(out, "\n{}", self.verdict.says())
    }
}

impl HookReport {
    fn shown(&self) -> String {
        let why = self.why.as_deref().unwrap_or_default();
        let prototype = self.prototype.as_deref().unwrap_or_default();
        match self.state {
            "missing" if self.need == "optional" => format!("- ({why})"),
            "missing" => format!("MISSING: {why}"),
            "refused" => format!("REFUSED: {why}"),
            "unused" => format!("not used      {prototype}"),
            _ => format!("{:<13} {prototype}", self.by),
        }
    }
}

fn names(set: Set) -> Vec<String> {
    let shown = OUTCOMES.iter().filter(|outcome| set & outcome.bit() != 0);
    shown.map(|outcome| Name(outcome).to_string()).collect()
}

fn outcomes(out: &mut impl Write, set: Set) -> io::Result<()> {
    for outcome in OUTCOMES.iter().filter(|o| set & o.bit() != 0) {
        writeln!(out, "  {:<36} {}", Name(outcome).to_string(), outcome.says)?;
    }
    Ok(())
}

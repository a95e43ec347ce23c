//! One rule of the diagnosis: what it needs to be judged, what it compares with, and the function that
//! looks for its fault.

use queue_trace_common::outcome::{OUTCOMES, Set};

use super::{
    case::{Case, History, Key},
    finding::{Finding, Harm, NotJudged, Threshold},
};

/// One rule.
#[derive(Debug)]
pub struct Rule {
    /// Its name.
    pub name: &'static str,
    /// How bad what it finds is.
    pub harm: Harm,
    /// The outcomes that must have been looked for, so that absence means something: any of
    /// these sets is enough.
    pub needs: &'static [Set],
    /// Seconds that must have been observed.
    pub seconds: u64,
    /// The numbers that it compares with.
    pub thresholds: &'static [Threshold],
    /// The mechanism, for people.
    pub why: &'static str,
    /// Looks for the fault.
    pub find: fn(&Rule, &Case) -> Vec<Finding>,
}

impl Rule {
    /// Whether what it needs was looked for.
    #[must_use]
    pub fn is_told(&self, case: &Case) -> bool {
        self.needs.iter().any(|set| case.tells(*set))
    }

    /// Why its silence proves nothing, if it does not.
    #[must_use]
    pub fn not_judged(&self, case: &Case) -> Option<NotJudged> {
        let mut needs = Vec::new();
        let reason = if !self.is_told(case) {
            // The nearest way to judge it.
            let missing = self.needs.iter().map(|set| set & !case.told);
            let missing = missing.min_by_key(|set| set.count_ones()).unwrap_or(0);
            needs = names(missing);
            let family = case
                .header
                .as_ref()
                .map_or("an unknown way", |header| &header.attach.family);
            format!(
                "not looked for, or not observable by {family}: {}",
                needs.join(", ")
            )
        } else if case.seconds() < self.seconds as f64 {
            format!("{:.1} s are too short to tell", case.seconds())
        } else {
            return None;
        };
        Some(NotJudged {
            rule: self.name,
            needs,
            reason,
        })
    }

    /// A finding of it at a listener.
    #[must_use]
    pub fn finding(&self, key: &Key, history: &History, count: u64, what: String) -> Finding {
        Finding {
            rule: self.name,
            harm: self.harm,
            why: self.why,
            thresholds: self.thresholds,
            ..Finding::of(key, history, count, what)
        }
    }

    /// The threshold of that name.
    ///
    /// # Panics
    /// If the rule has none: a mistake in the registry, which a test finds.
    #[must_use]
    pub fn threshold(&self, name: &str) -> u64 {
        let threshold = self
            .thresholds
            .iter()
            .find(|threshold| threshold.name == name);
        threshold.map_or_else(
            || panic!("{} has no threshold {name}", self.name),
            |t| t.value,
        )
    }
}

pub(super) const fn at_least(name: &'static str, value: u64) -> Threshold {
    Threshold { name, value }
}

/// The outcomes of a set, by name.
#[must_use]
pub fn names(set: Set) -> Vec<String> {
    let outcomes = OUTCOMES.iter().filter(|o| set & o.bit() != 0);
    outcomes
        .map(|o| crate::model::event::Name(o).to_string())
        .collect()
}

//! Named cases of refused handshakes, each on a fresh namespace of its own.
//!
//! A case goes in two phases, so that a tracer can attach in between:
//! [`Scenario::prepare`] sets the stage (namespace, sysctls, listener) and
//! [`Stage::run`] plays the traffic, then reports what it imposed on the kernel,
//! in the words of the tracer's verdicts. The report comes from what was sent and
//! what was heard, never from the kernel's counters, so the two can be compared.

mod registry;
mod report;
mod stage;
#[cfg(test)]
mod tests;
mod traffic;

pub use self::{
    registry::SCENARIOS,
    report::{Imposed, Report},
    stage::{Scenario, Stage},
};

/// The case of that name.
pub fn find(name: &str) -> Option<&'static Scenario> {
    SCENARIOS.iter().find(|scenario| scenario.name == name)
}

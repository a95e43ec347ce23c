//! The domain: what happened to a handshake, as sinks see it. Serialises to the JSON
//! of docs/events.md, and comes back from it. Anything unknown is absent.

use std::{borrow::Cow, fmt, net::IpAddr};

use queue_trace_common::outcome::{OUTCOMES, Outcome};
use serde::{
    Deserialize, Deserializer, Serialize, Serializer, de::Error as _, ser::SerializeStruct,
};

use crate::model::socket::{Client, Listener, Process};

/// One verdict of the kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// When, by the monotonic clock, nanoseconds.
    pub mono_ns: u64,
    /// The same moment by the wall clock, nanoseconds since 1970.
    pub wall_ns: i128,
    /// What the kernel did and why.
    pub outcome: &'static Outcome,
    /// How many such events it stands for.
    pub count: u64,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// The listener concerned.
    pub listener: Listener,
    /// The address that the packet was sent to.
    pub local: Option<IpAddr>,
    /// The other side.
    pub client: Option<Client>,
    /// The accept queue at that moment.
    pub accept_queue: Option<AcceptQueue>,
    /// The SYN queue at that moment.
    pub syn_queue: Option<SynQueue>,
    /// The settings that decided.
    pub sysctls: Option<Sysctls>,
    /// SYN-ACKs retransmitted so far, for outcomes of the timer.
    pub retransmits: Option<u8>,
    /// Time in the accept queue, microseconds, where the application took it.
    pub waited_us: Option<u64>,
    /// Who took it.
    pub process: Option<Process>,
    /// Counters of the kernel that moved with it, see
    /// [`queue_trace_common::counter`].
    pub moved: u8,
    /// The CPU that handled it; absent where it stands for several that were withheld.
    pub cpu: Option<u32>,
    /// Identity of the listener's socket within one run.
    pub sk: u64,
}

impl Event {
    /// Whether it stands for events that are in the stream only as their number.
    #[must_use]
    pub fn is_held_back(&self) -> bool {
        self.cpu.is_none()
    }
}

/// Connections established and not yet accepted. Full when `depth > limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptQueue {
    /// How many.
    pub depth: u32,
    /// The backlog in force.
    pub limit: u32,
}

/// Requests whose handshake is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SynQueue {
    /// How many.
    pub depth: u32,
    /// Those among them whose SYN-ACK was not retransmitted.
    pub young: u32,
    /// The backlog in force, which bounds this queue too.
    pub limit: u32,
}

/// The settings of the namespace that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sysctls {
    /// `net.ipv4.tcp_syncookies`.
    pub tcp_syncookies: u32,
    /// `net.ipv4.tcp_abort_on_overflow`.
    pub tcp_abort_on_overflow: u32,
    /// `net.ipv4.tcp_max_syn_backlog`.
    pub tcp_max_syn_backlog: u32,
    /// `net.core.somaxconn`.
    pub somaxconn: u32,
}

/// An outcome as `VERDICT:CAUSE`.
pub struct Name<'a>(pub &'a Outcome);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.verdict)?;
        match self.0.cause {
            Some(cause) => write!(f, ":{cause}"),
            None => Ok(()),
        }
    }
}

/// A moment of the wall clock as RFC 3339 in UTC, with nanoseconds.
#[must_use]
pub fn rfc3339(wall_ns: i128) -> String {
    match jiff::Timestamp::from_nanosecond(wall_ns) {
        Ok(moment) => format!("{moment:.9}"),
        // Out of the calendar: a clock gone mad is shown as it is.
        Err(_) => wall_ns.to_string(),
    }
}

/// The moment that RFC 3339 text names, nanoseconds since 1970.
///
/// # Errors
/// If it is not such text.
pub fn from_rfc3339(text: &str) -> Result<i128, String> {
    text.parse::<jiff::Timestamp>()
        .map(jiff::Timestamp::as_nanosecond)
        .map_err(|error| format!("time {text:?}: {error}"))
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Event", 19)?;
        macro_rules! optional {
            ($name:literal, $value:expr) => {
                match &$value {
                    Some(value) => out.serialize_field($name, value)?,
                    None => out.skip_field($name)?,
                }
            };
        }
        out.serialize_field("type", "event")?;
        out.serialize_field("time", &rfc3339(self.wall_ns))?;
        out.serialize_field("mono_ns", &self.mono_ns)?;
        out.serialize_field("step", self.outcome.step.name())?;
        out.serialize_field("verdict", self.outcome.verdict)?;
        optional!("cause", self.outcome.cause);
        out.serialize_field("netns", &self.netns)?;
        out.serialize_field("listener", &self.listener)?;
        optional!("local", self.local);
        optional!("client", self.client);
        optional!("accept_queue", self.accept_queue);
        optional!("syn_queue", self.syn_queue);
        optional!("sysctls", self.sysctls);
        optional!("retransmits", self.retransmits);
        optional!("waited_us", self.waited_us);
        optional!("process", self.process);
        optional!("cpu", self.cpu);
        out.serialize_field("count", &self.count)?;
        out.end()
    }
}

/// The outcome of these words, as they stand in JSON; `None` for words that this
/// version does not know.
#[must_use]
pub fn outcome_of(step: &str, verdict: &str, cause: Option<&str>) -> Option<&'static Outcome> {
    OUTCOMES
        .iter()
        .find(|o| o.step.name() == step && o.verdict == verdict && o.cause == cause)
}

/// The outcome named `VERDICT` or `VERDICT:CAUSE`.
#[must_use]
pub fn outcome_named(name: &str) -> Option<&'static Outcome> {
    let (verdict, cause) = match name.split_once(':') {
        Some((verdict, cause)) => (verdict, Some(cause)),
        None => (name, None),
    };
    OUTCOMES
        .iter()
        .find(|o| o.verdict == verdict && o.cause == cause)
}

/// The words of an outcome in a line of JSON.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OutcomeWords<'a> {
    #[serde(borrow)]
    step: Cow<'a, str>,
    #[serde(borrow)]
    verdict: Cow<'a, str>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    cause: Option<Cow<'a, str>>,
}

impl From<&'static Outcome> for OutcomeWords<'static> {
    fn from(outcome: &'static Outcome) -> Self {
        Self {
            step: outcome.step.name().into(),
            verdict: outcome.verdict.into(),
            cause: outcome.cause.map(Into::into),
        }
    }
}

impl OutcomeWords<'_> {
    /// The row of the registry that they name.
    pub(crate) fn outcome<E: serde::de::Error>(&self) -> Result<&'static Outcome, E> {
        outcome_of(&self.step, &self.verdict, self.cause.as_deref()).ok_or_else(|| {
            let cause = self.cause.as_deref().unwrap_or("no cause");
            E::custom(format!("unknown outcome {} ({cause})", self.verdict))
        })
    }
}

/// What an event is read from. `moved` and `sk` do not travel in JSON: the first is what
/// the outcome always moves, the second is not known.
#[derive(Deserialize)]
struct EventLine<'a> {
    #[serde(borrow)]
    time: Cow<'a, str>,
    mono_ns: u64,
    #[serde(borrow)]
    step: Cow<'a, str>,
    #[serde(borrow)]
    verdict: Cow<'a, str>,
    #[serde(borrow, default)]
    cause: Option<Cow<'a, str>>,
    netns: u32,
    listener: Listener,
    local: Option<IpAddr>,
    client: Option<Client>,
    accept_queue: Option<AcceptQueue>,
    syn_queue: Option<SynQueue>,
    sysctls: Option<Sysctls>,
    retransmits: Option<u8>,
    waited_us: Option<u64>,
    process: Option<Process>,
    cpu: Option<u32>,
    count: u64,
}

impl<'de> Deserialize<'de> for Event {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let line = EventLine::deserialize(deserializer)?;
        let words = OutcomeWords {
            step: line.step,
            verdict: line.verdict,
            cause: line.cause,
        };
        let outcome = words.outcome()?;
        Ok(Self {
            mono_ns: line.mono_ns,
            wall_ns: from_rfc3339(&line.time).map_err(D::Error::custom)?,
            outcome,
            count: line.count,
            netns: line.netns,
            listener: line.listener,
            local: line.local,
            client: line.client,
            accept_queue: line.accept_queue,
            syn_queue: line.syn_queue,
            sysctls: line.sysctls,
            retransmits: line.retransmits,
            waited_us: line.waited_us,
            process: line.process,
            moved: outcome.moves,
            cpu: line.cpu,
            sk: 0,
        })
    }
}

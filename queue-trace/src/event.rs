//! The domain: what happened to a handshake, as sinks see it. Serialises to the JSON
//! of docs/events.md. Anything unknown is absent.

use std::net::IpAddr;

use queue_trace_common::outcome::Outcome;
use serde::{Serialize, Serializer, ser::SerializeStruct};

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
    /// Counters of the kernel that moved with it, see
    /// [`queue_trace_common::counter`].
    pub moved: u8,
    /// The CPU that handled it; absent for what several held back.
    pub cpu: Option<u32>,
    /// Identity of the listener's socket within one run.
    pub sk: u64,
}

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
pub struct Listener {
    /// The address that it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Socket cookie, as in `ss -e` (`sk:`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u64>,
    /// Inode number, as in `ss -e` (`ino:`) and `/proc/PID/fd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
}

/// The other side of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Client {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
}

/// Connections established and not yet accepted. Full when `depth > limit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AcceptQueue {
    /// How many.
    pub depth: u32,
    /// The backlog in force.
    pub limit: u32,
}

/// Requests whose handshake is not finished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct SynQueue {
    /// How many.
    pub depth: u32,
    /// Those among them whose SYN-ACK was not retransmitted.
    pub young: u32,
    /// The backlog in force, which bounds this queue too.
    pub limit: u32,
}

/// The settings of the namespace that decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
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

/// A moment of the wall clock as RFC 3339 in UTC, with nanoseconds.
#[must_use]
pub fn rfc3339(wall_ns: i128) -> String {
    match jiff::Timestamp::from_nanosecond(wall_ns) {
        Ok(moment) => format!("{moment:.9}"),
        // Out of the calendar: a clock gone mad is shown as it is.
        Err(_) => wall_ns.to_string(),
    }
}

impl Serialize for Event {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Event", 17)?;
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
        optional!("cpu", self.cpu);
        out.serialize_field("count", &self.count)?;
        out.end()
    }
}

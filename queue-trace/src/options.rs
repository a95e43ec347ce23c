//! What several commands let the user say: which packets and outcomes, and how the kernel is
//! watched. Values are parsed here, so that a bad one is named by its option; nothing is
//! checked against the machine.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use queue_trace_common::outcome::{self, Kind, OUTCOMES, Set};

/// Which verdicts of which packets.
#[derive(Debug, Clone, Default, Args)]
pub struct Filters {
    /// Only listeners on these ports, e.g. 80,443 or 8000-8099
    #[arg(short, long = "port", value_name = "PORT[,PORT|A-B]", value_delimiter = ',', value_parser = ports)]
    pub ports: Vec<RangeInclusive<u16>>,

    /// Only packets sent to these addresses of this host
    #[arg(long = "addr", value_name = "CIDR", value_parser = network)]
    pub addrs: Vec<IpNet>,

    /// Only clients with these addresses
    #[arg(long = "client", value_name = "CIDR", value_parser = network)]
    pub clients: Vec<IpNet>,

    /// Only this network namespace: its number (lsns -t net) or a path like /run/netns/NAME
    #[arg(long = "netns", value_name = "ID|PATH", value_parser = NetnsArg::from_str)]
    pub netns: Vec<NetnsArg>,

    /// Only these outcomes, e.g. syn_dropped or ack_dropped:accept_queue_full
    #[arg(long = "event", value_name = "VERDICT[:CAUSE]", value_parser = outcomes)]
    pub events: Vec<Set>,

    /// Also show the normal course of handshakes: queued, established, accepted, …
    #[arg(long, conflicts_with = "events")]
    pub all: bool,

    /// Also show connections that waited at least this long for accept(), e.g. 100ms
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub slow: Option<Duration>,
}

/// Which listeners, and how the kernel is watched.
#[derive(Debug, Clone, Default, Args)]
pub struct Which {
    /// Only listeners on these ports, e.g. 80,443 or 8000-8099
    #[arg(short, long = "port", value_name = "PORT[,PORT|A-B]", value_delimiter = ',', value_parser = ports)]
    pub ports: Vec<RangeInclusive<u16>>,

    /// Only listeners on these addresses of this host
    #[arg(long = "addr", value_name = "CIDR", value_parser = network)]
    pub addrs: Vec<IpNet>,

    /// Only this network namespace: its number (lsns -t net) or a path like /run/netns/NAME
    #[arg(long = "netns", value_name = "ID|PATH", value_parser = NetnsArg::from_str)]
    pub netns: Vec<NetnsArg>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: Kernel,
}

/// How the kernel is watched.
#[derive(Debug, Clone, Default, Args)]
pub struct Kernel {
    /// How to attach to the kernel; auto takes the best that it allows
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Attach::Auto)]
    pub attach: Attach,

    /// Make no self-test at start (handshakes in a private network namespace)
    #[arg(long)]
    pub no_canary: bool,

    /// The kernel's type information, for kernels that do not carry their own
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
}

/// How to attach.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// The best that the kernel allows
    #[default]
    Auto,
    /// fentry and fexit only
    Fentry,
    /// kprobes and kretprobes only
    Kprobe,
    /// Tracepoints only
    Tracepoint,
}

/// A network namespace as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsArg {
    /// By inode number.
    Id(u32),
    /// By a path to it.
    Path(PathBuf),
}

impl FromStr for NetnsArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(id) = text.parse() {
            Ok(Self::Id(id))
        } else if text.contains('/') {
            Ok(Self::Path(Path::new(text).to_owned()))
        } else {
            Err("neither a namespace number nor a path to one".to_owned())
        }
    }
}

pub(crate) fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
    let port = |text: &str| {
        text.parse::<u16>()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| format!("{text:?} is not a port (1 to 65535)"))
    };
    match text.split_once('-') {
        None => port(text).map(|port| port..=port),
        Some((from, to)) => {
            let (from, to) = (port(from)?, port(to)?);
            if from > to {
                return Err(format!(
                    "the range ends at {to}, before it begins at {from}"
                ));
            }
            Ok(from..=to)
        }
    }
}

/// A network, or a single address as a network of one.
fn network(text: &str) -> Result<IpNet, String> {
    text.parse::<IpNet>()
        .or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from))
        .map_err(|_| "not an address or a network like 10.0.0.0/8 or 2001:db8::/32".to_owned())
}

fn outcomes(text: &str) -> Result<Set, String> {
    let (verdict, cause) = match text.split_once(':') {
        Some((verdict, cause)) => (verdict, Some(cause)),
        None => (text, None),
    };
    let of_verdict: Vec<_> = OUTCOMES.iter().filter(|o| o.verdict == verdict).collect();
    if of_verdict.is_empty() {
        let mut known: Vec<_> = OUTCOMES.iter().map(|o| o.verdict).collect();
        known.dedup();
        return Err(format!("no such verdict; there are {}", known.join(", ")));
    }
    let set = of_verdict
        .iter()
        .filter(|o| cause.is_none() || o.cause == cause)
        .fold(0, |set, o| set | o.bit());
    if set == 0 {
        let known: Vec<_> = of_verdict.iter().filter_map(|o| o.cause).collect();
        return Err(if known.is_empty() {
            format!("{verdict} has no causes to tell apart")
        } else {
            format!(
                "{verdict} has no such cause; there are {}",
                known.join(", ")
            )
        });
    }
    Ok(set)
}

/// A time longer than nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("must be longer than nothing".to_owned()),
        Err(_) => Err("not a time like 30s, 5m or 1h30m".to_owned()),
    }
}

impl Filters {
    /// The outcomes asked for.
    #[must_use]
    pub fn outcomes(&self) -> Set {
        let slow = self.slow.map_or(0, |_| 1 << outcome::ACCEPTED);
        self.named() | slow
    }

    /// Whether every accepted connection is shown, slow or not.
    #[must_use]
    pub fn shows_accepted(&self) -> bool {
        self.named() & 1 << outcome::ACCEPTED != 0
    }

    /// Whether SYNs that met no listener are shown on every port, as they were asked for.
    #[must_use]
    pub fn shows_unheard(&self) -> bool {
        let named = self.events.iter().fold(0, |all, set| all | set);
        self.all || named & 1 << outcome::SYN_REFUSED_NO_LISTENER != 0
    }

    /// The outcomes asked for by `--event` or `--all`, or by neither.
    fn named(&self) -> Set {
        if self.all {
            outcome::of_kind(Kind::Refusal) | outcome::of_kind(Kind::Routine)
        } else if self.events.is_empty() {
            outcome::of_kind(Kind::Refusal)
        } else {
            self.events.iter().fold(0, |all, set| all | set)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_can_be_named() {
        for outcome in &OUTCOMES {
            let name = match outcome.cause {
                Some(cause) => format!("{}:{cause}", outcome.verdict),
                None => outcome.verdict.to_owned(),
            };
            assert_eq!(outcomes(&name), Ok(outcome.bit()), "{name}");
        }
    }
}

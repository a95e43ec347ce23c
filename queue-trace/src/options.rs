//! What several commands let the user say: which packets and outcomes, and how the kernel is
//! watched. Values are parsed here, so that a bad one is named by its option; nothing is
//! checked against the machine.

use std::{
    fmt,
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::{Args, ValueEnum};
use ipnet::IpNet;
use queue_trace_common::outcome::{self, Kind, OUTCOMES, Set};

/// Which listeners: what every command takes that shows them.
#[derive(Debug, Clone, Default, Args)]
pub struct ListenerFilters {
    /// Only listeners on these ports, e.g. 80,443 or 8000-8099
    #[arg(short, long = "port", value_name = "PORT[,PORT|A-B]", value_delimiter = ',', value_parser = ports)]
    pub ports: Vec<RangeInclusive<u16>>,

    /// Only packets sent to these addresses of this host, and listeners that take them
    #[arg(long = "addr", value_name = "CIDR", value_parser = network)]
    pub addrs: Vec<IpNet>,

    /// Only this network namespace: its number (lsns -t net) or a path like /run/netns/NAME
    #[arg(long = "netns", value_name = "ID|PATH", value_parser = NetnsArg::from_str)]
    pub netns: Vec<NetnsArg>,

    /// Only listeners that are bound to this device, by its name or number (ip link)
    #[arg(long = "device", value_name = "NAME|NUMBER", value_parser = NetDevice::from_str)]
    pub devices: Vec<NetDevice>,

    /// Only listeners of this process: its name (ps -o comm) or number
    #[arg(long = "process", value_name = "NAME|PID", value_parser = ProcessArg::from_str)]
    pub processes: Vec<ProcessArg>,

    /// Only listeners of this systemd unit, e.g. nginx.service
    #[arg(long = "unit", value_name = "UNIT", value_parser = unit)]
    pub units: Vec<String>,

    /// Only listeners in this container: its id, or how it begins
    #[arg(long = "container", value_name = "ID", value_parser = container)]
    pub containers: Vec<String>,

    /// Only listeners in this Kubernetes pod: its name or uid
    #[arg(long = "pod", value_name = "[NAMESPACE/]NAME|UID")]
    pub pods: Vec<String>,
}

impl ListenerFilters {
    /// Whether owners or devices are named: such a filter works in user space.
    #[must_use]
    pub fn name_owners(&self) -> bool {
        !self.devices.is_empty()
            || !self.processes.is_empty()
            || !self.units.is_empty()
            || !self.containers.is_empty()
            || !self.pods.is_empty()
    }

    /// Whether they ask about some listeners, wherever they are.
    #[must_use]
    pub fn ask(&self) -> bool {
        self.name_owners() || !self.ports.is_empty() || !self.addrs.is_empty()
    }

    /// Those that work in user space, as they are on the command line.
    #[must_use]
    pub fn owner_words(&self) -> Vec<String> {
        let mut words = Vec::new();
        let devices = self.devices.iter().map(|one| format!("--device {one}"));
        let processes = self.processes.iter().map(|one| format!("--process {one}"));
        words.extend(devices.chain(processes));
        for (option, values) in [
            ("--unit", &self.units),
            ("--container", &self.containers),
            ("--pod", &self.pods),
        ] {
            words.extend(values.iter().map(|one| format!("{option} {one}")));
        }
        words
    }

    /// All of them, as they are on the command line.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = self.kernel_words();
        words.extend(self.owner_words());
        words
    }

    /// Those that the kernel side applies, as they are on the command line.
    #[must_use]
    pub fn kernel_words(&self) -> Vec<String> {
        let ports = self.ports.iter().map(|range| match range {
            range if range.start() == range.end() => format!("--port {}", range.start()),
            range => format!("--port {}-{}", range.start(), range.end()),
        });
        let addrs = self.addrs.iter().map(|net| format!("--addr {net}"));
        let netns = self.netns.iter().map(|netns| format!("--netns {netns}"));
        ports.chain(addrs).chain(netns).collect()
    }
}

/// A process as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProcessArg {
    /// By number.
    Pid(u32),
    /// By name, as the kernel has it.
    Name(String),
}

impl FromStr for ProcessArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        /// What the kernel keeps of a name (`TASK_COMM_LEN` less the end).
        const LONGEST: usize = 15;
        match text.parse() {
            Ok(0) => Err("no process has the number 0".to_owned()),
            Ok(pid) => Ok(Self::Pid(pid)),
            Err(_) if text.is_empty() => Err("neither a name nor a number".to_owned()),
            Err(_) => {
                let mut ends = (0..=LONGEST.min(text.len())).rev();
                let end = ends.find(|at| text.is_char_boundary(*at));
                Ok(Self::Name(text[..end.unwrap_or(0)].to_owned()))
            }
        }
    }
}

impl fmt::Display for ProcessArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pid(pid) => write!(f, "{pid}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A network device as the user names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetDevice {
    /// By number, in its namespace.
    Number(u32),
    /// By name.
    Name(String),
}

impl FromStr for NetDevice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        /// `IFNAMSIZ` less the end.
        const LONGEST: usize = 15;
        match text.parse() {
            Ok(0) => Err("no device has the number 0".to_owned()),
            Ok(number) => Ok(Self::Number(number)),
            Err(_) if text.is_empty() || text.len() > LONGEST => {
                Err(format!("a device's name has 1 to {LONGEST} characters"))
            }
            Err(_) => Ok(Self::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for NetDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// Which verdicts of which packets.
#[derive(Debug, Clone, Default, Args)]
pub struct Filters {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub listeners: ListenerFilters,

    /// Only clients with these addresses
    #[arg(long = "client", value_name = "CIDR", value_parser = network)]
    pub clients: Vec<IpNet>,

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

/// How the kernel is watched.
#[derive(Debug, Clone, Default, Args)]
pub struct KernelOptions {
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

impl fmt::Display for NetnsArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
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

/// A unit, as systemctl takes it: a name without its kind is a service's.
fn unit(text: &str) -> Result<String, String> {
    const KINDS: [&str; 3] = [".service", ".scope", ".socket"];
    if text.is_empty() || text.contains('/') {
        return Err("not a unit like nginx.service".to_owned());
    }
    Ok(match KINDS.iter().any(|kind| text.ends_with(kind)) {
        true => text.to_owned(),
        false => format!("{text}.service"),
    })
}

/// A container's id, or how it begins.
fn container(text: &str) -> Result<String, String> {
    /// 64 digits, of which container tools show 12.
    const LONGEST: usize = 64;
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if text.is_empty() || text.len() > LONGEST || !digits {
        return Err(
            "not a container's id, hexadecimal digits as docker ps shows them: for a Kubernetes \
             container use --pod"
                .to_owned(),
        );
    }
    Ok(text.to_ascii_lowercase())
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
    /// All of them, as they are on the command line.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let mut words = self.listeners.words();
        words.extend(self.client_words());
        words
    }

    /// Those on clients, as they are on the command line.
    pub fn client_words(&self) -> impl Iterator<Item = String> {
        self.clients.iter().map(|net| format!("--client {net}"))
    }

    /// For a conclusion, which needs all outcomes unless some are named.
    #[must_use]
    pub fn for_conclusions(&self) -> Self {
        Self {
            all: self.events.is_empty(),
            ..self.clone()
        }
    }

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

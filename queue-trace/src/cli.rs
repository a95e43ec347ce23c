//! The command line: what the user says, before anything is checked against the
//! machine. Values are parsed here, so that a bad one is named by its option.

use std::{
    ops::RangeInclusive,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

#[cfg(target_os = "linux")]
use clap::builder::{PossibleValue, PossibleValuesParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;
use queue_trace_common::{
    outcome::{self, Kind, OUTCOMES, Set},
    settings::MAX_NETNS,
};

use crate::clients::Prefixes;
#[cfg(target_os = "linux")]
use crate::lab::scenario::SCENARIOS;
use crate::sink::{Limit, Rotation};

/// Tells which TCP listener refuses connections, what the kernel did to each packet,
/// and why.
#[derive(Debug, Parser)]
#[command(
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        queue-trace                          refused handshakes on every port, in every namespace\n  \
        queue-trace -p 8080 --duration 30s   one port, for half a minute\n  \
        queue-trace --event cookie_sent      only the SYN cookies that were sent\n  \
        queue-trace --all --json -o incident.jsonl.zst   record for later\n  \
        queue-trace diagnose --for 30s       what is wrong, and what to change\n  \
        queue-trace demo accept-overflow     see it work, without an incident"
)]
pub struct Cli {
    #[command(subcommand)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub command: Option<Command>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub trace: Trace,
}

impl Cli {
    /// The exit status when it could not be done. For a diagnosis 1 means findings.
    #[must_use]
    pub fn status_of_errors(&self) -> u8 {
        match self.command {
            Some(Command::Diagnose(_)) => 2,
            _ => 1,
        }
    }
}

/// The other things that it does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Say what is wrong and what to change, from the running kernel or from a recording
    ///
    /// Exit status: 0 nothing found, and the ledger proves that nothing was missed; 1
    /// findings; 2 could not tell, or an error.
    Diagnose(Diagnose),
    /// Show a recording as if it happened now
    ///
    /// Needs no privilege.
    Replay(Replay),
    /// Make one self-contained web page of a recording
    Report(Report),
    /// Say what can be observed on this machine, and what cannot
    ///
    /// Exit status: 0 if the main verdicts are observable, 1 if only some are, 2 if none.
    #[cfg(target_os = "linux")]
    Check(Check),
    /// Make a case of refused handshakes in a private network namespace, and trace it
    ///
    /// Nothing is left behind. Takes a few seconds.
    #[cfg(target_os = "linux")]
    Demo(Demo),
    /// Show every listener: whose it is, how full its queues are, how long connections wait
    ///
    /// A look at what is there needs no privilege, and shows what you may see. With --watch
    /// it attaches, and shows what happened since as well.
    #[cfg(target_os = "linux")]
    Listeners(Listeners),
    /// Show the listeners in the terminal, those in trouble first, now or in a recording
    ///
    /// Press ? for the keys. A recording is played, and shown at any moment of it.
    Top(Top),
    /// Write a completion script for a shell to standard output
    Completions(Completions),
    /// Write the manual page to standard output, or all pages to a folder
    Man(Man),
}

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

    /// Show the normal course of handshakes too: queued, established, accepted, …
    #[arg(long, conflicts_with = "events")]
    pub all: bool,

    /// Show connections too that waited at least so long to be accepted, e.g. 100ms
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub slow: Option<Duration>,
}

/// Options of the live stream.
#[derive(Debug, Clone, Args)]
pub struct Trace {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub filters: Filters,

    /// Stop after this many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,

    /// Stop after this time, e.g. 30s or 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub duration: Option<Duration>,

    /// Records a second from each CPU at most; what is held back comes as counts each second.
    /// 0: no limit
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub rate: u32,

    /// Lengths of the IPv4 and IPv6 networks by which clients are put together
    #[arg(long, value_name = "V4,V6", default_value = "24,64")]
    pub networks: Prefixes,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,

    /// Write to this file instead of standard output; compressed if it ends in .zst or .gz
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,

    /// Begin a new file at this size or after this time, e.g. 100M or 1h; FILE.jsonl becomes
    /// FILE.000001.jsonl and so on
    #[arg(long, value_name = "SIZE|TIME", value_parser = limit, requires = "output", requires = "json")]
    pub rotate: Option<Limit>,

    /// Keep only this many of the files, the newest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), requires = "rotate")]
    pub keep: Option<u64>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: Kernel,

    /// Say more on standard error; -vv shows the kernel side's own messages
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How the kernel is watched.
#[derive(Debug, Clone, Default, Args)]
pub struct Kernel {
    /// How to attach to the kernel; auto takes the best that it allows
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Attach::Auto)]
    pub attach: Attach,

    /// Leave out the self-test at start, a handshake in a private network namespace
    #[arg(long)]
    pub no_canary: bool,

    /// The kernel's type information, for kernels that do not carry their own
    #[arg(long, value_name = "FILE")]
    pub btf: Option<PathBuf>,
}

/// Options of `diagnose`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace diagnose --for 30s            watch this machine for half a minute\n  \
    queue-trace diagnose incident.jsonl.zst   a recording, on any machine")]
pub struct Diagnose {
    /// Recordings, in order of time; - is standard input. Without any, this machine is watched
    #[arg(value_name = "FILE", conflicts_with_all = ["attach", "no_canary", "btf", "rate"])]
    pub files: Vec<PathBuf>,

    /// How long to watch this machine, e.g. 30s
    #[arg(long = "for", value_name = "TIME", default_value = "10s", value_parser = duration, conflicts_with = "files")]
    pub time: Duration,

    /// Write the findings as one JSON object
    #[arg(long)]
    pub json: bool,

    /// Records a second from each CPU at most; what is held back is counted all the same.
    /// 0: no limit
    #[arg(long, value_name = "N", default_value_t = 1000)]
    pub rate: u32,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: Kernel,
}

/// Options of `replay`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace replay incident.jsonl.zst             the refusals of a recording\n  \
    queue-trace replay --all -p 443 incident.jsonl    all that befell one port\n  \
    zcat incident.jsonl.gz | queue-trace replay --json -   as JSON, from a pipe")]
pub struct Replay {
    /// Recordings, in order of time; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub filters: Filters,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,

    /// Write to this file instead of standard output; compressed if it ends in .zst or .gz
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Options of `report`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  queue-trace report incident.jsonl.zst -o incident.html")]
pub struct Report {
    /// Recordings, in order of time; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    /// The page to write
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// Options of `completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  queue-trace completions bash > /etc/bash_completion.d/queue-trace"
)]
pub struct Completions {
    /// For which shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: clap_complete::Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace man | man -l -\n  \
    queue-trace man /usr/local/share/man/man1")]
pub struct Man {
    /// Write a page for each command into this folder
    #[arg(value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

/// Options of `check`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  queue-trace check --attach kprobe")]
pub struct Check {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: Kernel,
}

/// Options of `demo`.
#[cfg(target_os = "linux")]
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  queue-trace demo syn-flood --json")]
pub struct Demo {
    /// Which case
    #[arg(value_name = "CASE", default_value = "accept-overflow", value_parser = cases())]
    pub case: String,

    /// Over IPv6
    #[arg(short = '6', long)]
    pub ipv6: bool,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: Kernel,
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

/// Options of `listeners`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace listeners                     what there is now\n  \
    queue-trace listeners --watch 1s -p 443   what happens to it, every second")]
pub struct Listeners {
    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub which: Which,

    /// Attach, and show them again at this interval, e.g. 1s
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub watch: Option<Duration>,

    /// Write JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// Options of `top`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace top -p 80,443                this machine, now\n  \
    queue-trace top incident.jsonl.zst       a recording, on any machine")]
pub struct Top {
    /// Recordings, in order of time. Without any, this machine is watched
    #[arg(
        value_name = "FILE",
        required = cfg!(not(target_os = "linux")),
        conflicts_with_all = ["attach", "no_canary", "btf"]
    )]
    pub files: Vec<PathBuf>,

    /// Lengths of the IPv4 and IPv6 networks by which clients are put together
    #[arg(long, value_name = "V4,V6", default_value = "24,64")]
    pub networks: Prefixes,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub which: Which,
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

#[cfg(target_os = "linux")]
fn cases() -> PossibleValuesParser {
    SCENARIOS
        .iter()
        .map(|case| PossibleValue::new(case.name).help(case.about))
        .collect::<Vec<_>>()
        .into()
}

fn ports(text: &str) -> Result<RangeInclusive<u16>, String> {
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

/// A size like 100M, or else a time.
fn limit(text: &str) -> Result<Limit, String> {
    let (digits, shift) = match text.trim_end_matches('B').char_indices().last() {
        Some((at, 'K' | 'k')) => (&text[..at], 10),
        Some((at, 'M')) => (&text[..at], 20),
        Some((at, 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    if shift != 0
        && let Ok(number) = digits.parse::<u64>()
    {
        return match number.checked_mul(1 << shift) {
            Some(0) => Err("must be more than nothing".to_owned()),
            Some(bytes) => Ok(Limit::Size(bytes)),
            None => Err("more than any disk holds".to_owned()),
        };
    }
    duration(text)
        .map(Limit::Time)
        .map_err(|_| "neither a size like 64K, 100M or 1G nor a time like 5m or 1h".to_owned())
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        Ok(_) => Err("must be longer than nothing".to_owned()),
        Err(_) => Err("not a time like 30s, 5m or 1h30m".to_owned()),
    }
}

impl Filters {
    /// The outcomes asked for.
    #[must_use]
    pub fn wanted(&self) -> Set {
        let slow = self.slow.map_or(0, |_| 1 << outcome::ACCEPTED);
        self.named() | slow
    }

    /// Whether every accepted connection is shown, slow or not.
    #[must_use]
    pub fn shows_accepted(&self) -> bool {
        self.named() & 1 << outcome::ACCEPTED != 0
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

impl Trace {
    /// How the recording is divided into files, if it is.
    #[must_use]
    pub fn rotation(&self) -> Option<Rotation> {
        self.rotate.map(|limit| Rotation {
            limit,
            keep: self.keep,
        })
    }

    /// What clap cannot check value by value.
    ///
    /// # Errors
    /// A sentence that names the option.
    pub fn check(&self) -> Result<(), String> {
        if self.filters.netns.len() > MAX_NETNS {
            return Err(format!("--netns can be given {MAX_NETNS} times at most"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(args: &[&str]) -> Result<Trace, String> {
        Cli::try_parse_from([&["queue-trace"], args].concat())
            .map(|cli| cli.trace)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn ports_are_lists_and_ranges() {
        let trace = parse(&["-p", "80,443", "-p", "8000-8099"]).unwrap();
        assert_eq!(trace.filters.ports, [80..=80, 443..=443, 8000..=8099]);
    }

    #[test]
    fn a_bad_value_is_named_with_its_option() {
        for (args, says) in [
            (["-p", "http"], "--port"),
            (["-p", "0"], "not a port"),
            (["-p", "90-80"], "before it begins"),
            (["-p", "70000"], "not a port"),
            (["--addr", "10.0.0.0/99"], "--addr"),
            (["--client", "example"], "--client"),
            (["--netns", "blue"], "--netns"),
            (["--event", "dropped"], "syn_dropped"),
            (["--event", "syn_dropped:bored"], "last_quarter"),
            (["--event", "queued:why"], "no causes"),
            (["--duration", "soon"], "--duration"),
            (["--duration", "0s"], "longer than nothing"),
            (["--count", "0"], "--count"),
            (["--attach", "ptrace"], "--attach"),
            (["--rotate", "big"], "64K, 100M"),
            (["--rotate", "0M"], "more than nothing"),
            (["--networks", "24"], "--networks"),
        ] {
            let error = parse(&args).unwrap_err();
            assert!(error.contains(says), "{args:?}: {error}");
        }
    }

    #[test]
    fn a_file_is_full_by_size_or_by_time() {
        assert_eq!(limit("64K"), Ok(Limit::Size(64 << 10)));
        assert_eq!(limit("100MB"), Ok(Limit::Size(100 << 20)));
        assert_eq!(limit("2G"), Ok(Limit::Size(2 << 30)));
        assert_eq!(limit("90s"), Ok(Limit::Time(Duration::from_secs(90))));
        // A small m is minutes, as in all times.
        assert_eq!(limit("5m"), Ok(Limit::Time(Duration::from_secs(300))));
    }

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

    #[test]
    fn refusals_are_shown_unless_asked_otherwise() {
        let refusals = outcome::of_kind(Kind::Refusal);
        assert_eq!(parse(&[]).unwrap().filters.wanted(), refusals);
        assert_eq!(
            parse(&["--all"]).unwrap().filters.wanted(),
            (1 << outcome::COUNT) - 1
        );
        let only = parse(&["--event", "queued", "--event", "accepted"]).unwrap();
        assert_eq!(
            only.filters.wanted(),
            1 << outcome::QUEUED | 1 << outcome::ACCEPTED
        );
    }
}

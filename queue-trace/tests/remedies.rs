//! What a finding says to run is what the real tools take: each command of every rule's remedies is
//! given to its program, in namespaces of its own, so that nothing on this machine changes. What is
//! no command is listed as advice.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    process::{Command, Stdio},
};

use clap::Parser;
use queue_trace::{
    commands::Cli,
    diagnose::{self, Case, Finding, RULES},
    model::{
        event::{AcceptQueue, Event, Name, SynQueue, Sysctls, rfc3339},
        ledger::Ledger,
        lines::{AttachPlan, Header},
        snapshot::{Descriptors, Snapshot},
        socket::{Client, Listener},
    },
    sink::Sink,
};
use queue_trace_common::outcome::{OUTCOMES, Outcome};

/// How advice begins that no program takes.
const ADVICE: [&str; 10] = [
    "accept in ",
    "drain first: ",
    "hand the listening socket over ",
    "let workers share ",
    "limit new connections ",
    "make the accept queue drain",
    "restart the application",
    "set the application's backlog ",
    "start the new process before the old one ends",
    "systemd socket activation: ",
];

const NETNS: u32 = 4_026_531_840;
const START: i128 = 1_763_730_000_000_000_000;

/// A listener of either family, and what it takes for every cause to be thinkable.
fn listener(address: &str) -> Listener {
    Listener {
        addr: Some(address.parse().unwrap()),
        port: 8080,
        cookie: None,
        inode: Some(77),
        device: None,
    }
}

/// A recording in which that outcome came so often, from few networks or many.
fn case_of(outcome: &'static Outcome, address: &str, count: u32, many: bool) -> Case {
    let mut case = Case::new();
    let all = OUTCOMES.iter().map(|outcome| Name(outcome).to_string());
    let header = Header {
        schema: 1,
        version: "0".to_owned(),
        time: rfc3339(START),
        host: "host".to_owned(),
        kernel: "6.12".to_owned(),
        attach: AttachPlan {
            family: "fentry".to_owned(),
            hooks: Vec::new(),
            outcomes: Some(all.collect()),
            limits: Vec::new(),
            filters: None,
        },
    };
    case.header(&header).unwrap();
    let v4 = address.contains('.');
    for number in 0..count {
        let ns = u64::from(number) * 20_000_000;
        let network = if many { number } else { number % 3 };
        let client = match v4 {
            true => IpAddr::from((0xc612_0000 + (network << 8) + number % 200).to_be_bytes()),
            false => IpAddr::from([0x2001, 0xdb8, 0, network as u16, 0, 0, 0, number as u16]),
        };
        let event = Event {
            mono_ns: 5_000_000_000_000 + ns,
            wall_ns: START + i128::from(ns),
            outcome,
            count: 1,
            netns: NETNS,
            listener: listener(address),
            local: None,
            client: Some(Client {
                addr: client,
                port: 1024 + number as u16,
            }),
            accept_queue: Some(AcceptQueue { depth: 9, limit: 8 }),
            syn_queue: Some(SynQueue {
                depth: 9,
                young: 0,
                limit: 8,
            }),
            sysctls: Some(Sysctls {
                tcp_syncookies: 0,
                tcp_abort_on_overflow: 1,
                tcp_max_syn_backlog: 16,
                somaxconn: 8,
            }),
            retransmits: None,
            waited_us: None,
            process: None,
            moved: 0,
            cpu: Some(0),
            sk: 0,
        };
        case.event(&event).unwrap();
    }
    let owner = Snapshot {
        netns: NETNS,
        listener: listener(address),
        descriptors: Some(Descriptors {
            pid: 4242,
            open: 20,
            limit: 20,
        }),
        ..Snapshot::default()
    };
    case.listener(&owner).unwrap();
    let ledger = Ledger {
        netns: NETNS,
        counters: BTreeMap::new(),
        in_front: BTreeMap::new(),
        lost: 0,
        unexplained: Some(0),
        other_drops: None,
        note: None,
    };
    case.ledger(&ledger).unwrap();
    case.end(&rfc3339(START + 10_000_000_000)).unwrap();
    case
}

/// The findings of the recordings of every fault, and of every outcome at listeners of both families.
fn findings() -> Vec<Finding> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    let recordings = std::fs::read_dir(folder).unwrap();
    let recordings = recordings.map(|file| diagnose::read(&[file.unwrap().path()]).unwrap());
    let made_up = OUTCOMES.iter().flat_map(|outcome| {
        [
            ("192.0.2.1", 300, false),
            ("2001:db8::1", 300, true),
            ("192.0.2.1", 40, true),
        ]
        .map(|(address, count, many)| case_of(outcome, address, count, many))
    });
    let cases = recordings.chain(made_up);
    cases
        .flat_map(|case| diagnose::diagnose(&case).findings)
        .collect()
}

/// As a shell would take it, in a network namespace with `lo` up. `None`: it was not well.
fn run(line: &str) -> Result<String, String> {
    let mut unshare = Command::new("unshare");
    if !rustix::process::geteuid().is_root() {
        unshare.arg("--map-root-user");
    }
    let script = format!("PATH=$PATH:/usr/sbin:/sbin; ip link set lo up && {{ {line}\n}}");
    let output = unshare
        .args(["--net", "--", "sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => Ok(stdout),
        code => Err(format!("{code:?}: {stderr}")),
    }
}

/// The command with another process for the one whose number follows `before`.
fn of_process(command: &str, before: &str, process: &str) -> String {
    let Some((head, rest)) = command.split_once(before) else {
        return command.to_owned();
    };
    let tail = rest.trim_start_matches(|c: char| c.is_ascii_digit());
    if tail.len() == rest.len() {
        return command.to_owned();
    }
    format!("{head}{before}{process}{tail}")
}

/// Gives one command to its program. `Err`: what the program says against it.
fn take(command: &str, sleeper: u32) -> Result<(), String> {
    let mut words = command.split(' ');
    let program = words.next().unwrap_or_default();
    match program {
        "queue-trace" => {
            let parsed = Cli::try_parse_from(command.split(' '));
            return parsed.map(drop).map_err(|error| error.to_string());
        }
        // It says what was set, and then that is so.
        "sysctl" => {
            // Others are the machine's, not a namespace's.
            let names = command.split(' ').skip(1).filter(|word| *word != "-w");
            if !names.clone().all(|name| name.starts_with("net.")) {
                return well_formed(command);
            }
            let said = run(command)?;
            let Some(setting) = command.strip_prefix("sysctl -w ") else {
                return Ok(());
            };
            let (name, value) = setting.split_once('=').ok_or("no value")?;
            let is = run(&format!("{command} >/dev/null && sysctl -n {name}"))?;
            let as_said = is.trim() == value && said.trim() == format!("{name} = {value}");
            return as_said.then_some(()).ok_or(said);
        }
        "nft" => {
            let checked = command.replacen("nft '", "nft --check '", 1);
            return run(&checked).map(drop);
        }
        // What it would filter by, compiled for the device `any`.
        "tcpdump" => {
            let filter = command.strip_prefix("tcpdump -nni any ");
            let filter = filter.ok_or("other options of tcpdump")?;
            return run(&format!("tcpdump -y LINUX_SLL2 -d {filter} 2>&1")).map(drop);
        }
        // Not every user may raise limits (CAP_SYS_RESOURCE).
        "prlimit" => {
            return match run(&of_process(command, "--pid ", &sleeper.to_string())) {
                Err(error) if error.contains("Operation not permitted") => Ok(()),
                taken => taken.map(drop),
            };
        }
        // Of a process that may be anybody's here.
        "ps" | "kill" | "renice" => {
            return well_formed(command);
        }
        // A setting of a cgroup: only the shell looks at it.
        "echo" => {
            let file = command.split_once(" > ").ok_or("no file")?.1;
            if !file.starts_with("/sys/fs/cgroup/") || file.contains(' ') {
                return Err("no file of a cgroup".to_owned());
            }
            return well_formed(command);
        }
        // `setup` does not install them.
        "perf" | "gdb" | "systemctl" => return well_formed(command),
        "cat" | "conntrack" | "grep" | "ip" | "journalctl" | "ls" | "nstat" | "ss" => {}
        other => return Err(format!("nobody says how {other} is looked at")),
    }
    // The logs of this machine are not asked, only whether what looks through them is well-formed.
    let line = match command.split_once(" | ") {
        Some(("journalctl -k", pattern)) => format!("echo avc | {pattern}"),
        _ => of_process(command, " /proc/", &sleeper.to_string())
            .replace("CLIENT-ADDRESS", "127.0.0.1")
            .replace("; dmesg", "; dmesg --version")
            // Of the whole machine, and so not in a namespace of our own.
            .replace("net.ipv4.tcp_mem", "net.ipv4.tcp_wmem"),
    };
    // `grep` that finds nothing says so by its status.
    let (head, line) = match line.split_once(" | grep -w ino:") {
        Some((before, _)) => (before.to_owned(), line.clone()),
        None if program == "grep" => ("true".to_owned(), line),
        None => (line.clone(), line),
    };
    run(&head)?;
    match run(&format!("{{ {line}\n}} 2>&1 >/dev/null || true")) {
        Ok(complaint) if complaint.is_empty() => Ok(()),
        Ok(complaint) => Err(complaint),
        Err(error) => Err(error),
    }
}

/// Whether a shell can read it. It is not run.
fn well_formed(line: &str) -> Result<(), String> {
    let quoted = line.replace('\'', "'\\''");
    run(&format!("sh -n -c '{quoted}'")).map(drop)
}

/// A process of ours, for what is said of processes.
struct Sleeper(std::process::Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        // It may have ended, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_real_tools_take_every_command() {
    let sleeper = Sleeper(Command::new("sleep").arg("600").spawn().unwrap());
    let findings = findings();
    let fired: BTreeSet<_> = findings.iter().map(|finding| finding.rule).collect();
    let rules: BTreeSet<_> = RULES.iter().map(|rule| rule.name).collect();
    assert_eq!(fired, rules, "rules whose remedies are not looked at");

    let remedies = findings.iter().flat_map(|finding| &finding.remedies);
    let lines: BTreeSet<_> = remedies.map(|remedy| remedy.command.as_str()).collect();
    let is_advice = |line: &&str| ADVICE.iter().any(|advice| line.starts_with(advice));
    let (advice, commands): (Vec<_>, Vec<_>) = lines.into_iter().partition(is_advice);
    for one in ADVICE {
        assert!(advice.iter().any(|line| line.starts_with(one)), "{one}");
    }
    let refused: BTreeMap<_, _> = commands
        .iter()
        .filter_map(|command| Some((command, take(command, sleeper.0.id()).err()?)))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    let programs: BTreeSet<_> = commands
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect();
    for program in ["nft", "prlimit", "queue-trace", "ss", "sysctl", "tcpdump"] {
        assert!(programs.contains(program), "{programs:?}");
    }
}

/// The check itself: commands that the tools refuse.
#[test]
fn a_command_that_is_wrong_is_found() {
    for wrong in [
        "sysctl -w net.core.somaxcon=4096",
        "sysctl -w net.core.somaxconn=",
        "ss -ltnp 'sport = :http%'",
        "tcpdump -nni any 'tcp port and 80'",
        "nft 'add rule inet nowhere in drop'",
        "prlimit --pid 1 --nofiles=3:3",
        "queue-trace diagnose --fore 30s",
        "ls -l /proc/4242/fd | awk '{print $NF' | sort | uniq -c | sort -rn | head",
        "ss -ltnpe 'sport = :80' | grep -w ino:'",
        "ip route gett CLIENT-ADDRESS",
        "reboot now",
        "echo 1 > /proc/sys/net/ipv4/tcp_syncookies",
        "kill -CONT 'x",
    ] {
        assert!(take(wrong, std::process::id()).is_err(), "{wrong}");
    }
}

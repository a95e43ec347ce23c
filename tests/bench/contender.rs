//! What is measured: nothing, queue-trace in several ways, and what others offer. Starts
//! them, says when they are attached, and reads what they take.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Read},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::cpu;

/// The word by which this program is made to be bpftrace's command.
pub const READY: &str = "--say-ready";

/// Says that all is attached, and stays.
pub fn say_ready() -> ! {
    println!("{ATTACHED}");
    loop {
        thread::park();
    }
}

const ATTACHED: &str = "ready: attached";

/// Within it even an emulated machine attaches.
const PATIENCE: Duration = Duration::from_secs(300);

/// One of those compared.
pub struct Contender {
    /// As the table calls it.
    pub name: String,
    /// Whether it is queue-trace.
    pub is_own: bool,
    command: Option<Vec<String>>,
    /// How its attached state shows.
    ready: Ready,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ready {
    /// A line on either stream begins so.
    Says(&'static str),
    /// It says nothing; it holds a BPF link, or an event with a program.
    HoldsLinks,
}

impl Contender {
    /// All that this machine can run, nothing first.
    pub fn all(program: &Path, attach: &str, rivals: Option<&Path>) -> Vec<Self> {
        let mut all = vec![Self {
            name: "nothing attached".into(),
            is_own: false,
            command: None,
            ready: Ready::HoldsLinks,
        }];
        let own = |name: &str, args: &[&str]| {
            let mut command = vec![program.display().to_string()];
            command.extend(["--attach", attach, "-o", "/dev/null"].map(String::from));
            command.extend(args.iter().map(|arg| (*arg).to_owned()));
            Self {
                name: name.into(),
                is_own: true,
                command: Some(command),
                ready: Ready::Says("ready:"),
            }
        };
        all.push(own("queue-trace", &[]));
        all.push(own("queue-trace -p 1", &["-p", "1"]));
        all.push(own("queue-trace --all", &["--all"]));
        all.push(own("queue-trace --rate 0", &["--rate", "0"]));
        if let Some(rivals) = rivals {
            all.extend(others(rivals, attach));
        }
        all
    }

    /// The program as it is attached for a long flood.
    pub fn soaked(program: &Path, attach: &str) -> Self {
        let mut all = Self::all(program, attach, None);
        all.swap_remove(1)
    }

    /// Whether it is what all are compared with.
    pub fn is_nothing(&self) -> bool {
        self.command.is_none()
    }

    /// Starts it and waits until it is attached; `None` if it ends before.
    pub fn start(&self) -> Option<Running> {
        let began = Instant::now();
        let Some(words) = &self.command else {
            return Some(Running::nothing());
        };
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {}: {error}", words[0]));
        let (sender, lines) = mpsc::channel();
        read_lines(child.stdout.take().unwrap(), sender.clone());
        read_lines(child.stderr.take().unwrap(), sender);
        let mut said = Vec::new();
        let attached = loop {
            match lines.recv_timeout(Duration::from_millis(5)) {
                Ok(line) => {
                    let is_it = matches!(self.ready, Ready::Says(word) if line.contains(word));
                    said.push(line);
                    if is_it {
                        break true;
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => break false,
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    if self.ready == Ready::HoldsLinks && holds_links(child.id()) {
                        break true;
                    }
                }
            }
            if began.elapsed() > PATIENCE {
                break false;
            }
        };
        if !attached {
            eprintln!("{} does not run here: {}", self.name, said.join(" | "));
            let _ = child.kill();
            let _ = child.wait();
            return None;
        }
        let mut running = Running {
            child: Some(child),
            start: began.elapsed(),
            start_cpu: Duration::ZERO,
        };
        running.start_cpu = running.cpu();
        Some(running)
    }
}

/// The functions by which queue-trace watches a SYN and an ACK.
const FUNCTIONS: [&str; 5] = [
    "tcp_v4_conn_request",
    "tcp_v6_conn_request",
    "tcp_check_req",
    "cookie_v4_check",
    "cookie_v6_check",
];
/// The tracepoints of its tracepoint mode.
const TRACEPOINTS: [&str; 4] = [
    "net:netif_receive_skb",
    "skb:consume_skb",
    "skb:kfree_skb",
    "sock:inet_sock_set_state",
];

fn others(root: &Path, attach: &str) -> Vec<Contender> {
    // With their own loader and libraries, whatever this machine's are.
    let command = |program: &str| {
        let root = root.display();
        vec![
            format!("{root}/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
            "--library-path".into(),
            format!("{root}/usr/lib/x86_64-linux-gnu"),
            format!("{root}/usr/{program}"),
        ]
    };
    let me = std::env::current_exe().unwrap();
    let bpftrace = |name: &str, mut script: Vec<String>| {
        let mut words = command("bin/bpftrace");
        words.append(&mut script);
        words.extend(["-c".into(), format!("{} {READY}", me.display())]);
        Contender {
            name: name.into(),
            is_own: false,
            command: Some(words),
            ready: Ready::Says(ATTACHED),
        }
    };
    let one_liner = |probes: Vec<String>| {
        let script = format!("{} {{ @[probe] = count(); }}", probes.join(","));
        vec!["-e".to_owned(), script]
    };
    let of = |kinds: &[&str]| {
        let of_kind = |kind: &&str| FUNCTIONS.map(|function| format!("{kind}:{function}"));
        one_liner(kinds.iter().flat_map(of_kind).collect())
    };
    let tool = |name: &str| {
        let path = root.join("usr/sbin").join(name);
        vec![path.display().to_string()]
    };
    if attach == "tracepoint" {
        let probes = TRACEPOINTS.map(|name| format!("tracepoint:{name}"));
        return vec![bpftrace("bpftrace tracepoints", one_liner(probes.into()))];
    }
    vec![
        bpftrace("bpftrace kprobe", of(&["kprobe"])),
        bpftrace("bpftrace kprobe+kretprobe", of(&["kprobe", "kretprobe"])),
        bpftrace("bpftrace fentry", of(&["fentry"])),
        bpftrace("bpftrace fentry+fexit", of(&["fentry", "fexit"])),
        bpftrace("bpftrace tcpaccept.bt", tool("tcpaccept.bt")),
        bpftrace("bpftrace tcpdrop.bt", tool("tcpdrop.bt")),
        bpftrace("bpftrace tcpsynbl.bt", tool("tcpsynbl.bt")),
        Contender {
            name: "libbpf-tools tcpsynbl".into(),
            is_own: false,
            command: Some(command("sbin/tcpsynbl-libbpf")),
            ready: Ready::HoldsLinks,
        },
    ]
}

fn read_lines(stream: impl Read + Send + 'static, sender: mpsc::Sender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            // Once it is ready nobody listens; it is read all the same.
            let _ = sender.send(line);
        }
    });
}

/// One at work.
pub struct Running {
    child: Option<Child>,
    /// From its start to the moment at which it was attached.
    pub start: Duration,
    /// What of that it was at work, and not waiting for the kernel.
    pub start_cpu: Duration,
}

/// What programs did, by name.
pub type ByName = BTreeMap<String, Programs>;

/// What programs did: runs, and the time they took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Programs {
    /// How often they ran.
    pub runs: u64,
    /// How long, together, nanoseconds.
    pub nanoseconds: u64,
}

impl Programs {
    /// What was added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            runs: self.runs - before.runs,
            nanoseconds: self.nanoseconds - before.nanoseconds,
        }
    }

    /// Those of two.
    pub fn and(self, other: Self) -> Self {
        Self {
            runs: self.runs + other.runs,
            nanoseconds: self.nanoseconds + other.nanoseconds,
        }
    }
}

const STATS: &str = "/proc/sys/kernel/bpf_stats_enabled";

impl Running {
    /// Nothing, which takes nothing.
    pub fn nothing() -> Self {
        Self {
            child: None,
            start: Duration::ZERO,
            start_cpu: Duration::ZERO,
        }
    }

    fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether anything runs.
    pub fn is_something(&self) -> bool {
        self.child.is_some()
    }

    /// Its resident memory, KiB.
    pub fn resident(&self) -> u64 {
        let Some(pid) = self.pid() else { return 0 };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        value(&status, "VmRSS").unwrap()
    }

    /// What its maps take in the kernel, KiB.
    pub fn maps(&self) -> u64 {
        let infos = self.pid().map(descriptors).unwrap_or_default();
        let maps = infos.iter().filter(|info| value(info, "map_id").is_some());
        maps.filter_map(|info| value(info, "memlock")).sum::<u64>() / 1024
    }

    /// Its CPU time so far.
    pub fn cpu(&self) -> Duration {
        let Some(pid) = self.pid() else {
            return Duration::ZERO;
        };
        cpu::of(pid).unwrap_or_default()
    }

    /// Lets the kernel count what programs do, or not.
    pub fn count_programs(&mut self, yes: bool) {
        fs::write(STATS, if yes { "1" } else { "0" }).unwrap();
    }

    /// What its programs did while that was counted.
    pub fn programs(&self) -> ByName {
        let infos = self.pid().map(descriptors).unwrap_or_default();
        let own: BTreeSet<_> = infos
            .iter()
            .filter_map(|info| value(info, "prog_id"))
            .collect();
        if own.is_empty() {
            return ByName::new();
        }
        aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| own.contains(&u64::from(program.id())))
            .fold(ByName::new(), |mut all, program| {
                let name = program.name_as_str().unwrap_or("?").to_owned();
                // The kernel cuts names short: several may have one.
                let sum = all.entry(name).or_default();
                *sum = sum.and(Programs {
                    runs: program.run_count(),
                    nanoseconds: program.run_time().as_nanos() as u64,
                });
                all
            })
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop(mut self) {
        if let Some(mut child) = self.child.take() {
            kill_process(Pid::from_child(&child), Signal::INT).unwrap();
            let patience = Instant::now() + PATIENCE;
            while child.try_wait().unwrap().is_none() {
                if Instant::now() > patience {
                    child.kill().unwrap();
                }
                thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn descriptors(pid: u32) -> Vec<String> {
    let folder = PathBuf::from(format!("/proc/{pid}/fdinfo"));
    fs::read_dir(folder)
        .map(|entries| {
            entries
                .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
                .collect()
        })
        .unwrap_or_default()
}

/// Whether a process holds what comes last when a tool attaches: a BPF link.
fn holds_links(pid: u32) -> bool {
    descriptors(pid)
        .iter()
        .any(|info| value(info, "link_id").is_some())
}

/// A number in `/proc/PID/status` or `/proc/PID/fdinfo`: `name:<TAB>value` on a line.
fn value(text: &str, name: &str) -> Option<u64> {
    let rest = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    rest.split_whitespace().next()?.parse().ok()
}

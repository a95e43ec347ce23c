//! What kept an application from calling accept(): the evidence of a moment, as the `stall` of a
//! `listener` line. [`cause`] draws the conclusion from it, and from nothing else, so that a
//! recording gives the same one.

pub mod cause;

use serde::{Deserialize, Serialize};

use crate::model::socket::Process;

/// The evidence. Numbers "of the time" are of the time since the look before, `over_us`; a first
/// look has none. What is absent could not be read, or there is no such thing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Stall {
    /// The name of the cause, which follows from the rest and is never taken from a recording.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<String>,
    /// Microseconds since the look before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_us: Option<u64>,
    /// Processes that hold the socket.
    pub holders: u32,
    /// At so many of them it was looked.
    pub looked: u32,
    /// Threads of these.
    pub threads: u32,
    /// At so many of these it was looked.
    pub threads_looked: u32,
    /// What these threads do, those that do the same together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub doing: Vec<Doing>,
    /// The process that traces one of them, a debugger say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracer: Option<Process>,
    /// How the listener is registered with epoll.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoll: Option<Epoll>,
    /// The CPU quota, of the cgroup that was throttled longest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<Quota>,
    /// The limits of memory, of the cgroup that hit them most often.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// The setting that freezes the cgroup, if one does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_by: Option<String>,
    /// Pressure in the cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
    /// Pressure on the whole host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_pressure: Option<Pressure>,
    /// Open files of the whole host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Files>,
    /// What could not be read, and why, a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<String>,
}

/// Threads that do the same; the numbers and names are those of the one that ran longest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Doing {
    /// How many.
    pub count: u32,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread's short name.
    pub comm: String,
    /// Whether it is its process's first thread.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub main: bool,
    /// The state as in ps(1).
    pub state: String,
    /// The system call that it is in, if it is asleep and this may be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call: Option<String>,
    /// What the file is that the call is about: `pipe`, `socket`, or a path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<String>,
    /// What it waits for, as far as this bears on the listener.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// The kernel functions that it waits in, the innermost first, without those of the scheduler.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kernel: Vec<String>,
    /// Microseconds of the time in which it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_us: Option<u64>,
    /// Microseconds of the time in which it could have run and waited for a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_us: Option<u64>,
}

/// What a thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// For this very listener: in accept(), or in `epoll_wait()` where it is registered.
    Takes,
    /// For another one's events: in accept() of another socket, or in `epoll_wait()` where this
    /// one is not registered.
    Elsewhere,
    /// For any of its children or for a signal, as the master of a server does.
    Master,
    /// Of another version of queue-trace.
    #[serde(other)]
    Other,
}

/// Registrations of the listener with epoll, in the processes that were looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Epoll {
    /// How many there are.
    pub registered: u32,
    /// How many of them ask for connections (`EPOLLIN`).
    pub armed: u32,
    /// How many of these are told only once of what came (`EPOLLET`).
    pub edge: u32,
}

/// A CPU quota.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Quota {
    /// The file with the setting.
    pub file: String,
    /// Microseconds of CPU time in each period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_us: Option<u64>,
    /// How long a period is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period_us: Option<u64>,
    /// Periods of the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub periods: Option<u64>,
    /// In so many of them it was throttled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_periods: Option<u64>,
    /// For so long, all CPUs together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_us: Option<u64>,
}

/// Limits of memory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// The file with the setting.
    pub file: String,
    /// Bytes in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// The limit that slows it down, `memory.high`, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high: Option<u64>,
    /// The limit that it cannot pass, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    /// How often it passed `high` in the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_times: Option<u64>,
    /// How often it came to `max` in the time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_times: Option<u64>,
}

/// Microseconds of the time in which something waited: the kernel's `some` of each pressure.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Pressure {
    /// For a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us: Option<u64>,
    /// For a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_us: Option<u64>,
    /// For memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_us: Option<u64>,
}

impl Pressure {
    /// Nothing of it is known.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        *self == Self::default()
    }
}

/// Open files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Files {
    /// How many there are.
    pub open: u64,
    /// How many there may be, `fs.file-max`.
    pub limit: u64,
    /// The limit does not hold for the processes that were looked at: they have `CAP_SYS_ADMIN`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub exempt: bool,
}

impl Stall {
    /// How many groups of threads are kept, how many functions of each, and how many sentences.
    pub const MOST: usize = 16;

    /// About how much memory it takes, bytes.
    #[must_use]
    pub fn weight(&self) -> usize {
        let words = self.unread.iter().map(String::len).sum::<usize>();
        let doing = |one: &Doing| {
            let kernel = one
                .kernel
                .iter()
                .map(|name| name.len() + size_of::<String>());
            size_of::<Doing>() + one.comm.len() + kernel.sum::<usize>()
        };
        size_of::<Self>() + words + self.doing.iter().map(doing).sum::<usize>()
    }

    /// A part of the time, in percent; `None` on a first look.
    #[must_use]
    pub fn percent(&self, us: Option<u64>) -> Option<u64> {
        let over = self.over_us.filter(|over| *over > 0)?;
        Some(us?.saturating_mul(100) / over)
    }

    /// The thread that waited longest for a CPU.
    #[must_use]
    pub fn delay_us(&self) -> Option<u64> {
        self.doing.iter().filter_map(|one| one.delay_us).max()
    }
}

//! Facts about this machine: which kernel, which privileges, which ways to attach it
//! shows. Only looks; nothing is loaded or attached here.

use std::{fmt, fs, path::Path};

use rustix::{
    system::uname,
    thread::{CapabilitySet, capabilities},
};

/// What was found.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// The kernel's release, as `uname -r` gives it.
    pub release: String,
    /// What the effective capabilities allow.
    pub privileges: Privileges,
    /// The kernel's lockdown mode, if it has one and it is not `none`.
    pub lockdown: Option<String>,
    /// Whether functions can be traced, by which fentry comes to them, and if not, why.
    pub ftrace: Result<(), String>,
    /// Whether kprobes can be had, and if not, why.
    pub kprobes: Result<(), String>,
}

/// The capabilities that matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges {
    /// CAP_SYS_ADMIN: everything.
    pub sys_admin: bool,
    /// CAP_BPF: load programs and maps.
    pub bpf: bool,
    /// CAP_PERFMON: attach them and read kernel memory.
    pub perfmon: bool,
}

/// The oldest kernel that has what is needed (the ring buffer came in 5.8, and 5.10
/// is the oldest that is tested).
pub const OLDEST: (u32, u32) = (5, 10);

/// The kprobe device of perf, through which probes are made without tracefs.
const KPROBE_DEVICE: &str = "/sys/bus/event_source/devices/kprobe/type";

/// Whether this is a kernel with PREEMPT_RT, as its version says (`uname -v`).
#[must_use]
pub fn is_realtime() -> bool {
    has_realtime(&uname().version().to_string_lossy())
}

fn has_realtime(version: &str) -> bool {
    version.split_whitespace().any(|word| word == "PREEMPT_RT")
}

/// The switch of the function tracer (`kernel.ftrace_enabled`): without it programs attach by
/// fentry and never run.
const FTRACE_SWITCH: &str = "/proc/sys/kernel/ftrace_enabled";

/// The switch of kprobes: the same. It is in debugfs, which need not be mounted; then only the
/// self-test tells.
const KPROBE_SWITCH: &str = "/sys/kernel/debug/kprobes/enabled";

/// Whether a switch is on, as far as it can be seen.
fn switched_on(switch: &str, off: &str) -> Result<(), String> {
    match fs::read_to_string(switch) {
        Ok(value) if value.trim() == "0" => Err(format!("{off} ({switch} is 0)")),
        _ => Ok(()),
    }
}

impl Privileges {
    /// Whether they suffice to load and attach.
    #[must_use]
    pub fn suffice(self) -> bool {
        self.sys_admin || (self.bpf && self.perfmon)
    }

    fn of(capabilities: CapabilitySet) -> Self {
        Self {
            sys_admin: capabilities.contains(CapabilitySet::SYS_ADMIN),
            perfmon: capabilities.contains(CapabilitySet::PERFMON),
            bpf: capabilities.contains(CapabilitySet::BPF),
        }
    }

    /// Those of this thread. A kernel that will not tell grants none.
    fn held() -> Self {
        let effective = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
        Self::of(effective)
    }
}

impl fmt::Display for Privileges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.sys_admin {
            return f.write_str("CAP_SYS_ADMIN");
        }
        let held = [("CAP_BPF", self.bpf), ("CAP_PERFMON", self.perfmon)];
        let held = held
            .into_iter()
            .filter_map(|(name, held)| held.then_some(name));
        let held: Vec<_> = held.collect();
        match held[..] {
            [] => f.write_str("none of CAP_BPF, CAP_PERFMON, CAP_SYS_ADMIN"),
            _ => f.write_str(&held.join(", ")),
        }
    }
}

impl Host {
    /// Looks around.
    #[must_use]
    pub fn look() -> Self {
        let names = uname();
        Self {
            name: names.nodename().to_string_lossy().into_owned(),
            release: names.release().to_string_lossy().into_owned(),
            privileges: Privileges::held(),
            lockdown: fs::read_to_string("/sys/kernel/security/lockdown")
                .ok()
                .and_then(|modes| lockdown_mode(&modes)),
            ftrace: switched_on(FTRACE_SWITCH, "the function tracer is switched off"),
            kprobes: if Path::new(KPROBE_DEVICE).exists() {
                switched_on(KPROBE_SWITCH, "kprobes are switched off")
            } else {
                Err("the kernel was built without kprobes (CONFIG_KPROBE_EVENTS)".to_owned())
            },
        }
    }

    /// Whether the kernel is too old to try.
    #[must_use]
    pub fn too_old(&self) -> bool {
        is_too_old(&self.release)
    }
}

/// Whether a release is older than [`OLDEST`]. One that is no number is not.
#[must_use]
pub fn is_too_old(release: &str) -> bool {
    version(release).is_some_and(|version| version < OLDEST)
}

/// The mode in brackets, unless it is `none`.
fn lockdown_mode(modes: &str) -> Option<String> {
    let (_, rest) = modes.split_once('[')?;
    let (mode, _) = rest.split_once(']')?;
    (mode != "none").then(|| mode.to_owned())
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_releases() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("5.10.0-32-cloud-amd64"), Some((5, 10)));
        assert_eq!(version("7.3-rc7"), Some((7, 3)));
        assert_eq!(version("strange"), None);
    }

    #[test]
    fn a_realtime_kernel_says_so_in_its_version() {
        assert!(has_realtime(
            "#1 SMP PREEMPT_RT Debian 6.18.15-1 (2026-03-01)"
        ));
        assert!(!has_realtime(
            "#1 SMP PREEMPT_DYNAMIC Debian 7.2.12-1 (2026-11-01)"
        ));
    }

    #[test]
    fn lockdown_is_the_mode_in_brackets() {
        assert_eq!(lockdown_mode("[none] integrity confidentiality"), None);
        let mode = lockdown_mode("none integrity [confidentiality]");
        assert_eq!(mode.as_deref(), Some("confidentiality"));
    }

    #[test]
    fn either_all_or_the_two_that_matter_suffice() {
        assert!(Privileges::of(CapabilitySet::SYS_ADMIN).suffice());
        assert!(Privileges::of(CapabilitySet::BPF | CapabilitySet::PERFMON).suffice());
        assert!(!Privileges::of(CapabilitySet::BPF).suffice());
        assert!(!Privileges::of(CapabilitySet::empty()).suffice());
    }
}

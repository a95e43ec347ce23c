//! Facts about this machine: which kernel, which privileges, which ways to attach it
//! shows. Only looks; nothing is loaded or attached here.

use std::{fs, path::Path};

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
            kprobes: if Path::new(KPROBE_DEVICE).exists() {
                Ok(())
            } else {
                Err("the kernel was built without kprobes (CONFIG_KPROBE_EVENTS)".to_owned())
            },
        }
    }

    /// Whether the kernel is too old to try.
    #[must_use]
    pub fn too_old(&self) -> bool {
        version(&self.release).is_some_and(|version| version < OLDEST)
    }
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

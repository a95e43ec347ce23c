//! Why the kernel refused a program, in its own words.

use std::{fs, io};

use aya::{programs::ProgramError, sys::SyscallError};

/// Who may use perf_event_open(), which kprobes take. Without CAP_PERFMON nobody may from 2 on;
/// the kernels of Debian and Ubuntu know higher levels, at which CAP_PERFMON does not suffice.
const PARANOID: &str = "/proc/sys/kernel/perf_event_paranoid";

/// The kernel's reason without the library's wrapping: the last cause, and the last
/// lines of the verifier's log where there is one.
pub(super) fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        let tail: Vec<_> = log.lines().rev().take(3).collect();
        if tail.is_empty() {
            return format!("the kernel refuses the program: {io_error}");
        }
        let tail: Vec<_> = tail.into_iter().rev().collect();
        return format!(
            "the kernel's verifier refuses the program: {io_error}; its last words: {}",
            tail.join(" | ")
        );
    }
    if let ProgramError::SyscallError(SyscallError { call, io_error }) = error
        && *call == "perf_event_open"
        && let Ok(level) = fs::read_to_string(PARANOID)
        && let Some(why) = of_performance_events(io_error, &level)
    {
        return why;
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// Why performance events are refused, if that is what the level does.
fn of_performance_events(refusal: &io::Error, level: &str) -> Option<String> {
    let level: i32 = level.trim().parse().ok()?;
    (refusal.kind() == io::ErrorKind::PermissionDenied && level > 2).then(|| {
        format!(
            "kernel.perf_event_paranoid is {level}, and this kernel then gives performance events \
             to CAP_SYS_ADMIN only ({refusal})"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_above_the_usual_is_named() {
        let denied = io::Error::from_raw_os_error(libc::EACCES);
        let why = of_performance_events(&denied, "3\n").unwrap();
        assert!(why.contains("perf_event_paranoid is 3"), "{why}");
        assert!(why.contains("CAP_SYS_ADMIN"), "{why}");
        assert_eq!(of_performance_events(&denied, "2\n"), None);
        let absent = io::Error::from_raw_os_error(libc::ENOENT);
        assert_eq!(of_performance_events(&absent, "3\n"), None);
    }
}

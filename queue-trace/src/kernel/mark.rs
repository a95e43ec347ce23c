//! The mark of a self-test's network namespace, by which every other queue-trace leaves it out:
//! a number that `net.core.somaxconn` has in it and nowhere else. The kernel side looks for it
//! whenever it counts something of a listener for the first time.

use std::{fs, process, sync::OnceLock};

use queue_trace_common::settings::SELF_TESTS;

use crate::kernel::netns::{self, NetnsPath};

/// The sysctl that is the mark.
pub const SYSCTL: &str = "net.core.somaxconn";

/// The number of this process. Two processes may have the same process number, each in a
/// namespace of its own, so when it began is in it too.
pub fn own() -> u32 {
    static OWN: OnceLock<u32> = OnceLock::new();
    *OWN.get_or_init(|| {
        let began = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.subsec_nanos());
        numbered(process::id(), began)
    })
}

fn numbered(process: u32, began_ns: u32) -> u32 {
    let spread = process.wrapping_mul(0x9e37_79b1) ^ began_ns.wrapping_mul(0x85eb_ca6b);
    SELF_TESTS.start + (spread >> 8) % (SELF_TESTS.end - SELF_TESTS.start)
}

/// Whether a namespace is one in which a queue-trace tests itself. One that cannot be looked
/// into is not known to be.
pub fn is_on(netns: u32, path: &NetnsPath) -> bool {
    let somaxconn = || fs::read_to_string("/proc/sys/net/core/somaxconn");
    netns::inside(netns, path, somaxconn)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .is_some_and(|number| SELF_TESTS.contains(&number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_is_one_that_others_know_and_a_backlog_that_nobody_needs() {
        for process in [0, 1, 2, 4_194_304, u32::MAX] {
            for began in [0, 1, 999_999_999] {
                let mark = numbered(process, began);
                assert!(SELF_TESTS.contains(&mark), "{mark}");
            }
        }
        assert!(SELF_TESTS.start > 1 << 24 && i32::try_from(SELF_TESTS.end).is_ok());
        assert_ne!(numbered(1, 0), numbered(2, 0));
    }
}

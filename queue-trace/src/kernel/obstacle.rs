//! What keeps everybody from attaching on this machine or in this container, in one sentence each,
//! with what to do. Known before anything is tried, as what the kernel says then is about
//! something else.

use std::{fs, path::Path};

/// What was looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Surroundings {
    /// `/proc/self/uid_map`, where there is one.
    users: Option<String>,
    /// Whether `/proc` and `/sys` are there.
    proc: bool,
    sys: bool,
    /// `/sys/kernel/security/lockdown`, where there is one.
    lockdown: Option<String>,
}

/// What keeps from attaching, if it is known.
#[must_use]
pub fn find() -> Option<&'static str> {
    Surroundings {
        users: fs::read_to_string("/proc/self/uid_map").ok(),
        proc: Path::new("/proc/self/ns").exists(),
        sys: Path::new("/sys/kernel").exists(),
        lockdown: fs::read_to_string("/sys/kernel/security/lockdown").ok(),
    }
    .obstacle()
}

impl Surroundings {
    fn obstacle(&self) -> Option<&'static str> {
        if !self.proc {
            return Some(
                "/proc is not mounted, and without it no process and no network namespace can be \
                 found: mount -t proc proc /proc",
            );
        }
        if self.users.as_deref().is_some_and(|map| !is_initial(map)) {
            return Some(
                "this is a user namespace (a rootless container, or unshare --user), and root in \
                 it has no privileges over the kernel: run it outside, as root of the machine",
            );
        }
        if !self.sys {
            return Some(
                "/sys is not mounted, and with it the kernel's type information and its ways to \
                 attach are missing: mount -t sysfs sysfs /sys",
            );
        }
        let mode = self.lockdown.as_deref().unwrap_or_default();
        mode.contains("[confidentiality]").then_some(
            "the kernel is locked down (confidentiality) and lets no program read its memory, so \
             nothing can be observed: boot with lockdown=integrity or lockdown=none",
        )
    }
}

/// Whether a map of users is that of the first user namespace: all, as they are
/// (user_namespaces(7)).
fn is_initial(map: &str) -> bool {
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fine() -> Surroundings {
        Surroundings {
            users: Some("         0          0 4294967295\n".to_owned()),
            proc: true,
            sys: true,
            lockdown: Some("none [integrity] confidentiality\n".to_owned()),
        }
    }

    #[test]
    fn each_obstacle_is_named() {
        assert_eq!(fine().obstacle(), None);
        let bare = Surroundings {
            users: None,
            lockdown: None,
            ..fine()
        };
        assert_eq!(bare.obstacle(), None);
        let rootless = "         0       1000          1\n         1     100000      65536\n";
        for (facts, says) in [
            (
                Surroundings {
                    users: Some(rootless.to_owned()),
                    ..fine()
                },
                "user namespace",
            ),
            (
                Surroundings {
                    proc: false,
                    ..fine()
                },
                "/proc is not mounted",
            ),
            (
                Surroundings {
                    sys: false,
                    ..fine()
                },
                "/sys is not mounted",
            ),
            (
                Surroundings {
                    lockdown: Some("none integrity [confidentiality]\n".to_owned()),
                    ..fine()
                },
                "locked down (confidentiality)",
            ),
        ] {
            let obstacle = facts.obstacle().unwrap();
            assert!(obstacle.contains(says), "{obstacle}");
        }
    }
}

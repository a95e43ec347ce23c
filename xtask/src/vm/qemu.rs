//! QEMU itself: its name, its version, and what older versions cannot do. Boots
//! nothing.

use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

pub const PROGRAM: &str = "qemu-system-x86_64";

/// The first version whose guests survive several CPUs: with older ones they
/// crash when probes are attached under load.
pub const OLDEST: u32 = 10;

/// The version that is installed, without what comes after the first dot.
pub fn installed() -> Result<u32> {
    let version = process::stdout(Command::new(PROGRAM).arg("--version"))?;
    major(&version).with_context(|| format!("`{PROGRAM} --version` gives no version: {version}"))
}

fn major(version: &str) -> Option<u32> {
    version
        .split_whitespace()
        .find_map(|word| word.split_once('.')?.0.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read() {
        assert_eq!(
            major("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"),
            Some(7)
        );
        assert_eq!(major("QEMU emulator version 10.0.2"), Some(10));
        assert_eq!(major("no version"), None);
    }
}

//! QEMU itself: its name, its version, and what older versions cannot do. Boots
//! nothing.

use std::process::Command;

use anyhow::{Context, Result};

use crate::{architecture::Architecture, process};

/// The program that emulates machines of an architecture.
pub fn program(architecture: Architecture) -> &'static str {
    match architecture {
        Architecture::X86_64 => "qemu-system-x86_64",
        Architecture::Aarch64 => "qemu-system-aarch64",
    }
}

/// Its options for a processor, a board and the console, and the kernel's name for the latter.
pub fn board(architecture: Architecture) -> (&'static [&'static str], &'static str) {
    match architecture {
        Architecture::X86_64 => (
            // Without cx16: QEMU 7.2 emulates that instruction wrongly.
            &[
                "-cpu",
                "max,-cx16",
                "-M",
                "q35",
                // Takes the exit status.
                "-device",
                "isa-debug-exit,iobase=0xf4,iosize=0x04",
            ],
            "ttyS0",
        ),
        Architecture::Aarch64 => (
            // The real algorithm of pointer authentication is most of the time of a guest.
            &["-cpu", "max,pauth-impdef=on", "-M", "virt"],
            "ttyAMA0",
        ),
    }
}

/// The first version whose guests survive several CPUs: with older ones they
/// crash when probes are attached under load.
pub const OLDEST: u32 = 10;

/// The version that is installed, without what comes after the first dot.
pub fn installed(architecture: Architecture) -> Result<u32> {
    let program = program(architecture);
    let version = process::stdout(Command::new(program).arg("--version"))?;
    major(&version).with_context(|| format!("`{program} --version` gives no version: {version}"))
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

//! The kernels of the matrix, in one table: what each is called, where Debian
//! has it, how the tests may attach there. Downloads nothing.

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::architecture::Architecture;

/// How the tests make queue-trace attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Attach {
    /// fentry and fexit.
    Fentry,
    /// kprobe and kretprobe.
    Kprobe,
    /// Tracepoints alone.
    Tracepoint,
}

impl Attach {
    pub fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// One kernel to test on. The newest package version of the series is taken.
#[derive(Debug, PartialEq)]
pub struct Kernel {
    pub name: &'static str,
    pub architecture: Architecture,
    /// What the package's version starts with.
    pub series: &'static str,
    pub suites: &'static [&'static str],
    /// Debian's build of it.
    pub flavour: &'static str,
    pub attach: &'static [Attach],
}

const PROBES: &[Attach] = &[Attach::Fentry, Attach::Kprobe];
const ALL: &[Attach] = &[Attach::Fentry, Attach::Kprobe, Attach::Tracepoint];

const CLOUD: Kernel = Kernel {
    name: "",
    architecture: Architecture::X86_64,
    series: "",
    suites: &[],
    flavour: "cloud-amd64",
    attach: PROBES,
};

const CLOUD_ARM: Kernel = Kernel {
    architecture: Architecture::Aarch64,
    flavour: "cloud-arm64",
    attach: ALL,
    ..CLOUD
};

pub const KERNELS: &[Kernel] = &[
    // Behaves differently from later 5.10: both are in use.
    Kernel {
        name: "5.10.223",
        series: "5.10.223",
        suites: &["bullseye"],
        ..CLOUD
    },
    Kernel {
        name: "5.10",
        series: "5.10",
        suites: &["bullseye-security"],
        ..CLOUD
    },
    Kernel {
        name: "6.1",
        series: "6.1",
        suites: &["bookworm", "bookworm-security"],
        ..CLOUD
    },
    Kernel {
        name: "6.12",
        series: "6.12",
        suites: &["trixie", "trixie-security"],
        ..CLOUD
    },
    Kernel {
        name: "6.12-rt",
        series: "6.12",
        suites: &["trixie", "trixie-security"],
        flavour: "rt-amd64",
        ..CLOUD
    },
    Kernel {
        name: "6.18",
        series: "6.18",
        suites: &["trixie-backports"],
        attach: ALL,
        ..CLOUD
    },
    Kernel {
        name: "7.2",
        series: "7.2",
        suites: &["trixie-backports", "sid"],
        attach: ALL,
        ..CLOUD
    },
    // PREEMPT_RT without a lock around softirqs: those of one CPU interrupt each other.
    Kernel {
        name: "7.2-rt",
        series: "7.2",
        suites: &["trixie-backports", "sid"],
        flavour: "rt-amd64",
        ..CLOUD
    },
    Kernel {
        name: "7.3",
        series: "7.3",
        suites: &["trixie-backports", "sid", "experimental"],
        attach: ALL,
        ..CLOUD
    },
    Kernel {
        name: "7.3-rt",
        series: "7.3",
        suites: &["trixie-backports", "sid", "experimental"],
        flavour: "rt-amd64",
        ..CLOUD
    },
    // Cannot call programs from ftrace directly, so it refuses fentry.
    Kernel {
        name: "6.1-arm64",
        series: "6.1",
        suites: &["bookworm", "bookworm-security"],
        attach: &[Attach::Kprobe, Attach::Tracepoint],
        ..CLOUD_ARM
    },
    Kernel {
        name: "6.12-arm64",
        series: "6.12",
        suites: &["trixie", "trixie-security"],
        ..CLOUD_ARM
    },
    // With pages of 16 KiB.
    Kernel {
        name: "6.12-arm64-16k",
        series: "6.12",
        suites: &["trixie", "trixie-security"],
        flavour: "arm64-16k",
        ..CLOUD_ARM
    },
    Kernel {
        name: "7.3-arm64",
        series: "7.3",
        suites: &["trixie-backports", "sid", "experimental"],
        ..CLOUD_ARM
    },
];

pub fn find(name: &str) -> Result<&'static Kernel> {
    KERNELS
        .iter()
        .find(|kernel| kernel.name == name)
        .with_context(|| {
            let names: Vec<_> = KERNELS.iter().map(|kernel| kernel.name).collect();
            format!(
                "there is no kernel `{name}`; there are {}",
                names.join(", ")
            )
        })
}

/// The named kernels; all of them without names.
pub fn select(names: &[String]) -> Result<Vec<&'static Kernel>> {
    if names.is_empty() {
        return Ok(KERNELS.iter().collect());
    }
    names.iter().map(|name| find(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_start_with_the_series() {
        for (index, kernel) in KERNELS.iter().enumerate() {
            assert!(kernel.name.starts_with(kernel.series));
            assert!(
                KERNELS[..index]
                    .iter()
                    .all(|earlier| earlier.name != kernel.name)
            );
        }
    }

    #[test]
    fn selects_the_named_or_all() {
        assert_eq!(select(&[]).unwrap().len(), KERNELS.len());
        assert_eq!(select(&["7.3".into()]).unwrap()[0].name, "7.3");
        let error = select(&["2.4".into()]).unwrap_err().to_string();
        assert!(error.contains("6.12-rt"), "{error}");
    }
}

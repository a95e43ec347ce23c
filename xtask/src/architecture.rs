//! The architectures that queue-trace is built for, and what each is called by whom.
//! Builds nothing.

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Architecture {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl Architecture {
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// That of this program, and so of the machine.
    pub const HERE: Self = if cfg!(target_arch = "aarch64") {
        Self::Aarch64
    } else {
        Self::X86_64
    };

    /// What Rust and GNU call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// What Debian calls it.
    pub fn debian(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Rust's target.
    pub fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-gnu",
            Self::Aarch64 => "aarch64-unknown-linux-gnu",
        }
    }

    /// What the programs of GNU's tools begin with, and Debian's folder of libraries.
    pub fn gnu(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux-gnu",
            Self::Aarch64 => "aarch64-linux-gnu",
        }
    }

    /// The one of a Rust target.
    pub fn of_target(target: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|known| known.target() == target);
        known.ok_or_else(|| {
            let targets = Self::ALL.map(Self::target).join(" and ");
            format!("queue-trace is built for {targets}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_known_or_refused() {
        for architecture in Architecture::ALL {
            assert_eq!(
                Architecture::of_target(architecture.target()),
                Ok(architecture)
            );
        }
        let error = Architecture::of_target("riscv64gc-unknown-linux-gnu").unwrap_err();
        assert!(error.contains("aarch64-unknown-linux-gnu"), "{error}");
    }
}

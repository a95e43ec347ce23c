//! Finds a compiler that can build `core` for BPF, and the BPF linker. Compiles
//! nothing.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{process, workspace};

/// Where Debian puts the LLVM that the compiler and the linker are built with.
pub const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// The first compiler that knows edition 2024.
const OLDEST: (u32, u32) = (1, 85);

pub struct Toolchain {
    pub cargo: PathBuf,
    pub rustc: PathBuf,
    pub sysroot: PathBuf,
    pub compiler: String,
    pub linker: String,
}

impl Toolchain {
    /// The distribution's compiler if it can, as it built the committed object;
    /// else rustup's nightly.
    pub fn find() -> Result<Self> {
        let linker = linker_version().context(
            "there is no usable bpf-linker: run `cargo xtask setup`, or install it with cargo",
        )?;
        let distribution = (
            PathBuf::from("/usr/bin/cargo"),
            PathBuf::from("/usr/bin/rustc"),
        );
        for (cargo, rustc) in std::iter::once(distribution).chain(rustup_nightly()) {
            let Ok(compiler) = version(&rustc) else {
                continue;
            };
            let sysroot = sysroot(&rustc)?;
            if cargo.exists() && is_recent(&compiler) && sysroot.join(LIBRARY_LOCK).exists() {
                return Ok(Self {
                    cargo,
                    rustc,
                    sysroot,
                    compiler,
                    linker,
                });
            }
        }
        bail!(
            "no compiler here has the source of its library. Install Debian's `rustc-web` and \
             `rust-web-src` (`cargo xtask setup` does), or with rustup a nightly and its `rust-src`"
        )
    }

    /// Where the library's source is.
    pub fn library(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }

    /// Its cargo, in `folder`. `cargo xtask` runs below another cargo,
    /// often another toolchain's: what that one set, and what would change the
    /// object, must not reach this build. What says where crates come from stays.
    pub fn cargo_in(&self, folder: &Path) -> Result<Command> {
        let mut command = clean(&self.cargo);
        command
            .current_dir(folder)
            .env("RUSTC", &self.rustc)
            // `-Z build-std` asks for a nightly, or for this.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("PATH", path()?);
        Ok(command)
    }
}

/// Another toolchain's cargo than the one that this program runs below.
pub fn clean(cargo: &Path) -> Command {
    const KEPT: [&str; 6] = [
        "CARGO_HOME",
        "CARGO_HTTP_",
        "CARGO_NET_",
        "CARGO_REGISTR",
        "CARGO_SOURCE_",
        "RUSTUP_HOME",
    ];
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os() {
        let Some(name) = name.to_str() else { continue };
        let of_cargo =
            name.starts_with("CARGO") || name.starts_with("RUST") || name == "LD_LIBRARY_PATH";
        if of_cargo && !KEPT.iter().any(|kept| name.starts_with(kept)) {
            command.env_remove(name);
        }
    }
    command
}

const LIBRARY_LOCK: &str = "lib/rustlib/src/rust/library/Cargo.lock";

pub fn linker_version() -> Result<String> {
    let version = process::stdout(
        Command::new("bpf-linker")
            .arg("--version")
            .env("PATH", path()?),
    )?;
    Ok(version.trim().to_string())
}

/// PATH, with the folder where `cargo install` puts programs in front.
pub fn path() -> Result<OsString> {
    let installed = workspace::cargo_home()?.join("bin");
    let path = env::var_os("PATH").unwrap_or_default();
    Ok(env::join_paths(
        std::iter::once(installed).chain(env::split_paths(&path)),
    )?)
}

fn rustup_nightly() -> Option<(PathBuf, PathBuf)> {
    let mut which = Command::new("rustup");
    which.args(["which", "--toolchain", "nightly", "rustc"]);
    let rustc = PathBuf::from(process::stdout(&mut which).ok()?.trim());
    Some((rustc.with_file_name("cargo"), rustc))
}

fn version(rustc: &Path) -> Result<String> {
    Ok(process::stdout(Command::new(rustc).arg("--version"))?
        .trim()
        .to_string())
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(
        process::stdout(Command::new(rustc).args(["--print", "sysroot"]))?
            .trim()
            .into(),
    )
}

fn is_recent(compiler: &str) -> bool {
    let mut numbers = compiler
        .split([' ', '.'])
        .filter_map(|word| word.parse().ok());
    matches!((numbers.next(), numbers.next()), (Some(major), Some(minor)) if (major, minor) >= OLDEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_without_edition_2024_are_left_out() {
        assert!(is_recent(
            "rustc 1.96.0 (ac68faa20 2026-05-25) (built from a source tarball)"
        ));
        assert!(is_recent("rustc 1.97.0-nightly (0123456 2026-05-25)"));
        assert!(!is_recent("rustc 1.63.0"));
        assert!(!is_recent("not a compiler"));
    }
}

//! Cargo for another architecture than this machine's: a compiler that has that one's standard
//! library, and a linker. Builds nothing.
//!
//! Rustup's toolchains have the library if `rustup target add` put it there. Debian's compiler
//! has none; its package for the other architecture is unpacked into the cache, and a folder
//! that holds both libraries is the compiler's system root. Nothing is installed.

use std::{
    env, fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{self, Apt},
    architecture::Architecture,
    bpf, process, workspace,
};

/// Debian's compiler.
const CARGO: &str = "/usr/bin/cargo";
const RUSTC: &str = "/usr/bin/rustc";
const RUSTC_PACKAGE: &str = "rustc-web";

/// Cargo that builds for `architecture`, and the flags that its compiler needs for it.
pub fn cargo(architecture: Architecture) -> Result<(Command, Vec<String>)> {
    if architecture == Architecture::HERE {
        return Ok((process::cargo(), Vec::new()));
    }
    let compiler = format!("{}-gcc", architecture.gnu());
    if process::output(Command::new(&compiler).arg("--version")).is_err() {
        bail!(
            "there is no C compiler for {} (`{compiler}`): run `cargo xtask setup`, which installs it on Debian",
            architecture.name()
        );
    }
    let (mut cargo, flags) = if has_library(&process::rustc(), architecture)? {
        (process::cargo(), Vec::new())
    } else {
        let root = system_root(architecture)?;
        let mut cargo = bpf::clean(Path::new(CARGO));
        cargo.env("RUSTC", RUSTC);
        // As with any other cargo.
        cargo.envs(env::vars_os().filter(|(name, _)| {
            name.to_str()
                .is_some_and(|name| name.starts_with("CARGO_PROFILE_"))
        }));
        (cargo, vec![format!("--sysroot={}", root.display())])
    };
    let target = architecture.target().replace('-', "_");
    cargo
        .env(format!("CC_{target}"), &compiler)
        .env(format!("AR_{target}"), format!("{}-ar", architecture.gnu()))
        .env(
            format!("CARGO_TARGET_{}_LINKER", target.to_uppercase()),
            &compiler,
        );
    Ok((cargo, flags))
}

fn has_library(rustc: &Path, architecture: Architecture) -> Result<bool> {
    let root = process::stdout(Command::new(rustc).args(["--print", "sysroot"]))?;
    let library = Path::new(root.trim()).join("lib/rustlib");
    Ok(library.join(architecture.target()).join("lib").exists())
}

/// A folder with the standard libraries of this machine and of `architecture`, both of the
/// version of Debian's compiler.
fn system_root(architecture: Architecture) -> Result<PathBuf> {
    let version = process::stdout(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${Version}",
        RUSTC_PACKAGE,
    ]))
    .with_context(|| {
        format!(
            "this compiler has no standard library for {target}: `rustup target add {target}`, \
             or install Debian's {RUSTC_PACKAGE} (`cargo xtask setup` does)",
            target = architecture.target()
        )
    })?;
    let cache = workspace::cache()?;
    let folder = cache
        .join("library")
        .join(architecture.debian())
        .join(&version);
    let _lock = workspace::lock(&cache)?;
    if folder.exists() {
        return Ok(folder);
    }
    eprintln!(
        "fetching Rust's standard library for {} ({version})",
        architecture.name()
    );
    let new = folder.with_extension("new");
    workspace::fresh_dir(&new)?;
    let apt = Apt::update(architecture, &apt::release_suites()?)?;
    let packages = ["libstd-rust-web-dev".to_string(), runtime(&version)?];
    apt.unpack(
        packages.map(|name| format!("{name}={version}")),
        &new.join("packages"),
    )?;
    let library = new.join("lib/rustlib");
    fs::create_dir_all(&library)?;
    let unpacked = format!("../../packages/usr/lib/rustlib/{}", architecture.target());
    symlink(unpacked, library.join(architecture.target()))?;
    let here = Architecture::HERE.target();
    let own = process::stdout(Command::new(RUSTC).args(["--print", "sysroot"]))?;
    symlink(
        Path::new(own.trim()).join("lib/rustlib").join(here),
        library.join(here),
    )?;
    fs::rename(&new, &folder).context("cannot keep the standard library")?;
    Ok(folder)
}

/// The package of the library that programs are linked to while they run; its name has the
/// version's first two numbers.
fn runtime(version: &str) -> Result<String> {
    let mut numbers = version.split('.');
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        bail!("{RUSTC_PACKAGE} has a strange version: {version}");
    };
    Ok(format!("libstd-rust-web-{major}.{minor}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_runtime_is_named_after_the_version() {
        assert_eq!(
            runtime("1.96.0+dfsg1-1~deb12u2").unwrap(),
            "libstd-rust-web-1.96"
        );
        assert!(runtime("strange").is_err());
    }
}

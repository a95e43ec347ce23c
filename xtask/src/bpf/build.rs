//! Compiles the kernel side to an object that depends on nothing but the source
//! and the tools: not on folders, not on the caller's environment.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{
    source::Source,
    toolchain::{LLVM_PREFIX, Toolchain},
};
use crate::{architecture::Architecture, process, workspace};

const TARGET: &str = "bpfel-unknown-none";

/// The object, without BTF and DWARF: the kernel would take in the line of each instruction,
/// and shift all of them for each instruction that it finds to be dead.
///
/// One for each architecture: kprobes' programs read the registers of the kernel that they run
/// on. All that does not depend on it is built once.
pub fn object(
    source: &Source,
    toolchain: &Toolchain,
    architecture: Architecture,
) -> Result<Vec<u8>> {
    let folder = workspace::target().join("bpf");
    let _lock = workspace::lock(&folder)?;
    let copy = folder.join("source");
    source.copy_to(&copy)?;

    // First of all, so that `registries` sees where every crate is.
    process::run(toolchain.cargo_in(&copy)?.args(["fetch", "--quiet", "--locked"]))
        .context("cannot fetch the crates of the kernel side (if its Cargo.lock is old: `cargo update --workspace` in queue-trace-ebpf)")?;

    let target = folder.join("target");
    let mut build = toolchain.cargo_in(&copy)?;
    build
        .args([
            "build",
            "--quiet",
            "--locked",
            "--release",
            "--package",
            "queue-trace-ebpf",
        ])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target)
        // For the bindings' build script, which else takes this machine's.
        .env("AYA_BPF_TARGET_ARCH", architecture.name())
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            flags(&copy, toolchain)?.join("\x1f"),
        );
    process::run(&mut build).context("the kernel side does not build")?;

    let linked = target.join(TARGET).join("release/queue-trace");
    let stripped = folder.join("queue-trace.bpf.o");
    process::run(
        Command::new(strip())
            .args(["--strip-debug", "-o"])
            .args([&stripped, &linked]),
    )
    .context("cannot strip DWARF from the BPF object")?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// Messages of panics hold paths: those of this machine are mapped to names that are the same
/// everywhere.
fn flags(copy: &Path, toolchain: &Toolchain) -> Result<Vec<String>> {
    let mut flags = Vec::new();
    let mut remap = |from: &Path, to: &str| {
        flags.push(format!("--remap-path-prefix={}={to}", from.display()));
    };
    remap(copy, ".");
    remap(&toolchain.library(), "rust");
    for registry in registries()? {
        remap(&registry, "registry");
    }
    Ok(flags)
}

/// The folders that hold unpacked crates, one per registry.
fn registries() -> Result<Vec<PathBuf>> {
    let sources = workspace::cargo_home()?.join("registry/src");
    let Ok(entries) = fs::read_dir(&sources) else {
        return Ok(Vec::new());
    };
    let mut folders = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    folders.sort();
    Ok(folders)
}

fn strip() -> PathBuf {
    let debian = Path::new(LLVM_PREFIX).join("bin/llvm-strip");
    if debian.exists() {
        debian
    } else {
        "llvm-strip".into()
    }
}

//! The tools that queue-trace is compared with: Debian's packages with all the libraries
//! they need, unpacked into a folder of the cache. Installs nothing.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

use crate::{
    apt::{self, Apt},
    architecture::Architecture,
    workspace,
};

/// The release that has them all in one version.
const SUITE: &str = "trixie";
const PACKAGES: [&str; 2] = ["bpftrace", "libbpf-tools"];
/// What of it is needed.
const KEPT: [&str; 3] = ["usr/bin/bpftrace", "usr/sbin", "usr/lib/x86_64-linux-gnu"];

/// The folder that they are in.
pub fn cached_or_fetched() -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let folder = cache.join("rivals").join(SUITE);
    if folder.exists() {
        return Ok(folder);
    }
    let _lock = workspace::lock(&cache)?;
    let new = cache.join("rivals").join("new");
    workspace::fresh_dir(&new)?;
    eprintln!("fetching {} of Debian {SUITE}", PACKAGES.join(", "));
    let apt = Apt::update(Architecture::X86_64, &[SUITE])?;
    let (unpacked, kept) = (new.join("unpacked"), new.join("kept"));
    apt.unpack_with_dependencies(&PACKAGES, &unpacked)?;
    for path in KEPT {
        let to = kept.join(path);
        fs::create_dir_all(to.parent().unwrap_or(&kept))?;
        fs::rename(unpacked.join(path), to).with_context(|| format!("no {path}"))?;
    }
    fs::rename(kept, &folder).context("cannot keep the tools")?;
    fs::remove_dir_all(new).context("cannot remove the downloaded packages")?;
    Ok(folder)
}

/// node_exporter, for what always runs: it needs no library but the C library.
pub fn node_exporter() -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let folder = cache.join("rivals").join("node-exporter");
    let program = folder.join("usr/bin/prometheus-node-exporter");
    if program.exists() {
        return Ok(program);
    }
    let _lock = workspace::lock(&cache)?;
    eprintln!("fetching node_exporter of this machine's release");
    let apt = Apt::update(Architecture::HERE, &apt::release_suites()?)?;
    let new = cache.join("rivals").join("new");
    workspace::fresh_dir(&new)?;
    apt.unpack(["prometheus-node-exporter".to_owned()], &new)?;
    fs::rename(new, folder).context("cannot keep node_exporter")?;
    Ok(program)
}

//! The tools that queue-trace is compared with: Debian's packages with all the libraries
//! they need, unpacked into a folder of the cache. Installs nothing.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::apt::Apt;
use crate::{process, workspace};

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
    let debs = new.join("debs");
    workspace::fresh_dir(&debs.join("partial"))?;
    eprintln!("fetching {} of Debian {SUITE}", PACKAGES.join(", "));
    let apt = Apt::update(&[SUITE])?;
    // Its list of what is installed is empty, so that all they need comes along.
    let mut download = apt.command("apt-get");
    download
        .arg("--option")
        .arg(format!("Dir::Cache::Archives={}", debs.display()))
        .args(["install", "--download-only", "--no-install-recommends"])
        .args(["--yes", "--quiet"])
        .args(PACKAGES);
    process::stdout(&mut download)?;
    let (unpacked, kept) = (new.join("unpacked"), new.join("kept"));
    for deb in fs::read_dir(&debs)? {
        let deb = deb?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            process::stdout(unpack.arg("--extract").arg(deb).arg(&unpacked))?;
        }
    }
    for path in KEPT {
        let to = kept.join(path);
        fs::create_dir_all(to.parent().unwrap_or(&kept))?;
        fs::rename(unpacked.join(path), to).with_context(|| format!("no {path}"))?;
    }
    fs::rename(kept, &folder).context("cannot keep the tools")?;
    fs::remove_dir_all(new).context("cannot remove the downloaded packages")?;
    Ok(folder)
}

//! `cargo xtask setup`: Debian's packages and the BPF linker. Installs what is
//! missing and touches nothing else.

use std::process::Command;

use anyhow::{Context, Result};

use crate::bpf::LLVM_PREFIX;
use crate::process;

const LINKER_VERSION: &str = "0.13.0";

const PACKAGES: &[&str] = &[
    // The BPF build: a compiler with its library source, and the LLVM it uses.
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "libpolly-22-dev",
    "gcc",
    "libc6-dev",
    // The virtual machines.
    "qemu-system-x86",
    "seabios",
    "busybox-static",
    "cpio",
    "kmod",
    "xz-utils",
    "zstd",
    // The live tests, here and in the virtual machines.
    "iproute2",
    "nftables",
];

pub fn run() -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        println!("all {} packages are installed", PACKAGES.len());
    } else {
        println!("installing {}", missing.join(" "));
        apt_get(&["update", "--quiet"])?;
        apt_get(&[&["install", "--yes", "--quiet", "--no-install-recommends"], &missing[..]].concat())
            .context("the packages are those of Debian bookworm and newer; enable its updates and security suites")?;
    }
    install_linker()
}

fn missing_packages() -> Result<Vec<&'static str>> {
    let query = process::output(
        Command::new("dpkg-query")
            .args(["--show", "--showformat=${db:Status-Abbrev}${Package}\\n"])
            .args(PACKAGES),
    )?;
    let installed = String::from_utf8_lossy(&query.stdout);
    Ok(missing(&installed))
}

/// The packages that dpkg does not list as installed (`ii NAME`).
fn missing(listing: &str) -> Vec<&'static str> {
    let installed: Vec<_> = listing
        .lines()
        .filter_map(|line| line.strip_prefix("ii "))
        .collect();
    PACKAGES
        .iter()
        .copied()
        .filter(|name| !installed.contains(name))
        .collect()
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut command = process::as_root("env")?;
    process::run(
        command
            .arg("DEBIAN_FRONTEND=noninteractive")
            .arg("apt-get")
            .args(args),
    )
}

fn install_linker() -> Result<()> {
    let wanted = format!("bpf-linker {LINKER_VERSION}");
    if crate::bpf::linker_version().is_ok_and(|version| version == wanted) {
        println!("{wanted} is installed");
        return Ok(());
    }
    process::run(
        process::cargo()
            .args([
                "install",
                "--locked",
                "--force",
                &format!("bpf-linker@{LINKER_VERSION}"),
            ])
            .args(["--no-default-features", "--features", "llvm-22"])
            .env("LLVM_PREFIX", LLVM_PREFIX),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_installed_packages_count() {
        let listing = PACKAGES.iter().map(|name| match *name {
            "kmod" => "un kmod\n".to_string(),
            "zstd" => "rc zstd\n".to_string(),
            name => format!("ii {name}\n"),
        });
        assert_eq!(missing(&listing.collect::<String>()), ["kmod", "zstd"]);
        assert_eq!(missing(""), PACKAGES);
    }
}

//! `cargo xtask setup`: Debian's packages, QEMU and the BPF linker. Installs what
//! is missing and touches nothing else.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{
    apt::{self, Apt},
    architecture::Architecture,
    bpf::LLVM_PREFIX,
    process,
    vm::qemu,
    workspace,
};

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
    // The check that it builds for Windows: import libraries are made with its dlltool.
    "binutils-mingw-w64-x86-64",
    // libFuzzer is C++.
    "g++",
    // Programs for the other architecture.
    CROSS[0],
    CROSS[1],
    // The virtual machines, beside QEMU.
    "busybox-static",
    "cpio",
    "kmod",
    "binutils",
    "xz-utils",
    "zstd",
    // The live tests, here and in the virtual machines; and what remedies name.
    "conntrack",
    "e2fsprogs",
    "iproute2",
    "mount",
    "nftables",
    "procps",
    "tcpdump",
    // The page of `queue-trace report` in a browser.
    "chromium",
    // What reads the agent's unit.
    "systemd",
    // The servers whose queues are looked at.
    "default-jre-headless",
    "haproxy",
    "nginx-light",
    "nodejs",
    "postgresql",
    "python3-minimal",
    "redis-server",
    "uwsgi-plugin-python3",
    // Those whose default backlogs are checked.
    "apache2-bin",
    "erlang-base",
    "gunicorn",
    "lighttpd",
    "memcached",
    "php-fpm",
    "puma",
    "sccache",
    "tomcat10-common",
    "uvicorn",
    "uwsgi-core",
    "webhook",
];

/// A C compiler and its library for the architecture that this machine does not have.
const CROSS: [&str; 2] = match Architecture::HERE {
    Architecture::X86_64 => ["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
    Architecture::Aarch64 => ["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
};

/// With all that it brings along, so that it comes from one suite.
const QEMU_PACKAGES: &[&str] = &[
    "qemu-system-x86",
    "qemu-system-arm",
    "qemu-system-common",
    "qemu-system-data",
    "seabios",
];

pub fn run() -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        println!("all {} packages are installed", PACKAGES.len());
    } else {
        println!("installing {}", missing.join(" "));
        apt::install(&missing)
            .context("the packages are those of Debian bookworm and newer; enable its updates and security suites")?;
    }
    install_qemu()?;
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

/// Where the release's own QEMU is too old, the one of its backports.
fn install_qemu() -> Result<()> {
    const RELEASE: &str = "bookworm";
    const BACKPORTS: &str = "bookworm-backports";
    if let Ok(version @ qemu::OLDEST..) = oldest_installed() {
        println!("QEMU {version} is installed");
        return Ok(());
    }
    if apt::codename()? == RELEASE {
        println!("installing QEMU from {BACKPORTS}");
        let _lock = workspace::lock(&workspace::cache()?)?;
        Apt::update(
            Architecture::HERE,
            &[RELEASE, "bookworm-updates", "bookworm-security", BACKPORTS],
        )?
        .install(BACKPORTS, QEMU_PACKAGES)?;
    } else {
        println!("installing QEMU");
        apt::install(QEMU_PACKAGES)?;
    }
    let (version, oldest) = (oldest_installed()?, qemu::OLDEST);
    if version < oldest {
        bail!(
            "this release has QEMU {version}, and several CPUs need {oldest}: install a newer one"
        );
    }
    Ok(())
}

/// The older of the versions that are installed for each architecture.
fn oldest_installed() -> Result<u32> {
    let [x86_64, aarch64] = Architecture::ALL.map(qemu::installed);
    Ok(x86_64?.min(aarch64?))
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

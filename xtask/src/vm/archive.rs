//! Kernels in Debian's archive: which version of one is the newest, and its
//! packages. Installs nothing.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use super::kernels::Kernel;
use crate::{apt::Apt, process};

/// A kernel's image package, and those it needs where the kernel is split.
#[derive(Debug, PartialEq)]
pub struct Package {
    pub name: String,
    pub version: String,
    depends: String,
}

impl Package {
    /// What `uname -r` says.
    pub fn release(&self) -> &str {
        self.name.strip_prefix("linux-image-").unwrap_or(&self.name)
    }

    /// The names of all packages that make up this kernel.
    fn parts(&self) -> Vec<String> {
        let mut names = vec![self.name.clone()];
        for part in ["linux-binary-", "linux-modules-"] {
            let name = format!("{part}{}", self.release());
            if self.depends.split([' ', ',']).any(|word| word == name) {
                names.push(name);
            }
        }
        names
    }
}

/// The suites that have a kernel.
pub struct Archive {
    apt: Apt,
}

impl Archive {
    /// Updates the package lists of `kernel`'s suites.
    pub fn update(kernel: &Kernel) -> Result<Self> {
        let apt = Apt::update(kernel.architecture, kernel.suites)?;
        Ok(Self { apt })
    }

    pub fn newest(&self, kernel: &Kernel) -> Result<Package> {
        let listing = process::stdout(self.apt.command("apt-cache").arg("dumpavail"))?;
        let mut newest: Option<Package> = None;
        for package in packages(&listing, kernel) {
            match &newest {
                Some(other) if !is_newer(&package.version, &other.version)? => {}
                _ => newest = Some(package),
            }
        }
        newest.with_context(|| {
            format!(
                "no {} kernel {} in {}",
                kernel.flavour,
                kernel.series,
                kernel.suites.join(", ")
            )
        })
    }

    /// Downloads `package` and unpacks it, with its parts, into `folder`.
    pub fn unpack(&self, package: &Package, folder: &Path) -> Result<()> {
        let wanted = package
            .parts()
            .into_iter()
            .map(|name| format!("{name}={}", package.version));
        self.apt
            .unpack(wanted, folder)
            .with_context(|| format!("cannot download {}", package.name))
    }
}

/// The image packages of `kernel`'s series and flavour in apt's listing.
fn packages(listing: &str, kernel: &Kernel) -> Vec<Package> {
    let of_kernel = |stanza: &str| {
        let field = |name: &str| {
            stanza
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
                .unwrap_or_default()
        };
        let name = field("Package");
        let release = name
            .strip_prefix("linux-image-")?
            .strip_suffix(kernel.flavour)?
            .strip_suffix('-')?;
        let version = field("Version");
        let after = version.strip_prefix(kernel.series)?;
        // `linux-image-6.12-cloud-amd64` and the like only point to a kernel.
        let points = field("Depends").contains("linux-image-");
        (release.starts_with(|c: char| c.is_ascii_digit())
            && after.starts_with(['.', '-', '~'])
            && !points)
            .then(|| Package {
                name: name.to_string(),
                version: version.to_string(),
                depends: field("Depends").to_string(),
            })
    };
    listing.split("\n\n").filter_map(of_kernel).collect()
}

fn is_newer(version: &str, than: &str) -> Result<bool> {
    let compared =
        process::output(Command::new("dpkg").args(["--compare-versions", version, "gt", than]))?;
    match compared.status.code() {
        Some(0) => Ok(true),
        Some(1) => Ok(false),
        _ => bail!("dpkg cannot compare the versions {version} and {than}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernels;

    const LISTING: &str = "\
Package: linux-image-cloud-amd64
Version: 6.12.107-1
Depends: linux-image-6.12.107+deb13-cloud-amd64 (= 6.12.107-1)

Package: linux-image-6.12-cloud-amd64
Version: 6.12.117-1
Depends: linux-image-6.12.117+deb13-cloud-amd64 (= 6.12.117-1)

Package: linux-image-6.12.94+deb13-cloud-amd64
Version: 6.12.94-1
Depends: kmod, linux-base (>= 4.3~)

Package: linux-image-6.12.107+deb13-cloud-amd64
Version: 6.12.107-1
Depends: kmod, linux-base (>= 4.3~)

Package: linux-image-6.12.107+deb13-rt-amd64
Version: 6.12.107-1
Depends: kmod

Package: linux-image-6.1.0-56-cloud-amd64
Version: 6.1.192-2
Depends: kmod

Package: linux-image-6.12.107+deb13-cloud-amd64-dbg
Version: 6.12.107-1

Package: linux-image-7.3-cloud-amd64
Version: 7.3~rc7-1~exp1
Depends: dracut | linux-initramfs-tool, linux-base-7.3-cloud-amd64 (= 7.3~rc7-1~exp1), linux-binary-7.3-cloud-amd64 (= 7.3~rc7-1~exp1), linux-modules-7.3-cloud-amd64 (= 7.3~rc7-1~exp1)
";

    fn versions(name: &str) -> Vec<String> {
        let kernel = kernels::find(name).unwrap();
        packages(LISTING, kernel)
            .into_iter()
            .map(|package| package.version)
            .collect()
    }

    #[test]
    fn only_images_of_the_series_and_flavour_are_candidates() {
        assert_eq!(versions("6.12"), ["6.12.94-1", "6.12.107-1"]);
        assert_eq!(versions("6.12-rt"), ["6.12.107-1"]);
        assert_eq!(versions("6.1"), ["6.1.192-2"]);
        assert_eq!(versions("7.3"), ["7.3~rc7-1~exp1"]);
        assert!(versions("5.10").is_empty());
    }

    #[test]
    fn a_split_kernel_brings_its_parts() {
        let package = &packages(LISTING, kernels::find("7.3").unwrap())[0];
        assert_eq!(package.release(), "7.3-cloud-amd64");
        assert_eq!(
            package.parts(),
            [
                "linux-image-7.3-cloud-amd64",
                "linux-binary-7.3-cloud-amd64",
                "linux-modules-7.3-cloud-amd64"
            ]
        );
        let whole = &packages(LISTING, kernels::find("6.1").unwrap())[0];
        assert_eq!(whole.parts(), ["linux-image-6.1.0-56-cloud-amd64"]);
    }

    #[test]
    fn a_release_is_newer_than_its_candidate() {
        assert!(is_newer("7.3.4-1~bpo13+1", "7.3~rc7-1~exp1").unwrap());
        assert!(is_newer("6.12.107-1", "6.12.94-1").unwrap());
        assert!(!is_newer("6.12.94-1", "6.12.94-1").unwrap());
    }
}

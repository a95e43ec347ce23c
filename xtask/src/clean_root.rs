//! A root of Debian in a folder: its smallest system and some packages, nothing of this machine.
//! Made once by debootstrap and kept in the cache, as a tarball. `.ci/clean-root` makes one for
//! the whole gate; this one is for what would change the machine otherwise.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{apt, bpf, process, workspace};

/// The oldest Debian that is supported.
const SUITE: &str = "bookworm";

/// A root that is removed when it is dropped.
pub struct CleanRoot(PathBuf);

impl CleanRoot {
    /// Unpacks a root with `packages` at `path`.
    pub fn make(path: &Path, packages: &[&str]) -> Result<Self> {
        let packed = cached_or_made(packages)?;
        remove(path)?;
        fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
        let root = Self(path.to_path_buf());
        let mut tar = process::as_root("tar")?;
        process::run(
            tar.args(["--extract", "--numeric-owner", "--file"])
                .arg(packed)
                .arg("-C")
                .arg(path),
        )?;
        Ok(root)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A script of bash in it, that stops at the first failure, as root. It sees the machine's
    /// devices and processes; its mounts are gone with it.
    pub fn script(&self, script: &str) -> Result<Command> {
        let mut command = process::with_own_mounts(ENTER)?;
        command.arg(&self.0).arg(script);
        Ok(command)
    }
}

/// Enters the root $1 and runs the script $2.
const ENTER: &str = r#"
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
mount --rbind /dev "$1/dev"
exec env -i HOME=/root LANG=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    chroot "$1" bash -euo pipefail -c "$2""#;

impl Drop for CleanRoot {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            eprintln!("warning: {error:#}");
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    let mut remove = process::as_root("rm")?;
    process::run(remove.args(["-rf", "--one-file-system"]).arg(path))
}

/// The tarball of a root.
fn cached_or_made(packages: &[&str]) -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let folder = cache.join("roots");
    let id = bpf::sha256(packages.join(" ").as_bytes());
    let packed = folder.join(format!("{SUITE}-{}.tar", &id[..16]));
    if packed.exists() {
        return Ok(packed);
    }
    if process::output(Command::new("debootstrap").arg("--version")).is_err() {
        apt::install(&["debootstrap"])?;
    }
    let _lock = workspace::lock(&folder)?;
    eprintln!(
        "making a root of Debian {SUITE} with {}",
        packages.join(", ")
    );
    let new = folder.join("new");
    let guard = CleanRoot(new.clone());
    remove(&new)?;
    fs::create_dir_all(&new)?;
    let archives = apt::configured_bases()?;
    let mut make = process::as_root("sh")?;
    process::stdout(
        make.args(["-ec", MAKE, "sh"])
            .args([&new, &folder.join("new.tar")])
            .args([
                SUITE,
                &archives.main,
                &archives.security,
                &packages.join(" "),
            ]),
    )
    .context("cannot make a root")?;
    drop(guard);
    fs::rename(folder.join("new.tar"), &packed).context("cannot keep the root")?;
    Ok(packed)
}

/// Makes the root $1 and packs it as $2, of the suite $3 of the archives $4 and $5, with the
/// packages $6. The machine's options of apt are needed: its archive may be an old copy.
const MAKE: &str = r#"
PATH=$PATH:/usr/sbin:/sbin
debootstrap --variant=minbase "$3" "$1" "$4"
cp -r /etc/apt/apt.conf.d /etc/apt/trusted.gpg.d "$1/etc/apt/"
cp /usr/share/keyrings/debian-archive-* "$1/usr/share/keyrings/"
cp -L /etc/resolv.conf /etc/hosts "$1/etc/"
printf 'deb %s %s main\ndeb %s %s-updates main\ndeb %s %s-security main\n' \
    "$4" "$3" "$4" "$3" "$5" "$3" >"$1/etc/apt/sources.list"
echo 'APT::Sandbox::User "root"; #clear DPkg::Post-Invoke;' >"$1/etc/apt/apt.conf.d/zz-clean-root"
printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
chmod +x "$1/usr/sbin/policy-rc.d"
chroot "$1" apt-get update --quiet
DEBIAN_FRONTEND=noninteractive chroot "$1" \
    apt-get install --yes --quiet --no-install-recommends $6
rm "$1/usr/sbin/policy-rc.d"
rm -rf "$1"/var/cache/apt/archives/*.deb "$1"/var/lib/apt/lists/*
tar --create --numeric-owner --file "$2" -C "$1" .
chmod a+r "$2"
"#;

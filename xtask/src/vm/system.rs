//! A whole system in a guest: a clean root of Debian, whose own systemd is the first process.
//! Decides nothing of what runs in it.

use std::fs::{self, File};

use anyhow::{Context, Result};

use super::{Size, cache, guest, kernels, machine, machine::End};
use crate::{clean_root::CleanRoot, process};

/// The mount that the kernel begins with can be left by nobody, and services have roots of their
/// own: so systemd begins in another mount of the same files.
const INIT: &str =
    "#!/bin/sh\nmount --bind / /mnt\ncd /mnt\nmount --move . /\nexec chroot . /sbin/init\n";

/// A root and the kernel that it is booted with.
pub struct System<'a> {
    pub kernel: &'a str,
    pub root: &'a CleanRoot,
    pub size: Size,
}

impl System<'_> {
    /// Boots it, shows its console, and says whether it ended with `vm-exit 0`. The root then
    /// also has the kernel's modules, and `vm-exit`.
    pub fn boot(self) -> Result<bool> {
        let kernel = kernels::find(self.kernel)?;
        let image = cache::cached_or_fetched(kernel)?;
        self.size.check(kernel.architecture)?;
        let root = self.root.path();
        let mut modules = process::as_root("sh")?;
        modules.args([
            "-ec",
            "cd \"$1/usr\"\ncpio --extract --make-directories --quiet <\"$2\"",
            "sh",
        ]);
        process::run(modules.args([root, &image.modules]))?;
        let mut install = process::as_root("install")?;
        process::run(
            install
                .arg(guest::exit_program()?)
                .arg(root.join("usr/bin/vm-exit")),
        )?;
        let init = root.with_extension("init");
        fs::write(&init, INIT).with_context(|| format!("cannot write {}", init.display()))?;
        let mut install = process::as_root("install")?;
        process::run(install.arg(&init).arg(root.join("init")))?;

        let packed = root.with_extension("cpio");
        let archive =
            File::create(&packed).with_context(|| format!("cannot write {}", packed.display()))?;
        let mut pack = process::as_root("sh")?;
        pack.args([
            "-ec",
            "cd \"$1\"\nfind . -xdev -print0 | cpio --null --create --format=newc --quiet",
            "sh",
        ]);
        process::run(pack.arg(root).stdout(archive))?;
        let archive = fs::read(&packed)?;
        fs::remove_file(packed)?;
        fs::remove_file(init)?;

        let name = format!("{}-system", kernel.name);
        let run = machine::run_archive(
            &image,
            kernel.architecture,
            &archive,
            &self.size,
            &name,
            true,
        )?;
        if let Some(fault) = run.fault() {
            eprintln!("error: {}: {fault}", kernel.name);
            return Ok(false);
        }
        println!(
            "{} {}: {:.0} s, console: {}",
            kernel.name,
            image.version,
            run.took.as_secs_f64(),
            run.log.display()
        );
        Ok(run.end == End::Exit(0))
    }
}

//! `cargo xtask package --boot`: the Debian package's service under a real systemd, in a virtual
//! machine. A script in the guest starts it, reads what it serves, makes refusals, reloads it,
//! stops its process until systemd's watchdog kills it, and stops it; its status is the guest's.

use std::path::Path;

use anyhow::{Result, bail};

use super::tree;
use crate::{
    clean_root::CleanRoot,
    process,
    vm::{Size, System},
};

/// systemd as the first process, and what loads modules.
const PACKAGES: [&str; 2] = ["systemd-sysv", "kmod"];

/// What the guest's systemd runs once it is up.
const CHECK: &str = "[Unit]\nDescription=check of the package\n\
    [Service]\nType=oneshot\nExecStart=/check\nTimeoutStartSec=infinity\n\
    StandardOutput=tty\nStandardError=tty\nTTYPath=/dev/console\n\
    [Install]\nWantedBy=multi-user.target\n";
/// The watchdog's patience, so that the check is short. A reload is one after a change.
const DROP_IN: &str = "[Service]\nWatchdogSec=9\nTimeoutAbortSec=2\nRestartSec=1\n";

/// Boots a kernel by name, with a Debian package installed.
pub fn boot(package: &Path, kernel: &str, folder: &Path) -> Result<()> {
    let root = CleanRoot::make(&folder.join("root"), &PACKAGES)?;
    tree::put(package, &root.path().join("queue-trace.deb"), 0o644)?;
    let place = |path: &str| root.path().join(path);
    tree::write(&place("etc/systemd/system/check.service"), CHECK)?;
    tree::write(
        &place("etc/systemd/system/queue-trace.service.d/check.conf"),
        DROP_IN,
    )?;
    let script = folder.join("check.sh");
    tree::write(&script, include_str!("check/unit.sh"))?;
    tree::put(&script, &place("check"), 0o755)?;
    std::fs::remove_file(script)?;
    process::run(&mut root.script(
        "dpkg --install /queue-trace.deb\nrm /queue-trace.deb\nsystemctl enable --quiet check\n\
         systemctl mask --quiet systemd-timesyncd systemd-journal-flush getty@tty1 serial-getty@ttyS0\n\
         rm --recursive --force /usr/share/doc /usr/share/locale /usr/share/i18n /var/lib/dpkg /usr/lib/apt",
    )?)?;
    let size = Size {
        mem: "2G".into(),
        timeout: 420,
        ..Size::default()
    };
    let system = System {
        kernel,
        root: &root,
        size,
    };
    if !system.boot()? {
        bail!("the service does not hold under systemd on {kernel}");
    }
    println!("the service was started, reloaded, restarted by the watchdog and stopped");
    Ok(())
}

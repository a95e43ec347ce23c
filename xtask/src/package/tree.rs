//! The files of a package as they lie on the machine: program, manual pages, completions, unit,
//! settings, documentation. Builds nothing.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{process, workspace};

/// Files that a person may have changed, and an upgrade leaves as they are.
pub const SETTINGS: [&str; 2] = ["/etc/default/queue-trace", "/etc/queue-trace/agent.toml"];

/// Files of the checkout and where they go.
const FILES: [(&str, &str); 10] = [
    (
        "packaging/systemd/queue-trace.service",
        "usr/lib/systemd/system/queue-trace.service",
    ),
    (
        "packaging/systemd/queue-trace.default",
        "etc/default/queue-trace",
    ),
    ("packaging/systemd/agent.toml", "etc/queue-trace/agent.toml"),
    (
        "packaging/prometheus/queue-trace.rules.yml",
        "usr/share/doc/queue-trace/queue-trace.rules.yml",
    ),
    ("README.md", "usr/share/doc/queue-trace/README.md"),
    ("CHANGELOG.md", "usr/share/doc/queue-trace/CHANGELOG.md"),
    ("docs/agent.md", "usr/share/doc/queue-trace/agent.md"),
    ("docs/metrics.md", "usr/share/doc/queue-trace/metrics.md"),
    ("docs/verdicts.md", "usr/share/doc/queue-trace/verdicts.md"),
    ("docs/diagnose.md", "usr/share/doc/queue-trace/diagnose.md"),
];

/// Completion scripts and where they go.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/queue-trace"),
    ("zsh", "usr/share/zsh/vendor-completions/_queue-trace"),
    (
        "fish",
        "usr/share/fish/vendor_completions.d/queue-trace.fish",
    ),
];

/// Lays the files out in `root`. `here` is the same program for this machine, which writes
/// its pages.
pub fn lay_out(root: &Path, program: &Path, here: &Path) -> Result<()> {
    workspace::fresh_dir(root)?;
    put(program, &root.join("usr/bin/queue-trace"), 0o755)?;
    for (from, to) in FILES {
        put(&workspace::root().join(from), &root.join(to), 0o644)?;
    }
    let pages = root.join("usr/share/man/man1");
    make_folder(&pages)?;
    process::stdout(Command::new(here).arg("man").arg(&pages))?;
    for page in sorted(&pages)? {
        gzip(&page)?;
    }
    for (shell, to) in COMPLETIONS {
        let script = process::stdout(Command::new(here).args(["completions", shell]))?;
        write(&root.join(to), &script)?;
    }
    permit(root)
}

/// Copies a file, and makes the folder that it goes to.
pub fn put(from: &Path, to: &Path, mode: u32) -> Result<()> {
    make_folder(to.parent().unwrap_or(to))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {}", from.display()))?;
    fs::set_permissions(to, fs::Permissions::from_mode(mode))
        .with_context(|| format!("cannot change {}", to.display()))
}

/// Writes a file, and makes the folder that it goes to.
pub fn write(to: &Path, text: &str) -> Result<()> {
    make_folder(to.parent().unwrap_or(to))?;
    fs::write(to, text).with_context(|| format!("cannot write {}", to.display()))
}

pub fn make_folder(path: &Path) -> Result<()> {
    fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
}

/// What is in a folder, in order.
fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?
    {
        paths.push(entry?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Folders are for everybody to look into, whatever the umask was; files are as they were put,
/// or for everybody to read.
pub fn permit(path: &Path) -> Result<()> {
    let about = fs::symlink_metadata(path)?;
    let mode = if about.is_dir() || about.permissions().mode() & 0o111 != 0 {
        0o755
    } else {
        0o644
    };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if about.is_dir() {
        for inside in sorted(path)? {
            permit(&inside)?;
        }
    }
    Ok(())
}

/// All files below a folder, in order.
pub fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for inside in sorted(path)? {
        if inside.is_dir() {
            files.extend(self::files(&inside)?);
        } else {
            files.push(inside);
        }
    }
    Ok(files)
}

/// A tar of what is in a folder, or of `what` in it. The same files and date give the same
/// bytes: nothing of this machine and of now is in it, no owners, no order of a listing.
pub fn tar(folder: &Path, what: &str, date: u32, to: &Path) -> Result<()> {
    process::run(
        Command::new("tar")
            .current_dir(folder)
            .args(["--create", "--sort=name", "--format=ustar"])
            .arg(format!("--mtime=@{date}"))
            .args(["--owner=0", "--group=0", "--numeric-owner"])
            .args(["--mode=go=rX,u+rw,a-s", "--file"])
            .arg(to)
            .arg(what),
    )
}

/// Packs a file in its place; gives its new name.
pub fn gzip(path: &Path) -> Result<PathBuf> {
    process::run(
        Command::new("gzip")
            .args(["--force", "--no-name", "-9"])
            .arg(path),
    )?;
    let mut packed = path.as_os_str().to_owned();
    packed.push(".gz");
    Ok(packed.into())
}

/// The sum of the sizes of all files, bytes.
pub fn size(path: &Path) -> Result<u64> {
    let about = fs::symlink_metadata(path)?;
    if !about.is_dir() {
        return Ok(about.len());
    }
    sorted(path)?.iter().map(|inside| size(inside)).sum()
}

/// A tree with a program that only writes its pages, for tests.
#[cfg(test)]
pub fn example(folder: &Path) -> PathBuf {
    let (program, root) = (folder.join("program"), folder.join("tree"));
    let script =
        "#!/bin/sh\ncase $1 in man) echo page > $2/queue-trace.1;; *) echo script;; esac\n";
    write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    lay_out(&root, &program, &program).unwrap();
    root
}

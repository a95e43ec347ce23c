//! The guest's first and only file system: a few programs of this machine with
//! their libraries, the given ones, and a command. Boots nothing.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{cpio::Archive, userland::Userland};
use crate::{architecture::Architecture, process, workspace};

const INIT: &str = include_str!("init.sh");
const POWER_OFF: &[u8] = b"#!/bin/dash\nexec busybox poweroff -f\n";
const EXIT_SOURCE: &str = include_str!("../bin/vm-exit.rs");

/// What busybox lacks, has differently, or would run its own applets from: its
/// shell, `env`, `unshare` and the like prefer them to what is in PATH.
const PROGRAMS: &[&str] = &[
    "/bin/busybox",
    "/bin/dash",
    "/usr/bin/env",
    "/usr/bin/timeout",
    "/usr/bin/unshare",
    "/usr/bin/nsenter",
    "/bin/ip",
    "/bin/ss",
    "/usr/bin/nstat",
    "/sbin/tc",
    "/usr/sbin/nft",
];

/// What to run in a guest.
#[derive(Clone)]
pub struct Guest {
    pub architecture: Architecture,
    /// Further programs, which go to /bin.
    pub programs: Vec<PathBuf>,
    /// Folders of this machine, and where they go.
    pub trees: Vec<(PathBuf, String)>,
    pub environment: Vec<(String, String)>,
    pub command: Vec<String>,
}

impl Guest {
    /// The file system as a cpio archive.
    pub fn archive(&self) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for path in ["proc", "sys", "tmp", "run", "root", "bin", "lib", "lib64"] {
            archive.directory(path);
        }
        archive.character_device("dev/console", 5, 1);
        archive.symlink("usr", ".");
        archive.symlink("sbin", "bin");
        archive.file(
            "etc/passwd",
            b"root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n",
            0o644,
        );
        archive.file("etc/group", b"root:x:0:\nnogroup:x:65534:\n", 0o644);
        archive.file("init", INIT.as_bytes(), 0o755);
        archive.file("command", self.script().as_bytes(), 0o755);

        match self.architecture {
            Architecture::X86_64 => archive.copy("bin/vm-exit", &exit_program()?, 0o755)?,
            // Its board has no device that takes a status.
            Architecture::Aarch64 => archive.file("bin/vm-exit", POWER_OFF, 0o755),
        }
        let userland = Userland::of(self.architecture)?;
        let given = self.programs.iter().map(PathBuf::as_path);
        for program in PROGRAMS.iter().map(Path::new).chain(given) {
            add_program(&mut archive, &userland, program)?;
        }
        for (folder, place) in &self.trees {
            add_tree(&mut archive, folder, place)?;
        }
        archive.symlink("bin/sh", "dash");
        for applet in process::stdout(Command::new("/bin/busybox").arg("--list"))?.lines() {
            archive.symlink(&format!("bin/{applet}"), "busybox");
        }
        Ok(archive.finish())
    }

    /// A script that becomes the command.
    fn script(&self) -> String {
        let exports = self
            .environment
            .iter()
            .map(|(name, value)| format!("export {name}={}\n", quoted(value)));
        let command: Vec<_> = self.command.iter().map(|word| quoted(word)).collect();
        format!(
            "{}exec {}\n",
            exports.collect::<String>(),
            command.join(" ")
        )
    }
}

fn add_program(archive: &mut Archive, userland: &Userland, program: &Path) -> Result<()> {
    let name = program
        .file_name()
        .with_context(|| format!("{} is no program", program.display()))?;
    let file = userland.program(program);
    archive.copy(&format!("bin/{}", name.display()), &file, 0o755)?;
    for (place, library) in userland.libraries(&file)? {
        if !archive.contains(&place) {
            archive.copy(&place, &library, 0o755)?;
        }
    }
    Ok(())
}

fn add_tree(archive: &mut Archive, folder: &Path, place: &str) -> Result<()> {
    let listing =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in listing {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let place = format!("{place}/{name}");
        if path.is_symlink() {
            archive.symlink(&place, &fs::read_link(&path)?.to_string_lossy());
        } else if path.is_dir() {
            add_tree(archive, &path, &place)?;
        } else {
            archive.copy(&place, &path, 0o755)?;
        }
    }
    Ok(())
}

/// `word` as one word of a shell script.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The program that ends the guest, compiled once per version of its source.
pub fn exit_program() -> Result<PathBuf> {
    let folder = workspace::target().join("vm");
    let _lock = workspace::lock(&folder)?;
    let (source, program) = (folder.join("vm-exit.rs"), folder.join("vm-exit"));
    if !program.exists() || fs::read_to_string(&source).ok().as_deref() != Some(EXIT_SOURCE) {
        let mut compile = Command::new("rustc");
        compile.args([
            "--edition=2024",
            "-Copt-level=s",
            "-Cstrip=symbols",
            "-Ctarget-feature=+crt-static",
            "-o",
        ]);
        let new = folder.join("vm-exit.new");
        fs::write(&source, EXIT_SOURCE)
            .with_context(|| format!("cannot write {}", source.display()))?;
        process::run(compile.args([&new, &source]))?;
        fs::rename(&new, &program)
            .with_context(|| format!("cannot write {}", program.display()))?;
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_keeps_words_as_they_are() {
        let guest = Guest {
            architecture: Architecture::X86_64,
            programs: Vec::new(),
            trees: Vec::new(),
            environment: vec![("A".into(), "b c".into())],
            command: ["sh", "-c", "echo 'x' $A"].map(String::from).to_vec(),
        };
        assert_eq!(
            guest.script(),
            "export A='b c'\nexec 'sh' '-c' 'echo '\\''x'\\'' $A'\n"
        );
    }
}

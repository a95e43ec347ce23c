//! The guest's first and only file system: a few programs of this machine with
//! their libraries, the given ones, and a command. Boots nothing.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use crate::{process, workspace};

const INIT: &str = include_str!("init.sh");
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
#[derive(Clone, Default)]
pub struct Guest {
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

        archive.copy("bin/vm-exit", &exit_program()?, 0o755)?;
        let given = self.programs.iter().map(PathBuf::as_path);
        for program in PROGRAMS.iter().map(Path::new).chain(given) {
            add_program(&mut archive, program)?;
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

fn add_program(archive: &mut Archive, program: &Path) -> Result<()> {
    let name = program
        .file_name()
        .with_context(|| format!("{} is no program", program.display()))?;
    archive.copy(&format!("bin/{}", name.display()), program, 0o755)?;
    for library in libraries(program)? {
        // /usr is / in the guest.
        let path = library.strip_prefix("/usr").unwrap_or(&library).to_string();
        if !archive.contains(&path) {
            archive.copy(&path, Path::new(&library), 0o755)?;
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

fn libraries(program: &Path) -> Result<BTreeSet<String>> {
    // It fails for static programs, and says so on stderr.
    let listing = process::output(Command::new("ldd").arg(program))?;
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    if let Some(line) = listing.lines().find(|line| line.contains("not found")) {
        bail!(
            "{} needs a library that is not here: {}",
            program.display(),
            line.trim()
        );
    }
    Ok(linked(&listing).map(str::to_string).collect())
}

/// The paths in the output of `ldd`.
fn linked(listing: &str) -> impl Iterator<Item = &str> {
    listing
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
}

/// `word` as one word of a shell script.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The program that ends the guest, compiled once per version of its source.
fn exit_program() -> Result<PathBuf> {
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

    #[test]
    fn ldd_lists_libraries_and_the_loader() {
        let listing = "\tlinux-vdso.so.1 (0x7ffc)\n\
                       \tlibmnl.so.0 => /usr/lib/x86_64-linux-gnu/libmnl.so.0 (0x7f)\n\
                       \t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let expected = [
            "/usr/lib/x86_64-linux-gnu/libmnl.so.0",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(linked(listing).collect::<Vec<_>>(), expected);
        assert_eq!(linked("\tstatically linked\n").count(), 0);
    }
}

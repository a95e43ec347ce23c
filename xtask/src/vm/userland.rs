//! Programs for guests, with the libraries that they need: this machine's own, or, for another
//! architecture, those of Debian's packages, unpacked into the cache. Runs none of them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use crate::{
    apt::{self, Apt},
    architecture::Architecture,
    process, workspace,
};

/// The packages of every program that a guest gets.
const PACKAGES: [&str; 8] = [
    "busybox-static",
    "coreutils",
    "dash",
    "iproute2",
    "nftables",
    "nginx-light",
    "redis-server",
    "util-linux",
];

/// Where programs and libraries for guests of one architecture are.
pub struct Userland {
    architecture: Architecture,
    root: PathBuf,
}

impl Userland {
    /// This machine's, or that of packages, which are fetched if they are not in the cache.
    pub fn of(architecture: Architecture) -> Result<Self> {
        let root = if architecture == Architecture::HERE {
            "/".into()
        } else {
            fetched(architecture)?
        };
        Ok(Self { architecture, root })
    }

    /// Where a program is. What is not a path of the system (the tests) is where it says.
    pub fn program(&self, path: &Path) -> PathBuf {
        if self.architecture == Architecture::HERE || path.starts_with(workspace::target()) {
            return path.to_path_buf();
        }
        self.find(path).unwrap_or_else(|| path.to_path_buf())
    }

    /// A file of the system: older packages have some of it beside /usr, newer ones in it.
    fn find(&self, path: &Path) -> Option<PathBuf> {
        let path = path.strip_prefix("/").unwrap_or(path);
        let places = [path.to_path_buf(), Path::new("usr").join(path)];
        let beside = path.strip_prefix("usr").map(Path::to_path_buf);
        let mut places = places.into_iter().chain(beside);
        places.find_map(|place| {
            let place = self.root.join(place);
            place.exists().then_some(place)
        })
    }

    /// The libraries that a program needs, each with the path that it has in the guest.
    pub fn libraries(&self, program: &Path) -> Result<Vec<(String, PathBuf)>> {
        if self.architecture == Architecture::HERE {
            let own = own_libraries(program)?.into_iter();
            return Ok(own
                .map(|path| {
                    // /usr is / in the guest.
                    let place = path.strip_prefix("/usr").unwrap_or(&path).to_string();
                    (place, path.into())
                })
                .collect());
        }
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        let mut next = vec![program.to_path_buf()];
        while let Some(file) = next.pop() {
            for needed in needed(&file)? {
                if found.iter().any(|(place, _)| *place == needed.place(self)) {
                    continue;
                }
                let path = self.find(Path::new(&needed.place(self))).with_context(|| {
                    let (file, needed) = (file.display(), needed.name());
                    format!("{file} needs {needed}, which is in no package that was fetched")
                })?;
                found.push((needed.place(self), path.clone()));
                next.push(path);
            }
        }
        Ok(found)
    }
}

/// What a program is linked to.
#[derive(Debug, PartialEq)]
enum Needed {
    /// A library, by name.
    Library(String),
    /// The loader, by path.
    Loader(String),
}

impl Needed {
    fn name(&self) -> &str {
        match self {
            Self::Library(name) | Self::Loader(name) => name,
        }
    }

    /// Where the guest's loader looks for it.
    fn place(&self, userland: &Userland) -> String {
        match self {
            Self::Library(name) => format!("/lib/{}/{name}", userland.architecture.gnu()),
            Self::Loader(path) => path.clone(),
        }
    }
}

/// What a program or library of any architecture needs itself.
fn needed(file: &Path) -> Result<Vec<Needed>> {
    let listing = process::stdout(
        Command::new("readelf")
            .args(["--dynamic", "--program-headers", "--wide"])
            .arg(file)
            .env("LC_ALL", "C"),
    )?;
    Ok(listing.lines().filter_map(needed_in).collect())
}

fn needed_in(line: &str) -> Option<Needed> {
    let inside = |text: &str, end: char| Some(text.split_once(end)?.0.trim().to_string());
    if let Some((_, rest)) = line.split_once("Requesting program interpreter:") {
        return Some(Needed::Loader(inside(rest, ']')?));
    }
    let (_, rest) = line.split_once("(NEEDED)")?;
    let name = inside(rest.split_once('[')?.1, ']')?;
    // The loader is also named as a library; the programs say where it is.
    (!name.starts_with("ld-linux")).then_some(Needed::Library(name))
}

fn own_libraries(program: &Path) -> Result<BTreeSet<String>> {
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

/// The packages of this machine's release with all that they need, for `architecture`.
fn fetched(architecture: Architecture) -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let name = format!("{}-{}", apt::codename()?, list_id());
    let folder = cache
        .join("userland")
        .join(architecture.debian())
        .join(name);
    let _lock = workspace::lock(&cache)?;
    if folder.exists() {
        return Ok(folder);
    }
    eprintln!("fetching programs for {} guests", architecture.debian());
    let apt = Apt::update(architecture, &apt::release_suites()?)?;
    let new = folder.with_extension("new");
    workspace::fresh_dir(&new)?;
    apt.unpack_with_dependencies(&PACKAGES, &new)?;
    fs::rename(&new, &folder).context("cannot keep the programs for guests")?;
    Ok(folder)
}

/// Changes with the list of packages, so that a cache knows an older list's folder.
fn list_id() -> String {
    super::modules::id_of(&PACKAGES.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn readelf_lists_libraries_and_the_loader() {
        let listing = "\
      [Requesting program interpreter: /lib/ld-linux-aarch64.so.1]
 0x0000000000000001 (NEEDED)             Shared library: [libmnl.so.0]
 0x0000000000000001 (NEEDED)             Shared library: [ld-linux-aarch64.so.1]
 0x000000000000000c (INIT)               0x2000
";
        let expected = [
            Needed::Loader("/lib/ld-linux-aarch64.so.1".into()),
            Needed::Library("libmnl.so.0".into()),
        ];
        assert_eq!(
            listing.lines().filter_map(needed_in).collect::<Vec<_>>(),
            expected
        );
    }
}

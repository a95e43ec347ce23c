//! apt with a sources list and package lists of our own, for suites that this
//! machine is not configured with. Leaves its own sources and lists alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{architecture::Architecture, process, workspace};

/// apt that sees the given suites and no others.
pub struct Apt {
    folder: PathBuf,
}

impl Apt {
    /// Writes the sources list and updates the package lists. The caller holds the
    /// cache, as all suites of an architecture share one folder.
    pub fn update(architecture: Architecture, suites: &[impl AsRef<str>]) -> Result<Self> {
        let folder = workspace::cache()?.join("apt").join(architecture.debian());
        for name in ["lists/partial", "archives/partial"] {
            let path = folder.join(name);
            fs::create_dir_all(&path)
                .with_context(|| format!("cannot create {}", path.display()))?;
        }
        let sources = sources(architecture, suites, &configured_bases()?, keyring()?);
        fs::write(folder.join("sources.list"), sources).context("cannot write a sources list")?;
        fs::write(
            folder.join("apt.conf"),
            configuration(architecture, &folder),
        )
        .context("cannot configure apt")?;

        let apt = Self { folder };
        process::stdout(apt.command("apt-get").args(["update", "--quiet"]))
            .context("the package archive does not answer, or its signature is not trusted")?;
        Ok(apt)
    }

    /// One of apt's programs, to look and to download. It knows of nothing that
    /// is installed.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--config-file")
            .arg(self.folder.join("apt.conf"))
            .env("LC_ALL", "C");
        command
    }

    /// Downloads `packages` (`NAME=VERSION`), and nothing that they need, and unpacks them
    /// into `folder`.
    pub fn unpack(&self, packages: impl IntoIterator<Item = String>, folder: &Path) -> Result<()> {
        let debs = folder.join("debs");
        workspace::fresh_dir(&debs)?;
        let mut download = self.command("apt-get");
        download.args(["download", "--quiet"]).args(packages);
        process::stdout(download.current_dir(&debs))?;
        unpack(&debs, folder)
    }

    /// Downloads `packages` with all that they need, and unpacks them into `folder`. The list
    /// of what is installed is empty, so that nothing is missing.
    pub fn unpack_with_dependencies(&self, packages: &[&str], folder: &Path) -> Result<()> {
        let debs = folder.join("debs");
        workspace::fresh_dir(&debs.join("partial"))?;
        let mut download = self.command("apt-get");
        download
            .arg("--option")
            .arg(format!("Dir::Cache::Archives={}", debs.display()))
            .args(["install", "--download-only", "--no-install-recommends"])
            .args(["--yes", "--quiet"])
            .args(packages);
        process::stdout(&mut download)?;
        unpack(&debs, folder)
    }

    /// Installs the version of `packages` that is in `suite` on this machine.
    pub fn install(&self, suite: &str, packages: &[&str]) -> Result<()> {
        let mut command = process::as_root("env")?;
        command
            .args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "--config-file"])
            .arg(self.folder.join("apt.conf"))
            // What is installed matters now, and root leaves nothing in the cache.
            .args(["--option", "Dir::State::Status=/var/lib/dpkg/status"])
            .args(["--option", "Dir::Cache::Archives=/var/cache/apt/archives"])
            .args(INSTALL)
            .args(["--target-release", suite])
            .args(packages);
        process::run(&mut command)
    }
}

/// Installs `packages` from the machine's own sources.
pub fn install(packages: &[&str]) -> Result<()> {
    let apt_get = || {
        let mut command = process::as_root("env")?;
        command.args(["DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        anyhow::Ok(command)
    };
    process::run(apt_get()?.args(["update", "--quiet"]))?;
    process::run(apt_get()?.args(INSTALL).args(packages))
}

const INSTALL: [&str; 4] = ["install", "--yes", "--quiet", "--no-install-recommends"];

/// The name of this machine's release, as in `bookworm`.
pub fn codename() -> Result<String> {
    let os = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let codename = os
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(codename.unwrap_or("sid").to_string())
}

/// The suites of this machine's own release.
pub fn release_suites() -> Result<Vec<String>> {
    let codename = codename()?;
    let suites = ["", "-updates", "-security"].map(|suffix| format!("{codename}{suffix}"));
    Ok(match codename.as_str() {
        // It has neither.
        "sid" => vec![codename],
        _ => suites.to_vec(),
    })
}

/// Unpacks the packages in `debs` into `folder`, and removes them.
fn unpack(debs: &Path, folder: &Path) -> Result<()> {
    let listing = fs::read_dir(debs).with_context(|| format!("cannot list {}", debs.display()))?;
    for deb in listing {
        let deb = deb?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            process::stdout(unpack.arg("--extract").arg(deb).arg(folder))?;
        }
    }
    fs::remove_dir_all(debs).context("cannot remove the downloaded packages")
}

/// Lists, cache and status apart from the machine's own.
fn configuration(architecture: Architecture, folder: &Path) -> String {
    let (folder, architecture) = (folder.display(), architecture.debian());
    format!(
        r#"APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }}
Dir::Etc::SourceList "{folder}/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "{folder}/lists";
Dir::State::Status "/dev/null";
Dir::Cache "{folder}";
Dir::Cache::PkgCache "";
Dir::Cache::SrcPkgCache "";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
// The cache is the user's, so apt must not become another one.
APT::Sandbox::User "root";
// A suite that cannot be read is an error, not a warning.
APT::Update::Error-Mode "any";
// The lists of other suites stay.
APT::Get::List-Cleanup "false";
"#
    )
}

/// The base addresses of the main and the security archive.
#[derive(Debug, PartialEq)]
pub struct Bases {
    pub main: String,
    pub security: String,
}

/// Those that this machine's own apt is configured with.
pub fn configured_bases() -> Result<Bases> {
    let targets = process::stdout(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI) $(RELEASE) $(COMPONENT)",
        "Created-By: Packages",
    ]))?;
    let codename = codename()?;
    bases(&targets, &codename).with_context(|| {
        format!("apt has no source for Debian {codename} and its security updates")
    })
}

fn bases(targets: &str, codename: &str) -> Option<Bases> {
    let suites = [
        codename,
        "oldstable",
        "stable",
        "testing",
        "sid",
        "unstable",
    ];
    let of = |suffix: &str| {
        targets.lines().find_map(|line| {
            let [uri, release, "main"] = line.split(' ').collect::<Vec<_>>()[..] else {
                return None;
            };
            suites
                .contains(&release.strip_suffix(suffix)?)
                .then(|| uri.trim_end_matches('/').to_string())
        })
    };
    let main = of("")?;
    // A machine without security updates: the archive's sibling.
    let security = of("-security").unwrap_or_else(|| format!("{main}-security"));
    Some(Bases { main, security })
}

fn keyring() -> Result<&'static Path> {
    [
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "/usr/share/keyrings/debian-archive-keyring.pgp",
    ]
    .map(Path::new)
    .into_iter()
    .find(|path| path.exists())
    .context("Debian's signing keys are missing: `apt-get install debian-archive-keyring`")
}

fn sources(
    architecture: Architecture,
    suites: &[impl AsRef<str>],
    bases: &Bases,
    keyring: &Path,
) -> String {
    let line = |suite: &str| {
        let base = if suite.ends_with("-security") {
            &bases.security
        } else {
            &bases.main
        };
        format!(
            "deb [arch={} signed-by={}] {base} {suite} main\n",
            architecture.debian(),
            keyring.display()
        )
    };
    suites.iter().map(|suite| line(suite.as_ref())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bases_are_debians_own() {
        let targets = "\
http://other.example/apt/ cloud-tools-bookworm main
http://other.example/docker/ bookworm stable
http://mirror.example/debian/ bookworm-updates main
http://mirror.example/debian/ bookworm main
http://security.example/debian-security/ bookworm-security main
";
        let expected = Bases {
            main: "http://mirror.example/debian".into(),
            security: "http://security.example/debian-security".into(),
        };
        assert_eq!(bases(targets, "bookworm"), Some(expected));
        assert_eq!(bases(targets, "trixie"), None);
        let main_only = bases("http://m.example/debian/ stable main", "trixie").unwrap();
        assert_eq!(main_only.security, "http://m.example/debian-security");
    }

    #[test]
    fn security_suites_come_from_the_security_archive() {
        let bases = Bases {
            main: "http://m".into(),
            security: "http://s".into(),
        };
        let list = sources(
            Architecture::Aarch64,
            &["bookworm", "bookworm-security"],
            &bases,
            Path::new("/k.gpg"),
        );
        assert_eq!(
            list,
            "deb [arch=arm64 signed-by=/k.gpg] http://m bookworm main\n\
             deb [arch=arm64 signed-by=/k.gpg] http://s bookworm-security main\n"
        );
    }
}

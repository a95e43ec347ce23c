//! `cargo xtask package`: the static program with its manual pages, completions and licences as
//! a tarball, a Debian package, an RPM package or a container image. The same source gives the
//! same bytes.

mod check;
mod deb;
mod image;
mod notices;
mod programs;
mod release;
mod rpm;
mod sbom;
mod tree;
mod unit;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use programs::Programs;
use release::{NAME, Release};

use crate::{architecture::Architecture, process, workspace};

#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    pub programs: Programs,
    /// What to make of it. An image is of both architectures.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tarball")]
    pub form: Vec<Form>,
    /// Also let the distributions' checkers read what was made, and install, start, upgrade and
    /// remove it in a clean root of Debian. Of packages for another architecture, which cannot be
    /// started here, only what is in them is checked.
    #[arg(long)]
    pub check: bool,
    /// Also install the Debian package in a virtual machine with this kernel (`cargo xtask vm
    /// list`) and systemd, and start, reload, stall and stop its service.
    #[arg(long, value_name = "KERNEL")]
    pub boot: Option<String>,
    /// Where it goes; target/package by default.
    #[arg(long, value_name = "FOLDER")]
    pub output: Option<PathBuf>,
}

impl Args {
    /// What was asked for of what was made.
    fn check(&self, release: &Release, made: &[PathBuf], folder: &Path) -> Result<()> {
        let of = |form| {
            let mut all = self.form.iter().zip(made);
            all.find_map(|(other, path)| (*other == form).then_some(path))
        };
        if self.boot.is_some() && self.programs.target != Architecture::HERE {
            bail!("only packages for this machine can be started on it");
        }
        if self.check {
            if of(Form::Deb).or(of(Form::Rpm)).is_some() {
                check::packages(&self.programs, release, made, folder)?;
            }
            if let Some(image) = of(Form::Image) {
                check::image(image, folder)?;
            }
        }
        if let Some(kernel) = &self.boot {
            let package = of(Form::Deb).context("--boot needs --form deb")?;
            unit::boot(package, kernel, folder)?;
        }
        Ok(())
    }
}

/// What a program is packed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Form {
    /// A tarball.
    Tarball,
    /// A Debian package.
    Deb,
    /// An RPM package.
    Rpm,
    /// A container image, in the layout of the Open Container Initiative.
    Image,
    /// The list of what is linked into the program, in CycloneDX's JSON.
    Sbom,
}

pub fn run(args: &Args) -> Result<()> {
    let folder = match &args.output {
        Some(folder) => folder.clone(),
        None => workspace::target().join("package"),
    };
    tree::make_folder(&folder)?;
    let release = Release::here()?;
    let mut made = Vec::new();
    for form in &args.form {
        made.push(match form {
            Form::Tarball => tarball(args, &release, &folder)?,
            Form::Deb => args.programs.laid_out(&folder, |root| {
                deb::pack(root, args.programs.target, &release, &folder)
            })?,
            Form::Rpm => args.programs.laid_out(&folder, |root| {
                rpm::pack(root, args.programs.target, &release, &folder)
            })?,
            Form::Image => image(args, &release, &folder)?,
            Form::Sbom => sbom::write(args.programs.target, &release, &folder)?,
        });
    }
    sums(&release, &folder)?;
    for path in &made {
        println!("{}", path.display());
    }
    args.check(&release, &made, &folder)?;
    Ok(())
}

/// Builds the program for every architecture and packs it as an image.
fn image(args: &Args, release: &Release, folder: &Path) -> Result<PathBuf> {
    let mut programs = Vec::new();
    for architecture in Architecture::ALL {
        let content = image::Content {
            program: args.programs.program(architecture)?,
            notices: notices::write(architecture)?,
        };
        programs.push((architecture, content));
    }
    image::pack(&programs, release, folder)
}

/// The checksums of all that was made of this version, by this run or by those before it for
/// another architecture, in the form of sha256sum.
fn sums(release: &Release, folder: &Path) -> Result<()> {
    let mut names: Vec<_> = tree::files(folder)?
        .iter()
        .filter_map(|path| Some(path.strip_prefix(folder).ok()?.to_str()?.to_owned()))
        .filter(|name| name.starts_with(NAME) && name.contains(&release.version))
        .collect();
    names.sort();
    let sums = process::stdout(Command::new("sha256sum").current_dir(folder).args(names))?;
    tree::write(&folder.join("SHA256SUMS"), &sums)
}

/// Files of the checkout that go along, if it has them.
const ALONG: [&str; 5] = [
    "README.md",
    "CHANGELOG.md",
    "LICENSE",
    "LICENSE-APACHE",
    "LICENSE-MIT",
];

/// Builds the program and packs it.
fn tarball(args: &Args, release: &Release, folder: &Path) -> Result<PathBuf> {
    let program = args.programs.program(args.programs.target)?;
    let name = format!(
        "{NAME}-{}-{}",
        release.version,
        args.programs.target.target()
    );
    let content = folder.join(&name);
    workspace::fresh_dir(&content)?;
    copy(&program, &content.join("queue-trace"))?;
    for file in ALONG {
        let from = workspace::root().join(file);
        if from.exists() {
            copy(&from, &content.join(file))?;
        }
    }
    let notices = notices::write(args.programs.target)?;
    tree::write(&content.join(notices::FILE), &notices)?;
    let tarball = folder.join(format!("{name}.tar"));
    tree::tar(folder, &name, release.date, &tarball)?;
    fs::remove_dir_all(&content).with_context(|| format!("cannot remove {}", content.display()))?;
    tree::gzip(&tarball)
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

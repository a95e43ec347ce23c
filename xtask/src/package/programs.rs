//! The static programs that are packed: those that were given, or that are built.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{notices, tree};
use crate::{
    architecture::Architecture,
    artifacts::{self, For},
    process,
};

/// Where programs come from, and which of them packages are made for.
#[derive(clap::Args)]
pub struct Programs {
    /// Rust's name of the target: x86_64-unknown-linux-gnu or aarch64-unknown-linux-gnu; this
    /// machine's by default.
    #[arg(long, value_name = "TARGET", value_parser = Architecture::of_target, default_value = Architecture::HERE.target())]
    pub target: Architecture,
    /// A static program instead of one that is built, for the architecture that it is for. May be
    /// repeated.
    #[arg(long = "program", value_name = "FILE")]
    pub given: Vec<PathBuf>,
}

impl Programs {
    /// The one that was given, or else is built.
    pub fn program(&self, architecture: Architecture) -> Result<PathBuf> {
        for given in &self.given {
            if is_for(given, architecture)? {
                is_static(given)?;
                return Ok(given.clone());
            }
        }
        let program = artifacts::program(For::Guest(architecture))?;
        is_static(&program)?;
        Ok(program)
    }

    /// Lays the files of the target's program out and packs them.
    pub fn laid_out(
        &self,
        folder: &Path,
        pack: impl FnOnce(&Path) -> Result<PathBuf>,
    ) -> Result<PathBuf> {
        let program = self.program(self.target)?;
        // Writes the manual pages and completions.
        let here = self.program(Architecture::HERE)?;
        let root = folder.join("tree");
        tree::lay_out(&root, &program, &here)?;
        notices::add(&root, &notices::write(self.target)?)?;
        let packed = pack(&root)?;
        fs::remove_dir_all(root)?;
        Ok(packed)
    }
}

/// Whether its header says so.
pub fn is_for(program: &Path, architecture: Architecture) -> Result<bool> {
    let header = process::stdout(
        Command::new("readelf")
            .arg("--file-header")
            .arg(program)
            .env("LC_ALL", "C"),
    )?;
    let machine = header
        .lines()
        .find_map(|line| line.trim().strip_prefix("Machine:"));
    let machine = machine.context("the program has no machine")?;
    Ok(machine
        .to_lowercase()
        .replace('-', "_")
        .contains(architecture.name()))
}

/// It must run wherever it is put, whatever libraries are there.
fn is_static(program: &Path) -> Result<()> {
    let headers = process::stdout(
        Command::new("readelf")
            .args(["--program-headers", "--wide"])
            .arg(program)
            .env("LC_ALL", "C"),
    )?;
    if headers.contains("INTERP") {
        bail!("{} is not static", program.display());
    }
    Ok(())
}

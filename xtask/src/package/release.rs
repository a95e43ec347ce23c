//! What a package says of itself, whatever its form: its name, its words, the version, and the
//! date that its files have.

use std::{env, fs, process::Command};

use anyhow::{Context, Result};

use crate::{process, workspace};

pub const NAME: &str = "queue-trace";
pub const SUMMARY: &str = "tells which TCP listener refuses connections, and why";
pub const MAINTAINER: &str = "queue-trace developers <queue-trace@localhost>";
pub const LICENSE: &str = "MIT OR Apache-2.0";
/// Lines of a description; an empty one is between paragraphs.
pub const DESCRIPTION: [&str; 7] = [
    "queue-trace watches the kernel's TCP SYN queue and accept queue with eBPF. It",
    "says which listener refuses connections, what the kernel did to each packet,",
    "why, and what to change. Its agent serves metrics to Prometheus and",
    "OpenTelemetry, and records each incident with the minute before it.",
    "",
    "The service queue-trace.service is neither enabled nor started by the",
    "installation.",
];

/// What of this source is released.
pub struct Release {
    pub version: String,
    /// Seconds since 1970: of the source, not of the build, so that the same source gives the
    /// same bytes.
    pub date: u32,
}

impl Release {
    /// That of this checkout.
    pub fn here() -> Result<Self> {
        Ok(Self {
            version: version()?,
            date: date()?,
        })
    }

    /// Its date as JSON has it.
    pub fn time(&self) -> Result<String> {
        Ok(jiff::Timestamp::from_second(self.date.into())?.to_string())
    }
}

/// The workspace's.
fn version() -> Result<String> {
    let manifest = workspace::root().join("Cargo.toml");
    let text = fs::read_to_string(&manifest)
        .with_context(|| format!("cannot read {}", manifest.display()))?;
    let manifest: toml::Table = text.parse()?;
    let version = manifest
        .get("workspace")
        .and_then(|workspace| workspace.get("package")?.get("version")?.as_str());
    Ok(version
        .context("the workspace's Cargo.toml has no version")?
        .to_string())
}

/// `SOURCE_DATE_EPOCH`, else that of the last commit, else, without git, a day that every tool
/// takes for a date.
fn date() -> Result<u32> {
    const WITHOUT_GIT: u32 = 1_577_836_800;
    if let Ok(given) = env::var("SOURCE_DATE_EPOCH") {
        return given
            .parse()
            .context("SOURCE_DATE_EPOCH is not a number of seconds");
    }
    let mut git = Command::new("git");
    git.current_dir(workspace::root())
        .args(["log", "-1", "--format=%ct"]);
    let committed = process::output(&mut git)
        .ok()
        .filter(|output| output.status.success());
    Ok(committed
        .and_then(|output| String::from_utf8_lossy(&output.stdout).trim().parse().ok())
        .unwrap_or(WITHOUT_GIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_workspaces() {
        assert_eq!(Release::here().unwrap().version, env!("CARGO_PKG_VERSION"));
    }

    /// No tool takes the first years of the clock for a date.
    #[test]
    fn the_date_is_one_of_this_project() {
        assert!(Release::here().unwrap().date >= 1_577_836_800);
    }
}

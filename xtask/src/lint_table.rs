//! The table of lints in `Cargo.toml`, for the kernel side, which is no member of the workspace.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::workspace;

/// The kernel side reads the kernel's memory in every file.
const EXCEPTED: [&str; 1] = ["unsafe_code"];

#[derive(Deserialize)]
struct Manifest {
    workspace: Workspace,
}

#[derive(Deserialize)]
struct Workspace {
    lints: Lints,
}

#[derive(Deserialize)]
struct Lints {
    rust: BTreeMap<String, Level>,
    clippy: BTreeMap<String, Level>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Allow,
    Warn,
    Deny,
}

/// The compiler's arguments for all of them.
pub fn kernel_side() -> Result<Vec<String>> {
    let path = workspace::root().join("Cargo.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    arguments(&text).with_context(|| format!("no table of lints in {}", path.display()))
}

fn arguments(manifest: &str) -> Result<Vec<String>> {
    let Lints { rust, clippy } = toml::from_str::<Manifest>(manifest)?.workspace.lints;
    let rust = rust
        .into_iter()
        .filter(|(name, _)| !EXCEPTED.contains(&name.as_str()));
    let clippy = clippy
        .into_iter()
        .map(|(name, level)| (format!("clippy::{name}"), level));
    let argument = |(name, level)| match level {
        Level::Allow => format!("-A{name}"),
        Level::Warn => format!("-W{name}"),
        Level::Deny => format!("-D{name}"),
    };
    Ok(rust.chain(clippy).map(argument).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lint_becomes_an_argument() {
        let manifest = "\
            [workspace.lints.rust]\n\
            unsafe_code = \"deny\"\n\
            missing_docs = \"warn\"\n\
            [workspace.lints.clippy]\n\
            todo = \"deny\"\n";
        let arguments = arguments(manifest).unwrap();
        assert_eq!(arguments, ["-Wmissing_docs", "-Dclippy::todo"]);
        assert!(super::arguments("[workspace]\n").is_err());
    }
}

//! `queue-trace/bpf/manifest.toml`: what the committed objects were made of and
//! with. Builds nothing.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::{source::Source, toolchain::Toolchain};

const HEADER: &str = "# Written by `cargo xtask build-ebpf`; do not edit.\n";

#[derive(Debug, PartialEq, Deserialize, Serialize)]
pub struct Manifest {
    /// SHA-256 of the source.
    pub source: String,
    /// `rustc --version`.
    pub compiler: String,
    /// `bpf-linker --version`.
    pub linker: String,
    /// SHA-256 of each architecture's object.
    pub objects: BTreeMap<String, String>,
}

impl Manifest {
    pub fn of(source: &Source, toolchain: &Toolchain, objects: BTreeMap<String, String>) -> Self {
        Self {
            source: source.hash(),
            compiler: toolchain.compiler.clone(),
            linker: toolchain.linker.clone(),
            objects,
        }
    }

    pub fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a manifest", path.display()))
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{HEADER}{}", toml::to_string(self)?);
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// In which tool `toolchain` is not the one that built the object, if in any.
    pub fn other_tools(&self, toolchain: &Toolchain) -> Option<String> {
        [
            (&self.compiler, &toolchain.compiler),
            (&self.linker, &toolchain.linker),
        ]
        .into_iter()
        .find(|(built_with, here)| built_with != here)
        .map(|(built_with, here)| format!("they were built with {built_with}, and here is {here}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bpf::hash::sha256;

    fn manifest() -> Manifest {
        Manifest {
            source: "aa".into(),
            compiler: "rustc 1.96.0".into(),
            linker: "bpf-linker 0.13.0".into(),
            objects: [("x86_64".into(), sha256(b""))].into(),
        }
    }

    #[test]
    fn written_and_read_is_the_same() {
        let text = format!("{HEADER}{}", toml::to_string(&manifest()).unwrap());
        assert_eq!(toml::from_str::<Manifest>(&text).unwrap(), manifest());
    }

    #[test]
    fn the_first_other_tool_is_named() {
        let mut here = Toolchain {
            cargo: "cargo".into(),
            rustc: "rustc".into(),
            sysroot: "/usr".into(),
            compiler: "rustc 1.96.0".into(),
            linker: "bpf-linker 0.13.0".into(),
        };
        assert_eq!(manifest().other_tools(&here), None);
        here.linker = "bpf-linker 0.14.0".into();
        assert_eq!(
            manifest().other_tools(&here).unwrap(),
            "they were built with bpf-linker 0.13.0, and here is bpf-linker 0.14.0"
        );
    }
}

//! What cargo says of the packages that a manifest needs (`cargo metadata`). Judges none of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::process;

/// All packages.
#[derive(Deserialize)]
pub struct Metadata {
    pub packages: Vec<Package>,
}

#[derive(Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub license: Option<String>,
    pub license_file: Option<PathBuf>,
    /// None in this checkout.
    pub source: Option<String>,
    #[serde(default)]
    pub authors: Vec<String>,
    pub manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    source: Option<String>,
    /// None for the one that cargo knows by itself.
    registry: Option<String>,
}

impl Metadata {
    /// Those that `manifest` needs, in the versions of its lock file.
    pub fn of(manifest: &Path) -> Result<Self> {
        let text = process::stdout(
            process::cargo()
                .args(["metadata", "--locked", "--format-version", "1"])
                .arg("--manifest-path")
                .arg(manifest),
        )?;
        serde_json::from_str(&text).context("cargo metadata is not what it should be")
    }

    /// The registry that cargo knows by itself, as it names sources.
    pub fn registry(&self) -> Option<&str> {
        let dependencies = self
            .packages
            .iter()
            .flat_map(|package| &package.dependencies);
        dependencies
            .filter(|dependency| dependency.registry.is_none())
            .filter_map(|dependency| dependency.source.as_deref())
            .find(|source| source.starts_with("registry+"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargos_own_registry_is_the_one_that_needs_no_name() {
        let metadata: Metadata = serde_json::from_str(
            r#"{"packages": [{"name": "a", "version": "1.0.0", "license": null, "source": null,
            "manifest_path": "Cargo.toml",
            "dependencies": [
                {"source": null, "registry": null},
                {"source": "registry+https://b.example", "registry": "https://b.example"},
                {"source": "registry+https://registry.example/index", "registry": null}
            ]}]}"#,
        )
        .unwrap();
        assert_eq!(
            metadata.registry(),
            Some("registry+https://registry.example/index")
        );
    }
}

//! `cargo xtask dependencies`: licences and sources of all dependencies, by `deny.toml`. It
//! reads that part of the file that it needs; `cargo deny`, which takes minutes to build, reads
//! all of it.

use std::{collections::BTreeSet, fs};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use spdx::{Expression, LicenseId, ParseMode};

use crate::{
    metadata::{Metadata, Package},
    workspace,
};

/// Of everything that is shipped: the workspace, and the kernel side.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "queue-trace-ebpf/Cargo.toml"];

/// `deny.toml`.
#[derive(Deserialize)]
struct Rules {
    licenses: Licenses,
    sources: Sources,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
    exceptions: Vec<Exception>,
}

#[derive(Deserialize)]
struct Exception {
    #[serde(rename = "crate")]
    name: String,
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Level,
    unknown_git: Level,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "kebab-case")]
enum Level {
    Deny,
    Warn,
    Allow,
}

pub fn run() -> Result<()> {
    let text =
        fs::read_to_string(workspace::root().join("deny.toml")).context("cannot read deny.toml")?;
    let rules: Rules = toml::from_str(&text).context("deny.toml is not what it should be")?;
    let mut findings = BTreeSet::new();
    let mut checked = BTreeSet::new();
    for manifest in MANIFESTS {
        let metadata = Metadata::of(&workspace::root().join(manifest))?;
        let registry = metadata
            .registry()
            .context("no package is from a registry")?;
        for package in &metadata.packages {
            findings.extend(rules.findings(package, registry));
            checked.insert((package.name.clone(), package.version.clone()));
        }
    }
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings; deny.toml has the rules", findings.len());
    }
    println!(
        "{} packages: licences and sources are allowed",
        checked.len()
    );
    Ok(())
}

impl Rules {
    fn findings(&self, package: &Package, registry: &str) -> Vec<String> {
        let Package { name, version, .. } = package;
        let mut findings = Vec::new();
        if let Some(source) = &package.source {
            let level = if source.starts_with("git+") {
                &self.sources.unknown_git
            } else {
                &self.sources.unknown_registry
            };
            if source != registry && *level == Level::Deny {
                findings.push(format!("{name} {version} comes from {source}"));
            }
            if let Err(why) = self.licenses.allow(name, package.license.as_deref()) {
                findings.push(format!("{name} {version} {why}"));
            }
        }
        findings
    }
}

impl Licenses {
    /// Why that package may not be used, if it may not.
    fn allow(&self, name: &str, license: Option<&str>) -> Result<(), String> {
        let license = license.ok_or("names no licence")?;
        // Old packages write `/` for `OR`.
        let expression = Expression::parse_mode(license, ParseMode::LAX)
            .map_err(|error| format!("has a licence that cannot be read: {license} ({error})"))?;
        let excepted = self.exceptions.iter().find(|other| other.name == name);
        let is_allowed = |id: LicenseId, or_later: bool| {
            let name = if or_later && id.is_gnu() {
                format!("{}-or-later", id.name)
            } else {
                id.name.to_owned()
            };
            self.allow.contains(&name) || excepted.is_some_and(|other| other.allow.contains(&name))
        };
        let fulfilled = expression.evaluate(|requirement| match &requirement.license {
            spdx::LicenseItem::Spdx { id, or_later } => is_allowed(*id, *or_later),
            spdx::LicenseItem::Other { .. } => false,
        });
        if fulfilled {
            Ok(())
        } else {
            Err(format!("is under {license}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTRY: &str = "registry+https://registry.example/index";

    fn found(name: &str, license: Option<&str>, source: Option<&str>) -> Vec<String> {
        let rules: Rules = toml::from_str(
            r#"
            [licenses]
            allow = ["MIT", "Apache-2.0"]
            exceptions = [{ crate = "copyleft", allow = ["LGPL-2.1-or-later"] }]
            [sources]
            unknown-registry = "deny"
            unknown-git = "deny"
            "#,
        )
        .unwrap();
        let package = serde_json::json!({
            "name": name,
            "version": "1.0.0",
            "license": license,
            "source": source,
            "manifest_path": "Cargo.toml",
            "dependencies": [],
        });
        let package: Package = serde_json::from_value(package).unwrap();
        rules.findings(&package, REGISTRY)
    }

    #[test]
    fn a_choice_that_contains_an_allowed_licence_will_do() {
        for license in ["MIT", "MIT/Apache-2.0", "GPL-3.0-only OR MIT"] {
            assert!(
                found("a", Some(license), Some(REGISTRY)).is_empty(),
                "{license}"
            );
        }
        for license in ["GPL-3.0-only", "MIT AND GPL-3.0-only", "LGPL-2.1-or-later"] {
            let found = found("a", Some(license), Some(REGISTRY));
            assert_eq!(found, [format!("a 1.0.0 is under {license}")]);
        }
        assert_eq!(
            found("a", None, Some(REGISTRY)),
            ["a 1.0.0 names no licence"]
        );
    }

    #[test]
    fn an_exception_is_for_one_package() {
        assert!(found("copyleft", Some("LGPL-2.1-or-later"), Some(REGISTRY)).is_empty());
        assert_eq!(
            found("copyleft", Some("GPL-2.0-only"), Some(REGISTRY)).len(),
            1
        );
    }

    #[test]
    fn other_sources_are_found() {
        for source in [
            "git+https://example.com/a",
            "registry+https://example.com/index",
        ] {
            let found = found("a", Some("MIT"), Some(source));
            assert_eq!(found, [format!("a 1.0.0 comes from {source}")]);
        }
        assert!(found("own", None, None).is_empty());
    }
}

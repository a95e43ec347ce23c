//! The source of the kernel side: which files it is, their hash, and a copy of
//! them as a workspace of their own. Knows nothing of compilers.
//!
//! Why a copy: cargo hashes a package's path into its symbol names, relative to
//! the workspace if it is inside it and absolute if not. `queue-trace-common`
//! is outside `queue-trace-ebpf`, so two checkouts would give two objects. In
//! the copy both are inside. What is hashed is what is copied and built.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use toml::{Table, Value};

use super::hash;
use crate::workspace;

const PACKAGE: &str = "queue-trace-ebpf/Cargo.toml";
const LOCK: &str = "queue-trace-ebpf/Cargo.lock";
const MEMBERS: [&str; 2] = ["queue-trace-ebpf", "queue-trace-common"];
const FILES: [&str; 5] = [
    PACKAGE,
    LOCK,
    "queue-trace-ebpf/src",
    "queue-trace-common/Cargo.toml",
    "queue-trace-common/src",
];

/// The files, by path from the checkout, and the manifest of the copy.
pub struct Source {
    files: BTreeMap<String, Vec<u8>>,
    workspace: String,
}

impl Source {
    pub fn read(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for path in FILES {
            collect(root, path, &mut files)?;
        }
        let checkout = root.join("Cargo.toml");
        let checkout =
            fs::read(&checkout).with_context(|| format!("cannot read {}", checkout.display()))?;
        let workspace = copy_manifest(&parse(&checkout)?, &parse(&files[PACKAGE])?)?;
        Ok(Self { files, workspace })
    }

    /// SHA-256 over every path and content, in the order of the paths.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for (path, content) in &self.files {
            hash.update(format!("{path}\0{}\0", content.len()));
            hash.update(content);
        }
        hash::hex(&hash.finalize())
    }

    /// Writes the copy into `folder`, which it empties first.
    pub fn copy_to(&self, folder: &Path) -> Result<()> {
        workspace::fresh_dir(folder)?;
        for (path, content) in &self.files {
            // The copy has one workspace, so one lock file and one manifest of it.
            match path.as_str() {
                LOCK => write(&folder.join("Cargo.lock"), content)?,
                PACKAGE => {
                    let mut package = parse(content)?;
                    package.remove("workspace");
                    package.remove("profile");
                    write(&folder.join(path), package.to_string().as_bytes())?;
                }
                _ => write(&folder.join(path), content)?,
            }
        }
        write(&folder.join("Cargo.toml"), self.workspace.as_bytes())
    }
}

/// The checkout's workspace, with these two members and the kernel side's profile.
fn copy_manifest(root: &Table, kernel_side: &Table) -> Result<String> {
    let mut workspace = root
        .get("workspace")
        .and_then(Value::as_table)
        .context("the checkout's Cargo.toml has no [workspace]")?
        .clone();
    workspace.remove("default-members");
    workspace.remove("exclude");
    workspace.insert(
        "members".into(),
        Value::Array(MEMBERS.map(Value::from).to_vec()),
    );

    let mut copy = Table::from_iter([("workspace".to_string(), Value::Table(workspace))]);
    if let Some(profile) = kernel_side.get("profile") {
        copy.insert("profile".into(), profile.clone());
    }
    Ok(copy.to_string())
}

fn parse(manifest: &[u8]) -> Result<Table> {
    Ok(String::from_utf8_lossy(manifest).parse()?)
}

fn collect(root: &Path, path: &str, files: &mut BTreeMap<String, Vec<u8>>) -> Result<()> {
    let full = root.join(path);
    if full.is_dir() {
        let entries =
            fs::read_dir(&full).with_context(|| format!("cannot list {}", full.display()))?;
        for entry in entries {
            let name = entry?.file_name();
            collect(root, &format!("{path}/{}", name.to_string_lossy()), files)?;
        }
    } else {
        let content = fs::read(&full).with_context(|| format!("cannot read {}", full.display()))?;
        files.insert(path.to_string(), content);
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKOUT: &str = r#"
        [workspace]
        resolver = "3"
        members = ["queue-trace", "xtask"]
        exclude = ["queue-trace-ebpf"]
        [workspace.package]
        edition = "2024"
        [profile.release]
        strip = true
    "#;

    fn source(files: &[(&str, &str)]) -> Source {
        let files = files
            .iter()
            .map(|(path, text)| (path.to_string(), text.as_bytes().to_vec()));
        Source {
            files: files.collect(),
            workspace: String::new(),
        }
    }

    #[test]
    fn the_hash_covers_paths_and_contents() {
        let hash = source(&[("a", "1"), ("b", "2")]).hash();
        assert_eq!(hash, source(&[("b", "2"), ("a", "1")]).hash());
        for other in [
            [("a", "1"), ("b", "3")],
            [("a", "1"), ("c", "2")],
            [("a", "1b"), ("b", "2")],
        ] {
            assert_ne!(hash, source(&other).hash());
        }
    }

    #[test]
    fn the_copy_has_two_members_and_the_kernel_sides_profile() {
        let checkout = CHECKOUT.parse().unwrap();
        let kernel_side = "[workspace]\n[profile.release]\nlto = true"
            .parse()
            .unwrap();
        let copy: Table = copy_manifest(&checkout, &kernel_side)
            .unwrap()
            .parse()
            .unwrap();
        let expected: Table = r#"
            [workspace]
            resolver = "3"
            members = ["queue-trace-ebpf", "queue-trace-common"]
            [workspace.package]
            edition = "2024"
            [profile.release]
            lto = true
        "#
        .parse()
        .unwrap();
        assert_eq!(copy, expected);
    }
}

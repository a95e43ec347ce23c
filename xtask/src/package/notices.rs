//! The licences and notices of what is linked into the program of one architecture, in one text
//! that every package carries: the crates' own files, and for those that have none the text of
//! the licence that they name.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::{
    release::NAME,
    sbom::{self, PARTS},
    tree,
};
use crate::{
    architecture::Architecture,
    metadata::{Metadata, Package},
    workspace,
};

/// The file's name.
pub const FILE: &str = "third-party-licenses.txt";

/// How the files begin that crates keep licences and notices in.
const NAMES: [&str; 6] = [
    "LICENSE",
    "LICENCE",
    "COPYING",
    "COPYRIGHT",
    "NOTICE",
    "UNLICENSE",
];
/// What a crate contains and does not link.
const NOT_LINKED: [&str; 5] = ["tests", "test", "examples", "benches", "fuzz"];
/// How deep they are looked for: a crate may have the source of a C library in it.
const DEPTH: usize = 2;

/// Adds the licences of what is linked to the files of a package.
pub fn add(root: &Path, notices: &str) -> Result<()> {
    let path = root.join("usr/share/doc").join(NAME).join(FILE);
    tree::write(&path, notices)?;
    tree::permit(root)
}

/// A component, and whose text is whose.
#[derive(Default)]
struct Notices {
    /// Name and version, and the licence that it names.
    components: BTreeMap<String, String>,
    /// Each text once, and whose it is.
    texts: BTreeMap<String, BTreeSet<String>>,
}

/// The text for one architecture's program.
pub fn write(architecture: Architecture) -> Result<String> {
    let mut notices = Notices::default();
    for (package, place, target) in PARTS {
        let manifest = workspace::root().join(place).join("Cargo.toml");
        let target = target.unwrap_or(architecture.target());
        let listing = sbom::listing(package, &manifest, target)?;
        let metadata = Metadata::of(&manifest)?;
        for line in listing.lines() {
            let (_, linked) =
                sbom::parse(line).with_context(|| format!("cargo tree says {line}"))?;
            let known = metadata
                .packages
                .iter()
                .find(|one| one.name == linked.name && one.version == linked.version);
            let known =
                known.with_context(|| format!("cargo metadata does not know {}", linked.name))?;
            if known.source.is_some() {
                notices.package(known, &linked.expression()?)?;
            }
        }
    }
    notices.embedded(architecture)?;
    Ok(notices.text())
}

impl Notices {
    /// A package of cargo's.
    fn package(&mut self, package: &Package, license: &str) -> Result<()> {
        let name = format!("{} {}", package.name, package.version);
        if self.components.contains_key(&name) {
            return Ok(());
        }
        let folder = package.manifest_path.parent().unwrap_or(Path::new("/"));
        let mut files = found(folder, DEPTH)?;
        files.extend(package.license_file.iter().map(|file| folder.join(file)));
        let mut texts = BTreeSet::new();
        for file in files {
            let bytes =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            texts.insert(String::from_utf8_lossy(&bytes).trim().to_owned());
        }
        if texts.is_empty() {
            texts = named(license, &package.authors)?;
        }
        self.add(name, license, texts);
        Ok(())
    }

    /// What is in the program and is no package of cargo's.
    fn embedded(&mut self, architecture: Architecture) -> Result<()> {
        for component in sbom::beside_crates(architecture)? {
            let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
            let name = word(&component["name"]);
            let license = word(&component["licenses"][0]["expression"]);
            let texts = if name == "uplot" {
                let own = workspace::root().join("queue-trace/src/report/vendor/uPlot-LICENSE");
                BTreeSet::from([fs::read_to_string(own)?.trim().to_owned()])
            } else {
                named(&license, &[])?
            };
            self.add(
                format!("{name} {}", word(&component["version"])),
                &license,
                texts,
            );
        }
        Ok(())
    }

    fn add(&mut self, name: String, license: &str, texts: BTreeSet<String>) {
        for text in texts {
            self.texts.entry(text).or_default().insert(name.clone());
        }
        self.components.insert(name, license.to_owned());
    }

    fn text(&self) -> String {
        let mut text = format!(
            "What is linked into {NAME} besides its own code, and under which licences.\n\
             The C library is linked statically; {NAME} can be linked anew with another one from\n\
             its source.\n\n"
        );
        // Writing to a string does not fail.
        for (name, license) in &self.components {
            let _ = writeln!(text, "{name}: {license}");
        }
        for (license, whose) in &self.texts {
            let whose: Vec<_> = whose.iter().map(String::as_str).collect();
            let _ = write!(
                text,
                "\n{}\n{}\n\n{license}\n",
                "=".repeat(78),
                whose.join("\n")
            );
        }
        text
    }
}

/// The files of a crate that have licences and notices.
fn found(folder: &Path, depth: usize) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(folder);
    for entry in entries.with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_ascii_uppercase();
        let path = entry.path();
        if path.is_dir() {
            let linked = !NOT_LINKED.iter().any(|not| name.eq_ignore_ascii_case(not));
            if depth > 0 && linked {
                files.extend(found(&path, depth - 1)?);
            }
        } else if NAMES.iter().any(|begin| name.starts_with(begin)) && !is_code(&path) {
            files.push(path);
        }
    }
    Ok(files)
}

/// `license.rs` is none.
fn is_code(path: &Path) -> bool {
    let code = ["rs", "c", "h", "py", "toml", "json", "html", "sh"];
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| code.contains(&ending))
}

/// The texts of the licences that an expression names, and who holds the rights.
fn named(license: &str, authors: &[String]) -> Result<BTreeSet<String>> {
    let expression =
        spdx::Expression::parse(license).with_context(|| format!("{license} is no licence"))?;
    let mut texts = BTreeSet::new();
    for requirement in expression.requirements() {
        let id = requirement.req.license.id();
        let id = id.with_context(|| format!("{license} has no text"))?;
        let mut text = String::new();
        if !authors.is_empty() {
            let _ = writeln!(text, "Copyright: {}\n", authors.join(", "));
        }
        text.push_str(id.text().trim());
        texts.insert(text);
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real text: everything that the bill lists is named, nothing has no text, and licences
    /// of C sources inside of crates are there.
    #[test]
    fn whatever_is_linked_has_its_text() {
        let text = write(Architecture::HERE).unwrap();
        let (list, texts) = text.split_once("======").unwrap();
        for name in [
            "aya ",
            "tokio ",
            "zstd-sys ",
            "clap ",
            "std ",
            "glibc ",
            "uplot ",
        ] {
            assert!(
                list.lines().any(|line| line.starts_with(name)),
                "{name}\n{list}"
            );
        }
        for component in list.lines().skip(4).filter(|line| !line.is_empty()) {
            let (name, _) = component.split_once(": ").unwrap();
            assert!(texts.lines().any(|line| line == name), "{name} has no text");
        }
        for words in [
            "Permission is hereby granted, free of charge",
            "Apache License",
            "GNU LESSER GENERAL PUBLIC LICENSE",
            "Meta Platforms",
            "Leon Sorokin",
        ] {
            assert!(texts.contains(words), "{words}");
        }
        // What only builds or tests is not in the program.
        assert!(!list.contains("insta "), "{list}");
    }

    #[test]
    fn a_licence_that_is_only_named_has_its_text_and_its_holder() {
        let texts = named("MIT OR Apache-2.0", &["Somebody".to_owned()]).unwrap();
        assert_eq!(texts.len(), 2);
        assert!(
            texts
                .iter()
                .all(|text| text.starts_with("Copyright: Somebody\n"))
        );
        named("no licence", &[]).unwrap_err();
    }
}

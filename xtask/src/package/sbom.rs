//! The bill of materials in CycloneDX's JSON: what is really linked into the program of one
//! architecture, by cargo's own resolution, and what it embeds: the kernel side, the standard
//! library, the C library, the script of the report. Build scripts, macros and tests are not in
//! the program, and not in the list.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    release::{LICENSE, NAME, Release, SUMMARY},
    tree,
};
use crate::{architecture::Architecture, process, workspace};

/// Where each part's packages are locked, and the target that it is compiled for, if it is not
/// that of the package.
pub const PARTS: [(&str, &str, Option<&str>); 2] = [
    (NAME, "", None),
    (
        "queue-trace-ebpf",
        "queue-trace-ebpf",
        Some("bpfel-unknown-none"),
    ),
];

/// Writes the bill of one architecture's program.
pub fn write(architecture: Architecture, release: &Release, folder: &Path) -> Result<PathBuf> {
    let program = format!("pkg:cargo/{NAME}@{}", release.version);
    let mut bill = Bill {
        program,
        components: BTreeMap::new(),
        depends: BTreeMap::new(),
    };
    for (package, place, target) in PARTS {
        let manifest = workspace::root().join(place).join("Cargo.toml");
        let listing = listing(package, &manifest, target.unwrap_or(architecture.target()))?;
        let lock = fs::read_to_string(manifest.with_file_name("Cargo.lock"))?;
        bill.add(&listing, &checksums(&lock)?)?;
    }
    for component in beside_crates(architecture)? {
        bill.embed(component);
    }
    let path = folder.join(format!(
        "{NAME}-{}-{}.cdx.json",
        release.version,
        architecture.target()
    ));
    let text = serde_json::to_string_pretty(&bill.finish(release)?)?;
    tree::write(&path, &(text + "\n"))?;
    Ok(path)
}

/// What is linked into a package, as cargo lists it: lines for [`parse`].
pub fn listing(package: &str, manifest: &Path, target: &str) -> Result<String> {
    process::stdout(
        process::cargo()
            .args(["tree", "--locked", "--edges", "normal,no-proc-macro"])
            .args(["--target", target])
            .args(["--prefix", "depth", "--format", " {p}\t{l}"])
            .args(["--package", package, "--manifest-path"])
            .arg(manifest),
    )
}

/// What becomes the document.
struct Bill {
    /// The program's reference.
    program: String,
    /// By reference.
    components: BTreeMap<String, Value>,
    /// References, and those of what each depends on.
    depends: BTreeMap<String, BTreeSet<String>>,
}

impl Bill {
    /// Adds the packages that `cargo tree` lists.
    fn add(&mut self, listing: &str, checksums: &BTreeMap<(String, String), String>) -> Result<()> {
        let mut above: Vec<String> = Vec::new();
        for line in listing.lines() {
            let (depth, package) =
                parse(line).with_context(|| format!("cargo tree says {line}"))?;
            let reference = package.reference();
            above.truncate(depth);
            match above.last() {
                Some(parent) => self.depend(&parent.clone(), &reference),
                // A part that the program embeds, or the program.
                None if reference != self.program => self.depend(&self.program.clone(), &reference),
                None => {}
            }
            self.depends.entry(reference.clone()).or_default();
            above.push(reference.clone());
            let (name, version) = (package.name.to_owned(), package.version.to_owned());
            let checksum = checksums.get(&(name, version)).map(String::as_str);
            self.components
                .insert(reference, package.component(checksum)?);
        }
        Ok(())
    }

    fn depend(&mut self, parent: &str, on: &str) {
        let depends = self.depends.entry(parent.to_owned()).or_default();
        depends.insert(on.to_owned());
    }

    /// Adds what the program holds itself.
    fn embed(&mut self, component: Value) {
        let reference = component["bom-ref"].as_str().unwrap_or_default().to_owned();
        self.depend(&self.program.clone(), &reference);
        self.depends.entry(reference.clone()).or_default();
        self.components.insert(reference, component);
    }

    fn finish(mut self, release: &Release) -> Result<Value> {
        let mut program = self
            .components
            .remove(&self.program)
            .context("cargo tree does not list the program")?;
        program["type"] = json!("application");
        program["description"] = json!(SUMMARY);
        let depends = self
            .depends
            .iter()
            .map(|(reference, on)| json!({"ref": reference, "dependsOn": on}));
        Ok(json!({
            "bomFormat": "CycloneDX",
            "specVersion": "1.5",
            "version": 1,
            "metadata": {
                "timestamp": release.time()?,
                "tools": {"components": [{
                    "type": "application", "name": "cargo xtask package", "version": release.version,
                }]},
                "component": program,
            },
            "components": self.components.into_values().collect::<Vec<_>>(),
            "dependencies": depends.collect::<Vec<_>>(),
        }))
    }
}

/// A package that cargo resolved.
#[derive(Debug, PartialEq)]
pub struct Package<'a> {
    pub name: &'a str,
    pub version: &'a str,
    license: &'a str,
}

impl Package<'_> {
    /// Its package URL.
    fn reference(&self) -> String {
        // A version's build metadata follows a `+`, which means a space in a URL.
        format!(
            "pkg:cargo/{}@{}",
            self.name,
            self.version.replace('+', "%2B")
        )
    }

    /// Its licence.
    pub fn expression(&self) -> Result<String> {
        // Old packages write `/` for `OR`.
        let license = spdx::Expression::canonicalize(self.license)
            .ok()
            .flatten()
            .unwrap_or_else(|| self.license.to_owned());
        spdx::Expression::parse(&license)
            .with_context(|| format!("{}: {license} is no licence", self.name))?;
        Ok(license)
    }

    fn component(&self, checksum: Option<&str>) -> Result<Value> {
        let license = self.expression()?;
        let reference = self.reference();
        let mut component = component(self.name, self.version, &reference, &license);
        if let Some(checksum) = checksum {
            component["hashes"] = json!([{"alg": "SHA-256", "content": checksum}]);
        }
        Ok(component)
    }
}

fn component(name: &str, version: &str, reference: &str, license: &str) -> Value {
    json!({
        "type": "library",
        "bom-ref": reference,
        "name": name,
        "version": version,
        "scope": "required",
        "licenses": [{"expression": license}],
        "purl": reference,
    })
}

/// A line of `cargo tree`: how deep it is, and the package.
pub fn parse(line: &str) -> Option<(usize, Package<'_>)> {
    let (package, license) = line.split_once('\t')?;
    let mut words = package.split(' ');
    let depth = words.next()?.parse().ok()?;
    Some((
        depth,
        Package {
            name: words.next()?,
            version: words.next()?.strip_prefix('v')?,
            // Marks what was listed before.
            license: license.trim_end_matches(" (*)"),
        },
    ))
}

/// Those of a lock file, by name and version.
fn checksums(lock: &str) -> Result<BTreeMap<(String, String), String>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Locked>,
    }
    #[derive(Deserialize)]
    struct Locked {
        name: String,
        version: String,
        /// None in this checkout.
        checksum: Option<String>,
    }
    let lock: Lock = toml::from_str(lock).context("Cargo.lock is not what it should be")?;
    let locked = lock.package.into_iter();
    Ok(locked
        .filter_map(|one| Some(((one.name, one.version), one.checksum?)))
        .collect())
}

/// What is in the program and is no package of cargo's.
pub fn beside_crates(architecture: Architecture) -> Result<[Value; 3]> {
    let rustc = process::stdout(Command::new(process::rustc()).arg("--version"))?;
    let rust = rustc.split(' ').nth(1).context("rustc names no version")?;
    let package = if architecture == Architecture::HERE {
        "libc6-dev".to_owned()
    } else {
        format!("libc6-dev-{}-cross", architecture.debian())
    };
    let glibc = process::stdout(Command::new("dpkg-query").args([
        "--show",
        "--showformat=${Version}",
        &package,
    ]))?;
    let vendor = workspace::root().join("queue-trace/src/report/vendor/README.md");
    let about = fs::read_to_string(vendor)?;
    let uplot = about
        .strip_prefix("uPlot ")
        .and_then(|rest| rest.split_once(','))
        .context("uPlot's README names no version")?
        .0;
    Ok([
        component(
            "std",
            rust,
            &format!("pkg:generic/rust-std@{rust}"),
            LICENSE,
        ),
        component(
            "glibc",
            &glibc,
            &format!("pkg:deb/debian/{package}@{}", glibc.replace('+', "%2B")),
            "LGPL-2.1-or-later",
        ),
        component("uplot", uplot, &format!("pkg:npm/uplot@{uplot}"), "MIT"),
    ])
}

#[cfg(test)]
mod tests {
    use cyclonedx_bom::{models::bom::Bom, validation::Validate};

    use super::*;

    #[test]
    fn lines_of_cargo_tree_are_understood() {
        let package = |name, version, license| Package {
            name,
            version,
            license,
        };
        assert_eq!(
            parse("0 queue-trace v0.1.0 (/src/queue-trace)\tMIT OR Apache-2.0"),
            Some((0, package("queue-trace", "0.1.0", "MIT OR Apache-2.0")))
        );
        assert_eq!(
            parse("12 zstd-sys v2.0.16+zstd.1.5.7\tMIT/Apache-2.0 (*)"),
            Some((
                12,
                package("zstd-sys", "2.0.16+zstd.1.5.7", "MIT/Apache-2.0")
            ))
        );
        assert_eq!(parse("error: no such package"), None);
    }

    /// The real bill: another implementation reads it and finds nothing wrong, everything that
    /// is named is there, and what only builds or tests is not.
    #[test]
    fn the_bill_is_valid_and_whole() {
        let folder = std::env::temp_dir().join(format!("queue-trace-sbom-{}", std::process::id()));
        workspace::fresh_dir(&folder).unwrap();
        let release = Release::here().unwrap();
        let path = write(Architecture::HERE, &release, &folder).unwrap();
        let text = fs::read_to_string(path).unwrap();
        let bom = Bom::parse_from_json_v1_5(text.as_bytes()).unwrap();
        let validated = bom.validate();
        assert!(validated.passed(), "{validated:?}");

        let bill: Value = serde_json::from_str(&text).unwrap();
        let components = bill["components"].as_array().unwrap();
        let mut known: BTreeSet<_> = components
            .iter()
            .map(|one| &one["bom-ref"])
            .map(Value::to_string)
            .collect();
        assert_eq!(known.len(), components.len());
        known.insert(bill["metadata"]["component"]["bom-ref"].to_string());
        let mut reached = BTreeSet::new();
        for edge in bill["dependencies"].as_array().unwrap() {
            assert!(known.contains(&edge["ref"].to_string()), "{edge}");
            for on in edge["dependsOn"].as_array().unwrap() {
                assert!(known.contains(&on.to_string()), "{edge}");
                reached.insert(on.to_string());
            }
        }
        assert_eq!(
            reached.len(),
            components.len(),
            "each is there for another's sake"
        );
        let named = |name: &str| components.iter().find(|one| one["name"] == name);
        for name in [
            "aya",
            "aya-ebpf",
            "queue-trace-common",
            "queue-trace-ebpf",
            "glibc",
            "std",
            "uplot",
        ] {
            assert!(named(name).is_some(), "{name}");
        }
        for name in ["syn", "serde_derive", "live-tests", "xtask"] {
            assert!(named(name).is_none(), "{name}");
        }
        for one in components {
            // What comes from the registry is known to the last bit.
            let own = one["name"].as_str().unwrap().starts_with(NAME);
            let is_crate = one["purl"].as_str().unwrap().starts_with("pkg:cargo/");
            assert_eq!(one["hashes"].is_array(), is_crate && !own, "{one}");
        }
        fs::remove_dir_all(folder).unwrap();
    }
}

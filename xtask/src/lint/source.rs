//! The Rust files of the checkout, as text. Knows nothing of their meaning.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Files by their paths below the checkout.
pub struct Sources(BTreeMap<PathBuf, String>);

/// Where they are.
const FOLDERS: [&str; 5] = [
    "queue-trace",
    "queue-trace-common",
    "queue-trace-ebpf",
    "tests",
    "xtask",
];

impl Sources {
    pub fn read(root: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        for folder in FOLDERS {
            read_folder(root, Path::new(folder), &mut files)?;
        }
        if files.is_empty() {
            bail!("no sources in {}", root.display());
        }
        Ok(Self(files))
    }

    /// Made-up files.
    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let file = |(path, text): &(&str, &str)| (PathBuf::from(path), (*text).to_owned());
        Self(files.iter().map(file).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Path, &str)> {
        self.0
            .iter()
            .map(|(path, text)| (path.as_path(), text.as_str()))
    }

    pub fn get(&self, path: &Path) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }
}

/// Build folders hold what others wrote.
fn read_folder(root: &Path, folder: &Path, files: &mut BTreeMap<PathBuf, String>) -> Result<()> {
    let path = root.join(folder);
    let listing = fs::read_dir(&path).with_context(|| format!("cannot list {}", path.display()))?;
    for entry in listing {
        let entry = entry?;
        let name = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if entry.file_name() != "target" {
                read_folder(root, &name, files)?;
            }
        } else if name.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(entry.path())
                .with_context(|| format!("cannot read {}", name.display()))?;
            files.insert(name, text);
        }
    }
    Ok(())
}

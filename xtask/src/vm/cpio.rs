//! Writes cpio archives in the `newc` format, which the kernel unpacks as its
//! first file system. The kernel takes several, one after the other.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER: u32 = 0o020_000;

/// An archive in memory. All files belong to root, and missing parents are made.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    names: BTreeSet<String>,
}

impl Archive {
    pub fn directory(&mut self, path: &str) {
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    pub fn file(&mut self, path: &str, content: &[u8], permissions: u32) {
        self.entry(path, REGULAR | permissions, (0, 0), content);
    }

    pub fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK | 0o777, (0, 0), target.as_bytes());
    }

    pub fn character_device(&mut self, path: &str, major: u32, minor: u32) {
        self.entry(path, CHARACTER | 0o600, (major, minor), &[]);
    }

    /// A file of this machine.
    pub fn copy(&mut self, path: &str, from: &Path, permissions: u32) -> Result<()> {
        let content =
            std::fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
        self.file(path, &content, permissions);
        Ok(())
    }

    pub fn contains(&self, path: &str) -> bool {
        self.names.contains(path.trim_start_matches('/'))
    }

    pub fn finish(mut self) -> Vec<u8> {
        self.names.clear();
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// What is already there stays: the first of two with one name counts.
    fn entry(&mut self, path: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        let name = path.trim_start_matches('/');
        if let Some((parent, _)) = name.rsplit_once('/') {
            self.directory(parent);
        }
        if !self.names.insert(name.to_string()) {
            return;
        }
        let inode = self.names.len() as u32;
        let links = 1;
        let header = [
            inode,
            mode,
            0, // user
            0, // group
            links,
            0, // time
            content.len() as u32,
            0, // device, major and minor
            0,
            major,
            minor,
            name.len() as u32 + 1,
            0, // checksum, unused in this format
        ];
        self.bytes.extend(b"070701");
        for field in header {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn cpio_lists_what_was_written() {
        let mut archive = Archive::default();
        archive.file("/etc/deep/hosts", b"12345", 0o644);
        archive.file("/etc/deep/hosts", b"too late", 0o644);
        archive.symlink("/usr", ".");
        archive.character_device("/dev/console", 5, 1);
        assert!(archive.contains("/etc/deep"));

        let mut cpio = Command::new("cpio")
            .args(["--list", "--verbose", "--quiet", "--numeric-uid-gid"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        cpio.stdin
            .take()
            .unwrap()
            .write_all(&archive.finish())
            .unwrap();
        let listing = String::from_utf8(cpio.wait_with_output().unwrap().stdout).unwrap();
        let columns = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            (words[0].to_string(), words[words.len() - 1].to_string())
        };
        let expected = [
            ("drwxr-xr-x", "etc"),
            ("drwxr-xr-x", "etc/deep"),
            ("-rw-r--r--", "etc/deep/hosts"),
            ("lrwxrwxrwx", "."),
            ("drwxr-xr-x", "dev"),
            ("crw-------", "dev/console"),
        ];
        assert_eq!(
            listing.lines().map(columns).collect::<Vec<_>>(),
            expected.map(|(mode, name)| (mode.to_string(), name.to_string()))
        );
    }
}

//! The Debian package: dpkg-deb packs the tree. It depends on nothing, as the program is static.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{
    release::{DESCRIPTION, MAINTAINER, NAME, Release, SUMMARY},
    tree::{self, SETTINGS},
};
use crate::{architecture::Architecture, process, workspace};

/// Packs a tree that [`tree::lay_out`] made.
pub fn pack(
    root: &Path,
    architecture: Architecture,
    release: &Release,
    folder: &Path,
) -> Result<PathBuf> {
    let debian = root.join("DEBIAN");
    let installed = tree::size(root)?.div_ceil(1024);
    let version = &release.version;
    let description =
        DESCRIPTION.map(|line| format!(" {}\n", if line.is_empty() { "." } else { line }));
    let control = format!(
        "Package: {NAME}\nVersion: {version}\nArchitecture: {}\nMaintainer: {MAINTAINER}\n\
         Section: net\nPriority: optional\nInstalled-Size: {installed}\nDescription: {SUMMARY}\n{}",
        architecture.debian(),
        description.concat()
    );
    tree::write(&debian.join("control"), &control)?;
    tree::write(
        &debian.join("conffiles"),
        &format!("{}\n", SETTINGS.join("\n")),
    )?;
    let own = workspace::root().join("packaging/deb");
    for script in ["postinst", "prerm", "postrm"] {
        tree::put(&own.join(script), &debian.join(script), 0o755)?;
    }
    let documents = root.join("usr/share/doc").join(NAME);
    tree::write(&documents.join("copyright"), &copyright()?)?;
    let changes = documents.join("changelog");
    tree::write(&changes, &changelog(release)?)?;
    tree::gzip(&changes)?;
    let overrides = root.join("usr/share/lintian/overrides").join(NAME);
    tree::put(&own.join("lintian-overrides"), &overrides, 0o644)?;
    tree::write(&debian.join("md5sums"), &md5sums(root)?)?;
    let deb = folder.join(format!("{NAME}_{version}_{}.deb", architecture.debian()));
    process::run(
        Command::new("dpkg-deb")
            // The same files give the same bytes.
            .env("SOURCE_DATE_EPOCH", release.date.to_string())
            .args(["--root-owner-group", "-Zxz", "--build"])
            .args([root, &deb]),
    )?;
    fs::remove_dir_all(debian)?;
    Ok(deb)
}

/// In Debian's form: what changed is in CHANGELOG.md, beside it.
fn changelog(release: &Release) -> Result<String> {
    let date = jiff::Timestamp::from_second(release.date.into())?;
    Ok(format!(
        "{NAME} ({}) unstable; urgency=medium\n\n  * CHANGELOG.md lists what changed.\n\n -- {MAINTAINER}  {}\n",
        release.version,
        date.strftime("%a, %d %b %Y %H:%M:%S +0000")
    ))
}

/// What `dpkg --verify` compares files with.
fn md5sums(root: &Path) -> Result<String> {
    let mut files = Vec::new();
    for file in tree::files(root)? {
        let file = file.strip_prefix(root)?.to_owned();
        if !file.starts_with("DEBIAN") && !SETTINGS.contains(&&*format!("/{}", file.display())) {
            files.push(file);
        }
    }
    process::stdout(Command::new("md5sum").current_dir(root).args(files))
}

fn copyright() -> Result<String> {
    let mit = fs::read_to_string(workspace::root().join("LICENSE-MIT"))?;
    let indented = mit.lines().map(|line| {
        if line.is_empty() {
            " .".to_owned()
        } else {
            format!(" {line}")
        }
    });
    Ok(format!(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: queue-trace\n\n\
         Files: *\nCopyright: 2026 the queue-trace developers\nLicense: MIT or Apache-2.0\n\n\
         License: MIT\n{}\n\nLicense: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n",
        indented.collect::<Vec<_>>().join("\n")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A package of a program that only writes its pages: dpkg-deb takes it, and it holds what
    /// it should, where it should be.
    #[test]
    fn a_package_holds_the_service_and_its_settings() {
        let folder = std::env::temp_dir().join(format!("queue-trace-deb-{}", std::process::id()));
        workspace::fresh_dir(&folder).unwrap();
        let release = Release {
            version: "1.2.3".into(),
            date: 1_700_000_000,
        };
        let packed = || {
            let root = tree::example(&folder);
            let deb = pack(&root, Architecture::Aarch64, &release, &folder).unwrap();
            (fs::read(&deb).unwrap(), deb)
        };
        let (first, deb) = packed();
        assert!(deb.ends_with("queue-trace_1.2.3_arm64.deb"));
        let shown =
            |option: &str| process::stdout(Command::new("dpkg-deb").arg(option).arg(&deb)).unwrap();
        let listing = shown("--contents");
        for line in [
            "-rwxr-xr-x root/root",
            "./usr/bin/queue-trace",
            "./usr/lib/systemd/system/queue-trace.service",
            "./usr/share/man/man1/queue-trace.1.gz",
            "./usr/share/bash-completion/completions/queue-trace",
            "./usr/share/doc/queue-trace/copyright",
        ] {
            assert!(listing.contains(line), "{line}\n{listing}");
        }
        for setting in SETTINGS {
            assert!(
                listing.contains(&format!(".{setting}")),
                "{setting}\n{listing}"
            );
        }
        assert!(shown("--info").contains("Architecture: arm64"));
        assert_eq!(packed().0, first, "the same files give the same bytes");
        fs::remove_dir_all(folder).unwrap();
    }
}

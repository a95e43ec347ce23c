//! The Debian package: dpkg-deb packs the tree. It depends on nothing, as the program is static.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
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
    for (name, script) in [("postinst", POSTINST), ("prerm", PRERM), ("postrm", POSTRM)] {
        let path = debian.join(name);
        tree::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let documents = root.join("usr/share/doc").join(NAME);
    tree::write(&documents.join("copyright"), &copyright()?)?;
    tree::put(
        &workspace::root().join("CHANGELOG.md"),
        &documents.join("changelog"),
        0o644,
    )?;
    tree::gzip(&documents.join("changelog"))?;
    let overrides = root.join("usr/share/lintian/overrides").join(NAME);
    tree::write(
        &overrides,
        "# It must run on every release, whatever libraries there are.\nqueue-trace: statically-linked-binary [usr/bin/queue-trace]\n\
         # It is no part of Debian, so there is no bug that it closes.\nqueue-trace: initial-upload-closes-no-bugs *\n",
    )?;
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
         Files: *\nCopyright: the queue-trace developers\nLicense: MIT or Apache-2.0\n\n\
         License: MIT\n{}\n\nLicense: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n",
        indented.collect::<Vec<_>>().join("\n")
    ))
}

const POSTINST: &str = "#!/bin/sh\nset -e\nif [ \"$1\" = configure ] && [ -d /run/systemd/system ]; then\n    \
    systemctl --system daemon-reload || true\n    \
    # Only where somebody started it: the new program takes over.\n    \
    if [ -n \"$2\" ]; then systemctl try-restart queue-trace.service || true; fi\nfi\n";
const PRERM: &str = "#!/bin/sh\nset -e\nif [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then\n    \
    systemctl stop queue-trace.service || true\nfi\n";
const POSTRM: &str = "#!/bin/sh\nset -e\nif [ \"$1\" = remove ] && [ -d /run/systemd/system ]; then\n    \
    systemctl --system daemon-reload || true\nfi\nif [ \"$1\" = purge ]; then\n    \
    rm -rf /var/lib/private/queue-trace /var/lib/queue-trace\nfi\n";

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

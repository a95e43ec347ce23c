//! The Debian package: dpkg-deb packs the tree. It depends on nothing, as the program is static.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::tree::{self, SETTINGS};
use crate::{architecture::Architecture, process, workspace};

const NAME: &str = "queue-trace";
const SUMMARY: &str = "tells which TCP listener refuses connections, and why";
const DESCRIPTION: &str = " queue-trace watches the kernel's TCP SYN queue and accept queue with eBPF. It\n \
    says which listener refuses connections, what the kernel did to each packet,\n \
    why, and what to change. Its agent serves metrics to Prometheus and\n \
    OpenTelemetry, and records each incident with the minute before it.\n \
    .\n \
    The service queue-trace.service is not enabled when it is installed.\n";

/// Packs a tree that [`tree::lay_out`] made.
pub fn pack(
    root: &Path,
    architecture: Architecture,
    version: &str,
    folder: &Path,
) -> Result<PathBuf> {
    let debian = root.join("DEBIAN");
    let installed = tree::size(root)?.div_ceil(1024);
    let control = format!(
        "Package: {NAME}\nVersion: {version}\nArchitecture: {}\nMaintainer: queue-trace developers <queue-trace@localhost>\n\
         Section: net\nPriority: optional\nInstalled-Size: {installed}\nDescription: {SUMMARY}\n{DESCRIPTION}",
        architecture.debian()
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
    process::run(
        Command::new("gzip")
            .args(["--force", "--no-name", "-9"])
            .arg(documents.join("changelog")),
    )?;
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
            .env("SOURCE_DATE_EPOCH", "0")
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
        let program = folder.join("program");
        let script =
            "#!/bin/sh\ncase $1 in man) echo page > $2/queue-trace.1;; *) echo script;; esac\n";
        tree::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let root = folder.join("tree");
        let packed = || {
            tree::lay_out(&root, &program, &program).unwrap();
            let deb = pack(&root, Architecture::Aarch64, "1.2.3", &folder).unwrap();
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

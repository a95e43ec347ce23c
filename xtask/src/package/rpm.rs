//! The RPM package, in the format that Enterprise Linux 8 and all later ones read. It requires
//! nothing but a shell for its scripts, as the program is static.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rpm::{BuildConfig, CompressionWithLevel, FileOptions, PackageBuilder};

use super::{
    release::{DESCRIPTION, LICENSE, MAINTAINER, NAME, Release, SUMMARY},
    tree::{self, SETTINGS},
};
use crate::{architecture::Architecture, workspace};

/// Where Debian's shells look and where those of other distributions do.
const MOVED: (&str, &str) = (
    "/usr/share/zsh/vendor-completions/",
    "/usr/share/zsh/site-functions/",
);
/// Folders that are the package's own, or that no package needs to own where the shell that looks
/// there is not installed.
const FOLDERS: [&str; 9] = [
    "/etc/queue-trace",
    "/usr/share/bash-completion",
    "/usr/share/bash-completion/completions",
    "/usr/share/fish",
    "/usr/share/fish/vendor_completions.d",
    "/usr/share/zsh",
    "/usr/share/zsh/site-functions",
    "/usr/share/doc/queue-trace",
    "/usr/share/licenses/queue-trace",
];
const DOCUMENTATION: [&str; 2] = ["/usr/share/doc/", "/usr/share/man/"];
const LICENSES: [&str; 2] = ["LICENSE-APACHE", "LICENSE-MIT"];

/// Packs a tree that [`tree::lay_out`] made.
pub fn pack(
    root: &Path,
    architecture: Architecture,
    release: &Release,
    folder: &Path,
) -> Result<PathBuf> {
    let script = |name| {
        let path = workspace::root().join("packaging/rpm").join(name);
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    // Sentences begin with a capital letter there.
    let summary = SUMMARY.replacen("tells", "Tells", 1);
    let mut builder = PackageBuilder::new(
        NAME,
        &release.version,
        LICENSE,
        architecture.name(),
        &summary,
    );
    builder
        .using_config(
            BuildConfig::v4()
                .compression(CompressionWithLevel::Zstd(10))
                .source_date(release.date),
        )
        .release("1")
        .group("System/Monitoring")
        .description(DESCRIPTION.join("\n"))
        .packager(MAINTAINER)
        .build_host("localhost")
        .add_changelog_entry(
            format!("{MAINTAINER} - {}-1", release.version),
            "- CHANGELOG.md in the documentation lists what changed.",
            release.date,
        )
        .post_install_script(script("post")?)
        .pre_uninstall_script(script("preun")?)
        .post_uninstall_script(script("postun")?);
    for folder in FOLDERS {
        builder.with_dir_entry(FileOptions::dir(folder))?;
    }
    for file in LICENSES {
        let options = FileOptions::new(format!("/usr/share/licenses/{NAME}/{file}"));
        let options = options.permissions(0o644).license();
        builder.with_file(workspace::root().join(file), options)?;
    }
    for file in tree::files(root)? {
        let place = format!("/{}", file.strip_prefix(root)?.display());
        let place = place.replace(MOVED.0, MOVED.1);
        let mut options = FileOptions::new(&place);
        if SETTINGS.contains(&place.as_str()) {
            options = options.config().noreplace();
        } else if DOCUMENTATION.iter().any(|folder| place.starts_with(folder)) {
            options = options.doc();
        }
        builder
            .with_file(&file, options)
            .with_context(|| format!("cannot pack {}", file.display()))?;
    }
    let package = builder.build().context("cannot make the RPM package")?;
    package
        .write_to(folder)
        .with_context(|| format!("cannot write to {}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_holds_the_service_and_its_settings() {
        let folder = std::env::temp_dir().join(format!("queue-trace-rpm-{}", std::process::id()));
        workspace::fresh_dir(&folder).unwrap();
        let root = tree::example(&folder);
        let release = Release {
            version: "1.2.3".into(),
            date: 1_700_000_000,
        };
        let path = pack(&root, Architecture::Aarch64, &release, &folder).unwrap();
        assert!(
            path.ends_with("queue-trace-1.2.3-1.aarch64.rpm"),
            "{path:?}"
        );
        let package = rpm::Package::open(&path).unwrap();
        package.verify_digests().unwrap();
        let about = &package.metadata;
        let files = about.get_file_entries().unwrap();
        let of = |path: &str| {
            let found = files.iter().find(|file| file.path().ends_with(&path[1..]));
            found.unwrap_or_else(|| panic!("no {path}"))
        };
        for path in [
            "/usr/lib/systemd/system/queue-trace.service",
            "/usr/share/man/man1/queue-trace.1.gz",
            "/usr/share/zsh/site-functions/_queue-trace",
            "/usr/share/doc/queue-trace/README.md",
            "/usr/share/licenses/queue-trace/LICENSE-MIT",
        ] {
            assert_eq!(of(path).mode().permissions(), 0o644, "{path}");
        }
        assert_eq!(of("/usr/bin/queue-trace").mode().permissions(), 0o755);
        for path in SETTINGS {
            let flags = of(path).flags();
            assert!(
                flags.contains(rpm::FileFlags::CONFIG | rpm::FileFlags::NOREPLACE),
                "{path}"
            );
        }
        for required in about.get_requires().unwrap() {
            let own = ["rpmlib(", "config(queue-trace)", "/bin/sh"];
            assert!(
                own.iter().any(|own| required.to_string().starts_with(own)),
                "{required}"
            );
        }
        let first = fs::read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let root = tree::example(&folder);
        pack(&root, Architecture::Aarch64, &release, &folder).unwrap();
        assert!(
            fs::read(&path).unwrap() == first,
            "the same files, the same bytes"
        );
        fs::remove_dir_all(folder).unwrap();
    }
}

//! `cargo xtask package --check`: whether the packages hold. The distributions' own checkers
//! read them, and in a clean root of Debian they are installed, started, upgraded and removed.
//! The image is unpacked, and its program started in it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::{
    deb,
    programs::{Programs, is_for},
    release::{NAME, Release},
    rpm, tree,
};
use crate::{architecture::Architecture, clean_root::CleanRoot, process, workspace};

/// The distributions' checkers, and what reads units and pages.
const PACKAGES: [&str; 5] = ["lintian", "rpm", "rpmlint", "man-db", "systemd"];

/// Checks those of the artefacts that are packages.
pub fn packages(
    programs: &Programs,
    release: &Release,
    made: &[PathBuf],
    folder: &Path,
) -> Result<()> {
    let root = CleanRoot::make(&folder.join("root"), &PACKAGES)?;
    let given = root.path().join("given");
    let next = given.join("next");
    tree::make_folder(&next)?;
    // The same files as a later version, with other settings.
    let later = Release {
        version: format!("{}.1", release.version),
        date: release.date,
    };
    let here = programs.target == Architecture::HERE;
    let mut scripts = Vec::new();
    for path in made {
        let (name, script) = match path.extension().and_then(|extension| extension.to_str()) {
            Some("deb") => ("the Debian package", include_str!("check/deb.sh")),
            Some("rpm") => ("the RPM package", include_str!("check/rpm.sh")),
            _ => continue,
        };
        let file = path.file_name().unwrap_or_default();
        tree::put(path, &given.join(file), 0o644)?;
        scripts.push((name, script));
        if !here {
            continue;
        }
        programs.laid_out(folder, |laid_out| {
            let settings = laid_out.join("etc/queue-trace/agent.toml");
            let text = fs::read_to_string(&settings)? + "# Of the later version.\n";
            tree::write(&settings, &text)?;
            if path.extension().is_some_and(|extension| extension == "deb") {
                deb::pack(laid_out, programs.target, &later, &next)
            } else {
                rpm::pack(laid_out, programs.target, &later, &next)
            }
        })?;
    }
    tree::put(
        &workspace::root().join("packaging/rpm/rpmlint.toml"),
        &given.join("rpmlint.toml"),
        0o644,
    )?;
    if !here {
        let machine = programs.target.debian();
        let names = [programs.target.name(), machine].join(" ");
        let script = format!("names='{names}'\n{}", include_str!("check/contents.sh"));
        process::run(&mut root.script(&script)?).context("a package does not hold")?;
        for (what, _) in scripts {
            println!("{what} for {machine}: checked, and not installed: it does not start here");
        }
        return Ok(());
    }
    let common = include_str!("check/common.sh");
    for (what, script) in scripts {
        process::run(&mut root.script(&format!("{common}{script}"))?)
            .with_context(|| format!("{what} does not hold"))?;
        println!("{what}: checked, installed, started, upgraded, removed");
    }
    Ok(())
}

/// Unpacks the image of this machine's architecture as a runtime does, by digest, and starts its
/// program with nothing else around it.
pub fn image(image: &Path, folder: &Path) -> Result<()> {
    let layout = folder.join("layout");
    workspace::fresh_dir(&layout)?;
    process::run(
        Command::new("tar")
            .arg("-xf")
            .arg(image)
            .arg("-C")
            .arg(&layout),
    )?;
    let blob = |about: &Value| {
        let digest = about["digest"].as_str().context("no digest")?;
        anyhow::Ok(layout.join("blobs").join(digest.replace(':', "/")))
    };
    let read = |path: &Path| anyhow::Ok(serde_json::from_slice::<Value>(&fs::read(path)?)?);
    let index = read(&layout.join("index.json"))?;
    let manifests = index["manifests"].as_array().context("no manifests")?;
    for architecture in Architecture::ALL {
        let about = manifests
            .iter()
            .find(|about| about["platform"]["architecture"] == architecture.debian())
            .with_context(|| format!("no image for {}", architecture.debian()))?;
        let manifest = read(&blob(about)?)?;
        let config = read(&blob(&manifest["config"])?)?;
        let root = folder.join("unpacked");
        workspace::fresh_dir(&root)?;
        for layer in manifest["layers"].as_array().context("no layers")? {
            process::run(
                Command::new("tar")
                    .arg("-xzf")
                    .arg(blob(layer)?)
                    .arg("-C")
                    .arg(&root),
            )?;
        }
        let entry = config["config"]["Entrypoint"][0]
            .as_str()
            .context("no entrypoint")?;
        let program = root.join(entry.trim_start_matches('/'));
        if !is_for(&program, architecture)? {
            bail!(
                "{entry} of {} is for another machine",
                architecture.debian()
            );
        }
        if architecture == Architecture::HERE {
            let mut run = process::with_own_mounts(ENTER)?;
            let metrics = process::stdout(run.arg(&root).arg(entry))?;
            if !metrics.contains("queue_trace_build_info") {
                bail!("the agent of the image prints no metrics:\n{metrics}");
            }
        }
        fs::remove_dir_all(&root)?;
    }
    fs::remove_dir_all(&layout)?;
    println!("{NAME}'s image: one index for both architectures, unpacked, started");
    Ok(())
}

/// Starts the agent $2 in the root $1, with the file systems that a container runtime gives.
const ENTER: &str = r#"
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /sys "$1/sys"
chroot=$(PATH=$PATH:/usr/sbin:/sbin command -v chroot)
exec env -i PATH=/usr/bin "$chroot" "$1" "$2" agent --once 1s"#;

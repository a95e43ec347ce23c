//! The container image, in the layout of the Open Container Initiative: nothing but the program,
//! for every architecture in one index. No daemon and no registry is asked.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::tree;
use crate::{architecture::Architecture, process, workspace};

/// Packs a program for each architecture into one index.
pub fn pack(programs: &[(Architecture, PathBuf)], version: &str, folder: &Path) -> Result<PathBuf> {
    let layout = folder.join("image");
    workspace::fresh_dir(&layout.join("blobs/sha256"))?;
    let mut manifests = Vec::new();
    for (architecture, program) in programs {
        let mut manifest = manifest(*architecture, program, version, &layout)?;
        manifest["platform"] = json!({"architecture": architecture.debian(), "os": "linux"});
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": version});
        manifests.push(manifest);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    tree::write(&layout.join("index.json"), &index.to_string())?;
    tree::write(
        &layout.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )?;
    let image = folder.join(format!("queue-trace-{version}-image.tar"));
    tar(&layout, &image)?;
    fs::remove_dir_all(&layout)?;
    Ok(image)
}

/// The image of one architecture; gives what an index says of it.
fn manifest(
    architecture: Architecture,
    program: &Path,
    version: &str,
    layout: &Path,
) -> Result<Value> {
    let root = layout.join("root");
    workspace::fresh_dir(&root)?;
    tree::put(program, &root.join("usr/bin/queue-trace"), 0o755)?;
    // Where the agent writes, and where others are mounted.
    for folder in [
        "var/lib/queue-trace",
        "var/log",
        "etc/queue-trace",
        "run",
        "tmp",
        "proc",
        "sys",
    ] {
        tree::make_folder(&root.join(folder))?;
    }
    let layer = layout.join("layer.tar");
    tar(&root, &layer)?;
    fs::remove_dir_all(&root)?;
    let diff = digest(&fs::read(&layer)?);
    process::run(Command::new("gzip").args(["--no-name", "-9"]).arg(&layer))?;
    let packed = layout.join("layer.tar.gz");
    let layer = blob(
        layout,
        &fs::read(&packed)?,
        "application/vnd.oci.image.layer.v1.tar+gzip",
    )?;
    fs::remove_file(packed)?;
    let labels = json!({
        "org.opencontainers.image.title": "queue-trace",
        "org.opencontainers.image.description": "Which TCP listener refuses connections, and why",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
    });
    let config = json!({
        "architecture": architecture.debian(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/usr/bin/queue-trace"],
            "Env": ["PATH=/usr/bin"],
            "ExposedPorts": {"9801/tcp": {}},
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [diff]},
        "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask package"}],
    });
    let config = blob(
        layout,
        config.to_string().as_bytes(),
        "application/vnd.oci.image.config.v1+json",
    )?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config,
        "layers": [layer],
        "annotations": labels,
    });
    blob(
        layout,
        manifest.to_string().as_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    )
}

fn digest(bytes: &[u8]) -> String {
    let sum = Sha256::digest(bytes);
    let digits: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}

/// Puts a blob into the layout; gives what others say of it.
fn blob(layout: &Path, bytes: &[u8], media_type: &str) -> Result<Value> {
    let digest = digest(bytes);
    let path = layout.join("blobs").join(digest.replace(':', "/"));
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(json!({"mediaType": media_type, "digest": digest, "size": bytes.len()}))
}

/// A tar of what is in a folder: the same files give the same bytes.
fn tar(folder: &Path, to: &Path) -> Result<()> {
    process::run(
        Command::new("tar")
            .current_dir(folder)
            .args(["--create", "--sort=name", "--mtime=@0", "--format=ustar"])
            .args([
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--mode=go=rX,u+rw,a-s",
            ])
            .arg("--file")
            .arg(to)
            .arg("."),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every digest that is named leads to a blob of that digest and size.
    #[test]
    fn the_image_is_whole() {
        let folder = std::env::temp_dir().join(format!("queue-trace-image-{}", std::process::id()));
        workspace::fresh_dir(&folder).unwrap();
        let program = folder.join("program");
        fs::write(&program, "not really").unwrap();
        let programs = Architecture::ALL.map(|architecture| (architecture, program.clone()));
        let image = pack(&programs, "1.2.3", &folder).unwrap();
        let first = fs::read(&image).unwrap();
        let unpacked = folder.join("unpacked");
        workspace::fresh_dir(&unpacked).unwrap();
        process::run(
            Command::new("tar")
                .arg("-xf")
                .arg(&image)
                .arg("-C")
                .arg(&unpacked),
        )
        .unwrap();
        let read = |about: &Value| {
            let digest_of = about["digest"].as_str().unwrap();
            let bytes = fs::read(unpacked.join("blobs").join(digest_of.replace(':', "/"))).unwrap();
            assert_eq!(digest(&bytes), digest_of);
            assert_eq!(bytes.len() as u64, about["size"].as_u64().unwrap());
            bytes
        };
        let index: Value =
            serde_json::from_slice(&fs::read(unpacked.join("index.json")).unwrap()).unwrap();
        let manifests = index["manifests"].as_array().unwrap();
        let platforms: Vec<_> = manifests
            .iter()
            .map(|one| one["platform"]["architecture"].as_str().unwrap())
            .collect();
        assert_eq!(platforms, ["amd64", "arm64"]);
        for about in manifests {
            let manifest: Value = serde_json::from_slice(&read(about)).unwrap();
            read(&manifest["config"]);
            read(&manifest["layers"][0]);
        }
        // The same program, the same bytes.
        assert_eq!(
            fs::read(pack(&programs, "1.2.3", &folder).unwrap()).unwrap(),
            first
        );
        fs::remove_dir_all(folder).unwrap();
    }
}

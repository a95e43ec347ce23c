//! The container image, in the layout of the Open Container Initiative: nothing but the program,
//! for every architecture in one index. No daemon and no registry is asked.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{
    notices,
    release::{LICENSE, NAME, Release},
    tree,
};
use crate::{architecture::Architecture, workspace};

/// A program and the licences of what is linked into it.
pub struct Content {
    pub program: PathBuf,
    pub notices: String,
}

/// Packs a program for each architecture into one index.
pub fn pack(
    programs: &[(Architecture, Content)],
    release: &Release,
    folder: &Path,
) -> Result<PathBuf> {
    let layout = folder.join("image");
    workspace::fresh_dir(&layout.join("blobs/sha256"))?;
    let mut manifests = Vec::new();
    for (architecture, content) in programs {
        let mut manifest = manifest(*architecture, content, release, &layout)?;
        manifest["platform"] = json!({"architecture": architecture.debian(), "os": "linux"});
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": release.version});
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
    let image = folder.join(format!("{NAME}-{}-image.tar", release.version));
    tree::tar(&layout, ".", release.date, &image)?;
    fs::remove_dir_all(&layout)?;
    Ok(image)
}

/// The image of one architecture; gives what an index says of it.
fn manifest(
    architecture: Architecture,
    content: &Content,
    release: &Release,
    layout: &Path,
) -> Result<Value> {
    let root = layout.join("root");
    workspace::fresh_dir(&root)?;
    tree::put(&content.program, &root.join("usr/bin/queue-trace"), 0o755)?;
    let licences = root.join("usr/share/doc/queue-trace").join(notices::FILE);
    tree::write(&licences, &content.notices)?;
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
    tree::tar(&root, ".", release.date, &layer)?;
    fs::remove_dir_all(&root)?;
    let diff = digest(&fs::read(&layer)?);
    let packed = tree::gzip(&layer)?;
    let layer = blob(
        layout,
        &fs::read(&packed)?,
        "application/vnd.oci.image.layer.v1.tar+gzip",
    )?;
    fs::remove_file(packed)?;
    let labels = json!({
        "org.opencontainers.image.title": NAME,
        "org.opencontainers.image.description": "Which TCP listener refuses connections, and why",
        "org.opencontainers.image.version": release.version,
        "org.opencontainers.image.licenses": LICENSE,
    });
    let created = release.time()?;
    let config = json!({
        "architecture": architecture.debian(),
        "os": "linux",
        "created": created,
        "config": {
            "Entrypoint": ["/usr/bin/queue-trace"],
            "Env": ["PATH=/usr/bin"],
            "ExposedPorts": {"9801/tcp": {}},
            "Labels": labels,
        },
        "rootfs": {"type": "layers", "diff_ids": [diff]},
        "history": [{"created": created, "created_by": "cargo xtask package"}],
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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process;

    /// Every digest that is named leads to a blob of that digest and size.
    #[test]
    fn the_image_is_whole() {
        let folder = std::env::temp_dir().join(format!("queue-trace-image-{}", std::process::id()));
        workspace::fresh_dir(&folder).unwrap();
        let program = folder.join("program");
        fs::write(&program, "not really").unwrap();
        let programs = Architecture::ALL.map(|architecture| {
            let content = Content {
                program: program.clone(),
                notices: "of others".to_owned(),
            };
            (architecture, content)
        });
        let release = Release {
            version: "1.2.3".into(),
            date: 1_700_000_000,
        };
        let image = pack(&programs, &release, &folder).unwrap();
        let first = fs::read(&image).unwrap();
        let unpacked = folder.join("unpacked");
        workspace::fresh_dir(&unpacked).unwrap();
        let mut tar = Command::new("tar");
        process::run(tar.arg("-xf").arg(&image).arg("-C").arg(&unpacked)).unwrap();
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
            fs::read(pack(&programs, &release, &folder).unwrap()).unwrap(),
            first
        );
        fs::remove_dir_all(folder).unwrap();
    }
}

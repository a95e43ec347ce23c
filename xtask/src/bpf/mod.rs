//! `cargo xtask build-ebpf`: the kernel side, from source to the committed
//! objects, one for each architecture, or the check that they are that source's.

mod build;
mod hash;
mod manifest;
mod source;
mod toolchain;

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context, Result, bail};
pub use hash::sha256;
use manifest::Manifest;
use source::Source;
pub use toolchain::{LLVM_PREFIX, Toolchain, clean, linker_version};

use crate::{architecture::Architecture, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail if the committed objects are not those of the source.
    #[arg(long)]
    pub check: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let source = Source::read(&workspace::root())?;
    if args.check {
        check(&source)
    } else {
        write(&source)
    }
}

fn write(source: &Source) -> Result<()> {
    let toolchain = Toolchain::find()?;
    fs::create_dir_all(folder())
        .with_context(|| format!("cannot create {}", folder().display()))?;
    let mut objects = BTreeMap::new();
    for architecture in Architecture::ALL {
        let object = build::object(source, &toolchain, architecture)?;
        let path = object_path(architecture);
        fs::write(&path, &object).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{} ({} bytes)", path.display(), object.len());
        objects.insert(architecture.name().to_string(), sha256(&object));
    }
    let manifest = Manifest::of(source, &toolchain, objects);
    manifest.write(&manifest_path())?;
    println!("built with {} and {}", manifest.compiler, manifest.linker);
    Ok(())
}

/// The source's hash first, as it costs nothing; the bytes where this machine
/// has the tools that the object was built with.
fn check(source: &Source) -> Result<()> {
    let stale = "run `cargo xtask build-ebpf` and commit queue-trace/bpf";
    let committed = Manifest::read(&manifest_path()).context(stale)?;
    if committed.source != source.hash() {
        bail!("the committed BPF objects were built from another source; {stale}");
    }
    let mut objects = Vec::new();
    for architecture in Architecture::ALL {
        let path = object_path(architecture);
        let object =
            fs::read(&path).with_context(|| format!("cannot read {}; {stale}", path.display()))?;
        if committed.objects.get(architecture.name()) != Some(&sha256(&object)) {
            bail!(
                "the committed BPF object for {} is not the one its manifest describes; {stale}",
                architecture.name()
            );
        }
        objects.push((architecture, object));
    }

    let toolchain = Toolchain::find()?;
    if let Some(difference) = committed.other_tools(&toolchain) {
        println!(
            "the source's hash is that of the committed objects; the bytes were not compared, as {difference}"
        );
        return Ok(());
    }
    for (architecture, object) in objects {
        if build::object(source, &toolchain, architecture)? != object {
            bail!(
                "the committed BPF object for {} is not what the source and {} give; {stale}",
                architecture.name(),
                toolchain.compiler
            );
        }
    }
    println!("the committed BPF objects are those of the source, byte for byte");
    Ok(())
}

fn folder() -> PathBuf {
    workspace::root().join("queue-trace/bpf")
}

fn object_path(architecture: Architecture) -> PathBuf {
    folder().join(format!("queue-trace.{}.bpf.o", architecture.name()))
}

fn manifest_path() -> PathBuf {
    folder().join("manifest.toml")
}

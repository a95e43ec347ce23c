//! `cargo xtask build-ebpf`: the kernel side, from source to the committed
//! object, or the check that the committed object is that source's.

mod build;
mod hash;
mod manifest;
mod source;
mod toolchain;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::workspace;
use manifest::Manifest;
use source::Source;

pub use toolchain::{LLVM_PREFIX, Toolchain, linker_version};

#[derive(clap::Args)]
pub struct Args {
    /// Write nothing; fail if the committed object is not that of the source.
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
    let object = build::object(source, &toolchain)?;
    let manifest = Manifest::of(source, &toolchain, &object);

    fs::create_dir_all(folder())
        .with_context(|| format!("cannot create {}", folder().display()))?;
    fs::write(object_path(), &object)
        .with_context(|| format!("cannot write {}", object_path().display()))?;
    manifest.write(&manifest_path())?;
    println!(
        "{} ({} bytes, {})",
        object_path().display(),
        object.len(),
        manifest.compiler
    );
    Ok(())
}

/// The source's hash first, as it costs nothing; the bytes where this machine
/// has the tools that the object was built with.
fn check(source: &Source) -> Result<()> {
    let stale = "run `cargo xtask build-ebpf` and commit queue-trace/bpf";
    let committed = Manifest::read(&manifest_path()).context(stale)?;
    let object = fs::read(object_path())
        .with_context(|| format!("cannot read {}; {stale}", object_path().display()))?;
    if committed.source != source.hash() {
        bail!("the committed BPF object was built from another source; {stale}");
    }
    if committed.object != hash::sha256(&object) {
        bail!("the committed BPF object is not the one its manifest describes; {stale}");
    }

    let toolchain = Toolchain::find()?;
    if let Some(difference) = committed.other_tools(&toolchain) {
        println!(
            "the source's hash is that of the committed object; the bytes were not compared, as {difference}"
        );
        return Ok(());
    }
    if build::object(source, &toolchain)? != object {
        bail!(
            "the committed BPF object is not what the source and {} give; {stale}",
            toolchain.compiler
        );
    }
    println!("the committed BPF object is that of the source, byte for byte");
    Ok(())
}

fn folder() -> PathBuf {
    workspace::root().join("queue-trace/bpf")
}

fn object_path() -> PathBuf {
    folder().join("queue-trace.bpf.o")
}

fn manifest_path() -> PathBuf {
    folder().join("manifest.toml")
}

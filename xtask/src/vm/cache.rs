//! Kernels on disk, ready to boot: `kernels/NAME/VERSION/` in the user's cache,
//! and beside it which version is current. Fetches what is missing.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{
    archive::{Archive, Package},
    kernels::Kernel,
    modules,
};
use crate::workspace;

/// A kernel that was fetched.
pub struct Image {
    /// The package's version.
    pub version: String,
    pub vmlinuz: PathBuf,
    /// A cpio archive.
    pub modules: PathBuf,
}

/// The newest version that the archive has; the cached one if it does not answer.
pub fn fetch(kernel: &Kernel) -> Result<Image> {
    let _lock = workspace::lock(&workspace::cache()?)?;
    fetch_newest(kernel).or_else(|error| match cached(kernel)? {
        Some(image) => {
            eprintln!("warning: {error:#}");
            eprintln!(
                "warning: using {} {} from the cache instead",
                kernel.name, image.version
            );
            Ok(image)
        }
        None => Err(error),
    })
}

/// The cached version, whatever the archive has by now; fetched if there is none.
pub fn cached_or_fetched(kernel: &Kernel) -> Result<Image> {
    match cached(kernel)? {
        Some(image) => Ok(image),
        None => fetch(kernel),
    }
}

/// The version that was fetched last, if any.
pub fn cached(kernel: &Kernel) -> Result<Option<Image>> {
    let Ok(version) = fs::read_to_string(folder(kernel)?.join("current")) else {
        return Ok(None);
    };
    let image = image(kernel, version)?;
    Ok((image.vmlinuz.exists() && image.modules.exists()).then_some(image))
}

fn fetch_newest(kernel: &Kernel) -> Result<Image> {
    let archive = Archive::update(kernel)?;
    let package = archive.newest(kernel)?;
    let image = image(kernel, package.version.clone())?;
    if !(image.vmlinuz.exists() && image.modules.exists()) {
        eprintln!("fetching {} ({})", package.name, package.version);
        store(&archive, &package, &image)
            .with_context(|| format!("cannot fetch {}", package.name))?;
    }
    fs::write(folder(kernel)?.join("current"), &image.version)
        .context("cannot write the kernel cache")?;
    Ok(image)
}

/// Unpacks the package next to where the image goes, and keeps what a boot needs.
fn store(archive: &Archive, package: &Package, image: &Image) -> Result<()> {
    let folder = image.vmlinuz.parent().context("the image has no folder")?;
    let unpacked = folder.join("unpacked");
    workspace::fresh_dir(&unpacked)?;
    archive.unpack(package, &unpacked)?;
    let release = package.release();

    // Newer packages have it all under usr.
    let (lib, usr) = (unpacked.join("lib"), unpacked.join("usr/lib"));
    if !lib.join("modules").exists() {
        fs::create_dir_all(&lib)?;
        fs::rename(usr.join("modules"), lib.join("modules"))
            .context("the package has no modules")?;
    }
    let kernel = [
        unpacked.join("boot").join(format!("vmlinuz-{release}")),
        lib.join("modules").join(release).join("vmlinuz"),
    ];
    let Some(kernel) = kernel.iter().find(|path| path.exists()) else {
        bail!("the package has no kernel");
    };
    let modules = modules::archive(&unpacked, release, &unpacked.join("subset"))?;
    fs::write(&image.modules, modules)
        .with_context(|| format!("cannot write {}", image.modules.display()))?;
    fs::rename(kernel, &image.vmlinuz)
        .with_context(|| format!("cannot write {}", image.vmlinuz.display()))?;
    fs::remove_dir_all(&unpacked).with_context(|| format!("cannot remove {}", unpacked.display()))
}

fn image(kernel: &Kernel, version: String) -> Result<Image> {
    let folder = folder(kernel)?.join(&version);
    Ok(Image {
        vmlinuz: folder.join("vmlinuz"),
        modules: folder.join(format!("modules-{}.cpio", modules::list_id())),
        version,
    })
}

fn folder(kernel: &Kernel) -> Result<PathBuf> {
    Ok(Path::new(&workspace::cache()?)
        .join("kernels")
        .join(kernel.name))
}

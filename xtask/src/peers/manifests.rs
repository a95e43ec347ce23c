//! kustomize and Helm render the manifests, Helm lints the chart, and Kubernetes' schemas take
//! what comes out.

use std::{fs, process::Command};

use anyhow::{Context, Result};

use super::fetched;
use crate::{process, workspace};

pub fn run() -> Result<()> {
    let (python, helm) = (fetched::python()?, fetched::helm()?);
    let folder = workspace::target().join("peers/manifests");
    workspace::fresh_dir(&folder)?;
    // The base with all components. kustomize takes only paths relative to the file.
    let packaging = workspace::root().join("packaging");
    let copied = folder.join("kubernetes");
    let mut copy = Command::new("cp");
    process::run(
        copy.arg("-r")
            .arg(packaging.join("kubernetes"))
            .arg(&copied),
    )?;
    let overlay = copied.join("all");
    fs::create_dir(&overlay)?;
    fs::write(
        overlay.join("kustomization.yaml"),
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [../base]\n\
         components: [../components/pod-monitor, ../components/prometheus-rule]\n",
    )?;
    let kustomized = process::stdout(
        Command::new(python.join("kubectl"))
            .arg("kustomize")
            .arg(&overlay),
    )
    .context("kustomize does not take the manifests")?;

    let chart = packaging.join("helm/queue-trace");
    // Its caches are not the user's.
    let helm = |words: &[&str]| {
        let mut command = Command::new(&helm);
        command
            .env("HELM_CACHE_HOME", folder.join("helm"))
            .env("HELM_CONFIG_HOME", folder.join("helm"));
        command.args(words);
        command
    };
    process::stdout(helm(&["lint", "--strict"]).arg(&chart)).context("Helm lints the chart")?;
    let rendered = process::stdout(
        helm(&["template", "queue-trace"])
            .arg(&chart)
            .args(["--set", "podMonitor.enabled=true"]),
    )
    .context("Helm does not take the chart")?;

    let files = ["kustomized.yaml", "chart.yaml"].map(|name| folder.join(name));
    fs::write(&files[0], kustomized)?;
    fs::write(&files[1], rendered)?;
    let script = folder.join("manifests.py");
    fs::write(&script, include_str!("manifests.py"))?;
    process::run(Command::new(python.join("python")).arg(script).args(files))
        .context("Kubernetes would not take the manifests")
}

//! A collector of OpenTelemetry takes the agent's metrics and logs: rotel, which prints what
//! arrives.

use std::{
    fs,
    path::Path,
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    fetched,
    running::{PATIENCE, Peer, free_address},
};
use crate::{process, workspace};

/// What it prints of a metric of each kind, and of a refusal.
const ARRIVES: [&str; 5] = [
    "queue_trace.host.outcomes",
    "queue_trace.accept_queue.limit",
    "DataType: Sum",
    "DataType: Gauge",
    "queue_trace.refusal",
];

pub fn run(program: &Path) -> Result<()> {
    let rotel = fetched::rotel()?;
    let folder = workspace::target().join("peers/collector");
    workspace::fresh_dir(&folder)?;
    let log = folder.join("rotel.log");
    let (http, grpc, agent) = (free_address()?, free_address()?, free_address()?);
    let _rotel = Peer::start(
        Command::new(rotel)
            .args([
                "start",
                "--exporter",
                "blackhole",
                "--debug-log-verbosity",
                "detailed",
            ])
            .args(["--debug-log", "metrics", "--debug-log", "logs"])
            .args(["--otlp-http-endpoint", &http.to_string()])
            .args(["--otlp-grpc-endpoint", &grpc.to_string()]),
        &log,
    )?;
    let _agent = Peer::start(
        process::as_root(program)?
            .args(["agent", "--look", "1s", "--listen", &agent.to_string()])
            .args(["--otlp", &format!("http://{http}")]),
        &folder.join("agent.log"),
    )?;
    // Until it is attached, then something to tell.
    wait(&log, &ARRIVES[..1])?;
    process::stdout(process::as_root(program)?.arg("demo")).context("no refusals to tell")?;
    wait(&log, &ARRIVES)?;
    println!("rotel takes the metrics and the refusals");
    Ok(())
}

fn wait(log: &Path, for_all: &[&str]) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = fs::read(log)?;
        let text = String::from_utf8_lossy(&text);
        let missing: Vec<_> = for_all
            .iter()
            .filter(|words| !text.contains(**words))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{missing:?} never arrived; see {}", log.display());
        }
        sleep(Duration::from_millis(300));
    }
}

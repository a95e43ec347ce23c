//! `cargo xtask peers`: the agent beside the real programs that take what it tells. Prometheus
//! scrapes it, and every query of every rule and dashboard runs; promtool tests the rules;
//! VictoriaMetrics takes its OTLP; systemd reads its unit. With `--all` also what takes longer
//! to fetch: DuckDB and ClickHouse read recordings, Kubernetes' schemas and Helm read the
//! manifests, a collector takes metrics and logs. Installs nothing: packages are unpacked into the cache.

mod collector;
mod fetched;
mod manifests;
mod running;
mod warehouse;

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use running::{PATIENCE, Peer, free_address};
use serde_json::Value;

use crate::{
    apt::Apt,
    architecture::Architecture,
    artifacts::{self, For},
    process, workspace,
};

#[derive(Default, clap::Args)]
pub struct Args {
    /// Only what needs no kernel to attach to: rules, dashboards, the unit.
    #[arg(long)]
    pub files: bool,
    /// Also DuckDB, ClickHouse, kustomize, Helm, Kubernetes' schemas and a collector, from the registries of
    /// Python and Node.js (a download of some 400 MB).
    #[arg(long)]
    pub all: bool,
    /// This program instead of one that is built for it.
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
}

/// The release that has them, and runs on older ones.
const SUITE: &str = "sid";
const PACKAGES: [&str; 3] = ["prometheus", "promtool", "victoria-metrics"];

pub fn run(args: &Args) -> Result<()> {
    let tools = cached_or_fetched()?;
    let rules = workspace::root().join("packaging/prometheus");
    let promtool = tools.join("promtool");
    let check = |words: &[&str], file: &str| {
        process::run(
            Command::new(&promtool)
                .current_dir(&rules)
                .args(words)
                .arg(file),
        )
    };
    check(&["check", "rules"], "queue-trace.rules.yml")?;
    check(&["test", "rules"], "queue-trace.test.yml")?;
    let program = match &args.program {
        Some(program) => program.clone(),
        None => artifacts::program(For::Here)?,
    };
    unit(&program)?;
    if !args.files {
        scraped(&tools, &program)?;
    }
    if args.all {
        warehouse::run()?;
        manifests::run()?;
        if !args.files {
            collector::run(&program)?;
        }
    }
    println!("all peers take what the agent tells");
    Ok(())
}

/// The folder of their programs.
fn cached_or_fetched() -> Result<PathBuf> {
    let cache = workspace::cache()?;
    let folder = cache.join("peers").join(SUITE);
    if folder.exists() {
        return Ok(folder);
    }
    let _lock = workspace::lock(&cache)?;
    let new = cache.join("peers").join("new");
    workspace::fresh_dir(&new)?;
    eprintln!("fetching {} of Debian {SUITE}", PACKAGES.join(", "));
    // Static programs: nothing that they depend on is needed.
    let apt = Apt::update(Architecture::HERE, &[SUITE])?;
    let mut download = apt.command("apt-get");
    process::stdout(download.current_dir(&new).arg("download").args(PACKAGES))?;
    let unpacked = new.join("unpacked");
    for deb in fs::read_dir(&new)? {
        let deb = deb?.path();
        if deb.extension().is_some_and(|extension| extension == "deb") {
            let mut unpack = Command::new("dpkg-deb");
            process::stdout(unpack.arg("--extract").arg(deb).arg(&unpacked))?;
        }
    }
    fs::rename(unpacked.join("usr/bin"), &folder).context("cannot keep the peers")?;
    fs::remove_dir_all(new).context("cannot remove the downloaded packages")?;
    Ok(folder)
}

/// systemd understands the unit, and finds little that it exposes.
fn unit(program: &Path) -> Result<()> {
    let folder = workspace::target().join("peers/unit");
    workspace::fresh_dir(&folder)?;
    let text = fs::read_to_string(workspace::root().join("packaging/systemd/queue-trace.service"))?;
    let installed = "/usr/bin/queue-trace";
    let text = text.replace(installed, &program.to_string_lossy());
    // The manual page is not installed here.
    let lines = text
        .lines()
        .filter(|line| !line.starts_with("Documentation="));
    let unit = folder.join("queue-trace.service");
    fs::write(&unit, lines.collect::<Vec<_>>().join("\n"))?;
    let verified = process::output(Command::new("systemd-analyze").arg("verify").arg(&unit))?;
    let complaints = String::from_utf8_lossy(&verified.stderr);
    if !verified.status.success() || complaints.contains("queue-trace.service") {
        bail!("systemd-analyze verify: {complaints}");
    }
    // From 0, safe, to 100.
    process::stdout(
        Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--threshold=45"])
            .arg(&unit),
    )
    .context("the unit exposes too much")?;
    Ok(())
}

/// Prometheus scrapes the agent, VictoriaMetrics takes its OTLP; both answer every query.
fn scraped(tools: &Path, program: &Path) -> Result<()> {
    let folder = workspace::target().join("peers/run");
    workspace::fresh_dir(&folder)?;
    let (agent, prometheus, victoria) = (free_address()?, free_address()?, free_address()?);
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [{}]\n\
         scrape_configs:\n  - job_name: queue-trace\n    static_configs: [{{targets: ['{agent}']}}]\n",
        workspace::root()
            .join("packaging/prometheus/queue-trace.rules.yml")
            .display()
    );
    let configured = folder.join("prometheus.yml");
    fs::write(&configured, config)?;
    let _victoria = Peer::start(
        Command::new(tools.join("victoria-metrics"))
            .arg(format!("-httpListenAddr={victoria}"))
            .arg(format!(
                "-storageDataPath={}",
                folder.join("victoria").display()
            ))
            .arg("-opentelemetry.usePrometheusNaming"),
        &folder.join("victoria.log"),
    )?;
    let _prometheus = Peer::start(
        Command::new(tools.join("prometheus"))
            .arg(format!("--config.file={}", configured.display()))
            .arg(format!(
                "--storage.tsdb.path={}",
                folder.join("prometheus").display()
            ))
            .arg(format!("--web.listen-address={prometheus}")),
        &folder.join("prometheus.log"),
    )?;
    let _agent = Peer::start(
        process::as_root(program)?
            .args(["agent", "--look", "1s", "--listen", &agent.to_string()])
            .args(["--otlp", &format!("http://{victoria}/opentelemetry")]),
        &folder.join("agent.log"),
    )?;
    let promtool = tools.join("promtool");
    let ask = |server: SocketAddr, query: &str| {
        process::stdout(
            Command::new(&promtool)
                .args(["query", "instant", &format!("http://{server}")])
                .arg(query),
        )
    };
    let comes = |server: SocketAddr, query: &str| {
        let deadline = Instant::now() + PATIENCE;
        while !ask(server, query).is_ok_and(|answer| !answer.trim().is_empty()) {
            if Instant::now() > deadline {
                bail!("{query} never came; see the logs in {}", folder.display());
            }
            sleep(Duration::from_millis(300));
        }
        anyhow::Ok(())
    };
    // By both ways under the same name.
    for server in [prometheus, victoria] {
        comes(server, "queue_trace_build_info")?;
        comes(server, "queue_trace_host_outcomes_total")?;
        comes(server, "queue_trace_accept_queue_limit")?;
    }
    comes(prometheus, "up == 1")?;
    let queries = queries()?;
    for query in &queries {
        ask(prometheus, query).with_context(|| format!("Prometheus refuses {query}"))?;
    }
    println!("{} queries of rules and dashboards ran", queries.len());
    Ok(())
}

/// All queries of the dashboards, with their variables filled in. The rules are evaluated by
/// Prometheus, whose failures are one query more.
fn queries() -> Result<Vec<String>> {
    let mut queries =
        vec!["sum(prometheus_rule_evaluation_failures_total) == 0 or vector(0)".to_owned()];
    for file in fs::read_dir(workspace::root().join("packaging/grafana"))? {
        let dashboard: Value = serde_json::from_slice(&fs::read(file?.path())?)?;
        let panels = dashboard["panels"]
            .as_array()
            .context("a dashboard without panels")?;
        for panel in panels {
            for target in panel["targets"].as_array().into_iter().flatten() {
                let query = target["expr"]
                    .as_str()
                    .context("a target without a query")?;
                let query = query
                    .replace("$__rate_interval", "1m")
                    .replace("$instance", ".*")
                    .replace("$port", ".*");
                if query.contains('$') {
                    bail!("a variable that nobody fills in: {query}");
                }
                queries.push(query);
            }
        }
    }
    if queries.len() < 10 {
        bail!("only {} queries were found", queries.len());
    }
    Ok(queries)
}

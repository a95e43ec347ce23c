//! `cargo xtask vm`: real kernels under QEMU. This file holds the command line;
//! the table of kernels is in `kernels`.

mod archive;
mod cache;
mod checked;
mod console;
mod cpio;
mod guest;
mod kernels;
mod machine;
pub mod matrix;
mod modules;
mod page;
pub mod qemu;
mod survey;
mod system;
mod userland;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use guest::Guest;
pub use kernels::Attach;
use machine::End;
pub use machine::Size;
pub use system::System;

#[derive(clap::Subcommand)]
pub enum Command {
    /// Fetch the newest version of kernels; of all if none is named.
    Fetch { kernels: Vec<String> },
    /// List the kernels, and which version of each is in the cache.
    List,
    /// Boot a kernel, run a command in it, exit with the command's status (124
    /// at the time limit, 125 if the kernel died or complained).
    Run(RunArgs),
    /// Build what the live tests on kernels run.
    Build,
    /// Run the live tests on kernels; exit with 1 if any fails.
    Test(matrix::Args),
    /// Ask `queue-trace check` on kernels, on all if none is named, and write docs/kernels.md.
    Kernels { kernels: Vec<String> },
}

#[derive(clap::Args)]
pub struct RunArgs {
    kernel: String,
    #[command(flatten)]
    size: Size,
    /// A program to put in the guest's /bin, with the libraries it needs.
    #[arg(long = "bin", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// An environment variable of the command.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    environment: Vec<(String, String)>,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

pub fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Fetch { kernels } => fetch(&kernels).map(|()| ExitCode::SUCCESS),
        Command::List => list().map(|()| ExitCode::SUCCESS),
        Command::Run(args) => boot(args),
        Command::Build => matrix::build().map(|()| ExitCode::SUCCESS),
        Command::Test(args) => Ok(if matrix::run(&args)? {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }),
        Command::Kernels { kernels } => survey::run(&kernels).map(|()| ExitCode::SUCCESS),
    }
}

fn fetch(names: &[String]) -> Result<()> {
    for kernel in kernels::select(names)? {
        let image = cache::fetch(kernel).with_context(|| format!("no kernel {}", kernel.name))?;
        println!("{:<15} {}", kernel.name, image.version);
    }
    Ok(())
}

fn list() -> Result<()> {
    for kernel in kernels::KERNELS {
        let version = cache::cached(kernel)?.map(|image| image.version);
        println!(
            "{:<15} {:<12} {}",
            kernel.name,
            kernel.flavour,
            version.as_deref().unwrap_or("-")
        );
    }
    Ok(())
}

/// A command for a machine, from another part of this program.
pub struct Run<'a> {
    pub kernel: &'a str,
    pub size: Size,
    pub programs: Vec<PathBuf>,
    pub trees: Vec<(PathBuf, String)>,
    pub command: Vec<String>,
}

impl Run<'_> {
    /// Boots the machine, shows what the command prints, and says whether it went well.
    pub fn boot(self) -> Result<bool> {
        let kernel = kernels::find(self.kernel)?;
        let image = cache::cached_or_fetched(kernel)?;
        self.size.check(kernel.architecture)?;
        let guest = Guest {
            architecture: kernel.architecture,
            programs: self.programs,
            trees: self.trees,
            environment: Vec::new(),
            command: self.command,
        };
        let name = format!("{}-bench", kernel.name);
        let run = machine::run(&image, &guest, &self.size, &name, true)?;
        if let Some(fault) = run.fault() {
            eprintln!("error: {}: {fault}", kernel.name);
            return Ok(false);
        }
        Ok(run.end == End::Exit(0))
    }
}

fn boot(args: RunArgs) -> Result<ExitCode> {
    let kernel = kernels::find(&args.kernel)?;
    let image = cache::cached_or_fetched(kernel)?;
    args.size.check(kernel.architecture)?;
    let guest = Guest {
        architecture: kernel.architecture,
        programs: args.programs,
        trees: Vec::new(),
        environment: args.environment,
        command: args.command,
    };
    let name = format!("{}-run-{}", kernel.name, std::process::id());
    let run = machine::run(&image, &guest, &args.size, &name, true)?;

    let fault = run.fault();
    if let Some(fault) = &fault {
        eprintln!("error: {}: {fault}", kernel.name);
    }
    eprintln!(
        "{} {}, {:.1} s, console: {}",
        kernel.name,
        image.version,
        run.took.as_secs_f64(),
        run.log.display()
    );
    Ok(match (run.end, fault) {
        (End::TimeOut, _) => ExitCode::from(124),
        (End::Exit(status), None) => ExitCode::from(status),
        _ => ExitCode::from(125),
    })
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("not NAME=VALUE".into()),
    }
}

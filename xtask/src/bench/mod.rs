//! `cargo xtask bench`: what queue-trace costs, beside what others cost, on this
//! machine's kernel or in virtual machines. Builds, fetches and starts; the program that
//! measures is tests/bench.

mod rivals;

use std::{ffi::OsString, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    architecture::Architecture,
    artifacts::{self, For},
    process,
    vm::{self, Attach, Size},
};

#[derive(clap::Args)]
pub struct Args {
    /// Kernels to boot; without one, this machine's own.
    kernels: Vec<String>,
    /// How queue-trace attaches.
    #[arg(long, value_enum)]
    attach: Option<Attach>,
    /// Leave out the other tools, which take a download of 70 MB.
    #[arg(long)]
    alone: bool,
    /// Virtual machines run by the host's clock, instead of one that counts
    /// instructions. Needed for several CPUs.
    #[arg(long)]
    no_icount: bool,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 1)]
    smp: u32,
    /// Arguments of the program that measures, like `--rounds 3` or `--soak 600`.
    #[arg(last = true)]
    rest: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let rivals = if args.alone {
        None
    } else {
        Some(rivals::cached_or_fetched().context("cannot fetch the other tools (see --alone)")?)
    };
    if args.kernels.is_empty() {
        let program = artifacts::program(For::Here)?;
        let bench = artifacts::bench(For::Here)?;
        let attach = args.attach.unwrap_or(Attach::Tracepoint);
        let mut command = process::as_root(bench)?;
        command.args(words(args, &program, attach, rivals.as_deref()));
        if args.rest.iter().any(|word| word == "--idle") {
            command.arg("--node-exporter").arg(rivals::node_exporter()?);
        }
        return process::run(&mut command);
    }
    let program = artifacts::program(For::Guest(Architecture::X86_64))?;
    let bench = artifacts::bench(For::Guest(Architecture::X86_64))?;
    let attach = args.attach.unwrap_or(Attach::Fentry);
    let icount = !args.no_icount && args.smp == 1;
    for kernel in &args.kernels {
        println!("Linux {kernel}, {}", attach.name());
        let mut command = vec![OsString::from("bench")];
        let guest_rivals = rivals.as_ref().map(|_| Path::new("/rivals"));
        command.extend(words(
            args,
            Path::new("/bin/queue-trace"),
            attach,
            guest_rivals,
        ));
        if icount {
            command.push("--icount".into());
        }
        let run = vm::Run {
            kernel,
            size: Size {
                smp: args.smp,
                mem: "3G".into(),
                timeout: 6 * 3600,
                icount,
            },
            programs: vec![program.clone(), bench.clone()],
            trees: rivals
                .iter()
                .map(|root| (root.clone(), "rivals".into()))
                .collect(),
            command: command
                .into_iter()
                .map(|word| word.to_string_lossy().into_owned())
                .collect(),
        };
        if !run.boot()? {
            bail!("the measurement on {kernel} failed");
        }
    }
    Ok(())
}

fn words(args: &Args, program: &Path, attach: Attach, rivals: Option<&Path>) -> Vec<OsString> {
    let mut words = vec!["--program".into(), program.into()];
    words.extend(["--attach".into(), attach.name().into()]);
    if let Some(rivals) = rivals {
        words.extend(["--rivals".into(), rivals.into()]);
    }
    words.extend(args.rest.iter().map(OsString::from));
    words
}

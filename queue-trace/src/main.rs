//! Parses the command line, runs, and prints what went wrong.

#[cfg(target_os = "linux")]
mod memory;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, error::ErrorKind};
use queue_trace::{Cli, stderr::tell};

fn main() -> ExitCode {
    #[cfg(target_os = "linux")]
    memory::share();
    let cli = Cli::parse();
    if let Err(message) = cli.trace.check() {
        Cli::command()
            .error(ErrorKind::TooManyValues, message)
            .exit();
    }
    let status_of_errors = cli.status_of_errors();
    #[cfg(target_os = "linux")]
    memory::exit_with(status_of_errors);
    match queue_trace::run(&cli) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            tell(format_args!("queue-trace: {error:#}"));
            ExitCode::from(status_of_errors)
        }
    }
}

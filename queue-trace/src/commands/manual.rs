//! What comes with the program: completions for shells, and manual pages, both made from
//! the command line's definition.

use std::{
    fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use clap::{Args, Command};
use clap_mangen::Man;

/// Options of `completions`.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  queue-trace completions bash > /etc/bash_completion.d/queue-trace"
)]
pub struct CompletionsArgs {
    /// For which shell
    #[arg(value_name = "SHELL", value_enum)]
    pub shell: clap_complete::Shell,
}

/// Options of `man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace man | man -l -\n  \
    queue-trace man /usr/local/share/man/man1")]
pub struct ManArgs {
    /// Write a page for each command into this folder
    #[arg(value_name = "FOLDER")]
    pub folder: Option<PathBuf>,
}

/// Writes a completion script of the program's command line to standard output.
///
/// # Errors
/// If standard output cannot be written.
pub fn completions(args: &CompletionsArgs, mut program: Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "queue-trace", &mut script);
    print(&script)
}

/// Writes the program's manual page to standard output, or a page for each command to a folder.
///
/// # Errors
/// If they cannot be written.
pub fn man(args: &ManArgs, program: Command) -> Result<()> {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        Man::new(program).render(&mut page)?;
        return print(&page);
    };
    let cannot = || format!("cannot write manual pages to {}", folder.display());
    fs::create_dir_all(folder).with_context(cannot)?;
    clap_mangen::generate_to(program, folder).with_context(cannot)
}

fn print(bytes: &[u8]) -> Result<()> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

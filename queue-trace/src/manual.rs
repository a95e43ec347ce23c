//! What comes with the program: completions for shells, and manual pages, both made from
//! the command line's definition.

use std::{
    fs,
    io::{self, Write},
};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_mangen::Man;

use crate::cli::{self, Cli};

/// Writes a completion script to standard output.
///
/// # Errors
/// If standard output cannot be written.
pub fn completions(args: &cli::Completions) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "queue-trace", &mut script);
    print(&script)
}

/// Writes the manual page to standard output, or a page for each command to a folder.
///
/// # Errors
/// If they cannot be written.
pub fn man(args: &cli::Man) -> Result<()> {
    let Some(folder) = &args.folder else {
        let mut page = Vec::new();
        Man::new(Cli::command()).render(&mut page)?;
        return print(&page);
    };
    let cannot = || format!("cannot write manual pages to {}", folder.display());
    fs::create_dir_all(folder).with_context(cannot)?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(cannot)
}

fn print(bytes: &[u8]) -> Result<()> {
    match io::stdout().write_all(bytes) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot write to standard output")
        }
        _ => Ok(()),
    }
}

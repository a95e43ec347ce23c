//! One QEMU from start to end: its flags, its time limit, its console. Knows
//! nothing of what runs inside.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, PipeReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{cache::Image, console, guest::Guest, qemu};
use crate::{architecture::Architecture, workspace};

/// The machine's size and how long it may run.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Virtual CPUs. Several need QEMU 10.
    #[arg(long, default_value_t = Self::default().smp)]
    pub smp: u32,
    /// Memory, as QEMU takes it.
    #[arg(long, default_value_t = Self::default().mem)]
    pub mem: String,
    /// Seconds until the machine is stopped.
    #[arg(long, default_value_t = Self::default().timeout)]
    pub timeout: u64,
    /// A clock that counts instructions, one a nanosecond: what is measured is the same
    /// however busy this machine is. For one CPU.
    #[arg(long)]
    pub icount: bool,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            smp: 1,
            mem: "1G".into(),
            timeout: 1200,
            icount: false,
        }
    }
}

impl Size {
    /// Refuses what this machine's QEMU cannot be trusted with.
    pub fn check(&self, architecture: Architecture) -> Result<()> {
        let (version, oldest) = (qemu::installed(architecture)?, qemu::OLDEST);
        if self.smp > 1 && version < oldest {
            bail!(
                "guests of QEMU {version} crash with several CPUs, and those of {oldest} do not: \
                 `cargo xtask setup` installs it; or use one CPU"
            );
        }
        Ok(())
    }
}

/// How a machine ended.
#[derive(Debug, PartialEq)]
pub enum End {
    /// The command ended with this status.
    Exit(u8),
    /// It was stopped at its time limit.
    TimeOut,
    /// It ended by itself before the command did: a kernel panic, or QEMU failed.
    Died,
}

/// A machine that has run.
pub struct Run {
    pub end: End,
    /// All that it printed, with plain line ends.
    pub console: String,
    /// Where that is kept.
    pub log: PathBuf,
    pub took: Duration,
}

impl Run {
    /// What went wrong with the machine itself, if anything did.
    pub fn fault(&self) -> Option<String> {
        if let Some(complaint) = console::complaint(&self.console) {
            return Some(format!("the kernel complained: {complaint}"));
        }
        match self.end {
            End::Exit(_) => None,
            End::TimeOut => Some(format!(
                "stopped at its time limit, after {} s",
                self.took.as_secs()
            )),
            End::Died => Some("the machine ended before the command did".into()),
        }
    }
}

/// Boots `image` with `guest`. The console goes to target/vm/`name`.log, and to
/// stdout if `echo`.
pub fn run(image: &Image, guest: &Guest, size: &Size, name: &str, echo: bool) -> Result<Run> {
    let mut archive = guest.archive()?;
    archive.extend(
        fs::read(&image.modules)
            .with_context(|| format!("cannot read {}", image.modules.display()))?,
    );
    run_archive(image, guest.architecture, &archive, size, name, echo)
}

/// The same with the guest's file system, modules and all, as an archive.
pub fn run_archive(
    image: &Image,
    architecture: Architecture,
    archive: &[u8],
    size: &Size,
    name: &str,
    echo: bool,
) -> Result<Run> {
    let folder = workspace::target().join("vm");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let log = folder.join(format!("{name}.log"));
    // Another process may be booting a machine of this name.
    let initrd = folder.join(format!("{name}.{}.initrd", std::process::id()));

    fs::write(&initrd, archive).with_context(|| format!("cannot write {}", initrd.display()))?;

    let started = Instant::now();
    let ran = boot(architecture, &image.vmlinuz, &initrd, size, &log, echo);
    fs::remove_file(&initrd).with_context(|| format!("cannot remove {}", initrd.display()))?;
    let (end, console) = ran?;
    Ok(Run {
        end,
        console,
        log,
        took: started.elapsed(),
    })
}

fn boot(
    architecture: Architecture,
    vmlinuz: &Path,
    initrd: &Path,
    size: &Size,
    log: &Path,
    echo: bool,
) -> Result<(End, String)> {
    let (reader, writer) = std::io::pipe().context("cannot make a pipe")?;
    let icount: &[&str] = if size.icount {
        &["-icount", "shift=0,sleep=off"]
    } else {
        &[]
    };
    let (board, console) = qemu::board(architecture);
    let command_line = format!("console={console} panic=-1 quiet");
    // `timeout` rather than a clock here: it stops QEMU even if this process is killed.
    let mut command = Command::new("timeout");
    command
        .args([
            "--foreground",
            "--kill-after=5",
            &size.timeout.to_string(),
            qemu::program(architecture),
        ])
        // Never KVM: it is not everywhere, and where it half works guests hang.
        .args(["-accel", "tcg"])
        .args(board)
        .args(["-smp", &size.smp.to_string(), "-m", &size.mem])
        .args([
            "-no-reboot",
            "-nodefaults",
            "-display",
            "none",
            "-serial",
            "stdio",
        ])
        .args(icount)
        .args(["-append", &command_line, "-kernel"])
        .arg(vmlinuz)
        .arg("-initrd")
        .arg(initrd)
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("cannot make a pipe")?)
        .stderr(writer);
    let mut qemu = command.spawn().context("cannot start `timeout`")?;
    // It holds the writing end: dropped, the console ends when QEMU does.
    drop(command);
    let console = follow(reader, log, echo);
    let status = qemu.wait().context("cannot wait for QEMU")?;
    let console = console?;

    // The debug-exit device makes the status odd; who has none powers off.
    let ended_itself = |code: i32| match architecture {
        Architecture::X86_64 => code & 1 == 1,
        Architecture::Aarch64 => code == 0,
    };
    let end = match (console::exit_status(&console), status.code()) {
        (_, Some(124 | 137)) => End::TimeOut,
        (Some(exit), Some(code)) if ended_itself(code) => End::Exit(exit),
        _ => End::Died,
    };
    Ok((end, console))
}

/// Keeps the console in `log`, and shows what the command prints if `echo`.
fn follow(reader: PipeReader, log: &Path, echo: bool) -> Result<String> {
    let mut file = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
    let mut reader = BufReader::new(reader);
    let (mut console, mut line) = (String::new(), Vec::new());
    // init's exit line has an empty one before it; neither is the command's.
    let mut empty = false;
    while reader
        .read_until(b'\n', &mut line)
        .context("cannot read the console")?
        > 0
    {
        let text = String::from_utf8_lossy(&line).replace(['\r', '\n'], "");
        line.clear();
        writeln!(file, "{text}").with_context(|| format!("cannot write {}", log.display()))?;
        if echo && !console::is_exit_line(&text) {
            if empty {
                println!();
            }
            empty = text.is_empty();
            if !empty {
                println!("{text}");
            }
        }
        console.push_str(&text);
        console.push('\n');
    }
    Ok(console)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(end: End, console: &str) -> Run {
        Run {
            end,
            console: console.into(),
            log: PathBuf::new(),
            took: Duration::from_secs(7),
        }
    }

    #[test]
    fn a_failed_command_is_no_fault_of_the_machine() {
        assert_eq!(run(End::Exit(1), "").fault(), None);
        assert_eq!(
            run(End::TimeOut, "").fault().unwrap(),
            "stopped at its time limit, after 7 s"
        );
        assert!(run(End::Died, "").fault().is_some());
        let complaint = run(End::Exit(0), "[    1.000000] BUG: x").fault().unwrap();
        assert_eq!(complaint, "the kernel complained: [    1.000000] BUG: x");
    }
}

//! Child processes: run one, say which one failed and with what words.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
};

use anyhow::{Context, Result, bail};

/// Runs `command` with this process's own streams; a failure is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| cannot_start(command))?;
    succeeded(command, status)
}

/// Starts `command`.
pub fn start(command: &mut Command) -> Result<Child> {
    command.spawn().with_context(|| cannot_start(command))
}

/// A failure is an error.
pub fn succeeded(command: &Command, status: ExitStatus) -> Result<()> {
    if !status.success() {
        bail!("`{}` failed: {status}", shown(command));
    }
    Ok(())
}

/// Runs `command` and returns what it wrote to stdout; a failure is an error
/// that holds its stderr.
pub fn stdout(command: &mut Command) -> Result<String> {
    let output = output(command)?;
    if !output.status.success() {
        bail!(
            "`{}` failed: {}\n{}",
            shown(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `command` to its end, whatever its status.
pub fn output(command: &mut Command) -> Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))
}

/// `program`, through sudo unless this process is root.
pub fn as_root(program: impl AsRef<OsStr>) -> Result<Command> {
    let user = stdout(Command::new("id").arg("-u"))?;
    if user.trim() == "0" {
        return Ok(Command::new(program));
    }
    let mut command = Command::new("sudo");
    command.arg(program);
    Ok(command)
}

/// A script of sh as root, with mounts of its own, which are gone with it. Arguments that are added
/// are its `$1` and so on.
pub fn with_own_mounts(script: &str) -> Result<Command> {
    let mut command = as_root("unshare")?;
    command.args(["--mount", "--propagation=private", "--"]);
    command.args(["sh", "-ec", script, "sh"]);
    Ok(command)
}

/// The cargo that runs this program.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The compiler that this cargo uses.
pub fn rustc() -> PathBuf {
    let given = std::env::var_os("RUSTC");
    given.map_or_else(|| "rustc".into(), PathBuf::from)
}

fn cannot_start(command: &Command) -> String {
    let program = command.get_program().display();
    format!(
        "cannot start `{program}` (is it installed? `cargo xtask setup` installs what is needed)"
    )
}

fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

//! Programs of others while they run.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};

/// They answer within it, on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A program of others, killed when it is not needed any more.
pub struct Peer(Child);

impl Peer {
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log =
            fs::File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let name = command.get_program().display().to_string();
        Ok(Self(
            command
                .spawn()
                .with_context(|| format!("cannot start {name}"))?,
        ))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

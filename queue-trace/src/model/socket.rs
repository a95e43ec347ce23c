//! Who takes part in a handshake: the listening socket, its client, the process behind it.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A listening socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Listener {
    /// The address that it is bound to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addr: Option<IpAddr>,
    /// The port.
    pub port: u16,
    /// Socket cookie, as in `ss -e` (`sk:`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<u64>,
    /// Inode number, as in `ss -e` (`ino:`) and `/proc/PID/fd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u64>,
    /// The device that it is bound to, by its number as in `ip link`: another listener may have the
    /// same address and port on another device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<u32>,
}

impl Listener {
    /// Where it listens, if its address is known.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        Some(SocketAddr::new(self.addr?, self.port))
    }
}

/// The other side of a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its address.
    pub addr: IpAddr,
    /// Its port.
    pub port: u16,
}

/// A process.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its name, as the kernel has it.
    pub comm: String,
}

//! Who takes part in a handshake: the listening socket, its client, the process behind it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

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

    /// Whether both are bound to the same address, port and device, as the sockets of a
    /// `SO_REUSEPORT` group are (`inet_reuseport_add_sock`, net/ipv4/inet_hashtables.c).
    #[must_use]
    pub fn is_bound_like(&self, other: &Self) -> bool {
        (self.addr, self.port, self.device) == (other.addr, other.port, other.device)
    }

    /// Whether one takes packets that the other would have taken: bound alike, or one of them to
    /// every address.
    #[must_use]
    pub fn may_replace(&self, other: &Self) -> bool {
        let serves = |one: &Self, other: &Self| other.addr.is_some_and(|addr| one.serves(addr));
        (self.port, self.device) == (other.port, other.device)
            && (self.is_bound_like(other) || serves(self, other) || serves(other, self))
    }

    /// Whether it takes packets that are sent to an address: bound to that one, or to every one.
    /// Over `::` a socket takes IPv4 as well, unless it was told not to.
    #[must_use]
    pub fn serves(&self, addr: IpAddr) -> bool {
        match self.addr {
            None | Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)) => true,
            Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)) => addr.is_ipv4(),
            Some(own) => own == addr,
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(addr: &str, device: Option<u32>) -> Listener {
        Listener {
            addr: Some(addr.parse().unwrap()),
            port: 80,
            device,
            ..Listener::default()
        }
    }

    #[test]
    fn a_port_on_another_address_or_device_is_another_place() {
        let one = bound("10.0.0.1", None);
        assert!(one.is_bound_like(&bound("10.0.0.1", None)));
        assert!(!one.is_bound_like(&bound("10.0.0.1", Some(3))));
        assert!(!one.is_bound_like(&bound("10.0.0.2", None)));

        assert!(one.may_replace(&bound("0.0.0.0", None)));
        assert!(bound("0.0.0.0", None).may_replace(&one));
        assert!(bound("::", None).may_replace(&one));
        assert!(!one.may_replace(&bound("10.0.0.2", None)));
        assert!(!one.may_replace(&bound("0.0.0.0", Some(3))));

        assert!(bound("::", None).serves("10.0.0.1".parse().unwrap()));
        assert!(!bound("0.0.0.0", None).serves("2001:db8::1".parse().unwrap()));
        assert!(!one.serves("10.0.0.2".parse().unwrap()));
    }
}

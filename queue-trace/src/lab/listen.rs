//! Listeners with the options that change what happens to a handshake.

#![expect(unsafe_code, reason = "a socket option that no crate has")]

use std::{
    net::{SocketAddr, TcpListener},
    os::fd::AsRawFd,
};

use anyhow::{Context, Result};
use socket2::{Protocol, Socket, Type};

use crate::lab::Family;

/// How to listen. `Listen { backlog: 5, ..Listen::default() }.on(address)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen {
    /// The backlog asked for; the kernel caps it at `net.core.somaxconn`.
    pub backlog: i32,
    /// SO_REUSEPORT: share the port with other listeners.
    pub reuse_port: bool,
    /// IPv6 only; `Some(false)` is dual-stack, `None` the system's default.
    pub only_v6: Option<bool>,
    /// TCP_DEFER_ACCEPT, in seconds.
    pub defer_accept: Option<i32>,
    /// TCP_FASTOPEN: the limit of fast-open requests.
    pub fast_open: Option<i32>,
    /// Speak MPTCP, which accepts plain TCP as well.
    pub mptcp: bool,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            backlog: 128,
            reuse_port: false,
            only_v6: None,
            defer_accept: None,
            fast_open: None,
            mptcp: false,
        }
    }
}

/// Listens on `address` with a backlog and nothing special. Nobody accepts until
/// the caller does.
pub fn listen(address: SocketAddr, backlog: i32) -> Result<TcpListener> {
    Listen {
        backlog,
        ..Listen::default()
    }
    .on(address)
}

impl Listen {
    /// Makes the listener, in the calling thread's namespace.
    pub fn on(&self, address: SocketAddr) -> Result<TcpListener> {
        self.open(address)
            .with_context(|| format!("cannot listen on {address} ({self:?})"))
    }

    fn open(&self, address: SocketAddr) -> Result<TcpListener> {
        let protocol = if self.mptcp {
            Protocol::MPTCP
        } else {
            Protocol::TCP
        };
        let socket = Socket::new(Family::of(address).domain(), Type::STREAM, Some(protocol))
            .context("socket")?;
        socket.set_reuse_address(true).context("SO_REUSEADDR")?;
        if self.reuse_port {
            socket.set_reuse_port(true).context("SO_REUSEPORT")?;
        }
        if let Some(only_v6) = self.only_v6 {
            socket.set_only_v6(only_v6).context("IPV6_V6ONLY")?;
        }
        socket.bind(&address.into()).context("bind")?;
        if let Some(seconds) = self.defer_accept {
            set_tcp_option(&socket, libc::TCP_DEFER_ACCEPT, seconds).context("TCP_DEFER_ACCEPT")?;
        }
        if let Some(requests) = self.fast_open {
            set_tcp_option(&socket, libc::TCP_FASTOPEN, requests).context("TCP_FASTOPEN")?;
        }
        socket.listen(self.backlog).context("listen")?;
        Ok(socket.into())
    }
}

fn set_tcp_option(socket: &Socket, option: libc::c_int, value: libc::c_int) -> Result<()> {
    // SAFETY: the pointer and the length describe `value`, an int as the kernel
    // expects for these options, which lives until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

//! Real clients: the kernel's own TCP, connecting without blocking.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Socket, Type};

use crate::lab::Family;

/// What became of a client, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ending {
    /// It believes that it is connected. The listener may know better.
    Connected,
    /// Its SYN was answered with a reset.
    Refused,
    /// It was connected in its own eyes, and then reset.
    Reset,
    /// Nothing was heard within the time allowed.
    TimedOut,
}

/// Whether several clients connect together or each after the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Every SYN is sent before any ending is waited for.
    AllAtOnce,
    /// The next client starts when the one before has ended.
    OneByOne,
}

/// A client, its socket open for as long as this lives. One that timed out keeps
/// sending its SYN, as clients do, until it is dropped.
#[derive(Debug)]
pub struct Connect {
    socket: Socket,
    ending: Ending,
    local: Option<SocketAddr>,
    took: Duration,
}

impl Connect {
    /// What became of it, as of the last look.
    pub fn ending(&self) -> Ending {
        self.ending
    }

    /// The address and port that it connects from.
    pub fn local(&self) -> Option<SocketAddr> {
        self.local
    }

    /// Time from its SYN to its ending.
    pub fn took(&self) -> Duration {
        self.took
    }

    /// The client's socket, non-blocking.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Looks again whether a connected client has been reset since.
    pub fn look_again(&mut self) -> Result<Ending> {
        if self.ending == Ending::Connected
            && let Some(error) = self.socket.take_error().context("SO_ERROR")?
        {
            self.ending = ending_of(error)?;
        }
        Ok(self.ending)
    }
}

/// Connects `count` clients to `address`, in the calling thread's namespace, and
/// lets each send `payload` as soon as it believes that it is connected. `timeout`
/// is for all of them together, or for each if they go one by one.
pub fn connect_each(
    address: SocketAddr,
    count: usize,
    pace: Pace,
    timeout: Duration,
    payload: Option<&[u8]>,
) -> Result<Vec<Connect>> {
    match pace {
        Pace::AllAtOnce => connect_together(address, count, timeout, payload),
        Pace::OneByOne => {
            let mut clients = Vec::with_capacity(count);
            for _ in 0..count {
                clients.extend(connect_together(address, 1, timeout, payload)?);
            }
            Ok(clients)
        }
    }
}

/// Connects to `address` by TCP fast open, with `data` in the SYN if the kernel has a
/// cookie of the listener; if it has none, this handshake gets it one. Returns when the
/// client believes that it is connected.
pub fn connect_fast(address: SocketAddr, data: &[u8], timeout: Duration) -> Result<Connect> {
    let started = Instant::now();
    let socket = Socket::new(Family::of(address).domain(), Type::STREAM, None).context("socket")?;
    socket
        .set_write_timeout(Some(timeout))
        .context("SO_SNDTIMEO")?;
    let ending = match socket.send_to_with_flags(data, &address.into(), libc::MSG_FASTOPEN) {
        Ok(_) => Ending::Connected,
        Err(error) => ending_of(error)?,
    };
    let local = socket.local_addr().ok().and_then(|a| a.as_socket());
    Ok(Connect {
        socket,
        ending,
        local,
        took: started.elapsed(),
    })
}

fn connect_together(
    address: SocketAddr,
    count: usize,
    timeout: Duration,
    payload: Option<&[u8]>,
) -> Result<Vec<Connect>> {
    let started = Instant::now();
    let mut clients = (0..count)
        .map(|_| start(address, payload).with_context(|| format!("cannot connect to {address}")))
        .collect::<Result<Vec<_>>>()?;
    let mut undecided: Vec<usize> = (0..count)
        .filter(|&index| clients[index].ending == Ending::TimedOut)
        .collect();
    while !undecided.is_empty() {
        let left = timeout.saturating_sub(started.elapsed());
        let decided = wait(&clients, &undecided, left).context("cannot wait for clients (poll)")?;
        if decided.is_empty() && left.is_zero() {
            break;
        }
        for &index in &decided {
            let client = &mut clients[index];
            client.took = started.elapsed();
            client.ending = match client.socket.take_error().context("SO_ERROR")? {
                None => greet(&client.socket, payload)?,
                Some(error) => ending_of(error)?,
            };
        }
        undecided.retain(|index| !decided.contains(index));
    }
    for &index in &undecided {
        clients[index].took = started.elapsed();
    }
    for client in &mut clients {
        client.look_again()?;
    }
    Ok(clients)
}

/// Sends a client's SYN. Over loopback the ending is often there on return; where
/// it is not, it stands at "timed out" until something is heard.
fn start(address: SocketAddr, payload: Option<&[u8]>) -> Result<Connect> {
    let socket = Socket::new(Family::of(address).domain(), Type::STREAM, None).context("socket")?;
    socket.set_nonblocking(true).context("O_NONBLOCK")?;
    let ending = match socket.connect(&address.into()) {
        Ok(()) => greet(&socket, payload)?,
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ending::TimedOut,
        Err(error) => ending_of(error)?,
    };
    let local = socket.local_addr().ok().and_then(|a| a.as_socket());
    Ok(Connect {
        socket,
        ending,
        local,
        took: Duration::ZERO,
    })
}

/// Which of the undecided clients have ended now, or within `left`.
fn wait(clients: &[Connect], undecided: &[usize], left: Duration) -> Result<Vec<usize>> {
    let mut fds: Vec<_> = undecided
        .iter()
        .map(|&index| PollFd::from_borrowed_fd(clients[index].socket.as_fd(), PollFlags::OUT))
        .collect();
    match poll(&mut fds, Some(&Timespec::try_from(left)?)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(undecided
        .iter()
        .zip(&fds)
        .filter(|(_, fd)| !fd.revents().is_empty())
        .map(|(&index, _)| index)
        .collect())
}

fn greet(socket: &Socket, payload: Option<&[u8]>) -> Result<Ending> {
    match payload.map(|payload| socket.send_with_flags(payload, libc::MSG_NOSIGNAL)) {
        None | Some(Ok(_)) => Ok(Ending::Connected),
        Some(Err(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Ending::Reset),
        Some(Err(error)) => ending_of(error),
    }
}

fn ending_of(error: io::Error) -> Result<Ending> {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Ok(Ending::Refused),
        io::ErrorKind::ConnectionReset => Ok(Ending::Reset),
        io::ErrorKind::TimedOut => Ok(Ending::TimedOut),
        _ => Err(error).context("a client failed in a way that says nothing of the listener"),
    }
}

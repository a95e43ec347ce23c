//! The loads: what is done to a listener in a namespace of its own while something is
//! attached or not, and what that takes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use live_tests::{Room, listener_beside};
use queue_trace::lab::{
    Family, Netns,
    raw::{Flood, flood},
};
use rustix::net::sockopt::set_socket_linger;

use crate::{
    contender::{ByName, Running},
    cpu,
};

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// SYNs to a listener whose accept queue is full: each is dropped.
    Dropped,
    /// SYNs to a listener whose SYN queue is full: each is answered with a cookie. The SYN-ACKs come
    /// back over loopback, to clients that do not exist.
    Cookies,
    /// The same, and the SYN-ACKs leave by another device, as they do on a server.
    CookiesOut,
    /// Connections made, accepted and closed, one after the other.
    Churn,
    /// Datagrams of UDP sent and received, which are of no concern to queue-trace.
    Datagrams,
}

/// What a load took.
#[derive(Clone, Debug)]
pub struct Cost {
    /// SYNs, connections or datagrams.
    pub operations: u32,
    /// By the clock.
    pub elapsed: Duration,
    /// Of CPUs: the sender's, in which the kernel handles what is sent on loopback, and
    /// the tracer's.
    pub cpu: Duration,
    /// What of that is the tracer's own, outside of its programs.
    pub tracer: Duration,
    /// What the tracer's programs did, if that is counted.
    pub programs: ByName,
}

/// Waits until nothing else runs: a machine that has just booted has other things to do.
pub fn settle() {
    for _ in 0..30 {
        let cost = Load::Dropped.run(5000, 0, &Running::nothing());
        if cost.cpu * 50 > cost.elapsed * 49 {
            return;
        }
    }
    eprintln!("note: something else keeps this machine busy");
}

impl Load {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Dropped,
        Self::Cookies,
        Self::CookiesOut,
        Self::Churn,
        Self::Datagrams,
    ];

    /// Those that this machine can put on.
    pub fn possible() -> Vec<Self> {
        let mut possible = Self::ALL.to_vec();
        if let Err(error) = Netns::new().unwrap().run(|| Ok(lead_out()?)) {
            eprintln!("note: no load whose SYN-ACKs leave: {error:#}");
            possible.retain(|load| *load != Self::CookiesOut);
        }
        possible
    }

    /// As the table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Dropped => "SYN flood, accept queue full",
            Self::Cookies => "SYN flood, cookies sent",
            Self::CookiesOut => "SYN flood, cookies sent, SYN-ACKs leave",
            Self::Churn => "connect, accept, close",
            Self::Datagrams => "other traffic: a datagram",
        }
    }

    /// The programs of queue-trace that see each SYN or connection of it. The kernel has security
    /// modules.
    fn seen_by(self, attach: &str) -> &'static [&'static str] {
        match self {
            // Which tracepoint sees the end of a packet differs between kernels.
            _ if attach == "tracepoint" => &["packet_"],
            Self::Dropped => &["syn_v4_enter", "syn_v4_exit"],
            Self::Cookies | Self::CookiesOut => &["syn_v4_enter", "syn_v4_exit", "security_exit"],
            Self::Churn => &[
                "syn_v4_enter",
                "syn_v4_exit",
                "security_exit",
                "hash_add_exit",
                "ack_enter",
                "ack_exit",
                "child_exit",
                "hashdance_enter",
                "accept_exit",
            ],
            Self::Datagrams => &[],
        }
    }

    /// Those of them that did not see all of it: then the load looked cheaper than it is.
    pub fn unseen_by(self, attach: &str, cost: &Cost) -> Vec<&'static str> {
        let mut expected = self.seen_by(attach).to_vec();
        expected.retain(|expected| {
            // Names that are cut short, or end in `_kprobe`, begin so.
            let of_it = cost
                .programs
                .iter()
                .filter(|(name, _)| name.starts_with(expected));
            let runs: u64 = of_it.map(|(_, did)| did.runs).sum();
            // Where a client's port is used again, a SYN may meet its own request: then another
            // program sees it.
            runs * 100 < u64::from(cost.operations) * 99
        });
        expected
    }

    /// Puts it on, and says what it took.
    pub fn run(self, syns: u32, connections: u32, running: &Running) -> Cost {
        let (backlog, cookies) = match self {
            Self::Dropped => (4, 0),
            Self::Cookies | Self::CookiesOut => (16, 1),
            Self::Churn | Self::Datagrams => (128, 1),
        };
        let sysctls = [
            ("net.ipv4.tcp_syncookies", cookies),
            ("net.ipv4.tcp_max_syn_backlog", 4096),
        ];
        let room = Room::new(Family::V4, backlog, &sysctls);
        let out = (self == Self::CookiesOut).then(|| {
            room.netns.run(|| Ok(lead_out()?)).unwrap();
            listener_beside(&room.netns, ADDRESS_OUT, backlog)
        });
        let address = out.as_ref().map_or(room.address, |_| ADDRESS_OUT);
        // Fills what is to be full, and warms what is to be warm.
        let _clients = (self == Self::Dropped).then(|| room.connect(5));
        let (warm, operations) = match self {
            Self::Dropped | Self::Cookies | Self::CookiesOut | Self::Datagrams => (1000, syns),
            Self::Churn => (100, connections),
        };
        self.load(&room, address, warm);
        // What it had to say of the beginning is said.
        thread::sleep(Duration::from_millis(500));
        let programs = running.programs();
        let (before, tracer, began) = (cpu::own(), running.cpu(), Instant::now());
        self.load(&room, address, operations);
        let elapsed = began.elapsed();
        let tracer = running.cpu() - tracer;
        let cpu = cpu::own() - before + tracer;
        let did = running.programs().into_iter().map(|(name, after)| {
            let before = programs.get(&name).copied().unwrap_or_default();
            (name, after.since(before))
        });
        Cost {
            operations,
            elapsed,
            cpu,
            tracer,
            programs: did.filter(|(_, did)| did.runs > 0).collect(),
        }
    }

    fn load(self, room: &Room, address: SocketAddr, count: u32) {
        room.netns
            .run(|| {
                match self {
                    Self::Churn => churn(&room.listener, address, count)?,
                    Self::Datagrams => datagrams(address, count)?,
                    Self::Dropped | Self::Cookies | Self::CookiesOut => {
                        flood(address, &Flood::hasty(count))?;
                    }
                }
                Ok(())
            })
            .unwrap();
    }
}

/// Where the listener listens whose SYN-ACKs leave: from an address of loopback they could not.
const ADDRESS_OUT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 8080);

/// Leads what is sent to the flooding clients (lab/raw) out of a device that takes all and delivers
/// nothing, in the calling thread's namespace.
fn lead_out() -> io::Result<()> {
    for step in [
        "link add out type dummy",
        "address add 192.0.2.1/24 dev out",
        "link set out up",
        // Narrower than the route to loopback.
        "route add 198.51.100.0/25 dev out",
        "route add 198.51.100.128/25 dev out",
    ] {
        let done = Command::new("ip").args(step.split(' ')).output()?;
        if !done.status.success() {
            let said = String::from_utf8_lossy(&done.stderr);
            return Err(io::Error::other(format!("ip {step}: {said}")));
        }
    }
    Ok(())
}

fn churn(listener: &TcpListener, address: SocketAddr, count: u32) -> io::Result<()> {
    for _ in 0..count {
        let client = TcpStream::connect(address)?;
        let (server, _) = listener.accept()?;
        // Ended by a reset, so that no port stays taken.
        set_socket_linger(&client, Some(Duration::ZERO))?;
        drop(client);
        drop(server);
    }
    Ok(())
}

fn datagrams(address: SocketAddr, count: u32) -> io::Result<()> {
    let to = UdpSocket::bind(address)?;
    let from = UdpSocket::bind((address.ip(), 0))?;
    from.connect(address)?;
    for _ in 0..count {
        from.send(&[0])?;
        to.recv(&mut [0])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contender::Programs;

    #[test]
    fn a_program_that_did_not_run_for_each_is_named() {
        let did = |name: &str, runs| {
            let programs = Programs {
                runs,
                nanoseconds: 1,
            };
            (name.to_owned(), programs)
        };
        let cost = |programs: &[(String, Programs)]| Cost {
            operations: 10,
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            tracer: Duration::ZERO,
            programs: programs.iter().cloned().collect(),
        };
        let both = cost(&[did("syn_v4_enter", 10), did("syn_v4_exit_kpr", 11)]);
        assert!(Load::Dropped.unseen_by("kprobe", &both).is_empty());
        let one = cost(&[did("syn_v4_enter", 10), did("syn_v4_exit", 9)]);
        assert_eq!(Load::Dropped.unseen_by("fentry", &one), ["syn_v4_exit"]);
        assert_eq!(Load::Cookies.unseen_by("fentry", &both), ["security_exit"]);
        let ends = cost(&[did("packet_consumed", 6), did("packet_dropped", 4)]);
        assert!(Load::Churn.unseen_by("tracepoint", &ends).is_empty());
        assert_eq!(Load::Churn.unseen_by("tracepoint", &one), ["packet_"]);
        assert_eq!(Load::Datagrams.unseen_by("tracepoint", &one), ["packet_"]);
        assert!(Load::Datagrams.unseen_by("fentry", &one).is_empty());
    }
}

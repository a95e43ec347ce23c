//! A namespace with a listener that nobody accepts from, and the traffic that the
//! tests send to it.

use std::{
    net::{SocketAddr, TcpListener},
    process::{Child, Command, Stdio},
    time::Duration,
};

use queue_trace::lab::{
    Connect, Ending, Family, Listen, Netns, Pace, connect_each, half_open,
    raw::{Flood, Wire, flood},
};

use crate::counters::Counters;

/// The namespace and its listener.
#[derive(Debug)]
pub struct Room {
    /// The namespace, in which nothing else happens.
    pub netns: Netns,
    /// Of which family all is.
    pub family: Family,
    /// Where the listener listens.
    pub address: SocketAddr,
    /// The listener.
    pub listener: TcpListener,
    /// The counters before any traffic.
    pub before: Counters,
}

/// Clients that are to be let in have so long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients that are not have less than the second after which they try again.
const SHORT: Duration = Duration::from_millis(600);

impl Room {
    /// A room whose listener, on port 8080, has that backlog.
    #[must_use]
    pub fn new(family: Family, backlog: i32, sysctls: &[(&str, u32)]) -> Self {
        let netns = Netns::new().unwrap();
        for (name, value) in sysctls {
            netns.set_sysctl(name, value).unwrap();
        }
        let address = SocketAddr::new(family.loopback(), 8080);
        let listener = listener_beside(&netns, address, backlog);
        Self {
            before: Counters::of(&netns),
            netns,
            family,
            address,
            listener,
        }
    }

    /// One room for each family.
    #[must_use]
    pub fn of_each_family(backlog: i32, sysctls: &[(&str, u32)]) -> [Self; 2] {
        Family::ALL.map(|family| Self::new(family, backlog, sysctls))
    }

    /// Sends that many SYNs of clients that say nothing more, and waits until the
    /// kernel has dealt with them. Returns how many are half-open for it.
    pub fn flood(&self, count: u32) -> u64 {
        self.flood_as(&Flood::of(count))
    }

    /// Sends a flood, and waits until the kernel has dealt with it. Returns how many
    /// requests are half-open then.
    pub fn flood_as(&self, what: &Flood) -> u64 {
        self.flood_at(self.address, what)
    }

    /// The same at another listener in the room.
    pub fn flood_at(&self, address: SocketAddr, what: &Flood) -> u64 {
        self.netns
            .run(|| {
                let flooded = flood(address, what)?;
                Wire::open(self.family)?.settle()?;
                assert_eq!(flooded.lost, 0, "lo lost packets");
                Ok(half_open(address)? as u64)
            })
            .unwrap()
    }

    /// Connects real clients one by one, all of which get in.
    pub fn connect(&self, count: usize) -> Vec<Connect> {
        let connect = || connect_each(self.address, count, Pace::OneByOne, PATIENCE, None);
        let clients = self.netns.run(connect).unwrap();
        assert!(clients.iter().all(|c| c.ending() == Ending::Connected));
        self.settle();
        clients
    }

    /// Connects real clients all at once, each of which sends `payload` as soon as it
    /// believes that it is connected. Those that are not let in give up before they
    /// would try again, and nothing is delivered in the room any more: clients that take
    /// themselves for connected would go on sending.
    pub fn rush(&self, count: usize, payload: Option<&[u8]>) -> Vec<Connect> {
        let connect = || connect_each(self.address, count, Pace::AllAtOnce, SHORT, payload);
        let clients = self.netns.run(connect).unwrap();
        // On a busy machine a client gives up while its packets are still on their way.
        self.settle();
        self.netns.silence().unwrap();
        clients
    }

    /// Waits until the kernel has dealt with all that was sent.
    pub fn settle(&self) {
        self.netns
            .run(|| Wire::open(self.family)?.settle())
            .unwrap();
    }
}

/// A listener in a namespace.
#[must_use]
pub fn listener_beside(netns: &Netns, address: SocketAddr, backlog: i32) -> TcpListener {
    let listen = Listen {
        backlog,
        ..Listen::default()
    };
    netns.run(|| listen.on(address)).unwrap()
}

/// A process that lives in a namespace and does nothing: what makes a namespace
/// findable by its number.
#[derive(Debug)]
pub struct Inhabitant(Child);

impl Inhabitant {
    /// Starts one.
    #[must_use]
    pub fn of(netns: &Netns) -> Self {
        let start = || {
            let mut sleep = Command::new("sleep");
            Ok(sleep.arg("21600").stdin(Stdio::null()).spawn()?)
        };
        Self(netns.run(start).unwrap())
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        // It may have ended by itself, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

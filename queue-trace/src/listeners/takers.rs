//! Whose queue a handshake is in, by the address that it was sent to: found by a few
//! look-ups, however many listeners there are.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::listeners::diag::{HalfOpen, Listening, Waiting};

/// What was sent to the listeners of one namespace that are bound to one address: those of a
/// `SO_REUSEPORT` group cannot be told apart by it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct AddressQueues {
    /// How many listen there.
    pub listeners: u32,
    /// Those among them in whose accept queue somebody waits.
    pub crowded: u32,
    /// Half-open requests.
    pub requests: u32,
    /// Those among them whose SYN-ACK was not sent again.
    pub young: u32,
    /// Age of the oldest connection that nobody has accepted.
    pub oldest: Option<Duration>,
    /// Whether one of them takes IPv4 clients.
    takes_v4: bool,
}

/// The queues of one namespace, by the address that listeners are bound to.
#[derive(Debug, Default)]
pub(super) struct Takers(HashMap<SocketAddr, AddressQueues>);

impl Takers {
    /// Of these listeners, with nothing in their queues.
    pub fn of(listening: &[Listening]) -> Self {
        let mut all = Self::default();
        for one in listening {
            let queues = all.0.entry(one.address).or_default();
            queues.listeners += 1;
            queues.crowded += u32::from(one.depth > 0);
            queues.takes_v4 |= one.address.is_ipv4() || !one.only_v6;
        }
        all
    }

    /// Puts a request into the queue that it is in.
    pub fn add_request(&mut self, request: &HalfOpen) {
        if let Some(queues) = self.taker(request.local) {
            queues.requests += 1;
            queues.young += u32::from(request.young);
        }
    }

    /// Puts a connection into the queue that it is in.
    pub fn add_waiting(&mut self, waiting: &Waiting) {
        if let Some(queues) = self.taker(waiting.local) {
            queues.oldest = queues.oldest.max(Some(waiting.age));
        }
    }

    /// What was sent to those bound to an address.
    pub fn at(&self, bound: SocketAddr) -> Option<&AddressQueues> {
        self.0.get(&bound)
    }

    /// Who gets what is sent to an address: those bound to it go before those bound to any
    /// of its family, and these before those bound to any IPv6 one.
    fn taker(&mut self, local: SocketAddr) -> Option<&mut AddressQueues> {
        let any = |ip: IpAddr| SocketAddr::new(ip, local.port());
        let (any_v4, any_v6) = (
            any(Ipv4Addr::UNSPECIFIED.into()),
            any(Ipv6Addr::UNSPECIFIED.into()),
        );
        let bound = if self.0.contains_key(&local) {
            local
        } else if local.is_ipv6() {
            any_v6
        } else if self.0.contains_key(&any_v4) {
            any_v4
        } else {
            return self.0.get_mut(&any_v6).filter(|queues| queues.takes_v4);
        };
        self.0.get_mut(&bound)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn listening(address: &str, only_v6: bool) -> Listening {
        Listening {
            address: at(address),
            cookie: 0,
            inode: 0,
            depth: 1,
            limit: 0,
            device: 0,
            only_v6,
            cgroup: None,
        }
    }

    #[test]
    fn who_takes_what_is_sent_where() {
        for (bound, only_v6, local, taken) in [
            ("0.0.0.0:80", false, "10.0.0.1:80", true),
            ("0.0.0.0:80", false, "10.0.0.1:81", false),
            ("10.0.0.2:80", false, "10.0.0.1:80", false),
            ("10.0.0.1:80", false, "10.0.0.1:80", true),
            ("[::]:80", false, "10.0.0.1:80", true),
            ("[::]:80", true, "10.0.0.1:80", false),
            ("[::]:80", true, "[fd::1]:80", true),
            ("[::1]:80", false, "[::1]:80", true),
            ("0.0.0.0:80", false, "[::1]:80", false),
        ] {
            let mut takers = Takers::of(&[listening(bound, only_v6)]);
            takers.add_request(&HalfOpen {
                local: at(local),
                young: true,
            });
            let queues = takers.at(at(bound)).unwrap();
            assert_eq!(queues.requests == 1, taken, "{bound} {local}");
            assert_eq!(queues.young, queues.requests);
        }
    }

    #[test]
    fn those_bound_to_the_address_go_first_then_those_of_its_family() {
        let all = ["[::]:80", "0.0.0.0:80", "10.0.0.1:80"];
        let mut takers = Takers::of(&all.map(|address| listening(address, false)));
        for (local, age) in [("10.0.0.1:80", 3), ("10.0.0.2:80", 4), ("[fd::1]:80", 5)] {
            for less in [0, 1] {
                takers.add_waiting(&Waiting {
                    local: at(local),
                    age: Duration::from_secs(age - less),
                });
            }
        }
        let oldest = |bound| takers.at(at(bound)).unwrap().oldest;
        assert_eq!(
            all.map(oldest),
            [5, 4, 3].map(|age| Some(Duration::from_secs(age)))
        );
    }

    #[test]
    fn a_group_shares_what_is_sent_to_it() {
        let takers = Takers::of(&[(); 3].map(|()| listening("[::]:80", false)));
        let queues = takers.at(at("[::]:80")).unwrap();
        assert_eq!((queues.listeners, queues.crowded), (3, 3));
        assert_eq!(takers.at(at("[::]:81")), None);
    }
}

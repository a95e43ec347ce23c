//! What the user wants to see, checked against the machine: from the command line to
//! the filters of the kernel side.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use queue_trace_common::{
    outcome::{self, Kind},
    record,
    settings::{Filter, MAX_NETNS, PORT_WORDS},
};

use crate::{
    kernel::{netns, netns::NetnsPath},
    model::clients::Prefixes,
    options::{Filters, ListenerFilters, NetnsArg},
};

/// What the user wants to see, as the kernel side filters it.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Outcomes for which records are sent.
    pub outcomes: outcome::Set,
    /// Ports; empty: all.
    pub ports: Vec<std::ops::RangeInclusive<u16>>,
    /// Our own addresses; empty: all.
    pub addrs: Vec<IpNet>,
    /// Clients; empty: all.
    pub clients: Vec<IpNet>,
    /// Namespaces, and the way into those whose way is known; empty: all.
    pub netns: BTreeMap<u32, Option<NetnsPath>>,
    /// Records a second from each CPU at most; 0: no limit.
    pub rate: u32,
    /// By which networks clients are put together.
    pub networks: Prefixes,
    /// Connections are told as accepted only if they waited at least so long.
    pub slow: Option<Duration>,
    /// Whether SYNs for ports on which nobody listened while attached are wanted, too.
    pub unheard: bool,
    /// Whether the kernel side's own messages are wanted.
    pub debug: bool,
    /// Whether owners are named, so that it is needed at once whose a new listener is.
    pub names_owners: bool,
    /// The filters that leave out packets or listeners, as they are on the command line.
    pub words: Vec<String>,
}

impl Selection {
    /// What the filters ask of the kernel side.
    ///
    /// # Errors
    /// If a namespace named by its path is not there.
    pub fn of(filters: &Filters) -> Result<Self> {
        fits("--client", &filters.clients)?;
        let listeners = Self::at(&filters.listeners)?;
        let mut words = listeners.words.clone();
        words.extend(filters.client_words());
        Ok(Self {
            words,
            outcomes: filters.outcomes(),
            clients: filters.clients.clone(),
            slow: filters.slow.filter(|_| !filters.shows_accepted()),
            unheard: filters.shows_unheard(),
            ..listeners
        })
    }

    /// What these listeners are, and no outcome of them.
    fn at(listeners: &ListenerFilters) -> Result<Self> {
        fits("--addr", &listeners.addrs)?;
        let netns = Self::namespaces_named(&listeners.netns)?;
        // A recording knows namespaces by number.
        let by_number = ListenerFilters {
            netns: netns.keys().copied().map(NetnsArg::Id).collect(),
            ..listeners.clone()
        };
        Ok(Self {
            ports: listeners.ports.clone(),
            addrs: listeners.addrs.clone(),
            netns,
            words: by_number.kernel_words(),
            names_owners: listeners.name_owners(),
            ..Self::default()
        })
    }

    /// What a view of listeners asks of the kernel side: counts of all, and so many records
    /// of refusals a second.
    ///
    /// # Errors
    /// If a namespace named by its path is not there.
    pub fn of_listeners(listeners: &ListenerFilters, rate: u32) -> Result<Self> {
        // Without it no namespace is found, which would look like no listener.
        netns::own().context(
            "cannot look at /proc/self/ns/net, by which network namespaces are found: is /proc \
             mounted?",
        )?;
        Ok(Self {
            outcomes: outcome::of_kind(Kind::Refusal),
            rate,
            ..Self::at(listeners)?
        })
    }

    /// The namespaces that the user named.
    ///
    /// # Errors
    /// If one named by its path is not there.
    fn namespaces_named(named: &[NetnsArg]) -> Result<BTreeMap<u32, Option<NetnsPath>>> {
        if named.len() > MAX_NETNS {
            bail!("--netns can be given {MAX_NETNS} times at most");
        }
        let ids = named.iter().any(|arg| matches!(arg, NetnsArg::Id(_)));
        let known = ids.then(netns::list).unwrap_or_default();
        named
            .iter()
            .map(|arg| match arg {
                // Nothing would ever be seen, which would look as if nothing happened.
                NetnsArg::Id(id) if !known.contains_key(id) => bail!(
                    "--netns {id}: no network namespace has this number (lsns -t net shows them)"
                ),
                NetnsArg::Id(id) => Ok((*id, None)),
                NetnsArg::Path(path) => netns::id(path)
                    .map(|id| (id, Some(NetnsPath::at(path.clone()))))
                    .with_context(|| {
                        format!("--netns {}: no network namespace there", path.display())
                    }),
            })
            .collect()
    }

    /// Whether whole namespaces are counted, so that the ledger can be closed.
    #[must_use]
    pub fn counts_all(&self) -> bool {
        self.ports.is_empty() && self.addrs.is_empty() && self.clients.is_empty()
    }

    /// Whether a listener passes the filters on ports and addresses. One bound to any
    /// address takes what is sent to each.
    #[must_use]
    pub fn has(&self, bound: SocketAddr) -> bool {
        let port = self.ports.is_empty() || self.ports.iter().any(|r| r.contains(&bound.port()));
        let addr = self.addrs.is_empty()
            || bound.ip().is_unspecified()
            || self.addrs.iter().any(|net| net.contains(&bound.ip()));
        port && addr
    }

    /// Whether a namespace passes the filters.
    #[must_use]
    pub fn has_netns(&self, netns: u32) -> bool {
        self.netns.is_empty() || self.netns.contains_key(&netns)
    }

    /// The namespaces to look into.
    #[must_use]
    pub fn namespaces(&self) -> BTreeMap<u32, NetnsPath> {
        let mut all = netns::list();
        for (id, way) in &self.netns {
            if let Some(way) = way {
                all.insert(*id, way.clone());
            }
        }
        if !self.netns.is_empty() {
            all.retain(|id, _| self.netns.contains_key(id));
        }
        all
    }

    /// The filters as the kernel side takes them.
    #[must_use]
    pub fn filter(&self) -> Filter {
        let mut filter = Filter {
            outcomes: self.outcomes,
            record_cost_ns: match self.rate {
                0 => 0,
                rate => NS_PER_SECOND / rate,
            },
            slow_ns: self
                .slow
                .map_or(0, |slow| u64::try_from(slow.as_nanos()).unwrap_or(u64::MAX)),
            netns_count: self.netns.len().min(MAX_NETNS) as u32,
            only_port: self.only_port().unwrap_or(0),
            ports: (!self.ports.is_empty()).into(),
            addrs: (!self.addrs.is_empty()).into(),
            clients: (!self.clients.is_empty()).into(),
            unheard: self.unheard.into(),
            debug: self.debug.into(),
            ..Filter::default()
        };
        for (place, id) in filter.netns.iter_mut().zip(self.netns.keys()) {
            *place = *id;
        }
        filter
    }

    /// Bytes of the ring of records, a power of two: two seconds of what so many CPUs may
    /// write, so that a burst and a reader that is late find room. Every page of it is
    /// resident memory, mapped twice.
    #[must_use]
    pub fn ring_bytes(&self, cpus: usize) -> u32 {
        // What the ring adds to each.
        const HEAD: u64 = 8;
        if self.rate == 0 {
            return UNLIMITED_RING;
        }
        let each = record::SIZE as u64 + HEAD;
        let bytes = (2 * each)
            .saturating_mul(u64::from(self.rate))
            .saturating_mul(cpus as u64);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        bytes.clamp(SMALLEST_RING, LARGEST_RING).next_power_of_two()
    }

    /// The port asked for, if it is a single one.
    fn only_port(&self) -> Option<u16> {
        let (first, more) = self.ports.split_first()?;
        let is_single = first.start() == first.end() && more.iter().all(|range| range == first);
        is_single.then_some(*first.start())
    }

    /// The ports as a bit each.
    #[must_use]
    pub fn port_bits(&self) -> Vec<u64> {
        let mut words = vec![0u64; PORT_WORDS];
        for port in self.ports.iter().cloned().flatten() {
            words[usize::from(port >> 6)] |= 1 << (port & 63);
        }
        words
    }
}

/// Fails if there are more networks than the kernel side has room for.
fn fits(option: &str, networks: &[IpNet]) -> Result<()> {
    let room = prefixes(networks).len();
    if room > NETWORKS {
        bail!(
            "{option}: {} networks are more than fit ({NETWORKS}): name larger ones",
            networks.len()
        );
    }
    Ok(())
}

/// Networks as the kernel side's table has them: prefixes of IPv6 addresses, IPv4 as
/// `::ffff:a.b.c.d`. An IPv6 network never contains IPv4 addresses, so one in whose range they
/// are written becomes what is left of it without them.
#[must_use]
pub fn prefixes(networks: &[IpNet]) -> BTreeSet<(u32, Ipv6Addr)> {
    const V4: u128 = 0xffff << 32;
    const V4_BITS: u32 = 96;
    let mut prefixes = BTreeSet::new();
    for network in networks {
        match network {
            IpNet::V4(v4) => {
                let bits = V4_BITS + u32::from(v4.prefix_len());
                prefixes.insert((bits, v4.network().to_ipv6_mapped()));
            }
            IpNet::V6(v6) => {
                let bits = u32::from(v6.prefix_len());
                if bits < V4_BITS && v6.contains(&Ipv6Addr::from_bits(V4)) {
                    // Each half on the way to IPv4 that does not lead there.
                    prefixes.extend((bits..V4_BITS).map(|bit| {
                        let other = V4 ^ (1 << (127 - bit));
                        let bits = bit + 1;
                        (
                            bits,
                            Ipv6Addr::from_bits(other >> (128 - bits) << (128 - bits)),
                        )
                    }));
                } else {
                    prefixes.insert((bits, v6.network()));
                }
            }
        }
    }
    prefixes
}

/// Places in the kernel side's tables of networks.
const NETWORKS: usize = 1024;

const NS_PER_SECOND: u32 = 1_000_000_000;

const SMALLEST_RING: u32 = 256 << 10;
const LARGEST_RING: u32 = 16 << 20;
/// Where records are not limited.
const UNLIMITED_RING: u32 = 4 << 20;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ring_holds_two_seconds_and_is_bounded() {
        let ring = |rate, cpus| {
            let selection = Selection {
                rate,
                ..Selection::default()
            };
            selection.ring_bytes(cpus)
        };
        assert_eq!(ring(1, 1), SMALLEST_RING);
        assert_eq!(ring(1000, 2), 1 << 20);
        assert_eq!(ring(u32::MAX, 1024), LARGEST_RING);
        assert_eq!(ring(0, 1), UNLIMITED_RING);
    }

    fn any_network() -> impl Strategy<Value = IpNet> {
        let v4 = (any::<Ipv4Addr>(), 0..=32u8);
        let v4 = v4.prop_map(|(address, bits)| IpNet::new(address.into(), bits).unwrap());
        // Not within what is written of IPv4.
        let near_v4 = (32..128u32).prop_map(|bit| Ipv6Addr::from_bits(0xffff << 32 ^ 1 << bit));
        let v6 = (proptest::prop_oneof![any::<Ipv6Addr>(), near_v4], 0..=128u8);
        let v6 = v6.prop_map(|(address, bits)| IpNet::new(address.into(), bits).unwrap());
        // What is written as IPv4 in IPv6 is taken for IPv4.
        let is_v6 = |network: &IpNet| match network {
            IpNet::V6(v6) => v6.prefix_len() < 96 || v6.network().to_ipv4_mapped().is_none(),
            IpNet::V4(_) => true,
        };
        proptest::prop_oneof![v4, v6].prop_filter("IPv4 in IPv6", is_v6)
    }

    #[test]
    fn more_networks_than_fit_are_refused() {
        let some = |count: u32| -> Vec<IpNet> {
            let address = |number| Ipv4Addr::from_bits(number << 8);
            (0..count)
                .map(|number| IpNet::new(address(number).into(), 24).unwrap())
                .collect()
        };
        fits("--client", &some(1024)).unwrap();
        let error = fits("--client", &some(1025)).unwrap_err().to_string();
        assert!(
            error.contains("--client") && error.contains("1024"),
            "{error}"
        );
        // Some room, for all of IPv6.
        fits("--client", &["::/0".parse().unwrap()]).unwrap();
    }

    proptest! {
        #[test]
        fn the_port_bits_are_the_ports_asked_for(ranges in proptest::collection::vec((1u16.., 1u16..), 0..5), port in 1u16..) {
            let ports: Vec<_> = ranges.iter().map(|(a, b)| *a.min(b)..=*a.max(b)).collect();
            let selection = Selection { ports: ports.clone(), ..Selection::default() };
            let bits = selection.port_bits();
            let set = bits[usize::from(port >> 6)] >> (port & 63) & 1 == 1;
            prop_assert_eq!(set, ports.iter().any(|range| range.contains(&port)));
            prop_assert_eq!(selection.filter().ports != 0, !ports.is_empty());
        }

        #[test]
        fn a_single_port_is_a_number(ranges in proptest::collection::vec((1u16..3, 0u16..2), 0..4)) {
            let ports: Vec<_> = ranges.iter().map(|(first, more)| *first..=first + more).collect();
            let selection = Selection { ports, ..Selection::default() };
            let bits = selection.port_bits();
            let only = usize::from(selection.filter().only_port);
            if only == 0 {
                prop_assert!(bits.iter().map(|word| word.count_ones()).sum::<u32>() != 1);
            } else {
                let mut alone = vec![0; bits.len()];
                alone[only >> 6] = 1 << (only & 63);
                prop_assert_eq!(bits, alone);
            }
        }

        /// The table has what the networks contain, and nothing else.
        #[test]
        fn the_prefixes_are_the_networks(
            networks in proptest::collection::vec(any_network(), 0..4),
            address in proptest::prop_oneof![
                any::<Ipv4Addr>().prop_map(IpAddr::from),
                any::<Ipv6Addr>().prop_map(IpAddr::from),
                (0..128u32).prop_map(|bit| Ipv6Addr::from_bits(0xffff << 32 ^ 1 << bit).into()),
            ],
        ) {
            let written = match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped(),
                IpAddr::V6(v6) => v6,
            };
            // Addresses of IPv4 are not written otherwise by the kernel side.
            let address = written.to_ipv4_mapped().map_or(address, IpAddr::from);
            let wanted = networks.iter().any(|network| network.contains(&address));
            let found = prefixes(&networks).iter().any(|(bits, prefix)| {
                let differ = written.to_bits() ^ prefix.to_bits();
                differ.leading_zeros() >= *bits
            });
            prop_assert_eq!(found, wanted);
        }
    }
}

//! Which networks the clients of a flood come from, in bounded memory: the heaviest are
//! kept by the space-saving method, so that one that is missing was never heavy.

use std::{collections::HashMap, net::IpAddr};

use ipnet::IpNet;

use super::case::add;

/// Networks kept at a time.
const MOST: usize = 512;
/// A network is a /24, or a /64 of IPv6.
const BITS_V4: u8 = 24;
const BITS_V6: u8 = 64;

/// Counts of networks.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    counts: HashMap<IpNet, u64>,
    /// All events counted.
    pub total: u64,
    /// Whether there were more networks than are kept.
    pub overflowed: bool,
}

impl Networks {
    /// Counts `count` events of a client.
    pub fn add(&mut self, client: IpAddr, count: u64) {
        let bits = if client.is_ipv4() { BITS_V4 } else { BITS_V6 };
        let Ok(network) = IpNet::new(client, bits) else {
            return;
        };
        let network = network.trunc();
        add(&mut self.total, count);
        if let Some(known) = self.counts.get_mut(&network) {
            add(known, count);
            return;
        }
        let mut inherited = 0;
        if self.counts.len() >= MOST {
            self.overflowed = true;
            let lightest = self.counts.iter().min_by_key(|(_, count)| **count);
            if let Some((lightest, count)) = lightest.map(|(network, count)| (*network, *count)) {
                self.counts.remove(&lightest);
                inherited = count;
            }
        }
        self.counts.insert(network, inherited.saturating_add(count));
    }

    /// The heaviest, heaviest first.
    #[must_use]
    pub fn top(&self, most: usize) -> Vec<(IpNet, u64)> {
        let mut all: Vec<_> = self
            .counts
            .iter()
            .map(|(net, count)| (*net, *count))
            .collect();
        all.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(&b.0)));
        all.truncate(most);
        all
    }

    /// How many networks there are, at least.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.counts.len()
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_heavy_network_is_never_lost_among_many() {
        let mut networks = Networks::default();
        for n in 0..20_000u32 {
            networks.add(Ipv4Addr::from(0x0a00_0000 + (n << 8)).into(), 1);
            networks.add(Ipv4Addr::new(203, 0, 113, (n % 256) as u8).into(), 1);
        }
        let top = networks.top(1);
        assert_eq!(top[0].0.to_string(), "203.0.113.0/24");
        // The method never counts too little, and too much by the lightest at most.
        assert!((20_000..20_100).contains(&top[0].1), "{top:?}");
        assert_eq!(networks.total, 40_000);
        assert!(networks.overflowed);
        assert_eq!(networks.networks(), MOST);
    }
}

//! Which networks the clients of a flood come from, as far as events tell it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::case::add;
use crate::space_saving::SpaceSaving;

/// Networks kept at a time.
const MOST: usize = 512;
/// A network is a /24, or a /64 of IPv6.
const BITS_V4: u8 = 24;
const BITS_V6: u8 = 64;
/// More than this in one event is no count.
const MOST_AT_ONCE: u64 = 1 << 40;

/// Counts of networks.
#[derive(Debug, Clone)]
pub struct Networks {
    counts: SpaceSaving<IpNet>,
    /// All events counted.
    pub total: u64,
}

impl Default for Networks {
    fn default() -> Self {
        Self {
            counts: SpaceSaving::new(MOST),
            total: 0,
        }
    }
}

impl Networks {
    /// Counts `count` events of a client.
    pub fn add(&mut self, client: IpAddr, count: u64) {
        let bits = if client.is_ipv4() { BITS_V4 } else { BITS_V6 };
        if let Ok(network) = IpNet::new(client, bits) {
            let count = count.min(MOST_AT_ONCE);
            add(&mut self.total, count);
            self.counts.add(network.trunc(), count);
        }
    }

    /// The heaviest, heaviest first.
    #[must_use]
    pub fn top(&self, most: usize) -> Vec<(IpNet, u64)> {
        let all = self.counts.iter().take(most);
        all.map(|(network, count)| (network, count.count)).collect()
    }

    /// How many networks there are, at least.
    #[must_use]
    pub fn networks(&self) -> usize {
        self.counts.iter().count()
    }

    /// Whether there were more networks than are kept.
    #[must_use]
    pub fn overflowed(&self) -> bool {
        self.counts.iter().any(|(_, count)| count.error > 0)
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
        assert!(networks.overflowed());
        assert_eq!(networks.networks(), MOST);
    }
}

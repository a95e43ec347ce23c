//! Hand-made TCP clients, which own every packet of their side: above all the
//! third one, so that a handshake can be held half-open, finished later, or
//! finished wrongly.
//!
//! They have addresses in test ranges (198.51.100.0/24 or, for floods from many networks,
//! 198.18.0.0/15; 2001:db8:5::/48) that are routed to `lo` but belong to nobody, so the kernel never answers in their
//! place. Their segments carry an MSS option only; without timestamps, all that a
//! SYN cookie holds is in its sequence number.
//!
//! Everything here works in the calling thread's namespace: call it inside
//! [`Netns::run`](super::Netns::run).

mod flood;
mod peer;
mod segment;
mod wire;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

pub use flood::{Flood, Flooded, flood};
pub use peer::{PeerAnswer, RawPeer};
pub use segment::{Flags, Segment};
pub use wire::Wire;

use crate::lab::{
    Family,
    loopback::{TEST_RANGE_V4, TEST_RANGE_V6, WIDE_RANGE_V4},
};

/// Addresses used of each network of a test range; the last is for [`Wire::settle`].
pub const HOSTS: u32 = 253;
const MARKER_HOST: u8 = 254;

/// Flooding clients have the ports from here up to [`FIRST_PEER_PORT`], peers the
/// rest. Peers are above the kernel's own ephemeral ports as well, so that one
/// comparison tells what they should hear.
const FIRST_FLOOD_PORT: u16 = 1024;
const FIRST_PEER_PORT: u16 = 61_000;

/// The address of flooding client `n`, in one network or in turn in several; they repeat
/// after some 15 million.
fn flood_client(family: Family, networks: u32, n: u32) -> SocketAddr {
    let ports = FIRST_FLOOD_PORT..FIRST_PEER_PORT;
    if networks <= 1 {
        return client(family, n, ports);
    }
    let network = n % networks;
    let mut address = client(family, n / networks, ports);
    address.set_ip(match (family, address.ip()) {
        (Family::V4, IpAddr::V4(host)) => {
            let wide = u32::from(WIDE_RANGE_V4) + (network << 8) + u32::from(host.octets()[3]);
            Ipv4Addr::from(wide).into()
        }
        (_, IpAddr::V6(host)) => {
            let mut octets = host.octets();
            octets[6..8].copy_from_slice(&(network as u16).to_be_bytes());
            Ipv6Addr::from(octets).into()
        }
        (_, host) => host,
    });
    address
}

/// The address of peer `n`; they repeat after a million.
fn peer_client(family: Family, n: u32) -> SocketAddr {
    client(family, n, FIRST_PEER_PORT..u16::MAX)
}

fn client(family: Family, n: u32, ports: std::ops::Range<u16>) -> SocketAddr {
    let host = (n % HOSTS) as u8 + 1;
    let port = ports.start + ((n / HOSTS) % ports.len() as u32) as u16;
    SocketAddr::new(test_host(family, host), port)
}

fn test_host(family: Family, host: u8) -> IpAddr {
    match family {
        Family::V4 => {
            let [a, b, c, _] = TEST_RANGE_V4.octets();
            Ipv4Addr::new(a, b, c, host).into()
        }
        Family::V6 => {
            let mut octets = TEST_RANGE_V6.octets();
            octets[15] = host;
            Ipv6Addr::from(octets).into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn flooding_clients_differ_and_are_never_peers() {
        for family in Family::ALL {
            let clients: HashSet<_> = (0..100_000).map(|n| flood_client(family, 1, n)).collect();
            assert_eq!(clients.len(), 100_000);
            assert!(clients.iter().all(|c| c.port() < FIRST_PEER_PORT));
            assert!(peer_client(family, 0).port() >= FIRST_PEER_PORT);
        }
    }
}

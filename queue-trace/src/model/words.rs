//! How things are worded, everywhere alike: verdicts, addresses, times.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
};

use queue_trace_common::outcome::Outcome;

use crate::model::{printable::printable, snapshot::Snapshot, socket::Listener};

/// A time in microseconds, to two or three digits: `840us`, `1.2ms`, `35s`.
#[must_use]
pub fn short_time(us: u64) -> String {
    let units = [(1_000_000, "s"), (1_000, "ms")];
    match units.iter().find(|(size, _)| us >= *size) {
        Some((size, unit)) if us < 10 * size => {
            format!("{}.{}{unit}", us / size, us % size * 10 / size)
        }
        Some((size, unit)) => format!("{}{unit}", us / size),
        None => format!("{us}us"),
    }
}

/// A verdict in words: `syn_dropped` is "SYN dropped".
pub fn verdict_words(outcome: &Outcome) -> String {
    outcome
        .verdict
        .split('_')
        .map(|word| match word {
            "syn" | "ack" => word.to_uppercase(),
            "synack" => "SYN-ACK".to_owned(),
            _ => word.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

/// The cause in words; nothing where there is only one.
pub fn cause_words(outcome: &Outcome) -> String {
    outcome.cause.unwrap_or_default().replace('_', " ")
}

/// An address and a port, as they are written together.
#[must_use]
pub fn endpoint(addr: Option<IpAddr>, port: u16) -> String {
    match addr {
        Some(addr) => SocketAddr::new(addr, port).to_string(),
        None => format!("?:{port}"),
    }
}

/// A listener by its address and port, and the device that it is bound to: by its name, if that
/// is known (`0.0.0.0%eth1:179`), else by its number (`0.0.0.0%4:179`).
#[must_use]
pub fn listener_words(listener: &Listener, device_name: Option<&str>) -> String {
    let device = listener.device.map(|number| match device_name {
        Some(name) => printable(name).into_owned(),
        None => number.to_string(),
    });
    match (listener.addr, device) {
        (Some(IpAddr::V4(addr)), Some(device)) => format!("{addr}%{device}:{}", listener.port),
        (Some(IpAddr::V6(addr)), Some(device)) => format!("[{addr}%{device}]:{}", listener.port),
        (addr, _) => endpoint(addr, listener.port),
    }
}

/// The names of devices, by namespace and number, as snapshots tell them.
#[derive(Debug, Default)]
pub struct DeviceNames(HashMap<(u32, u32), String>);

impl DeviceNames {
    /// Names that are remembered.
    const MOST: usize = 4096;

    /// Takes in what a snapshot says.
    pub fn learn(&mut self, snapshot: &Snapshot) {
        let (Some(number), Some(name)) = (snapshot.listener.device, &snapshot.device_name) else {
            return;
        };
        let device = (snapshot.netns, number);
        if self.0.len() < Self::MOST || self.0.contains_key(&device) {
            self.0.insert(device, name.clone());
        }
    }

    /// The name of the device that a listener is bound to, if it is known.
    #[must_use]
    pub fn of(&self, netns: u32, listener: &Listener) -> Option<&str> {
        let name = self.0.get(&(netns, listener.device?))?;
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_its_name_where_it_is_known() {
        let listener = Listener {
            addr: Some(std::net::Ipv4Addr::UNSPECIFIED.into()),
            port: 179,
            device: Some(4),
            ..Listener::default()
        };
        let mut names = DeviceNames::default();
        assert_eq!(
            listener_words(&listener, names.of(7, &listener)),
            "0.0.0.0%4:179"
        );
        names.learn(&Snapshot {
            netns: 7,
            listener,
            device_name: Some("eth1".to_owned()),
            ..Snapshot::default()
        });
        assert_eq!(
            listener_words(&listener, names.of(7, &listener)),
            "0.0.0.0%eth1:179"
        );
        // The same number is another device elsewhere.
        assert_eq!(names.of(8, &listener), None);
        let v6 = Listener {
            addr: Some(std::net::Ipv6Addr::UNSPECIFIED.into()),
            ..listener
        };
        assert_eq!(listener_words(&v6, Some("eth1")), "[::%eth1]:179");
    }
}

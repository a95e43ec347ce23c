//! How things are worded, everywhere alike: verdicts, addresses, times.

use std::net::{IpAddr, SocketAddr};

use queue_trace_common::outcome::Outcome;

use crate::model::socket::Listener;

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

/// A listener by its address and port, and the device that it is bound to: `0.0.0.0%4:179`.
pub fn listener_words(listener: &Listener) -> String {
    match (listener.addr, listener.device) {
        (Some(IpAddr::V4(addr)), Some(device)) => format!("{addr}%{device}:{}", listener.port),
        (Some(IpAddr::V6(addr)), Some(device)) => format!("[{addr}%{device}]:{}", listener.port),
        (addr, _) => endpoint(addr, listener.port),
    }
}

//! How text words things: verdicts, addresses, times, colours.

use std::{
    fmt::Display,
    net::{IpAddr, SocketAddr},
};

use anstyle::{AnsiColor, Style};
use queue_trace_common::outcome::{Kind, Outcome};

use crate::event::Listener;

pub const DIM: Style = Style::new().dimmed();
pub const BOLD: Style = Style::new().bold();
pub const RED: Style = AnsiColor::Red.on_default();
pub const YELLOW: Style = AnsiColor::Yellow.on_default();
pub const GREEN: Style = AnsiColor::Green.on_default();

/// Width of the column of verdicts.
pub const VERDICT_WIDTH: usize = 20;

/// Whether text has colours.
#[derive(Clone, Copy)]
pub struct Paint(pub bool);

impl Paint {
    /// What goes before and after text in a style.
    pub fn around(self, style: Style) -> (impl Display, impl Display) {
        let style = if self.0 { style } else { Style::new() };
        (style.render(), style.render_reset())
    }

    /// Text in a style, or as it is.
    pub fn styled(self, style: Style, text: &str) -> String {
        let (before, after) = self.around(style);
        format!("{before}{text}{after}")
    }

    /// The verdict as its column, in its colour.
    pub fn verdict(self, outcome: &Outcome) -> String {
        let words = format!("{:<VERDICT_WIDTH$}", verdict_words(outcome));
        self.styled(style_of(outcome), &words)
    }
}

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
fn verdict_words(outcome: &Outcome) -> String {
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

fn style_of(outcome: &Outcome) -> Style {
    match (outcome.kind, outcome.verdict) {
        (Kind::Routine, "accepted" | "established" | "queued") => GREEN,
        (Kind::Routine, _) | (_, "cookie_sent") => YELLOW,
        (Kind::Refusal, _) => RED,
    }
}

/// An address and a port, as they are written together.
#[must_use]
pub fn endpoint(addr: Option<IpAddr>, port: u16) -> String {
    match addr {
        Some(addr) => SocketAddr::new(addr, port).to_string(),
        None => format!("?:{port}"),
    }
}

/// A listener by its address and port.
pub fn listener_words(listener: &Listener) -> String {
    endpoint(listener.addr, listener.port)
}

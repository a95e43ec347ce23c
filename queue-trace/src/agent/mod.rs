//! `queue-trace agent`: always on. What it sees becomes metrics of bounded number, served to
//! scrapers and sent by OTLP, and a recording of each incident with the minute before it.
//!
//! [`registry`] says which metrics there are. [`series`] and [`host`] count, [`exposition`]
//! is what they tell at a moment, [`text`] and [`otlp`] write it. [`recorder`] keeps the last
//! minute. [`pace`] says how often listeners are looked at. [`watch`] is the sink that feeds them all, on the one stream.

pub mod board;
pub mod exposition;
pub mod host;
pub mod labels;
pub mod otlp;
pub mod pace;
mod ports;
pub mod recorder;
pub mod registry;
pub mod series;
pub mod server;
pub mod settings;
pub mod systemd;
pub mod text;
pub mod trouble;
pub mod watch;
pub mod words;

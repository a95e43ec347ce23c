//! queue-trace tells which TCP listener refuses connections, what the kernel did to
//! each packet, and why.
//!
//! Data flows one way, and the folders are in its order. `model` has the types that
//! everything speaks in. `kernel` gathers facts, decides which functions to watch, loads
//! and attaches the kernel side, and decodes its records. `listeners` finds out whose
//! queue it is, how full and for how long. `trace` makes a stream of it and audits it
//! against the kernel's own counters. A `sink` writes the stream; `recording` reads it
//! back; `diagnose`, `report` and `top` draw conclusions from it. `commands` has a file for
//! each thing that the program does. `lab` makes cases of refused handshakes, for the
//! self-test, the demo and the tests.
//!
//! `model`, `options`, `sink`, `recording`, `diagnose`, `report` and `top` do without a
//! kernel to watch, and work on any system.

pub mod aside;
pub mod commands;
pub mod diagnose;
pub mod model;
pub mod options;
pub mod recording;
pub mod report;
pub mod sink;
pub mod stderr;
pub mod stop;
#[cfg(target_os = "linux")]
pub mod stopping;
pub mod top;

#[cfg(target_os = "linux")]
pub mod agent;
#[cfg(target_os = "linux")]
pub mod kernel;
#[cfg(target_os = "linux")]
pub mod lab;
#[cfg(target_os = "linux")]
pub mod listeners;
#[cfg(target_os = "linux")]
pub mod trace;

pub use commands::{Cli, run};

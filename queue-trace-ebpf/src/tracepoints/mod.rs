//! The verdicts from tracepoints alone.

mod listeners;
mod packets;

//! The verdicts from tracepoints alone: `delivered` where the kernel shows each packet right
//! before the socket decides on it, `packets` and `listeners` where it does not, `reasons` what
//! never reaches a listener's queues.

mod delivered;
mod freed;
mod listeners;
mod packets;
mod reasons;
mod turn;

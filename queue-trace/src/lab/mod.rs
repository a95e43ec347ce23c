//! The laboratory: private network namespaces with real listeners and clients,
//! in which every refusal of a TCP handshake can be produced at will.
//!
//! Everything happens on the loopback device of namespaces made here and gone
//! with them; nothing is sent from, to or through the host's own network.
//! [`scenario`] is the registry of ready-made cases, the other modules are what
//! they are built from. What the kernel makes of the traffic is not judged here:
//! that is the tracer's work, and its tests'.

mod connect;
mod family;
mod listen;
mod loopback;
mod netns;
pub mod raw;
pub mod scenario;
mod socket_table;
#[cfg(test)]
mod tests;

pub use connect::{Connect, Ending, Pace, connect_each, connect_fast};
pub use family::Family;
pub use listen::{Listen, listen};
pub use loopback::{add_address, scope, wait_for_backlogs};
pub use netns::Netns;
pub use socket_table::half_open;

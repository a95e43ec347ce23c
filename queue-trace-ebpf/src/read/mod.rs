//! All that reads the kernel: its memory, a packet's headers, a socket, the counters.

pub mod counters;
pub mod memory;
pub mod packet;
pub mod socket;

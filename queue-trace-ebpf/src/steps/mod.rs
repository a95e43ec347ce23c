//! The steps of a handshake, a file for each: the programs are shells (`shells`) around a body
//! that fentry and kprobe share.

mod accept;
mod ack;
pub mod close;
pub mod front;
mod icmp;
pub mod nobody;
pub mod refused;
mod request;
mod scheduler;
mod shells;
pub mod syn;
mod timer;

//! What the kernel side and the user side of queue-trace share: the registry of
//! outcomes, the kernel's counters that prove them, the kernel fields that are
//! read, the settings passed down, the record that travels up, and what can be lost.
//!
//! Everything on the wire is plain data: `#[repr(C)]`, fixed-width integers,
//! explicit padding, integer tags. Nothing here allocates or does I/O.
#![no_std]

pub mod counter;
pub mod field;
pub mod hook;
pub mod loss;
pub mod outcome;
pub mod queue;
pub mod reason;
pub mod record;
pub mod settings;

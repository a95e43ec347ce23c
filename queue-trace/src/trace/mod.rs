//! The stream: events as they happen, with what was withheld of them, and the audit of all
//! of it against the kernel's own counters.

pub mod audit;
pub mod losses;
mod seconds;
pub mod stream;
pub mod totals;
pub mod withheld;

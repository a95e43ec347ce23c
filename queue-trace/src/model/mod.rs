//! The types that every stage speaks in: what happened to a handshake, whose queue it was,
//! how full, and the lines of a recording. Pure: no file, no clock but what [`clock`] reads,
//! no kernel. It imports no other stage.

pub mod clients;
pub mod clock;
pub mod event;
pub mod front;
pub mod latency;
pub mod ledger;
pub mod lines;
pub mod printable;
pub mod runtime;
pub mod snapshot;
pub mod socket;
pub mod space_saving;
pub mod stall;
pub mod words;

//! The harness of the live tests: runs the real program on the running kernel, and
//! holds what it tells against what the laboratory imposed and against the kernel's
//! own counters, which it reads for itself.
//!
//! Two variables say what to test: `QUEUE_TRACE_BIN`, the program, and
//! `QUEUE_TRACE_ATTACH`, the way it attaches. `cargo xtask live` and
//! `cargo xtask vm test` set them. Everything here panics, as tests do: a live test
//! that cannot run fails.

#![expect(
    clippy::unwrap_used,
    reason = "as in tests: what is not there is a failure, and says so"
)]

mod attached;
mod bpf;
mod cookies;
mod counters;
mod expected;
mod mounts;
mod recording;
mod room;
mod scratch;
#[path = "../../queue-trace/tests/screen/mod.rs"]
mod screen;
mod security;
mod setting;
pub mod signals;
mod tracer;
mod unproven;

pub use cookies::make_cookies;
pub use counters::Counters;
pub use expected::{Shown, Sums, expected, imposed, name_of};
pub use mounts::{Mounts, in_private_mounts};
pub use recording::{Event, FrontSides, Ledger, Line, Recording, Row, Sides, Spread, Total};
pub use room::{Inhabitant, Room, listener_beside};
pub use scratch::Scratch;
pub use screen::{Screen, terminal};
pub use security::SecurityModule;
pub use setting::{Attach, attach, kernel, program};
pub use tracer::{Finished, Launch, Tracer};
pub use unproven::{ALL, UNPROVEN, unproven};

//! The live tests: the real program on the running kernel. `cargo xtask live` runs
//! them on this machine's kernel, `cargo xtask vm test` on those of the matrix.
//!
//! A file for each subject. [`environment`] comes first: it proves that the kernel
//! does what the other tests impose on it.

#![expect(
    clippy::unwrap_used,
    reason = "what is not there is a failure, in helpers of tests as in tests"
)]

mod agent;
mod audit;
mod bad_input;
mod bench;
mod check;
mod churn;
mod concurrency;
mod defaults;
mod demo;
mod diagnose;
mod ending;
mod environment;
mod experiments;
mod faults;
mod filters;
mod floods;
mod guide;
mod handshakes;
mod in_front;
mod incidents;
mod ledger;
mod listeners;
mod loss;
mod namespaces;
mod output;
mod overflow;
mod owners;
mod privileges;
mod put_off;
mod queues;
mod rare;
mod recordings;
mod records;
mod refused;
mod scenarios;
mod servers;
mod service;
mod stall;
mod switches;
mod top;

//! All that outlives a program: the globals, the maps, what is lost and what changed.

pub mod config;
pub mod exchange;
pub mod listening;
pub mod maps;
pub mod tally;
pub mod types;

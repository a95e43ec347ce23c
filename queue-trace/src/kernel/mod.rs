//! The kernel: facts about it, the decision how to watch it, and the kernel side at work.
//!
//! `host` and `btf` gather facts, `plan` decides which functions to watch, `probe` loads and
//! attaches; `session` does all of it in order, and is the one way to attach. `selection` is
//! what the user wants to see, as the kernel side filters it. `judgement` says
//! what a kernel would allow that need not run here. `decode` turns bytes into
//! events. `netns` finds network namespaces. `text` reads the kernel's small files.

pub mod btf;
pub mod decode;
pub mod host;
pub mod judgement;
pub mod mark;
pub mod namespaces;
pub mod netns;
pub mod obstacle;
pub mod plan;
pub mod privilege;
pub mod probe;
pub mod seccomp;
pub mod selection;
pub mod self_test;
pub mod session;
pub mod text;

//! What is tested: which program, attached how.

use std::{env, path::PathBuf};

/// How the program is made to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// fentry and fexit.
    Fentry,
    /// kprobe and kretprobe.
    Kprobe,
    /// Tracepoints alone.
    Tracepoint,
}

impl Attach {
    /// As on the command line.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tracepoint => "tracepoint",
        }
    }
}

/// The program under test.
#[must_use]
pub fn program() -> PathBuf {
    let path = PathBuf::from(variable("QUEUE_TRACE_BIN"));
    assert!(
        path.is_file(),
        "QUEUE_TRACE_BIN: no file {}",
        path.display()
    );
    path
}

/// How it is to attach.
#[must_use]
pub fn attach() -> Attach {
    let name = variable("QUEUE_TRACE_ATTACH");
    [Attach::Fentry, Attach::Kprobe, Attach::Tracepoint]
        .into_iter()
        .find(|attach| attach.name() == name)
        .unwrap_or_else(|| {
            panic!("QUEUE_TRACE_ATTACH is {name:?}, not fentry, kprobe or tracepoint")
        })
}

/// The running kernel's version, its first two numbers.
#[must_use]
pub fn kernel() -> (u32, u32) {
    let uname = rustix::system::uname();
    let release = uname.release().to_str().unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().unwrap().parse().unwrap();
    (number(), number())
}

fn variable(name: &str) -> String {
    env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run the live tests by `cargo xtask live`"))
}

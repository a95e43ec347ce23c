//! The language that a program was compiled from, where its file says so: compiled
//! programs have the names that their authors gave them.

use std::fs::File;

use object::{Object, ObjectSection, ReadCache};

/// The language of the program that a process runs; `None` if the file may not be seen or
/// does not say.
#[must_use]
pub fn of(pid: u32) -> Option<&'static str> {
    let file = ReadCache::new(File::open(format!("/proc/{pid}/exe")).ok()?);
    let program = object::File::parse(&file).ok()?;
    if program.section_by_name(".note.go.buildid").is_some() {
        return Some(GO);
    }
    // The compiler's version; distributions take it out, and leave what a debugger is to load.
    let says = |section: &str, tells: fn(&[u8]) -> bool| {
        let section = program.section_by_name(section);
        let data = section.and_then(|section| section.data().ok());
        data.is_some_and(|data| data.split(|byte| *byte == 0).any(tells))
    };
    let is_rust = says(".comment", |text| text.starts_with(b"rustc version"))
        || says(".debug_gdb_scripts", |text| {
            text.ends_with(b"gdb_load_rust_pretty_printers.py")
        });
    is_rust.then_some(RUST)
}

pub use crate::model::runtime::{GO, RUST};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_is_of_rust_and_the_shell_is_not() {
        assert_eq!(of(std::process::id()), Some(RUST));
        let mut shell = std::process::Command::new("cat")
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        assert_eq!(of(shell.id()), None);
        drop(shell.stdin.take());
        shell.wait().unwrap();
    }
}

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
    let comment = program.section_by_name(".comment")?;
    let tells = |text: &[u8]| text.starts_with(b"rustc version");
    let mut texts = comment.data().ok()?.split(|byte| *byte == 0);
    texts.any(tells).then_some(RUST)
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

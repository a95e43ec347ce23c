//! Runs programs of tests, and sees that they ran any: a filter that fits nothing passes.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::process;

/// Runs it and shows what it prints. Fails if it fails, or if no test passed.
pub fn run(command: &mut Command) -> Result<()> {
    let mut child = process::start(command.stdout(Stdio::piped()))?;
    let mut passed = 0;
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            println!("{line}");
            passed += passed_in(&line);
        }
    }
    process::succeeded(command, child.wait()?)?;
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Of a line like `test result: ok. 12 passed; 0 failed; …`; 0 of others.
fn passed_in(line: &str) -> u32 {
    let passed = line
        .strip_prefix("test result: ok. ")
        .and_then(|rest| rest.split_once(" passed"));
    passed
        .and_then(|(number, _)| number.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_closing_line_has_the_number() {
        let line = "test result: ok. 12 passed; 0 failed; 3 ignored; 0 measured; 9 filtered out";
        assert_eq!(passed_in(line), 12);
        assert_eq!(passed_in("test a ... ok"), 0);
        assert_eq!(passed_in("test result: FAILED. 12 passed; 1 failed"), 0);
    }

    #[test]
    fn a_program_that_ran_no_test_fails() {
        let say = |words: &str| run(Command::new("echo").arg(words));
        assert!(say("test result: ok. 1 passed; 0 failed").is_ok());
        assert!(say("test result: ok. 0 passed; 0 failed; 7 filtered out").is_err());
        assert!(run(&mut Command::new("false")).is_err());
    }
}

//! Why the kernel refused a program, in its own words.

use aya::programs::ProgramError;

/// The kernel's reason without the library's wrapping: the last cause, and the last
/// lines of the verifier's log where there is one.
pub(super) fn reason(error: &ProgramError) -> String {
    if let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    {
        let log = verifier_log.to_string();
        let tail: Vec<_> = log.lines().rev().take(3).collect();
        if tail.is_empty() {
            return format!("the kernel refuses the program: {io_error}");
        }
        let tail: Vec<_> = tail.into_iter().rev().collect();
        return format!(
            "the kernel's verifier refuses the program: {io_error}; its last words: {}",
            tail.join(" | ")
        );
    }
    let mut deepest: &dyn std::error::Error = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

//! Signals as a child process finds them. Whoever runs the tests may have some ignored (a shell
//! does so to what runs in its background), and the program heeds that.

#![expect(unsafe_code, reason = "what happens between fork and exec")]

use std::{os::unix::process::CommandExt, process::Command};

/// Those that a shell or nohup ignores.
const OFTEN_IGNORED: &[i32] = &[libc::SIGINT, libc::SIGQUIT, libc::SIGHUP];

/// It starts with what they do by default.
pub fn heed(command: &mut Command) {
    dispose(command, libc::SIG_DFL);
}

/// It starts with them ignored.
pub fn ignore(command: &mut Command) {
    dispose(command, libc::SIG_IGN);
}

fn dispose(command: &mut Command, how: libc::sighandler_t) {
    let dispose = move || {
        for signal in OFTEN_IGNORED {
            // SAFETY: a system call, which is all that may happen between fork and exec.
            unsafe { libc::signal(*signal, how) };
        }
        Ok(())
    };
    // SAFETY: as above.
    unsafe { command.pre_exec(dispose) };
}

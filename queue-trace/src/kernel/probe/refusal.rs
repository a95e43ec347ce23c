//! Why the kernel side could not be attached, and what a refusal of the kernel means.

use std::io;

use anyhow::anyhow;
use aya::programs::ProgramError;
use queue_trace_common::hook::Hook;
use rustix::io::Errno;

/// Why the kernel side could not be attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The kernel refused a hook, or the family as a whole; another may do.
    #[error("{}{why}", hook.map(|hook| format!("{}: ", hook.function)).unwrap_or_default())]
    Refused {
        /// Which hook, if one.
        hook: Option<&'static Hook>,
        /// What the kernel said.
        why: String,
    },
    /// A signal came while the kernel verified a program.
    #[error("{0}")]
    Interrupted(String),
    /// Packets cannot be seen right before a socket decides on them; the rest may do.
    #[error("{0}")]
    Delivery(String),
    /// The kernel's reasons for freeing a packet cannot be looked at; the rest may do.
    #[error("{0}")]
    Reasons(String),
    /// Nothing will do.
    #[error(transparent)]
    Other(#[from] anyhow::Error),
}

/// What a refusal means: the kernel's own, or something about this process or this moment, which
/// another way to attach would meet as well.
pub(super) fn refused(
    hook: Option<&'static Hook>,
    why: String,
    error: &ProgramError,
) -> AttachError {
    if let Some(lacking) = lacking(error, &why) {
        return AttachError::Other(lacking);
    }
    match errno(error) {
        // A signal ends a verification (EAGAIN), and the library's second attempt, which
        // fetches the verifier's log, finds no room for that of a good program.
        Some(Errno::AGAIN | Errno::INTR | Errno::NOSPC) => AttachError::Interrupted(why),
        _ => AttachError::Refused { hook, why },
    }
}

/// What this process or this machine has too little of, if that is why.
pub(super) fn lacking(
    error: &(dyn std::error::Error + 'static),
    why: &str,
) -> Option<anyhow::Error> {
    match errno(error)? {
        Errno::MFILE => Some(anyhow!(
            "this process may not open as many files as attaching takes (some 200): raise \
             its limit (ulimit -n, LimitNOFILE= in a unit)"
        )),
        Errno::NFILE => Some(anyhow!(
            "this machine has no room for more open files: raise fs.file-max"
        )),
        Errno::NOMEM => Some(anyhow!(
            "the kernel has no memory ({why}): raise the memory limit of its cgroup"
        )),
        _ => None,
    }
}

/// The error number that is deepest in an error.
fn errno(error: &(dyn std::error::Error + 'static)) -> Option<Errno> {
    let mut cause = Some(error);
    let mut errno = None;
    while let Some(error) = cause {
        let io = error.downcast_ref::<io::Error>();
        errno = io.and_then(Errno::from_io_error).or(errno);
        cause = error.source();
    }
    errno
}

//! The limits of this process.

use anyhow::{Result, bail};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::Errno,
    process::{Resource, getrlimit, setrlimit},
};

/// Raises the number of files that may be open to what is allowed: each program, map and link
/// is one. The limit in force is lower by default only for programs that use select(2).
pub(super) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it fails, attaching tells what it lacked.
    let _ = setrlimit(Resource::Nofile, limit);
}

/// The event loop opens a few files and does not take no for an answer.
const EVENT_LOOP: usize = 8;

/// Whether so many files can be opened as the event loop takes.
///
/// # Errors
/// If not, with what to do about it.
pub(super) fn leave_room_for_the_event_loop() -> Result<()> {
    let files = (0..EVENT_LOOP).map(|_| eventfd(0, EventfdFlags::CLOEXEC));
    match files.collect::<Result<Vec<_>, _>>() {
        Err(Errno::MFILE) => bail!(
            "this process may not open as many files as it takes to begin ({EVENT_LOOP}): raise \
             its limit (ulimit -n, LimitNOFILE= in a unit)"
        ),
        Err(Errno::NFILE) => {
            bail!("this machine has no room for more open files: raise fs.file-max")
        }
        // Of anything else the event loop tells.
        _ => Ok(()),
    }
}

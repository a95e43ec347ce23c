//! The limits of this process.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the number of files that may be open to what is allowed: each program, map and link
/// is one. The limit in force is lower by default only for programs that use select(2).
pub(super) fn raise_open_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // If it fails, attaching tells what it lacked.
    let _ = setrlimit(Resource::Nofile, limit);
}

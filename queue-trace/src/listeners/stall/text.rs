//! Files of the kernel as text.

use std::{fs::File, io, io::Read, path::Path};

/// Not more of a file is read, bytes.
const MOST: u64 = 1 << 20;

/// The text of a file, not more than a bounded part of it.
///
/// # Errors
/// If it is not there, or may not be read.
pub fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

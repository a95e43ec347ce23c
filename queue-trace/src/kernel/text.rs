//! Files of the kernel as text, with as few system calls as can be: the kernel does not tell how
//! long they are, so a reader that asks for a few bytes first has to ask again and again.

use std::{fs::File, io, io::Read, path::Path};

/// Not more of a file is read, bytes.
const MOST: u64 = 1 << 20;

/// Most files are shorter, bytes.
const SHORT: usize = 4096;

/// The text of a file, not more than a bounded part of it.
///
/// # Errors
/// If it is not there, or may not be read.
pub fn text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::with_capacity(SHORT);
    File::open(path)?.take(MOST).read_to_end(&mut bytes)?;
    Ok(String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_is_whole_and_what_is_no_text_is_marked() {
        let path = std::env::temp_dir().join(format!("queue-trace-text-{}", std::process::id()));
        let long = "line\n".repeat(5000);
        std::fs::write(&path, &long).unwrap();
        assert_eq!(text(&path).unwrap(), long);
        std::fs::write(&path, b"a\xffb").unwrap();
        assert_eq!(text(&path).unwrap(), "a\u{fffd}b");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text(&path).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}

//! The compressions that recordings come in: told by the name when one is written, by the first
//! bytes when one is read.

use std::{
    ffi::OsStr,
    io::{self, BufRead, BufReader, Cursor, Read},
    path::Path,
};

use flate2::bufread::MultiGzDecoder;

/// A compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Zstandard, `.zst`.
    Zstd,
    /// gzip, `.gz`.
    Gzip,
}

/// So many of the first bytes tell it.
pub const MAGIC: u64 = 4;

const BUFFER: usize = 256 << 10;

/// The window of Zstandard that is taken at most, as a power of two: 32 MiB, as levels up to
/// 20 have. A larger one would take as much memory as its file says.
const WINDOW: u32 = 25;

impl Packing {
    /// As the end of the name says.
    #[must_use]
    pub fn named(path: &Path) -> Option<Self> {
        match path.extension().and_then(OsStr::to_str) {
            Some("zst") => Some(Self::Zstd),
            Some("gz") => Some(Self::Gzip),
            _ => None,
        }
    }

    /// As the first bytes say.
    #[must_use]
    pub fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            _ => None,
        }
    }
}

/// The text of a file, as its first bytes say.
///
/// # Errors
/// If its beginning cannot be read.
pub fn unpacked(mut bytes: Box<dyn Read>) -> io::Result<Box<dyn BufRead>> {
    let mut start = Vec::new();
    (&mut bytes).take(MAGIC).read_to_end(&mut start)?;
    let packing = Packing::of(&start);
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(start).chain(bytes));
    Ok(match packing {
        Some(Packing::Zstd) => {
            let mut decoder = zstd::Decoder::with_buffer(whole)?;
            decoder.window_log_max(WINDOW)?;
            Box::new(BufReader::with_capacity(BUFFER, decoder))
        }
        Some(Packing::Gzip) => {
            Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(whole)))
        }
        None => Box::new(whole),
    })
}

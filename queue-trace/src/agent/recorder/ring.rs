//! The last minute of lines, compressed second by second, in bounded memory. A piece is a
//! zstd frame of its own: several one after the other are a file that any reader takes.

use std::{collections::VecDeque, io, time::Duration};

use zstd::bulk::Compressor;

/// Lines of a second or so.
#[derive(Debug, Clone, Default)]
pub struct Piece {
    /// When it was closed.
    pub at: Duration,
    /// The lines, compressed.
    pub bytes: Vec<u8>,
    /// How many.
    pub lines: u64,
}

/// The last pieces.
pub struct Ring {
    compressor: Compressor<'static>,
    open: Vec<u8>,
    lines: u64,
    pieces: VecDeque<Piece>,
    bytes: usize,
    /// How long a piece stays.
    pub before: Duration,
    /// Bytes of all pieces, at most.
    pub most: usize,
}

/// An open piece is closed at this size, whatever the time.
const OPEN: usize = 1 << 20;

impl Ring {
    /// Keeps pieces for so long, and no more than so many bytes.
    ///
    /// # Errors
    /// If there is no memory for the compressor.
    pub fn new(before: Duration, most: usize) -> io::Result<Self> {
        Ok(Self {
            compressor: Compressor::new(1)?,
            open: Vec::new(),
            lines: 0,
            pieces: VecDeque::new(),
            bytes: 0,
            before,
            most,
        })
    }

    /// Takes in a line, without its end.
    pub fn line(&mut self, line: &[u8]) {
        self.open.extend_from_slice(line);
        self.open.push(b'\n');
        self.lines += 1;
    }

    /// Whether the open piece should be closed now.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.open.len() >= OPEN
    }

    /// Closes the open piece, and forgets what is too old or too much. Gives the piece, if
    /// there is anything in it.
    ///
    /// # Errors
    /// If it cannot be compressed.
    pub fn turn(&mut self, now: Duration) -> io::Result<Option<&Piece>> {
        let closed = if self.open.is_empty() {
            false
        } else {
            let piece = Piece {
                at: now,
                bytes: self.compressor.compress(&self.open)?,
                lines: self.lines,
            };
            self.open.clear();
            self.open.shrink_to(64 << 10);
            self.lines = 0;
            self.bytes += piece.bytes.len();
            self.pieces.push_back(piece);
            true
        };
        while let Some(first) = self.pieces.front() {
            let old = now.saturating_sub(first.at) > self.before;
            if !old && self.bytes <= self.most {
                break;
            }
            self.bytes -= first.bytes.len();
            self.pieces.pop_front();
        }
        Ok(self.pieces.back().filter(|_| closed))
    }

    /// A piece of these lines alone, which is not kept.
    ///
    /// # Errors
    /// If it cannot be compressed.
    pub fn apart(&mut self, lines: &[u8]) -> io::Result<Vec<u8>> {
        self.compressor.compress(lines)
    }

    /// The pieces, the oldest first.
    pub fn pieces(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter()
    }

    /// Bytes of all pieces.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(ring: &Ring) -> String {
        let all: Vec<u8> = ring
            .pieces()
            .flat_map(|piece| piece.bytes.clone())
            .collect();
        String::from_utf8(zstd::decode_all(&all[..]).unwrap()).unwrap()
    }

    #[test]
    fn the_last_minute_stays_and_no_more() {
        let mut ring = Ring::new(Duration::from_secs(60), 1 << 20).unwrap();
        for second in 0..100 {
            ring.line(format!("{second}").as_bytes());
            let piece = ring.turn(Duration::from_secs(second)).unwrap();
            assert_eq!(piece.map(|piece| piece.lines), Some(1));
        }
        let lines: Vec<_> = text(&ring).lines().map(str::to_owned).collect();
        assert_eq!(lines.first().map(String::as_str), Some("39"));
        assert_eq!(lines.len(), 61);
        // Quiet: nothing is added, and what is old goes.
        assert!(ring.turn(Duration::from_secs(1000)).unwrap().is_none());
        assert_eq!(ring.bytes(), 0);
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut ring = Ring::new(Duration::from_secs(60), 4096).unwrap();
        let mut state = 1u64;
        for second in 0..50 {
            for _ in 0..100 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ring.line(format!("{state:x}").as_bytes());
            }
            ring.turn(Duration::from_secs(second)).unwrap();
            assert!(ring.bytes() <= 4096);
        }
        assert!(ring.pieces().count() > 1);
    }
}

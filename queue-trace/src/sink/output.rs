//! What sinks write to: standard output or a file, compressed if its name asks for it.
//!
//! Whatever kills the program, what was flushed can be read again: a compressed file is
//! flushed to the end of a block, once a second at most, as that costs size.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use flate2::write::GzEncoder;
use zstd::stream::write::Encoder as ZstdEncoder;

/// Something that can be written to the end.
pub trait Medium: Write {
    /// Writes out all, and what marks its end. Nothing may be written after it.
    ///
    /// # Errors
    /// What the writer says.
    fn finish(&mut self) -> io::Result<()> {
        self.flush()
    }
}

impl Medium for Vec<u8> {}

/// Whether the person at the terminal takes colours.
#[must_use]
pub fn person_wants_colour() -> bool {
    let says_no = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    !says_no("NO_COLOR") && !dumb
}

/// Standard output or a file.
pub struct Output {
    form: Form,
    path: Option<PathBuf>,
    terminal: bool,
    flushed: Instant,
}

enum Form {
    Plain(BufWriter<Tally<Box<dyn Write>>>),
    Zstd(ZstdEncoder<'static, Tally<File>>),
    Gzip(GzEncoder<Tally<File>>),
}

/// How often a compressed file is flushed at most.
const FLUSH: Duration = Duration::from_secs(1);

impl Output {
    /// Standard output, or a new file at the path.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        let (form, terminal) = match path {
            None => (Form::plain(standard()), io::stdout().is_terminal()),
            Some(path) => {
                let cannot = || format!("cannot write to {}", path.display());
                let file = File::create(path).with_context(cannot)?;
                (Form::named(path, file).with_context(cannot)?, false)
            }
        };
        Ok(Self {
            form,
            path: path.map(Path::to_owned),
            terminal,
            flushed: Instant::now(),
        })
    }

    /// Whether a person may be looking at it in colour.
    #[must_use]
    pub fn wants_colour(&self) -> bool {
        self.terminal && person_wants_colour()
    }

    /// The name by which the user knows it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.path {
            Some(path) => path.display().to_string(),
            None => "standard output".to_owned(),
        }
    }

    /// How many bytes have arrived in the file; what is still buffered does not count.
    #[must_use]
    pub fn size(&self) -> u64 {
        match &self.form {
            Form::Plain(writer) => writer.get_ref().bytes,
            Form::Zstd(writer) => writer.get_ref().bytes,
            Form::Gzip(writer) => writer.get_ref().bytes,
        }
    }
}

#[cfg(target_os = "linux")]
fn standard() -> Box<dyn Write> {
    Box::new(super::standard::Standard::default())
}

#[cfg(not(target_os = "linux"))]
fn standard() -> Box<dyn Write> {
    Box::new(io::stdout())
}

impl Form {
    fn plain(writer: Box<dyn Write>) -> Self {
        Self::Plain(BufWriter::with_capacity(64 << 10, Tally::of(writer)))
    }

    /// As the end of the name says.
    fn named(path: &Path, file: File) -> io::Result<Self> {
        let ending = path.extension().and_then(|ending| ending.to_str());
        Ok(match ending {
            Some("zst") => Self::Zstd(ZstdEncoder::new(
                Tally::of(file),
                zstd::DEFAULT_COMPRESSION_LEVEL,
            )?),
            Some("gz") => Self::Gzip(GzEncoder::new(
                Tally::of(file),
                flate2::Compression::default(),
            )),
            _ => Self::plain(Box::new(file)),
        })
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.form {
            Form::Plain(writer) => writer.write(bytes),
            Form::Zstd(writer) => writer.write(bytes),
            Form::Gzip(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        if let Form::Plain(writer) = &mut self.form {
            return writer.flush();
        }
        if self.flushed.elapsed() < FLUSH {
            return Ok(());
        }
        self.flushed = Instant::now();
        match &mut self.form {
            Form::Plain(writer) => writer.flush(),
            Form::Zstd(writer) => writer.flush(),
            Form::Gzip(writer) => writer.flush(),
        }
    }
}

impl Medium for Output {
    fn finish(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Plain(writer) => writer.flush(),
            Form::Zstd(writer) => writer.do_finish(),
            Form::Gzip(writer) => writer.try_finish(),
        }
    }
}

/// Counts what goes through.
struct Tally<W> {
    writer: W,
    bytes: u64,
}

impl<W> Tally<W> {
    fn of(writer: W) -> Self {
        Self { writer, bytes: 0 }
    }
}

impl<W: Write> Write for Tally<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

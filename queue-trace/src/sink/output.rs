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

#[cfg(unix)]
use super::file::refuse_inputs;
use super::{file::NewFile, packed::Packing};

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

/// Standard output or a file. A file takes its place when it is told to, or at the latest when
/// all is written.
pub struct Output {
    form: Form,
    file: Option<NewFile>,
    terminal: bool,
    flushed: Instant,
}

enum Form {
    Plain(BufWriter<CountedBytes<Box<dyn Write>>>),
    Zstd(ZstdEncoder<'static, CountedBytes<File>>),
    Gzip(GzEncoder<CountedBytes<File>>),
}

/// How often a compressed file is flushed at most, and looked at whether it is still there.
const FLUSH: Duration = Duration::from_secs(1);

impl Output {
    /// Standard output, or a new file that is to take its place at the path.
    ///
    /// # Errors
    /// If the file cannot be made.
    pub fn open(path: Option<&Path>) -> Result<Self> {
        match path {
            None => Ok(Self::standard()),
            Some(path) => Self::to(NewFile::prepare(path)?),
        }
    }

    /// Standard output.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            form: Form::plain(standard()),
            file: None,
            terminal: io::stdout().is_terminal(),
            flushed: Instant::now(),
        }
    }

    /// A new file.
    ///
    /// # Errors
    /// If it cannot be written to.
    pub fn to(file: NewFile) -> Result<Self> {
        let cannot = || format!("cannot write to {}", file.path().display());
        let form = file
            .writer()
            .and_then(|writer| Form::named(file.path(), writer));
        Ok(Self {
            form: form.with_context(cannot)?,
            file: Some(file),
            terminal: false,
            flushed: Instant::now(),
        })
    }

    /// Lets the file be found at its path from now on, not only when all is written.
    ///
    /// # Errors
    /// If its place is taken, or cannot be taken.
    pub fn appear(&mut self) -> Result<()> {
        let name = self.name();
        let placed = self.file.as_mut().map_or(Ok(()), NewFile::take_place);
        placed.with_context(|| format!("cannot write to {name}"))
    }

    /// Fails if it is what one of these inputs is read from.
    ///
    /// # Errors
    /// Which one it is.
    pub fn is_none_of(&self, inputs: &[PathBuf]) -> Result<()> {
        match &self.file {
            Some(file) => file.is_none_of(inputs),
            None => standard_output_is_none_of(inputs),
        }
    }

    /// Whether it is standard output.
    #[must_use]
    pub fn is_standard(&self) -> bool {
        self.file.is_none()
    }

    /// Whether a person may be looking at it in colour.
    #[must_use]
    pub fn wants_colour(&self) -> bool {
        self.terminal && person_wants_colour()
    }

    /// The name by which the user knows it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.file {
            Some(file) => file.path().display().to_string(),
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

/// A regular file as standard output that is read at the same time grows without end.
#[cfg(unix)]
fn standard_output_is_none_of(inputs: &[PathBuf]) -> Result<()> {
    use std::os::fd::AsFd;
    let Ok(stdout) = io::stdout().as_fd().try_clone_to_owned().map(File::from) else {
        return Ok(());
    };
    if stdout.metadata().is_ok_and(|about| about.is_file()) {
        refuse_inputs(&stdout, inputs, "standard output")?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn standard_output_is_none_of(_: &[PathBuf]) -> Result<()> {
    Ok(())
}

impl Form {
    fn plain(writer: Box<dyn Write>) -> Self {
        Self::Plain(BufWriter::with_capacity(64 << 10, CountedBytes::of(writer)))
    }

    /// As the end of the name says.
    fn named(path: &Path, file: File) -> io::Result<Self> {
        Ok(match Packing::named(path) {
            Some(Packing::Zstd) => Self::Zstd(ZstdEncoder::new(
                CountedBytes::of(file),
                zstd::DEFAULT_COMPRESSION_LEVEL,
            )?),
            Some(Packing::Gzip) => Self::Gzip(GzEncoder::new(
                CountedBytes::of(file),
                flate2::Compression::default(),
            )),
            None => Self::plain(Box::new(file)),
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
        let due = self.flushed.elapsed() >= FLUSH;
        match &mut self.form {
            Form::Plain(writer) => writer.flush()?,
            _ if !due => {}
            Form::Zstd(writer) => writer.flush()?,
            Form::Gzip(writer) => writer.flush()?,
        }
        if due {
            self.flushed = Instant::now();
            self.file.as_ref().map_or(Ok(()), NewFile::is_still_there)?;
        }
        Ok(())
    }
}

impl Medium for Output {
    fn finish(&mut self) -> io::Result<()> {
        match &mut self.form {
            Form::Plain(writer) => writer.flush()?,
            Form::Zstd(writer) => writer.do_finish()?,
            Form::Gzip(writer) => writer.try_finish()?,
        }
        if let Some(file) = &mut self.file {
            file.take_place()?;
            file.is_still_there()?;
        }
        Ok(())
    }
}

/// Counts what goes through.
struct CountedBytes<W> {
    writer: W,
    bytes: u64,
}

impl<W> CountedBytes<W> {
    fn of(writer: W) -> Self {
        Self { writer, bytes: 0 }
    }
}

impl<W: Write> Write for CountedBytes<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

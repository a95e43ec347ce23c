//! Reads recordings line by line, in constant memory: all that is whole is given, and what
//! is missing is noted. Compression is told by the first bytes, not by the name.

use std::{
    collections::{BTreeMap, VecDeque},
    fs::File,
    io::{self, BufRead, Read, Seek, SeekFrom},
    path::PathBuf,
};

use anyhow::{Context, Result, bail};

use super::{Fault, Line, input::Input};
use crate::{
    model::{lines::SCHEMA, printable::printable},
    sink::packed::{MAGIC, Packing, unpacked},
};

/// Longer than any line that queue-trace writes.
const LONGEST: u64 = 1 << 20;
/// So many kinds of fault are told apart; the rest is summed up.
const KINDS: usize = 16;
/// So much without a line's end, or without a single line that is understood, is no recording:
/// bytes.
const NONSENSE: u64 = 64 << 20;
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A line, and the bytes that it was read from, without the line's end.
#[derive(Debug)]
pub struct Entry<'a> {
    /// As it stands in the file.
    pub raw: &'a [u8],
    /// What it says; `None` if this version does not know its type or words.
    pub line: Option<Line>,
}

/// A place between two lines, from which can be read on: see [`Reader::open_at`].
#[derive(Debug, Clone, Copy, Default)]
pub struct ReaderPlace {
    /// Which of the files.
    file: usize,
    /// Where in its text, bytes.
    offset: u64,
    /// How many lines before it were understood.
    pub understood: u64,
}

/// Reads one recording, or the files of one recording in order.
pub struct Reader {
    left: VecDeque<Input>,
    /// How many files are read already.
    done: usize,
    file: Option<OpenFile>,
    buffer: Vec<u8>,
    understood: u64,
    notes: Vec<String>,
    /// Of the first file: what it is, if it is no recording at all.
    first_line: Option<String>,
    /// Whether something kept a file from being read to its end.
    damaged: bool,
}

/// The file that is being read.
struct OpenFile {
    name: String,
    bytes: Box<dyn BufRead>,
    /// How many bytes of its text were read.
    offset: u64,
    lines: u64,
    headed: bool,
    ended: Option<u64>,
    cut: Option<String>,
    faults: BTreeMap<String, FaultTally>,
}

/// How often something was found, and where first.
struct FaultTally {
    count: u64,
    first: u64,
}

impl Reader {
    /// Opens the files; `-` is standard input.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn open(files: &[PathBuf]) -> Result<Self> {
        let named = |path: &PathBuf| {
            Input::find(path).with_context(|| format!("cannot read {}", path.display()))
        };
        Ok(Self {
            left: files.iter().map(named).collect::<Result<_>>()?,
            done: 0,
            file: None,
            buffer: Vec::new(),
            understood: 0,
            notes: Vec::new(),
            first_line: None,
            damaged: false,
        })
    }

    /// Opens the files at a place that an earlier reader of them was at. Its notes are about
    /// the rest only.
    ///
    /// # Errors
    /// If the file cannot be read any more.
    pub fn open_at(files: &[PathBuf], place: ReaderPlace) -> Result<Self> {
        let left = files.iter().skip(place.file).cloned();
        let mut left: VecDeque<_> = left.map(Input::File).collect();
        let file = match left.pop_front() {
            Some(input) => Some(OpenFile::at(input, place.offset)?),
            None => None,
        };
        Ok(Self {
            left,
            done: place.file,
            file,
            buffer: Vec::new(),
            understood: place.understood,
            notes: Vec::new(),
            first_line: None,
            damaged: false,
        })
    }

    /// Where it is: before the line that comes next.
    #[must_use]
    pub fn place(&self) -> ReaderPlace {
        ReaderPlace {
            file: self.done,
            offset: self.file.as_ref().map_or(0, |file| file.offset),
            understood: self.understood,
        }
    }

    /// Reads from anything; the name is for messages.
    #[must_use]
    pub fn of(name: &str, bytes: impl Read + 'static) -> Self {
        Self {
            left: VecDeque::new(),
            done: 0,
            file: Some(OpenFile::new(name.to_owned(), Box::new(bytes))),
            buffer: Vec::new(),
            understood: 0,
            notes: Vec::new(),
            first_line: None,
            damaged: false,
        }
    }

    /// The next line that is whole.
    ///
    /// # Errors
    /// At the end, if there was not a single line of a recording; or if a file is not there
    /// any more.
    // Not an iterator: the entry borrows the reader's buffer.
    #[expect(clippy::should_implement_trait, reason = "an entry borrows the reader")]
    pub fn next(&mut self) -> Result<Option<Entry<'_>>> {
        loop {
            if self.file.is_none() {
                let Some(input) = self.left.pop_front() else {
                    break;
                };
                self.file = Some(OpenFile::at(input, 0)?);
            }
            let Some(file) = &mut self.file else { break };
            let endless = self.understood == 0 && file.offset > NONSENSE;
            if endless || !file.read_line(&mut self.buffer) {
                let file = self.file.take();
                self.done += 1;
                self.damaged |= file.as_ref().is_some_and(OpenFile::is_damaged);
                self.notes
                    .extend(file.into_iter().flat_map(OpenFile::notes));
                continue;
            }
            if self.buffer.is_empty() {
                continue;
            }
            match Line::parse(&self.buffer) {
                Ok(line) => {
                    if let Some(note) = file.follow(&line) {
                        self.notes.push(note);
                    }
                    self.understood += 1;
                    return Ok(Some(Entry {
                        raw: &self.buffer,
                        line: Some(line),
                    }));
                }
                Err(fault) => {
                    if self.understood == 0 && self.first_line.is_none() {
                        let start = &self.buffer[..self.buffer.len().min(60)];
                        self.first_line = Some(start.escape_ascii().to_string());
                    }
                    let known = !matches!(fault, Fault::Garbled(_));
                    file.fault(&fault);
                    // A newer version's lines are passed on by who writes JSON.
                    if known && self.understood > 0 {
                        return Ok(Some(Entry {
                            raw: &self.buffer,
                            line: None,
                        }));
                    }
                }
            }
        }
        if self.understood > 0 {
            return Ok(None);
        }
        match &self.first_line {
            Some(start) => bail!(
                "not a recording of queue-trace: no line of it is one that --json writes \
                 (it begins with: {start})"
            ),
            None if self.notes.iter().any(|note| note.contains("cut off")) => {
                bail!(
                    "nothing can be read: {} (the recorder was killed before it wrote its first \
                     line, or the file was copied in part)",
                    self.notes.join("; ")
                )
            }
            None if self.damaged => {
                bail!("nothing can be read: {}", self.notes.join("; "))
            }
            None => bail!(
                "the recording is empty: it has no line (was the recorder killed before it was \
                 ready?)"
            ),
        }
    }

    /// What is missing or could not be understood in what was read so far, a sentence each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }
}

impl OpenFile {
    fn new(name: String, bytes: Box<dyn Read>) -> Self {
        let mut open = Self {
            name: printable(&name).into_owned(),
            bytes: Box::new(io::empty()),
            offset: 0,
            lines: 0,
            headed: false,
            ended: None,
            cut: None,
            faults: BTreeMap::new(),
        };
        match unpacked(bytes).and_then(|bytes| open.begin(bytes)) {
            Ok(()) => {}
            Err(error) => open.cut = Some(format!("cannot be read: {error}")),
        }
        open
    }

    /// Passes over what some editors and shells put before the text.
    fn begin(&mut self, mut bytes: Box<dyn BufRead>) -> io::Result<()> {
        let start = bytes.fill_buf()?;
        if start.starts_with(&[0xff, 0xfe]) || start.starts_with(&[0xfe, 0xff]) {
            return Err(io::Error::other(
                "it is in UTF-16, as PowerShell's > writes it: convert it to UTF-8, or write it \
                 with -o FILE",
            ));
        }
        if start.starts_with(BYTE_ORDER_MARK) {
            bytes.consume(BYTE_ORDER_MARK.len());
            self.offset += BYTE_ORDER_MARK.len() as u64;
        }
        self.bytes = bytes;
        Ok(())
    }

    /// Opens a file where a line of its text begins.
    fn at(input: Input, offset: u64) -> Result<Self> {
        let path = match input {
            Input::Standard => {
                return Ok(Self::new(
                    "standard input".to_owned(),
                    Box::new(io::stdin()),
                ));
            }
            Input::Stream(path, file) => {
                return Ok(Self::new(path.display().to_string(), Box::new(file)));
            }
            Input::File(path) => path,
        };
        let name = path.display().to_string();
        let cannot = || format!("cannot read {name}");
        let mut file = File::open(&path).with_context(cannot)?;
        if offset == 0 {
            return Ok(Self::new(name, Box::new(file)));
        }
        let mut start = Vec::new();
        (&mut file)
            .take(MAGIC)
            .read_to_end(&mut start)
            .with_context(cannot)?;
        let packed = Packing::of(&start).is_some();
        // In a compressed file there is no way to a place but through all before it.
        let from = if packed { 0 } else { offset };
        file.seek(SeekFrom::Start(from)).with_context(cannot)?;
        let mut open = Self::new(name.clone(), Box::new(file));
        let left = offset.saturating_sub(from + open.offset);
        io::copy(&mut (&mut open.bytes).take(left), &mut io::sink()).with_context(cannot)?;
        open.offset = offset;
        Ok(open)
    }

    /// Reads the next line that is not too long; whether there was one.
    fn read_line(&mut self, line: &mut Vec<u8>) -> bool {
        loop {
            line.clear();
            let read = (&mut self.bytes).take(LONGEST).read_until(b'\n', line);
            self.offset += line.len() as u64;
            if let Err(error) = read {
                self.cut = Some(if error.kind() == io::ErrorKind::UnexpectedEof {
                    format!("is cut off after line {}", self.lines)
                } else {
                    format!("is cut off after line {}: {error}", self.lines)
                });
                // What came before the fault is not a whole line.
                return false;
            }
            if line.is_empty() {
                return false;
            }
            self.lines += 1;
            if line.last() == Some(&b'\n') {
                line.pop();
                if line.last() == Some(&b'\r') {
                    line.pop();
                }
                return true;
            }
            if (line.len() as u64) < LONGEST {
                // The last line has no end: it was cut off, unless it is whole all the same.
                if Line::parse(line).is_ok() {
                    return true;
                }
                self.cut = Some(format!("is cut off in line {}", self.lines));
                return false;
            }
            self.note("lines longer than any that queue-trace writes".to_owned());
            match skip_line(&mut self.bytes) {
                Ok(NONSENSE..) => {
                    self.cut = Some(format!("has a line without end, line {}", self.lines));
                    return false;
                }
                Ok(skipped) => self.offset += skipped,
                Err(error) => {
                    self.cut = Some(format!("is cut off in line {}: {error}", self.lines));
                    return false;
                }
            }
        }
    }

    /// Notes what a line says of the file itself.
    fn follow(&mut self, line: &Line) -> Option<String> {
        match line {
            Line::Header(header) => {
                self.headed = true;
                (header.schema > SCHEMA).then(|| {
                    format!(
                        "{} has schema version {}, written by queue-trace {}; this one knows version {SCHEMA} \
                         and reads what it understands: use a newer queue-trace for the rest",
                        self.name, header.schema, header.version
                    )
                })
            }
            Line::End(end) => {
                self.ended = Some((self.lines - 1).abs_diff(end.lines));
                None
            }
            _ => None,
        }
    }

    fn fault(&mut self, fault: &Fault) {
        self.note(match fault {
            Fault::Garbled(_) => "lines that are not a recording's".to_owned(),
            newer => format!("{newer}, which this version does not know"),
        });
    }

    fn note(&mut self, what: String) {
        let what = if self.faults.len() < KINDS || self.faults.contains_key(&what) {
            what
        } else {
            "other lines that are not understood".to_owned()
        };
        let first = self.lines;
        let tally = self
            .faults
            .entry(what)
            .or_insert(FaultTally { count: 0, first });
        tally.count += 1;
    }

    fn is_damaged(&self) -> bool {
        self.cut.is_some() || !self.faults.is_empty()
    }

    /// What is missing, once it has been read.
    fn notes(self) -> Vec<String> {
        let Self { name, lines, .. } = &self;
        let mut notes = Vec::new();
        for (what, FaultTally { count, first }) in &self.faults {
            notes.push(format!(
                "{name} has {count} {what} (the first is line {first})"
            ));
        }
        if let Some(cut) = &self.cut {
            notes.push(format!("{name} {cut}: what came after is missing"));
        }
        if *lines > 0 && !self.headed {
            notes.push(format!(
                "{name} has no header: its beginning is missing, and with it where and how it was recorded"
            ));
        }
        match self.ended {
            Some(0) => {}
            Some(missing) => notes.push(format!(
                "{name} has {missing} lines more or less than were written to it"
            )),
            None if *lines > 0 => notes.push(format!(
                "{name} has no end: the recorder was killed, or the file was copied before it ended; \
                 totals and ledger are missing"
            )),
            None => {}
        }
        notes
    }
}

/// Skips the rest of a line, and gives its length; gives up on a line without end.
fn skip_line(bytes: &mut dyn BufRead) -> io::Result<u64> {
    let mut skipped = 0;
    while skipped < NONSENSE {
        let buffer = bytes.fill_buf()?;
        if buffer.is_empty() {
            return Ok(skipped);
        }
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let length = end.map_or(buffer.len(), |end| end + 1);
        bytes.consume(length);
        skipped += length as u64;
        if end.is_some() {
            return Ok(skipped);
        }
    }
    Ok(skipped)
}

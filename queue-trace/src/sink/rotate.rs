//! A recording in several files: a new one by size or by time, and only the last few
//! kept. Each begins with a header and is whole by itself.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{
    model::{
        clients::Clients,
        clock::wall_now,
        event::{Event, rfc3339},
        ledger::Ledger,
        lines::{Counts, Header, LossNote, Total},
        snapshot::Snapshot,
    },
    sink::{Json, Output, Sink},
};

/// When a file is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// At so many bytes.
    Size(u64),
    /// After so long.
    Time(Duration),
}

/// How a recording is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    /// When a file is full.
    pub limit: Limit,
    /// How many files are kept; `None`: all.
    pub keep: Option<u64>,
}

/// Writes JSON lines to files named after one path: `incident.jsonl.zst` becomes
/// `incident.000001.jsonl.zst`, and so on, after the highest number that is there.
pub struct Rotating {
    path: PathBuf,
    rotation: Rotation,
    number: u64,
    file: Json<Output>,
    since: Instant,
    header: Option<Header>,
}

impl Rotating {
    /// Begins the first file.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn begin(path: &Path, rotation: Rotation) -> Result<Self> {
        let there = numbers(path)
            .with_context(|| format!("cannot list the files beside {}", path.display()))?;
        let number = there.last().map_or(1, |last| last + 1);
        let mut rotating = Self {
            path: path.to_owned(),
            rotation,
            number,
            file: Json::new(Output::open(Some(&numbered(path, number)))?),
            since: Instant::now(),
            header: None,
        };
        rotating.drop_old().map_err(anyhow::Error::new)?;
        Ok(rotating)
    }

    fn is_full(&self) -> bool {
        match self.rotation.limit {
            Limit::Size(most) => self.file.medium().size() >= most,
            Limit::Time(most) => self.since.elapsed() >= most,
        }
    }

    /// Ends the file and begins the next.
    fn turn(&mut self) -> io::Result<()> {
        self.file.close(&rfc3339(wall_now()), true)?;
        self.number += 1;
        let next = numbered(&self.path, self.number);
        self.file = Json::new(Output::open(Some(&next)).map_err(io::Error::other)?);
        self.since = Instant::now();
        if let Some(header) = &self.header {
            self.file.header(header)?;
        }
        self.drop_old()
    }

    fn drop_old(&mut self) -> io::Result<()> {
        let Some(keep) = self.rotation.keep else {
            return Ok(());
        };
        for number in numbers(&self.path)? {
            if number + keep <= self.number {
                fs::remove_file(numbered(&self.path, number))?;
            }
        }
        Ok(())
    }
}

/// Digits of a number in a name.
const DIGITS: usize = 6;

/// The name of a file of the recording: the number goes before the first dot's ending.
fn numbered(path: &Path, number: u64) -> PathBuf {
    let (stem, ending) = parts(path);
    path.with_file_name(format!("{stem}.{number:0DIGITS$}{ending}"))
}

/// The file's name up to its first dot, and the rest.
fn parts(path: &Path) -> (String, String) {
    let name = path.file_name().map(OsStr::to_string_lossy);
    let name = name.unwrap_or_default().into_owned();
    match name.char_indices().skip(1).find(|(_, c)| *c == '.') {
        Some((dot, _)) => (name[..dot].to_owned(), name[dot..].to_owned()),
        None => (name, String::new()),
    }
}

/// The numbers of the files that are there, ascending.
fn numbers(path: &Path) -> io::Result<Vec<u64>> {
    let (stem, ending) = parts(path);
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let mut numbers = Vec::new();
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let number: Option<u64> = name
            .to_str()
            .and_then(|name| name.strip_prefix(&stem)?.strip_prefix('.'))
            .and_then(|rest| rest.strip_suffix(&ending))
            .filter(|digits| digits.len() >= DIGITS && digits.bytes().all(|b| b.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        numbers.extend(number);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Sink for Rotating {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.header = Some(header.clone());
        self.file.header(header)
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        if self.is_full() {
            self.turn()?;
        }
        self.file.event(event)
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.file.listener(snapshot)
    }

    fn counts(&mut self, counts: &Counts) -> io::Result<()> {
        self.file.counts(counts)
    }

    fn loss(&mut self, note: &LossNote) -> io::Result<()> {
        self.file.loss(note)
    }

    fn summary(&mut self, totals: &[Total]) -> io::Result<()> {
        self.file.summary(totals)
    }

    fn clients(&mut self, clients: &Clients) -> io::Result<()> {
        self.file.clients(clients)
    }

    fn ledger(&mut self, ledger: &Ledger) -> io::Result<()> {
        self.file.ledger(ledger)
    }

    fn end(&mut self, time: &str) -> io::Result<()> {
        self.file.end(time)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()?;
        // By time also while nothing happens.
        if self.is_full() {
            self.turn()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("queue-trace-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn header() -> Header {
        Header {
            schema: crate::model::lines::SCHEMA,
            version: "0".to_owned(),
            time: rfc3339(0),
            host: "host".to_owned(),
            kernel: "6.12".to_owned(),
            attach: crate::model::lines::AttachPlan {
                family: "fentry".to_owned(),
                hooks: Vec::new(),
                outcomes: None,
                limits: Vec::new(),
            },
        }
    }

    #[test]
    fn the_number_goes_before_the_ending() {
        let named = |path: &str| numbered(Path::new(path), 7).display().to_string();
        assert_eq!(named("/a/x.jsonl.zst"), "/a/x.000007.jsonl.zst");
        assert_eq!(named("x"), "x.000007");
        assert_eq!(named(".hidden"), ".hidden.000007");
    }

    #[test]
    fn only_the_last_files_are_kept_and_each_is_whole() {
        let folder = folder("rotate");
        let path = folder.join("x.jsonl");
        let rotation = Rotation {
            limit: Limit::Size(1),
            keep: Some(3),
        };
        // What an earlier run left counts as well, and is never written over.
        fs::write(folder.join("x.000041.jsonl"), "old").unwrap();
        fs::write(folder.join("x.notes.jsonl"), "not ours").unwrap();
        let mut rotating = Rotating::begin(&path, rotation).unwrap();
        rotating.header(&header()).unwrap();
        for _ in 0..5 {
            rotating.flush().unwrap();
        }
        rotating.end(&rfc3339(1)).unwrap();
        assert_eq!(numbers(&path).unwrap(), [45, 46, 47]);
        for number in [45, 46, 47] {
            let text = fs::read_to_string(numbered(&path, number)).unwrap();
            let lines: Vec<serde_json::Value> = text
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect();
            assert_eq!(lines[0]["type"], "header");
            assert_eq!(lines[1]["type"], "end");
            assert_eq!(lines[1]["lines"], 1);
            assert_eq!(lines[1]["rotated"], number != 47);
        }
        assert!(folder.join("x.notes.jsonl").exists());
        fs::remove_dir_all(folder).unwrap();
    }
}

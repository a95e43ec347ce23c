//! A recording in several files: a new one by size or by time, and only the last few
//! kept. Each begins with a header and the listeners, ends with its end, and is whole by itself.
//!
//! Other files are left alone, whatever they are called: a file is the recording's own if it has
//! exactly such a name, is a regular file, and begins with a header of this host.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    Json, Output, Sink,
    file::{NewFile, lock},
    packed::unpacked,
};
use crate::{
    model::{
        clients::Clients,
        clock::wall_now,
        event::{Event, rfc3339},
        ledger::Ledger,
        lines::{Counts, Header, LossNote, Total},
        snapshot::Snapshot,
    },
    stderr::say,
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
    series: FileSeries,
    rotation: Rotation,
    number: u64,
    file: Json<Output>,
    since: Instant,
    header: Option<Header>,
    /// What was told last of each listener that is open, for the next file.
    listeners: BTreeMap<(u32, u16, Option<u64>), Snapshot>,
}

impl Rotating {
    /// Makes the first file. No other is touched before the header is written.
    ///
    /// # Errors
    /// If it cannot be made, or another recorder writes to these files.
    pub fn prepare(path: &Path, rotation: Rotation) -> Result<Self> {
        let series = FileSeries::of(path)?;
        let there = series
            .numbers()
            .with_context(|| format!("cannot list the files beside {}", path.display()))?;
        // Whoever writes to them has the latest one locked.
        for number in there.iter().rev().take(2) {
            let name = series.file(*number);
            if let Ok(file) = File::open(&name) {
                lock(&file).with_context(|| format!("cannot write to {}", name.display()))?;
            }
        }
        let (number, file) = series.make_after(there.last().copied().unwrap_or(0))?;
        Ok(Self {
            file: Json::new(file),
            series,
            rotation,
            number,
            since: Instant::now(),
            header: None,
            listeners: BTreeMap::new(),
        })
    }

    fn is_full(&self) -> bool {
        match self.rotation.limit {
            Limit::Size(most) => self.file.medium().size() >= most,
            Limit::Time(most) => self.since.elapsed() >= most,
        }
    }

    /// Ends the file and begins the next.
    fn turn(&mut self) -> io::Result<()> {
        // The next one first: this one is locked until that one is.
        let next = self.series.make_after(self.number);
        let (number, next) = next.map_err(io::Error::other)?;
        self.file.close(&rfc3339(wall_now()), true)?;
        self.number = number;
        self.file = Json::new(next);
        self.since = Instant::now();
        if let Some(header) = &self.header {
            self.file.header(header)?;
        }
        for snapshot in self.listeners.values() {
            self.file.listener(snapshot)?;
        }
        self.drop_old();
        Ok(())
    }

    /// Removes the oldest of its own files. One that cannot be removed keeps nobody from
    /// recording.
    fn drop_old(&self) {
        let (Some(keep), Some(header)) = (self.rotation.keep, &self.header) else {
            return;
        };
        let numbers = match self.series.numbers() {
            Ok(numbers) => numbers,
            Err(error) => return say!("warning: --keep: cannot list files: {error}"),
        };
        let own = numbers.into_iter().filter(|number| {
            *number < self.number && self.series.begins_with_header_of(*number, &header.host)
        });
        let own: Vec<_> = own.collect();
        // The one that is written is kept too.
        let kept = usize::try_from(keep.saturating_sub(1)).unwrap_or(usize::MAX);
        for number in &own[..own.len().saturating_sub(kept)] {
            let name = self.series.file(*number);
            if let Err(error) = fs::remove_file(&name)
                && error.kind() != io::ErrorKind::NotFound
            {
                say!("warning: --keep: cannot remove {}: {error}", name.display());
            }
        }
    }
}

impl Drop for Rotating {
    fn drop(&mut self) {
        // It never began: nothing is in the file that was made for it.
        if self.header.is_none() {
            let _ = fs::remove_file(self.series.file(self.number));
        }
    }
}

/// The files of one recording.
struct FileSeries {
    folder: PathBuf,
    /// The file's name up to its first dot, and the rest.
    stem: String,
    ending: String,
}

/// Digits of a number in a name.
const DIGITS: usize = 6;

impl FileSeries {
    fn of(path: &Path) -> Result<Self> {
        let text = path.as_os_str().to_string_lossy();
        let name = path
            .file_name()
            .filter(|_| !text.ends_with(std::path::is_separator));
        let Some(name) = name.filter(|_| !path.is_dir()) else {
            bail!(
                "cannot write to {}: it is a directory: name a file in it",
                path.display()
            );
        };
        let name = name.to_str().with_context(|| {
            format!(
                "cannot write to {}: --rotate takes names in UTF-8",
                path.display()
            )
        })?;
        // A first character that is a dot hides a file and ends nothing.
        let dot = name.char_indices().skip(1).find(|(_, c)| *c == '.');
        let (stem, ending) = name.split_at(dot.map_or(name.len(), |(dot, _)| dot));
        let folder = path.parent().filter(|folder| *folder != Path::new(""));
        Ok(Self {
            folder: folder.unwrap_or(Path::new(".")).to_owned(),
            stem: stem.to_owned(),
            ending: ending.to_owned(),
        })
    }

    fn name(&self, number: u64) -> String {
        format!("{}.{number:0DIGITS$}{}", self.stem, self.ending)
    }

    fn file(&self, number: u64) -> PathBuf {
        // Without `./` where there is no folder in the path.
        if self.folder == Path::new(".") {
            self.name(number).into()
        } else {
            self.folder.join(self.name(number))
        }
    }

    /// Makes the next file, and gives its number.
    fn make_after(&self, number: u64) -> Result<(u64, Output)> {
        for number in (number..u64::MAX).map(|number| number + 1) {
            let path = self.file(number);
            let cannot = || format!("cannot write to {}", path.display());
            match NewFile::make(&path) {
                Ok(file) => return Ok((number, Output::to(file)?)),
                // Something of that name that is not a file of ours is left alone. If another
                // recorder made it meanwhile it has it locked.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    if let Ok(file) = File::open(&path) {
                        lock(&file).with_context(cannot)?;
                    }
                }
                Err(error) => return Err(error).with_context(cannot),
            }
        }
        bail!("there is no number left for another file");
    }

    /// The numbers of the regular files that have such a name, ascending.
    fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let number = name
                .to_str()
                .and_then(|name| name.strip_prefix(&self.stem)?.strip_prefix('.'))
                .and_then(|rest| rest.strip_suffix(&self.ending))
                .and_then(|digits| digits.parse().ok())
                // As it would be written: no sign, no more zeros than that.
                .filter(|number| name.to_str() == Some(&self.name(*number)));
            // Gone meanwhile: not there.
            let is_file = entry.metadata().is_ok_and(|about| about.is_file());
            numbers.extend(number.filter(|_| is_file));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Whether a file begins with a header that a recorder on this host wrote.
    fn begins_with_header_of(&self, number: u64, host: &str) -> bool {
        /// Longer than any header.
        const LONGEST: u64 = 1 << 16;
        let first_line = || -> io::Result<Vec<u8>> {
            let file = File::open(self.file(number))?;
            let mut line = Vec::new();
            unpacked(Box::new(file))?
                .take(LONGEST)
                .read_until(b'\n', &mut line)?;
            Ok(line)
        };
        first_line().is_ok_and(|line| {
            serde_json::from_slice::<Header>(&line).is_ok_and(|header| header.host == host)
        })
    }
}

impl Sink for Rotating {
    fn header(&mut self, header: &Header) -> io::Result<()> {
        self.header = Some(header.clone());
        self.file.header(header)?;
        self.drop_old();
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        if self.is_full() {
            self.turn()?;
        }
        self.file.event(event)
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        let whose = (
            snapshot.netns,
            snapshot.listener.port,
            snapshot.listener.inode,
        );
        if snapshot.is_closed() {
            self.listeners.remove(&whose);
        } else {
            self.listeners.insert(whose, snapshot.clone());
        }
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
    use crate::model::{
        lines::{AttachPlan, SCHEMA},
        socket::Listener,
    };

    /// A folder of its own, removed at the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let name = format!("queue-trace-{name}-{}", std::process::id());
            let folder = std::env::temp_dir().join(name);
            fs::create_dir_all(&folder).unwrap();
            Self(folder)
        }

        fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).unwrap();
            let mut names: Vec<_> = entries
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            names
        }

        fn types(&self, name: &str) -> Vec<String> {
            let text = fs::read_to_string(self.file(name)).unwrap();
            let parse = |line| serde_json::from_str::<serde_json::Value>(line).unwrap();
            let lines = text.lines().map(parse);
            lines
                .map(|line| line["type"].as_str().unwrap().to_owned())
                .collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn header() -> Header {
        Header {
            schema: SCHEMA,
            version: "0".to_owned(),
            time: rfc3339(0),
            host: "host".to_owned(),
            kernel: "6.12".to_owned(),
            attach: AttachPlan {
                family: "fentry".to_owned(),
                hooks: Vec::new(),
                outcomes: None,
                filters: None,
                limits: Vec::new(),
            },
        }
    }

    fn listener(port: u16, closed: bool) -> Snapshot {
        Snapshot {
            netns: 1,
            listener: Listener {
                port,
                ..Listener::default()
            },
            closed: closed.then_some(true),
            ..Snapshot::default()
        }
    }

    /// A file for each flush.
    fn tiny(keep: Option<u64>) -> Rotation {
        Rotation {
            limit: Limit::Size(1),
            keep,
        }
    }

    #[test]
    fn the_number_goes_before_the_ending() {
        let named = |path: &str| {
            let series = FileSeries::of(Path::new(path)).unwrap();
            series.file(7).display().to_string()
        };
        assert_eq!(named("/a/x.jsonl.zst"), "/a/x.000007.jsonl.zst");
        assert_eq!(named("x"), "x.000007");
        assert_eq!(named(".hidden"), ".hidden.000007");
        for path in ["..", "/", ".", "/tmp", "x/", "a/.."] {
            assert!(FileSeries::of(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn only_the_last_files_are_kept_and_each_is_whole() {
        let folder = Folder::new("rotate");
        // What an earlier run left counts as well, and is never written over.
        let mut earlier = serde_json::to_string(&header()).unwrap();
        earlier.push('\n');
        fs::write(folder.file("x.000041.jsonl"), earlier).unwrap();
        let mut rotating = Rotating::prepare(&folder.file("x.jsonl"), tiny(Some(3))).unwrap();
        assert!(folder.file("x.000041.jsonl").exists());
        rotating.header(&header()).unwrap();
        rotating.listener(&listener(80, false)).unwrap();
        rotating.listener(&listener(81, false)).unwrap();
        rotating.listener(&listener(81, true)).unwrap();
        for _ in 0..5 {
            rotating.flush().unwrap();
        }
        rotating.end(&rfc3339(1)).unwrap();
        let names = [45, 46, 47].map(|number| format!("x.0000{number}.jsonl"));
        assert_eq!(folder.names(), names);
        for name in &names {
            // Listeners that are open, told again.
            assert_eq!(folder.types(name), ["header", "listener", "end"]);
            let text = fs::read_to_string(folder.file(name)).unwrap();
            let end: serde_json::Value =
                serde_json::from_str(text.lines().next_back().unwrap()).unwrap();
            assert_eq!(end["lines"], 2);
            assert_eq!(end["rotated"], name != &names[2]);
        }
    }

    #[test]
    fn files_of_others_are_left_alone() {
        let folder = Folder::new("others");
        let mut foreign = serde_json::to_string(&Header {
            host: "another".to_owned(),
            ..header()
        })
        .unwrap();
        foreign.push('\n');
        let others = [
            ("x.notes.jsonl", "a letter"),
            ("x.000001.jsonl", "a letter"),
            ("x.000002.jsonl", &foreign),
            ("x.0000003.jsonl", "one zero more"),
            ("x.+00004.jsonl", "a sign"),
            ("x.000005.jsonl.bak", "an ending"),
        ];
        for (name, text) in others {
            fs::write(folder.file(name), text).unwrap();
        }
        fs::create_dir_all(folder.file("x.000006.jsonl")).unwrap();
        let mut rotating = Rotating::prepare(&folder.file("x.jsonl"), tiny(Some(1))).unwrap();
        rotating.header(&header()).unwrap();
        for _ in 0..8 {
            rotating.flush().unwrap();
        }
        rotating.end(&rfc3339(1)).unwrap();
        for (name, text) in others {
            assert_eq!(fs::read_to_string(folder.file(name)).unwrap(), text);
        }
        assert!(folder.file("x.000006.jsonl").is_dir());
        let own = folder.names().len() - others.len() - 1;
        assert_eq!(own, 1, "{:?}", folder.names());
    }

    #[test]
    fn one_that_never_began_leaves_nothing() {
        let folder = Folder::new("never");
        drop(Rotating::prepare(&folder.file("x.jsonl"), tiny(None)).unwrap());
        assert_eq!(folder.names(), Vec::<String>::new());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn two_do_not_write_to_the_same_files() {
        let folder = Folder::new("two");
        let path = folder.file("x.jsonl");
        let mut one = Rotating::prepare(&path, tiny(None)).unwrap();
        one.header(&header()).unwrap();
        for _ in 0..3 {
            let error = Rotating::prepare(&path, tiny(None)).err().unwrap();
            assert!(
                format!("{error:#}").contains("another queue-trace"),
                "{error:#}"
            );
            one.flush().unwrap();
        }
        one.end(&rfc3339(1)).unwrap();
        drop(one);
        Rotating::prepare(&path, tiny(None)).unwrap();
    }
}

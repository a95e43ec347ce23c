//! The flight recorder: the last minute in memory, and an incident recording that begins with
//! it. When to begin and to end is said from outside.
//!
//! What the kernel side counts since it attached, months ago maybe, is told in a recording
//! since the recording's own beginning, or not at all.

pub mod folder;
mod relative;
pub mod ring;

use std::{
    collections::{BTreeSet, HashMap},
    fs::File,
    io::{self, Write},
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use serde::Serialize;

pub use self::folder::{Folder, Keep, KeptRecording, diagnosis_of, write_beside};
use self::{
    relative::{Base, since},
    ring::Ring,
};
use crate::model::{
    event::rfc3339,
    ledger::Ledger,
    lines::{End, Header},
    snapshot::Snapshot,
};

/// A listener without what was counted since the agent attached.
#[must_use]
pub fn alone(snapshot: &Snapshot) -> Snapshot {
    since(snapshot, None)
}

/// What it keeps, and how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How much of the time before an incident is kept.
    pub before: Duration,
    /// Bytes of memory for it.
    pub memory: usize,
    /// How long after the last episode an incident recording ends.
    pub after: Duration,
    /// Bytes of an incident recording.
    pub size: u64,
    /// Incident recordings of one listener in a day.
    pub a_day: u32,
    /// What stays of all.
    pub keep: Keep,
}

/// Why there is no recording of an episode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotWritten {
    /// There is no folder.
    NoFolder,
    /// The listener had enough of them today.
    Limited,
}

/// A recording that is finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// The file.
    pub path: PathBuf,
    /// Bytes of it.
    pub bytes: u64,
    /// Whether it was ended because of its size.
    pub cut: bool,
}

/// The recorder.
pub struct Recorder {
    ring: Ring,
    folder: Option<Folder>,
    bounds: Bounds,
    header: Option<Header>,
    incident: Option<Incident>,
    /// Looks and ledgers of the time before, the oldest first.
    bases: Vec<(Duration, Base)>,
    /// How many recordings a listener, by port and owner, had in a day.
    today: HashMap<String, (i64, u32)>,
}

struct Incident {
    path: PathBuf,
    file: File,
    lines: u64,
    bytes: u64,
    /// Since when no episode goes on.
    calm: Option<Duration>,
    base: Base,
}

/// Listeners whose recordings of today are counted.
const MOST_COUNTED: usize = 4096;

impl Recorder {
    /// Records nothing yet.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(folder: Option<Folder>, bounds: Bounds) -> io::Result<Self> {
        Ok(Self {
            ring: Ring::new(bounds.before, bounds.memory)?,
            folder,
            bounds,
            header: None,
            incident: None,
            bases: Vec::new(),
            today: HashMap::new(),
        })
    }

    /// Other bounds from now on.
    pub fn bound(&mut self, bounds: Bounds) {
        self.ring.before = bounds.before;
        self.ring.most = bounds.memory;
        self.bounds = bounds;
    }

    /// Who observes what, how.
    pub fn header(&mut self, header: &Header) {
        self.header = Some(header.clone());
    }

    /// The file that is being written.
    #[must_use]
    pub fn open_file(&self) -> Option<&PathBuf> {
        self.incident.as_ref().map(|incident| &incident.path)
    }

    /// Bytes of memory that the time before takes.
    #[must_use]
    pub fn memory(&self) -> usize {
        self.ring.bytes()
    }

    /// A line of the stream.
    ///
    /// # Errors
    /// If it cannot be compressed, or written.
    pub fn line(&mut self, line: &impl Serialize, now: Duration) -> io::Result<()> {
        self.ring.line(&serde_json::to_vec(line)?);
        if self.ring.is_full() {
            self.turn(now)
        } else {
            Ok(())
        }
    }

    /// All listeners, at a moment: `within` some namespaces, or anywhere.
    ///
    /// # Errors
    /// If they cannot be compressed, or written.
    pub fn look(
        &mut self,
        listeners: &[Snapshot],
        within: Option<&BTreeSet<u32>>,
        now: Duration,
    ) -> io::Result<()> {
        for one in listeners {
            self.listener(one, now)?;
        }
        let mut base = self.bases.last().map(|(_, last)| last.clone());
        let base_now = base.get_or_insert_default();
        base_now.looked(listeners, within);
        self.bases.push((now, base.unwrap_or_default()));
        self.forget_bases(now);
        Ok(())
    }

    /// One listener.
    ///
    /// # Errors
    /// If it cannot be compressed, or written.
    pub fn listener(&mut self, one: &Snapshot, now: Duration) -> io::Result<()> {
        let base = self.incident.as_ref().map(|incident| &incident.base);
        self.line(&since(one, base), now)
    }

    /// The ledgers, as they are now.
    pub fn ledgers(&mut self, ledgers: &[Ledger], now: Duration) {
        let told = ledgers.iter();
        let told = told.map(|ledger| (ledger.netns, ledger.clone()));
        let told = Arc::new(told.collect());
        match self.bases.last_mut() {
            Some((at, base)) if *at == now => base.ledgers = told,
            last => {
                let mut base = last.map(|(_, base)| base.clone()).unwrap_or_default();
                base.ledgers = told;
                self.bases.push((now, base));
            }
        }
        self.forget_bases(now);
    }

    /// Only what the ring still has needs a base, and one before it.
    fn forget_bases(&mut self, now: Duration) {
        let from = now.saturating_sub(self.bounds.before);
        let old = self
            .bases
            .iter()
            .skip(1)
            .take_while(|(at, _)| *at <= from)
            .count();
        self.bases.drain(..old);
    }

    /// An episode began at a listener, which `who` tells from others. Gives the file that
    /// will have it.
    ///
    /// # Errors
    /// If the file cannot be made or written.
    pub fn begin(
        &mut self,
        who: &str,
        port: u16,
        now: Duration,
        wall: Timestamp,
    ) -> io::Result<Result<PathBuf, NotWritten>> {
        self.turn(now)?;
        if let Some(incident) = &mut self.incident {
            incident.calm = None;
            return Ok(Ok(incident.path.clone()));
        }
        let Some(folder) = self.folder.clone() else {
            return Ok(Err(NotWritten::NoFolder));
        };
        if !self.may_begin(who, wall) {
            return Ok(Err(NotWritten::Limited));
        }
        let (path, file) = folder.begin(wall, port)?;
        let mut incident = Incident {
            path: path.clone(),
            file,
            lines: 0,
            bytes: 0,
            calm: None,
            base: self
                .bases
                .first()
                .map(|(_, base)| base.clone())
                .unwrap_or_default(),
        };
        if let Some(header) = &self.header {
            let first = self.ring.pieces().next().map_or(now, |piece| piece.at);
            let begin = wall.as_nanosecond() - now.saturating_sub(first).as_nanos() as i128;
            let header = Header {
                time: rfc3339(begin),
                ..header.clone()
            };
            let mut line = serde_json::to_vec(&header)?;
            line.push(b'\n');
            let piece = self.ring.apart(&line)?;
            incident.write(&piece, 1)?;
        }
        for piece in self.ring.pieces() {
            incident.write(&piece.bytes, piece.lines)?;
        }
        self.incident = Some(incident);
        folder.thin(self.bounds.keep, SystemTime::now(), Some(&path))?;
        Ok(Ok(path))
    }

    fn may_begin(&mut self, who: &str, wall: Timestamp) -> bool {
        let day = wall.as_second().div_euclid(24 * 3600);
        self.today.retain(|_, (counted, _)| *counted == day);
        if self.today.len() >= MOST_COUNTED && !self.today.contains_key(who) {
            return false;
        }
        let (_, count) = self.today.entry(who.to_owned()).or_insert((day, 0));
        *count += 1;
        *count <= self.bounds.a_day
    }

    /// Once a second: writes what came; gives the recording that is finished. `trouble`:
    /// whether an episode goes on.
    ///
    /// # Errors
    /// If it cannot be written. The recording ends there.
    pub fn second(&mut self, trouble: bool, now: Duration) -> io::Result<Option<Finished>> {
        self.turn(now)?;
        let Some(incident) = &mut self.incident else {
            return Ok(None);
        };
        if trouble {
            incident.calm = None;
        } else {
            incident.calm.get_or_insert(now);
        }
        let calm = incident
            .calm
            .is_some_and(|since| now.saturating_sub(since) >= self.bounds.after);
        let cut = incident.bytes >= self.bounds.size;
        if calm || cut {
            return self.end(cut).map(Some);
        }
        Ok(None)
    }

    /// Ends the recording that is open: the agent stops.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn stop(&mut self, now: Duration) -> io::Result<Option<Finished>> {
        self.turn(now)?;
        if self.incident.is_some() {
            return self.end(false).map(Some);
        }
        Ok(None)
    }

    fn turn(&mut self, now: Duration) -> io::Result<()> {
        let Some(piece) = self.ring.turn(now)? else {
            return Ok(());
        };
        let Some(incident) = &mut self.incident else {
            return Ok(());
        };
        if let Err(error) = incident.write(&piece.bytes, piece.lines) {
            // What was written is a recording that was cut off.
            self.incident = None;
            return Err(error);
        }
        Ok(())
    }

    fn end(&mut self, cut: bool) -> io::Result<Finished> {
        let Some(mut incident) = self.incident.take() else {
            return Err(io::Error::other("there is no recording to end"));
        };
        let mut text = Vec::new();
        let mut lines = incident.lines;
        let now = self.bases.last().map(|(_, base)| base);
        for ledger in now
            .into_iter()
            .flat_map(|now| now.ledgers_since(&incident.base))
        {
            serde_json::to_writer(&mut text, &ledger)?;
            text.push(b'\n');
            lines += 1;
        }
        let end = End {
            time: rfc3339(Timestamp::now().as_nanosecond()),
            lines,
            rotated: false,
        };
        serde_json::to_writer(&mut text, &end)?;
        text.push(b'\n');
        let piece = self.ring.apart(&text)?;
        incident.write(&piece, 0)?;
        Ok(Finished {
            path: incident.path,
            bytes: incident.bytes,
            cut,
        })
    }
}

impl Incident {
    fn write(&mut self, bytes: &[u8], lines: u64) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.bytes += bytes.len() as u64;
        self.lines += lines;
        Ok(())
    }
}

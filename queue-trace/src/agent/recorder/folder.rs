//! The folder of incident recordings: their names, how many stay, and what an earlier run left
//! open. Touches no file but its own.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use jiff::Timestamp;

/// How much stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keep {
    /// Bytes of all files together.
    pub bytes: u64,
    /// The age of a file.
    pub age: Duration,
}

const STEM: &str = "incident-";
const RECORDING: &str = ".jsonl.zst";
const DIAGNOSIS: &str = ".diagnosis.json";

/// The folder.
#[derive(Debug, Clone)]
pub struct Folder {
    path: PathBuf,
}

/// One incident in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeptRecording {
    /// The recording.
    pub recording: PathBuf,
    /// The diagnosis beside it, if it was made.
    pub diagnosis: Option<PathBuf>,
    /// Bytes of both.
    pub bytes: u64,
    /// When it was written last.
    pub written: SystemTime,
}

impl Folder {
    /// The folder at this path, made if it is not there.
    ///
    /// # Errors
    /// If it cannot be made or listed.
    pub fn open(path: &Path) -> io::Result<Self> {
        if !path.exists() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)?;
        }
        let folder = Self {
            path: path.to_owned(),
        };
        folder.list()?;
        Ok(folder)
    }

    /// The folder at this path, to be listed.
    #[must_use]
    pub fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// Makes the file of an incident that begins now: readable for its owner alone, as the
    /// addresses of clients are in it.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn begin(&self, at: Timestamp, port: u16) -> io::Result<(PathBuf, File)> {
        let time = at.strftime("%Y%m%dT%H%M%S%3fZ");
        let mut nth = 0;
        loop {
            let more = if nth == 0 {
                String::new()
            } else {
                format!("-{nth}")
            };
            let path = self
                .path
                .join(format!("{STEM}{time}-{port}{more}{RECORDING}"));
            let made = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(libc::O_NOFOLLOW)
                .open(&path);
            match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && nth < 100 => nth += 1,
                made => return made.map(|file| (path, file)),
            }
        }
    }

    /// The incidents, the oldest first.
    ///
    /// # Errors
    /// If the folder cannot be listed.
    pub fn list(&self) -> io::Result<Vec<KeptRecording>> {
        let mut kept = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| is_own(name)) else {
                continue;
            };
            // A file that vanishes meanwhile is not there to be listed.
            let Ok(about) = entry.metadata() else {
                continue;
            };
            if !about.is_file() {
                continue;
            }
            let recording = self.path.join(name);
            let beside = diagnosis_of(&recording);
            let diagnosis = fs::symlink_metadata(&beside)
                .ok()
                .filter(fs::Metadata::is_file);
            kept.push(KeptRecording {
                recording,
                bytes: about.len() + diagnosis.as_ref().map_or(0, fs::Metadata::len),
                diagnosis: diagnosis.map(|_| beside),
                written: about.modified()?,
            });
        }
        // The name begins with the time.
        kept.sort_by(|a, b| a.recording.cmp(&b.recording));
        Ok(kept)
    }

    /// Removes the oldest until what is left may stay. The one at `open` stays in any case.
    ///
    /// # Errors
    /// If the folder cannot be listed, or a file cannot be removed.
    pub fn thin(
        &self,
        keep: Keep,
        now: SystemTime,
        open: Option<&Path>,
    ) -> io::Result<Vec<PathBuf>> {
        let all = self.list()?;
        let mut bytes: u64 = all.iter().map(|kept| kept.bytes).sum();
        let mut removed = Vec::new();
        for kept in all {
            if open == Some(&kept.recording) {
                continue;
            }
            let age = now.duration_since(kept.written).unwrap_or_default();
            if bytes <= keep.bytes && age <= keep.age {
                continue;
            }
            remove(&kept.recording)?;
            if let Some(diagnosis) = &kept.diagnosis {
                remove(diagnosis)?;
            }
            bytes = bytes.saturating_sub(kept.bytes);
            removed.push(kept.recording);
        }
        Ok(removed)
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// The file of an incident's diagnosis.
#[must_use]
pub fn diagnosis_of(recording: &Path) -> PathBuf {
    let name = recording.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(RECORDING).unwrap_or(&name);
    recording.with_file_name(format!("{stem}{DIAGNOSIS}"))
}

/// Writes a file beside an incident, whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write_beside(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let partial = path.with_extension("json.part");
    // One that a kill left.
    remove(&partial)?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&partial)?;
    io::Write::write_all(&mut file, bytes)?;
    fs::rename(&partial, path)
}

/// `incident-YYYYMMDDTHHMMSSmmmZ-PORT[-N].jsonl.zst`, and nothing else.
fn is_own(name: &str) -> bool {
    let middle = name
        .strip_prefix(STEM)
        .and_then(|rest| rest.strip_suffix(RECORDING));
    let Some((time, rest)) = middle.and_then(|middle| middle.split_once('-')) else {
        return false;
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let time = time.strip_suffix('Z').and_then(|time| time.split_once('T'));
    time.is_some_and(|(day, hour)| day.len() == 8 && digits(day) && hour.len() == 9 && digits(hour))
        && rest.split('-').count() <= 2
        && rest.split('-').all(digits)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("queue-trace-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    const ALL: Keep = Keep {
        bytes: u64::MAX,
        age: Duration::MAX,
    };

    #[test]
    fn the_oldest_go_and_nothing_of_others() {
        let path = scratch("folder");
        let folder = Folder::open(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o700
        );
        for second in 0..4 {
            let (name, _) = folder.begin(at(second), 80).unwrap();
            fs::write(&name, [0; 100]).unwrap();
            write_beside(&diagnosis_of(&name), &[0; 50]).unwrap();
            assert_eq!(
                fs::metadata(&name).unwrap().permissions().mode() & 0o777,
                0o600
            );
        }
        let others = [
            "incident-notes.jsonl.zst",
            "incident-20261125T211312123Z-80.txt",
            "x.jsonl.zst",
        ];
        for other in others {
            fs::write(path.join(other), [0; 1000]).unwrap();
        }
        assert_eq!(folder.list().unwrap().len(), 4);
        assert!(
            folder
                .thin(ALL, SystemTime::now(), None)
                .unwrap()
                .is_empty()
        );
        let keep = Keep { bytes: 300, ..ALL };
        let all = folder.list().unwrap();
        // The oldest is still being written.
        let removed = folder
            .thin(keep, SystemTime::now(), Some(&all[0].recording))
            .unwrap();
        assert_eq!(
            removed,
            [all[1].recording.clone(), all[2].recording.clone()]
        );
        let keep = Keep {
            age: Duration::from_secs(60),
            ..ALL
        };
        let later = SystemTime::now() + Duration::from_secs(120);
        assert_eq!(folder.thin(keep, later, None).unwrap().len(), 2);
        let left = fs::read_dir(&path).unwrap().count();
        assert_eq!(left, others.len());
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn two_at_once_have_two_names() {
        let path = scratch("names");
        let folder = Folder::open(&path).unwrap();
        let (first, _) = folder.begin(at(0), 443).unwrap();
        let (second, _) = folder.begin(at(0), 443).unwrap();
        assert_ne!(first, second);
        assert!(
            first.ends_with("incident-20231114T221320000Z-443.jsonl.zst"),
            "{first:?}"
        );
        assert_eq!(folder.list().unwrap().len(), 2);
        fs::remove_dir_all(path).unwrap();
    }
}

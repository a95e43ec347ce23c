//! What a recording is read from: a file, a pipe, standard input. Not a device, which has no end.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::{Result, bail};

/// One of the things that a recording is read from.
#[derive(Debug)]
pub enum Input {
    /// `-`.
    Standard,
    /// A file, which can be read again from any place.
    File(PathBuf),
    /// A pipe, which can be read once.
    Stream(PathBuf, File),
}

/// How long a FIFO may have nobody who writes to it.
const PATIENCE: Duration = Duration::from_secs(3);

impl Input {
    /// Finds out what is at a path, and whether it can be read.
    ///
    /// # Errors
    /// If it cannot.
    pub fn find(path: &Path) -> Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::Standard);
        }
        let about = fs::metadata(path)?;
        if about.is_dir() {
            bail!("it is a folder");
        }
        if about.is_file() {
            // Opened again when it is its turn: there may be more files than may be open.
            return match File::open(path) {
                Ok(_) => Ok(Self::File(path.to_owned())),
                Err(error) => Err(error.into()),
            };
        }
        if is_pipe(&about.file_type()) {
            return Ok(Self::Stream(path.to_owned(), open_pipe(path)?));
        }
        bail!("it is a device or a socket: name a file, or give - for standard input");
    }

    /// Whether all of it is a file, so that it can be read more than once.
    #[must_use]
    pub fn is_file(path: &Path) -> bool {
        fs::metadata(path).is_ok_and(|about| about.is_file())
    }
}

/// Opening a FIFO waits until somebody opens it to write. Not for ever.
fn open_pipe(path: &Path) -> Result<File> {
    let (opened, wait) = mpsc::channel();
    let name = path.to_owned();
    // If nobody comes the thread ends with the process.
    thread::Builder::new().spawn(move || opened.send(File::open(name)))?;
    match wait.recv_timeout(PATIENCE) {
        Ok(file) => Ok(file?),
        Err(_) => bail!(io::Error::new(
            io::ErrorKind::TimedOut,
            "it is a FIFO that nobody writes to",
        )),
    }
}

#[cfg(unix)]
fn is_pipe(kind: &fs::FileType) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(kind)
}

#[cfg(not(unix))]
fn is_pipe(_: &fs::FileType) -> bool {
    false
}

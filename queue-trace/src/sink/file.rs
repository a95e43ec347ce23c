//! A file that is to be written: what may be in its place, and when it takes it.
//!
//! It is private (0600) and always a new one, so nobody has it open already, and it is no
//! link to another. An older file stays as it is until the new one takes its place, which
//! happens at once for all who look: when a recording begins, or when all is written.
//! Links are not followed, as in a folder that others may write to anybody can put one.
//! Two recorders do not write to one place: whoever writes holds a lock (flock(2)).

use std::{
    fs::{self, File, OpenOptions},
    io,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, bail};

/// A file that is to be written.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    file: File,
    place: Destination,
    /// What it will take the place of, locked.
    older: Option<File>,
}

/// Where it is.
#[derive(Debug)]
enum Destination {
    /// Under its own name.
    Taken,
    /// A device, a FIFO or a socket, which is written to as it is.
    Stream,
    /// Beside it, under another name.
    Beside(PathBuf),
}

impl NewFile {
    /// Makes a file that is to take a place later. What is there stays as it is.
    ///
    /// # Errors
    /// If it may not or cannot be written there.
    pub fn prepare(path: &Path) -> Result<Self> {
        Self::prepare_at(path).with_context(|| format!("cannot write to {}", path.display()))
    }

    fn prepare_at(path: &Path) -> Result<Self> {
        need_name(path)?;
        let older = match look(path)? {
            Occupant::Stream => {
                return Ok(Self {
                    path: path.to_owned(),
                    file: open_stream(path)?,
                    place: Destination::Stream,
                    older: None,
                });
            }
            Occupant::Nothing => None,
            Occupant::File(older) => Some(older),
        };
        let beside = beside(path);
        let file = create(&beside)?;
        Ok(Self {
            path: path.to_owned(),
            file,
            place: Destination::Beside(beside),
            older,
        })
    }

    /// Makes a file at once, where there is nothing yet.
    ///
    /// # Errors
    /// If there is something, or it cannot be made.
    pub fn make(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: create(path)?,
            place: Destination::Taken,
            older: None,
        })
    }

    /// Its path, as the user named it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What to write to.
    ///
    /// # Errors
    /// If there are too many open files.
    pub fn writer(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Takes its place, if it has not yet.
    ///
    /// # Errors
    /// If another has taken it meanwhile, or it cannot be taken.
    pub fn take_place(&mut self) -> io::Result<()> {
        let Destination::Beside(beside) = &self.place else {
            return Ok(());
        };
        let expected = match &self.older {
            Some(older) => same_file(older, &self.path)?,
            None => false,
        };
        if !expected {
            // Another one came, or went, since it was looked at.
            match look(&self.path).map_err(io::Error::other)? {
                Occupant::Stream => return Err(io::Error::other("something else is there by now")),
                Occupant::Nothing => self.older = None,
                Occupant::File(older) => self.older = Some(older),
            }
        }
        if self.older.is_some() {
            fs::rename(beside, &self.path)?;
        } else {
            // Fails where there is something by now, unlike renaming.
            match fs::hard_link(beside, &self.path) {
                Ok(()) => fs::remove_file(beside)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
                // Not every file system has links.
                Err(_) => fs::rename(beside, &self.path)?,
            }
        }
        self.place = Destination::Taken;
        self.older = None;
        Ok(())
    }

    /// Fails if nobody can find what is written any more, as the file was removed, perhaps with
    /// its folder.
    ///
    /// # Errors
    /// That it was removed.
    pub fn is_still_there(&self) -> io::Result<()> {
        if matches!(self.place, Destination::Taken) && is_removed(&self.file) {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the file was removed while it was written, and nothing of it is left",
            ));
        }
        Ok(())
    }

    /// Fails if it is what one of these inputs is read from: writing would destroy it, or feed on
    /// itself.
    ///
    /// # Errors
    /// Which one it is.
    pub fn is_none_of(&self, inputs: &[PathBuf]) -> Result<()> {
        let written = match &self.place {
            Destination::Stream => Some(&self.file),
            _ => self.older.as_ref(),
        };
        match written {
            Some(file) => refuse_inputs(file, inputs, &self.path.display().to_string()),
            None => Ok(()),
        }
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Destination::Beside(beside) = &self.place {
            // It never took its place. If it cannot be removed there is nobody to tell.
            let _ = fs::remove_file(beside);
        }
    }
}

/// Fails if a file that is written is one of these inputs; `-` is standard input.
///
/// # Errors
/// Which one it is.
pub fn refuse_inputs(written: &File, inputs: &[PathBuf], name: &str) -> Result<()> {
    for input in inputs {
        let same = if input == Path::new("-") {
            is_standard_input(written)
        } else {
            // What cannot be looked at cannot be read, and says so itself.
            same_file(written, input).unwrap_or(false)
        };
        if same {
            bail!(
                "{name} is what is read ({}): write to another file",
                input.display()
            );
        }
    }
    Ok(())
}

/// What is at a path.
enum Occupant {
    Nothing,
    /// A file, locked.
    File(File),
    /// Something that takes bytes and keeps none.
    Stream,
}

fn need_name(path: &Path) -> Result<()> {
    let text = path.as_os_str().to_string_lossy();
    if path.file_name().is_none() || text.ends_with(std::path::is_separator) {
        bail!("it is a directory: name a file in it");
    }
    Ok(())
}

/// Looks at what is at a path, without changing it.
fn look(path: &Path) -> Result<Occupant> {
    let about = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Occupant::Nothing),
        about => about?,
    };
    let kind = about.file_type();
    if kind.is_symlink() {
        // To a pipe or a terminal, as in /dev/stdout and >(command), it does no harm.
        if fs::metadata(path).is_ok_and(|about| is_stream(&about.file_type())) {
            return Ok(Occupant::Stream);
        }
        let leads = fs::read_link(path).unwrap_or_default();
        bail!(
            "it is a link to {}, and links are not followed: name the file itself, or remove \
             the link",
            leads.display()
        );
    }
    if kind.is_dir() {
        bail!("it is a directory: name a file in it");
    }
    if is_stream(&kind) {
        return Ok(Occupant::Stream);
    }
    if !about.is_file() {
        bail!("it is neither a file nor a pipe");
    }
    let file = open_to_lock(path)?;
    lock(&file)?;
    Ok(Occupant::File(file))
}

/// A name beside a path, for what is not whole yet; short, as names have a limit.
fn beside(path: &Path) -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    path.with_file_name(format!(".queue-trace-{}-{number}.part", std::process::id()))
}

/// A new file, private and locked.
fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let file = options.open(path)?;
    lock(&file)?;
    Ok(file)
}

#[cfg(unix)]
fn is_stream(kind: &fs::FileType) -> bool {
    use std::os::unix::fs::FileTypeExt;
    kind.is_fifo() || kind.is_char_device() || kind.is_socket()
}

#[cfg(not(unix))]
fn is_stream(kind: &fs::FileType) -> bool {
    !kind.is_file() && !kind.is_dir()
}

/// The file that will be replaced, which need not be readable for us.
#[cfg(target_os = "linux")]
fn open_to_lock(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, open};
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(path, flags | OFlags::RDONLY, Mode::empty())
        .or_else(|_| open(path, flags | OFlags::WRONLY, Mode::empty()))?;
    Ok(file.into())
}

#[cfg(not(target_os = "linux"))]
fn open_to_lock(path: &Path) -> io::Result<File> {
    File::open(path)
}

#[cfg(target_os = "linux")]
fn open_stream(path: &Path) -> io::Result<File> {
    use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl, open};
    // A FIFO that nobody reads would keep us waiting.
    let file = open(
        path,
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    );
    let file = file.map_err(|errno| match errno {
        rustix::io::Errno::NXIO => io::Error::new(
            io::ErrorKind::BrokenPipe,
            "it is a FIFO that nobody reads: start its reader first",
        ),
        errno => errno.into(),
    })?;
    fcntl_setfl(&file, fcntl_getfl(&file)? - OFlags::NONBLOCK)?;
    Ok(file.into())
}

#[cfg(not(target_os = "linux"))]
fn open_stream(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

/// Locks a file until it is closed.
#[cfg(target_os = "linux")]
pub(super) fn lock(file: &File) -> io::Result<()> {
    use rustix::{
        fs::{FlockOperation, flock},
        io::Errno,
    };
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Err(Errno::WOULDBLOCK) => Err(io::Error::other(
            "another queue-trace is writing to it: choose another name",
        )),
        // File systems without locks have no way to tell.
        _ => Ok(()),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn lock(_: &File) -> io::Result<()> {
    Ok(())
}

#[cfg(unix)]
fn same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let here = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(not(unix))]
fn same_file(_: &File, _: &Path) -> io::Result<bool> {
    Ok(false)
}

#[cfg(unix)]
fn is_removed(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    file.metadata().is_ok_and(|about| about.nlink() == 0)
}

#[cfg(not(unix))]
fn is_removed(_: &File) -> bool {
    false
}

#[cfg(unix)]
fn is_standard_input(file: &File) -> bool {
    use std::os::{fd::AsFd, unix::fs::MetadataExt};
    let stdin = io::stdin().as_fd().try_clone_to_owned().map(File::from);
    let about = stdin.and_then(|stdin| stdin.metadata());
    about
        .and_then(|there| file.metadata().map(|here| (here, there)))
        .is_ok_and(|(here, there)| (here.dev(), here.ino()) == (there.dev(), there.ino()))
}

#[cfg(not(unix))]
fn is_standard_input(_: &File) -> bool {
    false
}

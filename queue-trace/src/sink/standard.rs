//! Standard output, whose reader may be slow, or not read at all. A write waits for it, but
//! no longer than until a signal asks the program to end.

use std::{
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
};

use crate::stopping;

/// Standard output without a buffer.
#[derive(Debug, Default)]
pub struct Standard {
    /// How often it was found that nobody reads, since the program is to end and something was read.
    unread: u32,
    /// Whether a write cannot wait for a reader; `None`: not known yet.
    is_file: Option<bool>,
}

/// What a pipe that can be written to has room for at least (`PIPE_BUF`, pipe(7)).
const ROOM: usize = 4096;

/// How often one that is to end finds that nobody reads before it gives up. Not a time: where the
/// machine stands still, the reader does as well.
const PATIENCE: u32 = 10;

/// How often it is asked whether the program is to end, and whether somebody reads.
const OFTEN: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

impl Standard {
    /// Waits until something can be written.
    fn wait(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        loop {
            let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
            match poll(&mut fds, Some(&OFTEN)) {
                // An error shows when it is written.
                Ok(ready) if ready > 0 => {
                    self.unread = 0;
                    return Ok(());
                }
                Ok(_) if stopping::is_asked() => self.unread += 1,
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if self.unread >= PATIENCE {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "its reader does not read",
                ));
            }
        }
    }
}

impl Write for Standard {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stdout = io::stdout();
        let fd = stdout.as_fd();
        let is_file = *self.is_file.get_or_insert_with(|| {
            fstat(fd).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file())
        });
        if is_file {
            return Ok(rustix::io::write(fd, bytes)?);
        }
        self.wait(fd)?;
        Ok(rustix::io::write(fd, &bytes[..bytes.len().min(ROOM)])?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! A terminal of a given size in which a program runs: keys go in, and what a person would
//! see comes out. The live tests use it too.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    num::NonZero,
    os::fd::{AsFd, OwnedFd},
    sync::mpsc::{self, Receiver},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{Winsize, tcsetwinsize},
};

/// Within it even an emulated machine attaches and draws.
const PATIENCE: Duration = Duration::from_secs(60);

/// A pseudo-terminal: our end of it, and the program's.
pub fn terminal() -> (File, OwnedFd) {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let path = ptsname(&ours, Vec::new()).unwrap();
    let path = path.to_str().unwrap();
    let theirs = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    (ours.into(), theirs.into())
}

/// What the terminal shows.
pub struct Screen {
    /// Our end of it.
    pub keys: File,
    written: Receiver<Vec<u8>>,
    shows: vt100::Parser,
}

impl Screen {
    /// An empty one, and the end for the program's standard input, output and error. It
    /// must be nobody else's when the program ends.
    pub fn open(columns: u16, rows: u16) -> (Self, OwnedFd) {
        let (ours, theirs) = terminal();
        set_size(&ours, columns, rows);
        let mut reader = ours.try_clone().unwrap();
        let (sender, written) = mpsc::channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Ends with an error once the program has closed the terminal.
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let screen = Self {
            keys: ours,
            written,
            shows: vt100::Parser::new(some(rows), some(columns), 0),
        };
        (screen, theirs)
    }

    /// Makes it larger or smaller.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        set_size(&self.keys, columns, rows);
        let shows = self.shows.screen_mut();
        shows.set_size(some(rows), some(columns));
    }

    /// What it shows now.
    pub fn shows(&self) -> &vt100::Screen {
        self.shows.screen()
    }

    /// Waits until the text on it is as it should be, and gives that.
    #[track_caller]
    pub fn wait(&mut self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        self.wait_until(what, |shows| is_so(&shows.contents()))
    }

    /// Waits until the screen is as it should be, and gives its text.
    #[track_caller]
    pub fn wait_until(&mut self, what: &str, is_so: impl Fn(&vt100::Screen) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = self.shows().contents();
            if is_so(self.shows()) {
                return text;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.written.recv_timeout(left) {
                Ok(bytes) => self.shows.process(&bytes),
                Err(error) => panic!("{error} while waiting for {what}:\n{text}"),
            }
        }
    }

    /// Waits until these words are to be seen.
    #[track_caller]
    pub fn wait_for(&mut self, words: &str) -> String {
        self.wait(words, |text| text.contains(words))
    }

    /// Types.
    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// The program has ended: the terminal is as it was before.
    pub fn assert_restored(mut self) {
        while let Ok(bytes) = self.written.recv_timeout(PATIENCE) {
            self.shows.process(&bytes);
        }
        let text = self.shows().contents();
        assert!(!self.shows().alternate_screen(), "{text}");
        assert!(!self.shows().hide_cursor());
    }
}

fn some(size: u16) -> NonZero<u16> {
    NonZero::new(size).unwrap()
}

fn set_size(terminal: &impl AsFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

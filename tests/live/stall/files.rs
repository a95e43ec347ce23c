//! The host's table of open files is full: `fs.file-max`, in guests only, as it is everybody's.

use std::{fs, fs::File, net::TcpListener, path::Path, thread, time::Duration};

use live_tests::{ALL, Scratch, unproven};
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

use super::{FILE, Stalling, start, start_with};

const LIMIT: &str = "/proc/sys/fs/file-max";
/// So many more may be open when it begins.
const ROOM: u64 = 128;
/// So many fewer once it is full, so that what others close makes no room.
const TIGHTER: u64 = 64;

/// What the server does: as one without privileges it opens files until there are no more, and goes
/// on calling accept(). The error of that goes into the file.
pub fn serve(listener: &TcpListener) -> ! {
    let have = capabilities(None).unwrap();
    let less = CapabilitySets {
        effective: have.effective - CapabilitySet::SYS_ADMIN,
        permitted: have.permitted - CapabilitySet::SYS_ADMIN,
        inheritable: have.inheritable - CapabilitySet::SYS_ADMIN,
    };
    let mut said = File::create(std::env::var(FILE).unwrap()).unwrap();
    set_capabilities(None, less).unwrap();
    let mut held = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => held.push(file),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENFILE), "{error}");
                break;
            }
        }
        assert!(held.len() < 1000, "the table has no end");
    }
    let mut last = None;
    loop {
        let error = listener
            .accept()
            .err()
            .and_then(|error| error.raw_os_error());
        if error != last {
            use std::io::Write;
            writeln!(said, "{}", error.unwrap_or(0)).unwrap();
            last = error;
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Open files of the host.
fn open() -> u64 {
    let text = fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// The host's limit, which is as it was when this is dropped.
struct Limit(String);

impl Limit {
    fn new(files: u64) -> Self {
        let before = Self(fs::read_to_string(LIMIT).unwrap());
        Self::set(files);
        before
    }

    fn set(files: u64) {
        fs::write(LIMIT, files.to_string()).unwrap();
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        let _ = fs::write(LIMIT, self.0.trim());
    }
}

/// One that has filled the table; the limit lives as long.
fn filled(said: &Path) -> (Limit, Stalling) {
    let files = open() + ROOM;
    let limit = Limit::new(files);
    let stalling = start_with("files", |command| {
        command.env(FILE, said);
    });
    Limit::set(files - TIGHTER);
    (limit, stalling)
}

#[test]
fn the_host_is_out_of_them() {
    if unproven("stall::files::the_host_is_out_of_them", ALL) {
        return;
    }
    let scratch = Scratch::new("stall-files");
    let said = scratch.file("said");
    let (limit, stalling) = filled(&said);
    let found = stalling.assert_found("descriptors");
    found.says("the host is out of open files");
    found.says("ENFILE");
    assert!(!found.what.contains("EMFILE"), "{}", found.what);
    // That is what it was told, and nothing else.
    let errors = fs::read_to_string(&said).unwrap();
    let errors: Vec<_> = errors.lines().collect();
    assert!(
        errors.contains(&libc::ENFILE.to_string().as_str()),
        "{errors:?}"
    );
    assert!(
        !errors.contains(&libc::EMFILE.to_string().as_str()),
        "{errors:?}"
    );
    // The remedy is a command, and enough.
    let wanted = found.remedy.strip_prefix("sysctl -w fs.file-max=").unwrap();
    Limit::set(wanted.parse().unwrap());
    stalling.assert_accepts();
    drop(limit);
}

/// The table is full, and what keeps these is something else: one may open more, and the other
/// calls accept() not at all.
#[test]
fn others_are_kept_by_something_else() {
    if unproven("stall::files::others_are_kept_by_something_else", ALL) {
        return;
    }
    let scratch = Scratch::new("stall-files-others");
    let (_limit, _full) = filled(&scratch.file("said"));
    for does in ["sleep", "pipe"] {
        let found = start(does).assert_found("asleep");
        assert!(!found.what.contains("ENFILE"), "{}", found.what);
    }
}

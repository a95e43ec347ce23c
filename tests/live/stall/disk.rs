//! An application whose write to a disk does not return: its file system is frozen, as it is for a
//! snapshot, and the thread that should accept is in state D.

use std::{
    fs::OpenOptions,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use live_tests::{Scratch, in_private_mounts};

use super::{FILE, start_with};

/// What the server does: it writes a log that it has open, and would then accept.
pub fn serve(listener: &TcpListener) -> ! {
    let mut log = OpenOptions::new()
        .append(true)
        .open(std::env::var(FILE).unwrap())
        .unwrap();
    loop {
        log.write_all(b"accepting\n").unwrap();
        drop(listener.accept());
    }
}

fn run(command: &mut Command) {
    let output = command.output();
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A file system that is frozen until this is dropped, or the test is gone, however that ended: the
/// one who thaws it is a process of its own, that waits for the end of its input.
struct Frozen(Child);

impl Frozen {
    fn new(folder: &Path) -> Self {
        use std::os::unix::process::CommandExt;
        let script = "fsfreeze -f \"$1\" && echo frozen && cat; fsfreeze -u \"$1\"";
        let mut keeper = Command::new("sh")
            .args(["-c", script, "sh"])
            .arg(folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = String::new();
        let mut stdout = BufReader::new(keeper.stdout.take().unwrap());
        stdout.read_line(&mut said).unwrap();
        let frozen = Self(keeper);
        assert_eq!(said, "frozen\n");
        frozen
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// A disk in a file, mounted where this thread alone sees it.
fn disk(scratch: &Scratch) -> PathBuf {
    let (image, folder) = (scratch.file("disk"), scratch.file("mounted"));
    let file = std::fs::File::create(&image).unwrap();
    file.set_len(8 << 20).unwrap();
    std::fs::create_dir(&folder).unwrap();
    run(Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .arg(&image));
    run(Command::new("mount")
        .args(["-o", "loop"])
        .args([&image, &folder]));
    folder
}

#[test]
fn a_frozen_file_system() {
    let scratch = Scratch::new("stall-frozen");
    in_private_mounts(|_| {
        let folder = disk(&scratch);
        let log = folder.join("log");
        std::fs::write(&log, "").unwrap();
        let frozen = Frozen::new(&folder);
        let stalling = start_with("disk", |command| {
            command.env(FILE, &log);
        });
        let found = stalling.assert_found("blocked");
        found.says("is blocked in the kernel (state D), in write()");
        found.says(log.to_str().unwrap());
        // The lock of the superblock that writers take.
        found.says("percpu_");
        assert!(
            found.remedy.starts_with("cat /proc/") && found.remedy.ends_with("/stack"),
            "{}",
            found.remedy
        );
        let shown = Command::new("sh").args(["-c", &found.remedy]).output();
        let shown = String::from_utf8(shown.unwrap().stdout).unwrap();
        assert!(shown.contains("percpu_"), "{shown}");
        drop(frozen);
        stalling.assert_accepts();
    });
}

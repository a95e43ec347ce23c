//! Files that are written: what they may replace, what they never do, and what they look like to
//! others. The live tests have what takes a kernel to watch.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Write},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::fs::{CWD, FileType, FlockOperation, Mode, flock, mknodat};

const RECORDING: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/recordings/accept-overflow.jsonl"
);

/// A folder of its own, removed at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("queue-trace-files-{name}-{}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A recording of its own.
    fn recording(&self, name: &str) -> PathBuf {
        let path = self.file(name);
        fs::copy(RECORDING, &path).unwrap();
        path
    }

    fn fifo(&self, name: &str) -> PathBuf {
        let path = self.file(name);
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        path
    }

    /// Nothing is left of what was begun.
    fn assert_has_only(&self, names: &[&str]) {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut found: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        found.sort();
        assert_eq!(found, names);
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_queue-trace"));
    command.args(args);
    command
}

/// A command that reads a recording and writes a file of it.
fn convert(how: &[&str], from: &Path, to: &Path) -> Output {
    let mut command = command(how);
    command.arg(from).arg("-o").arg(to).output().unwrap()
}

const WAYS: [&[&str]; 3] = [&["replay", "--json"], &["replay"], &["report"]];

#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "no {word:?} in: {stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn a_file_is_private_and_new() {
    let folder = Folder::new("private");
    let to = folder.file("out");
    let other_name = folder.file("other");
    for how in WAYS {
        // An older one that all may read, and that has another name.
        fs::write(&to, "old").unwrap();
        fs::set_permissions(&to, Permissions::from_mode(0o666)).unwrap();
        let _ = fs::remove_file(&other_name);
        fs::hard_link(&to, &other_name).unwrap();
        let output = convert(how, Path::new(RECORDING), &to);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        let mode = fs::metadata(&to).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{how:?}");
        assert!(fs::metadata(&to).unwrap().len() > 1000);
        assert_eq!(fs::read_to_string(&other_name).unwrap(), "old");
    }
    folder.assert_has_only(&["other", "out"]);
}

#[test]
fn its_own_input_is_never_destroyed() {
    let folder = Folder::new("input");
    let from = folder.recording("x.jsonl");
    let whole = fs::read(&from).unwrap();
    let link = folder.file("link.jsonl");
    fs::hard_link(&from, &link).unwrap();
    for how in WAYS {
        for to in [&from, &link] {
            assert_refused(
                &convert(how, &from, to),
                &["is what is read", "another file"],
            );
            assert_eq!(fs::read(&from).unwrap(), whole);
        }
        // As standard input.
        let mut command = command(how);
        command.args(["-", "-o"]).arg(&from);
        let output = command.stdin(File::open(&from).unwrap()).output().unwrap();
        assert_refused(&output, &["is what is read"]);
        assert_eq!(fs::read(&from).unwrap(), whole);
    }
    // As standard output, to which it is appended.
    let append = OpenOptions::new().append(true).open(&from).unwrap();
    let mut replay = command(&["replay", "--json"]);
    let status = replay
        .arg(&from)
        .stdout(append)
        .stderr(Stdio::null())
        .status();
    assert_eq!(status.unwrap().code(), Some(1));
    assert_eq!(fs::read(&from).unwrap(), whole);
    folder.assert_has_only(&["link.jsonl", "x.jsonl"]);
}

#[test]
fn an_older_file_stays_if_there_is_nothing_to_write() {
    let folder = Folder::new("older");
    let to = folder.file("out");
    fs::write(&to, "old").unwrap();
    let garbage = folder.file("garbage");
    fs::write(&garbage, "no recording\n").unwrap();
    for how in WAYS {
        assert_refused(&convert(how, &garbage, &to), &["not a recording"]);
        assert_refused(&convert(how, Path::new("/no/such"), &to), &["/no/such"]);
        assert_eq!(fs::read_to_string(&to).unwrap(), "old");
    }
    folder.assert_has_only(&["garbage", "out"]);
}

#[test]
fn links_are_not_followed() {
    let folder = Folder::new("links");
    let victim = folder.file("victim");
    fs::write(&victim, "precious").unwrap();
    let link = folder.file("link");
    symlink(&victim, &link).unwrap();
    let dangling = folder.file("dangling");
    symlink(folder.file("nowhere"), &dangling).unwrap();
    for how in WAYS {
        for to in [&link, &dangling] {
            assert_refused(
                &convert(how, Path::new(RECORDING), to),
                &["link", "not followed"],
            );
        }
    }
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    folder.assert_has_only(&["dangling", "link", "victim"]);
}

#[test]
fn folders_are_not_files() {
    let folder = Folder::new("folders");
    let inside = folder.file("inside");
    fs::create_dir_all(&inside).unwrap();
    let slash = PathBuf::from(format!("{}/", folder.file("new").display()));
    for how in WAYS {
        for to in [&inside, &inside.join(".."), &slash, Path::new("/")] {
            assert_refused(&convert(how, Path::new(RECORDING), to), &["directory"]);
        }
    }
    folder.assert_has_only(&["inside"]);
}

#[test]
fn a_file_that_is_being_written_is_left_to_its_writer() {
    let folder = Folder::new("locked");
    let to = folder.file("out");
    fs::write(&to, "half").unwrap();
    let writer = File::open(&to).unwrap();
    flock(&writer, FlockOperation::LockExclusive).unwrap();
    for how in WAYS {
        let output = convert(how, Path::new(RECORDING), &to);
        assert_refused(&output, &["another queue-trace", "another name"]);
    }
    assert_eq!(fs::read_to_string(&to).unwrap(), "half");
    drop(writer);
    let output = convert(WAYS[0], Path::new(RECORDING), &to);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
}

#[test]
fn devices_and_pipes_are_written_to_as_they_are() {
    for how in WAYS {
        let output = convert(how, Path::new(RECORDING), Path::new("/dev/null"));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_refused(
            &convert(how, Path::new(RECORDING), Path::new("/dev/full")),
            &["/dev/full", "No space left"],
        );
        // A link to a pipe, which the shell makes of >(command).
        let output = convert(how, Path::new(RECORDING), Path::new("/dev/stdout"));
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stdout.len() > 1000, "{how:?}");
    }
    let folder = Folder::new("fifo");
    let fifo = folder.fifo("fifo");
    let began = Instant::now();
    for how in WAYS {
        let output = convert(how, Path::new(RECORDING), &fifo);
        assert_refused(&output, &["nobody reads"]);
    }
    assert!(began.elapsed() < Duration::from_secs(20));
    let path = fifo.clone();
    let reader = thread::spawn(move || fs::read_to_string(path).unwrap());
    // Its reader has to be there first.
    let deadline = Instant::now() + Duration::from_secs(20);
    let output = loop {
        let output = convert(WAYS[0], Path::new(RECORDING), &fifo);
        if output.status.success() || Instant::now() > deadline {
            break output;
        }
    };
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(
        reader.join().unwrap(),
        fs::read_to_string(RECORDING).unwrap()
    );
}

#[test]
fn a_pipe_is_read_once_and_not_waited_for_without_end() {
    let folder = Folder::new("input-fifo");
    let fifo = folder.fifo("fifo");
    for args in [
        &["replay"][..],
        &["diagnose"],
        &["report", "-o", "/dev/null"],
    ] {
        let began = Instant::now();
        let output = command(args).arg(&fifo).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains("nobody writes"), "{args:?}: {stderr}");
        assert!(began.elapsed() < Duration::from_secs(30));
    }
    let path = fifo.clone();
    let writer = thread::spawn(move || {
        let mut file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all(&fs::read(RECORDING).unwrap()).unwrap();
    });
    let output = command(&["replay", "--json"]).arg(&fifo).output().unwrap();
    writer.join().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(output.stdout, fs::read(RECORDING).unwrap());
}

#[test]
fn devices_are_not_read() {
    for device in ["/dev/zero", "/dev/urandom", "/dev/null"] {
        for args in [
            &["replay"][..],
            &["diagnose"],
            &["report", "-o", "/dev/full"],
        ] {
            let output = command(args).arg(device).output().unwrap();
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_ne!(output.status.code(), Some(0), "{device}");
            assert!(stderr.contains("device"), "{device}: {stderr}");
        }
    }
    // Through standard input it cannot be told beforehand; there is an end to it all the same.
    let zero = File::open("/dev/zero").unwrap();
    let output = command(&["replay", "-"]).stdin(zero).output().unwrap();
    assert_refused(&output, &["nothing can be read", "without end"]);
}

#[test]
fn nobody_needs_to_read_what_is_said_beside_the_data() {
    // A recording with a note: it has no end.
    let folder = Folder::new("stderr");
    let cut = folder.file("cut.jsonl");
    let text = fs::read_to_string(RECORDING).unwrap();
    let (whole, _) = text.trim_end().rsplit_once('\n').unwrap();
    fs::write(&cut, whole).unwrap();
    let closed = || Stdio::from(OpenOptions::new().read(true).open("/dev/null").unwrap());
    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    for stderr in [closed, full] {
        let mut replay = command(&["replay", "--json"]);
        let output = replay.arg(&cut).stderr(stderr()).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        assert_eq!(String::from_utf8(output.stdout).unwrap().trim_end(), whole);
        // An error has its status, even if nobody can read it.
        let mut replay = command(&["replay", "/no/such/file"]);
        let output = replay.stderr(stderr()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let mut diagnose = command(&["diagnose", "/no/such/file"]);
        let output = diagnose.stderr(stderr()).output().unwrap();
        assert_eq!(output.status.code(), Some(2));
    }
}

/// What nobody reads any more is no error; what cannot be written is one, with its name.
#[test]
fn statuses_of_outputs() {
    for args in [&["replay", RECORDING][..], &["replay", "--json", RECORDING]] {
        let mut child = command(args)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0), "{args:?}: {stderr}");
        assert_eq!(stderr, "");
    }
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    for args in [
        &["replay", RECORDING][..],
        &["diagnose", RECORDING],
        &["man"],
        &["completions", "bash"],
        &["check"],
        &["listeners"],
    ] {
        let stdout = full.try_clone().unwrap();
        let output = command(args).stdout(stdout).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        let status = if args[0] == "diagnose" { 2 } else { 1 };
        assert_eq!(output.status.code(), Some(status), "{args:?}: {stderr}");
        assert!(stderr.contains("No space left"), "{args:?}: {stderr}");
    }
}

/// `check | head -1`: the status says what was found, whoever reads it.
#[test]
fn check_has_its_status_without_a_reader() {
    let whole = command(&["check", "--no-canary"]).output().unwrap();
    let mut child = command(&["check", "--no-canary"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), whole.status.code());
}

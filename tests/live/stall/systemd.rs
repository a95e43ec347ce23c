//! A socket of systemd whose service is down, or runs: a real systemd, as a user's.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use live_tests::{Scratch, in_private_mounts};
use rustix::mount::{MountFlags, mount};

use super::{Stalling, unique};
use crate::servers::{AT, PORT, Server};

/// A cgroup for systemd, of which all members and folders are its own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new() -> Self {
        let folder = Path::new("/sys/fs/cgroup").join(unique("queue-trace-stall-systemd"));
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while !removed(&self.0) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// With what is in it.
fn removed(folder: &Path) -> bool {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            removed(&entry.path());
        }
    }
    fs::remove_dir(folder).is_ok() || !folder.exists()
}

/// Runs it with a systemd that has a socket and a service with these lines.
fn with_systemd(service: &str, look: impl FnOnce(&Stalling) + Send) {
    in_private_mounts(|_| {
        // It manages users where this folder is, and takes the cgroups that are mounted.
        let none = MountFlags::empty();
        if !Path::new("/run/systemd/system").exists() {
            fs::create_dir_all("/run/systemd").unwrap();
            mount("none", "/run/systemd", "tmpfs", none, None).unwrap();
            fs::create_dir("/run/systemd/system").unwrap();
        }
        mount("cgroup2", "/sys/fs/cgroup", "cgroup2", none, None).unwrap();
        let cgroup = Cgroup::new();
        let server = Server::start("stall-systemd", |scratch| {
            systemd(scratch, &cgroup, service)
        });
        let pid = server.pid();
        let stalling = Stalling {
            does: "systemd".to_owned(),
            server,
            pid,
        };
        look(&stalling);
    });
}

fn systemd(scratch: &Scratch, cgroup: &Cgroup, service: &str) -> Command {
    let units = scratch.file(".config/systemd/user");
    fs::create_dir_all(&units).unwrap();
    let unit = |name: &str, lines: &str| {
        let text = format!("[Unit]\nDefaultDependencies=no\n{lines}\n");
        fs::write(units.join(name), text).unwrap();
    };
    unit("queue.target", "Requires=app.socket");
    unit(
        "app.socket",
        &format!("[Socket]\nListenStream={AT}\nBacklog=8"),
    );
    unit("app.service", &format!("[Service]\n{service}"));
    // In a cgroup of its own from its first moment: it would move what else is in its cgroup.
    let script = "echo 0 >\"$1/cgroup.procs\" && exec /lib/systemd/systemd --user --unit=queue.target --log-target=null";
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh"])
        .arg(&cgroup.0)
        .env("HOME", scratch.path())
        .env("XDG_RUNTIME_DIR", scratch.path());
    command
}

/// Its service ended, and is to start again much later.
#[test]
fn the_service_is_down() {
    with_systemd(
        "ExecStart=/bin/false\nRestart=always\nRestartSec=600",
        |stalling| {
            let found = stalling.assert_found("not_the_server");
            let pid = stalling.pid.as_raw_nonzero();
            found.says(&format!(
            "only systemd[{pid}] holds the socket, which it does for a service that is not running"
        ));
            assert!(!found.what.contains("epoll"), "{}", found.what);
            // The real tool names the service.
            assert!(found.remedy.starts_with("systemctl --user list-sockets"));
            let home = stalling.server.file("");
            let listed = Command::new("sh")
                .args(["-c", &found.remedy])
                .env("HOME", &home)
                .env("XDG_RUNTIME_DIR", &home)
                .output()
                .unwrap();
            let said = String::from_utf8(listed.stdout.clone()).unwrap();
            assert!(said.contains("app.service"), "{}: {listed:?}", found.remedy);
        },
    );
}

/// Its service runs, has the socket too, and sleeps: that is what keeps it.
#[test]
fn the_service_does_not_accept() {
    with_systemd("ExecStart=/bin/sleep 600", |stalling| {
        // A first client starts it.
        let client = stalling.server.connect();
        let deadline = Instant::now() + Duration::from_secs(20);
        while stalling.server.listening()[0].processes.len() < 2 {
            assert!(Instant::now() < deadline, "nothing serves {PORT}");
            thread::sleep(Duration::from_millis(50));
        }
        let found = stalling.assert_found("asleep");
        found.says("thread \"sleep\"");
        assert!(!found.what.contains("holds the socket"), "{}", found.what);
        drop(client);
    });
}

//! What keeps it from working is said in one message: what failed, why, and what to
//! do. It exits with 1, and nothing stays attached.

#![expect(unsafe_code, reason = "code between fork and exec")]

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
};

use live_tests::{
    ALL, Attach, Finished, Inhabitant, Launch, Recording, Room, Scratch, attach, in_private_mounts,
    program, unproven,
};
use queue_trace::lab::Family;
use rustix::{
    process::{Resource, Rlimit, setrlimit},
    thread::{CapabilitySet, UnshareFlags, remove_capability_from_bounding_set, unshare_unsafe},
};

const NOBODY: u32 = 65534;
const ALWAYS: [(&str, u32); 1] = [("net.ipv4.tcp_syncookies", 2)];

/// The program where every user can reach it.
fn reachable_by_all(scratch: &Scratch) -> PathBuf {
    let copy = scratch.file("queue-trace");
    fs::copy(program(), &copy).unwrap();
    copy
}

#[test]
fn not_root() {
    let scratch = Scratch::new("not-root");
    let program = reachable_by_all(&scratch);
    for args in [&[][..], &["demo"], &["--json", "-p", "80"]] {
        let finished = as_nobody(&program, args);
        finished.assert_failed(
            1,
            &["queue-trace: ", "root", "CAP_BPF", "CAP_PERFMON", "sudo"],
        );
        assert_eq!(finished.stdout, "");
    }
    // Its report goes to standard output, whatever it is.
    let finished = as_nobody(&program, &["check"]);
    assert_eq!(finished.status.code(), Some(2), "{finished:?}");
    assert!(finished.stdout.contains("none of CAP_BPF"), "{finished:?}");
    assert!(finished.stdout.contains("sudo"), "{finished:?}");
}

fn as_nobody(program: &Path, args: &[&str]) -> Finished {
    Launch::of(program, args)
        .with(|command| {
            command.uid(NOBODY).gid(NOBODY);
        })
        .finish()
}

/// Root in name only, as in a container.
#[test]
fn root_without_capabilities() {
    let drop_all = || {
        for capability in CapabilitySet::all().iter() {
            // Kernels differ in how many there are.
            let _ = remove_capability_from_bounding_set(capability);
        }
        Ok(())
    };
    let finished = Launch::text()
        .with(|command| {
            // SAFETY: system calls alone, which is all that may happen between fork and
            // exec.
            unsafe { command.pre_exec(drop_all) };
        })
        .finish();
    finished.assert_failed(1, &["CAP_BPF", "CAP_PERFMON"]);
}

#[test]
fn no_types() {
    let finished = in_private_mounts(|mounts| {
        mounts.hide("/sys/kernel/btf");
        Launch::text().finish()
    });
    let words = [
        "/sys/kernel/btf/vmlinux",
        "CONFIG_DEBUG_INFO_BTF",
        "--btf FILE",
        "pahole",
    ];
    finished.assert_failed(1, &words);
}

/// With the types in a file a kernel that shows none is traced all the same.
#[test]
fn types_from_a_file() {
    if unproven("bad_input::types_from_a_file", ALL) {
        return;
    }
    let scratch = Scratch::new("types");
    let types = scratch.file("types.btf");
    fs::copy("/sys/kernel/btf/vmlinux", &types).unwrap();
    let room = Room::new(Family::V4, 4, &ALWAYS);
    let recording = in_private_mounts(|mounts| {
        mounts.hide("/sys/kernel/btf");
        let tracer = Launch::live()
            .on(&room.netns)
            .arg("--btf")
            .arg(&types)
            .start();
        room.flood(10);
        tracer.stop()
    });
    recording.assert_reconciled(&room.netns, &room.before);
    assert_eq!(recording.events().count(), 10);
}

#[test]
fn a_file_that_holds_no_types() {
    let scratch = Scratch::new("no-types");
    let file = scratch.file("letter.txt");
    for content in [&b""[..], b"Dear kernel,", &[0xff; 4096]] {
        fs::write(&file, content).unwrap();
        let finished = Launch::text().arg("--btf").arg(&file).finish();
        finished.assert_failed(1, &["cannot read BTF", "letter.txt"]);
    }
    fs::remove_file(&file).unwrap();
    let finished = Launch::text().arg("--btf").arg(&file).finish();
    finished.assert_failed(1, &["letter.txt", "No such file"]);
}

/// A way to attach that was asked for by name is had or refused, with the reason and
/// the way out.
#[test]
fn a_way_to_attach_that_is_refused() {
    const REMEDY: &str = "leave --attach out";
    let finished = in_private_mounts(|mounts| {
        mounts.hide("/sys/bus/event_source/devices");
        Launch::plain(["--attach", "kprobe"]).finish()
    });
    finished.assert_failed(1, &["--attach kprobe", "without kprobes", REMEDY]);

    let scratch = Scratch::new("refused");
    let types = scratch.file("types.btf");
    fs::copy("/sys/kernel/btf/vmlinux", &types).unwrap();
    let finished = Launch::plain(["--attach", "fentry", "--btf"])
        .arg(&types)
        .finish();
    finished.assert_failed(1, &["--attach fentry", "own type information", REMEDY]);

    if attach() == Attach::Tracepoint {
        // Where only tracepoints are tested it is because this kernel refuses this.
        let finished = Launch::plain(["--attach", "fentry", "--count", "1"]);
        let finished = finished.args(["--duration", "1s"]).finish();
        if finished.status.code() != Some(0) {
            finished.assert_failed(1, &["--attach fentry", REMEDY]);
        }
    }
}

#[test]
fn proc_that_cannot_be_read() {
    let finished = in_private_mounts(|mounts| {
        mounts.hide("/proc");
        Launch::text().args(["--duration", "1s"]).finish()
    });
    finished.assert_failed(1, &["/proc"]);
    let blamed_wrongly = finished.stderr.contains("run it with sudo");
    assert!(!blamed_wrongly, "it is root already: {}", finished.stderr);
}

#[test]
fn an_output_file_that_cannot_be_made() {
    let finished = Launch::live().args(["-o", "/no/such/folder/file"]).finish();
    finished.assert_failed(1, &["cannot write to /no/such/folder/file", "No such file"]);
    let finished = Launch::live().args(["-o", "/proc/version"]).finish();
    finished.assert_failed(1, &["cannot write to /proc/version"]);
    let finished = Launch::live().args(["-o", "/tmp"]).finish();
    finished.assert_failed(1, &["cannot write to /tmp", "directory"]);
}

#[test]
fn a_disk_that_is_full_from_the_start() {
    let room = Room::new(Family::V4, 4, &[]);
    let tracer = Launch::live()
        .on(&room.netns)
        .args(["-o", "/dev/full"])
        .start();
    tracer.wait().assert_failed(
        1,
        &["cannot write to /dev/full", "No space left", "make room"],
    );
}

/// The disk fills up in the middle of a run: the lines that are whole are good.
#[test]
fn a_disk_that_fills_up() {
    let room = Room::new(Family::V4, 4, &ALWAYS);
    let scratch = Scratch::new("full");
    let file = scratch.file("incident.jsonl");
    let (finished, written) = in_private_mounts(|mounts| {
        mounts.small_disk(scratch.path(), 64);
        let tracer = Launch::live().on(&room.netns).arg("-o").arg(&file).start();
        room.flood(500);
        (tracer.wait(), fs::read_to_string(&file).unwrap())
    });
    finished.assert_failed(1, &["incident.jsonl", "No space left", "make room"]);
    let (whole, _) = written.rsplit_once('\n').unwrap();
    let recording = Recording::parse(whole);
    assert!(recording.events().count() > 50);
}

#[test]
fn a_path_that_leads_to_no_namespace() {
    for path in ["/no/such/file", "/etc/passwd", "/proc/self/ns/pid"] {
        let finished = Launch::live().args(["--netns", path]).finish();
        finished.assert_failed(1, &["--netns", path, "no network namespace"]);
    }
}

/// Without /proc no namespace is found, which is not the same as no listener.
#[test]
fn nothing_is_said_of_listeners_without_proc() {
    for args in [&["listeners"][..], &["check"]] {
        let finished = in_private_mounts(|mounts| {
            mounts.hide("/proc");
            Launch::plain(args).finish()
        });
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert_ne!(finished.status.code(), Some(0), "{said}");
        assert!(said.contains("/proc"), "{said}");
        assert!(!said.contains("No listeners"), "{said}");
    }
}

#[test]
fn sys_that_is_not_there() {
    let finished = in_private_mounts(|mounts| {
        mounts.hide("/sys");
        Launch::plain(["--duration", "1s"]).finish()
    });
    finished.assert_failed(1, &["/sys is not mounted", "mount -t sysfs"]);
}

/// Root of a user namespace has no privileges over the kernel.
#[test]
fn root_of_a_user_namespace() {
    let finished = Launch::text()
        .with(|command| {
            let enter = || {
                // SAFETY: the child has one thread, and shares nothing that this changes.
                unsafe { unshare_unsafe(UnshareFlags::NEWUSER) }.map_err(io::Error::from)
            };
            // SAFETY: a system call, which is all that may happen between fork and exec.
            unsafe { command.pre_exec(enter) };
        })
        .finish();
    finished.assert_failed(1, &["user namespace", "rootless", "run it outside"]);
}

#[test]
fn too_few_open_files() {
    // Too few to attach, and too few for anything.
    for (command, most) in [
        (&["--duration", "1s"][..], 24),
        (&["listeners"], 6),
        (&["--duration", "1s"], 5),
    ] {
        let limit = move || {
            let few = Rlimit {
                current: Some(most),
                maximum: Some(most),
            };
            setrlimit(Resource::Nofile, few).map_err(io::Error::from)
        };
        let launch = Launch::plain(command).with(|command| {
            // SAFETY: a system call, which is all that may happen between fork and exec.
            unsafe { command.pre_exec(limit) };
        });
        let finished = launch.finish();
        finished.assert_failed(1, &["open", "files", "ulimit -n"]);
    }
}

/// A number that no namespace has would show nothing, for ever.
#[test]
fn a_number_that_no_namespace_has() {
    for command in [&["--duration", "1s"][..], &["listeners"]] {
        let finished = Launch::plain(command).args(["--netns", "17"]).finish();
        finished.assert_failed(1, &["--netns 17", "no network namespace", "lsns -t net"]);
    }
}

#[test]
fn more_networks_than_fit() {
    let networks = (0..1025).flat_map(|number| {
        let network = format!("10.{}.{}.0/24", number / 256, number % 256);
        ["--client".to_owned(), network]
    });
    let finished = Launch::text().args(networks).finish();
    finished.assert_failed(1, &["--client", "1025 networks", "1024"]);
}

/// What may not be looked into is said once, not for each namespace.
#[test]
fn listeners_for_nobody_in_particular() {
    let scratch = Scratch::new("nobody");
    let program = reachable_by_all(&scratch);
    let rooms: Vec<_> = (0..3).map(|_| Room::new(Family::V4, 4, &[])).collect();
    let inhabitants: Vec<_> = rooms
        .iter()
        .map(|room| Inhabitant::of(&room.netns))
        .collect();
    let finished = as_nobody(&program, &["listeners"]);
    drop(inhabitants);
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    assert!(finished.stderr.lines().count() <= 2, "{}", finished.stderr);
}

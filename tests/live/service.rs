//! Asking about one service, one device or one port: what is of others appears nowhere, what is
//! its own is complete, also after it starts again; and the diagnosis answers the question.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use live_tests::{
    Counters, Launch, Recording, Room, Scratch, Shown, attach, in_private_mounts, listener_beside,
};
use queue_trace::lab::{Family, Netns, Pace, connect_each};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

use crate::servers::{Container, POD};

/// Clients that are not let in give up before they try again.
const SHORT: Duration = Duration::from_millis(600);
const PATIENCE: Duration = Duration::from_secs(30);

fn at(port: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
}

/// A redis that listens on a port.
struct Redis {
    child: Child,
    _scratch: Scratch,
}

impl Redis {
    /// Starts it, in a cgroup if one is given, and waits until it listens.
    fn start(netns: &Netns, port: u16, cgroup: Option<&Path>) -> Self {
        let scratch = Scratch::new(&format!("service-{port}"));
        let enter = cgroup.map_or(String::new(), |folder| {
            format!("echo 0 >{}/cgroup.procs && ", folder.display())
        });
        let script = format!(
            "{enter}exec redis-server --port {port} --bind 127.0.0.1 --save '' --dir {}",
            scratch.path().display()
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]);
        shell.stdin(Stdio::null()).stdout(Stdio::null());
        let redis = Self {
            child: netns.run(|| Ok(shell.spawn()?)).unwrap(),
            _scratch: scratch,
        };
        let deadline = Instant::now() + PATIENCE;
        while listeners(netns, &["-p", &port.to_string()])
            .rows()
            .next()
            .is_none()
        {
            assert!(Instant::now() < deadline, "redis does not listen on {port}");
            thread::sleep(Duration::from_millis(20));
        }
        redis
    }

    fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // Both fail if it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The listeners that fit the filters.
fn listeners(netns: &Netns, filters: &[&str]) -> Recording {
    let finished = Launch::plain(["listeners", "--json", "--netns"])
        .arg(netns.path())
        .args(filters)
        .finish();
    finished.recording()
}

/// So many connections, one after the other, each closed.
fn visit(netns: &Netns, port: u16, count: usize) {
    for _ in 0..count {
        let stream = netns.run(|| Ok(TcpStream::connect(at(port))?));
        drop(stream.unwrap());
    }
}

/// More clients than a listener's queue holds. They are gone when it ends: they would send their
/// SYNs again.
fn overflow(netns: &Netns, port: u16) {
    let connect = || connect_each(at(port), 8, Pace::AllAtOnce, SHORT, None);
    drop(netns.run(connect).unwrap());
}

fn total(recording: &Recording, verdict: &str) -> u64 {
    let of_it = recording.totals().filter(|total| total.verdict == verdict);
    of_it.map(|total| total.count).sum()
}

fn only_on(recording: &Recording, ports: &[u16]) {
    for event in recording.events() {
        assert!(ports.contains(&event.listener.port), "{event:?}");
    }
    for total in recording.totals() {
        assert!(ports.contains(&total.listener.port), "{total:?}");
    }
    for row in recording.rows() {
        assert!(ports.contains(&row.listener.port), "{row:?}");
    }
}

/// It serves, ends, and serves again on another port, beside a listener that refuses.
#[test]
fn a_service_is_followed_as_it_starts_again() {
    let netns = Netns::new().unwrap();
    let _other = listener_beside(&netns, at(9090), 2);
    let first = Redis::start(&netns, 8080, None);
    let before = Counters::of(&netns);
    let scratch = Scratch::new("followed");
    let path = scratch.file("all.jsonl");
    let whole = Launch::text()
        .args(["--json", "--all", "-o"])
        .arg(&path)
        .on(&netns)
        .start();
    let tracer = Launch::showing(Shown::All)
        .args(["--process", "redis-server"])
        .on(&netns)
        .start();
    visit(&netns, 8080, 5);
    overflow(&netns, 9090);
    drop(first);
    let _second = Redis::start(&netns, 8081, None);
    visit(&netns, 8081, 7);
    netns.silence().unwrap();
    let recording = tracer.stop();
    let _ = whole.stop();

    only_on(&recording, &[8080, 8081]);
    assert_eq!(total(&recording, "established"), 12);
    assert_eq!(
        recording
            .events()
            .filter(|event| event.verdict == "established")
            .map(|event| event.count)
            .sum::<u64>(),
        12
    );
    let filters = recording.header().attach.filters.clone().unwrap();
    assert!(
        filters.contains(&"--process redis-server".to_owned()),
        "{filters:?}"
    );
    // All packets were counted, so the ledger is whole, and says what others had.
    recording.assert_reconciled(&netns, &before);
    let dropped = Counters::of(&netns).since(&before, "ListenDrops");
    assert!(dropped > 0);
    assert_eq!(recording.ledger(&netns).other_drops, Some(dropped));

    // A recording of everything shows the same with the same filter.
    let replayed = Launch::plain(["replay", "--json", "--all", "--process", "redis-server"])
        .arg(&path)
        .finish()
        .recording();
    only_on(&replayed, &[8080, 8081]);
    assert_eq!(total(&replayed, "established"), 12);
    assert_eq!(replayed.ledger(&netns).other_drops, Some(dropped));

    let answer = |filter: &[&str]| {
        let finished = Launch::plain(["diagnose", "--json"])
            .args(filter)
            .arg(&path)
            .finish();
        let diagnosis: Value = serde_json::from_str(&finished.stdout).unwrap();
        (diagnosis["answer"].clone(), finished.status.code())
    };
    let (served, status) = answer(&["--process", "redis-server"]);
    assert_eq!(served["state"], "served", "{served}");
    assert_eq!(served["established"], 12, "{served}");
    assert_ne!(status, Some(1), "{served}");
    let (refused, status) = answer(&["-p", "9090"]);
    assert_eq!(refused["state"], "refused", "{refused}");
    assert_eq!(status, Some(1), "{refused}");
    let id = netns.id().to_string();
    let (nobody, status) = answer(&["-p", "7070", "--netns", &id]);
    assert_eq!(nobody["state"], "nobody_listens", "{nobody}");
    assert_eq!(status, Some(2), "{nobody}");
    // Somebody may do so in a namespace that was not recorded.
    let (unknown, _) = answer(&["-p", "7070"]);
    assert_eq!(unknown["state"], "no_listener_seen", "{unknown}");
}

/// By process, unit, container and pod, without attaching: the listeners.
#[test]
fn listeners_by_owner() {
    let netns = Netns::new().unwrap();
    let ours = listener_beside(&netns, at(9090), 2);
    let container = Container::new();
    let redis = Redis::start(&netns, 8080, Some(&container.folder));
    let ports = |filters: &[&str]| {
        let found = listeners(&netns, filters);
        let ports: Vec<_> = found.rows().map(|row| row.listener.port).collect();
        ports
    };
    let ours_pid = std::process::id().to_string();
    let pid = redis.pid().to_string();
    let scope = format!("cri-containerd-{}.scope", container.id);
    for (filters, expected) in [
        (&["--process", "redis-server"][..], &[8080][..]),
        (&["--process", &pid], &[8080]),
        (&["--process", &ours_pid], &[9090]),
        (&["--process", &ours_pid, "--process", &pid], &[8080, 9090]),
        (&["--process", &ours_pid, "-p", "8080"], &[]),
        (&["--process", "nobody-is-called"], &[]),
        (&["--container", &container.id[..12]], &[8080]),
        (&["--container", &container.id], &[8080]),
        (&["--container", "ffffffffffff"], &[]),
        (&["--pod", POD], &[8080]),
        (&["--pod", "web-1"], &[]),
        (&["--unit", &scope], &[]),
    ] {
        assert_eq!(ports(filters), expected, "{filters:?}");
    }
    // The kubelet's folder names the pod.
    in_private_mounts(|mounts| {
        mounts.hide("/var/log");
        fs::create_dir_all(format!("/var/log/pods/shop_web-1_{POD}")).unwrap();
        for (name, expected) in [
            ("web-1", &[8080][..]),
            ("shop/web-1", &[8080]),
            ("other/web-1", &[]),
        ] {
            assert_eq!(ports(&["--pod", name]), expected, "{name}");
        }
        let found = listeners(&netns, &["--pod", "web-1"]);
        let row = found.rows().next().unwrap();
        assert_eq!(row.pod_name.as_deref(), Some("shop/web-1"));
    });
    drop(ours);
}

/// A unit's listeners in the stream: a cgroup that is named as systemd names it.
#[test]
fn the_stream_of_a_unit() {
    let netns = Netns::new().unwrap();
    let _other = listener_beside(&netns, at(9090), 2);
    let unit = Container::named("system.slice/queue-trace-test.service");
    let tracer = Launch::showing(Shown::All)
        .args(["--unit", "queue-trace-test"])
        .on(&netns)
        .start();
    // It begins to listen after the tracer, and clients come at once.
    let _redis = Redis::start(&netns, 8080, Some(&unit.folder));
    visit(&netns, 8080, 3);
    overflow(&netns, 9090);
    netns.silence().unwrap();
    let recording = tracer.stop();
    only_on(&recording, &[8080]);
    assert_eq!(total(&recording, "established"), 3);
}

/// One port on two devices: each by its name and by its number.
#[test]
fn one_device_of_two() {
    let netns = Netns::new().unwrap();
    let made = netns.run(|| {
        Ok(Command::new("ip")
            .args("link add inside type veth peer name outside".split(' '))
            .output()?)
    });
    assert!(made.unwrap().status.success());
    let on = |device: &'static [u8]| {
        let make = move || {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind_device(Some(device))?;
            socket.bind(&SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 179).into())?;
            socket.listen(4)?;
            Ok(socket)
        };
        netns.run(make).unwrap()
    };
    let (inside, lo) = (on(b"inside"), on(b"lo"));
    let inode = |socket: &Socket| {
        let socket = std::os::fd::OwnedFd::from(socket.try_clone().unwrap());
        fs::File::from(socket).metadata().unwrap().ino()
    };
    for (device, socket) in [("inside", &inside), ("lo", &lo), ("1", &lo)] {
        let found = listeners(&netns, &["--device", device]);
        let found: Vec<_> = found.rows().map(|row| row.listener.inode).collect();
        assert_eq!(found, [Some(inode(socket))], "{device}");
    }
    assert_eq!(listeners(&netns, &["--device", "eth9"]).rows().count(), 0);
    let nobody = Launch::text()
        .args(["--device", "eth9", "--duration", "1s"])
        .on(&netns)
        .finish();
    nobody.assert_well();
    assert!(
        nobody
            .stderr
            .contains("no listener was seen that fits --device eth9"),
        "{}",
        nobody.stderr
    );

    let table = Launch::plain(["listeners", "--netns"])
        .arg(netns.path())
        .finish();
    assert!(
        table.stdout.contains("0.0.0.0%inside:179"),
        "{}",
        table.stdout
    );

    let text = Launch::text()
        .args(["--all", "--device", "lo"])
        .on(&netns)
        .start();
    visit(&netns, 179, 2);
    netns.silence().unwrap();
    text.signal(rustix::process::Signal::TERM);
    let text = text.wait();
    assert!(text.stdout.contains("0.0.0.0%lo:179"), "{}", text.stdout);
    assert!(!text.stdout.contains("inside"), "{}", text.stdout);
    drop((inside, lo));
}

/// What the diagnosis of this machine says when it is asked about a port.
#[test]
fn the_answer_about_a_port() {
    let room = Room::new(Family::V4, 16, &[]);
    let netns = &room.netns;
    let other = listener_beside(netns, at(9090), 2);
    let ask = |filters: &[&str], play: &dyn Fn()| {
        let running = Launch::plain([
            "diagnose",
            "--json",
            "--for",
            "4s",
            "--attach",
            attach().name(),
        ])
        .args(filters)
        .on(netns)
        .start();
        play();
        let finished = running.wait();
        let diagnosis: Value = serde_json::from_str(&finished.stdout).unwrap();
        (diagnosis, finished)
    };
    let port = room.address.port().to_string();
    let (diagnosis, finished) = ask(&["-p", &port], &|| {});
    assert_eq!(diagnosis["answer"]["state"], "no_syn", "{diagnosis}");
    assert_eq!(diagnosis["answer"]["about"][0], format!("--port {port}"));
    assert_ne!(finished.status.code(), Some(1), "{diagnosis}");

    let (diagnosis, _) = ask(&["-p", "7070"], &|| {});
    assert_eq!(
        diagnosis["answer"]["state"], "nobody_listens",
        "{diagnosis}"
    );
    assert_eq!(diagnosis["verdict"], "could_not_tell");

    // Another port refuses meanwhile, which is not what was asked, and is said all the same.
    let (diagnosis, finished) = ask(&["-p", &port], &|| {
        visit(netns, room.address.port(), 5);
        overflow(netns, 9090);
    });
    let answer = &diagnosis["answer"];
    assert_eq!(answer["state"], "served", "{diagnosis}");
    assert_eq!(
        (&answer["syns"], &answer["established"]),
        (&5.into(), &5.into())
    );
    assert_ne!(finished.status.code(), Some(1), "{diagnosis}");
    assert_eq!(diagnosis["findings"].as_array().map(Vec::len), Some(0));
    let proof = diagnosis["proof"].to_string();
    assert!(proof.contains("more drops in netns"), "{diagnosis}");
    assert!(proof.contains("every movement is explained"), "{diagnosis}");

    let (diagnosis, finished) = ask(&["-p", "9090"], &|| {
        overflow(netns, 9090);
    });
    assert_eq!(diagnosis["answer"]["state"], "refused", "{diagnosis}");
    assert_eq!(finished.status.code(), Some(1), "{diagnosis}");
    drop(other);
}

/// The stream of one port says how much was dropped on others.
#[test]
fn a_wrong_port_is_noticed() {
    let room = Room::new(Family::V4, 16, &[]);
    let _other = listener_beside(&room.netns, at(9090), 2);
    let before = Counters::of(&room.netns);
    let port = room.address.port().to_string();
    let tracer = Launch::text().args(["-p", &port]).on(&room.netns).start();
    overflow(&room.netns, 9090);
    room.netns.silence().unwrap();
    tracer.signal(rustix::process::Signal::TERM);
    let finished = tracer.wait();
    let dropped = Counters::of(&room.netns).since(&before, "ListenDrops");
    assert!(dropped > 0);
    let says = format!("{dropped} more drops in netns {}", room.netns.id());
    assert!(finished.stdout.contains(&says), "{}", finished.stdout);
}

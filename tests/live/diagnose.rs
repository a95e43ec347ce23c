//! `queue-trace diagnose` on recordings of the very faults: each is made here, recorded as it
//! happens, and must be found; and nothing must be found where nothing is wrong.
//!
//! With `QUEUE_TRACE_RECORDINGS=FOLDER` the recordings are kept, as those in
//! `queue-trace/tests/recordings` were.

use std::{
    fs, mem,
    net::{SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use live_tests::{ALL, Attach, Launch, Recording, Room, Scratch, attach, unproven};
use queue_trace::lab::{
    Family, Listen, Netns, Pace, connect_each,
    raw::{Flood, PeerAnswer, RawPeer, Wire},
};
use rustix::process::{Signal, kill_process};
use serde_json::Value;

use crate::{
    bench::{half_open, let_in, listen, syns},
    servers::{AT, PORT, Server, freeze},
};

const COOKIES: &str = "net.ipv4.tcp_syncookies";

/// Records what `play` does in the room, and gives the diagnosis.
pub fn diagnosed(name: &str, netns: &Netns, play: impl FnOnce()) -> Value {
    // A low rate keeps recordings of floods small; counts are exact all the same.
    diagnosed_in(name, &[netns], "60", play)
}

/// The same in several, with so many events a second.
pub fn diagnosed_in(name: &str, namespaces: &[&Netns], rate: &str, play: impl FnOnce()) -> Value {
    let scratch = Scratch::new(name);
    let path = scratch.file(&format!("{name}.jsonl"));
    let launch = Launch::text()
        .args(["--json", "--all", "--rate", rate, "-o"])
        .arg(&path);
    let on = |launch: Launch, netns: &&Netns| launch.on(netns);
    let tracer = namespaces.iter().fold(launch, on).start();
    play();
    let _ = tracer.stop();
    // Each of its lines is one that the schema knows.
    let recording = Recording::parse(&fs::read_to_string(&path).unwrap());
    assert_eq!(recording.header().attach.family, attach().name());
    if let Some(folder) = std::env::var_os("QUEUE_TRACE_RECORDINGS") {
        fs::create_dir_all(&folder).unwrap();
        let kept = format!("{}-{name}.jsonl", attach().name());
        fs::copy(&path, std::path::Path::new(&folder).join(kept)).unwrap();
    }
    let finished = Launch::plain(["diagnose", "--json"]).arg(&path).finish();
    let diagnosis: Value = serde_json::from_str(&finished.stdout).unwrap();
    let status = match diagnosis["verdict"].as_str() {
        Some("nothing_found") => 0,
        Some("findings") => 1,
        _ => 2,
    };
    assert_eq!(finished.status.code(), Some(status), "{finished:?}");
    // The proof never depends on what was found.
    assert_eq!(
        diagnosis["doubts"],
        Value::Array(Vec::new()),
        "{diagnosis:#}"
    );
    diagnosis
}

/// Within it even an emulated machine answers a SYN.
const REPLY: Duration = Duration::from_secs(10);

/// The rules that fired, worst first.
fn rules(diagnosis: &Value) -> Vec<String> {
    let findings = diagnosis["findings"].as_array().unwrap();
    let rule = |finding: &Value| finding["rule"].as_str().unwrap().to_owned();
    findings.iter().map(rule).collect()
}

#[track_caller]
pub fn assert_found(diagnosis: &Value, expected: &[&str]) {
    assert_eq!(rules(diagnosis), expected, "{diagnosis:#}");
}

/// For how long a client is alone.
const MOMENT: Duration = Duration::from_millis(2);
/// For how long clients wait for an answer.
const PATIENCE: Duration = Duration::from_millis(150);

/// Clients that come in, so many at a time, at this pace and for so long.
fn clients_come(room: &Room, at_once: usize, every: Duration, during: Duration) {
    clients_come_to(&room.netns, room.address, at_once, every, during);
}

pub fn clients_come_to(
    netns: &Netns,
    address: SocketAddr,
    at_once: usize,
    every: Duration,
    during: Duration,
) {
    let come = || {
        let began = Instant::now();
        while began.elapsed() < during {
            let started = Instant::now();
            // Each has a moment for its handshake: of many at once a slow machine would make
            // a flood. Gone before they would try again, and replaced by new ones.
            let clients: Vec<_> = (0..at_once)
                .map(|_| connect_each(address, 1, Pace::AllAtOnce, MOMENT, None))
                .collect::<anyhow::Result<_>>()?;
            thread::sleep(PATIENCE);
            drop(clients);
            thread::sleep(every.saturating_sub(started.elapsed()));
        }
        Ok(())
    };
    netns.run(come).unwrap();
}

/// Accepts whatever is there.
fn accept_all(listener: &TcpListener) -> usize {
    listener.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| listener.accept().ok()).count()
}

/// Accepts one connection at each interval until told to stop.
fn accept_slowly(listener: &TcpListener, every: Duration, stop: &AtomicBool) {
    listener.set_nonblocking(true).unwrap();
    while !stop.load(Ordering::Relaxed) {
        drop(listener.accept());
        thread::sleep(every);
    }
}

#[test]
fn an_application_that_stopped_accepting() {
    let room = Room::new(Family::V4, 8, &[]);
    let diagnosis = diagnosed("accept-stopped", &room.netns, || {
        // First all is well.
        drop(room.connect(4));
        assert_eq!(accept_all(&room.listener), 4);
        clients_come(&room, 3, Duration::from_millis(300), Duration::from_secs(8));
    });
    assert_found(&diagnosis, &["accept-stopped"]);
    let what = diagnosis["findings"][0]["what"].as_str().unwrap();
    assert!(
        what.contains("took nothing from its accept queue"),
        "{what}"
    );
    // What holds the socket is this test, which is at work now and waits now.
    let evidence = diagnosis["findings"][0]["evidence"].to_string();
    assert!(evidence.contains("threads did instead"), "{evidence}");
}

#[test]
fn a_backlog_too_small_for_bursts() {
    let room = Room::new(Family::V4, 8, &[]);
    let diagnosis = diagnosed("bursts", &room.netns, || {
        for _ in 0..3 {
            clients_come(&room, 20, Duration::ZERO, Duration::from_millis(1));
            assert_eq!(accept_all(&room.listener), 9);
            // All is quiet in between, for longer than a burst lasts.
            thread::sleep(Duration::from_secs(3));
            drop(room.connect(1));
            assert_eq!(accept_all(&room.listener), 1);
        }
    });
    assert_found(&diagnosis, &["backlog-too-small-for-bursts"]);
}

#[test]
fn a_backlog_that_somaxconn_cuts() {
    let room = Room::new(Family::V4, 500, &[("net.core.somaxconn", 8)]);
    let diagnosis = diagnosed("clamped", &room.netns, || {
        for _ in 0..2 {
            clients_come(&room, 20, Duration::ZERO, Duration::from_millis(1));
            assert_eq!(accept_all(&room.listener), 9);
            thread::sleep(Duration::from_secs(3));
        }
    });
    let found = ["backlog-too-small-for-bursts", "backlog-clamped-or-default"];
    assert_found(&diagnosis, &found);
}

/// A server of Python's `socketserver` with such a queue, or with its default of 5. It is
/// stopped while clients come in bursts, and takes all that wait in between.
fn bursts_at_python(name: &str, queue_size: Option<u32>) -> Value {
    let set = queue_size.map_or(String::new(), |size| format!("request_queue_size = {size}"));
    let script = format!(
        "import socketserver
class Server(socketserver.TCPServer):
    {set}
    pass
Server(('127.0.0.1', {PORT}), socketserver.BaseRequestHandler).serve_forever()"
    );
    let server = Server::start(name, |_| {
        let mut python = Command::new("python3");
        python.args(["-c", &script]);
        python
    });
    diagnosed(name, &server.netns, || {
        for _ in 0..2 {
            freeze(server.pid());
            clients_come_to(
                &server.netns,
                AT,
                20,
                Duration::ZERO,
                Duration::from_millis(1),
            );
            kill_process(server.pid(), Signal::CONT).unwrap();
            thread::sleep(Duration::from_secs(3));
            // It is there again.
            let one = || Ok(TcpStream::connect(AT)?);
            drop(server.netns.run(one).unwrap());
        }
    })
}

#[test]
fn a_default_backlog_that_nobody_chose() {
    let diagnosis = bursts_at_python("default", None);
    let found = ["backlog-too-small-for-bursts", "backlog-clamped-or-default"];
    assert_found(&diagnosis, &found);
    let what = diagnosis["findings"][1]["what"].as_str().unwrap();
    assert!(what.contains("default of Python's socketserver"), "{what}");
}

#[test]
fn a_backlog_that_somebody_chose() {
    let diagnosis = bursts_at_python("chosen", Some(6));
    assert_found(&diagnosis, &["backlog-too-small-for-bursts"]);
}

#[test]
fn an_application_that_accepts_too_slowly() {
    let room = Room::new(Family::V4, 4, &[]);
    let diagnosis = diagnosed("accept-too-slow", &room.netns, || {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| accept_slowly(&room.listener, Duration::from_millis(200), &stop));
            clients_come(&room, 4, Duration::from_millis(300), Duration::from_secs(9));
            stop.store(true, Ordering::Relaxed);
        });
    });
    assert_found(&diagnosis, &["accept-too-slow"]);
}

#[test]
fn a_flood_from_one_network_without_cookies() {
    let room = Room::new(Family::V4, 16, &[(COOKIES, 0)]);
    let diagnosis = diagnosed("flood-few-no-cookies", &room.netns, || {
        room.flood(600);
    });
    let mut found = rules(&diagnosis);
    found.sort();
    assert_eq!(
        found,
        ["syn-flood-few-networks", "syncookies-off"],
        "{diagnosis:#}"
    );
}

#[test]
fn a_flood_from_many_networks() {
    let room = Room::new(Family::V4, 16, &[(COOKIES, 1)]);
    let diagnosis = diagnosed("flood-many", &room.netns, || {
        let what = Flood {
            networks: 400,
            ..Flood::of(600)
        };
        room.flood_as(&what);
        // Who is real gets in.
        drop(room.connect(3));
        assert_eq!(accept_all(&room.listener), 3);
    });
    assert_found(&diagnosis, &["syn-flood-many-networks"]);
}

#[test]
fn cookies_that_were_never_sent() {
    let room = Room::new(Family::V4, 16, &[(COOKIES, 2)]);
    let diagnosis = diagnosed("forged-cookies", &room.netns, || {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            // Without one that it sent the kernel would not take them for cookies.
            half_open(&mut wire, room.address, 1)?;
            for _ in 0..12 {
                RawPeer::new(&mut wire, room.address)?.bogus_ack(&wire)?;
            }
            wire.settle()
        };
        room.netns.run(play).unwrap();
    });
    assert_found(&diagnosis, &["refused-otherwise"]);
    assert_eq!(diagnosis["findings"][0]["count"], 12, "{diagnosis:#}");
}

#[test]
fn clients_that_hang() {
    let room = Room::new(Family::V4, 4, &[(COOKIES, 2)]);
    let diagnosis = diagnosed("clients-hang", &room.netns, || {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            drop(let_in(&mut wire, room.address, 10)?);
            Ok(())
        };
        room.netns.run(play).unwrap();
    });
    assert_found(&diagnosis, &["accept-queue-full", "clients-hang"]);
}

#[test]
fn abort_on_overflow() {
    let sysctls = [(COOKIES, 0), ("net.ipv4.tcp_abort_on_overflow", 1)];
    let room = Room::new(Family::V4, 5, &sysctls);
    let diagnosis = diagnosed("abort-on-overflow", &room.netns, || {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            drop(let_in(&mut wire, room.address, 5)?);
            let late = half_open(&mut wire, room.address, 5)?;
            late.iter().try_for_each(|peer| peer.ack(&wire))?;
            wire.settle()
        };
        room.netns.run(play).unwrap();
    });
    assert_found(&diagnosis, &["accept-queue-full", "abort-on-overflow"]);
}

/// By tracepoints alone the socket of a SYN may not be known within a group: then the one whose own
/// queue is full is named.
#[test]
fn one_stuck_worker_of_a_group() {
    let room = Room::new(Family::V4, 64, &[]);
    let address = SocketAddr::new(room.address.ip(), 8090);
    let worker = Listen {
        backlog: 4,
        reuse_port: true,
        ..Listen::default()
    };
    let [stuck, alive] = [(); 2].map(|()| listen(&room.netns, address, &worker));
    let diagnosis = diagnosed("stuck-worker", &room.netns, || {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| accept_slowly(&alive, Duration::from_millis(5), &stop));
            let come = || {
                for _ in 0..14 {
                    // No more than fit into one queue, should all fall to the same one.
                    drop(connect_each(address, 4, Pace::AllAtOnce, PATIENCE, None)?);
                    thread::sleep(Duration::from_millis(250));
                }
                Ok(())
            };
            room.netns.run(come).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
    });
    drop(stuck);
    assert_found(&diagnosis, &["reuseport-worker-stuck"]);
}

#[test]
fn a_listener_closed_on_its_clients() {
    let mut room = Room::new(Family::V4, 8, &[]);
    let netns = mem::replace(&mut room.netns, Netns::new().unwrap());
    let diagnosis = diagnosed("listener-closed", &netns, || {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            drop(let_in(&mut wire, room.address, 5)?);
            wire.settle()
        };
        netns.run(play).unwrap();
        drop(room.listener);
        // The restarted server.
        drop(listen(&netns, room.address, &Listen::default()));
    });
    assert_found(&diagnosis, &["listener-closed-on-clients"]);
}

#[test]
fn a_gap_between_two_listeners() {
    if unproven("diagnose::a_gap_between_two_listeners", ALL) {
        return;
    }
    const CLIENTS: u64 = 5;
    const SYNS: u64 = 3;
    let mut room = Room::new(Family::V4, 8, &[]);
    let netns = mem::replace(&mut room.netns, Netns::new().unwrap());
    let mut gap = (Duration::ZERO, Duration::ZERO);
    let diagnosis = diagnosed("restart-gap", &netns, || {
        // The self-test has used some of what the rate allows in a second.
        thread::sleep(Duration::from_millis(1100));
        let before = Instant::now();
        drop(room.listener);
        let closed = Instant::now();
        let knock = || {
            let mut wire = Wire::open(room.family)?;
            for _ in 0..CLIENTS {
                let mut peer = RawPeer::new(&mut wire, room.address)?;
                for _ in 0..SYNS {
                    peer.syn(&wire)?;
                    assert_eq!(peer.answer(&mut wire, REPLY)?, Some(PeerAnswer::Reset));
                }
            }
            wire.settle()
        };
        netns.run(knock).unwrap();
        thread::sleep(Duration::from_millis(700));
        let least = closed.elapsed();
        let next = listen(&netns, room.address, &Listen::default());
        gap = (least, before.elapsed());
        thread::sleep(Duration::from_millis(700));
        drop(next);
    });
    assert_found(&diagnosis, &["restart-gap"]);
    let finding = &diagnosis["findings"][0];
    assert_eq!(finding["count"], CLIENTS * SYNS);
    assert_eq!(finding["ongoing"], false, "{finding:#}");
    let what = finding["what"].as_str().unwrap();
    let refused = format!("{} SYNs of {CLIENTS} clients were refused", CLIENTS * SYNS);
    assert!(what.contains(&refused), "{what}");
    let (_, said) = what.split_once(" for ").unwrap();
    let (said, _) = said.split_once(", from the end of ").unwrap();
    let said = match said.split_once(' ').unwrap() {
        (number, "ms") => number.parse::<f64>().unwrap() / 1e3,
        (number, "s") => number.parse().unwrap(),
        other => panic!("{other:?}"),
    };
    // It is rounded to a digit.
    let (least, most) = (gap.0.as_secs_f64() - 0.06, gap.1.as_secs_f64() + 0.06);
    assert!((least..most).contains(&said), "{what}, not {gap:?}");
}

#[test]
fn syn_acks_that_nobody_answers() {
    let room = Room::new(Family::V4, 64, &[(COOKIES, 1)]);
    let diagnosis = diagnosed("syn-acks-unanswered", &room.netns, || {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            syns(&mut wire, room.address, 6)
        };
        room.netns.run(play).unwrap();
        // The kernel sends them again after 1, 3 and 7 s.
        thread::sleep(Duration::from_secs(4));
    });
    // Where timers are not seen the age of the requests in the queue shows it.
    assert_found(&diagnosis, &["syn-acks-unanswered"]);
}

#[test]
fn nothing_is_found_where_nothing_is_wrong() {
    let room = Room::new(Family::V4, 64, &[]);
    let diagnosis = diagnosed("healthy", &room.netns, || {
        for _ in 0..5 {
            drop(room.connect(15));
            assert_eq!(accept_all(&room.listener), 15);
            thread::sleep(Duration::from_millis(900));
        }
    });
    assert_found(&diagnosis, &[]);
    let verdict = if judges_closing(&diagnosis) {
        "nothing_found"
    } else {
        assert_eq!(attach(), Attach::Tracepoint);
        "could_not_tell"
    };
    assert_eq!(diagnosis["verdict"], verdict, "{diagnosis:#}");
}

/// Whether it is told that a listener closes on its clients; by functions always.
pub fn judges_closing(diagnosis: &Value) -> bool {
    let not_judged = diagnosis["not_judged"].as_array().unwrap();
    let missing: Vec<_> = not_judged.iter().map(|not| &not["rule"]).collect();
    if attach() != Attach::Tracepoint {
        assert!(missing.is_empty(), "{diagnosis:#}");
    }
    !missing.contains(&&Value::from("listener-closed-on-clients"))
}

fn finding<'a>(diagnosis: &'a Value, rule: &str) -> &'a Value {
    let findings = diagnosis["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["rule"] == rule);
    found.unwrap_or_else(|| panic!("no {rule}: {diagnosis:#}"))
}

/// One connection in two seconds is slow, and not an outage: a restart would reset those that wait.
#[test]
fn a_worker_that_takes_one_connection_now_and_then() {
    let room = Room::new(Family::V4, 3, &[]);
    let diagnosis = diagnosed("slow-worker", &room.netns, || {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| accept_slowly(&room.listener, Duration::from_secs(2), &stop));
            let come = || {
                // They try again after 1, 3, 7 s, and are too many to get in sooner.
                let clients = connect_each(room.address, 20, Pace::AllAtOnce, MOMENT, None)?;
                thread::sleep(Duration::from_secs(12));
                drop(clients);
                Ok(())
            };
            room.netns.run(come).unwrap();
            stop.store(true, Ordering::Relaxed);
        });
    });
    let rules = rules(&diagnosis);
    assert!(
        !rules.contains(&"accept-stopped".to_owned()),
        "{diagnosis:#}"
    );
    let slow = finding(&diagnosis, "accept-too-slow");
    let what = slow["what"].as_str().unwrap();
    assert!(what.contains("(one in "), "{what}");
    let remedies = slow["remedies"].to_string();
    assert!(!remedies.contains("restart the application"), "{remedies}");
}

/// accept() is called all the time, and fails.
#[test]
fn a_server_out_of_file_descriptors() {
    let script = format!(
        "import resource, socket, time
listener = socket.socket(); listener.bind(('127.0.0.1', {PORT})); listener.listen(8)
resource.setrlimit(resource.RLIMIT_NOFILE, (16, 16))
held = []
while True:
    try: held.append(listener.accept()[0])
    except OSError: time.sleep(0.05)"
    );
    let server = Server::start("descriptors", |_| {
        let mut python = Command::new("python3");
        python.args(["-c", &script]);
        python
    });
    let diagnosis = diagnosed("descriptors", &server.netns, || {
        let every = Duration::from_millis(300);
        clients_come_to(&server.netns, AT, 8, every, Duration::from_secs(6));
    });
    let finding = finding(&diagnosis, "accept-stopped");
    let evidence = finding["evidence"].to_string();
    assert!(
        evidence.contains("out of file descriptors") && evidence.contains("its limit is 16"),
        "{evidence}"
    );
    let remedy = finding["remedies"][0]["command"].as_str().unwrap();
    // The real tool takes it.
    let mut words = remedy.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    // It may not on machines that keep root from raising limits (no CAP_SYS_RESOURCE).
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() || stderr.contains("Operation not permitted"),
        "{remedy}: {output:?}"
    );
}

/// Real clients, more at once than the SYN queue holds: their cookies come back.
#[test]
fn a_syn_queue_too_small_for_real_clients() {
    let room = Room::new(Family::V4, 16, &[(COOKIES, 1)]);
    let diagnosis = diagnosed("syn-queue-too-small", &room.netns, || {
        let play = || {
            let mut wire = Wire::open(room.family)?;
            let clients = half_open(&mut wire, room.address, 60)?;
            for some in clients.chunks(10) {
                some.iter().try_for_each(|client| client.ack(&wire))?;
                wire.settle()?;
                accept_all(&room.listener);
            }
            Ok(())
        };
        room.netns.run(play).unwrap();
        thread::sleep(Duration::from_secs(1));
    });
    assert_found(&diagnosis, &["syn-queue-too-small"]);
    let what = diagnosis["findings"][0]["what"].as_str().unwrap();
    assert!(what.contains("43 of 43 SYN cookies came back"), "{what}");
}

/// somaxconn was raised, and the server not restarted.
#[test]
fn a_somaxconn_that_was_raised_too_late() {
    let room = Room::new(Family::V4, 511, &[("net.core.somaxconn", 128)]);
    let raise = || Ok(fs::write("/proc/sys/net/core/somaxconn", "4096")?);
    room.netns.run(raise).unwrap();
    let diagnosis = diagnosed("raised", &room.netns, || {
        clients_come(&room, 150, Duration::ZERO, Duration::from_millis(1));
        accept_all(&room.listener);
        thread::sleep(Duration::from_secs(1));
        drop(room.connect(1));
        thread::sleep(Duration::from_secs(1));
    });
    let finding = finding(&diagnosis, "backlog-clamped-or-default");
    let what = finding["what"].as_str().unwrap();
    assert!(
        what.contains("or net.core.somaxconn at the time of its listen()"),
        "{what}"
    );
    assert!(what.contains("4096 now"), "{what}");
}

//! The agent: what it serves is exact, and an overflow leaves a recording that begins before
//! it, with the right diagnosis.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::ChildStdout,
    thread,
    time::{Duration, Instant},
};

use live_tests::{Counters, Inhabitant, Launch, Room, Scratch, Tracer, attach};
use queue_trace::lab::Family;
use rustix::process::Signal;
use serde_json::Value;

/// Within it even an emulated machine comes to the next second.
const PATIENCE: Duration = Duration::from_secs(60);

/// The agent, attached in the way that is tested.
fn agent() -> Launch {
    Launch::plain(["agent", "--attach", attach().name(), "--look", "1s"])
}

/// An address of this machine that nobody listens on.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap()
}

/// One request and all of its answer.
fn ask(stream: &mut (impl Read + Write), request: &str) -> String {
    stream
        .write_all(format!("{request}\r\nHost: x\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn get(at: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    ask(&mut stream, &format!("GET {path} HTTP/1.1"))
}

/// The sum of the samples of a metric that have all these labels.
fn sum(metrics: &str, name: &str, labels: &[&str]) -> f64 {
    let samples = metrics.lines().filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (metric, own) = series.split_once('{').unwrap_or((series, ""));
        let fits = metric == name && labels.iter().all(|label| own.contains(label));
        fits.then(|| value.parse::<f64>().unwrap())
    });
    samples.sum()
}

/// Asks until what is told is so.
fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// So many clients try to connect; those that get in stay.
#[must_use]
fn clients(room: &Room, count: usize) -> Vec<TcpStream> {
    let patience = Duration::from_millis(100);
    let connect = || Ok(TcpStream::connect_timeout(&room.address, patience));
    (0..count)
        .filter_map(|_| room.netns.run(connect).unwrap().ok())
        .collect()
}

/// Whoever waits is let in, for two seconds.
fn accept_all(room: &Room) {
    room.listener.set_nonblocking(true).unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        if room.listener.accept().is_err() {
            thread::sleep(Duration::from_millis(10));
        }
    }
}

fn stop(tracer: Tracer) {
    tracer.signal(Signal::TERM);
    tracer.wait().assert_well();
}

#[test]
fn what_is_served_is_what_the_kernel_counted() {
    let room = Room::new(Family::V4, 2, &[("net.ipv4.tcp_syncookies", 0)]);
    // A namespace that only descriptors hold is not looked into.
    let _inhabitant = Inhabitant::of(&room.netns);
    let at = free_address();
    let scratch = Scratch::new("agent-serves");
    let socket = scratch.file("agent.sock");
    let tracer = agent()
        .args(["--listen", &at.to_string(), "--listen"])
        .arg(format!("unix:{}", socket.display()))
        .start();
    let _clients = clients(&room, 6);
    let drops = || Counters::of(&room.netns).get("ListenDrops") as f64;
    assert!(drops() >= 1.0);
    let port = format!("network_local_port=\"{}\"", room.address.port());
    let address = format!("network_local_address=\"{}\"", room.address.ip());
    let labels = [port.as_str(), address.as_str(), "verdict=\"syn_dropped\""];
    eventually("all drops are told", || {
        let metrics = get(at, "/metrics");
        sum(&metrics, "queue_trace_outcomes_total", &labels) == drops()
    });
    let metrics = get(at, "/metrics");
    assert!(metrics.contains("text/plain; version=0.0.4"), "{metrics}");
    let own = &labels[..2];
    // Depths and limits come with a look. One may have begun before all clients had come.
    eventually("it was looked at", || {
        let metrics = get(at, "/metrics");
        let told = |name| sum(&metrics, name, own);
        told("queue_trace_accept_queue_limit") == 2.0
            && told("queue_trace_accept_queue_connections") == 3.0
    });
    let metrics = get(at, "/metrics");
    assert_eq!(sum(&metrics, "queue_trace_listener_full_sockets", own), 1.0);
    assert_eq!(sum(&metrics, "queue_trace_episodes", &[]), 1.0);
    assert_eq!(
        sum(
            &metrics,
            "queue_trace_observable",
            &["verdict=\"syn_dropped\"", "cause=\"accept_queue_full\""]
        ),
        1.0
    );
    // The unix socket and the pages.
    let mut stream = UnixStream::connect(&socket).unwrap();
    let listeners = ask(&mut stream, "GET /listeners HTTP/1.1");
    assert!(listeners.contains("\"type\":\"listener\""), "{listeners}");
    assert!(get(at, "/healthz").starts_with("HTTP/1.1 200"));
    assert!(get(at, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(get(at, "/passwd").starts_with("HTTP/1.1 404"));
    let mut stream = TcpStream::connect(at).unwrap();
    let refused = ask(&mut stream, "POST /metrics HTTP/1.1");
    assert!(refused.starts_with("HTTP/1.1 405"), "{refused}");
    stop(tracer);
    assert!(!socket.exists(), "the socket is left behind");
}

/// What the agent knows of the only listener of a namespace.
fn listener_in(at: SocketAddr, room: &Room) -> Option<Value> {
    let answer = get(at, "/listeners");
    let lines = answer.lines();
    let mut lines = lines.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.find(|line| line["netns"] == room.netns.id())
}

/// When it was looked at.
fn looked_at(at: SocketAddr, room: &Room) -> Option<String> {
    let listener = listener_in(at, room)?;
    Some(listener["time"].as_str().unwrap().to_owned())
}

/// Trouble in one namespace is followed each second, and nobody looks at the others for it.
#[test]
fn only_where_something_refuses_it_looks_each_second() {
    let sysctls = [("net.ipv4.tcp_syncookies", 0)];
    let [troubled, calm] = [(); 2].map(|()| Room::new(Family::V4, 2, &sysctls));
    let _inhabitants = [&troubled, &calm].map(|room| Inhabitant::of(&room.netns));
    let at = free_address();
    let tracer = Launch::plain(["agent", "--attach", attach().name(), "--look", "10m"])
        .args(["--listen", &at.to_string()])
        .start();
    eventually("both are known", || {
        [&troubled, &calm]
            .iter()
            .all(|room| looked_at(at, room).is_some())
    });
    let _clients = clients(&troubled, 6);
    eventually("it is in trouble", || {
        sum(&get(at, "/metrics"), "queue_trace_episodes", &[]) >= 1.0
    });
    let before = looked_at(at, &calm);
    let mut looks = std::collections::BTreeSet::new();
    eventually("it is looked at again and again", || {
        looks.extend(looked_at(at, &troubled));
        looks.len() >= 3
    });
    assert_eq!(looked_at(at, &calm), before);
    // What was not looked at is still told.
    let stands = |room: &Room| listener_in(at, room).unwrap()["accept_queue"]["depth"].clone();
    assert_eq!((stands(&troubled), stands(&calm)), (3.into(), 0.into()));
    stop(tracer);
}

/// Whoever connects and says nothing keeps nobody else from being served for long.
#[test]
fn nobody_keeps_it_busy() {
    let at = free_address();
    let tracer = agent().args(["--listen", &at.to_string()]).start();
    let silent: Vec<_> = (0..20).map(|_| TcpStream::connect(at).unwrap()).collect();
    eventually("there is room again", || {
        let mut stream = TcpStream::connect(at).unwrap();
        let sent = stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n");
        let mut answer = String::new();
        let read = sent.and_then(|()| stream.read_to_string(&mut answer));
        read.is_ok() && answer.starts_with("HTTP/1.1 200")
    });
    drop(silent);
    stop(tracer);
}

/// The next line of a type that is about what is meant: other tests have episodes meanwhile.
fn line_of(
    stdout: &mut BufReader<ChildStdout>,
    kind: &str,
    is_meant: impl Fn(&Value) -> bool,
) -> Value {
    loop {
        let mut line = String::new();
        assert!(stdout.read_line(&mut line).unwrap() > 0, "no line {kind}");
        let line: Value = serde_json::from_str(&line).unwrap();
        if line["type"] == kind && is_meant(&line) {
            return line;
        }
    }
}

#[test]
fn an_overflow_leaves_a_recording_that_begins_before_it() {
    let room = Room::new(Family::V4, 2, &[("net.ipv4.tcp_syncookies", 0)]);
    // By tracepoints only a look tells that the queue has room again.
    let _inhabitant = Inhabitant::of(&room.netns);
    let scratch = Scratch::new("agent-records");
    let folder = scratch.file("incidents");
    let at = free_address();
    let mut tracer = agent()
        .args(["--listen", &at.to_string(), "--after", "1s", "--incidents"])
        .arg(&folder)
        .unread()
        .start();
    let mut stdout = BufReader::new(tracer.take_stdout());
    // All is well: two connections find their place, seconds before the trouble.
    let _early = clients(&room, 2);
    thread::sleep(Duration::from_secs(2));
    let _late = clients(&room, 6);
    let netns = room.netns.id();
    let is_own = |line: &Value| line["netns"] == netns;
    let began = line_of(&mut stdout, "episode_began", is_own);
    assert_eq!(began["listener"]["port"], room.address.port());
    assert_eq!(began["trouble"], "accept_queue_full");
    let file = began["file"].as_str().unwrap().to_owned();
    // It ends when it is calm: whoever waits is let in.
    accept_all(&room);
    let ended = line_of(&mut stdout, "episode_ended", is_own);
    assert_eq!(ended["file"], file.as_str());
    let incident = line_of(&mut stdout, "incident", |line| line["file"] == file);
    assert_eq!(incident["verdict"], "findings", "{incident}");
    let own = room.address.to_string();
    let findings = incident["findings"].as_array().unwrap();
    assert!(
        findings
            .iter()
            .any(|found| is_own(found) && found["listener"] == own),
        "{incident}"
    );
    stop(tracer);

    // What is told a second time, by anybody, is the same.
    let diagnosis = fs::read_to_string(incident["diagnosis"].as_str().unwrap()).unwrap();
    let again = Launch::plain(["diagnose", "--json", &file]).finish();
    assert_eq!(again.status.code(), Some(1), "{}", again.stderr);
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    assert_eq!(
        parse(&again.stdout)["findings"],
        parse(&diagnosis)["findings"]
    );
    // It begins with those that found their place.
    let replay = Launch::plain(["replay", "--all", "--json", &file]).finish();
    assert_eq!(replay.status.code(), Some(0), "{}", replay.stderr);
    let lines: Vec<Value> = replay.stdout.lines().map(parse).collect();
    let first = lines
        .iter()
        .find(|line| is_own(line) && line["type"] == "event");
    assert_eq!(first.unwrap()["verdict"], "queued", "{first:?}");
    let listed = Launch::plain(["incidents"]).arg(&folder).finish();
    assert!(listed.stdout.contains(&own), "{}", listed.stdout);
    assert_private(Path::new(&file));
}

fn assert_private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let mode = fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode & 0o077, 0, "{mode:o}");
}

/// A kill loses a second at most, and the next start says what was cut off.
#[test]
fn a_kill_leaves_what_was_written() {
    let room = Room::new(Family::V4, 2, &[("net.ipv4.tcp_syncookies", 0)]);
    let scratch = Scratch::new("agent-killed");
    let folder = scratch.file("incidents");
    let at = free_address();
    let start = || {
        let tracer = agent().args(["--listen", &at.to_string(), "--incidents"]);
        tracer.arg(&folder).start()
    };
    let tracer = start();
    let _clients = clients(&room, 6);
    let recordings = || {
        let listed = Launch::plain(["incidents", "--paths"])
            .arg(&folder)
            .finish();
        listed.stdout.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    eventually("a recording is being written", || {
        let metrics = get(at, "/metrics");
        recordings().len() == 1 && sum(&metrics, "queue_trace_episodes", &[]) >= 1.0
    });
    thread::sleep(Duration::from_secs(2));
    tracer.signal(Signal::KILL);
    assert!(!tracer.wait().status.success());
    let tracer = start();
    tracer.signal(Signal::TERM);
    let finished = tracer.wait();
    finished.assert_well();
    assert!(
        finished.stderr.contains("was cut off"),
        "{}",
        finished.stderr
    );
    let line: Value = finished
        .stdout
        .lines()
        .next()
        .map(|line| serde_json::from_str(line).unwrap())
        .unwrap();
    assert_eq!(
        (&line["type"], &line["cut"]),
        (&"incident".into(), &true.into())
    );
    assert_eq!(line["verdict"], "findings", "{line}");
}

#[test]
fn settings_are_read_again() {
    let scratch = Scratch::new("agent-reload");
    let config = scratch.file("agent.toml");
    fs::write(&config, "").unwrap();
    let at = free_address();
    let tracer = agent()
        .args(["--listen", &at.to_string(), "--config"])
        .arg(&config)
        .start();
    let labelled = || get(at, "/metrics").contains("process_executable_name=");
    eventually("names of processes are labels", labelled);
    fs::write(&config, "labels = \"none\"\n").unwrap();
    tracer.signal(Signal::HUP);
    eventually("they are not any more", || !labelled());
    stop(tracer);
    fs::write(&config, "label = 1\n").unwrap();
    let failed = agent().arg("--config").arg(&config).finish();
    failed.assert_failed(1, &["agent.toml", "label"]);
}

#[test]
fn once_is_for_the_textfile_collector() {
    let finished = agent().arg("--once").finish();
    finished.assert_well();
    assert!(
        finished.stdout.starts_with("# HELP "),
        "{}",
        finished.stdout
    );
    assert_eq!(sum(&finished.stdout, "queue_trace_build_info", &[]), 1.0);
}

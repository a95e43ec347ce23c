//! Real faults of real servers, several at the same time under one tracer: the rule that fires,
//! whose queue it names, the numbers beside the kernel's own, and the remedy. No other rule fires
//! at that server.

use std::{
    fs::{self, File},
    net::TcpStream,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use live_tests::{Counters, Scratch};
use queue_trace::lab::{
    Ending, Family, Pace, connect_each,
    raw::{Flood, Wire, flood},
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::{
    bench::wait_until,
    diagnose::{diagnosed_in, judges_closing},
    servers::{AT, PORT, Server, freeze, nginx, redis_where},
};

/// Where a server's words go.
fn log(scratch: &Scratch) -> File {
    File::create(scratch.file("stderr")).unwrap()
}

/// What every fault is played with.
const BACKLOG: u32 = 4;
/// So many events a second that every client is named, but those of floods.
const RATE: &str = "400";
/// For how long a client is alone with its handshake.
const MOMENT: Duration = Duration::from_millis(2);
/// For how long clients wait: less than the second after which they would try again.
const PATIENCE: Duration = Duration::from_millis(150);
const EVERY: Duration = Duration::from_millis(300);
const HTTP: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// The diagnosis of what happens at these servers, each in a thread of its own.
fn diagnosed(name: &str, plays: &[(&Server, &(dyn Fn(&Server) + Sync))]) -> Value {
    let namespaces: Vec<_> = plays.iter().map(|(server, _)| &server.netns).collect();
    diagnosed_in(name, &namespaces, RATE, || {
        thread::scope(|scope| {
            for (server, play) in plays {
                scope.spawn(|| play(server));
            }
        });
    })
}

/// Clients that come in, each with a moment for its handshake and then its request, and are gone
/// before they would try again.
fn clients_come(server: &Server, request: Option<&[u8]>, at_once: usize, during: Duration) {
    let come = || {
        let began = Instant::now();
        while began.elapsed() < during {
            let started = Instant::now();
            let clients: Vec<_> = (0..at_once)
                .map(|_| connect_each(AT, 1, Pace::AllAtOnce, MOMENT, request))
                .collect::<anyhow::Result<_>>()?;
            thread::sleep(PATIENCE);
            drop(clients);
            thread::sleep(EVERY.saturating_sub(started.elapsed()));
        }
        Wire::open(Family::V4)?.settle()
    };
    server.netns.run(come).unwrap();
}

/// So many at once, which are gone a moment later.
fn burst(server: &Server, count: usize) {
    clients_come(server, None, count, Duration::from_millis(1));
}

/// The findings at a server. No rule fires but these.
#[track_caller]
fn found<'a>(diagnosis: &'a Value, server: &Server, rules: &[&str]) -> Vec<&'a Value> {
    let findings = diagnosis["findings"].as_array().unwrap().iter();
    let findings: Vec<_> = findings
        .filter(|finding| finding["netns"] == server.netns.id())
        .collect();
    let fired: Vec<_> = findings.iter().map(|one| text(one, "rule")).collect();
    assert_eq!(fired, rules, "{diagnosis:#}");
    findings
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field]
        .as_str()
        .unwrap_or_else(|| panic!("no {field}: {value:#}"))
}

/// What a finding says in that list.
#[track_caller]
fn assert_says(finding: &Value, list: &str, words: &str) {
    let says = finding[list].to_string();
    assert!(says.contains(words), "no {words:?} in {list}: {finding:#}");
}

fn commands(finding: &Value) -> Vec<&str> {
    let remedies = finding["remedies"].as_array().unwrap();
    remedies.iter().map(|one| text(one, "command")).collect()
}

/// The owner is these processes, in the order in which they began. A unit may follow.
#[track_caller]
fn assert_owner(finding: &Value, comm: &str, pids: &[Pid]) {
    const SHOWN: usize = 3;
    let shown: Vec<_> = pids.iter().take(SHOWN).map(pid_text).collect();
    let more = if pids.len() > SHOWN { ",…" } else { "" };
    let expected = format!("{comm}[{}{more}]", shown.join(","));
    let owner = text(finding, "owner");
    assert!(owner.starts_with(&expected), "{owner} is not {expected}");
}

fn pid_text(pid: &Pid) -> String {
    pid.as_raw_nonzero().to_string()
}

/// It has the processes of a server: the first, and its workers.
fn all(server: &Server, workers: &[Pid]) -> Vec<Pid> {
    [&[server.pid()], workers].concat()
}

/// It counts what the kernel counted in the namespace, which is as old as the server.
#[track_caller]
fn assert_counts_all(finding: &Value, server: &Server) {
    let overflows = Counters::of(&server.netns).get("ListenOverflows");
    assert!(overflows > 0);
    assert_eq!(finding["count"], overflows, "{finding:#}");
}

/// What a remedy's command prints in the server's namespace.
fn run_there(server: &Server, command: &str) -> String {
    let run = || {
        let mut shell = Command::new("sh");
        Ok(shell.args(["-c", command]).output()?)
    };
    let output = server.netns.run(run).unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// A worker that takes a quarter of a second for each request, and notes each.
const SLOW_PYTHON: &str = "
import time
def app(environ, start):
    open('served', 'a').write('x')
    time.sleep(0.25)
    start('204 No Content', [])
    return []
";

fn slow_gunicorn() -> Server {
    gunicorn("slow-gunicorn", &[], BACKLOG, SLOW_PYTHON)
}

fn gunicorn(name: &str, sysctls: &[(&str, u32)], backlog: u32, app: &str) -> Server {
    Server::start_where(name, sysctls, |scratch| {
        fs::write(scratch.file("app.py"), app).unwrap();
        let mut gunicorn = Command::new("/usr/bin/gunicorn");
        gunicorn
            .args(["-w", "1", "--log-level", "error", "-b", &AT.to_string()])
            .args(["--backlog", &backlog.to_string(), "app:app"])
            .current_dir(scratch.path());
        gunicorn
    })
}

fn slow_uwsgi() -> Server {
    Server::start("slow-uwsgi", |scratch| {
        fs::write(scratch.file("app.py"), SLOW_PYTHON).unwrap();
        let mut uwsgi = Command::new("uwsgi-core");
        uwsgi
            .args(["--plugin", "python3", "--module", "app:app"])
            .args(["--http-socket", &AT.to_string(), "--die-on-term"])
            .args(["--listen", &BACKLOG.to_string(), "--disable-logging"])
            .stderr(log(scratch))
            .current_dir(scratch.path());
        uwsgi
    })
}

fn slow_php_fpm() -> Server {
    Server::start("slow-php-fpm", |scratch| {
        let folder = scratch.path().display();
        let script = "<?php file_put_contents('served', 'x', FILE_APPEND); usleep(250000);";
        fs::write(scratch.file("slow.php"), script).unwrap();
        let served = scratch.file("served");
        fs::write(&served, "").unwrap();
        chown(&served, Some(NOBODY), Some(NOBODY)).unwrap();
        let pool = format!(
            "[global]\nerror_log = {folder}/log\ndaemonize = no\n[www]\nuser = nobody\ngroup = nogroup\n\
             listen = {AT}\nlisten.backlog = {BACKLOG}\npm = static\npm.max_children = 1\nchdir = {folder}\n",
        );
        let file = scratch.file("pool.conf");
        fs::write(&file, pool).unwrap();
        let mut php = Command::new(located("/usr/sbin", "php-fpm"));
        php.arg("-F").arg("-y").arg(file);
        php
    })
}

/// `nobody`, and its group.
const NOBODY: u32 = 65534;

/// A program whose name has a version behind it.
fn located(folder: &str, program: &str) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with(program)
        })
        .collect();
    files.sort();
    let found = files.pop();
    found.unwrap_or_else(|| panic!("no {folder}/{program}: cargo xtask setup installs it"))
}

/// The request of a script by FastCGI: its begin, its parameters, no input.
fn fast_cgi(script: &Path) -> Vec<u8> {
    const BEGIN: u8 = 1;
    const PARAMS: u8 = 4;
    const STDIN: u8 = 5;
    let record = |kind: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        let head = [1, kind, 0, 1, length[0], length[1], 0, 0];
        [&head, content].concat()
    };
    let pair = |name: &str, value: &str| {
        let lengths = [name, value].map(|text| u8::try_from(text.len()).unwrap());
        [&lengths, name.as_bytes(), value.as_bytes()].concat()
    };
    let params = [
        pair("REQUEST_METHOD", "GET"),
        pair("SCRIPT_FILENAME", script.to_str().unwrap()),
    ];
    [
        record(BEGIN, &[0, 1, 0, 0, 0, 0, 0, 0]),
        record(PARAMS, &params.concat()),
        record(PARAMS, &[]),
        record(STDIN, &[]),
    ]
    .concat()
}

/// One worker, slower than its clients come.
#[test]
fn slow_workers() {
    let (gunicorn, uwsgi, php) = (slow_gunicorn(), slow_uwsgi(), slow_php_fpm());
    let workers = gunicorn.workers(1);
    let children = php.workers(1);
    let request = fast_cgi(&php.file("slow.php"));
    let during = Duration::from_secs(8);
    let slow_http = |server: &Server| clients_come(server, Some(HTTP), 4, during);
    let slow_php = |server: &Server| clients_come(server, Some(&request), 4, during);
    let diagnosis = diagnosed(
        "slow-workers",
        &[
            (&gunicorn, &slow_http),
            (&uwsgi, &slow_http),
            (&php, &slow_php),
        ],
    );
    let php_fpm = located("/usr/sbin", "php-fpm");
    let php_fpm = php_fpm.file_name().unwrap().to_str().unwrap();
    for (server, comm, pids) in [
        (&gunicorn, "gunicorn", all(&gunicorn, &workers)),
        (&uwsgi, "uwsgi-core", vec![uwsgi.pid()]),
        (&php, php_fpm, all(&php, &children)),
    ] {
        let findings = found(&diagnosis, server, &["accept-too-slow"]);
        let finding = findings[0];
        assert_owner(finding, comm, &pids);
        assert_counts_all(finding, server);
        // What the workers noted, but for those before the queue was full and after it.
        let served = fs::read(server.file("served")).unwrap().len() as u64;
        let left = finding["episodes"][0]["left"].as_u64().unwrap();
        let around = 3 * u64::from(BACKLOG);
        assert!(
            (left..=left + around).contains(&served),
            "{served}: {finding:#}"
        );
        assert!(text(finding, "what").contains(&format!(": {left} in ")));
        // Some 13 come in a second, and four are served.
        let times = commands(finding)[0]
            .strip_prefix("accept in at least ")
            .and_then(|rest| rest.split(' ').next());
        let times: u64 = times.unwrap().parse().unwrap();
        assert!((3..=8).contains(&times), "{finding:#}");
        let restarts = |command: &&str| command.contains("restart") || command.contains("backlog");
        assert!(!commands(finding).iter().any(restarts), "{finding:#}");
    }
}

/// A PostgreSQL of its own, whose backlog follows from how many it serves.
fn postgres() -> Server {
    Server::start("postgres", |scratch| {
        let programs = located("/usr/lib/postgresql", "").join("bin");
        let data = scratch.file("data");
        fs::create_dir(&data).unwrap();
        chown(&data, Some(NOBODY), Some(NOBODY)).unwrap();
        let as_nobody = |program: &str| {
            let mut command = Command::new(programs.join(program));
            command.uid(NOBODY).gid(NOBODY).current_dir("/");
            command.arg("-D").arg(&data);
            command
        };
        let mut initdb = as_nobody("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
        let output = initdb.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let mut postgres = as_nobody("postgres");
        postgres.args(["-k", "", "-h", "127.0.0.1", "-p", &PORT.to_string()]);
        postgres.args(["-c", "fsync=off"]).stderr(log(scratch));
        for setting in [
            "max_connections=3",
            "superuser_reserved_connections=0",
            "max_wal_senders=0",
            "autovacuum_max_workers=1",
            "max_worker_processes=0",
        ] {
            postgres.args(["-c", setting]);
        }
        postgres
    })
}

/// A server of one thread, which waits for what its client never says.
const ONE_BY_ONE: &str = "
import java.net.*;
class Server {
    public static void main(String[] arguments) throws Exception {
        var listener = new ServerSocket(8080, 4, InetAddress.getByName(\"127.0.0.1\"));
        while (true) {
            try (var client = listener.accept()) {
                while (client.getInputStream().read() >= 0) {}
            }
        }
    }
}";

fn java() -> Server {
    Server::start("java", |scratch| {
        let file = scratch.file("Server.java");
        fs::write(&file, ONE_BY_ONE).unwrap();
        let mut java = Command::new("java");
        java.args(["-Xmx64m", "-XX:TieredStopAtLevel=1"]).arg(file);
        java
    })
}

/// A request stops its loop of events.
const BLOCKED: &str = "
require('net').createServer(client => client.on('data', () =>
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
)).listen({ port: 8080, host: '127.0.0.1', backlog: 4 })";

fn node(script: &str) -> Server {
    Server::start("node", |_| {
        let mut node = Command::new("node");
        node.args(["-e", script]);
        node
    })
}

/// Servers that take nothing any more: one that was stopped, and two whose only thread is busy with
/// one client.
#[test]
fn servers_that_stopped() {
    let (postgres, java, node) = (postgres(), java(), node(BLOCKED));
    let during = Duration::from_secs(7);
    let frozen = |server: &Server| {
        freeze(server.pid());
        clients_come(server, None, 3, during);
    };
    // With a client that stays until the last look.
    let held = Mutex::new(Vec::new());
    let busy_with = |server: &Server, request: Option<&[u8]>| {
        let client = || connect_each(AT, 1, Pace::OneByOne, PATIENCE, request);
        let client = server.netns.run(client).unwrap();
        assert_eq!(client[0].ending(), Ending::Connected);
        held.lock().unwrap().extend(client);
        clients_come(server, None, 3, during);
    };
    let diagnosis = diagnosed(
        "servers-that-stopped",
        &[
            (&postgres, &frozen),
            (&java, &|server| busy_with(server, None)),
            (&node, &|server| busy_with(server, Some(b"once"))),
        ],
    );
    drop(held);
    for (server, comm) in [(&postgres, "postgres"), (&java, "java"), (&node, "node")] {
        let findings = found(&diagnosis, server, &["accept-stopped"]);
        let finding = findings[0];
        assert_owner(finding, comm, &[server.pid()]);
        assert_counts_all(finding, server);
        assert_says(finding, "evidence", "threads did instead");
        assert_eq!(finding["ongoing"], true);
        let seconds = finding["episodes"][0]["longest_without_accept_s"].as_f64();
        let played = during.as_secs_f64();
        assert!(
            (3.0..played + 2.0).contains(&seconds.unwrap()),
            "{finding:#}"
        );
        let commands = commands(finding);
        assert!(commands.contains(&"restart the application"), "{finding:#}");
        // The first names the process indeed.
        let printed = run_there(server, commands[0]);
        let pid = format!("pid={},", pid_text(&server.pid()));
        assert!(printed.contains(&pid), "{}: {printed}", commands[0]);
    }
    let postgres = found(&diagnosis, &postgres, &["accept-stopped"])[0];
    assert_says(postgres, "evidence", "1 stopped");
}

/// nginx may open few files, and each client takes one. What the remedy says cures it.
#[test]
fn file_descriptors_used_up() {
    const FILES: u64 = 20;
    let limit = format!("worker_rlimit_nofile {FILES};");
    let server = nginx("few-files", &format!("backlog={BACKLOG}"), 1, &limit);
    let worker = server.workers(1)[0];
    let held = || connect_each(AT, 30, Pace::OneByOne, PATIENCE, None);
    let mut waiting = Vec::new();
    let diagnosis = diagnosed_in("few-files", &[&server.netns], RATE, || {
        waiting = server.netns.run(held).unwrap();
        clients_come(&server, None, 3, Duration::from_secs(5));
    });
    let findings = found(&diagnosis, &server, &["accept-stopped"]);
    let finding = findings[0];
    assert_owner(finding, "nginx", &all(&server, &[worker]));
    let pid = pid_text(&worker);
    let open = format!("{FILES} open in nginx[{pid}], its limit is {FILES}");
    assert_says(finding, "evidence", &open);
    let cure = commands(finding)[0];
    assert_eq!(cure, format!("prlimit --pid {pid} --nofile=65536:65536"));
    let what_for = run_there(&server, commands(finding)[1]);
    assert!(what_for.contains("socket:"), "{what_for}");

    let mut prlimit = Command::new("sh");
    let output = prlimit.args(["-c", cure]).output().unwrap();
    // Not every machine lets root raise limits (no CAP_SYS_RESOURCE).
    let stderr = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        wait_until("the worker takes what waits", || {
            server.listening()[0].accept_queue.depth == 0
        });
    } else {
        assert!(stderr.contains("Operation not permitted"), "{output:?}");
    }
    drop(waiting);
}

/// The server is away for a moment, again and again, and many come meanwhile; then it takes all.
fn bursts(server: &Server) {
    for _ in 0..2 {
        freeze(server.pid());
        burst(server, 20);
        kill_process(server.pid(), Signal::CONT).unwrap();
        wait_until("the server takes all", || {
            server.listening()[0].accept_queue.depth == 0
        });
        // All is quiet in between, for longer than a burst lasts.
        thread::sleep(Duration::from_secs(2));
        drop(server.connect());
        thread::sleep(Duration::from_millis(300));
    }
}

/// Bursts against a small backlog; beside them the same against the backlog that the remedy says.
#[test]
fn bursts_against_a_small_backlog() {
    const ECHO: &str = "require('net').createServer(client => client.pipe(client))
        .listen({ port: 8080, host: '127.0.0.1', backlog: 4 })";
    let redis = redis_where("small-redis", &[], Some("4"));
    let node = node(ECHO);
    let cured = redis_where("cured-redis", &[], Some("32"));
    let diagnosis = diagnosed(
        "bursts-at-servers",
        &[(&redis, &bursts), (&node, &bursts), (&cured, &bursts)],
    );
    found(&diagnosis, &cured, &[]);
    for (server, comm, setting) in [
        (&redis, "redis-server", "tcp-backlog"),
        (&node, "node", "the backlog option of server.listen()"),
    ] {
        let findings = found(&diagnosis, server, &["backlog-too-small-for-bursts"]);
        let finding = findings[0];
        assert_owner(finding, comm, &[server.pid()]);
        assert_counts_all(finding, server);
        // Five fit in of twenty, twice.
        assert_eq!(finding["count"], 30);
        let what = text(finding, "what");
        assert!(
            what.contains("The backlog of 4 ") && what.contains("in 2 bursts"),
            "{what}"
        );
        assert!(what.contains("needed a backlog of 19"), "{what}");
        // It was frozen, which no limit of the machine made worse.
        let commands = commands(finding);
        assert_eq!(
            commands,
            ["set the application's backlog to 32, then restart it"]
        );
        assert_says(finding, "remedies", setting);
    }
}

/// The sockets that a process waits for by epoll.
fn watched(pid: Pid) -> Vec<u64> {
    let folder = format!("/proc/{}/fdinfo", pid_text(&pid));
    let mut inodes = Vec::new();
    for file in fs::read_dir(folder).unwrap() {
        let info = fs::read_to_string(file.unwrap().path()).unwrap_or_default();
        for line in info.lines().filter(|line| line.starts_with("tfd:")) {
            let inode = line
                .split(" ino:")
                .nth(1)
                .and_then(|rest| rest.split(' ').next());
            inodes.push(u64::from_str_radix(inode.unwrap(), 16).unwrap());
        }
    }
    inodes
}

/// One of four workers of nginx is stopped, each of which has a socket of its own.
#[test]
fn a_stuck_one_of_four() {
    // A sibling would hold all of a round.
    const ROUND: usize = 16;
    let options = format!("backlog={ROUND} reuseport");
    let server = nginx("stuck", &options, 4, "");
    let workers = server.workers(4);
    let stuck = workers[2];
    let rows = server.listening();
    let watched = watched(stuck);
    let inodes = rows.iter().filter_map(|row| row.listener.inode);
    let inode: Vec<_> = inodes.filter(|inode| watched.contains(inode)).collect();
    let [inode] = inode[..] else {
        panic!("{rows:?}")
    };
    let diagnosis = diagnosed(
        "stuck-nginx",
        &[(&server, &|server| {
            freeze(stuck);
            // Some four fall to it each time.
            clients_come(server, Some(HTTP), ROUND, Duration::from_secs(5));
        })],
    );
    let findings = found(&diagnosis, &server, &["reuseport-worker-stuck"]);
    let finding = findings[0];
    assert_counts_all(finding, &server);
    assert_eq!(finding["inode"], inode, "{finding:#}");
    assert_says(finding, "evidence", "1 stopped");
    // Every worker has every socket of nginx open. The command names the one that is to take from it.
    assert_owner(finding, "nginx", &all(&server, &workers));
    let [all_of_them, the_one, shared] = commands(finding)[..] else {
        panic!("{finding:#}")
    };
    let printed = run_there(&server, all_of_them);
    for pid in all(&server, &workers) {
        assert!(
            printed.contains(&format!("pid={},", pid_text(&pid))),
            "{printed}"
        );
    }
    let printed = run_there(&server, the_one);
    let pids: Vec<_> = printed.lines().collect();
    assert_eq!(pids, [pid_text(&stuck)], "{the_one}");
    assert!(shared.contains("nginx: leave out `reuseport`"));
    let what = text(finding, "what");
    assert!(
        what.contains("3 of its siblings") && what.contains("refused none"),
        "{what}"
    );
}

/// `net.core.somaxconn` was raised, and the servers not restarted.
#[test]
fn somaxconn_raised_without_a_restart() {
    const BEFORE: u32 = 128;
    const NOW: u32 = 4096;
    let sysctls = [("net.core.somaxconn", BEFORE)];
    let redis = redis_where("raised-redis", &sysctls, None);
    let gunicorn = gunicorn("raised-gunicorn", &sysctls, 2048, SLOW_PYTHON);
    let worker = gunicorn.workers(1)[0];
    let overflow = |server: &Server, accepts: Pid| {
        server.netns.set_sysctl("net.core.somaxconn", NOW).unwrap();
        freeze(accepts);
        burst(server, 150);
        kill_process(accepts, Signal::CONT).unwrap();
    };
    let diagnosis = diagnosed(
        "raised-at-servers",
        &[
            (&redis, &|server| overflow(server, server.pid())),
            (&gunicorn, &|server| overflow(server, worker)),
        ],
    );
    for (server, comm, pids, setting) in [
        (&redis, "redis-server", vec![redis.pid()], "tcp-backlog"),
        (
            &gunicorn,
            "gunicorn",
            all(&gunicorn, &[worker]),
            "--backlog",
        ),
    ] {
        let rules = rules_at(&diagnosis, server);
        // Whether it was seen with room again is a matter of its pace.
        let pattern = ["accept-queue-full", "backlog-too-small-for-bursts"];
        let [first, "backlog-clamped-or-default"] = rules[..] else {
            panic!("{diagnosis:#}")
        };
        assert!(pattern.contains(&first), "{diagnosis:#}");
        let finding = found(&diagnosis, server, &rules)[1];
        assert_owner(finding, comm, &pids);
        assert_counts_all(finding, server);
        assert_eq!(finding["count"], 150 - u64::from(BEFORE) - 1);
        let what = text(finding, "what");
        let limit = format!(
            "The backlog of {BEFORE} is what the application asked for, or net.core.somaxconn at the time of its listen()"
        );
        assert!(what.starts_with(&limit), "{what}");
        assert!(
            what.contains("4096 now, and only a new listen() takes it"),
            "{what}"
        );
        let commands = commands(finding);
        let [set] = commands[..] else {
            panic!("{commands:?}")
        };
        assert!(set.ends_with("then restart it"), "{set}");
        assert_says(finding, "remedies", setting);
        assert_says(finding, "remedies", "the restart alone is enough");
    }
}

fn rules_at<'a>(diagnosis: &'a Value, server: &Server) -> Vec<&'a str> {
    let findings = diagnosis["findings"].as_array().unwrap().iter();
    let here = findings.filter(|finding| finding["netns"] == server.netns.id());
    here.map(|finding| text(finding, "rule")).collect()
}

/// haproxy that serves one connection at a time, and answers itself.
fn haproxy(name: &str, most: u32, master: bool) -> Server {
    Server::start(name, |scratch| {
        let settings = format!(
            "global\n    maxconn {most}\n    stats socket {folder}/admin\n\
             defaults\n    mode http\n    timeout client 60s\n    timeout connect 5s\n    timeout server 5s\n\
             listen web\n    bind {AT} backlog 64\n    http-request return status 200\n",
            folder = scratch.path().display()
        );
        let file = scratch.file("haproxy.cfg");
        fs::write(&file, settings).unwrap();
        let mut haproxy = Command::new("haproxy");
        haproxy.arg(if master { "-W" } else { "-db" });
        haproxy.arg("-f").arg(file).stderr(log(scratch));
        haproxy
    })
}

/// Clients that wait in the queue, as many as there are connections in it.
fn wait_in_queue(server: &Server, count: usize) -> Vec<TcpStream> {
    let clients: Vec<_> = (0..count).map(|_| server.connect()).collect();
    wait_until("the clients wait", || {
        let rows = server.listening();
        let deepest = rows.iter().map(|row| row.accept_queue.depth).max();
        deepest == Some(count as u32 - 1)
    });
    clients
}

/// Reloads under load. A new haproxy that takes over the port, and not the socket, closes the old
/// one on those that wait in its queue; one with a master passes the socket on, and nginx keeps it.
#[test]
fn reloads() {
    const WAITING: usize = 6;
    let closes = haproxy("haproxy", 1, false);
    let passes = haproxy("haproxy-master", 1, true);
    let keeps = nginx("reloaded-nginx", "backlog=64", 2, "");
    passes.workers(1);
    keeps.workers(2);
    let mut successor = None;
    let successor_of = AtomicBool::new(false);
    let replace = |server: &Server| {
        // The first is served, the others wait.
        let clients = wait_in_queue(server, WAITING);
        let mut haproxy = Command::new("haproxy");
        haproxy.arg("-db").arg("-f").arg(server.file("haproxy.cfg"));
        haproxy
            .args(["-sf", &pid_text(&server.pid())])
            .stderr(Stdio::null());
        let child = server.netns.run(|| Ok(haproxy.spawn()?)).unwrap();
        let reset = || {
            clients[1..]
                .iter()
                .filter(|client| is_reset(client))
                .count()
        };
        wait_until("the old listener is closed", || reset() == WAITING - 1);
        successor_of.store(true, Ordering::Relaxed);
        drop(clients);
        child
    };
    let diagnosis = diagnosed_in(
        "reloads",
        &[&closes.netns, &passes.netns, &keeps.netns],
        RATE,
        || {
            successor = Some(Successor(replace(&closes)));
            let clients = wait_in_queue(&passes, WAITING);
            let old = passes.workers(1);
            kill_process(passes.pid(), Signal::USR2).unwrap();
            wait_until("the master has a new worker", || {
                !passes.workers_now().iter().all(|pid| old.contains(pid))
            });
            let reset = |client: &&TcpStream| is_reset(client);
            assert_eq!(clients.iter().filter(reset).count(), 0);
            drop(clients);

            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        clients_come(&keeps, Some(HTTP), 5, Duration::from_millis(1));
                    }
                });
                let old = keeps.workers(2);
                kill_process(keeps.pid(), Signal::HUP).unwrap();
                wait_until("nginx has new workers", || {
                    !keeps.workers_now().iter().any(|pid| old.contains(pid))
                });
                stop.store(true, Ordering::Relaxed);
            });
        },
    );
    assert!(successor_of.load(Ordering::Relaxed));
    drop(successor);
    found(&diagnosis, &passes, &[]);
    found(&diagnosis, &keeps, &[]);
    if !judges_closing(&diagnosis) {
        found(&diagnosis, &closes, &[]);
        return;
    }
    let findings = found(&diagnosis, &closes, &["listener-closed-on-clients"]);
    let finding = findings[0];
    assert_owner(finding, "haproxy", &[closes.pid()]);
    assert_eq!(finding["count"], WAITING as u64 - 1);
    let reset = format!(
        "closed with {} connections that nobody had accepted",
        WAITING - 1
    );
    assert!(text(finding, "what").contains(&reset), "{finding:#}");
    assert_says(
        finding,
        "evidence",
        "another socket listens on the port as well",
    );
    assert_says(finding, "remedies", "haproxy");
}

/// What took over, which ends with the test.
struct Successor(std::process::Child);

impl Drop for Successor {
    fn drop(&mut self) {
        // It may have ended, which is as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn is_reset(client: &TcpStream) -> bool {
    client.take_error().unwrap().is_some()
}

/// Floods of servers, with nobody else there and beside real clients; and clients alone.
#[test]
fn floods_of_servers() {
    let node = node(
        "require('net').createServer(client => client.end('hello'))
        .listen({ port: 8080, host: '127.0.0.1', backlog: 64 })",
    );
    let nginx_flooded = nginx("flooded-nginx", "backlog=64", 1, "");
    let calm = nginx("calm-nginx", "backlog=64", 1, "");
    const SYNS: u32 = 1500;
    let play = |server: &Server, networks: u32| {
        let send = || {
            let what = Flood {
                networks,
                per_second: Some(1000),
                ..Flood::of(SYNS)
            };
            let flooded = flood(AT, &what)?;
            assert_eq!(flooded.lost, 0, "lo lost packets");
            Wire::open(Family::V4)?.settle()
        };
        server.netns.run(send).unwrap();
    };
    let during = Duration::from_secs(4);
    let alone = |server: &Server| play(server, 1);
    let real = |server: &Server| clients_come(server, Some(HTTP), 10, during);
    let beside = |server: &Server| {
        thread::scope(|scope| {
            scope.spawn(|| real(server));
            play(server, 400);
        });
    };
    let diagnosis = diagnosed(
        "floods-of-servers",
        &[(&node, &alone), (&nginx_flooded, &beside), (&calm, &real)],
    );
    found(&diagnosis, &calm, &[]);
    for (server, rule, comm, workers) in [
        (&node, "syn-flood-few-networks", "node", vec![]),
        (
            &nginx_flooded,
            "syn-flood-many-networks",
            "nginx",
            nginx_flooded.workers(1),
        ),
    ] {
        let findings = found(&diagnosis, server, &[rule]);
        let finding = findings[0];
        assert_owner(finding, comm, &all(server, &workers));
        let counters = Counters::of(&server.netns);
        let cookies = counters.get("SyncookiesSent");
        // The limit is 64, so that all but some of the flood found it full.
        assert!(cookies >= u64::from(SYNS) - 100, "{cookies}");
        assert_eq!(finding["count"], cookies, "{finding:#}");
        let back = counters.get("SyncookiesRecv");
        let came = format!("{back} of {cookies} SYN cookies came back");
        assert!(text(finding, "what").contains(&came), "{came}: {finding:#}");
        // nft takes what is printed, in this namespace alone.
        let nft = commands(finding)
            .into_iter()
            .find(|one| one.starts_with("nft "));
        run_there(server, nft.unwrap());
    }
    // Its first remedy is a look at a setting, which real clients needed here.
    let beside = found(&diagnosis, &nginx_flooded, &["syn-flood-many-networks"])[0];
    let cookies = run_there(&nginx_flooded, commands(beside)[0]);
    assert_eq!(cookies, "net.ipv4.tcp_syncookies = 1\n");
    assert!(Counters::of(&nginx_flooded.netns).get("SyncookiesRecv") > 0);
}

/// Servers at work, with nothing wrong.
#[test]
fn nothing_wrong() {
    const HELLO: &str = "
def app(environ, start):
    start('204 No Content', [])
    return []
";
    let servers = [
        nginx("well-nginx", "", 2, ""),
        haproxy("well-haproxy", 100, true),
        gunicorn("well-gunicorn", &[], 64, HELLO),
        redis_where("well-redis", &[], None),
    ];
    let during = Duration::from_secs(5);
    let serve = |server: &Server| clients_come(server, Some(HTTP), 5, during);
    let plays: Vec<(&Server, &(dyn Fn(&Server) + Sync))> = servers
        .iter()
        .map(|server| (server, &serve as &(dyn Fn(&Server) + Sync)))
        .collect();
    let diagnosis = diagnosed("well-servers", &plays);
    for server in &servers {
        found(&diagnosis, server, &[]);
    }
    let verdict = match judges_closing(&diagnosis) {
        true => "nothing_found",
        false => "could_not_tell",
    };
    assert_eq!(diagnosis["verdict"], verdict, "{diagnosis:#}");
}

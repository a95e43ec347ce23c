//! Real servers, frozen and resumed: what is told of their queues is what the test imposed,
//! and the surprises of their defaults are named.

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use live_tests::{Attach, Launch, Recording, Row, Scratch, Shown, attach};
use queue_trace::lab::Netns;
use rustix::{
    mount::{MountFlags, UnmountFlags, mount, unmount},
    process::{Pid, Signal, kill_process, kill_process_group},
};

pub const PORT: u16 = 8080;
pub const AT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), PORT);

/// For how long a server is frozen.
const FROZEN: Duration = Duration::from_millis(400);
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a client waits for an answer of a server that may be frozen.
const SHORT: Duration = Duration::from_millis(500);

/// A server in a namespace of its own.
pub struct Server {
    pub netns: Netns,
    child: Child,
    /// Its files.
    scratch: Scratch,
}

impl Server {
    /// Starts it, and waits until it listens.
    pub fn start(name: &str, command: impl FnOnce(&Scratch) -> Command) -> Self {
        Self::start_where(name, &[], command)
    }

    /// The same with settings of its namespace.
    pub fn start_where(
        name: &str,
        sysctls: &[(&str, u32)],
        command: impl FnOnce(&Scratch) -> Command,
    ) -> Self {
        let netns = Netns::new().unwrap();
        for (name, value) in sysctls {
            netns.set_sysctl(name, value).unwrap();
        }
        let scratch = Scratch::new(name);
        let mut command = command(&scratch);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // With its workers it is a group that can be told to end.
        command.process_group(0);
        let child = netns.run(|| Ok(command.spawn()?));
        let mut server = Self {
            netns,
            child: child.unwrap_or_else(|error| panic!("{command:?}: {error:#}")),
            scratch,
        };
        server.wait_until_it_listens();
        server
    }

    /// Its sockets, as told without attaching.
    pub fn listening(&self) -> Vec<Row> {
        let finished = Launch::plain(["listeners", "--json", "--netns"])
            .arg(self.netns.path())
            .finish();
        finished.recording().rows().cloned().collect()
    }

    pub fn connect(&self) -> TcpStream {
        let connect = || Ok(TcpStream::connect(AT)?);
        self.netns.run(connect).unwrap()
    }

    /// One of its files.
    pub fn file(&self, name: &str) -> PathBuf {
        self.scratch.file(name)
    }

    /// Its children.
    pub fn workers_now(&self) -> Vec<Pid> {
        children(self.child.id())
    }

    /// Waits until it has so many children.
    pub fn workers(&self, count: usize) -> Vec<Pid> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let workers = children(self.child.id());
            if workers.len() == count {
                return workers;
            }
            assert!(Instant::now() < deadline, "{workers:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it as an administrator does, and waits until it has ended.
    pub fn end(&mut self) {
        kill_process(self.pid(), Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        // HAProxy lets the signal end it.
        let asked_to = status.signal() == Some(Signal::TERM.as_raw());
        assert!(status.success() || asked_to, "{status}");
    }

    /// Starts it anew in its namespace, once it has ended, and waits until it listens.
    pub fn start_again(&mut self, command: impl FnOnce(&Scratch) -> Command) {
        let mut command = command(&self.scratch);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.process_group(0);
        self.child = self.netns.run(|| Ok(command.spawn()?)).unwrap();
        self.wait_until_it_listens();
    }

    fn wait_until_it_listens(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while self.listening().is_empty() {
            let ended = self.child.try_wait().unwrap();
            assert_eq!(ended, None, "it ended before it listened");
            assert!(Instant::now() < deadline, "it does not listen");
            thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Connects clients while it is frozen, and resumes it. Each says `hello` and hears back.
    fn frozen(&self, clients: usize, hello: &[u8]) -> Imposed {
        freeze(self.pid());
        let before = Instant::now();
        let mut clients: Vec<_> = (0..clients).map(|_| self.connect()).collect();
        let all_in = Instant::now();
        thread::sleep(FROZEN);
        let least = all_in.elapsed();
        kill_process(self.pid(), Signal::CONT).unwrap();
        for client in &mut clients {
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(hello).unwrap();
            // An end is an answer as well.
            let _ = client.read(&mut [0; 64]).unwrap();
        }
        Imposed {
            clients: clients.len() as u64,
            least,
            most: before.elapsed(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself, which is as well.
        let _ = kill_process(self.pid(), Signal::TERM);
        let _ = kill_process_group(self.pid(), Signal::CONT);
        let deadline = Instant::now() + Duration::from_secs(2);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        // What takes no hint, and workers that are left.
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

/// What was imposed on a server.
struct Imposed {
    clients: u64,
    /// How long its clients waited, at least and at most.
    least: Duration,
    most: Duration,
}

impl Imposed {
    #[track_caller]
    fn assert_told(&self, row: &Row) {
        let high = u64::from(row.accept_queue.high_water.unwrap());
        assert_eq!(high, self.clients, "{row:?}");
        if attach() == Attach::Tracepoint {
            assert_eq!(row.accept_latency_us, None);
            return;
        }
        let spread = row.accept_latency_us.unwrap();
        assert_eq!(spread.count, self.clients, "{row:?}");
        let max = Duration::from_micros(spread.max + 1);
        assert!(max >= self.least && max <= self.most, "{row:?}");
        // Half of them waited as long as the freeze, too.
        assert!(Duration::from_micros(spread.p50) >= FROZEN, "{row:?}");
    }
}

fn one(mut rows: Vec<Row>) -> Row {
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

fn comm(row: &Row) -> &str {
    row.processes[0].comm.as_deref().unwrap()
}

/// The server is frozen while clients connect; then all is told.
fn frozen_and_resumed(server: &Server, limit: u32, default_of: Option<&str>, hello: &[u8]) {
    let row = one(server.listening());
    assert_eq!(row.accept_queue.limit, limit, "{row:?}");
    let from = match limit {
        128 => "backlog_or_earlier_somaxconn",
        _ => "backlog",
    };
    assert_eq!(row.accept_queue.limit_from.as_deref(), Some(from));
    assert_eq!(row.default_of.as_deref(), default_of, "{row:?}");
    assert_eq!(row.processes[0].pid, server.child.id());
    let tracer = Launch::showing(Shown::All).on(&server.netns).start();
    let imposed = server.frozen(10, hello);
    let recording = tracer.stop();
    let told = recording.row(row.listener.inode.unwrap());
    imposed.assert_told(told);
    assert_eq!(comm(told), comm(&row));
    assert_eq!(told.drops.as_ref().unwrap().len(), 0, "{told:?}");
}

fn redis(backlog: Option<&str>) -> Server {
    redis_where("redis", &[], backlog)
}

/// Redis in a namespace with these settings.
pub fn redis_where(name: &str, sysctls: &[(&str, u32)], backlog: Option<&str>) -> Server {
    Server::start_where(name, sysctls, |scratch| {
        let mut redis = Command::new("redis-server");
        redis
            .args(["--port", &PORT.to_string(), "--bind", "127.0.0.1"])
            .args(["--save", "", "--daemonize", "no", "--dir"])
            .arg(scratch.path());
        if let Some(backlog) = backlog {
            redis.args(["--tcp-backlog", backlog]);
        }
        redis
    })
}

#[test]
fn redis_with_a_backlog_of_its_own() {
    frozen_and_resumed(&redis(Some("20")), 20, None, b"PING\r\n");
}

#[test]
fn redis_with_its_default() {
    frozen_and_resumed(&redis(None), 511, Some("Redis"), b"PING\r\n");
}

/// A server in a container of a Kubernetes pod, as containerd names them under systemd.
#[test]
fn redis_in_a_container() {
    let container = Container::new();
    let server = Server::start("redis", |scratch| {
        let script = format!(
            "echo 0 >{}/cgroup.procs && \
             exec redis-server --port {PORT} --bind 127.0.0.1 --save '' --dir {}",
            container.folder.display(),
            scratch.path().display()
        );
        let mut shell = Command::new("sh");
        shell.args(["-c", &script]);
        shell
    });
    let row = one(server.listening());
    assert_eq!(comm(&row), "redis-server");
    assert_eq!(row.container.as_ref(), Some(&container.id), "{row:?}");
    assert_eq!(row.pod.as_deref(), Some(POD), "{row:?}");
}

pub const POD: &str = "0f3c1d2e-aaaa-bbbb-cccc-0123456789ab";

/// A cgroup that is named as a container's.
pub struct Container {
    pub id: String,
    pub folder: PathBuf,
    /// Where the hierarchy of cgroups was mounted, if it was not.
    mounted: Option<Scratch>,
}

impl Container {
    pub fn new() -> Self {
        let id = format!("{:064x}", std::process::id());
        let pod = format!("kubepods-burstable-pod{}.slice", POD.replace('-', "_"));
        let mut container = Self::named(&format!("{pod}/cri-containerd-{id}.scope"));
        container.id = id;
        container
    }

    /// A cgroup of any name.
    pub fn named(name: &str) -> Self {
        let (root, mounted) = match mounted_cgroups() {
            Some(root) => (root, None),
            None => {
                let scratch = Scratch::new("cgroups");
                let root = scratch.path().to_owned();
                mount("cgroup2", &root, "cgroup2", MountFlags::empty(), None).unwrap();
                (root, Some(scratch))
            }
        };
        let folder = root.join(name);
        fs::create_dir_all(&folder).unwrap();
        Self {
            id: String::new(),
            folder,
            mounted,
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // Left behind is better than a panic on top of another.
        let _ = fs::remove_dir(&self.folder);
        let _ = self.folder.parent().map(fs::remove_dir);
        if let Some(scratch) = &self.mounted {
            let _ = unmount(scratch.path(), UnmountFlags::empty());
        }
    }
}

/// Where the unified hierarchy of cgroups is mounted.
fn mounted_cgroups() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().find_map(|line| {
        let (place, kind) = line.split_once(" - ")?;
        kind.starts_with("cgroup2 ").then_some(())?;
        place.split(' ').nth(4).map(PathBuf::from)
    })
}

#[test]
fn python_with_its_default() {
    const SERVER: &str = "
import socket
listener = socket.socket()
listener.bind(('127.0.0.1', 8080))
listener.listen()
while True:
    connection, _ = listener.accept()
    connection.sendall(connection.recv(64))
    connection.close()
";
    let server = Server::start("python", |_| {
        let mut python = Command::new("python3");
        python.args(["-c", SERVER]);
        python
    });
    // 128 may as well be an earlier somaxconn, which cut what Gunicorn asked for.
    let default = None;
    frozen_and_resumed(&server, 128, default, b"hello");
}

#[test]
fn node_with_its_default() {
    const SERVER: &str = "require('net').createServer(c => c.pipe(c)).listen(8080, '127.0.0.1')";
    let server = Server::start("node", |_| {
        let mut node = Command::new("node");
        node.args(["-e", SERVER]);
        node
    });
    frozen_and_resumed(&server, 511, Some("Node.js"), b"hello");
}

/// nginx that answers 204, with these options of its `listen` and more settings.
pub fn nginx(name: &str, listen: &str, workers: usize, more: &str) -> Server {
    Server::start(name, |scratch| nginx_in(scratch, listen, workers, more))
}

/// The same with its files there, to be started.
pub fn nginx_in(scratch: &Scratch, listen: &str, workers: usize, more: &str) -> Command {
    let folder = scratch.path().display();
    let settings = format!(
        "daemon off; user root; worker_processes {workers}; pid {folder}/pid; error_log {folder}/log; {more}
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {folder}/a; proxy_temp_path {folder}/b;
            fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e;
            server {{ listen 127.0.0.1:{PORT} {listen}; return 204; }}
        }}"
    );
    let file = scratch.path().join("nginx.conf");
    fs::write(&file, settings).unwrap();
    let mut nginx = Command::new("nginx");
    nginx
        .arg("-e")
        .arg(scratch.path().join("log"))
        .arg("-c")
        .arg(file);
    nginx
}

/// Three workers of nginx, each with a socket of its own; one is stopped. Its queue fills
/// while the others go on serving.
#[test]
fn nginx_with_a_stopped_worker() {
    const WORKERS: usize = 3;
    const BACKLOG: u32 = 4;
    let server = nginx(
        "nginx",
        &format!("backlog={BACKLOG} reuseport"),
        WORKERS,
        "",
    );
    let worker = server.workers(WORKERS)[1];
    let tracer = Launch::showing(Shown::All).on(&server.netns).start();
    freeze(worker);
    let before = Instant::now();
    let mut waiting = Vec::new();
    // Until its queue has room for no more: five wait.
    while waiting.len() <= BACKLOG as usize {
        let client = server.connect();
        if let Err(client) = served(client) {
            waiting.push(client);
        }
    }
    let all_in = Instant::now();
    thread::sleep(FROZEN);
    let rows = server.listening();
    let least = all_in.elapsed();
    kill_process(worker, Signal::CONT).unwrap();
    for client in &mut waiting {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_ne!(client.read(&mut [0; 64]).unwrap(), 0);
    }
    let imposed = Imposed {
        clients: waiting.len() as u64,
        least,
        most: before.elapsed(),
    };
    let recording = tracer.stop();

    assert_eq!(rows.len(), WORKERS);
    for (index, row) in rows.iter().enumerate() {
        let group = row.group.unwrap();
        assert_eq!((group.index, group.size), (index as u32, WORKERS as u32));
        assert_eq!(comm(row), "nginx");
        assert_eq!(row.accept_queue.limit, BACKLOG);
    }
    let full: Vec<_> = rows
        .iter()
        .filter(|row| row.group.unwrap().full_among_idle)
        .collect();
    let [full] = full[..] else { panic!("{rows:?}") };
    assert_eq!(full.accept_queue.depth, BACKLOG + 1);
    if attach() != Attach::Tracepoint {
        assert_waits(&recording, full.listener.inode.unwrap(), &imposed);
    }
}

/// What is told of the socket that was not served.
fn assert_waits(recording: &Recording, inode: u64, imposed: &Imposed) {
    let row = recording.row(inode);
    assert_eq!(row.accept_queue.high_water, Some(5), "{row:?}");
    assert_eq!(row.accept_queue.full_times, Some(1), "{row:?}");
    let full = Duration::from_micros(row.accept_queue.full_us.unwrap() + 1);
    assert!(full >= imposed.least && full <= imposed.most, "{row:?}");
    let max = Duration::from_micros(row.accept_latency_us.unwrap().max + 1);
    assert!(max >= imposed.least && max <= imposed.most, "{row:?}");
}

/// Stops a process, and waits until it has stopped: a signal is taken a moment later.
pub fn freeze(pid: Pid) {
    kill_process(pid, Signal::STOP).unwrap();
    let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
    let deadline = Instant::now() + PATIENCE;
    // The state stands behind the name, which is in brackets.
    while !fs::read_to_string(&path).unwrap().contains(") T ") {
        assert!(Instant::now() < deadline, "{pid:?} does not stop");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a client is served at once; else it is given back.
fn served(mut client: TcpStream) -> Result<(), TcpStream> {
    client.set_read_timeout(Some(SHORT)).unwrap();
    client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    match client.read(&mut [0; 64]) {
        Ok(1..) => Ok(()),
        _ => Err(client),
    }
}

fn children(pid: u32) -> Vec<Pid> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = fs::read_to_string(path).unwrap();
    let pids = text.split_whitespace().map(|pid| pid.parse().unwrap());
    pids.filter_map(Pid::from_raw).collect()
}

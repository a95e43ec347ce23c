//! The servers, each with what is wrong with it in its configuration or its program.

use std::{
    fs::{self, File},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::Command,
};

use live_tests::Scratch;

use super::BACKLOG;
use crate::servers::{AT, PORT, Server};

/// Where a server's words go.
fn log(scratch: &Scratch) -> File {
    File::create(scratch.file("stderr")).unwrap()
}

/// A worker that takes a quarter of a second for each request, and notes each.
pub const SLOW_PYTHON: &str = "
import time
def app(environ, start):
    open('served', 'a').write('x')
    time.sleep(0.25)
    start('204 No Content', [])
    return []
";

pub fn slow_gunicorn() -> Server {
    gunicorn("slow-gunicorn", &[], BACKLOG, SLOW_PYTHON)
}

pub fn gunicorn(name: &str, sysctls: &[(&str, u32)], backlog: u32, app: &str) -> Server {
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

pub fn slow_uwsgi() -> Server {
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

pub fn slow_php_fpm() -> Server {
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
pub const NOBODY: u32 = 65534;

/// A program whose name has a version behind it.
pub fn located(folder: &str, program: &str) -> PathBuf {
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
pub fn fast_cgi(script: &Path) -> Vec<u8> {
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

/// A PostgreSQL of its own, whose backlog follows from how many it serves.
pub fn postgres() -> Server {
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

pub fn java() -> Server {
    Server::start("java", |scratch| {
        let file = scratch.file("Server.java");
        fs::write(&file, ONE_BY_ONE).unwrap();
        let mut java = Command::new("java");
        java.args(["-Xmx64m", "-XX:TieredStopAtLevel=1"]).arg(file);
        java
    })
}

/// A request stops its loop of events.
pub const BLOCKED: &str = "
require('net').createServer(client => client.on('data', () =>
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0)
)).listen({ port: 8080, host: '127.0.0.1', backlog: 4 })";

pub fn node(script: &str) -> Server {
    Server::start("node", |_| {
        let mut node = Command::new("node");
        node.args(["-e", script]);
        node
    })
}

/// haproxy that serves one connection at a time, and answers itself.
pub fn haproxy(name: &str, most: u32, master: bool) -> Server {
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

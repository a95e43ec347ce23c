//! Every row of the table of default backlogs that a package of Debian has a program for: the real
//! program, started as it is, has that limit, and is told by that name.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Stdio},
};

use live_tests::Scratch;
use queue_trace::model::runtime::DEFAULTS;

use crate::servers::{AT, PORT, Server};

/// So large that no default is cut, and none is it.
const SOMAXCONN: u32 = 60_000;

/// A backlog that is nobody's default.
const CHOSEN: u32 = 77;

/// Rows that are not checked here, and why.
const ELSEWHERE: [(&str, &str); 2] = [
    (
        "OpenSSH",
        "its package would open a machine to the network; and it has no setting",
    ),
    (
        "Rust's standard library",
        "listeners, by the tests' own program; and it has no setting",
    ),
];

/// A row of the table, and how its program is started: with its default, or where the row's remedy
/// says that a backlog is set.
struct Row {
    name: &'static str,
    /// What the remedy calls the setting, which is in the command or the configuration.
    setting: &'static str,
    start: fn(&Scratch, Option<u32>) -> Command,
}

const fn row(
    name: &'static str,
    setting: &'static str,
    start: fn(&Scratch, Option<u32>) -> Command,
) -> Row {
    Row {
        name,
        setting,
        start,
    }
}

const CHECKED: [Row; 20] = [
    row("Java", "ServerSocket", |scratch, backlog| {
        let arguments = backlog.map_or("8080".to_owned(), |backlog| {
            format!("8080, {backlog}, java.net.InetAddress.getLoopbackAddress()")
        });
        let text = format!(
            "class Server {{ public static void main(String[] a) throws Exception {{ \
             try (var s = new java.net.ServerSocket({arguments})) {{ Thread.sleep(600000); }} }} }}"
        );
        let file = scratch.file("Server.java");
        fs::write(&file, text).unwrap();
        let mut java = plain("java", &["-Xmx64m", "-XX:TieredStopAtLevel=1"]);
        java.arg(file);
        java
    }),
    row("Tomcat", "acceptCount", |scratch, backlog| {
        const HOME: &str = "/usr/share/tomcat10";
        let chosen = set(backlog, |backlog| format!("acceptCount=\"{backlog}\""));
        let text = format!(
            "<Server port=\"-1\"><Service name=\"Catalina\">\
             <Connector address=\"127.0.0.1\" port=\"{PORT}\" {chosen}/>\
             <Engine name=\"Catalina\" defaultHost=\"localhost\"/></Service></Server>"
        );
        for folder in ["conf", "logs", "temp"] {
            fs::create_dir_all(scratch.file(folder)).unwrap();
        }
        fs::write(scratch.file("conf/server.xml"), text).unwrap();
        let base = scratch.path().display();
        let mut java = plain("java", &["-Xmx64m", "-XX:TieredStopAtLevel=1"]);
        java.args([
            "-cp",
            &format!("{HOME}/bin/bootstrap.jar:{HOME}/bin/tomcat-juli.jar"),
        ])
        .arg(format!("-Dcatalina.home={HOME}"))
        .arg(format!("-Dcatalina.base={base}"))
        .arg(format!("-Djava.io.tmpdir={base}/temp"))
        .args(["org.apache.catalina.startup.Bootstrap", "start"])
        .stderr(Stdio::null());
        java
    }),
    row("Node.js", "backlog", |_, backlog| {
        let chosen = set(backlog, |backlog| format!(", backlog: {backlog}"));
        let script = format!(
            "require('net').createServer().listen({{ port: {PORT}, host: '127.0.0.1'{chosen} }})"
        );
        plain("node", &["-e", &script])
    }),
    row("nginx", "backlog=", |scratch, backlog| {
        let chosen = set(backlog, |backlog| format!("backlog={backlog}"));
        let folder = scratch.path().display();
        let text = format!(
            "daemon off; user root; worker_processes 1; pid {folder}/pid; error_log {folder}/log; events {{}} \
             http {{ access_log off; client_body_temp_path {folder}/a; proxy_temp_path {folder}/b; \
             fastcgi_temp_path {folder}/c; uwsgi_temp_path {folder}/d; scgi_temp_path {folder}/e; \
             server {{ listen {AT} {chosen}; }} }}"
        );
        let log = format!("{folder}/log");
        configured("nginx", &["-e", &log, "-c"], scratch, &text)
    }),
    row("Apache httpd", "ListenBacklog", |scratch, backlog| {
        const MODULES: &str = "/usr/lib/apache2/modules";
        let chosen = set(backlog, |backlog| format!("ListenBacklog {backlog}\n"));
        let text = format!(
            "Listen {AT}\n{chosen}ServerName test\nDefaultRuntimeDir {folder}\nPidFile {folder}/pid\n\
             ErrorLog {folder}/log\nLoadModule mpm_event_module {MODULES}/mod_mpm_event.so\n\
             LoadModule authz_core_module {MODULES}/mod_authz_core.so\n",
            folder = scratch.path().display()
        );
        configured("apache2", &["-X", "-f"], scratch, &text)
    }),
    row("PHP-FPM", "listen.backlog", |scratch, backlog| {
        let chosen = set(backlog, |backlog| format!("listen.backlog = {backlog}\n"));
        let pool = format!(
            "[global]\nerror_log = {log}\ndaemonize = no\n[www]\nuser = www-data\ngroup = www-data\n\
             listen = {AT}\n{chosen}pm = static\npm.max_children = 1\n",
            log = scratch.file("log").display()
        );
        configured("php-fpm", &["-F", "-y"], scratch, &pool)
    }),
    row("Redis", "tcp-backlog", |scratch, backlog| {
        let mut redis = plain("redis-server", &["--port", &PORT.to_string(), "--bind"]);
        redis
            .args(["127.0.0.1", "--save", "", "--dir"])
            .arg(scratch.path());
        redis.args(option("--tcp-backlog", backlog));
        redis
    }),
    row(
        "Python's socketserver",
        "request_queue_size",
        |_, backlog| {
            let chosen = set(backlog, |backlog| format!("request_queue_size = {backlog}"));
            python(&format!(
                "import socketserver as s\nclass Server(s.TCPServer):\n    {chosen}\n    pass\n\
             Server(('127.0.0.1', {PORT}), s.BaseRequestHandler).serve_forever()"
            ))
        },
    ),
    row("Python's asyncio", "backlog", |_, backlog| {
        let chosen = set(backlog, |backlog| format!(", backlog={backlog}"));
        python(&format!(
            "import asyncio\nasync def main():\n    loop = asyncio.get_running_loop()\n    \
             server = await loop.create_server(asyncio.Protocol, '127.0.0.1', {PORT}{chosen})\n    \
             await server.serve_forever()\nasyncio.run(main())"
        ))
    }),
    row("Python's socket.listen()", "listen()", |_, backlog| {
        let chosen = set(backlog, |backlog| backlog.to_string());
        python(&format!(
            "import socket, time; s = socket.socket(); s.bind(('127.0.0.1', {PORT})); s.listen({chosen}); time.sleep(600)"
        ))
    }),
    row("Gunicorn or Uvicorn", "--backlog", |scratch, backlog| {
        let app = "def app(environ, start):\n    return []\n";
        fs::write(scratch.file("app.py"), app).unwrap();
        let folder = scratch.path().display().to_string();
        let mut gunicorn = plain("gunicorn", &["--chdir", &folder, "-b", &AT.to_string()]);
        gunicorn.args(option("--backlog", backlog)).arg("app:app");
        gunicorn.stderr(Stdio::null());
        gunicorn
    }),
    row("Gunicorn or Uvicorn", "--backlog", |scratch, backlog| {
        let app = "async def app(scope, receive, send):\n    pass\n";
        fs::write(scratch.file("app.py"), app).unwrap();
        let mut uvicorn = plain("uvicorn", &["--port", &PORT.to_string()]);
        uvicorn.args(option("--backlog", backlog)).arg("app:app");
        uvicorn.current_dir(scratch.path()).stderr(Stdio::null());
        uvicorn
    }),
    row("uWSGI", "--listen", |_, backlog| {
        let mut uwsgi = plain("uwsgi-core", &["--socket", &AT.to_string()]);
        uwsgi
            .args(option("--listen", backlog))
            .stderr(Stdio::null());
        uwsgi
    }),
    row("Puma", "?backlog=", |scratch, backlog| {
        let file = scratch.file("config.ru");
        fs::write(&file, "run ->(_) { [200, {}, []] }\n").unwrap();
        let chosen = set(backlog, |backlog| format!("?backlog={backlog}"));
        let address = format!("tcp://{AT}{chosen}");
        plain("puma", &["-b", &address, &file.display().to_string()])
    }),
    row("Erlang's gen_tcp", "backlog", |_, backlog| {
        erlang(&set(backlog, |backlog| format!(", {{backlog, {backlog}}}")))
    }),
    row("Erlang's Ranch", "backlog", |_, backlog| {
        // Ranch itself is a library; this is what it passes on.
        erlang(&format!(", {{backlog, {}}}", backlog.unwrap_or(1024)))
    }),
    row("memcached", "-b", |_, backlog| {
        let port = PORT.to_string();
        let mut memcached = plain(
            "memcached",
            &["-u", "nobody", "-l", "127.0.0.1", "-p", &port],
        );
        memcached.args(option("-b", backlog));
        memcached
    }),
    row("lighttpd", "server.listen-backlog", |scratch, backlog| {
        let chosen = set(backlog, |backlog| {
            format!("server.listen-backlog = {backlog}\n")
        });
        let text = format!(
            "server.document-root = \"{}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {PORT}\n{chosen}",
            scratch.path().display()
        );
        configured("lighttpd", &["-D", "-f"], scratch, &text)
    }),
    row("Go's net.Listen()", "net.core.somaxconn", |scratch, _| {
        // A small program of Go; its setting is the namespace's.
        let file = scratch.file("hooks.json");
        fs::write(&file, "[]").unwrap();
        let mut webhook = plain("webhook", &["-nopanic", "-ip", "127.0.0.1", "-port"]);
        webhook.args([&PORT.to_string(), "-hooks"]).arg(file);
        webhook.stderr(Stdio::null());
        webhook
    }),
    row("Tokio", "TcpSocket", |scratch, _| {
        // A program of Rust that listens as Tokio does, and has no setting for it.
        let mut sccache = plain("sccache", &[]);
        sccache
            .env("SCCACHE_START_SERVER", "1")
            .env("SCCACHE_NO_DAEMON", "1")
            .env("SCCACHE_SERVER_PORT", PORT.to_string())
            .env("SCCACHE_DIR", scratch.path());
        sccache
    }),
];

/// What of a configuration sets a backlog, if one is to be set.
fn set(backlog: Option<u32>, as_text: impl FnOnce(u32) -> String) -> String {
    backlog.map(as_text).unwrap_or_default()
}

fn option(name: &str, backlog: Option<u32>) -> Vec<String> {
    let both = |backlog: u32| vec![name.to_owned(), backlog.to_string()];
    backlog.map(both).unwrap_or_default()
}

fn erlang(chosen: &str) -> Command {
    let listen = format!(
        "{{ok, _}} = gen_tcp:listen({PORT}, [{{ip, {{127,0,0,1}}}}{chosen}]), timer:sleep(infinity)."
    );
    plain("erl", &["-noshell", "-eval", &listen])
}

fn plain(program: &str, args: &[&str]) -> Command {
    let mut command = Command::new(located(program));
    command.args(args);
    command
}

fn python(code: &str) -> Command {
    plain("python3", &["-c", code])
}

/// With its configuration in a file, which is the last argument.
fn configured(program: &str, args: &[&str], scratch: &Scratch, text: &str) -> Command {
    let file = scratch.file("configuration");
    fs::write(&file, text).unwrap();
    let mut command = plain(program, args);
    command.arg(file);
    command
}

/// The program's file: Debian puts versions behind some names.
fn located(program: &str) -> PathBuf {
    let in_folder = |folder: &str| {
        let files = fs::read_dir(folder)
            .unwrap()
            .map(|file| file.unwrap().path());
        let mut named: Vec<_> = files
            .filter(|file| {
                let name = file.file_name().unwrap_or_default().to_string_lossy();
                let version = name.strip_prefix(program);
                version.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.'))
            })
            .collect();
        named.sort();
        named.into_iter().next()
    };
    let found = ["/usr/bin", "/usr/sbin"].into_iter().find_map(in_folder);
    found.unwrap_or_else(|| panic!("{program} is not installed: cargo xtask setup does it"))
}

#[test]
fn real_programs_have_the_defaults_of_the_table() {
    for Row { name, start, .. } in CHECKED {
        let row = DEFAULTS.iter().find(|row| row.name == name).unwrap();
        let somaxconn = [("net.core.somaxconn", SOMAXCONN)];
        let server = Server::start_where("defaults", &somaxconn, |scratch| start(scratch, None));
        let rows = server.listening();
        assert_eq!(rows.len(), 1, "{name}: {rows:?}");
        let limit = row.backlog.unwrap_or(SOMAXCONN);
        assert_eq!(rows[0].accept_queue.limit, limit, "{name}");
        // A limit of 128 may as well be an earlier somaxconn, and is nobody's.
        let told = (limit != 128).then_some(name);
        assert_eq!(rows[0].default_of.as_deref(), told, "{:?}", rows[0]);
    }
}

/// Where a row says that its backlog is set, the real program takes it from.
#[test]
fn real_programs_take_what_a_remedy_sets() {
    for Row {
        name,
        setting,
        start,
    } in CHECKED
    {
        let row = DEFAULTS.iter().find(|row| row.name == name).unwrap();
        assert!(row.remedy.contains(setting), "{name}: {}", row.remedy);
        // Tokio's is a call in the program.
        if name == "Tokio" {
            continue;
        }
        let by_namespace = setting == "net.core.somaxconn";
        let somaxconn = if by_namespace { CHOSEN } else { SOMAXCONN };
        let sysctls = [("net.core.somaxconn", somaxconn)];
        let server = Server::start_where("chosen", &sysctls, |scratch| {
            let command = start(scratch, Some(CHOSEN));
            assert!(by_namespace || is_in(setting, scratch, &command), "{name}");
            command
        });
        let rows = server.listening();
        assert_eq!(rows.len(), 1, "{name}: {rows:?}");
        assert_eq!(rows[0].accept_queue.limit, CHOSEN, "{name}");
        let told = by_namespace.then_some(name);
        assert_eq!(rows[0].default_of.as_deref(), told, "{:?}", rows[0]);
    }
}

/// Whether a setting is in a program's arguments, or in its configuration.
fn is_in(setting: &str, scratch: &Scratch, command: &Command) -> bool {
    let setting = setting.trim_end_matches("()");
    let mut arguments = command.get_args().map(|one| one.to_string_lossy());
    let files = ["configuration", "Server.java", "conf/server.xml"];
    let files = files.map(|name| fs::read_to_string(scratch.file(name)).unwrap_or_default());
    arguments.any(|one| one.contains(setting)) || files.iter().any(|text| text.contains(setting))
}

#[test]
fn every_row_of_the_table_is_checked_or_said_not_to_be() {
    let mut said: Vec<_> = CHECKED.iter().map(|row| row.name).collect();
    said.extend(ELSEWHERE.iter().map(|(name, _)| *name));
    said.sort_unstable();
    said.dedup();
    let mut rows: Vec<_> = DEFAULTS.iter().map(|row| row.name).collect();
    rows.sort_unstable();
    assert_eq!(said, rows);
}

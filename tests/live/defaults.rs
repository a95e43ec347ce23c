//! Every row of the table of default backlogs that a package of Debian has a program for: the real
//! program, started as it is, has that limit, and is told by that name.

use std::{fs, path::PathBuf, process::Command};

use live_tests::Scratch;
use queue_trace::model::runtime::DEFAULTS;

use crate::servers::{AT, PORT, Server};

/// So large that no default is cut, and none is it.
const SOMAXCONN: u32 = 60_000;

/// Rows that are not checked here, and why.
const ELSEWHERE: [(&str, &str); 9] = [
    ("Java", "Debian's JRE has no compiler, and brings 200 MB"),
    ("Tomcat", "it takes a JRE"),
    ("Node.js", "servers::node_with_its_default"),
    ("nginx", "servers, with its own configuration"),
    ("Redis", "servers, with its own configuration"),
    ("OpenSSH", "its package would open a machine to the network"),
    ("Go's net.Listen()", "language::tests tell Go's programs"),
    (
        "Rust's standard library",
        "listeners, by the tests' own program",
    ),
    ("Tokio", "no package is a program of it alone"),
];

/// A row, and how its program is started.
type Row = (&'static str, fn(&Scratch) -> Command);

const CHECKED: [Row; 12] = [
    ("PHP-FPM", |scratch| {
        let pool = format!(
            "[global]\nerror_log = {log}\ndaemonize = no\n[www]\nuser = www-data\ngroup = www-data\n\
             listen = {AT}\npm = static\npm.max_children = 1\n",
            log = scratch.file("log").display()
        );
        configured("php-fpm", &["-F", "-y"], scratch, &pool)
    }),
    ("uWSGI", |_| {
        plain("uwsgi-core", &["--socket", &AT.to_string()])
    }),
    ("memcached", |_| {
        plain(
            "memcached",
            &["-u", "nobody", "-l", "127.0.0.1", "-p", &PORT.to_string()],
        )
    }),
    ("lighttpd", |scratch| {
        let text = format!(
            "server.document-root = \"{}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {PORT}\n",
            scratch.path().display()
        );
        configured("lighttpd", &["-D", "-f"], scratch, &text)
    }),
    ("Apache httpd", |scratch| {
        const MODULES: &str = "/usr/lib/apache2/modules";
        let text = format!(
            "Listen {AT}\nServerName test\nDefaultRuntimeDir {folder}\nPidFile {folder}/pid\n\
             ErrorLog {folder}/log\nLoadModule mpm_event_module {MODULES}/mod_mpm_event.so\n\
             LoadModule authz_core_module {MODULES}/mod_authz_core.so\n",
            folder = scratch.path().display()
        );
        configured("apache2", &["-X", "-f"], scratch, &text)
    }),
    ("Gunicorn or Uvicorn", |scratch| {
        fs::write(
            scratch.file("app.py"),
            "def app(environ, start):\n    return []\n",
        )
        .unwrap();
        let folder = scratch.path().display().to_string();
        plain(
            "gunicorn",
            &["--chdir", &folder, "-b", &AT.to_string(), "app:app"],
        )
    }),
    ("Puma", |scratch| {
        let file = scratch.file("config.ru");
        fs::write(&file, "run ->(_) { [200, {}, []] }\n").unwrap();
        let address = format!("tcp://{AT}");
        plain("puma", &["-b", &address, &file.display().to_string()])
    }),
    ("Erlang's gen_tcp", |_| {
        let listen = format!(
            "{{ok, _}} = gen_tcp:listen({PORT}, [{{ip, {{127,0,0,1}}}}]), timer:sleep(infinity)."
        );
        plain("erl", &["-noshell", "-eval", &listen])
    }),
    ("Erlang's Ranch", |_| {
        // Ranch itself is a library; this is what it passes on.
        let listen = format!(
            "{{ok, _}} = gen_tcp:listen({PORT}, [{{ip, {{127,0,0,1}}}}, {{backlog, 1024}}]), \
             timer:sleep(infinity)."
        );
        plain("erl", &["-noshell", "-eval", &listen])
    }),
    ("Python's socketserver", |_| {
        python(
            "import socketserver as s; s.TCPServer(('127.0.0.1', 8080), s.BaseRequestHandler).serve_forever()",
        )
    }),
    ("Python's asyncio", |_| {
        python(
            "import asyncio\nasync def main():\n    server = await asyncio.start_server(print, '127.0.0.1', 8080)\n    await server.serve_forever()\nasyncio.run(main())",
        )
    }),
    ("Python's socket.listen()", |_| {
        python(
            "import socket, time; s = socket.create_server(('127.0.0.1', 8080)); time.sleep(600)",
        )
    }),
];

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
    for (name, command) in CHECKED {
        let row = DEFAULTS.iter().find(|row| row.name == name).unwrap();
        let server = Server::start_where("defaults", &[("net.core.somaxconn", SOMAXCONN)], command);
        let rows = server.listening();
        assert_eq!(rows.len(), 1, "{name}: {rows:?}");
        let limit = row.backlog.unwrap_or(SOMAXCONN);
        assert_eq!(rows[0].accept_queue.limit, limit, "{name}");
        // A limit of 128 may as well be an earlier somaxconn, and is nobody's.
        let told = (limit != 128).then_some(name);
        assert_eq!(rows[0].default_of.as_deref(), told, "{:?}", rows[0]);
    }
}

#[test]
fn every_row_of_the_table_is_checked_or_said_not_to_be() {
    let mut said: Vec<_> = CHECKED.iter().map(|(name, _)| *name).collect();
    said.extend(ELSEWHERE.iter().map(|(name, _)| *name));
    said.sort_unstable();
    let mut rows: Vec<_> = DEFAULTS.iter().map(|row| row.name).collect();
    rows.sort_unstable();
    assert_eq!(said, rows);
}

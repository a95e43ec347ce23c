//! Runtimes and servers that listen with a backlog nobody chose. The limit alone does
//! not prove it, so it is named only if the owner is that program as well.

use super::snapshot::Snapshot;

/// Compiled by Go.
pub const GO: &str = "Go";
/// Compiled by Rust.
pub const RUST: &str = "Rust";

/// A default backlog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Default {
    /// The runtime or server, as a person knows it.
    pub name: &'static str,
    /// How its programs begin: the name of the process or of the program's file, or the
    /// language that it was compiled from.
    programs: &'static [&'static str],
    /// The backlog that it asks for if nobody says otherwise; `None`: what
    /// `net.core.somaxconn` allows.
    pub backlog: Option<u32>,
    /// Where to change it.
    pub remedy: &'static str,
}

/// The kernel caps every one of them at `net.core.somaxconn`.
pub static DEFAULTS: [Default; 21] = [
    Default {
        name: "Java",
        programs: &["java"],
        backlog: Some(50),
        remedy: "the backlog argument of ServerSocket or bind()",
    },
    Default {
        name: "Tomcat",
        programs: &["java"],
        backlog: Some(100),
        remedy: "acceptCount of the Connector",
    },
    Default {
        name: "Node.js",
        programs: &["node", "nodejs"],
        backlog: Some(511),
        remedy: "the backlog option of server.listen()",
    },
    Default {
        name: "nginx",
        programs: &["nginx", "openresty"],
        backlog: Some(511),
        remedy: "backlog= of the listen directive",
    },
    Default {
        name: "Apache httpd",
        programs: &["apache2", "httpd"],
        backlog: Some(511),
        remedy: "ListenBacklog",
    },
    Default {
        name: "PHP-FPM",
        programs: &["php-fpm"],
        // It asks for -1, which is as much as can be.
        backlog: None,
        remedy: "listen.backlog of the pool",
    },
    Default {
        name: "Redis",
        programs: &["redis-server", "valkey-server"],
        backlog: Some(511),
        remedy: "tcp-backlog",
    },
    Default {
        name: "Python's socketserver",
        programs: &["python"],
        backlog: Some(5),
        remedy: "request_queue_size of the server class",
    },
    Default {
        name: "Python's asyncio",
        programs: &["python"],
        backlog: Some(100),
        remedy: "the backlog argument of create_server()",
    },
    Default {
        name: "Python's socket.listen()",
        programs: &["python"],
        backlog: Some(128),
        remedy: "the argument of listen()",
    },
    Default {
        name: "Gunicorn or Uvicorn",
        programs: &["python", "gunicorn", "uvicorn"],
        backlog: Some(2048),
        remedy: "--backlog",
    },
    Default {
        name: "uWSGI",
        programs: &["uwsgi"],
        backlog: Some(100),
        remedy: "--listen",
    },
    Default {
        name: "Puma",
        programs: &["ruby", "puma"],
        backlog: Some(1024),
        remedy: "?backlog= of the bind address",
    },
    Default {
        name: "Erlang's gen_tcp",
        programs: &["beam", "erl"],
        backlog: Some(5),
        remedy: "the backlog option of listen",
    },
    Default {
        name: "Erlang's Ranch",
        programs: &["beam", "erl"],
        backlog: Some(1024),
        remedy: "the backlog option of the socket",
    },
    Default {
        name: "memcached",
        programs: &["memcached"],
        backlog: Some(1024),
        remedy: "-b",
    },
    Default {
        name: "OpenSSH",
        programs: &["sshd"],
        backlog: Some(128),
        remedy: "nothing: sshd has no setting for it",
    },
    Default {
        name: "lighttpd",
        programs: &["lighttpd"],
        backlog: Some(1024),
        remedy: "server.listen-backlog",
    },
    Default {
        name: "Go's net.Listen()",
        programs: &[GO],
        backlog: None,
        remedy: "net.core.somaxconn, as of the program's start",
    },
    Default {
        name: "Rust's standard library",
        programs: &[RUST],
        backlog: Some(128),
        remedy: "a listener made by socket2, whose listen() takes a backlog",
    },
    Default {
        name: "Tokio",
        programs: &[RUST],
        backlog: Some(1024),
        remedy: "TcpSocket, whose listen() takes a backlog",
    },
];

/// What `net.core.somaxconn` is if nobody sets it: before Linux 5.4, and since.
const SOMAXCONN: [u32; 2] = [128, 4096];

/// Whether a limit may be a `net.core.somaxconn` that nobody set.
#[must_use]
pub fn is_default_somaxconn(limit: u32) -> bool {
    SOMAXCONN.contains(&limit)
}

/// The default that explains a limit, if one of the owner's names is that of the runtime. None where
/// the limit may as well be `net.core.somaxconn`, now or when it was set: a runtime that asks
/// for more has that limit too.
#[must_use]
pub fn of<'a>(
    limit: u32,
    somaxconn: Option<u32>,
    names: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<&'static Default> {
    let is_somaxconn = somaxconn == Some(limit) || is_default_somaxconn(limit);
    DEFAULTS.iter().find(|default| {
        let fits = match default.backlog {
            Some(backlog) => backlog == limit && !is_somaxconn,
            None => somaxconn == Some(limit),
        };
        fits && default.runs_as(names.clone())
    })
}

/// The default that a backlog is which listen() was given.
#[must_use]
pub fn asked_for<'a>(
    backlog: i32,
    names: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<&'static Default> {
    let asked = u32::try_from(backlog).ok();
    DEFAULTS.iter().find(|default| {
        default.backlog.is_some() && default.backlog == asked && default.runs_as(names.clone())
    })
}

/// Where the owner of a listener takes its backlog from, if its program is a known one.
#[must_use]
pub fn setting(snapshot: &Snapshot) -> Option<&'static str> {
    let named = snapshot.default_of.as_deref();
    let named = DEFAULTS.iter().find(|default| Some(default.name) == named);
    let processes = snapshot.processes.iter().flatten();
    let names: Vec<&str> = processes.map(|process| process.comm.as_str()).collect();
    let mut by_name = DEFAULTS
        .iter()
        .filter(|default| default.runs_as(names.iter().copied()));
    named
        .or_else(|| by_name.next().filter(|_| by_name.next().is_none()))
        .map(|default| default.remedy)
}

impl Default {
    fn runs_as<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        let runs = |name: &str| self.programs.iter().any(|p| name.starts_with(p));
        names.into_iter().any(runs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::socket::Process;

    #[test]
    fn limit_and_owner_must_both_fit() {
        let name = |limit, owner| of(limit, Some(4096), [owner]).map(|default| default.name);
        assert_eq!(name(50, "java"), Some("Java"));
        assert_eq!(name(51, "java"), None);
        assert_eq!(name(50, "nginx"), None);
        assert_eq!(name(511, "node"), Some("Node.js"));
        assert_eq!(name(5, "python3.11"), Some("Python's socketserver"));
        assert_eq!(name(4096, "Go"), Some("Go's net.Listen()"));
        assert_eq!(name(1024, "Rust"), Some("Tokio"));
        assert_eq!(
            of(511, None, ["MainThread", "node"]).map(|d| d.name),
            Some("Node.js")
        );
    }

    /// A limit that may be a somaxconn is nobody's default, unless the call was seen.
    #[test]
    fn a_somaxconn_is_no_default() {
        assert_eq!(of(128, Some(4096), ["python3"]), None);
        assert_eq!(of(511, Some(511), ["redis-server"]), None);
        let asked = |backlog| asked_for(backlog, ["python3"]).map(|default| default.name);
        assert_eq!(asked(128), Some("Python's socket.listen()"));
        assert_eq!(asked(-1), None);
    }

    #[test]
    fn a_remedy_names_the_setting_of_the_program() {
        let of = |comm: &str, default_of: Option<&str>| {
            let snapshot = Snapshot {
                processes: Some(vec![Process {
                    pid: 1,
                    comm: comm.to_owned(),
                }]),
                default_of: default_of.map(str::to_owned),
                ..Snapshot::default()
            };
            setting(&snapshot)
        };
        assert_eq!(of("nginx", None), Some("backlog= of the listen directive"));
        assert_eq!(of("unknown", None), None);
        // Several runtimes have this name.
        assert_eq!(of("java", None), None);
        assert_eq!(
            of("java", Some("Tomcat")),
            Some("acceptCount of the Connector")
        );
    }
}

//! Runtimes and servers that listen with a backlog nobody chose. The limit alone does
//! not prove it, so it is named only if the owner is that program as well.

use crate::listeners::language;

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
        programs: &[language::GO],
        backlog: None,
        remedy: "net.core.somaxconn, as of the program's start",
    },
    Default {
        name: "Rust's standard library",
        programs: &[language::RUST],
        backlog: Some(128),
        remedy: "a listener made by socket2, whose listen() takes a backlog",
    },
    Default {
        name: "Tokio",
        programs: &[language::RUST],
        backlog: Some(1024),
        remedy: "TcpSocket, whose listen() takes a backlog",
    },
];

/// What `net.core.somaxconn` is unless somebody sets it: since Linux 5.4, and before.
const SOMAXCONN: [u32; 2] = [4096, 128];

/// The default that explains a limit, if one of the owner's names is that of the runtime. None if
/// the limit may as well be what `net.core.somaxconn` was when a larger backlog was asked for.
#[must_use]
pub fn of<'a>(
    limit: u32,
    somaxconn: Option<u32>,
    names: impl IntoIterator<Item = &'a str> + Clone,
) -> Option<&'static Default> {
    let is_of = |default: &&Default| {
        let mut names = names.clone().into_iter();
        let is_one = |name: &str| default.programs.iter().any(|one| name.starts_with(one));
        names.any(is_one)
    };
    let known: Vec<_> = DEFAULTS.iter().filter(is_of).collect();
    let found = known
        .iter()
        .find(|default| default.backlog.or(somaxconn) == Some(limit))?;
    let is_a_somaxconn = somaxconn == Some(limit) || SOMAXCONN.contains(&limit);
    let may_be_cut = known
        .iter()
        .any(|default| default.backlog.is_none_or(|backlog| backlog > limit));
    (found.backlog.is_none() || !(is_a_somaxconn && may_be_cut)).then_some(*found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_and_owner_must_both_fit() {
        let name = |limit, owner| of(limit, Some(4096), [owner]).map(|default| default.name);
        assert_eq!(name(50, "java"), Some("Java"));
        assert_eq!(name(51, "java"), None);
        assert_eq!(name(50, "nginx"), None);
        assert_eq!(name(511, "node"), Some("Node.js"));
        assert_eq!(name(4096, "php-fpm8.2"), Some("PHP-FPM"));
        assert_eq!(name(511, "php-fpm8.2"), None);
        assert_eq!(name(100, "uwsgi-core"), Some("uWSGI"));
        assert_eq!(name(5, "python3.11"), Some("Python's socketserver"));
        assert_eq!(name(4096, "Go"), Some("Go's net.Listen()"));
        assert_eq!(name(128, "Go"), None);
        assert_eq!(
            of(511, None, ["MainThread", "node"]).map(|d| d.name),
            Some("Node.js")
        );
    }

    /// somaxconn was 128 and was raised, and the server was not restarted.
    #[test]
    fn a_limit_that_may_be_an_earlier_somaxconn_is_nobodys_default() {
        let name = |limit, somaxconn, owner| of(limit, Some(somaxconn), [owner]).map(|d| d.name);
        assert_eq!(name(128, 4096, "redis-server"), None);
        assert_eq!(name(128, 4096, "python3"), None, "or Gunicorn, cut");
        assert_eq!(name(128, 4096, "Rust"), None, "or Tokio, cut");
        assert_eq!(name(128, 4096, "sshd"), Some("OpenSSH"));
        assert_eq!(name(100, 100, "python3"), None);
        assert_eq!(name(511, 511, "nginx"), Some("nginx"));
    }
}

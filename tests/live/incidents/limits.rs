//! Limits of the queue that are too small: chosen, cut, or left as they were.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    all, assert_counts_all, assert_owner, assert_says, burst, command, commands, diagnosed, found,
    programs::{SLOW_PYTHON, gunicorn, node},
    rules_at, text,
};
use crate::{
    bench::wait_until,
    servers::{PORT, Server, freeze, redis_where},
};

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
        assert!(says_needed(what, 19), "{what}");
        // It was frozen, which no limit of the machine made worse.
        let commands = commands(finding);
        assert_eq!(
            commands,
            ["set the application's backlog to 32, then restart it"]
        );
        assert_says(finding, "remedies", setting);
    }
}

/// Whether a backlog is said to be needed; on a busy machine the rate may have left some clients
/// without a name, and then it is the least.
fn says_needed(what: &str, backlog: u32) -> bool {
    ["", "at least "].iter().any(|least| {
        let needed = format!("needed a backlog of {least}{backlog}");
        what.contains(&needed)
    })
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

/// A server of Go, which asks for as much as `net.core.somaxconn` allows.
fn go(name: &str, somaxconn: u32) -> Server {
    Server::start_where(name, &[("net.core.somaxconn", somaxconn)], |scratch| {
        let file = scratch.file("hooks.json");
        fs::write(&file, "[]").unwrap();
        let mut webhook = Command::new("webhook");
        webhook
            .args(["-nopanic", "-ip", "127.0.0.1", "-port"])
            .args([&PORT.to_string(), "-hooks"])
            .arg(file)
            .stderr(Stdio::null());
        webhook
    })
}

/// `net.core.somaxconn` cuts what a server of Go asks for. With what the remedy says it has the limit
/// that the burst needed.
#[test]
fn somaxconn_that_cuts() {
    let server = go("cut-go", 4);
    let diagnosis = diagnosed("cut-go", &[(&server, &bursts)]);
    let rules = ["backlog-too-small-for-bursts", "backlog-clamped-or-default"];
    for finding in found(&diagnosis, &server, &rules) {
        assert_owner(finding, "webhook", &[server.pid()]);
        assert_counts_all(finding, &server);
        assert_eq!(finding["count"], 30);
        let raise = command(finding, "sysctl");
        assert_eq!(raise, "sysctl -w net.core.somaxconn=32");
        command(
            finding,
            "set the application's backlog to 32, then restart it",
        );
        assert_says(finding, "remedies", "the restart alone is enough");
        let what = text(finding, "what");
        let cut = "cut to 4 by net.core.somaxconn=4: the application asked for as much or more";
        let is_told = match text(finding, "rule") {
            "backlog-too-small-for-bursts" => says_needed(what, 19),
            _ => what.contains(cut),
        };
        assert!(is_told, "{what}");
    }
    drop(server);
    let cured = go("cured-go", 32);
    assert_eq!(cured.listening()[0].accept_queue.limit, 32);
    let diagnosis = diagnosed("cured-go", &[(&cured, &bursts)]);
    found(&diagnosis, &cured, &[]);
}

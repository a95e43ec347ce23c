//! Servers that take connections too slowly, or none: one worker, one of several, or all of it.

use std::{fs, process::Command, sync::Mutex, time::Duration};

use queue_trace::lab::{Ending, Pace, connect_each};
use rustix::process::Pid;

use super::{
    BACKLOG, HTTP, PATIENCE, RATE, all, assert_counts_all, assert_owner, assert_says, clients_come,
    command, commands, diagnosed, found, pid_text,
    programs::{
        BLOCKED, fast_cgi, java, located, node, postgres, slow_gunicorn, slow_php_fpm, slow_uwsgi,
    },
    run_there, text,
};
use crate::{
    bench::wait_until,
    diagnose::diagnosed_in,
    servers::{AT, Server, freeze, nginx},
};

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
        if pids.len() > 1 {
            // It is not the master that is to accept.
            let master = format!("({}; ", server.pid());
            assert!(!text(finding, "what").contains(&master), "{finding:#}");
        }
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
        const FACTOR: &str = "accept in at least ";
        let times = command(finding, FACTOR).strip_prefix(FACTOR);
        let times = times.and_then(|rest| rest.split(' ').next());
        let times: u64 = times.unwrap().parse().unwrap();
        assert!((3..=8).contains(&times), "{finding:#}");
        let restarts = |command: &&str| command.contains("restart") || command.contains("backlog");
        assert!(!commands(finding).iter().any(restarts), "{finding:#}");
    }
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
        command(finding, "restart the application");
        // It names the process indeed.
        let look = command(finding, "ss -ltnp ");
        let printed = run_there(server, look);
        let pid = format!("pid={},", pid_text(&server.pid()));
        assert!(printed.contains(&pid), "{look}: {printed}");
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
    let cure = command(finding, "prlimit");
    assert_eq!(cure, format!("prlimit --pid {pid} --nofile=65536:65536"));
    let what_for = run_there(&server, command(finding, &format!("ls -l /proc/{pid}/fd ")));
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
    let all_of_them = command(finding, "ss -ltnpe ");
    let the_one = command(finding, "grep ");
    let shared = command(finding, "let workers share ");
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

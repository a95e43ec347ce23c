//! Reloads and restarts.

use std::{
    net::TcpStream,
    process::{Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use rustix::process::{Signal, kill_process};

use super::{
    HTTP, RATE, all, assert_owner, assert_says, clients_come, found, pid_text, programs::haproxy,
    text,
};
use crate::{
    bench::wait_until,
    diagnose::diagnosed_in,
    servers::{Server, freeze, nginx},
};

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
        wait_for_resets(&clients[1..]);
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

/// A restart of nginx that does not wait: its worker is busy, clients wait, and all of it is killed.
#[test]
fn a_restart_that_does_not_wait() {
    const WAITING: usize = 5;
    let server = nginx("killed-nginx", "backlog=16", 1, "");
    let worker = server.workers(1)[0];
    let diagnosis = diagnosed_in("killed-nginx", &[&server.netns], RATE, || {
        // Shorter recordings say nothing.
        thread::sleep(Duration::from_secs(2));
        freeze(worker);
        let clients: Vec<_> = (0..WAITING).map(|_| server.connect()).collect();
        // The worker first: the kernel wakes stopped processes that lose their parent, and it would
        // accept the clients. Its parent is stopped as well, or it would start another.
        freeze(server.pid());
        for pid in [worker, server.pid()] {
            kill_process(pid, Signal::KILL).unwrap();
        }
        wait_for_resets(&clients);
    });
    let findings = found(&diagnosis, &server, &["listener-closed-on-clients"]);
    let finding = findings[0];
    assert_owner(finding, "nginx", &all(&server, &[worker]));
    assert_eq!(finding["count"], WAITING);
    let before = format!("the queue was {WAITING} deep at most, its limit was 16");
    assert_says(finding, "evidence", &before);
    // Nothing took over: it is no reload.
    assert!(
        !finding["evidence"].to_string().contains("another socket"),
        "{finding:#}"
    );
    assert_says(finding, "remedies", "nginx -s reload");
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

/// Waits until all of them are reset. Of each that is told once.
fn wait_for_resets(clients: &[TcpStream]) {
    let mut left: Vec<_> = clients.iter().collect();
    wait_until("the clients are reset", || {
        left.retain(|client| !is_reset(client));
        left.is_empty()
    });
}

fn is_reset(client: &TcpStream) -> bool {
    client.take_error().unwrap().is_some()
}

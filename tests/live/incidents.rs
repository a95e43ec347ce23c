//! Real faults of real servers, several at the same time under one tracer: the rule that fires,
//! whose queue it names, the numbers beside the kernel's own, and the remedy. No other rule fires
//! at that server. This file has what the tests share.

mod closing;
mod floods;
mod limits;
mod programs;
mod stopped;

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use live_tests::Counters;
use queue_trace::lab::{Family, Pace, connect_each, raw::Wire};
use rustix::process::Pid;
use serde_json::Value;

use crate::{
    diagnose::diagnosed_in,
    servers::{AT, Server},
};

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

/// A server, and what happens there.
type Play<'a> = (&'a Server, &'a (dyn Fn(&Server) + Sync));

/// The diagnosis of what happens at these servers, each in a thread of its own.
fn diagnosed(name: &str, plays: &[Play<'_>]) -> Value {
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

/// The command that begins so.
#[track_caller]
fn command<'a>(finding: &'a Value, begins: &str) -> &'a str {
    let found = commands(finding)
        .into_iter()
        .find(|one| one.starts_with(begins));
    found.unwrap_or_else(|| panic!("no {begins:?}: {finding:#}"))
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

/// The rules that fired at a server.
fn rules_at<'a>(diagnosis: &'a Value, server: &Server) -> Vec<&'a str> {
    let findings = diagnosis["findings"].as_array().unwrap().iter();
    let here = findings.filter(|finding| finding["netns"] == server.netns.id());
    here.map(|finding| text(finding, "rule")).collect()
}

//! Listeners and namespaces that come and go, and then an overflow: whether memory stays flat
//! and all sums are exact.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use live_tests::{Counters, Inhabitant, Launch, Room, Scratch};
use queue_trace::lab::{Family, Listen};
use rustix::process::Signal;
use serde_json::Value;

/// Listeners for each namespace that comes and goes.
const EACH: u64 = 20;
/// SYNs in each of these, answered with cookies.
const SYNS: u32 = 3;
/// SYNs that the overflow refuses.
const REFUSED: u32 = 92;

/// Makes so many listeners, each of which takes one connection, and says what became of the
/// sums. Panics if one is wrong.
pub fn run(program: &Path, attach: &str, listeners: u64) {
    let scratch = Scratch::new("churn");
    let path = scratch.file("churn.jsonl");
    // Without connections in TIME_WAIT, as there are not that many ports.
    let settings = [
        ("net.ipv4.tcp_syncookies", 0),
        ("net.ipv4.tcp_max_tw_buckets", 0),
    ];
    let room = Room::new(Family::V4, 4, &settings);
    // So that the namespace is found, with its listener and its counters.
    let _inhabitant = Inhabitant::of(&room.netns);
    let before = Counters::of(&room.netns);
    let launch = Launch::of(
        program,
        ["--attach", attach, "--all", "--json", "--rate", "20"],
    );
    let out = File::create(&path).unwrap();
    let tracer = launch.stdout_to(out.into()).start();
    let began = Instant::now();
    let mut resident = vec![memory(tracer.pid())];
    let (mut made, mut namespaces) = (0, 0);
    while made < listeners {
        let batch = (listeners / 10).clamp(1, listeners - made);
        churn(&room, batch);
        for _ in 0..batch / EACH {
            let other = Room::new(Family::V4, 4, &[("net.ipv4.tcp_syncookies", 2)]);
            other.flood(SYNS);
            namespaces += 1;
        }
        made += batch;
        resident.push(memory(tracer.pid()));
        eprintln!(
            "{made} listeners, {namespaces} namespaces: {} KiB",
            resident[resident.len() - 1]
        );
    }
    let clients = room.connect(5);
    room.flood(REFUSED);
    // Until the last of them are over.
    thread::sleep(Duration::from_secs(3));
    let took = began.elapsed();
    let asked = Instant::now();
    tracer.signal(Signal::TERM);
    let finished = tracer.wait();
    println!(
        "{made} listeners and {namespaces} namespaces in {:.0} s; ended {:.2} s after the signal",
        took.as_secs_f64(),
        asked.elapsed().as_secs_f64()
    );
    println!("resident, KiB: {resident:?}");
    assert!(finished.status.success(), "{}", finished.stderr);
    drop(clients);
    check(&path, &room, &before, made, namespaces);
    diagnosed(program, &path, &room);
}

/// The diagnosis finds the overflow, of the listener that it was at, and how much was refused.
fn diagnosed(program: &Path, path: &Path, room: &Room) {
    let output = Command::new(program)
        .args(["diagnose", "--json"])
        .arg(path)
        .output()
        .unwrap();
    let diagnosis: Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = diagnosis["findings"].as_array().unwrap();
    let address = room.address.to_string();
    let is_here =
        |finding: &&Value| finding["netns"] == room.netns.id() && finding["listener"] == *address;
    let here = findings.iter().find(is_here);
    let here = here.unwrap_or_else(|| panic!("no finding of {address} in {diagnosis}"));
    println!("{here}");
    assert_eq!(here["count"], REFUSED);
}

/// Short-lived listeners, each of which takes one connection.
fn churn(room: &Room, count: u64) {
    let work = || {
        for _ in 0..count {
            let listener = Listen::default().on(SocketAddr::new(room.family.loopback(), 0))?;
            let client = TcpStream::connect(listener.local_addr()?)?;
            drop(listener.accept()?);
            drop(client);
        }
        Ok(())
    };
    room.netns.run(work).unwrap();
}

/// The resident memory of a process, KiB.
pub fn memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap()
}

/// Compares the sums of the recording with what was done.
fn check(path: &Path, room: &Room, before: &Counters, listeners: u64, namespaces: u64) {
    let mut here: BTreeMap<String, u64> = BTreeMap::new();
    let mut counts = here.clone();
    let (mut cookies, mut lines, mut lost, mut ledger) = (0, 0u64, Vec::new(), None);
    for line in BufReader::new(File::open(path).unwrap()).lines() {
        let line: Value = serde_json::from_str(&line.unwrap()).unwrap();
        lines += 1;
        let is_here = line["netns"] == room.netns.id();
        match line["type"].as_str().unwrap() {
            "total" => {
                let count = line["count"].as_u64().unwrap();
                let verdict = line["verdict"].as_str().unwrap();
                if is_here {
                    *here.entry(verdict.to_owned()).or_default() += count;
                } else if verdict == "cookie_sent" {
                    cookies += count;
                }
            }
            "counts" if is_here => {
                for (name, count) in line["outcomes"].as_object().unwrap() {
                    *counts.entry(name.clone()).or_default() += count.as_u64().unwrap();
                }
            }
            "loss" => lost.push(line),
            "ledger" if is_here => ledger = Some(line),
            _ => {}
        }
    }
    let after = Counters::of(&room.netns);
    println!("{lines} lines; totals {here:?}; counts {counts:?}; cookies elsewhere {cookies}");
    for loss in &lost {
        println!("{loss}");
    }
    let ledger = ledger.expect("no ledger of the namespace");
    println!("{ledger}");
    assert_eq!(here["queued"], listeners + 5);
    assert_eq!(here["established"], listeners + 5);
    assert_eq!(here["syn_dropped"], u64::from(REFUSED));
    assert_eq!(counts["syn_dropped:accept_queue_full"], u64::from(REFUSED));
    assert_eq!(after.since(before, "ListenDrops"), u64::from(REFUSED));
    assert_eq!(ledger["unexplained"], 0);
    assert!(cookies >= namespaces * u64::from(SYNS), "{cookies}");
}

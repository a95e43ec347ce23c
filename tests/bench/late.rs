//! An overflow late in a run: after a long time in which all is well, two seconds in which more
//! connections come than are accepted. Fails if the incident recording lacks the minute before
//! it, or if the diagnosis is not right.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, TcpStream},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use live_tests::{Inhabitant, Launch, Room, Scratch};
use queue_trace::lab::Family;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::churn;

/// The time before an incident that its recording has.
const BEFORE: Duration = Duration::from_secs(60);
/// How long more come than are accepted, and how often one comes then, and is accepted.
const OVERFLOW: Duration = Duration::from_secs(2);
const COMES: Duration = Duration::from_millis(10);
const ACCEPTED: Duration = Duration::from_millis(250);
const BACKLOG: i32 = 8;

/// Runs for so long, then overflows.
pub fn run(program: &Path, attach: &str, calm: Duration) {
    let scratch = Scratch::new("late");
    let folder = scratch.file("incidents");
    let room = Room::new(Family::V4, BACKLOG, &[("net.ipv4.tcp_syncookies", 0)]);
    let _inhabitant = Inhabitant::of(&room.netns);
    let mut agent = Command::new(program)
        .args(["agent", "--attach", attach, "--before", "60s"])
        .args([
            "--listen",
            &format!("unix:{}", scratch.file("sock").display()),
        ])
        .arg("--incidents")
        .arg(&folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(agent.stdout.take().unwrap()).lines();
    let (began, mut resident) = (Instant::now(), Vec::new());
    let mut next = Instant::now();
    while began.elapsed() < calm {
        served(&room, 1);
        if Instant::now() >= next {
            resident.push(churn::memory(agent.id()));
            next += calm / 10;
        }
        thread::sleep(Duration::from_secs(1));
    }
    println!("resident, KiB, while all was well: {resident:?}");
    overflow(&room);
    served(&room, 1);
    let port = room.address.port();
    let mut file = String::new();
    let incident = lines
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap())
        .find(|line| {
            let is_own = line["netns"] == room.netns.id();
            if line["type"] == "episode_began" && is_own {
                line["file"].as_str().unwrap().clone_into(&mut file);
            }
            if line["type"] == "episode_ended" && is_own {
                // Else it goes on while anything is refused on this machine.
                kill_process(Pid::from_child(&agent), Signal::TERM).unwrap();
            }
            line["type"] == "incident" && line["file"] == file.as_str()
        })
        .unwrap();
    let _ = agent.kill();
    let _ = agent.wait();

    let replay = Launch::of(program, ["replay", "--all", "--json", &file]).finish();
    assert_eq!(replay.status.code(), Some(0), "{}", replay.stderr);
    let lines = replay
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    let own: Vec<Value> = lines
        .filter(|line: &Value| line["netns"] == room.netns.id() && line["type"] == "event")
        .collect();
    let time = |line: &Value| line["mono_ns"].as_u64().unwrap();
    let refused = own
        .iter()
        .find(|line| line["cause"] == "accept_queue_full")
        .unwrap();
    let before = Duration::from_nanos(time(refused) - time(&own[0]));
    println!(
        "events of the listener begin {} s before its first refusal",
        before.as_secs_f64()
    );
    // One connection a second, and a second is written as it ends.
    assert!(before >= BEFORE - Duration::from_secs(4), "{before:?}");
    let found = incident["findings"].as_array().unwrap().iter();
    let own = room.address.to_string();
    let found: Vec<_> = found
        .filter(|found| found["listener"] == own.as_str() && found["netns"] == room.netns.id())
        .collect();
    assert!(!found.is_empty(), "nothing is found: {incident}");
    println!("found: {}", found[0]["what"]);
    assert_eq!(
        found[0]["rule"], "backlog-too-small-for-bursts",
        "{found:?} for port {port}"
    );
}

/// So many clients come, one after the other, and are served.
fn served(room: &Room, clients: usize) {
    for _ in 0..clients {
        let client = room
            .netns
            .run(|| Ok(TcpStream::connect(room.address)?))
            .unwrap();
        let (_connection, from) = room.listener.accept().unwrap();
        assert_eq!(from.ip(), Ipv4Addr::LOCALHOST);
        drop(client);
    }
}

/// More come than are accepted. Whoever got in is served then.
fn overflow(room: &Room) {
    room.listener.set_nonblocking(true).unwrap();
    let come = || {
        let patience = Duration::from_millis(2);
        let (began, mut clients) = (Instant::now(), Vec::new());
        while began.elapsed() < OVERFLOW {
            // Those that find no room give up, or try again by themselves.
            clients.extend(TcpStream::connect_timeout(&room.address, patience));
            thread::sleep(COMES);
        }
        Ok(clients)
    };
    thread::scope(|scope| {
        let clients = scope.spawn(|| room.netns.run(come).unwrap());
        while !clients.is_finished() {
            let _ = room.listener.accept();
            thread::sleep(ACCEPTED);
        }
        while room.listener.accept().is_ok() {}
    });
    room.listener.set_nonblocking(false).unwrap();
}

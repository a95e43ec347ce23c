//! Conclusions from courses of events that are made up: each fault inside hours of health, beside
//! its nearest neighbours, and with what recordings of the field have wrong with them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, net::IpAddr, process::Command};

use queue_trace::{
    diagnose::{
        self, Case, Conclusion, Diagnosis, Finding, Harm,
        rules::flood::{nft_drop, nft_synproxy},
    },
    model::{
        event::{AcceptQueue, Event, Name, SynQueue, Sysctls, rfc3339},
        ledger::{FrontLine, Ledger},
        lines::{AttachPlan, Counts, Header, Total},
        snapshot::{Descriptors, Gauge, Snapshot},
        socket::{Client, Listener, Process},
        stall::{Doing, Stall},
    },
    sink::Sink,
};
use queue_trace_common::outcome::{
    ACCEPTED, ACK_DEFERRED, ACK_DROPPED_ACCEPT_QUEUE_FULL, COOKIE_SENT_FULL, ESTABLISHED_COOKIE,
    ESTABLISHED_HANDSHAKE, OUTCOMES, Outcome, QUEUE_DISCARDED, QUEUED, REQUEST_EXPIRED,
    SYN_DROPPED_ACCEPT_QUEUE_FULL, SYN_DROPPED_OTHER, SYN_DROPPED_SYN_QUEUE_FULL,
    SYN_REFUSED_NO_LISTENER, SYNACK_RETRANSMITTED,
};

const START: i128 = 1_763_730_000_000_000_000;
const SECOND: u64 = 1000;
const HOUR: u64 = 3600 * SECOND;
const NETNS: u32 = 4_026_531_840;

/// How the events were seen.
#[derive(Clone, Copy, PartialEq)]
enum Attached {
    Fentry,
    Tracepoint,
}
use Attached::{Fentry, Tracepoint};

/// A recording that is made up; times are milliseconds since its beginning.
struct Play {
    case: Case,
    attached: Attached,
    limit: u32,
    sysctls: Sysctls,
    wall_ahead_ns: i128,
    port: u16,
    addr: IpAddr,
    device: Option<u32>,
    inode: u64,
    deferred: Option<u64>,
}

impl Play {
    fn new(attached: Attached, limit: u32) -> Self {
        let mut play = Self {
            case: Case::new(),
            attached,
            limit,
            sysctls: Sysctls {
                tcp_syncookies: 1,
                tcp_abort_on_overflow: 0,
                tcp_max_syn_backlog: 2048,
                somaxconn: 4096,
            },
            wall_ahead_ns: 0,
            port: 80,
            addr: IpAddr::from([192, 0, 2, 1]),
            device: None,
            inode: 77,
            deferred: None,
        };
        let header = play.header("host");
        play.case.header(&header).unwrap();
        play
    }

    fn header(&self, host: &str) -> Header {
        let family = match self.attached {
            Fentry => "fentry",
            Tracepoint => "tracepoint",
        };
        let seen = OUTCOMES.iter().filter(|outcome| self.sees(outcome.tag));
        Header {
            schema: 1,
            version: "0".to_owned(),
            time: rfc3339(START),
            host: host.to_owned(),
            kernel: "6.12".to_owned(),
            attach: AttachPlan {
                family: family.to_owned(),
                hooks: Vec::new(),
                outcomes: Some(seen.map(|outcome| Name(outcome).to_string()).collect()),
                filters: None,
                limits: Vec::new(),
            },
        }
    }

    fn sees(&self, tag: u8) -> bool {
        let hidden = [
            ACCEPTED,
            SYNACK_RETRANSMITTED,
            REQUEST_EXPIRED,
            QUEUE_DISCARDED,
        ];
        self.attached == Fentry || !hidden.contains(&tag)
    }

    fn listener(&self) -> Listener {
        Listener {
            addr: Some(self.addr),
            port: self.port,
            cookie: None,
            inode: Some(self.inode),
            device: self.device,
        }
    }

    fn event(&mut self, ms: u64, tag: u8, client: u32, depth: u32) {
        self.event_with(ms, tag, client, depth, 0);
    }

    fn event_with(&mut self, ms: u64, tag: u8, client: u32, depth: u32, syn_depth: u32) {
        if self.sees(tag) {
            let event = self.made(ms, tag, client, depth, syn_depth);
            self.case.event(&event).unwrap();
        }
    }

    /// So many at once that were rate-limited, as a number.
    fn withheld(&mut self, ms: u64, tag: u8, count: u64) {
        let event = Event {
            count,
            client: None,
            accept_queue: None,
            syn_queue: None,
            cpu: None,
            ..self.made(ms, tag, 0, 0, 0)
        };
        self.case.event(&event).unwrap();
    }

    fn made(&self, ms: u64, tag: u8, client: u32, depth: u32, syn_depth: u32) -> Event {
        let ns = ms * 1_000_000;
        Event {
            mono_ns: 5_000_000_000_000 + ns,
            wall_ns: START + i128::from(ns) + self.wall_ahead_ns,
            outcome: Outcome::of(tag).unwrap(),
            count: 1,
            netns: NETNS,
            listener: self.listener(),
            local: None,
            client: Some(Client {
                addr: IpAddr::from((0xcb00_0000 + client / 100).to_be_bytes()),
                port: 1024 + (client % 100) as u16,
            }),
            accept_queue: Some(AcceptQueue {
                depth,
                limit: self.limit,
            }),
            syn_queue: Some(SynQueue {
                depth: syn_depth,
                young: syn_depth,
                limit: self.limit,
            }),
            sysctls: Some(self.sysctls),
            retransmits: None,
            waited_us: None,
            process: None,
            moved: 0,
            cpu: Some(0),
            sk: 0,
        }
    }

    /// Nobody listens: the event has no listener but its port.
    fn nobody(&mut self, ms: u64, client: u32) {
        let event = Event {
            listener: Listener {
                port: self.port,
                ..Listener::default()
            },
            client: Some(Client {
                addr: IpAddr::from((0xcb00_0000 + client).to_be_bytes()),
                port: 1024,
            }),
            local: Some(self.addr),
            accept_queue: None,
            syn_queue: None,
            ..self.made(ms, SYN_REFUSED_NO_LISTENER, client, 0, 0)
        };
        self.case.event(&event).unwrap();
    }

    /// A process begins to listen at a moment, or its listener is closed; what says so comes later.
    fn listens(&mut self, pid: u32, listen: Option<u64>, closed: Option<u64>) {
        let time = |ms: u64| rfc3339(START + i128::from(ms) * 1_000_000 + self.wall_ahead_ns);
        let last = listen.max(closed).unwrap();
        let snapshot = Snapshot {
            time: Some(time(last + 300)),
            netns: NETNS,
            listener: Listener {
                inode: Some(pid.into()),
                ..self.listener()
            },
            processes: Some(vec![Process {
                pid,
                comm: "nginx".to_owned(),
            }]),
            listen_time: listen.map(time),
            closed: closed.map(|_| true),
            closed_time: closed.map(time),
            ..Snapshot::default()
        };
        self.case.listener(&snapshot).unwrap();
    }

    /// A client that is served at once.
    fn served(&mut self, ms: u64, client: u32) {
        self.event(ms, QUEUED, client, 0);
        self.event(ms, ESTABLISHED_HANDSHAKE, client, 1);
        self.event(ms, ACCEPTED, client, 0);
    }

    /// So many a second, all well.
    fn healthy(&mut self, from: u64, to: u64) {
        for ms in (from..to).step_by(200) {
            self.served(ms, (ms / 200 % 90_000) as u32);
        }
    }

    /// Clients that come at once; the application takes all of them a moment later.
    fn burst(&mut self, ms: u64, clients: u32) {
        let room = self.limit + 1;
        for client in 0..clients {
            let number = 5_000_000 + ms as u32 + client;
            if client < room {
                self.event(ms, QUEUED, number, client);
                self.event(ms, ESTABLISHED_HANDSHAKE, number, client + 1);
            } else {
                self.event(ms, SYN_DROPPED_ACCEPT_QUEUE_FULL, number, room);
            }
        }
        for left in (0..room).rev() {
            self.event(ms + 20, ACCEPTED, 0, left);
        }
        self.served(ms + 300, 4_999_999);
    }

    fn fill(&mut self, ms: u64) {
        for client in 0..=self.limit {
            self.event(ms, ESTABLISHED_HANDSHAKE, 6_000_000 + client, client + 1);
        }
    }

    /// A look at the full queue, and at its owner's only thread.
    fn stall(&self, ms: u64, state: &str, call: Option<&str>) -> Snapshot {
        let doing = Doing {
            count: 1,
            pid: 5,
            tid: 5,
            main: true,
            state: state.to_owned(),
            call: call.map(str::to_owned),
            ..Doing::default()
        };
        Snapshot {
            time: Some(rfc3339(START + i128::from(ms) * 1_000_000)),
            netns: NETNS,
            listener: self.listener(),
            accept_queue: Some(Gauge {
                depth: Some(self.limit + 1),
                limit: Some(self.limit),
                ..Gauge::default()
            }),
            stall: Some(Box::new(Stall {
                holders: 1,
                looked: 1,
                threads: 1,
                threads_looked: 1,
                doing: vec![doing],
                ..Stall::default()
            })),
            ..Snapshot::default()
        }
    }

    fn diagnosis(&mut self, end: u64) -> Diagnosis {
        let empty = Ledger {
            netns: NETNS,
            counters: BTreeMap::new(),
            in_front: self.deferred.map_or_else(BTreeMap::new, |deferred| {
                let line = FrontLine {
                    kernel: Some(deferred),
                    seen: None,
                };
                [("ack_deferred".to_owned(), line)].into()
            }),
            lost: 0,
            unexplained: Some(0),
            note: None,
            other_drops: None,
        };
        self.case.ledger(&empty).unwrap();
        let end = START + i128::from(end) * 1_000_000 + self.wall_ahead_ns;
        self.case.end(&rfc3339(end)).unwrap();
        diagnose::diagnose(&self.case)
    }
}

#[track_caller]
fn only<'a>(diagnosis: &'a Diagnosis, rule: &str) -> &'a Finding {
    let rules: Vec<_> = diagnosis.findings.iter().map(|one| one.rule).collect();
    assert_eq!(rules, [rule], "{diagnosis:#?}");
    &diagnosis.findings[0]
}

fn text(diagnosis: &Diagnosis, case: &Case) -> String {
    let mut text = Vec::new();
    diagnosis.write_text(case, &mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn has(finding: &Finding, words: &str) -> bool {
    finding.evidence.iter().any(|one| one.contains(words))
}

/// One burst of a second is the same finding in a recording of a minute, of 72 minutes, and of a day.
#[test]
fn one_burst_however_long_the_recording_is() {
    for attached in [Fentry, Tracepoint] {
        for (before, after) in [
            (10 * SECOND, 50 * SECOND),
            (HOUR, HOUR / 5),
            (HOUR, 24 * HOUR),
        ] {
            let mut play = Play::new(attached, 8);
            // Health for some minutes around it; silence is as good.
            play.healthy(0, before.min(HOUR));
            play.burst(before, 20);
            play.healthy(before + SECOND, before + after.min(HOUR));
            let diagnosis = play.diagnosis(before + after);
            let finding = only(&diagnosis, "backlog-too-small-for-bursts");
            assert_eq!((finding.times, finding.count), (1, 11));
            assert!(
                finding.what.contains("11 packets of 11 connections"),
                "{}",
                finding.what
            );
            // 9 fitted in of 20: a backlog of 19 holds 20.
            assert!(
                finding.what.contains("needed a backlog of 19"),
                "{}",
                finding.what
            );
            let at = START + i128::from(before) * 1_000_000;
            assert_eq!(finding.first.as_deref(), Some(rfc3339(at).as_str()));
            assert!(
                finding
                    .remedies
                    .iter()
                    .any(|r| r.command.contains("backlog to 32"))
            );
            assert!(!finding.ongoing);
        }
    }
}

/// The nearest neighbour: the same load with a backlog that holds it.
#[test]
fn the_same_burst_with_a_larger_backlog_is_nothing() {
    let mut play = Play::new(Fentry, 64);
    play.healthy(0, 10 * SECOND);
    play.burst(10 * SECOND, 20);
    play.healthy(11 * SECOND, 20 * SECOND);
    let diagnosis = play.diagnosis(20 * SECOND);
    assert_eq!(
        diagnosis.verdict,
        Conclusion::NothingFound,
        "{diagnosis:#?}"
    );
}

#[test]
fn an_application_that_takes_one_now_and_then_has_not_stopped() {
    for attached in [Fentry, Tracepoint] {
        let mut play = Play::new(attached, 3);
        play.fill(0);
        let mut waiting: Vec<u32> = (0..6).collect();
        for second in 0..30u64 {
            // They try again after 1, 2, 4 … s.
            if [0, 1, 3, 7, 15, 22, 29].contains(&second) {
                for client in &waiting {
                    let ms = second * SECOND + u64::from(*client);
                    play.event(ms, SYN_DROPPED_ACCEPT_QUEUE_FULL, *client, 4);
                }
            }
            if second % 5 == 4 && !waiting.is_empty() {
                play.event(second * SECOND + 500, ACCEPTED, 9, 3);
                let client = waiting.remove(0);
                play.event(second * SECOND + 600, ESTABLISHED_HANDSHAKE, client, 4);
            }
        }
        let diagnosis = play.diagnosis(30 * SECOND);
        let finding = only(&diagnosis, "accept-too-slow");
        assert!(
            ["one in 4.9 s", "one in 5.1 s"]
                .iter()
                .any(|pace| finding.what.contains(pace)),
            "{}",
            finding.what
        );
        assert!(
            finding.what.contains("of 6 connections"),
            "{}",
            finding.what
        );
        assert!(has(finding, "got in later"), "{:?}", finding.evidence);
        assert!(
            finding
                .remedies
                .iter()
                .all(|r| !r.command.contains("restart"))
        );
    }
}

#[test]
fn an_application_that_stopped_inside_hours_of_health() {
    for attached in [Fentry, Tracepoint] {
        let mut play = Play::new(attached, 8);
        play.healthy(0, HOUR);
        play.fill(HOUR);
        for tenth in 0..80 {
            play.event(
                HOUR + tenth * 100,
                SYN_DROPPED_ACCEPT_QUEUE_FULL,
                7_000_000 + tenth as u32 % 4,
                9,
            );
        }
        for left in (0..9).rev() {
            play.event(HOUR + 8100, ACCEPTED, 0, left);
        }
        play.healthy(HOUR + 9 * SECOND, HOUR + 600 * SECOND);
        let diagnosis = play.diagnosis(HOUR + 600 * SECOND);
        let finding = only(&diagnosis, "accept-stopped");
        let seconds = match attached {
            // Until it took one again.
            Fentry => "for 8.1 s",
            // Until the last that was refused.
            Tracepoint => "for 7.9 s",
        };
        assert!(finding.what.contains(seconds), "{}", finding.what);
        assert!(
            finding.what.contains("80 packets of 4 connections"),
            "{}",
            finding.what
        );
        // It goes on by itself.
        assert!(
            finding
                .remedies
                .iter()
                .all(|r| !r.command.contains("restart"))
        );
    }
}

/// Out of file descriptors: the sentence is about what left the queue, the evidence says why.
#[test]
fn out_of_file_descriptors() {
    let mut play = Play::new(Fentry, 8);
    play.fill(0);
    for second in 0..10 {
        play.event(second * SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, 1, 9);
    }
    let snapshot = Snapshot {
        netns: NETNS,
        listener: play.listener(),
        processes: Some(vec![Process {
            pid: 42,
            comm: "server".to_owned(),
        }]),
        descriptors: Some(Descriptors {
            pid: 42,
            open: 20,
            limit: 20,
        }),
        ..Snapshot::default()
    };
    play.case.listener(&snapshot).unwrap();
    let diagnosis = play.diagnosis(10 * SECOND);
    let finding = only(&diagnosis, "accept-stopped");
    assert!(finding.what.contains("took nothing"));
    assert!(
        has(finding, "20 open in server[42], its limit is 20"),
        "{finding:#?}"
    );
    assert_eq!(
        finding.remedies[0].command,
        "prlimit --pid 42 --nofile=65536:65536"
    );
}

/// The owner has no descriptor left, and takes one connection whenever another ends: more threads would
/// not take more.
#[test]
fn slow_for_want_of_file_descriptors() {
    for used in [20, 19] {
        let mut play = Play::new(Fentry, 8);
        play.fill(0);
        for second in 0..10 {
            play.event(second * SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, 1, 9);
            play.event(second * SECOND + 500, ACCEPTED, 0, 8);
            let client = 100 + second as u32;
            play.event(second * SECOND + 600, ESTABLISHED_HANDSHAKE, client, 9);
        }
        let snapshot = Snapshot {
            netns: NETNS,
            listener: play.listener(),
            descriptors: Some(Descriptors {
                pid: 42,
                open: used,
                limit: 20,
            }),
            ..Snapshot::default()
        };
        play.case.listener(&snapshot).unwrap();
        let diagnosis = play.diagnosis(10 * SECOND);
        let finding = only(&diagnosis, "accept-too-slow");
        let first = &finding.remedies[0].command;
        let threads = finding.remedies.iter();
        let threads = threads.filter(|remedy| remedy.command.contains("threads or processes"));
        if used == 20 {
            assert!(first.starts_with("prlimit --pid 42 "), "{first}");
            assert_eq!(threads.count(), 0, "{finding:#?}");
        } else {
            assert_eq!(threads.count(), 1, "{finding:#?}");
        }
        assert_eq!(has(finding, "out of file descriptors"), used == 20);
    }
}

/// After a burst nobody comes for a while: that is not a time in which nothing was taken.
#[test]
fn silence_after_a_burst_is_no_stop() {
    for attached in [Fentry, Tracepoint] {
        let mut play = Play::new(attached, 4);
        play.fill(SECOND);
        for client in 0..15 {
            play.event(SECOND + 1, SYN_DROPPED_ACCEPT_QUEUE_FULL, client, 5);
        }
        for left in (0..5).rev() {
            play.event(SECOND + 20, ACCEPTED, 0, left);
        }
        play.served(6 * SECOND, 100);
        let diagnosis = play.diagnosis(7 * SECOND);
        let finding = only(&diagnosis, "backlog-too-small-for-bursts");
        assert_eq!(finding.count, 15);
    }
}

/// One connection was taken as the queue filled, and none in the minute after it: that is no pace of one
/// in a minute.
#[test]
fn an_application_that_took_one_and_stopped() {
    for attached in [Fentry, Tracepoint] {
        let mut play = Play::new(attached, 8);
        play.fill(0);
        play.event(0, SYN_DROPPED_ACCEPT_QUEUE_FULL, 1, 9);
        play.event(100, ACCEPTED, 0, 8);
        play.event(150, ESTABLISHED_HANDSHAKE, 2, 9);
        for second in 1..60 {
            play.event(second * SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, 3, 9);
        }
        let diagnosis = play.diagnosis(60 * SECOND);
        let finding = only(&diagnosis, "accept-stopped");
        // By tracepoints until the last that was refused.
        let lasted = ["for 59.9 s", "for 58.9 s"];
        assert!(
            lasted.iter().any(|one| finding.what.contains(one)),
            "{}",
            finding.what
        );
    }
}

/// A flood is compared with what comes back in its own time, not with the busy hours around it.
#[test]
fn a_flood_inside_a_busy_time_is_found() {
    for attached in [Fentry, Tracepoint] {
        let mut play = Play::new(attached, 128);
        for ms in (0..300 * SECOND).step_by(5) {
            play.served(ms, (ms / 5) as u32);
        }
        for syn in 0..15_000u32 {
            let ms = 300 * SECOND + u64::from(syn) * 2;
            play.event_with(ms, COOKIE_SENT_FULL, 10_000_000 + syn * 100, 0, 129);
            if syn % 50 == 0 {
                // Real clients among them.
                play.event_with(ms + 1, COOKIE_SENT_FULL, syn, 0, 129);
                play.event_with(ms + 1, ESTABLISHED_COOKIE, syn, 1, 129);
            }
        }
        for ms in (331 * SECOND..600 * SECOND).step_by(5) {
            play.served(ms, (ms / 5) as u32);
        }
        let diagnosis = play.diagnosis(600 * SECOND);
        let finding = only(&diagnosis, "syn-flood-many-networks");
        assert!(
            finding.what.contains("300 of 15300 SYN cookies came back"),
            "{}",
            finding.what
        );
    }
}

/// Real clients, more at once than the SYN queue holds: no flood, and not nothing.
#[test]
fn real_clients_whose_cookies_come_back_are_no_flood() {
    let mut play = Play::new(Fentry, 16);
    for round in 0..5u64 {
        for client in 0..60u32 {
            let number = round as u32 * 100_000 + client * 100;
            let tag = if client < 17 {
                QUEUED
            } else {
                COOKIE_SENT_FULL
            };
            play.event_with(round * SECOND, tag, number, 0, client.min(17));
        }
        for client in 0..60u32 {
            let number = round as u32 * 100_000 + client * 100;
            let tag = if client < 17 {
                ESTABLISHED_HANDSHAKE
            } else {
                ESTABLISHED_COOKIE
            };
            let left = 17 - client.min(17);
            play.event_with(
                round * SECOND + 80 + u64::from(client),
                tag,
                number,
                1,
                left,
            );
            play.event(round * SECOND + 80 + u64::from(client), ACCEPTED, number, 0);
        }
    }
    let diagnosis = play.diagnosis(10 * SECOND);
    let finding = only(&diagnosis, "syn-queue-too-small");
    assert!(
        finding.what.contains("215 of 215 SYN cookies came back"),
        "{}",
        finding.what
    );
    assert_eq!(diagnosis.verdict, Conclusion::Findings);
    let command = &finding.remedies.last().unwrap().command;
    assert!(command.contains("backlog to 128"), "{command}");
}

/// Few SYNs, of which nothing came: it is said, and not called a flood.
#[test]
fn a_few_cookies_are_no_flood_and_not_nothing() {
    let mut play = Play::new(Fentry, 16);
    for syn in 0..40 {
        play.event_with(SECOND, COOKIE_SENT_FULL, syn * 100, 0, 17);
    }
    let diagnosis = play.diagnosis(10 * SECOND);
    let finding = only(&diagnosis, "syn-queue-full");
    assert!(
        finding.what.contains("0 of 40 SYN cookies"),
        "{}",
        finding.what
    );
}

/// A verdict that depth and limit contradict does not carry that listener's owner.
#[test]
fn a_queue_that_was_not_full_refused_nothing() {
    let mut play = Play::new(Tracepoint, 64);
    let alive = Snapshot {
        netns: NETNS,
        listener: play.listener(),
        processes: Some(vec![Process {
            pid: 42,
            comm: "healthy-app".to_owned(),
        }]),
        ..Snapshot::default()
    };
    play.case.listener(&alive).unwrap();
    for packet in 0..9 {
        play.event(SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, packet, 0);
    }
    let diagnosis = play.diagnosis(6 * SECOND);
    assert!(!diagnosis.findings.is_empty());
    for finding in &diagnosis.findings {
        assert_eq!(
            (&finding.owner, finding.inode),
            (&None, None),
            "{finding:#?}"
        );
        assert!(has(finding, "was not full"));
    }
}

/// By tracepoints that guess the socket of a group, the one whose own queue is full is named, and none else.
#[test]
fn the_stuck_socket_of_a_group_is_the_one_with_the_full_queue() {
    let mut play = Play::new(Tracepoint, 8);
    let mut header = play.header("host");
    header.attach.limits =
        vec!["in a SO_REUSEPORT group of listeners the socket is guessed".into()];
    play.case = Case::new();
    play.case.header(&header).unwrap();
    for worker in 0..4u32 {
        let snapshot = Snapshot {
            netns: NETNS,
            listener: Listener {
                inode: Some(77 + u64::from(worker)),
                ..play.listener()
            },
            processes: Some(vec![Process {
                pid: worker,
                comm: format!("worker-{worker}"),
            }]),
            accept_queue: Some(Gauge {
                depth: Some(if worker == 2 { 9 } else { 0 }),
                limit: Some(8),
                ..Gauge::default()
            }),
            ..Snapshot::default()
        };
        play.case.listener(&snapshot).unwrap();
    }
    for packet in 0..40u64 {
        play.event(packet * 100, ESTABLISHED_HANDSHAKE, packet as u32, 1);
        play.event(
            packet * 100 + 5,
            SYN_DROPPED_ACCEPT_QUEUE_FULL,
            1000 + packet as u32,
            1,
        );
    }
    let diagnosis = play.diagnosis(6 * SECOND);
    let finding = only(&diagnosis, "reuseport-worker-stuck");
    assert_eq!(finding.owner.as_deref(), Some("worker-2[2]"));
    assert_eq!(finding.inode, Some(79));
    // In a process's list of what it waits for, inode numbers are hexadecimal.
    let waits = &finding.remedies[1].command;
    assert!(waits.contains(" ino:4f '"), "{waits}");
}

/// The same address and port on another device is no sibling of a stuck listener.
#[test]
fn a_port_on_another_device_is_another_listener() {
    for apart in [false, true] {
        let mut play = Play::new(Fentry, 8);
        (play.device, play.inode) = (Some(2), 1);
        for packet in 0..60u64 {
            play.event(
                packet * 100,
                SYN_DROPPED_ACCEPT_QUEUE_FULL,
                packet as u32,
                9,
            );
        }
        (play.device, play.inode) = (Some(if apart { 3 } else { 2 }), 2);
        for packet in 0..60u64 {
            play.served(packet * 100, 1000 + packet as u32);
        }
        let diagnosis = play.diagnosis(7 * SECOND);
        let rules: Vec<_> = diagnosis.findings.iter().map(|found| found.rule).collect();
        let wanted = if apart {
            "accept-stopped"
        } else {
            "reuseport-worker-stuck"
        };
        assert_eq!(rules, [wanted]);
    }
}

/// Cookies off, by tracepoints: 13 half-open of 16 leave less than a quarter.
#[test]
fn the_last_quarter_is_concluded_from_settings_and_depth() {
    let mut play = Play::new(Tracepoint, 511);
    play.sysctls.tcp_syncookies = 0;
    play.sysctls.tcp_max_syn_backlog = 16;
    for syn in 0..13 {
        play.event_with(SECOND, QUEUED, syn, 0, syn);
    }
    for syn in 13..40 {
        play.event_with(SECOND, SYN_DROPPED_OTHER, syn, 0, 13);
    }
    let diagnosis = play.diagnosis(6 * SECOND);
    let finding = only(&diagnosis, "syncookies-off");
    assert!(
        finding.what.contains("27 SYNs dropped") && finding.what.contains("probably"),
        "{}",
        finding.what
    );
    assert!(
        finding
            .remedies
            .iter()
            .any(|r| r.command == "sysctl -w net.ipv4.tcp_max_syn_backlog=1024")
    );
    // Its neighbour: with room, the reason is unknown.
    let mut play = Play::new(Tracepoint, 511);
    play.sysctls.tcp_syncookies = 0;
    play.event_with(SECOND, SYN_DROPPED_OTHER, 1, 0, 13);
    only(&play.diagnosis(6 * SECOND), "refused-otherwise");
}

/// The limit in force at the refusals is named, and the later one as such.
#[test]
fn a_limit_that_was_raised_later() {
    let mut play = Play::new(Fentry, 3);
    play.event(SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, 1, 10);
    play.limit = 511;
    play.event(4 * SECOND, QUEUED, 2, 13);
    let diagnosis = play.diagnosis(10 * SECOND);
    let finding = only(&diagnosis, "accept-queue-full");
    assert!(
        has(
            finding,
            "10 deep at most and its limit was 3 when it refused"
        ),
        "{finding:#?}"
    );
    assert!(has(finding, "later its limit was 511"));
}

/// What the new limit is, the default of a runtime say, is not what the old one was.
#[test]
fn the_default_that_a_limit_is_now_is_not_what_it_was() {
    for (limit, then) in [(3, false), (511, true)] {
        let mut play = Play::new(Fentry, limit);
        play.fill(SECOND);
        play.event(SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, 1, limit + 1);
        let snapshot = Snapshot {
            netns: NETNS,
            listener: play.listener(),
            accept_queue: Some(Gauge {
                depth: Some(0),
                limit: Some(511),
                limit_from: Some("backlog".to_owned()),
                ..Gauge::default()
            }),
            default_of: Some("Redis".to_owned()),
            ..Snapshot::default()
        };
        play.case.listener(&snapshot).unwrap();
        let diagnosis = play.diagnosis(10 * SECOND);
        let mut settings = diagnosis.findings.iter();
        let setting = settings.find(|one| one.rule == "backlog-clamped-or-default");
        assert_eq!(setting.is_some(), then, "{diagnosis:#?}");
    }
}

/// The limit was raised since, and holds the burst: it is not to be raised again.
#[test]
fn a_limit_that_is_enough_now_is_left() {
    for (later, command) in [
        (64, "leave the backlog at 64"),
        (12, "set the application's backlog to 32, then restart it"),
        (8, "set the application's backlog to 32, then restart it"),
    ] {
        let mut play = Play::new(Fentry, 8);
        play.burst(SECOND, 20);
        play.limit = later;
        play.served(4 * SECOND, 1);
        let diagnosis = play.diagnosis(10 * SECOND);
        let finding = only(&diagnosis, "backlog-too-small-for-bursts");
        let commands: Vec<_> = finding.remedies.iter().map(|one| &one.command).collect();
        assert_eq!(commands, [command]);
    }
}

/// A listener that is gone keeps the owner that it had; its queues are unknown, not 0.
#[test]
fn a_closed_listener_keeps_its_owner_and_its_limit() {
    let mut play = Play::new(Fentry, 10);
    let alive = Snapshot {
        netns: NETNS,
        listener: play.listener(),
        processes: Some(vec![Process {
            pid: 42,
            comm: "crashy".to_owned(),
        }]),
        unit: Some("crashy.service".to_owned()),
        accept_queue: Some(Gauge {
            depth: Some(0),
            limit: Some(10),
            ..Gauge::default()
        }),
        ..Snapshot::default()
    };
    play.case.listener(&alive).unwrap();
    play.fill(0);
    play.event(SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, 1, 11);
    play.event(4 * SECOND, QUEUE_DISCARDED, 1, 11);
    let closed = Snapshot {
        netns: NETNS,
        listener: play.listener(),
        accept_queue: Some(Gauge {
            depth: Some(0),
            limit: Some(0),
            ..Gauge::default()
        }),
        closed: Some(true),
        ..Snapshot::default()
    };
    play.case.listener(&closed).unwrap();
    let diagnosis = play.diagnosis(10 * SECOND);
    for finding in &diagnosis.findings {
        assert_eq!(finding.owner.as_deref(), Some("crashy[42] crashy.service"));
        // With the listener its trouble ended.
        assert!(!finding.ongoing, "{finding:#?}");
    }
    let rule = |name| {
        diagnosis
            .findings
            .iter()
            .find(|one| one.rule == name)
            .unwrap()
    };
    let reset = rule("listener-closed-on-clients");
    assert!(
        has(reset, "11 deep at most, its limit was 10"),
        "{reset:#?}"
    );
    assert!(has(
        rule("accept-queue-full"),
        "its limit was 10 when it refused"
    ));
}

/// Packets are not clients: ten connections, each refused several times, all served in the end.
#[test]
fn packets_and_clients_are_counted_apart() {
    let mut play = Play::new(Fentry, 1);
    play.fill(0);
    for (round, second) in [0, 1, 3, 7].into_iter().enumerate() {
        for client in round as u32 * 2..10 {
            play.event(second * SECOND, ACK_DROPPED_ACCEPT_QUEUE_FULL, client, 2);
        }
        for client in 0..2 {
            play.event(second * SECOND + 900, ACCEPTED, 0, 1);
            play.event(
                second * SECOND + 901,
                ESTABLISHED_HANDSHAKE,
                round as u32 * 2 + client,
                2,
            );
        }
    }
    for client in 8..10 {
        play.event(10 * SECOND, ACCEPTED, 0, 1);
        play.event(10 * SECOND + 1, ESTABLISHED_HANDSHAKE, client, 2);
    }
    let diagnosis = play.diagnosis(20 * SECOND);
    let says = text(&diagnosis, &play.case);
    assert!(
        says.contains("28 packets of 10 connections from 1 client address"),
        "{says}"
    );
    assert!(
        says.contains("28 final ACKs were dropped of clients that believe they are connected"),
        "{says}"
    );
    assert!(
        says.contains("10 connections refused at first got in later"),
        "{says}"
    );
}

/// The clock is set forward by an hour in the middle of an outage, and one line has a time of year 1.
#[test]
fn a_step_of_the_clock_makes_no_outage_longer() {
    for attached in [Fentry, Tracepoint] {
        let mut play = Play::new(attached, 8);
        play.fill(0);
        for second in 0..16 {
            if second == 8 {
                play.wall_ahead_ns = 3600 * 1_000_000_000;
            }
            play.event(second * SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, 1, 9);
            let counts = Counts {
                time: rfc3339(START + i128::from(second) * 1_000_000_000 + play.wall_ahead_ns),
                mono_ns: None,
                netns: NETNS,
                listener: play.listener(),
                outcomes: BTreeMap::from([("syn_dropped:accept_queue_full".to_owned(), 1)]),
            };
            play.case.counts(&counts).unwrap();
        }
        let nonsense = Counts {
            time: "0001-01-01T00:00:00Z".to_owned(),
            mono_ns: None,
            netns: NETNS,
            listener: play.listener(),
            outcomes: BTreeMap::new(),
        };
        play.case.counts(&nonsense).unwrap();
        let diagnosis = play.diagnosis(16 * SECOND);
        let finding = only(&diagnosis, "accept-stopped");
        assert!(finding.what.contains("for 15.0 s"), "{}", finding.what);
        assert_eq!(finding.count, 16);
        assert!(
            (15.0..20.0).contains(&diagnosis.seconds),
            "{}",
            diagnosis.seconds
        );
        let doubts = diagnosis.doubts.join("\n");
        assert!(doubts.contains("set forward by 3600 s"), "{doubts}");
        assert!(
            doubts.contains("1 lines have a time that cannot be"),
            "{doubts}"
        );
    }
}

#[test]
fn two_hosts_are_two_diagnoses() {
    let mut play = Play::new(Fentry, 8);
    // The next file of the same recording.
    let same = play.header("host");
    play.case.header(&same).unwrap();
    let other = play.header("other");
    let error = play.case.header(&other).unwrap_err().to_string();
    assert!(
        error.contains("one at a time") && error.contains("other"),
        "{error}"
    );
}

#[test]
fn too_short_to_tell() {
    let mut play = Play::new(Fentry, 8);
    play.healthy(0, SECOND / 2);
    let diagnosis = play.diagnosis(SECOND / 2);
    assert_eq!(diagnosis.verdict, Conclusion::CouldNotTell);
    let says = text(&diagnosis, &play.case);
    assert!(says.contains("too short to tell"), "{says}");
    let mut play = Play::new(Fentry, 8);
    play.healthy(0, 4 * SECOND);
    assert_eq!(play.diagnosis(4 * SECOND).verdict, Conclusion::NothingFound);
}

/// Without all outcomes there is no all-clear.
#[test]
fn a_rule_that_could_not_be_judged_forbids_the_all_clear() {
    let mut play = Play::new(Tracepoint, 8);
    play.healthy(0, 10 * SECOND);
    let diagnosis = play.diagnosis(10 * SECOND);
    assert_eq!(diagnosis.verdict, Conclusion::CouldNotTell);
    let rules: Vec<_> = diagnosis.not_judged.iter().map(|not| not.rule).collect();
    assert_eq!(rules, ["listener-closed-on-clients"]);
}

/// Where there is no room for all listeners, those in trouble are kept.
#[test]
fn those_in_trouble_are_kept_among_thousands() {
    let mut play = Play::new(Fentry, 8);
    for number in 0..6000u16 {
        play.port = 1000 + number;
        play.served(u64::from(number), 1);
    }
    play.port = 80;
    for packet in 0..92 {
        play.event(7 * SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, packet, 9);
    }
    for number in 6000..9000u16 {
        play.port = 1000 + number;
        play.served(8 * SECOND, 1);
    }
    let total = Total {
        netns: NETNS,
        listener: Listener {
            port: 60_000,
            ..play.listener()
        },
        outcome: Outcome::of(QUEUED).unwrap(),
        count: 1,
    };
    play.case.summary(&[total]).unwrap();
    assert!(play.case.listeners.len() <= 1280);
    let diagnosis = play.diagnosis(10 * SECOND);
    let finding = only(&diagnosis, "accept-queue-full");
    assert_eq!(finding.count, 92);
    assert!(diagnosis.doubts.is_empty(), "{:?}", diagnosis.doubts);
}

/// Where even those in trouble are too many, those in most trouble are kept.
#[test]
fn those_in_most_trouble_are_kept_among_thousands() {
    let mut play = Play::new(Fentry, 8);
    let some_cookies = |play: &mut Play, from: u16, at: u64| {
        for number in from..from + 3000 {
            play.port = 1000 + number;
            for packet in 0..3 {
                play.event(at, COOKIE_SENT_FULL, packet, 9);
            }
        }
    };
    some_cookies(&mut play, 0, SECOND);
    play.port = 80;
    for packet in 0..92 {
        play.event(7 * SECOND, SYN_DROPPED_ACCEPT_QUEUE_FULL, packet, 9);
    }
    some_cookies(&mut play, 3000, 8 * SECOND);
    assert!(play.case.listeners.len() <= 1280);
    let diagnosis = play.diagnosis(10 * SECOND);
    let mut findings = diagnosis.findings.iter();
    let finding = findings.find(|finding| finding.rule == "accept-queue-full");
    assert_eq!(finding.map(|finding| finding.count), Some(92));
    let left_out = diagnosis.doubts.iter().any(|doubt| {
        let count = doubt
            .split_whitespace()
            .next()
            .and_then(|word| word.parse().ok());
        doubt.contains("in less trouble") && count.is_some_and(|count: usize| count >= 6000 - 1280)
    });
    assert!(left_out, "{:?}", diagnosis.doubts);
}

/// Many bursts in a day: how often, and the worst.
#[test]
fn how_often_and_how_bad_the_worst_was() {
    let mut play = Play::new(Fentry, 8);
    for hour in 0..20 {
        play.burst(hour * HOUR, 15 + 10 * u32::from(hour == 7));
    }
    let diagnosis = play.diagnosis(20 * HOUR);
    let finding = only(&diagnosis, "backlog-too-small-for-bursts");
    assert_eq!((finding.times, finding.count), (20, 19 * 6 + 16));
    let when = finding.when.as_deref().unwrap();
    assert!(
        when.starts_with("20 times") && when.contains("16 packets"),
        "{when}"
    );
    assert!(
        finding.what.contains("needed a backlog of 24"),
        "{}",
        finding.what
    );
}

/// SYN-ACKs that are lost show in the queue's age where timers are not seen.
#[test]
fn lost_answers_are_seen_without_timers() {
    only(&unanswered(), "syn-acks-unanswered");
}

/// Where a listener waits for data (TCP_DEFER_ACCEPT), the answers came.
#[test]
fn deferred_answers_are_not_lost() {
    for told in [true, false] {
        assert_eq!(put_off(6, told).findings.len(), 0);
        only(&put_off(1, told), "syn-acks-unanswered");
    }
}

/// Those of another listener of the namespace excuse nothing, where verdicts tell them apart.
#[test]
fn answers_that_another_listener_put_off() {
    let mut play = waiting();
    let own = play.listener();
    play.inode += 1;
    play.port += 1;
    for client in 0..6 {
        play.event_with(SECOND, ACK_DEFERRED, client, 0, client + 1);
    }
    (play.port, play.inode) = (own.port, own.inode.unwrap());
    only(&play.diagnosis(6 * SECOND), "syn-acks-unanswered");
}

/// Of six requests nothing is known but that they wait.
fn unanswered() -> Diagnosis {
    waiting().diagnosis(6 * SECOND)
}

/// So many of them had sent an ACK without data, of which verdicts or only the kernel's counter tell.
fn put_off(deferred: u32, told: bool) -> Diagnosis {
    let mut play = waiting();
    play.deferred = Some(deferred.into());
    if told {
        for client in 0..deferred {
            play.event_with(SECOND, ACK_DEFERRED, client, 0, client + 1);
        }
    } else {
        play.case.told &= !(1 << ACK_DEFERRED);
    }
    play.diagnosis(6 * SECOND)
}

/// Six requests that have been waiting for long.
fn waiting() -> Play {
    let mut play = Play::new(Tracepoint, 64);
    for client in 0..6 {
        play.event_with(SECOND, QUEUED, client, 0, client + 1);
    }
    let old = Snapshot {
        netns: NETNS,
        listener: play.listener(),
        syn_queue: Some(Gauge {
            depth: Some(6),
            young: Some(0),
            ..Gauge::default()
        }),
        ..Snapshot::default()
    };
    play.case.listener(&old).unwrap();
    play
}

/// A flood without cookies in its own time.
#[test]
fn a_flood_without_cookies() {
    let mut play = Play::new(Fentry, 16);
    play.sysctls.tcp_syncookies = 0;
    play.healthy(0, 600 * SECOND);
    for syn in 0..500u32 {
        play.event_with(
            600 * SECOND + u64::from(syn),
            SYN_DROPPED_SYN_QUEUE_FULL,
            syn % 3,
            0,
            17,
        );
    }
    let diagnosis = play.diagnosis(620 * SECOND);
    let rules: Vec<_> = diagnosis.findings.iter().map(|one| one.rule).collect();
    assert_eq!(
        rules,
        ["syn-flood-few-networks", "syncookies-off"],
        "{diagnosis:#?}"
    );
}

/// Of what was rate-limited in a second in which no SYN was told the network is unknown: that makes
/// no flood one from many networks.
#[test]
fn a_flood_that_was_mostly_rate_limited() {
    let mut play = Play::new(Fentry, 16);
    for syn in 0..200u32 {
        let ms = SECOND + u64::from(syn);
        play.event_with(ms, SYN_DROPPED_SYN_QUEUE_FULL, syn % 50, 0, 17);
    }
    for (second, count) in [(2, 200), (3, 400)] {
        if second == 3 {
            play.withheld(3 * SECOND - 100, SYN_DROPPED_SYN_QUEUE_FULL, 400);
        }
        let counts = Counts {
            time: rfc3339(START + second * 1_000_000_000),
            mono_ns: None,
            netns: NETNS,
            listener: play.listener(),
            outcomes: BTreeMap::from([("syn_dropped:syn_queue_full".to_owned(), count)]),
        };
        play.case.counts(&counts).unwrap();
    }
    let diagnosis = play.diagnosis(20 * SECOND);
    let finding = only(&diagnosis, "syn-flood-few-networks");
    assert_eq!(finding.count, 600);
    assert!(
        has(
            finding,
            "of 600 SYNs: 203.0.0.0/24 200, 400 from unknown networks; 1 network in all"
        ),
        "{finding:#?}"
    );
}

/// What one look of nine found is evidence, and what most found is the cause.
#[test]
fn a_cause_is_what_many_looks_found() {
    for (found, cause) in [(1, None), (8, Some("lock"))] {
        let mut play = Play::new(Fentry, 8);
        play.healthy(0, 60 * SECOND);
        for second in 60..69u64 {
            for client in 0..5 {
                let ms = second * SECOND + u64::from(client);
                play.event(ms, SYN_DROPPED_ACCEPT_QUEUE_FULL, client, 9);
            }
            let snapshot = if second < 60 + found {
                play.stall(second * SECOND, "S", Some("flock"))
            } else {
                play.stall(second * SECOND, "R", None)
            };
            play.case.listener(&snapshot).unwrap();
        }
        let diagnosis = play.diagnosis(70 * SECOND);
        let finding = only(&diagnosis, "accept-stopped");
        assert_eq!(finding.cause, cause, "{finding:#?}");
        assert_eq!(finding.what.contains("Why: "), cause.is_some());
        let says = format!("so found {found} of 9 looks");
        assert!(has(finding, &says), "{finding:#?}");
    }
}

/// Two seconds in which nothing is taken look like a burst, unless a look at the owner in them found
/// what kept it from accepting.
#[test]
fn a_short_stop_is_one_only_if_it_was_seen() {
    // When it was looked at, in which state its thread was, in which call, and what is found then.
    type ShortStop<'a> = (Option<u64>, &'a str, Option<&'a str>, &'a str);
    let burst = "backlog-too-small-for-bursts";
    let cases: [ShortStop<'_>; 5] = [
        (Some(11 * SECOND), "T", None, "accept-stopped"),
        (None, "T", None, burst),
        // Before, and after.
        (Some(4 * SECOND), "T", None, burst),
        (Some(13 * SECOND), "T", None, burst),
        // This thread waits for a lock; others may have accepted.
        (Some(11 * SECOND), "S", Some("flock"), burst),
    ];
    for attached in [Fentry, Tracepoint] {
        for (look, state, call, rule) in cases {
            let mut play = Play::new(attached, 8);
            play.healthy(0, 10 * SECOND);
            play.fill(10 * SECOND);
            let stall = play.stall(look.unwrap_or_default(), state, call);
            if look.is_some_and(|at| at < 10 * SECOND) {
                play.case.listener(&stall).unwrap();
            }
            for client in 0..190u32 {
                let ms = 10 * SECOND + 10 + u64::from(client) * 10;
                if look == Some(ms - 10) {
                    play.case.listener(&stall).unwrap();
                }
                play.event(ms, SYN_DROPPED_ACCEPT_QUEUE_FULL, client, 9);
            }
            for left in (0..9).rev() {
                play.event(12 * SECOND, ACCEPTED, 0, left);
            }
            if look.is_some_and(|at| at > 12 * SECOND) {
                play.case.listener(&stall).unwrap();
            }
            play.healthy(12 * SECOND + 100, 30 * SECOND);
            let diagnosis = play.diagnosis(30 * SECOND);
            let finding = only(&diagnosis, rule);
            if rule == "accept-stopped" {
                assert_eq!(finding.cause, Some("stopped"), "{finding:#?}");
                let lasted = ["for 1.9 s", "for 2.0 s"];
                assert!(
                    lasted.iter().any(|one| finding.what.contains(one)),
                    "{}",
                    finding.what
                );
            }
        }
    }
}

/// An hour apart two stops of two seconds were seen, and a burst of one between them was not: the
/// looks before and after say nothing of it.
#[test]
fn a_burst_between_two_stops_is_none() {
    let mut play = Play::new(Fentry, 8);
    for (at, seen) in [(0, true), (1800 * SECOND, false), (HOUR, true)] {
        play.fill(at);
        let stall = play.stall(at + SECOND, "T", None);
        for client in 0..190u32 {
            let ms = at + 10 + u64::from(client) * 10;
            if seen && ms == at + SECOND {
                play.case.listener(&stall).unwrap();
            }
            play.event(ms, SYN_DROPPED_ACCEPT_QUEUE_FULL, client, 9);
        }
        for left in (0..9).rev() {
            play.event(at + 2 * SECOND, ACCEPTED, 0, left);
        }
        play.healthy(at + 2 * SECOND + 100, at + 30 * SECOND);
    }
    let diagnosis = play.diagnosis(HOUR + 30 * SECOND);
    let times = |rule: &str| {
        let mut findings = diagnosis.findings.iter();
        findings
            .find(|finding| finding.rule == rule)
            .map(|finding| finding.times)
    };
    assert_eq!(times("accept-stopped"), Some(2), "{diagnosis:#?}");
    assert_eq!(times("backlog-too-small-for-bursts"), Some(1));
}

/// What is printed for nft is what nft takes; `setup` installs it.
#[test]
fn nft_takes_what_is_printed() {
    let networks = [
        "198.18.1.0/24",
        "2001:db8::/64",
        "198.18.0.0/16",
        "0.0.0.0/8",
    ]
    .map(|network| network.parse().unwrap());
    for printed in [
        nft_drop(8080, &networks),
        nft_drop(80, &networks[..1]),
        nft_drop(80, &networks[1..2]),
        nft_synproxy(443),
    ] {
        // As a shell would.
        let commands = printed
            .strip_prefix("nft '")
            .and_then(|rest| rest.strip_suffix('\''))
            .unwrap();
        assert!(!commands.contains('\''));
        let mut nft = Command::new("unshare");
        if !rustix::process::geteuid().is_root() {
            nft.arg("--map-root-user");
        }
        let output = nft
            .args(["--net", "nft", "--check", commands])
            .output()
            .unwrap();
        assert!(output.status.success(), "{printed}: {output:?}");
    }
}

/// A restart: the time without a listener is between the two listeners, not between the SYNs.
#[test]
fn a_restart_leaves_a_gap() {
    for attached in [Fentry, Tracepoint] {
        let mut play = Play::new(attached, 8);
        play.port = 8080;
        play.listens(12, None, Some(10 * SECOND));
        for number in 0..341 {
            play.nobody(10 * SECOND + 100 + u64::from(number), number % 120);
        }
        play.listens(34, Some(11 * SECOND + 400), None);
        let diagnosis = play.diagnosis(60 * SECOND);
        let finding = only(&diagnosis, "restart-gap");
        assert_eq!(
            finding.what,
            "Nobody listened on :8080 for 1.4 s, from the end of nginx[12] to the start of nginx[34]; \
             341 SYNs of 120 clients were refused."
        );
        assert_eq!(
            (finding.count, finding.times, finding.ongoing),
            (341, 1, false)
        );
        assert_eq!(finding.harm, Harm::Refusing);
        assert_eq!(finding.listener, "192.0.2.1:8080");
        assert_eq!(finding.owner.as_deref(), Some("nginx[12]"));
    }
}

/// The gap is that of the listener to whose address the SYNs were sent.
#[test]
fn a_restart_at_another_address_is_another_gap() {
    let mut play = Play::new(Fentry, 8);
    play.listens(1, None, Some(10 * SECOND));
    play.listens(2, Some(12 * SECOND), None);
    play.addr = IpAddr::from([192, 0, 2, 7]);
    play.listens(3, None, Some(10 * SECOND + 50));
    play.nobody(11 * SECOND, 1);
    play.listens(4, Some(13 * SECOND), None);
    let diagnosis = play.diagnosis(60 * SECOND);
    let finding = only(&diagnosis, "restart-gap");
    assert!(
        finding.what.contains("nginx[3] to the start of nginx[4]"),
        "{}",
        finding.what
    );

    let mut play = Play::new(Fentry, 8);
    play.listens(1, None, Some(10 * SECOND));
    play.listens(2, Some(12 * SECOND), None);
    play.addr = IpAddr::from([192, 0, 2, 7]);
    play.nobody(11 * SECOND, 1);
    assert_eq!(play.diagnosis(60 * SECOND).findings.len(), 0);
}

/// Two restarts within a few seconds are one episode. The time in which somebody listened in between
/// is no part of the gap.
#[test]
fn restarts_that_follow_each_other_closely() {
    let mut play = Play::new(Fentry, 8);
    play.listens(1, None, Some(SECOND));
    play.nobody(SECOND + 1, 1);
    play.listens(2, Some(2 * SECOND), Some(4 * SECOND));
    play.nobody(4 * SECOND + 1, 2);
    play.listens(3, Some(4 * SECOND + 500), None);
    let diagnosis = play.diagnosis(60 * SECOND);
    let finding = only(&diagnosis, "restart-gap");
    assert!(
        finding.what.contains(
            "for 1.5 s, from the end of nginx[1] to the start of nginx[3]; 2 SYNs of 2 clients"
        ),
        "{}",
        finding.what
    );
}

/// Apart from each other they are two; the worse is told first.
#[test]
fn restarts_that_are_far_apart() {
    let mut play = Play::new(Fentry, 8);
    play.listens(1, None, Some(SECOND));
    play.nobody(SECOND + 1, 1);
    play.listens(2, Some(2 * SECOND), None);
    play.listens(2, Some(2 * SECOND), Some(100 * SECOND));
    for number in 0..3 {
        play.nobody(100 * SECOND + 1, number);
    }
    play.listens(3, Some(103 * SECOND), None);
    let diagnosis = play.diagnosis(200 * SECOND);
    let finding = only(&diagnosis, "restart-gap");
    assert_eq!((finding.count, finding.times), (4, 2));
    assert!(finding.what.contains("for 3.0 s, from the end of nginx[2]"));
    assert!(
        has(
            finding,
            "for 1.0 s, from the end of nginx[1] to the start of nginx[2]; 1 SYN of 1 client"
        ),
        "{finding:#?}"
    );
}

/// A service that does not come back is an outage.
#[test]
fn a_service_that_ended_for_good() {
    let mut play = Play::new(Fentry, 8);
    play.listens(12, None, Some(SECOND));
    for second in 1..9 {
        play.nobody(second * SECOND + 500, 1);
    }
    let diagnosis = play.diagnosis(11 * SECOND);
    let finding = only(&diagnosis, "restart-gap");
    assert_eq!(finding.harm, Harm::Outage);
    assert!(
        finding.what.contains(
            "for 10.0 s at least, from the end of nginx[12] until the observation ended; 8 SYNs of 1 client"
        ),
        "{}",
        finding.what
    );
}

/// On a port on which nobody listened before or after, it is what always happens on the Internet.
#[test]
fn a_scan_is_no_gap() {
    let mut play = Play::new(Fentry, 8);
    play.healthy(0, 10 * SECOND);
    for port in 1000..1100 {
        play.port = port;
        play.nobody(5 * SECOND, 1);
    }
    let diagnosis = play.diagnosis(10 * SECOND);
    assert_eq!(
        diagnosis.verdict,
        Conclusion::NothingFound,
        "{diagnosis:#?}"
    );
}

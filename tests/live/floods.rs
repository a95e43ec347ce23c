//! SYN floods under each setting of `tcp_syncookies`.

use std::thread;

use live_tests::{Launch, Room, Shown, expected};
use queue_trace::lab::{Family, raw::Flood};
use queue_trace_common::outcome;

const COOKIES: &str = "net.ipv4.tcp_syncookies";
/// Large enough that its last quarter is never touched.
const MAX_SYN_BACKLOG: (&str, u32) = ("net.ipv4.tcp_max_syn_backlog", 4096);
const SYNS: u32 = 300;

#[test]
fn without_cookies_a_full_syn_queue_drops_syns() {
    flood(0, |half_open| {
        vec![
            (outcome::QUEUED, half_open),
            (
                outcome::SYN_DROPPED_SYN_QUEUE_FULL,
                u64::from(SYNS) - half_open,
            ),
        ]
    });
}

#[test]
fn with_cookies_a_full_syn_queue_sends_cookies() {
    flood(1, |half_open| {
        vec![
            (outcome::QUEUED, half_open),
            (outcome::COOKIE_SENT_FULL, u64::from(SYNS) - half_open),
        ]
    });
}

#[test]
fn cookies_always_means_always() {
    flood(2, |half_open| {
        assert_eq!(half_open, 0);
        vec![(outcome::COOKIE_SENT_ALWAYS, SYNS.into())]
    });
}

/// Floods a listener of each family, and expects what follows from the number of
/// requests that are half-open after it. How many fit depends on the kernel: as many
/// as the backlog, or one more.
fn flood(cookies: u32, outcomes: impl Fn(u64) -> Vec<(u8, u64)>) {
    let rooms = Room::of_each_family(16, &[(COOKIES, cookies), MAX_SYN_BACKLOG]);
    let tracer = Launch::showing(Shown::All).on_all(&rooms).start();
    let half_open = rooms.each_ref().map(|room| room.flood(SYNS));
    let recording = tracer.stop();
    for (room, half_open) in rooms.iter().zip(half_open) {
        let sums = expected(&outcomes(half_open), Shown::All);
        recording.assert_exact(&room.netns, &room.before, &sums);
    }
}

/// Every CPU refuses SYNs of the same listener at the same time.
#[test]
fn from_every_cpu_at_once() {
    for family in Family::ALL {
        let room = Room::new(family, 16, &[(COOKIES, 0), MAX_SYN_BACKLOG]);
        let tracer = Launch::showing(Shown::All).on(&room.netns).start();
        let threads = thread::available_parallelism().unwrap().get() as u32;
        let syns = 1000 * threads;
        let half_open = room.flood_as(&Flood {
            threads,
            ..Flood::of(syns)
        });
        let outcomes = [
            (outcome::QUEUED, half_open),
            (
                outcome::SYN_DROPPED_SYN_QUEUE_FULL,
                u64::from(syns) - half_open,
            ),
        ];
        let sums = expected(&outcomes, Shown::All);
        tracer.stop().assert_exact(&room.netns, &room.before, &sums);
    }
}

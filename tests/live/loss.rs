//! More records than anybody wants, or than the reader takes: what is not told one by
//! one is told as counts, and said to be lost where it was; no count is wrong.

use live_tests::{Launch, Room, Shown, Tracer, expected};
use queue_trace::lab::Family;
use queue_trace_common::outcome;
use rustix::process::Signal;

/// More than the ring holds: 4 MiB of records of some 140 bytes.
const SYNS: u32 = 45_000;

/// Beyond `--rate` records are held back, and come as counts: nothing is lost.
#[test]
fn beyond_the_rate() {
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let launch = Launch::text().args(["--json", "--rate", "50"]);
    let tracer = launch.on(&room.netns).start();
    room.flood(3000);
    let recording = tracer.stop();
    let sums = expected(&[(outcome::COOKIE_SENT_ALWAYS, 3000)], Shown::Refusals);
    recording.assert_exact(&room.netns, &room.before, &sums);
    let (told, held): (Vec<_>, Vec<_>) = recording.events().partition(|e| e.client.is_some());
    // A second's worth may come at once, less what the self-test right before it used up.
    assert!(
        told.len() >= 25 && !held.is_empty(),
        "{}, {held:?}",
        told.len()
    );
    assert!(
        held.iter().all(|event| event.listener.port == 8080),
        "{held:?}"
    );
}

#[test]
fn while_the_tracer_stands_still() {
    let room = Room::new(Family::V4, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let tracer = Launch::live().on(&room.netns).start();
    tracer.signal(Signal::STOP);
    room.flood(SYNS);
    tracer.signal(Signal::CONT);
    assert_counted(tracer, &room);
}

#[test]
fn while_nobody_reads_what_it_prints() {
    let room = Room::new(Family::V6, 16, &[("net.ipv4.tcp_syncookies", 2)]);
    let mut tracer = Launch::live().on(&room.netns).unread().start();
    room.flood(SYNS);
    tracer.read_after_all();
    assert_counted(tracer, &room);
}

/// Every SYN is in the totals and in the ledger. It was told by itself, or it is among
/// the records lost and was told as part of a count.
fn assert_counted(tracer: Tracer, room: &Room) {
    let recording = tracer.stop();
    let sums = expected(
        &[(outcome::COOKIE_SENT_ALWAYS, SYNS.into())],
        Shown::Refusals,
    );
    assert_eq!(recording.counted(&room.netns), sums);
    assert_eq!(recording.verdicts(&room.netns), sums);
    recording.assert_ledger(&room.netns, &room.before);

    let lost = recording.lost();
    let records = lost.get("records").copied().unwrap_or_default();
    assert!(
        records > 0,
        "nothing was lost: the ring holds more than {SYNS} records"
    );
    assert_eq!(
        lost.len(),
        1,
        "records were lost, and something else: {lost:?}"
    );
    assert_eq!(recording.ledger(&room.netns).lost, records);
    let by_itself = recording
        .events()
        .filter(|event| event.client.is_some())
        .count() as u64;
    assert_eq!(by_itself + records, u64::from(SYNS));
}

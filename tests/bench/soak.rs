//! A long flood: whether memory grows, and whether the counts are exact after it.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use live_tests::Room;
use queue_trace::lab::{
    Family,
    raw::{Flood, flood},
};

use crate::contender::Contender;

/// SYNs between two looks at the clock.
const BATCH: u32 = 10_000;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_secs(10);

/// Floods for so long, and prints the resident memory meanwhile.
pub fn run(program: &Path, attach: &str, long: Duration) {
    let contender = Contender::soaked(program, attach);
    let running = contender.start().unwrap();
    let sysctls = [("net.ipv4.tcp_syncookies", 0)];
    let room = Room::new(Family::V4, 4, &sysctls);
    let _clients = room.connect(5);
    let began = Instant::now();
    let (mut sent, mut next_look) = (0u64, LOOK);
    let mut resident = vec![running.resident()];
    while began.elapsed() < long {
        room.netns
            .run(|| {
                flood(room.address, &Flood::hasty(BATCH))?;
                Ok(())
            })
            .unwrap();
        sent += u64::from(BATCH);
        if began.elapsed() > next_look {
            next_look += LOOK;
            resident.push(running.resident());
        }
    }
    let after = live_tests::Counters::of(&room.netns);
    println!(
        "{sent} SYNs in {:.0} s; dropped by the kernel's count {}",
        began.elapsed().as_secs_f64(),
        after.since(&room.before, "ListenDrops")
    );
    let (first, last) = (resident[0], resident[resident.len() - 1]);
    println!(
        "resident: {first} KiB at rest, {} after {} s, at most {}, {last} at the end",
        resident.get(1).copied().unwrap_or(last),
        LOOK.as_secs(),
        resident.iter().max().unwrap(),
    );
    println!("each {} s: {resident:?}", LOOK.as_secs());
    running.stop();
}

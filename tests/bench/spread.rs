//! What a SYN takes, by how many CPUs send and how many clients there are. Fails if memory grows
//! with the clients.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use live_tests::Room;
use queue_trace::lab::{
    Family,
    raw::{Flood, HOSTS, flood},
};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::{
    contender::{Contender, Running},
    cpu,
};

/// As many CPUs at most.
const MOST_CPUS: usize = 4;
/// SYNs from each CPU.
const SYNS: u32 = 200_000;
/// Networks of each row; with the hosts in each they are 1,012 addresses to a million.
const NETWORKS: [u32; 4] = [4, 40, 400, 4096];
/// What memory may grow by from the fewest clients to the most, KiB.
const ROOM_KIB: u64 = 4096;

/// Prints two tables.
pub fn run(program: &Path, attach: &str) {
    println!(
        "| CPUs that send | SYNs/s, nothing attached | queue-trace | of nothing attached | CPU a SYN, nothing attached, ns | more |"
    );
    println!("|---:|---:|---:|---:|---:|---:|");
    let cpus = sched_getaffinity(None).unwrap();
    let cpus: Vec<_> = (0..CpuSet::MAX_CPU)
        .filter(|cpu| cpus.is_set(*cpu))
        .collect();
    for count in 1..=cpus.len().min(MOST_CPUS) {
        let flood = Flood {
            threads: count as u32,
            ..Flood::hasty(SYNS * count as u32)
        };
        let [nothing, ours] = [None, Some("queue-trace")].map(|name| {
            let running = start(program, attach, name);
            let took = send(Family::V4, &flood, &cpus[..count], &running);
            running.stop();
            took
        });
        println!(
            "| {count} | {:.0} | {:.0} | {:.3} | {:.0} | {:.0} |",
            nothing.rate,
            ours.rate,
            ours.rate / nothing.rate,
            nothing.cpu,
            ours.cpu - nothing.cpu
        );
    }

    println!(
        "\n| addresses of clients | CPU a SYN, nothing attached, ns | more | resident after it, KiB | with a line for each, KiB |"
    );
    println!("|---:|---:|---:|---:|---:|");
    let mut resident = Vec::new();
    for networks in NETWORKS {
        let flood = Flood {
            networks,
            // From the most networks one of each address.
            ..Flood::hasty(HOSTS * NETWORKS[NETWORKS.len() - 1])
        };
        let [nothing, ours, lines] =
            [None, Some("queue-trace"), Some("queue-trace --rate 0")].map(|name| {
                let running = start(program, attach, name);
                let took = send(Family::V6, &flood, &cpus[..1], &running);
                running.stop();
                took
            });
        println!(
            "| {} | {:.0} | {:.0} | {} | {} |",
            networks * HOSTS,
            nothing.cpu,
            ours.cpu - nothing.cpu,
            ours.resident,
            lines.resident
        );
        resident.push([ours.resident, lines.resident]);
    }
    for (fewest, most) in resident[0].iter().zip(resident[resident.len() - 1]) {
        assert!(
            most <= fewest + ROOM_KIB,
            "memory grows with the clients: {resident:?} KiB"
        );
    }
}

/// What a flood took.
struct Took {
    /// SYNs a second.
    rate: f64,
    /// CPU time of sender and tracer for each, in nanoseconds.
    cpu: f64,
    /// The tracer's memory after it, KiB.
    resident: u64,
}

fn start(program: &Path, attach: &str, name: Option<&str>) -> Running {
    let Some(name) = name else {
        return Running::nothing();
    };
    let mut all = Contender::all(program, attach, None).into_iter();
    let contender = all.find(|contender| contender.name == name).unwrap();
    contender.start().unwrap()
}

/// Floods a full accept queue from these CPUs.
fn send(family: Family, what: &Flood, cpus: &[usize], running: &Running) -> Took {
    let room = Room::new(family, 4, &[("net.ipv4.tcp_syncookies", 0)]);
    let _clients = room.connect(5);
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu);
    }
    let (before, began) = (cpu::own() + running.cpu(), Instant::now());
    room.netns
        .run(|| {
            // Of this thread and of those that it starts.
            sched_setaffinity(None, &set)?;
            flood(room.address, what)
        })
        .unwrap();
    let elapsed = began.elapsed();
    let taken: Duration = cpu::own() + running.cpu() - before;
    let each = f64::from(what.count);
    Took {
        rate: each / elapsed.as_secs_f64(),
        cpu: taken.as_nanos() as f64 / each,
        resident: if running.is_something() {
            running.resident()
        } else {
            0
        },
    }
}

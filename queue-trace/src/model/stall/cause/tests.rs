//! Each cause on its evidence, and on that of its nearest neighbours, where it must not be found.

use super::*;
use crate::model::{
    snapshot::{Descriptors, Gauge},
    socket::{Listener, Process},
    stall::{Epoll, Files, Memory, Pressure, Quota},
};

const SECOND: u64 = 1_000_000;

fn doing(state: &str, call: Option<&str>) -> Doing {
    Doing {
        count: 1,
        pid: 42,
        tid: 42,
        comm: "server".to_owned(),
        main: true,
        state: state.to_owned(),
        call: call.map(str::to_owned),
        run_us: Some(0),
        delay_us: Some(0),
        ..Doing::default()
    }
}

fn other(count: u32, call: &str, role: Option<Role>) -> Doing {
    Doing {
        count,
        tid: 43,
        main: false,
        role,
        ..doing("S", Some(call))
    }
}

fn spent(run_us: u64, delay_us: u64) -> Doing {
    Doing {
        run_us: Some(run_us),
        delay_us: Some(delay_us),
        ..doing("R", None)
    }
}

fn of(doing: Vec<Doing>) -> Snapshot {
    let threads = doing.iter().map(|one| one.count).sum();
    let stall = Stall {
        over_us: Some(SECOND),
        holders: 1,
        looked: 1,
        threads,
        threads_looked: threads,
        epoll: Some(Epoll::default()),
        doing,
        ..Stall::default()
    };
    Snapshot {
        processes: Some(vec![Process {
            pid: 42,
            comm: "server".to_owned(),
        }]),
        accept_queue: Some(Gauge {
            depth: Some(9),
            limit: Some(8),
            ..Gauge::default()
        }),
        stall: Some(Box::new(stall)),
        ..Snapshot::default()
    }
}

fn with(mut snapshot: Snapshot, change: impl FnOnce(&mut Stall)) -> Snapshot {
    change(snapshot.stall.as_mut().unwrap());
    snapshot
}

#[track_caller]
fn assert_is(snapshot: &Snapshot, cause: &str, words: &[&str]) -> StallReason {
    let conclusion = conclude(snapshot).unwrap_or_else(|| panic!("none, not {cause}"));
    assert_eq!(conclusion.cause.name, cause, "{}", conclusion.words);
    for word in words {
        assert!(conclusion.words.contains(word), "{}", conclusion.words);
    }
    assert!(!conclusion.remedies.is_empty(), "{cause}");
    conclusion
}

#[track_caller]
fn assert_none(snapshot: &Snapshot) {
    let found = conclude(snapshot).map(|found| (found.cause.name, found.words));
    assert_eq!(found, None);
}

#[test]
fn nothing_is_concluded_from_nothing() {
    assert_none(&Snapshot::default());
    assert_none(&of(Vec::new()));
    // What it sleeps in is not known.
    assert_none(&of(vec![doing("S", None)]));
    // A first look: how long it runs is not known.
    let first = with(
        of(vec![Doing {
            run_us: None,
            delay_us: None,
            ..doing("R", None)
        }]),
        |stall| {
            stall.over_us = None;
        },
    );
    assert_none(&first);
}

#[test]
fn names_are_different() {
    let mut names: Vec<_> = CAUSES.iter().map(|cause| cause.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), CAUSES.len());
}

#[test]
fn stopped() {
    let found = assert_is(
        &of(vec![doing("T", None)]),
        "stopped",
        &["SIGSTOP", "the only one"],
    );
    assert_eq!(found.remedies[0].0, "kill -CONT 42");
    let traced = |comm: &str| {
        let tracer = Process {
            pid: 7,
            comm: comm.to_owned(),
        };
        with(of(vec![doing("t", None)]), |stall| {
            stall.tracer = Some(tracer);
        })
    };
    let found = assert_is(&traced("gdb"), "stopped", &["gdb[7] traces it"]);
    assert_eq!(found.remedies[0].0, "ps -fp 7");
    assert_is(&traced(""), "stopped", &["process 7 traces it"]);
    // One outside of this PID namespace: no signal lets it go on.
    let found = assert_is(
        &of(vec![doing("t", None)]),
        "stopped",
        &["a debugger keeps"],
    );
    assert_eq!(found.remedies[0].0, "grep TracerPid /proc/42/status");
    let frozen = with(of(vec![doing("S", Some("read"))]), |stall| {
        stall.frozen_by = Some("/sys/fs/cgroup/a/cgroup.freeze".to_owned());
    });
    let found = assert_is(&frozen, "stopped", &["frozen"]);
    assert_eq!(
        found.remedies[0].0,
        "echo 0 > /sys/fs/cgroup/a/cgroup.freeze"
    );
    let frozen = with(of(vec![doing("D", None)]), |stall| {
        stall.frozen_by = Some("/v1/a/freezer.state".to_owned());
    });
    assert_eq!(
        assert_is(&frozen, "stopped", &[]).remedies[0].0,
        "echo THAWED > /v1/a/freezer.state"
    );
    // One thread under a debugger beside one that computes.
    let mixed = of(vec![
        doing("t", None),
        Doing {
            main: false,
            ..spent(SECOND, 0)
        },
    ]);
    assert_is(&mixed, "busy", &[]);
}

#[test]
fn descriptors() {
    let used = |open| Snapshot {
        descriptors: Some(Descriptors {
            pid: 42,
            open,
            limit: 16,
        }),
        ..of(vec![spent(SECOND, 0)])
    };
    let found = assert_is(
        &used(16),
        "descriptors",
        &["16 open in server[42]", "EMFILE"],
    );
    assert_eq!(found.remedies[0].0, "prlimit --pid 42 --nofile=65536:65536");
    // It calls accept() in a loop, so it is busy too; with one left it is nothing but busy.
    assert_is(&used(15), "busy", &[]);
    // One that calls it again after a while, and one whose only thread waits for something else.
    let used_by = |doing| Snapshot {
        descriptors: used(16).descriptors,
        ..of(doing)
    };
    let sleeps = || other(1, "clock_nanosleep", None);
    assert_is(&used_by(vec![sleeps()]), "descriptors", &[]);
    let waits = || doing("S", Some("connect"));
    assert_is(&used_by(vec![waits()]), "asleep", &[]);
    assert_is(&used_by(vec![waits(), sleeps()]), "descriptors", &[]);
    let unseen = with(used_by(vec![waits()]), |stall| stall.threads = 2);
    assert_is(&unseen, "descriptors", &[]);
    let host = |open, exempt| {
        let limit = 1000;
        with(of(vec![doing("S", Some("poll"))]), |stall| {
            stall.files = Some(Files {
                open,
                limit,
                exempt,
            });
        })
    };
    assert_is(
        &host(1000, false),
        "descriptors",
        &["ENFILE", "1000 of 1000"],
    );
    assert_is(&host(999, false), "asleep", &[]);
    // The limit is not for those who may do everything.
    assert_is(&host(1000, true), "asleep", &[]);
}

fn throttled(periods: u64, us: u64) -> Snapshot {
    // While it is throttled it could run and does not, as if it were starved.
    with(of(vec![spent(50_000, 900_000)]), |stall| {
        stall.cpu = Some(Quota {
            file: "/sys/fs/cgroup/a/cpu.max".to_owned(),
            quota_us: Some(5000),
            period_us: Some(100_000),
            periods: Some(10),
            throttled_periods: Some(periods),
            throttled_us: Some(us),
        });
    })
}

#[test]
fn throttled_by_a_quota() {
    let words = ["5.0ms in each 100ms", "9 of 10 periods", "900ms of 1.0s"];
    let found = assert_is(&throttled(9, 900_000), "throttled", &words);
    assert_eq!(found.remedies[0].0, "echo max > /sys/fs/cgroup/a/cpu.max");
    // A quota that hardly ever stops it is no reason: here there is no CPU for it.
    assert_is(&throttled(1, 20_000), "starved", &[]);
    let first = with(throttled(9, 900_000), |stall| stall.over_us = None);
    assert_none(&first);
}

#[test]
fn starved_and_busy_are_told_apart() {
    let host = |doing| {
        with(of(vec![doing]), |stall| {
            stall.host_pressure = Some(Pressure {
                cpu_us: Some(800_000),
                ..Pressure::default()
            });
        })
    };
    assert_is(
        &host(spent(150_000, 800_000)),
        "starved",
        &["800ms of 1.0s", "CPU pressure of the host: 80%"],
    );
    assert_is(
        &host(spent(600_000, 350_000)),
        "busy",
        &["on a CPU for 600ms of 1.0s", "waited 350ms"],
    );
    // It works, and rests in between.
    assert_none(&host(spent(600_000, 50_000)));
    // The host is under pressure, and this one waits for a lock.
    assert_is(&host(doing("S", Some("futex"))), "lock", &[]);
}

#[test]
fn one_thread_of_many_is_busy() {
    let spins = Doing {
        tid: 77,
        comm: "worker".to_owned(),
        main: false,
        ..spent(990_000, 0)
    };
    // An interpreter's lock: the one that accepts waits for it.
    let all = of(vec![
        spins.clone(),
        doing("S", Some("futex")),
        other(6, "futex", None),
    ]);
    let found = assert_is(&all, "busy", &["thread \"worker\" (77; 1 of 8 threads)"]);
    assert_eq!(found.remedies[0].0, "perf top -t 77");
    // One that computes beside one that waits for the listener keeps nobody.
    assert_none(&of(vec![
        spins.clone(),
        other(1, "accept4", Some(Role::Takes)),
    ]));
    // More are blocked than busy.
    let blocked = Doing {
        count: 3,
        ..doing("D", Some("read"))
    };
    assert_is(&of(vec![spins, blocked]), "blocked", &[]);
}

#[test]
fn blocked_in_the_kernel() {
    let on_disk = Doing {
        on: Some("/data/log".to_owned()),
        kernel: vec![
            "folio_wait_bit_common".to_owned(),
            "filemap_read".to_owned(),
        ],
        ..doing("D", Some("read"))
    };
    let snapshot = with(of(vec![on_disk]), |stall| {
        stall.host_pressure = Some(Pressure {
            io_us: Some(900_000),
            ..Pressure::default()
        });
    });
    let words = [
        "state D",
        "read() of /data/log",
        "folio_wait_bit_common < filemap_read",
        "disks for 900ms",
    ];
    assert_is(&snapshot, "blocked", &words);
    // It was caught in a short wait of one that works.
    assert_none(&of(vec![Doing {
        run_us: Some(700_000),
        ..doing("D", Some("read"))
    }]));
}

fn memory_of(high_times: u64, pressure: u64, kernel: &[&str]) -> Snapshot {
    let waits = Doing {
        kernel: kernel.iter().map(|name| (*name).to_owned()).collect(),
        ..doing("D", None)
    };
    with(of(vec![waits]), |stall| {
        stall.memory = Some(Memory {
            file: "/sys/fs/cgroup/a/memory.high".to_owned(),
            current: Some(1100),
            high: Some(1000),
            max: None,
            high_times: Some(high_times),
            max_times: Some(0),
        });
        stall.pressure = Some(Pressure {
            memory_us: Some(pressure),
            ..Pressure::default()
        });
    })
}

#[test]
fn reclaiming_memory() {
    let found = assert_is(
        &memory_of(40, 700_000, &[]),
        "memory",
        &[
            "memory.high 40 times",
            "1000 bytes, 1100 in use",
            "700ms of 1.0s",
        ],
    );
    assert_eq!(
        found.remedies[0].0,
        "echo max > /sys/fs/cgroup/a/memory.high"
    );
    // Without pressure told, where the thread is says as much.
    assert_is(
        &memory_of(40, 0, &["mem_cgroup_handle_over_high"]),
        "memory",
        &["reclaims now"],
    );
    // It waits for having passed it in the second before.
    assert_is(
        &memory_of(
            0,
            900_000,
            &["__mem_cgroup_handle_over_high", "irqentry_exit"],
        ),
        "memory",
        &[
            "over memory.high, which makes it wait",
            "1000 bytes, 1100 in use",
        ],
    );
    // The limit was passed, and what it waits for is a disk.
    assert_is(
        &memory_of(1, 1000, &["folio_wait_bit_common"]),
        "blocked",
        &[],
    );
    // Pressure, and no limit that was hit.
    assert_is(&memory_of(0, 700_000, &[]), "blocked", &[]);
}

#[test]
fn waits_for_a_lock_a_child_or_something_else() {
    assert_is(
        &of(vec![doing("S", Some("futex"))]),
        "lock",
        &["in futex()"],
    );
    let flock = Doing {
        on: Some("/run/lock".to_owned()),
        ..doing("S", Some("flock"))
    };
    assert_eq!(
        assert_is(&of(vec![flock]), "lock", &["flock() of /run/lock"]).remedies[0].0,
        "lslocks"
    );
    assert_is(
        &of(vec![doing("S", Some("wait4"))]),
        "child",
        &["in wait4()"],
    );
    let pipe = Doing {
        on: Some("a pipe".to_owned()),
        ..doing("S", Some("read"))
    };
    assert_is(&of(vec![pipe]), "asleep", &["read() of a pipe"]);
    let kernel = Doing {
        kernel: vec!["pipe_read".to_owned()],
        ..doing("S", None)
    };
    assert_is(&of(vec![kernel]), "asleep", &["in pipe_read"]);
    // Threads of a pool that wait for work, and the one that should accept.
    let pool = || other(8, "futex", None);
    assert_is(
        &of(vec![doing("S", Some("connect")), pool()]),
        "asleep",
        &["connect()"],
    );
    assert_is(
        &of(vec![
            other(1, "flock", None),
            doing("S", Some("futex")),
            pool(),
        ]),
        "lock",
        &["flock"],
    );
    // One that waits for the listener takes what comes.
    assert_none(&of(vec![
        doing("S", Some("futex")),
        other(1, "epoll_wait", Some(Role::Takes)),
    ]));
}

#[test]
fn nobody_polls() {
    let elsewhere = || Doing {
        role: Some(Role::Elsewhere),
        ..doing("S", Some("epoll_wait"))
    };
    assert_is(
        &of(vec![elsewhere(), other(4, "futex", None)]),
        "not_polled",
        &["no epoll of its owner has the listener"],
    );
    let disarmed = with(of(vec![elsewhere()]), |stall| {
        stall.epoll = Some(Epoll {
            registered: 1,
            armed: 0,
            edge: 0,
        });
    });
    assert_is(&disarmed, "not_polled", &["without EPOLLIN"]);
    // Its thread that accepts is somewhere else.
    assert_is(
        &of(vec![elsewhere(), other(1, "connect", None)]),
        "asleep",
        &["connect()"],
    );
    // Not all were looked at: another may have it.
    assert_none(&with(of(vec![elsewhere()]), |stall| stall.holders = 2));
    assert_none(&with(of(vec![elsewhere()]), |stall| stall.threads = 9));
    assert_none(&with(of(vec![elsewhere()]), |stall| stall.epoll = None));
}

#[test]
fn told_only_once() {
    let takes = || Doing {
        role: Some(Role::Takes),
        ..doing("S", Some("epoll_wait"))
    };
    let edge = |edge| {
        with(of(vec![takes(), other(8, "futex", None)]), |stall| {
            stall.epoll = Some(Epoll {
                registered: 1,
                armed: 1,
                edge,
            });
        })
    };
    assert_is(&edge(1), "not_drained", &["EPOLLET"]);
    // Otherwise epoll says it again: the queue was full for a moment.
    assert_none(&edge(0));
    assert_none(&of(vec![Doing {
        role: Some(Role::Takes),
        ..doing("S", Some("accept4"))
    }]));
}

#[test]
fn not_the_one_that_should_accept() {
    let held_by = |pid, comm: &str| Snapshot {
        unit: Some("init.scope".to_owned()),
        listener: Listener {
            port: 8080,
            ..Listener::default()
        },
        processes: Some(vec![Process {
            pid,
            comm: comm.to_owned(),
        }]),
        ..of(vec![Doing {
            role: Some(Role::Elsewhere),
            ..doing("S", Some("epoll_wait"))
        }])
    };
    let found = assert_is(&held_by(1, "systemd"), "not_the_server", &["systemd[1]"]);
    let sockets = "list-sockets --all --full | grep ':8080 '";
    assert_eq!(found.remedies[0].0, format!("systemctl {sockets}"));
    let found = assert_is(&held_by(42, "systemd"), "not_the_server", &["systemd[42]"]);
    assert_eq!(found.remedies[0].0, format!("systemctl --user {sockets}"));
    // It is systemd itself that accepts (Accept=yes).
    assert_none(&with(held_by(1, "systemd"), |stall| {
        stall.doing[0].role = Some(Role::Takes);
        stall.epoll = Some(Epoll {
            registered: 1,
            armed: 1,
            edge: 0,
        });
    }));
    assert_is(&held_by(42, "server"), "not_polled", &[]);
    // The first process of a container.
    assert_is(&held_by(1, "server"), "not_polled", &[]);
    // The service runs, and holds it as well.
    let mut both = held_by(1, "systemd");
    both.processes.as_mut().unwrap().push(Process {
        pid: 42,
        comm: "server".to_owned(),
    });
    assert_is(&both, "not_polled", &[]);
    let master = || Doing {
        role: Some(Role::Master),
        ..doing("S", Some("rt_sigsuspend"))
    };
    assert_is(&of(vec![master()]), "not_the_server", &["a master"]);
    // Its worker holds it too, and waits.
    let worker = Doing {
        pid: 43,
        ..doing("S", Some("futex"))
    };
    assert_is(&of(vec![master(), worker]), "lock", &[]);
    // A master that waits for news of its workers is not what keeps them.
    let listens = Doing {
        role: Some(Role::Master),
        ..doing("S", Some("pselect6"))
    };
    let sleeper = Doing {
        pid: 43,
        tid: 43,
        ..doing("S", Some("clock_nanosleep"))
    };
    assert_is(&of(vec![listens, sleeper]), "asleep", &["(43;"]);
    // One that waits for any of its children has some.
    let parent = Doing {
        role: Some(Role::Master),
        ..doing("S", Some("wait4"))
    };
    assert_is(&of(vec![parent]), "child", &[]);
    assert_none(&with(of(vec![master()]), |stall| stall.holders = 2));
}

#[test]
fn words_from_outside_are_printable() {
    let evil = Doing {
        comm: "a\u{1b}[2J".to_owned(),
        ..spent(SECOND, 0)
    };
    let found = assert_is(&of(vec![evil]), "busy", &[]);
    assert!(!found.words.contains('\u{1b}'), "{:?}", found.words);
}

//! What a filter lets through of a recording, line by line.

use queue_trace_common::outcome::{ESTABLISHED_HANDSHAKE, Outcome, SYN_DROPPED_ACCEPT_QUEUE_FULL};

use super::*;
use crate::model::{
    lines::{AttachPlan, Counts, End, Header, Total},
    snapshot::Snapshot,
    socket::Process,
};

const NETNS: u32 = 7;

fn listener(inode: u64, port: u16) -> Listener {
    Listener {
        addr: Some(IpAddr::from([0, 0, 0, 0])),
        port,
        inode: Some(inode),
        ..Listener::default()
    }
}

fn event(inode: u64, port: u16) -> Line {
    Line::Event(Event {
        mono_ns: 1,
        wall_ns: 1,
        outcome: Outcome::of(SYN_DROPPED_ACCEPT_QUEUE_FULL).unwrap(),
        count: 1,
        netns: NETNS,
        listener: listener(inode, port),
        local: Some(IpAddr::from([10, 0, 0, 1])),
        client: None,
        accept_queue: None,
        syn_queue: None,
        sysctls: None,
        retransmits: None,
        waited_us: None,
        process: None,
        moved: 0,
        cpu: Some(0),
        sk: inode,
    })
}

/// An event that stands for so many, as the rate limit writes it.
fn withheld(inode: u64, port: u16, count: u64) -> Line {
    let mut line = event(inode, port);
    if let Line::Event(event) = &mut line {
        event.count = count;
        event.local = None;
        event.cpu = None;
    }
    line
}

fn listens(inode: u64, port: u16, comm: &str) -> Line {
    Line::Listener(Box::new(Snapshot {
        netns: NETNS,
        listener: listener(inode, port),
        processes: Some(vec![Process {
            pid: 1,
            comm: comm.to_owned(),
        }]),
        ..Snapshot::default()
    }))
}

fn total(inode: u64, port: u16, tag: u8, count: u64) -> Line {
    Line::Total(Total {
        netns: NETNS,
        listener: listener(inode, port),
        outcome: Outcome::of(tag).unwrap(),
        count,
    })
}

fn ledger() -> Line {
    Line::Ledger(Ledger {
        netns: NETNS,
        counters: BTreeMap::new(),
        in_front: BTreeMap::new(),
        lost: 0,
        unexplained: Some(0),
        note: None,
        other_drops: None,
    })
}

fn header(filters: Option<&[&str]>) -> Line {
    let filters = filters.map(|filters| filters.iter().map(|f| (*f).to_owned()).collect());
    Line::Header(Header {
        schema: 1,
        version: String::new(),
        time: String::new(),
        host: String::new(),
        kernel: String::new(),
        attach: AttachPlan {
            family: "fentry".to_owned(),
            hooks: Vec::new(),
            outcomes: Some(vec![
                "accepted".to_owned(),
                "syn_dropped:accept_queue_full".to_owned(),
            ]),
            filters,
            limits: Vec::new(),
        },
    })
}

fn only(listeners: ListenerFilters) -> Only {
    Only::from_cli(&Filters {
        listeners,
        all: true,
        ..Filters::default()
    })
    .unwrap()
}

fn process(name: &str) -> Only {
    only(ListenerFilters {
        processes: vec![name.parse().unwrap()],
        ..ListenerFilters::default()
    })
}

fn port(port: u16) -> Only {
    only(ListenerFilters {
        ports: vec![port..=port],
        ..ListenerFilters::default()
    })
}

#[test]
fn lines_wait_until_it_is_known_whose_their_listener_is() {
    let mut only = process("nginx");
    assert_eq!(only.take(&event(1, 80)), []);
    assert_eq!(only.take(&event(2, 81)), []);
    assert_eq!(only.take(&event(1, 80)), []);
    let known = listens(1, 80, "nginx");
    let passed = only.take(&known);
    assert_eq!(passed, [known, event(1, 80), event(1, 80)]);
    assert_eq!(only.take(&listens(2, 81, "redis")), []);
    // From here on they are known.
    assert_eq!(only.take(&event(1, 80)), [event(1, 80)]);
    assert_eq!(only.take(&event(2, 81)), []);
    assert_eq!(only.finish().without_owner, 0);
    assert_eq!(only.left_out.nobody(), None);
}

#[test]
fn what_waited_in_vain_is_counted() {
    let mut only = process("nginx");
    only.take(&event(1, 80));
    only.take(&withheld(2, 81, 40));
    let nobody = Line::Listener(Box::new(Snapshot {
        netns: NETNS,
        listener: listener(1, 80),
        processes: Some(Vec::new()),
        ..Snapshot::default()
    }));
    assert_eq!(only.take(&nobody), []);
    let left_out = only.finish();
    assert_eq!(left_out.without_owner, 41);
    assert!(left_out.notes()[0].contains("41 events"));
    let nobody = left_out.nobody().unwrap();
    assert!(nobody.contains("--process nginx"), "{nobody}");
}

#[test]
fn no_more_lines_wait_than_there_is_room_for() {
    let mut only = process("nginx");
    for _ in 0..MOST_PENDING + 5 {
        only.take(&event(1, 80));
    }
    assert_eq!(only.pending.count, MOST_PENDING);
    let passed = only.take(&listens(1, 80, "nginx"));
    assert_eq!(passed.len(), 1 + MOST_PENDING);
    assert_eq!(only.finish().without_owner, 5);
}

#[test]
fn drops_beyond_the_filter_are_counted_and_said() {
    for mut only in [port(80), process("nginx")] {
        only.take(&listens(1, 80, "nginx"));
        only.take(&listens(2, 81, "redis"));
        only.take(&total(1, 80, SYN_DROPPED_ACCEPT_QUEUE_FULL, 5));
        only.take(&total(2, 81, SYN_DROPPED_ACCEPT_QUEUE_FULL, 12));
        // They move no counter of drops.
        only.take(&total(2, 81, ESTABLISHED_HANDSHAKE, 100));
        let [Line::Ledger(ledger)] = &only.take(&ledger())[..] else {
            panic!("no ledger");
        };
        assert_eq!(ledger.other_drops, Some(12));
        assert_eq!(ledger.unexplained, None);
        let says = ledger.beyond_filter().unwrap();
        assert!(says.starts_with("12 more drops in netns 7"), "{says}");
    }
    // For a conclusion the ledger proves what it proved.
    let mut only = port(80).for_conclusions();
    only.take(&total(2, 81, SYN_DROPPED_ACCEPT_QUEUE_FULL, 12));
    let [Line::Ledger(ledger)] = &only.take(&ledger())[..] else {
        panic!("no ledger");
    };
    assert_eq!(
        (ledger.other_drops, ledger.unexplained),
        (Some(12), Some(0))
    );
    // Without a filter nothing is beyond it.
    let mut all = only_all();
    assert_eq!(all.take(&self::ledger()), [self::ledger()]);
}

fn only_all() -> Only {
    only(ListenerFilters::default())
}

#[test]
fn of_a_filter_on_addresses_nothing_is_claimed() {
    let mut only = only(ListenerFilters {
        addrs: vec!["10.0.0.0/8".parse().unwrap()],
        ..ListenerFilters::default()
    });
    assert_eq!(only.take(&event(1, 80)), [event(1, 80)]);
    assert_eq!(only.take(&withheld(1, 80, 30)), []);
    assert_eq!(
        only.take(&total(1, 80, SYN_DROPPED_ACCEPT_QUEUE_FULL, 31)),
        []
    );
    let [Line::Ledger(ledger)] = &only.take(&ledger())[..] else {
        panic!("no ledger");
    };
    assert_eq!(ledger.other_drops, None);
    assert_eq!(only.finish().without_address, 30);
    assert!(only.left_out.notes()[0].contains("30 rate-limited events"));
}

#[test]
fn listeners_that_an_address_does_not_reach_are_left_out() {
    let bound = |addr: [u8; 4]| {
        Line::Listener(Box::new(Snapshot {
            netns: NETNS,
            listener: Listener {
                addr: Some(addr.into()),
                ..listener(1, 80)
            },
            ..Snapshot::default()
        }))
    };
    let mut only = only(ListenerFilters {
        addrs: vec!["10.0.0.0/8".parse().unwrap()],
        ..ListenerFilters::default()
    });
    for (addr, passes) in [
        ([10, 0, 0, 1], true),
        ([0, 0, 0, 0], true),
        ([127, 0, 0, 1], false),
    ] {
        assert_eq!(
            only.take(&bound(addr)).len(),
            usize::from(passes),
            "{addr:?}"
        );
    }
}

#[test]
fn the_header_says_all_filters_or_that_they_are_not_known() {
    let filters = |only: &mut Only, before| {
        let [Line::Header(header)] = &only.take(&header(before))[..] else {
            panic!("no header");
        };
        header.attach.filters.clone()
    };
    let words = |words: &[&str]| Some(words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>());
    assert_eq!(filters(&mut port(80), Some(&[])), words(&["--port 80"]));
    assert_eq!(
        filters(&mut port(80), Some(&["--port 80"])),
        words(&["--port 80"])
    );
    assert_eq!(
        filters(&mut process("nginx"), Some(&["--client 10.0.0.0/8"])),
        words(&["--client 10.0.0.0/8", "--process nginx"])
    );
    assert_eq!(filters(&mut port(80), None), None);
    // What it was made with is known of the recording itself.
    let mut only = port(80);
    only.take(&header(Some(&["--port 443"])));
    let made_with = only.finish().made_with.clone();
    assert_eq!(made_with, words(&["--port 443"]));
}

#[test]
fn counts_and_the_end_go_their_way() {
    let counts = |inode| {
        Line::Counts(Counts {
            time: String::new(),
            mono_ns: None,
            netns: NETNS,
            listener: listener(inode, 80),
            outcomes: BTreeMap::from([("queued".to_owned(), 3)]),
        })
    };
    let mut only = process("nginx");
    only.take(&listens(1, 80, "nginx"));
    only.take(&listens(2, 80, "redis"));
    assert_eq!(only.take(&counts(1)), [counts(1)]);
    assert_eq!(only.take(&counts(2)), []);
    let end = Line::End(End {
        time: String::new(),
        lines: 3,
        rotated: false,
    });
    assert_eq!(only.take(&end), [end]);
}

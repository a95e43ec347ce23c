//! Filters: what is not wanted appears nowhere, neither as an event nor in a total,
//! and where that keeps the ledger from being compared it says so.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use live_tests::{
    Inhabitant, Launch, Recording, Room, Shown, Sums, expected, imposed, listener_beside,
};
use queue_trace::lab::{Family, raw::Flood, scenario};
use queue_trace_common::outcome;

/// Two listeners, which are sent SYNs by clients of their own.
struct Two {
    room: Room,
    other: SocketAddr,
    _other: std::net::TcpListener,
}

/// To the first listener, from hosts 1 to 50 of the test range.
const SYNS: u32 = 50;
/// To the other, from hosts 101 to 130.
const SYNS_OTHER: u32 = 30;
const FIRST_OTHER: u32 = 100;

impl Two {
    /// On ports 8080 and 9090; over IPv4 at addresses of their own, too.
    fn new(family: Family) -> Self {
        let room = Room::new(family, 4, &[("net.ipv4.tcp_syncookies", 2)]);
        let ip = match family {
            Family::V4 => Ipv4Addr::new(127, 0, 0, 2).into(),
            Family::V6 => family.loopback(),
        };
        let other = SocketAddr::new(ip, 9090);
        Self {
            _other: listener_beside(&room.netns, other, 4),
            room,
            other,
        }
    }

    fn flood(&self) {
        self.room.flood(SYNS);
        let to_other = Flood {
            first: FIRST_OTHER,
            ..Flood::of(SYNS_OTHER)
        };
        self.room.flood_at(self.other, &to_other);
    }
}

fn cookies(count: u32) -> Sums {
    expected(
        &[(outcome::COOKIE_SENT_ALWAYS, count.into())],
        Shown::Refusals,
    )
}

/// What a filter lets through of the SYNs to each listener.
struct Case {
    filter: &'static [&'static str],
    first: u32,
    other: u32,
}

const fn case(filter: &'static [&'static str], first: u32, other: u32) -> Case {
    Case {
        filter,
        first,
        other,
    }
}

#[test]
fn by_port_address_and_client_over_ipv4() {
    filtered(
        Family::V4,
        &[
            case(&["-p", "8080"], SYNS, 0),
            case(&["-p", "1,9000-9999"], 0, SYNS_OTHER),
            case(&["--addr", "127.0.0.2/31"], 0, SYNS_OTHER),
            case(&["--client", "198.51.100.32/27"], 19, 0),
            case(
                &["--client", "198.51.100.0/28", "--client", "198.51.100.101"],
                15,
                1,
            ),
        ],
    );
}

#[test]
fn by_port_address_and_client_over_ipv6() {
    filtered(
        Family::V6,
        &[
            case(
                &["-p", "8000-8099", "-p", "9090", "--addr", "::1"],
                SYNS,
                SYNS_OTHER,
            ),
            case(&["--addr", "2001:db8::/32"], 0, 0),
            case(&["--client", "2001:db8:5::20/123"], 19, 0),
            case(&["-p", "9090", "--client", "2001:db8:5::65"], 0, 1),
        ],
    );
}

/// One tracer for each case, all at work on the same traffic.
fn filtered(family: Family, cases: &[Case]) {
    let two = Two::new(family);
    let start = |case: &Case| {
        let launch = Launch::live().on(&two.room.netns);
        launch.args(case.filter).start()
    };
    let tracers: Vec<_> = cases.iter().map(start).collect();
    two.flood();
    for (case, tracer) in cases.iter().zip(tracers) {
        println!("{:?}", case.filter);
        let recording = tracer.stop();
        assert_eq!(
            recording.verdicts(&two.room.netns),
            cookies(case.first + case.other)
        );
        assert_eq!(
            recording.counted(&two.room.netns),
            cookies(case.first + case.other)
        );
        assert_eq!(to(&recording, two.room.address), u64::from(case.first));
        assert_eq!(to(&recording, two.other), u64::from(case.other));
        let ledger = recording.ledger(&two.room.netns);
        assert_eq!(ledger.unexplained, None, "{ledger:?}");
        let note = ledger.note.as_deref().unwrap_or_default();
        assert!(note.contains("filter"), "{ledger:?}");
    }
}

/// How many SYNs were counted at a listener.
fn to(recording: &Recording, listener: SocketAddr) -> u64 {
    let whose = (listener.ip(), listener.port());
    let at = |addr: Option<IpAddr>, port| addr.is_none_or(|addr| (addr, port) == whose);
    let totals = recording.totals().filter(|total| {
        let listener = &total.listener;
        listener.port == whose.1 && at(listener.addr, listener.port)
    });
    totals.map(|total| total.count).sum()
}

/// `--event` leaves out other outcomes; the ledger counts them all the same.
#[test]
fn by_verdict_and_by_cause() {
    let scenario = scenario::find("cookies").unwrap();
    for (family, names) in [
        (Family::V4, &["cookie_failed", "queued"][..]),
        (Family::V6, &["cookie_sent:syn_queue_full"]),
    ] {
        let mut stage = scenario.prepare(family).unwrap();
        let before = live_tests::Counters::of(stage.netns());
        let launch = Launch::live().on(stage.netns());
        let events = names.iter().flat_map(|name| ["--event", name]);
        let tracer = launch.args(events).start();
        let report = stage.run().unwrap();
        let recording = tracer.stop();

        let mut sums = imposed(&report, Shown::All);
        sums.retain(|name, _| names.iter().any(|wanted| name.starts_with(wanted)));
        assert_eq!(sums.len(), names.len());
        recording.assert_exact(stage.netns(), &before, &sums);
    }
}

/// Of two namespaces with the same traffic only the one that was named appears, also
/// when it is named by its number.
#[test]
fn by_namespace() {
    let rooms = Room::of_each_family(4, &[("net.ipv4.tcp_syncookies", 2)]);
    let [room, other] = &rooms;
    let _inhabitant = Inhabitant::of(&room.netns);
    let id = room.netns.id().to_string();
    let by_number = Launch::live().args(["--netns", &id]).start();
    let by_path = Launch::live().on(&room.netns).start();
    for room in &rooms {
        room.flood(SYNS);
    }
    for recording in [by_number.stop(), by_path.stop()] {
        recording.assert_exact(&room.netns, &room.before, &cookies(SYNS));
        assert_eq!(recording.verdicts(&other.netns), Sums::new());
        assert_eq!(recording.counted(&other.netns), Sums::new());
        assert!(
            recording
                .ledgers()
                .all(|ledger| ledger.netns != other.netns.id())
        );
    }
}

/// Without `--netns` every namespace is watched, this one among them.
#[test]
fn every_namespace_is_watched_unless_one_is_named() {
    let room = Room::new(Family::V4, 4, &[("net.ipv4.tcp_syncookies", 2)]);
    let _inhabitant = Inhabitant::of(&room.netns);
    let tracer = Launch::live().start();
    room.flood(SYNS);
    let recording = tracer.stop();
    recording.assert_exact(&room.netns, &room.before, &cookies(SYNS));
}

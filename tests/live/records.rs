//! What a record says of the machine, the listener and the client is true.

use std::{fs, net::IpAddr, os::fd::AsFd};

use live_tests::{Event, Launch, Room, Shown, attach};
use queue_trace::lab::Family;
use rustix::{fs::fstat, net::sockopt::socket_cookie};

#[test]
fn the_header_says_who_observed_what() {
    let room = Room::new(Family::V4, 1, &[]);
    let recording = Launch::live().on(&room.netns).start().stop();
    let header = recording.header();
    assert_eq!(header.schema, 1);
    assert_eq!(header.attach.family, attach().name());
    assert!(!header.attach.hooks.is_empty());
    assert_eq!(header.kernel, read("/proc/sys/kernel/osrelease"));
    assert_eq!(header.host, read("/proc/sys/kernel/hostname"));
    assert!(header.time.ends_with('Z'), "{}", header.time);
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}

/// One client that gets in, one whose SYN is dropped: each appears with its address
/// and port, the listener's identity, and the queues as they were.
#[test]
fn an_event_says_which_listener_and_which_client() {
    for family in Family::ALL {
        let room = Room::new(family, 0, &[]);
        // On old kernels a backlog of 0 is a SYN queue that is always full.
        let tracer = Launch::showing(Shown::All).on(&room.netns).start();
        let let_in = room.connect(1)[0].local().unwrap();
        let refused = room.rush(1, None)[0].local().unwrap();
        let recording = tracer.stop();

        let events_of = |client: std::net::SocketAddr| -> Vec<&Event> {
            let is_its = |event: &&Event| {
                let whose = event.client.map(|whose| (whose.addr, whose.port));
                whose == Some((client.ip(), client.port()))
            };
            recording.events().filter(is_its).collect()
        };
        let names = |events: &[&Event]| events.iter().map(|e| e.name()).collect::<Vec<_>>();
        let established = events_of(let_in).last().unwrap().verdict.clone();
        assert_eq!(
            established,
            "established",
            "{:?}",
            names(&events_of(let_in))
        );
        let dropped = events_of(refused);
        assert_eq!(names(&dropped), ["syn_dropped:accept_queue_full"]);

        let queue = dropped[0].accept_queue.unwrap();
        assert_eq!((queue.depth, queue.limit), (1, 0));
        let syn_queue = dropped[0].syn_queue.unwrap();
        assert_eq!((syn_queue.depth, syn_queue.young), (0, 0));
        for event in recording.events() {
            assert_eq!(event.netns, room.netns.id());
            assert_eq!(
                (event.listener.addr, event.listener.port),
                (address(&room), 8080)
            );
            let cookie = socket_cookie(room.listener.as_fd()).unwrap();
            // Asked for after the fact: a socket has one from the first question on.
            assert!(
                event.listener.cookie.is_none_or(|seen| seen == cookie),
                "{event:?}"
            );
            let inode = fstat(&room.listener).unwrap().st_ino;
            assert_eq!(event.listener.inode, Some(inode), "{event:?}");
            assert!(event.time.ends_with('Z') && event.mono_ns != 0, "{event:?}");
        }
    }
}

fn address(room: &Room) -> Option<IpAddr> {
    Some(room.address.ip())
}

/// A socket that somebody has asked for its cookie is known by it.
#[test]
fn a_listeners_cookie_is_the_one_that_ss_shows() {
    let room = Room::new(Family::V4, 0, &[]);
    let cookie = socket_cookie(room.listener.as_fd()).unwrap();
    let tracer = Launch::live().on(&room.netns).start();
    let _in = room.connect(1);
    let _out = room.rush(1, None);
    let recording = tracer.stop();
    let cookies: Vec<_> = recording
        .events()
        .map(|event| event.listener.cookie)
        .collect();
    assert!(!cookies.is_empty());
    assert!(
        cookies.iter().all(|seen| *seen == Some(cookie)),
        "{cookies:?}"
    );
}

/// One CPU tells in the order in which it happened.
#[test]
fn events_come_in_the_order_of_their_times() {
    let room = Room::new(Family::V6, 4, &[("net.ipv4.tcp_syncookies", 0)]);
    let tracer = Launch::live().on(&room.netns).start();
    room.flood(100);
    let recording = tracer.stop();
    let times: Vec<_> = recording.events().map(|event| event.mono_ns).collect();
    assert!(!times.is_empty() && times.is_sorted(), "{times:?}");
}

//! The two experiments of the literature on listen queues, written out, over both
//! families.

use std::collections::BTreeSet;

use live_tests::{Event, Launch, Recording, Room, Shown, Tracer};
use queue_trace::lab::{Connect, Family};

/// What the kernel did to the clients of one experiment.
struct Told {
    recording: Recording,
    /// Clients that entered the accept queue.
    let_in: BTreeSet<(std::net::IpAddr, u16)>,
    /// Clients of whom a SYN or a final ACK was refused.
    refused: BTreeSet<(std::net::IpAddr, u16)>,
}

impl Told {
    fn by(tracer: Tracer, room: &Room) -> Self {
        let recording = tracer.stop();
        recording.assert_reconciled(&room.netns, &room.before);
        assert_eq!(
            recording.verdicts(&room.netns),
            recording.counted(&room.netns)
        );
        let clients_of = |verdicts: &[&str]| {
            let wanted = |event: &&Event| verdicts.contains(&event.verdict.as_str());
            let client = |event: &Event| event.client.map(|client| (client.addr, client.port));
            recording
                .events()
                .filter(wanted)
                .filter_map(client)
                .collect()
        };
        Self {
            let_in: clients_of(&["established"]),
            refused: clients_of(&["syn_dropped", "ack_dropped"]),
            recording,
        }
    }

    fn events<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Event> {
        self.recording
            .events()
            .filter(move |event| event.name() == name)
    }
}

fn addresses(clients: &[Connect]) -> BTreeSet<(std::net::IpAddr, u16)> {
    let addresses = clients.iter().filter_map(Connect::local);
    addresses
        .map(|address| (address.ip(), address.port()))
        .collect()
}

/// A server listens with backlog 10 and never accepts; a client connects 100 times,
/// each with a short timeout. The accept queue stops at 11 of 10, and every refused
/// handshake appears.
#[test]
fn backlog_10_and_100_clients() {
    for family in Family::ALL {
        let room = Room::new(family, 10, &[]);
        let tracer = Launch::showing(Shown::All).on(&room.netns).start();
        let clients = room.rush(100, None);
        let told = Told::by(tracer, &room);

        assert_eq!(told.let_in.len(), 11, "{family}");
        assert_eq!(told.refused.len(), 89, "{family}");
        let all: BTreeSet<_> = told.let_in.union(&told.refused).copied().collect();
        assert_eq!(all, addresses(&clients), "{family}");

        let queues = || {
            told.recording
                .events()
                .filter_map(|event| event.accept_queue)
        };
        assert_eq!(queues().map(|queue| queue.depth).max(), Some(11));
        assert!(queues().all(|queue| queue.limit == 10));
        for event in told.events("syn_dropped:accept_queue_full") {
            let queue = event.accept_queue.unwrap();
            assert_eq!((queue.depth, queue.limit), (11, 10), "{event:?}");
        }
    }
}

/// Backlog 5, ten clients that send data at once. Six get in; of the others a SYN, or
/// the final ACK, is refused, as it happens.
#[test]
fn backlog_5_and_10_clients_that_send_data() {
    for family in Family::ALL {
        let room = Room::new(family, 5, &[]);
        let tracer = Launch::showing(Shown::All).on(&room.netns).start();
        let clients = room.rush(10, Some(b"GET / HTTP/1.0\r\n\r\n"));
        let told = Told::by(tracer, &room);

        assert_eq!(told.let_in.len(), 6, "{family}");
        assert_eq!(told.refused.len(), 4, "{family}");
        let all: BTreeSet<_> = told.let_in.union(&told.refused).copied().collect();
        assert_eq!(all, addresses(&clients), "{family}");
        let queues = told
            .recording
            .events()
            .filter_map(|event| event.accept_queue);
        assert_eq!(queues.map(|queue| queue.depth).max(), Some(6), "{family}");
    }
}

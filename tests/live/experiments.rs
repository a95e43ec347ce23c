//! The two experiments of the literature on listen queues, written out, over both
//! families.

use std::{collections::BTreeSet, net::IpAddr};

use live_tests::{Event, Launch, Room, Shown};
use queue_trace::lab::Connect;

/// Addresses of clients.
type Clients = BTreeSet<(IpAddr, u16)>;

/// What became of the clients of one experiment.
struct Told {
    /// Everything that was told of it.
    events: Vec<Event>,
    /// Clients that entered the accept queue.
    let_in: Clients,
    /// Clients of whom a SYN or a final ACK was refused.
    refused: Clients,
    /// All that there were.
    clients: Clients,
}

/// Lets clients, which send `payload` once they are connected, rush at a listener of
/// that backlog that never accepts, over each family.
fn experiment(backlog: i32, clients: usize, payload: Option<&[u8]>) -> [Told; 2] {
    let rooms = Room::of_each_family(backlog, &[]);
    let tracer = Launch::showing(Shown::All).on_all(&rooms).start();
    // The clients are gone before those that timed out would try again.
    let clients = rooms.each_ref().map(|room| {
        let clients = room.rush(clients, payload);
        let addresses = clients.iter().filter_map(Connect::local);
        addresses
            .map(|address| (address.ip(), address.port()))
            .collect::<Clients>()
    });
    let recording = tracer.stop();
    let mut clients = clients.into_iter();
    rooms.map(|room| {
        recording.assert_reconciled(&room.netns, &room.before);
        assert_eq!(
            recording.verdicts(&room.netns),
            recording.counted(&room.netns)
        );
        let of_it = |event: &&Event| event.netns == room.netns.id();
        let events: Vec<_> = recording.events().filter(of_it).cloned().collect();
        let clients_of = |verdicts: &[&str]| {
            let wanted = |event: &&Event| verdicts.contains(&event.verdict.as_str());
            let client = |event: &Event| event.client.map(|client| (client.addr, client.port));
            events.iter().filter(wanted).filter_map(client).collect()
        };
        Told {
            let_in: clients_of(&["established"]),
            refused: clients_of(&["syn_dropped", "ack_dropped"]),
            clients: clients.next().unwrap(),
            events,
        }
    })
}

impl Told {
    /// So many got in, all others were refused, and the accept queue, at most full,
    /// was seen so.
    fn assert(&self, let_in: usize, backlog: u32) {
        assert_eq!(self.let_in.len(), let_in);
        let refused = self.clients.difference(&self.let_in).copied().collect();
        assert_eq!(self.refused, refused);
        let queues = || self.events.iter().filter_map(|event| event.accept_queue);
        assert_eq!(queues().map(|queue| queue.depth).max(), Some(backlog + 1));
        assert!(queues().all(|queue| queue.limit == backlog));
    }
}

/// A server listens with backlog 10 and never accepts; a client connects 100 times,
/// each with a short timeout. The accept queue stops at 11 of 10, and every refused
/// handshake appears.
#[test]
fn backlog_10_and_100_clients() {
    for told in experiment(10, 100, None) {
        told.assert(11, 10);
        assert_eq!(told.refused.len(), 89);
        for event in &told.events {
            if event.name() == "syn_dropped:accept_queue_full" {
                let queue = event.accept_queue.unwrap();
                assert_eq!((queue.depth, queue.limit), (11, 10), "{event:?}");
            }
        }
    }
}

/// Backlog 5, ten clients that send data at once. Six get in; of the others a SYN, or
/// the final ACK, is refused, as it happens.
#[test]
fn backlog_5_and_10_clients_that_send_data() {
    for told in experiment(5, 10, Some(b"GET / HTTP/1.0\r\n\r\n")) {
        told.assert(6, 5);
        assert_eq!(told.refused.len(), 4);
    }
}

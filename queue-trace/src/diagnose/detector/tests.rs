//! Episodes of one listener, from packets that are played to a detector.

use queue_trace_common::outcome::{
    ACCEPTED, COOKIE_SENT_FULL, ESTABLISHED_COOKIE, ESTABLISHED_HANDSHAKE,
    SYN_DROPPED_ACCEPT_QUEUE_FULL,
};

use super::*;
use crate::diagnose::episode::ACCEPT_FULL;

const LIMIT: u32 = 4;
const ALL: Set = Set::MAX;
/// Tracepoints do not see accept().
const WITHOUT_ACCEPT: Set = !(1 << ACCEPTED);

/// Plays packets, times in milliseconds.
struct Play {
    detector: Detector,
    changes: Vec<Change>,
}

impl Play {
    fn new(told: Set) -> Self {
        Self {
            detector: Detector::new(told),
            changes: Vec::new(),
        }
    }

    fn packet(&mut self, ms: u64, tag: u8, client: u32, depth: u32) {
        let seen = Observed {
            client: Some(Client {
                addr: IpAddr::from((client / 1000).to_be_bytes()),
                port: (client % 1000) as u16,
            }),
            accept_queue: Some(AcceptQueue {
                depth,
                limit: LIMIT,
            }),
            exact: true,
            ..Observed::number(Outcome::of(tag).unwrap(), 1, i128::from(ms) * 1_000_000)
        };
        self.changes.extend(self.detector.take(&seen));
    }

    fn refused(&mut self, ms: u64, client: u32) {
        self.packet(ms, SYN_DROPPED_ACCEPT_QUEUE_FULL, client, LIMIT + 1);
    }

    fn entered(&mut self, ms: u64, client: u32, depth: u32) {
        self.packet(ms, ESTABLISHED_HANDSHAKE, client, depth);
    }

    fn accepted(&mut self, ms: u64, depth: u32) {
        self.packet(ms, ACCEPTED, 0, depth);
    }

    /// A burst of that many clients at an application that takes all at once.
    fn burst(&mut self, ms: u64, clients: u32) {
        for client in 0..clients {
            let number = ms as u32 + client;
            match client {
                0..=LIMIT => self.entered(ms, number, client + 1),
                _ => self.refused(ms, number),
            }
        }
        for left in (0..=LIMIT).rev() {
            self.accepted(ms + 1, left);
        }
        self.entered(ms + 2, 1, 1);
        self.accepted(ms + 2, 0);
    }

    fn episodes(&self) -> Vec<Episode> {
        self.detector.episodes(Trouble::AcceptQueueFull)
    }
}

/// The same burst is the same episode alone, and within a day.
#[test]
fn a_burst_is_found_however_long_the_recording_is() {
    for told in [ALL, WITHOUT_ACCEPT] {
        for (before, after) in [(0, 0), (0, 86_400), (4_000, 86_400)] {
            let mut play = Play::new(told);
            let healthy = |play: &mut Play, from: u64, to: u64| {
                for second in from..to {
                    play.entered(second * 1000, 7, 1);
                    play.accepted(second * 1000 + 1, 0);
                }
            };
            healthy(&mut play, 0, before);
            play.burst(before * 1000 + 500, 20);
            healthy(&mut play, before + 1, after);
            let [episode] = &play.episodes()[..] else {
                panic!("{:?}", play.episodes())
            };
            assert_eq!(
                episode.begin_ns,
                i128::from(before * 1000 + 500) * 1_000_000
            );
            assert_eq!(episode.pattern(told), Pattern::Bursts);
            assert_eq!((episode.packets, episode.connections.count), (15, 15));
            assert_eq!(episode.deepest, Some(5));
            // 20 fit into a backlog of 19.
            assert_eq!(episode.enough(), Some(19));
            assert_eq!(episode.ongoing, after == 0);
        }
    }
}

#[test]
fn a_slow_application_has_not_stopped() {
    for told in [ALL, WITHOUT_ACCEPT] {
        let mut play = Play::new(told);
        for client in 0..5 {
            play.entered(0, client, client + 1);
        }
        // Five clients try again and again; one place is made each 5 s.
        for second in 0..30 {
            for client in 5..10 {
                play.refused(second * 1000 + u64::from(client), client);
            }
            if second % 5 == 4 {
                play.accepted(second * 1000 + 500, LIMIT);
                play.entered(second * 1000 + 501, 5 + (second / 5) as u32, LIMIT + 1);
            }
        }
        let [episode] = &play.episodes()[..] else {
            panic!()
        };
        assert_eq!(episode.pattern(told), Pattern::TooSlow);
        assert_eq!(episode.left, Some(6));
        assert_eq!(episode.packets, 150);
        assert_eq!(episode.connections.words(), "5");
        assert_eq!(episode.served_later.count, 5);
        let still = episode.longest_still_ns / NS_PER_SECOND;
        assert!((4..=5).contains(&still), "{still}");
    }
}

#[test]
fn an_application_that_stopped_took_nothing() {
    for told in [ALL, WITHOUT_ACCEPT] {
        let mut play = Play::new(told);
        for client in 0..5 {
            play.entered(0, client, client + 1);
        }
        for second in 1..20 {
            play.refused(second * 1000, 100);
        }
        let [episode] = &play.episodes()[..] else {
            panic!()
        };
        assert_eq!(episode.pattern(told), Pattern::TookNothing);
        assert_eq!(episode.left, Some(0));
        assert_eq!(episode.longest_still_ns, 18 * NS_PER_SECOND);
        assert_eq!(episode.connections.count, 1);
        // Without seeing what comes in it cannot be told.
        assert_eq!(episode.pattern(ACCEPT_FULL), Pattern::Unclear);
    }
}

/// The limit in force when it refused, not a later one.
#[test]
fn the_limit_is_that_of_the_refusals() {
    let mut play = Play::new(ALL);
    play.refused(0, 1);
    play.detector.gauge(
        NS_PER_SECOND,
        AcceptQueue {
            depth: 2,
            limit: 511,
        },
    );
    assert_eq!(play.episodes()[0].limit, Some((LIMIT, LIMIT)));
}

#[test]
fn episodes_begin_and_end_as_time_goes_on() {
    let mut play = Play::new(ALL);
    play.burst(1_000, 10);
    play.burst(3_000, 10);
    assert!(
        matches!(&play.changes[..], [Change::Began(episode)] if episode.begin_ns == NS_PER_SECOND)
    );
    assert!(play.detector.tick(4 * NS_PER_SECOND).is_empty());
    let ended = play.detector.tick(9 * NS_PER_SECOND);
    let [Change::Ended(episode)] = &ended[..] else {
        panic!("{ended:?}")
    };
    assert_eq!(
        (episode.packets, episode.drained, episode.seconds),
        (10, 2, 2)
    );
    assert!(!episode.ongoing && !play.detector.is_in_trouble());
}

/// While the queue is full, clients that try again ever more rarely do not make many episodes.
#[test]
fn a_queue_that_stays_full_is_one_episode() {
    let mut play = Play::new(WITHOUT_ACCEPT);
    for second in [0, 1, 3, 7, 15, 31] {
        play.refused(second * 1000, 1);
    }
    assert_eq!(play.episodes().len(), 1);
    assert_eq!(
        play.episodes()[0].pattern(WITHOUT_ACCEPT),
        Pattern::TookNothing
    );
}

#[test]
fn the_worst_are_kept_whole_and_the_others_as_sums() {
    let mut play = Play::new(ALL);
    for number in 0..100u64 {
        play.burst(number * 60_000, 6 + (number % 50) as u32);
    }
    let whole = play.episodes();
    assert!(whole.len() <= WHOLE + 2, "{}", whole.len());
    assert_eq!(whole.iter().map(|e| e.packets).max(), Some(50));
    let rest = play.detector.rest(Trouble::AcceptQueueFull)[&Pattern::Bursts];
    assert_eq!(rest.times + whole.len() as u64, 100);
    let packets: u64 = whole.iter().map(|e| e.packets).sum();
    assert_eq!(rest.packets + packets, 2 * (1..=50).sum::<u64>());
}

/// A client that gets in only after the end is noted at the episode all the same.
#[test]
fn who_gets_in_later_is_known() {
    let mut play = Play::new(ALL);
    play.refused(0, 1);
    play.refused(1, 2);
    play.accepted(2, 0);
    play.entered(31_000, 2, 1);
    let [episode] = &play.episodes()[..] else {
        panic!()
    };
    assert!(!episode.ongoing);
    assert_eq!(episode.served_later.count, 1);
}

#[test]
fn cookies_that_came_back_are_counted_in_their_own_time() {
    let mut play = Play::new(ALL);
    for client in 0..200 {
        play.packet(1000 + u64::from(client), COOKIE_SENT_FULL, client, 0);
        if client % 2 == 0 {
            play.packet(1080 + u64::from(client), ESTABLISHED_COOKIE, client, 1);
        }
    }
    // Another day.
    play.packet(86_400_000, ESTABLISHED_COOKIE, 1, 1);
    let [episode] = &play.detector.episodes(Trouble::SynQueueFull)[..] else {
        panic!()
    };
    assert_eq!(episode.cookies(), (200, 100));
}

#[test]
fn events_and_counts_are_not_counted_twice() {
    let mut excess = Excess::default();
    assert_eq!(excess.event(3, 5), 5);
    // Seven, of which five were told.
    assert_eq!(excess.counts(3, 7), 2);
    // The two come as events after all.
    assert_eq!(excess.event(3, 1), 0);
    assert_eq!(excess.event(3, 3), 2);
    assert_eq!(excess.counts(3, 2), 0);
}

fn event(netns: u32, tag: u8, at: u64) -> Event {
    Event {
        mono_ns: at,
        wall_ns: at.into(),
        outcome: Outcome::of(tag).unwrap(),
        count: 1,
        netns,
        listener: Listener {
            port: 80,
            inode: Some(5),
            ..Listener::default()
        },
        local: None,
        client: None,
        accept_queue: None,
        syn_queue: None,
        sysctls: None,
        retransmits: None,
        waited_us: None,
        process: None,
        moved: 0,
        cpu: Some(0),
        sk: 0,
    }
}

/// Live: only those in trouble are followed, and there is always room for one that gets into it.
#[test]
fn many_listeners_are_followed_in_bounded_memory() {
    let mut episodes = Episodes::new(ALL, 10);
    let mut began = 0;
    for netns in 0..1000u32 {
        let at = u64::from(netns) * 10_000_000_000;
        assert!(
            episodes
                .event(&event(netns, ESTABLISHED_HANDSHAKE, at), at.into())
                .is_empty()
        );
        let changes = episodes.event(&event(netns, SYN_DROPPED_ACCEPT_QUEUE_FULL, at), at.into());
        began += changes.len();
        episodes.tick(i128::from(at) + 6 * NS_PER_SECOND);
    }
    assert_eq!(began, 1000);
    assert_eq!(episodes.listeners.len(), 10);
    let last = Key {
        netns: 999,
        port: 80,
        inode: Some(5),
    };
    assert!(episodes.of(&last).is_some());
}

/// The counts of the second in which a listener got into trouble reach back to before it.
#[test]
fn what_came_before_the_trouble_is_not_taken_for_leaving() {
    let mut episodes = Episodes::new(WITHOUT_ACCEPT, 10);
    let refused = Event {
        client: Some(Client {
            addr: IpAddr::from([192, 0, 2, 1]),
            port: 9,
        }),
        ..event(1, SYN_DROPPED_ACCEPT_QUEUE_FULL, 500_000_000)
    };
    episodes.event(&refused, 500_000_000);
    for second in 1..6 {
        let mut counts = BTreeMap::from([("syn_dropped:accept_queue_full".to_owned(), 3)]);
        if second == 1 {
            counts.insert("established:handshake".to_owned(), 40);
        }
        let at = second * NS_PER_SECOND;
        assert!(
            episodes
                .counts(1, &refused.listener, &counts, at)
                .is_empty()
        );
    }
    let key = Key::of(1, &refused.listener);
    let (_, detector) = episodes.of(&key).unwrap();
    let [episode] = &detector.episodes(Trouble::AcceptQueueFull)[..] else {
        panic!()
    };
    assert_eq!((episode.packets, episode.unnamed), (15, 14));
    assert_eq!(episode.pattern(WITHOUT_ACCEPT), Pattern::TookNothing);
}

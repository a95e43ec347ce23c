//! How often the agent looks at which listeners. Those of a namespace are as they were at the
//! latest look if nothing was counted there since and nothing was in their queues then. So a
//! calm machine costs next to nothing, and what refuses is looked at each second.

use std::{collections::BTreeSet, time::Duration};

use queue_trace_common::outcome::{
    ESTABLISHED_COOKIE, ESTABLISHED_FAST_OPEN, ESTABLISHED_HANDSHAKE, Outcome, QUEUED, Set,
};

use crate::{
    model::{snapshot::Snapshot, socket::Listener},
    sink::{Extent, Wanted},
};

/// Every so many looks are at all listeners: who owns a listener may change, and listen() may be
/// called again, without anything that is counted.
const LOOKS: u32 = 4;

/// By these outcomes a connection enters a queue.
const ENTERING: [u8; 4] = [
    QUEUED,
    ESTABLISHED_HANDSHAKE,
    ESTABLISHED_COOKIE,
    ESTABLISHED_FAST_OPEN,
];

/// When which listeners are looked at.
#[derive(Debug, Clone)]
pub struct Pace {
    rest: Duration,
    /// Whether all that enters a queue is counted.
    told: bool,
    /// Whether something was lost since the latest look was asked for.
    lost: bool,
    /// Sockets of the agent's own, by inode number.
    own: BTreeSet<u64>,
    /// Where something was counted since the latest look was asked for.
    moved: BTreeSet<u32>,
    /// Where something was in a queue at the latest look, or may have been.
    waiting: BTreeSet<u32>,
    /// When a look was asked for, and one at all.
    asked: Option<Duration>,
    asked_all: Option<Duration>,
}

impl Pace {
    /// `rest`: how often it is looked at what may have changed, where nothing is refused.
    #[must_use]
    pub fn new(rest: Duration, observable: Set) -> Self {
        let is_told = |tag: u8| Outcome::of(tag).is_some_and(|one| observable & one.bit() != 0);
        Self {
            rest,
            told: ENTERING.into_iter().all(is_told),
            lost: false,
            own: BTreeSet::new(),
            moved: BTreeSet::new(),
            waiting: BTreeSet::new(),
            asked: None,
            asked_all: None,
        }
    }

    /// What happens at these sockets, by inode number, is no reason to look, as long as nothing is
    /// refused: they are the agent's own, and a scrape should not make it look.
    #[must_use]
    pub fn but_for(self, own: BTreeSet<u64>) -> Self {
        Self { own, ..self }
    }

    /// Something was counted at a listener.
    pub fn moved(&mut self, netns: u32, listener: &Listener, routine: bool) {
        let is_own = listener
            .inode
            .is_some_and(|inode| self.own.contains(&inode));
        if !(is_own && routine) {
            self.moved.insert(netns);
        }
    }

    /// Something was lost, which may have been about any listener.
    pub fn lost(&mut self) {
        self.lost = true;
    }

    /// All listeners are to be looked at, at the next second.
    pub fn all(&mut self) {
        self.asked_all = None;
    }

    /// A listener as it stands now.
    pub fn listener(&mut self, one: &Snapshot) {
        let syn = one.syn_queue.as_ref().and_then(|queue| queue.depth);
        let is_empty = one.depth() == Some(0) && syn == Some(0);
        if !one.is_closed() && !is_empty {
            self.waiting.insert(one.netns);
        }
    }

    /// Listeners were looked at.
    pub fn looked(&mut self, listeners: &[Snapshot], extent: &Extent) {
        match &extent.within {
            Some(within) => self.waiting.retain(|netns| !within.contains(netns)),
            None => self.waiting.clear(),
        }
        listeners.iter().for_each(|one| self.listener(one));
    }

    /// What is to be looked at in this second. `trouble`: where something refuses, or is not
    /// known yet.
    pub fn second(&mut self, mut trouble: BTreeSet<u32>, now: Duration) -> Wanted {
        let since = |asked: Option<Duration>| asked.map(|at| now.saturating_sub(at));
        let due = since(self.asked).is_none_or(|since| since >= self.rest);
        let all = since(self.asked_all).is_none_or(|since| since >= self.rest * LOOKS);
        if all || due && (!self.told || self.lost) {
            self.lost = false;
            self.asked = Some(now);
            self.asked_all = Some(now);
            self.moved.clear();
            return Wanted::All;
        }
        if due {
            self.asked = Some(now);
            trouble.append(&mut self.moved);
            trouble.extend(&self.waiting);
        } else {
            self.moved.retain(|netns| !trouble.contains(netns));
        }
        if trouble.is_empty() {
            Wanted::Nothing
        } else {
            Wanted::In(trouble)
        }
    }
}

#[cfg(test)]
mod tests {
    use queue_trace_common::outcome::{Kind, of_kind};

    use super::*;
    use crate::model::snapshot::Gauge;

    const REST: Duration = Duration::from_secs(15);

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn pace() -> Pace {
        let mut pace = Pace::new(REST, of_kind(Kind::Refusal) | of_kind(Kind::Routine));
        assert_eq!(pace.second(BTreeSet::new(), at(0)), Wanted::All);
        pace
    }

    fn moved(pace: &mut Pace, netns: u32) {
        pace.moved(netns, &Listener::default(), true);
    }

    fn calm(pace: &mut Pace, second: u64) -> Wanted {
        pace.second(BTreeSet::new(), at(second))
    }

    fn some(places: impl IntoIterator<Item = u32>) -> Wanted {
        Wanted::In(places.into_iter().collect())
    }

    fn stands(netns: u32, depth: Option<u32>, requests: Option<u32>) -> Snapshot {
        let gauge = |depth| {
            Some(Gauge {
                depth,
                ..Gauge::default()
            })
        };
        Snapshot {
            netns,
            accept_queue: gauge(depth),
            syn_queue: gauge(requests),
            ..Snapshot::default()
        }
    }

    #[test]
    fn where_nothing_happens_it_looks_once_a_minute() {
        let mut pace = pace();
        pace.looked(&[stands(1, Some(0), Some(0))], &Extent::default());
        assert!((1..60).all(|second| calm(&mut pace, second) == Wanted::Nothing));
        assert_eq!(calm(&mut pace, 60), Wanted::All);
    }

    #[test]
    fn where_something_was_counted_it_looks_at_the_next_turn_and_not_elsewhere() {
        let mut pace = pace();
        moved(&mut pace, 7);
        assert_eq!(calm(&mut pace, 14), Wanted::Nothing);
        assert_eq!(calm(&mut pace, 15), some([7]));
        // What came while it looked is for the next turn.
        moved(&mut pace, 8);
        let extent = Extent {
            within: Some([7].into()),
            ..Extent::default()
        };
        pace.looked(&[stands(7, Some(0), Some(0))], &extent);
        assert_eq!(calm(&mut pace, 30), some([8]));
        assert_eq!(calm(&mut pace, 45), Wanted::Nothing);
    }

    #[test]
    fn a_scrape_is_no_reason_to_look() {
        let mut pace = pace().but_for([77].into());
        let listener = |inode| Listener {
            inode: Some(inode),
            ..Listener::default()
        };
        pace.moved(1, &listener(77), true);
        assert_eq!(calm(&mut pace, 15), Wanted::Nothing);
        pace.moved(2, &listener(78), true);
        pace.moved(3, &listener(77), false);
        assert_eq!(calm(&mut pace, 30), some([2, 3]));
        assert_eq!(calm(&mut pace, 60), Wanted::All);
    }

    #[test]
    fn what_waits_may_leave_unseen() {
        let mut pace = pace();
        let all = [
            stands(1, Some(1), Some(0)),
            stands(2, Some(0), Some(1)),
            stands(3, Some(0), None),
            stands(4, Some(0), Some(0)),
        ];
        pace.looked(&all, &Extent::default());
        assert_eq!(calm(&mut pace, 15), some([1, 2, 3]));
        let extent = Extent {
            within: Some([1, 2].into()),
            ..Extent::default()
        };
        pace.looked(&[stands(2, Some(3), Some(0))], &extent);
        assert_eq!(calm(&mut pace, 30), some([2, 3]));
    }

    #[test]
    fn only_what_refuses_is_looked_at_each_second() {
        let mut pace = pace();
        moved(&mut pace, 8);
        for second in 1..15 {
            assert_eq!(pace.second([9].into(), at(second)), some([9]));
        }
        assert_eq!(pace.second([9].into(), at(15)), some([8, 9]));
        pace.all();
        assert_eq!(pace.second([9].into(), at(16)), Wanted::All);
        assert_eq!(pace.second([9].into(), at(17)), some([9]));
    }

    #[test]
    fn where_not_all_is_told_it_looks_at_all() {
        let mut lossy = pace();
        lossy.lost();
        assert_eq!(calm(&mut lossy, 1), Wanted::Nothing);
        assert_eq!(calm(&mut lossy, 15), Wanted::All);
        assert_eq!(calm(&mut lossy, 30), Wanted::Nothing);
        let mut pace = Pace::new(REST, of_kind(Kind::Refusal));
        assert_eq!(calm(&mut pace, 0), Wanted::All);
        assert_eq!(calm(&mut pace, 14), Wanted::Nothing);
        assert_eq!(calm(&mut pace, 15), Wanted::All);
    }
}

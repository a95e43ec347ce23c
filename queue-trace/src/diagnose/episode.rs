//! An episode: a time in which one listener refused, with at most a few calm seconds inside.
//! The unit of the diagnosis, of alerts and of incident recordings.
//!
//! Here is what is known of one; [`super::detector`] finds them, live or in a recording.

use std::collections::BTreeMap;

use queue_trace_common::outcome::{
    self, COOKIE_DROPPED_ACCEPT_QUEUE_FULL, COOKIE_DROPPED_OTHER, COOKIE_FAILED_OPTIONS,
    COOKIE_SENT_FULL, ESTABLISHED_COOKIE, Set,
};
use serde::{Serialize, Serializer};

use super::distinct::Estimate;
use crate::model::{
    clock::NS_PER_SECOND,
    event::{Sysctls, outcome_named, rfc3339},
};

/// Counts by the tag of the outcome.
pub type OutcomeSums = BTreeMap<u8, u64>;

/// The outcomes of a set of tags.
#[must_use]
pub const fn set_of(tags: &[u8]) -> Set {
    let mut set = 0;
    let mut at = 0;
    while at < tags.len() {
        set |= 1 << tags[at];
        at += 1;
    }
    set
}

/// Refused because the accept queue was full.
pub const ACCEPT_FULL: Set = set_of(&[
    outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL,
    outcome::ACK_DROPPED_ACCEPT_QUEUE_FULL_RESET,
    COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
]);
/// Refused, or answered with a cookie, because of the SYN queue.
pub const SYN_FULL: Set = set_of(&[
    COOKIE_SENT_FULL,
    outcome::SYN_DROPPED_SYN_QUEUE_FULL,
    outcome::SYN_DROPPED_LAST_QUARTER,
]);
/// Refused because nobody listened.
pub const NOBODY: Set = set_of(&[outcome::SYN_REFUSED_NO_LISTENER]);
/// Entered the accept queue.
pub const ENTERED: Set = set_of(&[
    outcome::ESTABLISHED_HANDSHAKE,
    ESTABLISHED_COOKIE,
    outcome::ESTABLISHED_FAST_OPEN,
]);
/// A cookie that this machine sent came back.
pub const COOKIE_BACK: Set = set_of(&[
    ESTABLISHED_COOKIE,
    COOKIE_DROPPED_ACCEPT_QUEUE_FULL,
    COOKIE_DROPPED_OTHER,
    COOKIE_FAILED_OPTIONS,
]);

/// A time without an accept() that is an outage, seconds.
pub const STOPPED_SECONDS: u64 = 3;
/// The same if it is known why, as a look at its owner found it.
pub const STOPPED_SEEN_SECONDS: u64 = 1;
/// How many times longer than usual a pause must be, where the application does take some.
pub const STOPPED_TIMES: u64 = 4;
/// The queue is full for so long in a burst at most, seconds; for longer the application is too slow.
pub const BURST_SECONDS: u64 = 5;

/// What it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trouble {
    /// The accept queue was full, and connections were refused.
    AcceptQueueFull,
    /// The SYN queue was full: SYNs were dropped, or answered with cookies.
    SynQueueFull,
    /// Nobody listened on a port whose listener was closed: SYNs were answered with resets.
    NoListener,
}

impl Trouble {
    /// How many there are.
    pub const COUNT: usize = 3;
    /// Each of them.
    pub const ALL: [Self; Self::COUNT] =
        [Self::AcceptQueueFull, Self::SynQueueFull, Self::NoListener];

    /// The outcomes that it consists of.
    #[must_use]
    pub fn outcomes(self) -> Set {
        match self {
            Self::AcceptQueueFull => ACCEPT_FULL,
            Self::SynQueueFull => SYN_FULL,
            Self::NoListener => NOBODY,
        }
    }

    /// For people.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::AcceptQueueFull => "accept queue full",
            Self::SynQueueFull => "SYN queue full",
            Self::NoListener => "no listener",
        }
    }

    /// As in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AcceptQueueFull => "accept_queue_full",
            Self::SynQueueFull => "syn_queue_full",
            Self::NoListener => "no_listener",
        }
    }
}

/// How an accept queue came to be full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// For seconds nothing left it.
    TookNothing,
    /// Connections left it, for long more slowly than they came.
    TooSlow,
    /// It was full for moments, and empty in between.
    Bursts,
    /// It cannot be told.
    Unclear,
}

/// What is known of an episode. Moments are nanoseconds as of
/// [`Timeline`](super::timeline::Timeline).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Episode {
    /// What it is about.
    pub trouble: Trouble,
    /// The first packet that was refused.
    #[serde(rename = "begin", serialize_with = "as_time")]
    pub begin_ns: i128,
    /// The last one.
    #[serde(rename = "end", serialize_with = "as_time")]
    pub end_ns: i128,
    /// Whether it had not ended when the observation did.
    pub ongoing: bool,
    /// How often each outcome was at the listener, from the first refusal on.
    #[serde(serialize_with = "by_name")]
    pub outcomes: OutcomeSums,
    /// Packets that make the trouble: dropped, or answered with a cookie.
    pub packets: u64,
    /// Packets among them whose client is not known, as they were rate-limited.
    #[serde(skip_serializing_if = "is_zero")]
    pub unnamed: u64,
    /// Seconds in which there were such.
    pub seconds: u64,
    /// Connections that they belong to: different client addresses and ports.
    pub connections: Estimate,
    /// Of these, those that got in later.
    pub served_later: Estimate,
    /// Clients: different addresses.
    pub clients: Estimate,
    /// The limit in force at the refusals: the smallest and the largest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<(u32, u32)>,
    /// How deep the accept queue was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deepest: Option<u32>,
    /// How deep the accept queue was at the refusals, at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deepest_at_refusals: Option<u32>,
    /// How deep the SYN queue was seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deepest_syn: Option<u32>,
    /// How many connections left the accept queue: accepted where that is seen, else those that
    /// entered less the change of the depth. Absent where neither is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left: Option<u64>,
    /// The longest time in it in which nothing left the accept queue.
    #[serde(rename = "longest_without_accept_s", serialize_with = "as_seconds")]
    pub longest_still_ns: i128,
    /// When that began.
    #[serde(skip)]
    pub still_since_ns: i128,
    /// When something left it last.
    #[serde(skip)]
    pub last_left_ns: i128,
    /// How often the queue was full and then seen at half of its limit or less.
    pub drained: u64,
    /// The longest time from one draining to the last refusal before the next.
    #[serde(rename = "longest_full_s", serialize_with = "as_seconds")]
    pub longest_run_ns: i128,
    /// Connections refused between two drainings, the most.
    pub deepest_burst: Estimate,
    /// Packets in the worst second.
    pub worst_second: u64,
    /// The settings at the last packet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sysctls: Option<Sysctls>,
    /// Its course.
    #[serde(skip)]
    pub course: Course,
}

/// The course of an episode, in parts of equal length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Course {
    /// How long a part is, seconds.
    pub width: u32,
    /// The parts, from the episode's begin on.
    pub parts: Vec<Part>,
}

/// A part of an episode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Part {
    /// Packets refused.
    pub refused: u64,
    /// Connections that entered the accept queue.
    pub entered: u64,
    /// The deepest that the accept queue was seen.
    pub depth: Option<u32>,
}

/// Parts of a course at most.
const PARTS: usize = 128;

impl Default for Course {
    fn default() -> Self {
        Self {
            width: 1,
            parts: Vec::new(),
        }
    }
}

impl Course {
    /// The part of a moment, so long after the begin.
    pub fn part(&mut self, after_ns: i128) -> &mut Part {
        let second = u64::try_from(after_ns / NS_PER_SECOND).unwrap_or(0);
        while second / u64::from(self.width) >= PARTS as u64 && self.width < 1 << 30 {
            self.width *= 2;
            let wider = self.parts.chunks(2).map(|pair| {
                let mut sum = pair[0];
                if let Some(second) = pair.get(1) {
                    sum.refused = sum.refused.saturating_add(second.refused);
                    sum.entered = sum.entered.saturating_add(second.entered);
                    sum.depth = sum.depth.max(second.depth);
                }
                sum
            });
            self.parts = wider.collect();
        }
        let at = ((second / u64::from(self.width)) as usize).min(PARTS - 1);
        if self.parts.len() <= at {
            self.parts.resize(at + 1, Part::default());
        }
        &mut self.parts[at]
    }
}

impl Episode {
    /// That began now.
    #[must_use]
    pub fn new(trouble: Trouble, at: i128) -> Self {
        Self {
            trouble,
            begin_ns: at,
            end_ns: at,
            ongoing: true,
            outcomes: OutcomeSums::new(),
            packets: 0,
            unnamed: 0,
            seconds: 0,
            connections: Estimate::default(),
            served_later: Estimate::default(),
            clients: Estimate::default(),
            limit: None,
            deepest: None,
            deepest_at_refusals: None,
            deepest_syn: None,
            left: None,
            longest_still_ns: 0,
            still_since_ns: at,
            last_left_ns: at,
            drained: 0,
            longest_run_ns: 0,
            deepest_burst: Estimate::default(),
            worst_second: 0,
            sysctls: None,
            course: Course::default(),
        }
    }

    /// How often outcomes of the set were.
    #[must_use]
    pub fn count(&self, set: Set) -> u64 {
        sum(&self.outcomes, set)
    }

    /// How long it lasted, from the first packet refused to the last.
    #[must_use]
    pub fn duration_ns(&self) -> i128 {
        self.end_ns - self.begin_ns
    }

    /// How long it was looked at what left the accept queue.
    #[must_use]
    pub fn observed_ns(&self) -> i128 {
        self.end_ns.max(self.last_left_ns) - self.begin_ns
    }

    /// Cookies sent because the SYN queue was full, and those that came back: a client whose cookie
    /// is refused sends it again.
    #[must_use]
    pub fn cookies(&self) -> (u64, u64) {
        let sent = self.count(set_of(&[COOKIE_SENT_FULL]));
        (sent, self.count(COOKIE_BACK).min(sent))
    }

    /// How the accept queue came to be full. `told`: the outcomes that would have been seen.
    #[must_use]
    pub fn pattern(&self, told: Set) -> Pattern {
        // Fast open is left out: not every way to attach tells it.
        const COMING: Set = set_of(&[outcome::ESTABLISHED_HANDSHAKE, ESTABLISHED_COOKIE]);
        if told & COMING != COMING {
            return Pattern::Unclear;
        }
        if self.took_nothing_for(STOPPED_SECONDS) {
            return Pattern::TookNothing;
        }
        if self.longest_run_ns >= i128::from(BURST_SECONDS) * NS_PER_SECOND {
            return Pattern::TooSlow;
        }
        if self.drained > 0 {
            return Pattern::Bursts;
        }
        Pattern::Unclear
    }

    /// Whether nothing left the queue for so long, and for much longer than usual.
    #[must_use]
    pub fn took_nothing_for(&self, seconds: u64) -> bool {
        // What the longest wait for the next is compared with is the rest of the episode: one
        // connection that was taken before it makes it no shorter.
        let rest = (self.observed_ns() - self.longest_still_ns).max(0);
        let usual = self
            .left
            .filter(|left| *left > 0)
            .map_or(0, |left| rest / i128::from(left));
        self.longest_still_ns >= i128::from(seconds) * NS_PER_SECOND
            && self.longest_still_ns >= usual * i128::from(STOPPED_TIMES)
    }

    /// The backlog with which the deepest burst would have fitted in.
    #[must_use]
    pub fn enough(&self) -> Option<u64> {
        let (_, limit) = self.limit?;
        Some(u64::from(limit) + self.deepest_burst.count)
    }

    /// How bad it is beside others: packets, then time.
    #[must_use]
    pub(super) fn weight(&self) -> (u64, i128) {
        (self.packets, self.duration_ns())
    }
}

/// Adds up those of a set.
pub(super) fn sum(sums: &OutcomeSums, set: Set) -> u64 {
    let in_set = sums.iter().filter(|(tag, _)| set >> **tag & 1 == 1);
    in_set.fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

/// What JSON holds exactly, and no count reaches: sums stop there.
pub(super) const MOST_COUNT: u64 = 1 << 53;

/// Adds to a sum, whatever a garbled recording says.
pub(super) fn add(sum: &mut u64, count: u64) {
    *sum = sum.saturating_add(count).min(MOST_COUNT);
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

fn as_time<S: Serializer>(ns: &i128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&rfc3339(*ns))
}

fn as_seconds<S: Serializer>(ns: &i128, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((*ns / 1_000_000) as f64 / 1e3)
}

fn by_name<S: Serializer>(sums: &OutcomeSums, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(sums.iter().filter_map(|(tag, count)| {
        let outcome = outcome::Outcome::of(*tag)?;
        let name = crate::model::event::Name(outcome).to_string();
        debug_assert!(outcome_named(&name).is_some());
        Some((name, count))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_course_stays_bounded_and_loses_no_packet() {
        let mut course = Course::default();
        for second in 0..100_000i128 {
            course.part(second * NS_PER_SECOND).refused += 1;
        }
        assert!(course.parts.len() <= PARTS);
        let all: u64 = course.parts.iter().map(|part| part.refused).sum();
        assert_eq!(all, 100_000);
    }

    #[test]
    fn a_pause_is_an_outage_only_if_it_is_longer_than_usual() {
        const TOLD: Set = Set::MAX;
        let mut episode = Episode::new(Trouble::AcceptQueueFull, 0);
        episode.end_ns = 30 * NS_PER_SECOND;
        episode.longest_run_ns = episode.end_ns;
        episode.longest_still_ns = 5 * NS_PER_SECOND;
        // One connection in 5 s.
        episode.left = Some(6);
        assert_eq!(episode.pattern(TOLD), Pattern::TooSlow);
        episode.left = Some(0);
        assert_eq!(episode.pattern(TOLD), Pattern::TookNothing);
        // Fast, but for the pause.
        episode.left = Some(500);
        assert_eq!(episode.pattern(TOLD), Pattern::TookNothing);
        assert_eq!(episode.pattern(0), Pattern::Unclear);
    }
}

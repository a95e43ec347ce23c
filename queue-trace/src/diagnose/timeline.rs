//! When the lines of a recording were, on one clock that only goes forward.
//!
//! Events and counts carry the monotonic clock and the wall clock, other lines (and the counts of
//! older recordings) the wall clock alone. A moment here is nanoseconds since 1970 as the wall clock stood at the
//! beginning: the monotonic clock, moved there once. So a step of the wall clock, or a line with a
//! nonsense time, changes no duration; it becomes a note.

use crate::model::{
    clock::NS_PER_SECOND,
    event::{Event, from_rfc3339, rfc3339},
    lines::Counts,
};

/// The clock of a recording.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    /// What the wall clock was ahead of the monotonic one at first, and at last.
    ahead: Option<(i128, i128)>,
    /// The first and the last moment.
    span: Option<(i128, i128)>,
    /// Whether the last moment is an event's.
    by_event: bool,
    notes: Vec<String>,
    steps: u64,
    nonsense: u64,
}

/// A wall clock that differs by less was only corrected.
const STEP: i128 = NS_PER_SECOND;
/// Lines are written in order, but for those of several CPUs.
const DISORDER: i128 = 60 * NS_PER_SECOND;
/// Counts are written within a second after the events that they count.
const AFTER_EVENTS: i128 = 5 * NS_PER_SECOND;
/// No recording is silent for longer.
const LONGEST_SILENCE: i128 = 366 * 24 * 3600 * NS_PER_SECOND;
/// Steps that are named one by one.
const NAMED: u64 = 3;

impl Timeline {
    /// The first and the last moment of which something is known.
    #[must_use]
    pub fn span(&self) -> Option<(i128, i128)> {
        self.span
    }

    /// How long it lasted, seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.span.map_or(0.0, |(from, to)| (to - from) as f64 / 1e9)
    }

    /// What is wrong with the clock, a sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = self.notes.clone();
        if self.steps > NAMED {
            notes.push(format!(
                "the wall clock was set {} times in all",
                self.steps
            ));
        }
        if self.nonsense > 0 {
            notes.push(format!(
                "{} lines have a time that cannot be: they were taken to be where they stand in the recording",
                self.nonsense
            ));
        }
        notes
    }

    /// The moment of an event.
    pub fn event(&mut self, event: &Event) -> i128 {
        self.exactly(event.mono_ns, event.wall_ns)
    }

    /// The moment of counts: by both clocks, where the recording has both.
    pub fn counts(&mut self, counts: &Counts) -> Option<i128> {
        match (counts.mono_ns, from_rfc3339(&counts.time)) {
            (Some(mono_ns), Ok(wall_ns)) => Some(self.exactly(mono_ns, wall_ns)),
            _ => self.wall(&counts.time, true),
        }
    }

    /// The moment of a line with both clocks.
    pub fn exactly(&mut self, mono_ns: u64, wall_ns: i128) -> i128 {
        let mono = i128::from(mono_ns);
        let ahead = wall_ns.saturating_sub(mono);
        let (first, last) = match self.ahead {
            Some(known) => known,
            None => {
                let first = self.first_offset(mono, wall_ns);
                (first, first)
            }
        };
        if (ahead - last).abs() >= STEP {
            self.step(mono + first, ahead - last);
        }
        self.ahead = Some((first, ahead));
        let at = mono + first;
        self.by_event = true;
        self.reach(at);
        at
    }

    /// The first line with both clocks tells how they stand to each other, unless its wall
    /// clock cannot be right.
    fn first_offset(&self, mono: i128, wall_ns: i128) -> i128 {
        match self.span {
            Some((_, last)) if wall_ns < last - DISORDER || wall_ns > last + LONGEST_SILENCE => {
                last - mono
            }
            _ => wall_ns - mono,
        }
    }

    /// The moment of a line that has the wall clock alone. `counts` follow their events at once.
    pub fn wall(&mut self, time: &str, counts: bool) -> Option<i128> {
        let Ok(wall) = from_rfc3339(time) else {
            self.nonsense += 1;
            return self.span.map(|(_, last)| last);
        };
        let drift = self.ahead.map_or(0, |(first, last)| last - first);
        let at = wall.saturating_sub(drift);
        let Some((_, last)) = self.span else {
            self.reach(at);
            return Some(at);
        };
        let late = if counts && self.by_event {
            AFTER_EVENTS
        } else {
            LONGEST_SILENCE
        };
        if at < last - DISORDER || at > last + LONGEST_SILENCE {
            self.nonsense += 1;
            return Some(last);
        }
        if at > last + late {
            // A step that the next event tells.
            return Some(last);
        }
        self.by_event = counts && self.by_event;
        self.reach(at);
        Some(at)
    }

    /// The moment of a time that a line tells of something earlier.
    #[must_use]
    pub fn moment(&self, time: &str) -> Option<i128> {
        let drift = self.ahead.map_or(0, |(first, last)| last - first);
        let wall = from_rfc3339(time).ok()?;
        Some(wall.saturating_sub(drift))
    }

    fn step(&mut self, at: i128, by: i128) {
        self.steps += 1;
        if self.steps > NAMED {
            return;
        }
        let (way, seconds) = if by > 0 {
            ("forward", by / NS_PER_SECOND)
        } else {
            ("back", -by / NS_PER_SECOND)
        };
        self.notes.push(format!(
            "the wall clock was set {way} by {seconds} s at {} (or the machine was suspended): durations are by the \
             monotonic clock, and times after it are as the clock stood before",
            rfc3339(at)
        ));
    }

    fn reach(&mut self, at: i128) {
        let (from, to) = self.span.unwrap_or((at, at));
        self.span = Some((from.min(at), to.max(at)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: i128 = 1_700_000_000 * NS_PER_SECOND;

    fn at(second: i128) -> (u64, i128) {
        let mono = (5_000 + second) * NS_PER_SECOND;
        (mono as u64, START + second * NS_PER_SECOND)
    }

    #[test]
    fn a_step_of_the_clock_changes_no_duration() {
        for step in [3600, -3600, -1_600_000_000i128] {
            let mut timeline = Timeline::default();
            timeline.wall(&rfc3339(START), false);
            let (mono, wall) = at(1);
            let first = timeline.exactly(mono, wall);
            let (mono, wall) = at(10);
            let wall = wall + step * NS_PER_SECOND;
            assert_eq!(timeline.exactly(mono, wall) - first, 9 * NS_PER_SECOND);
            let counts = timeline.wall(&rfc3339(wall + NS_PER_SECOND), true);
            assert_eq!(counts, Some(first + 10 * NS_PER_SECOND));
            assert!((timeline.seconds() - 11.0).abs() < 1e-6);
            let notes = timeline.notes();
            assert_eq!(notes.len(), 1);
            assert!(notes[0].contains("clock was set"), "{notes:?}");
        }
    }

    #[test]
    fn counts_written_in_the_second_of_a_step_stay_with_their_events() {
        let mut timeline = Timeline::default();
        let (mono, wall) = at(1);
        let first = timeline.exactly(mono, wall);
        let counts = timeline.wall(&rfc3339(wall + 3600 * NS_PER_SECOND), true);
        assert_eq!(counts, Some(first));
    }

    #[test]
    fn counts_with_both_clocks_tell_a_step_without_an_event() {
        let mut timeline = Timeline::default();
        let mut counts = |second, step| {
            let (mono, wall) = at(second);
            let counts = Counts {
                time: rfc3339(wall + step * NS_PER_SECOND),
                mono_ns: Some(mono),
                netns: 1,
                listener: crate::model::socket::Listener::default(),
                outcomes: std::collections::BTreeMap::new(),
            };
            timeline.counts(&counts).unwrap()
        };
        let first = counts(1, 0);
        assert_eq!(counts(3, -3600) - first, 2 * NS_PER_SECOND);
        assert_eq!(counts(4, -3600) - first, 3 * NS_PER_SECOND);
        assert!(timeline.notes()[0].contains("set back by 3600 s"));
    }

    #[test]
    fn a_nonsense_time_is_said_and_moves_nothing() {
        let mut timeline = Timeline::default();
        timeline.wall(&rfc3339(START), false);
        let (mono, wall) = at(2);
        timeline.exactly(mono, wall);
        timeline.wall("0001-01-01T00:00:00Z", true);
        timeline.wall("no time", true);
        assert!((timeline.seconds() - 2.0).abs() < 1e-6);
        assert!(timeline.notes()[0].contains("2 lines"));
        // The first event of all is no better than another.
        let mut timeline = Timeline::default();
        timeline.wall(&rfc3339(START), false);
        assert_eq!(timeline.exactly(7, -60_000_000_000 * NS_PER_SECOND), START);
    }
}

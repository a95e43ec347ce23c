//! The episodes that one finding is about, and what they add up to: when, how often, how bad.

use jiff::{Timestamp, tz::TimeZone};

use super::{
    distinct::Estimate,
    episode::{Episode, Pattern, Trouble, add},
    history::History,
};
use crate::model::clock::NS_PER_SECOND;

/// Episodes of one listener, of one kind.
#[derive(Debug, Clone)]
pub struct When {
    /// Those that are known whole, worst first; one at least.
    episodes: Vec<Episode>,
    times: u64,
    packets: u64,
    span: (i128, i128),
}

impl When {
    /// The episodes at a listener that pass; `None` if there are none. Those that are known as sums
    /// alone are added by their patterns.
    #[must_use]
    pub fn of(
        history: &History,
        trouble: Trouble,
        passes: impl Fn(&Episode) -> bool,
        patterns: &[Pattern],
    ) -> Option<Self> {
        let mut episodes = history.detector.episodes(trouble);
        episodes.retain(passes);
        episodes.sort_by_key(|episode| std::cmp::Reverse(episode.weight()));
        let begin = episodes.iter().map(|episode| episode.begin_ns).min()?;
        let end = episodes.iter().map(|episode| episode.end_ns).max()?;
        let mut when = Self {
            times: episodes.len() as u64,
            packets: 0,
            span: (begin, end),
            episodes,
        };
        for episode in &when.episodes {
            add(&mut when.packets, episode.packets);
        }
        for (_, rest) in history
            .detector
            .rest(trouble)
            .iter()
            .filter(|(pattern, _)| patterns.contains(pattern))
        {
            when.times += rest.times;
            add(&mut when.packets, rest.packets);
            if let Some((from, to)) = rest.span {
                when.span = (when.span.0.min(from), when.span.1.max(to));
            }
        }
        Some(when)
    }

    /// How many episodes.
    #[must_use]
    pub fn times(&self) -> u64 {
        self.times
    }

    /// Packets in all of them.
    #[must_use]
    pub fn packets(&self) -> u64 {
        self.packets
    }

    /// The first packet of all and the last.
    #[must_use]
    pub fn span(&self) -> (i128, i128) {
        self.span
    }

    /// Whether one goes on.
    #[must_use]
    pub fn is_ongoing(&self) -> bool {
        self.episodes.iter().any(|episode| episode.ongoing)
    }

    /// With those episodes over that are known to be, although they were not calm for long.
    #[must_use]
    pub fn over(mut self, is_over: impl Fn(&Episode) -> bool) -> Self {
        for episode in &mut self.episodes {
            episode.ongoing &= !is_over(episode);
        }
        self
    }

    /// The worst ones.
    pub fn worst(&self, most: usize) -> impl Iterator<Item = &Episode> {
        self.episodes.iter().take(most)
    }

    /// The worst one.
    #[must_use]
    pub fn first(&self) -> &Episode {
        // There is one at least.
        &self.episodes[0]
    }

    /// All that are known whole.
    #[must_use]
    pub fn whole(&self) -> &[Episode] {
        &self.episodes
    }

    /// When and how often, and how bad the worst was.
    #[must_use]
    pub fn words(&self) -> String {
        let worst = self.first();
        let once = || between(worst.begin_ns, worst.end_ns);
        let going_on = if self.is_ongoing() {
            "; it had not ended when the observation did"
        } else {
            ""
        };
        if self.times == 1 {
            return format!("{}{going_on}", once());
        }
        let (from, to) = self.span;
        format!(
            "{} times, {}; the worst was {}: {}{going_on}",
            self.times,
            between(from, to),
            once(),
            refused(worst)
        )
    }
}

/// What was refused in an episode: packets, connections and clients, each by its name.
#[must_use]
pub fn refused(episode: &Episode) -> String {
    let packets = plural(episode.packets, "packet");
    if episode.connections == Estimate::default() {
        return packets;
    }
    let least = match episode.unnamed {
        0 => "",
        _ => "at least ",
    };
    let count = |estimate: Estimate, what: &str| match estimate.count {
        1 => format!("1 {what}"),
        _ => format!("{} {what}s", estimate.words()),
    };
    format!(
        "{packets} of {least}{} from {least}{}",
        count(episode.connections, "connection"),
        count(episode.clients, "client address").replace("addresss", "addresses")
    )
}

/// A number and what it counts.
#[must_use]
pub fn plural(count: u64, what: &str) -> String {
    match count {
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

/// Two moments and the time between them.
#[must_use]
pub fn between(from: i128, to: i128) -> String {
    if to - from < NS_PER_SECOND / 10 {
        return format!("at {} UTC", moment(from, "%Y-%m-%d %H:%M:%S%.1f"));
    }
    let same_day = moment(from, "%F") == moment(to, "%F");
    let format = if same_day {
        "%H:%M:%S%.1f"
    } else {
        "%Y-%m-%d %H:%M:%S%.1f"
    };
    format!(
        "from {} to {} UTC ({})",
        moment(from, "%Y-%m-%d %H:%M:%S%.1f"),
        moment(to, format),
        duration(to - from)
    )
}

/// A duration as a person says it.
#[must_use]
pub fn duration(ns: i128) -> String {
    let seconds = ns as f64 / 1e9;
    match seconds {
        ..0.0095 => format!("{:.1} ms", seconds * 1e3),
        ..0.95 => format!("{:.0} ms", seconds * 1e3),
        ..600.0 => format!("{seconds:.1} s"),
        ..7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{:.1} h", seconds / 3600.0),
    }
}

fn moment(ns: i128, format: &str) -> String {
    Timestamp::from_nanosecond(ns).map_or_else(
        |_| "?".to_owned(),
        |moment| moment.to_zoned(TimeZone::UTC).strftime(format).to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_connections_and_clients_are_named_apart() {
        let mut episode = Episode::new(Trouble::AcceptQueueFull, 0);
        episode.packets = 60;
        assert_eq!(refused(&episode), "60 packets");
        let count = |count| Estimate {
            count,
            error_percent: 0,
        };
        episode.connections = count(10);
        episode.clients = count(1);
        assert_eq!(
            refused(&episode),
            "60 packets of 10 connections from 1 client address"
        );
        episode.clients = count(3);
        episode.unnamed = 4;
        assert_eq!(
            refused(&episode),
            "60 packets of at least 10 connections from at least 3 client addresses"
        );
    }

    #[test]
    fn times_are_said_as_a_person_reads_them() {
        let begin = 1_763_730_000 * NS_PER_SECOND;
        assert_eq!(
            between(begin, begin + 2_500_000_000),
            "from 2025-11-21 13:00:00.0 to 13:00:02.5 UTC (2.5 s)"
        );
        assert_eq!(between(begin, begin), "at 2025-11-21 13:00:00.0 UTC");
        assert_eq!(duration(3_000_000), "3.0 ms");
        assert_eq!(duration(90 * 60 * NS_PER_SECOND), "90 min");
    }
}

//! The charts of the page: which lines over which time. The page's script draws them, and its
//! tables say the same.

use std::collections::{BTreeMap, BTreeSet};

use queue_trace_common::outcome::{Kind, OUTCOMES, of_kind};
use serde::Serialize;

use crate::{
    diagnose::{
        Case,
        case::{HeldUp, History, TimeSlot},
        episode::Trouble,
    },
    model::{clock::NS_PER_SECOND, event::Name, latency::Distribution, words::short_time},
};

/// Values over time.
#[derive(Debug, Serialize)]
pub struct Chart {
    /// The element that it is drawn in.
    pub id: String,
    /// What it shows.
    pub title: String,
    /// What its values count.
    pub unit: &'static str,
    /// Whether the series add up.
    pub stacked: bool,
    /// Seconds since 1970.
    pub time: Vec<i64>,
    /// Its lines.
    pub series: Vec<Curve>,
}

/// One line of a chart.
#[derive(Debug, Serialize)]
pub struct Curve {
    /// What it is.
    pub label: String,
    /// Its colour, a number of the page's palette.
    pub colour: usize,
    /// Whether it is a limit.
    pub dashed: bool,
    /// A value for each time, if there is one.
    pub values: Vec<Option<u64>>,
}

/// The unit of times, which are drawn to a scale of powers.
const MICROSECONDS: &str = "µs";

/// Colours of the palette.
const COLOURS: usize = 8;

impl Chart {
    /// In one sentence, for those who cannot see it.
    #[must_use]
    pub fn says(&self) -> String {
        let peaks: Vec<_> = self
            .series
            .iter()
            .map(|series| {
                let most = series.values.iter().flatten().max().copied().unwrap_or(0);
                format!("{} at most {}", series.label, self.shown(most))
            })
            .collect();
        format!(
            "Chart over time: {}. {}. A table follows.",
            self.title,
            peaks.join(", ")
        )
    }

    /// A value as a person reads it.
    #[must_use]
    pub fn shown(&self, value: u64) -> String {
        if self.unit == MICROSECONDS {
            short_time(value)
        } else {
            value.to_string()
        }
    }

    /// Its rows, those in which there is something, so many at most.
    pub fn rows(&self, most: usize) -> impl Iterator<Item = (i64, Vec<Option<u64>>)> {
        self.time
            .iter()
            .enumerate()
            .map(|(at, time)| {
                let values = self.series.iter().map(|series| series.values[at]).collect();
                (*time, values)
            })
            .filter(|(_, values): &(i64, Vec<Option<u64>>)| {
                values.iter().flatten().any(|value| *value > 0)
            })
            .take(most)
    }
}

/// What was refused in all, by cause.
#[must_use]
pub fn overview(case: &Case) -> Option<Chart> {
    let mut all: BTreeMap<i64, TimeSlot> = BTreeMap::new();
    for history in case.listeners.values() {
        for (at, slot) in &history.slots {
            let sum = all.entry(*at).or_default();
            for (tag, count) in &slot.outcomes {
                let sum = sum.outcomes.entry(*tag).or_default();
                *sum = sum.saturating_add(*count);
            }
        }
    }
    outcomes(
        case,
        &all,
        "overview",
        "Refused or put off, all listeners",
        Kind::Refusal,
    )
}

/// The charts of one listener.
#[must_use]
pub fn charts(case: &Case, history: &History, number: usize) -> Vec<Chart> {
    let mut charts = Vec::new();
    let id = |what: &str| format!("l{number}-{what}");
    charts.extend(outcomes(
        case,
        &history.slots,
        &id("refused"),
        "Refused or put off, by cause",
        Kind::Refusal,
    ));
    charts.extend(outcomes(
        case,
        &history.slots,
        &id("routine"),
        "The normal course",
        Kind::Routine,
    ));
    charts.extend(depth(case, history, id("depth")));
    charts.extend(stall(case, history, id("stall")));
    charts.extend(latency(case, history, id("latency")));
    charts
}

/// Every moment from the first slot to the last.
fn times(case: &Case, slots: &BTreeMap<i64, TimeSlot>) -> Vec<i64> {
    let (Some((first, _)), Some((last, _))) = (slots.first_key_value(), slots.last_key_value())
    else {
        return Vec::new();
    };
    // One more at each end, so that a single slot has an extent.
    (first - 1..=last + 1)
        .map(|slot| case.begins(slot))
        .collect()
}

fn outcomes(
    case: &Case,
    slots: &BTreeMap<i64, TimeSlot>,
    id: &str,
    title: &str,
    kind: Kind,
) -> Option<Chart> {
    let shown: BTreeSet<u8> = slots
        .values()
        .flat_map(|slot| slot.outcomes.keys().copied())
        .filter(|tag| of_kind(kind) >> tag & 1 == 1)
        .collect();
    if shown.is_empty() {
        return None;
    }
    let time = times(case, slots);
    let series = shown.into_iter().enumerate().filter_map(|(place, tag)| {
        let outcome = OUTCOMES.iter().find(|outcome| outcome.tag == tag)?;
        let value = |time: &i64| {
            let slot = slots.get(&(time / case.width));
            Some(
                slot.and_then(|slot| slot.outcomes.get(&tag))
                    .copied()
                    .unwrap_or(0),
            )
        };
        Some(Curve {
            label: Name(outcome).to_string(),
            colour: place % COLOURS,
            dashed: false,
            values: time.iter().map(value).collect(),
        })
    });
    let series = series.collect();
    let each = if case.width == 1 {
        "each second".to_owned()
    } else {
        format!("each {} s", case.width)
    };
    Some(Chart {
        id: id.to_owned(),
        title: format!("{title}, {each}"),
        unit: "count",
        stacked: true,
        time,
        series,
    })
}

fn depth(case: &Case, history: &History, id: String) -> Option<Chart> {
    let time = times(case, &history.slots);
    let of = |depth: fn(&TimeSlot) -> Option<u32>| -> Vec<Option<u64>> {
        let value = |time: &i64| {
            history
                .slots
                .get(&(time / case.width))
                .and_then(depth)
                .map(u64::from)
        };
        time.iter().map(value).collect()
    };
    let accept = of(|slot| slot.depth);
    let syn = of(|slot| slot.syn_depth);
    // One moment makes no line; the table of listeners has it.
    let told = accept.iter().zip(&syn);
    let told = told.filter(|(accept, syn)| accept.is_some() || syn.is_some());
    (told.count() > 1).then_some(())?;
    let mut series = vec![
        Curve {
            label: "accept queue".to_owned(),
            colour: 2,
            dashed: false,
            values: accept,
        },
        Curve {
            label: "SYN queue".to_owned(),
            colour: 4,
            dashed: false,
            values: syn,
        },
    ];
    let limits = limits(case, history, &time);
    if limits.iter().any(Option::is_some) {
        series.push(Curve {
            label: "limit".to_owned(),
            colour: 0,
            dashed: true,
            values: limits,
        });
    }
    if let Some(episodes) = episodes(case, history, &time) {
        series.push(episodes);
    }
    Some(Chart {
        id,
        title: "Depth of the queues against their limit, the deepest seen".to_owned(),
        unit: "connections",
        stacked: false,
        time,
        series,
    })
}

/// What kept the owner from accepting, as it was looked at: to be read beside the depth.
fn stall(case: &Case, history: &History, id: String) -> Option<Chart> {
    let time = times(case, &history.slots);
    let of = |part: fn(&HeldUp) -> Option<u64>| -> Vec<Option<u64>> {
        let slot = |time: &i64| history.slots.get(&(time / case.width));
        let value = |time: &i64| part(slot(time)?.held.as_deref()?);
        time.iter().map(value).collect()
    };
    let lines = [
        ("throttled by its CPU quota", 1, of(|held| held.throttled)),
        ("waited for a CPU (one thread)", 2, of(|held| held.delay)),
        ("ran (one thread)", 3, of(|held| held.run)),
        ("CPU pressure of the host", 0, of(|held| held.cpu)),
        ("disk pressure of the host", 4, of(|held| held.io)),
        ("memory pressure", 5, of(|held| held.memory)),
    ];
    let told = |values: &[Option<u64>]| values.iter().any(|value| value.is_some_and(|us| us > 0));
    let series: Vec<_> = lines
        .into_iter()
        .filter(|(.., values)| told(values))
        .map(|(label, colour, values)| Curve {
            label: label.to_owned(),
            colour,
            dashed: false,
            values,
        })
        .collect();
    (!series.is_empty()).then_some(Chart {
        id,
        title: "What kept the application from accepting, in percent of the time".to_owned(),
        unit: "percent",
        stacked: false,
        time,
        series,
    })
}

/// The limit in force at each moment: the one seen last, or before any the first one.
fn limits(case: &Case, history: &History, time: &[i64]) -> Vec<Option<u64>> {
    let of = |time: &i64| history.slots.get(&(time / case.width))?.limit;
    let first = time.iter().find_map(of).or(history.limit);
    let mut limit = first;
    time.iter()
        .map(|moment| {
            limit = of(moment).or(limit);
            limit.map(u64::from)
        })
        .collect()
}

/// The moments of its episodes, drawn at the deepest that the accept queue was in each.
fn episodes(case: &Case, history: &History, time: &[i64]) -> Option<Curve> {
    let mut values = vec![None; time.len()];
    for trouble in Trouble::ALL {
        for episode in history.detector.episodes(trouble) {
            let slot = |ns: i128| ns.div_euclid(NS_PER_SECOND * i128::from(case.width));
            let (from, to) = (slot(episode.begin_ns), slot(episode.end_ns));
            let depth = match trouble {
                Trouble::AcceptQueueFull => episode.deepest,
                Trouble::SynQueueFull => episode.deepest_syn,
                Trouble::NoListener => None,
            };
            for (value, moment) in values.iter_mut().zip(time) {
                let at = i128::from(moment / case.width);
                if (from..=to).contains(&at) {
                    *value = (*value).max(Some(u64::from(depth.unwrap_or(0))));
                }
            }
        }
    }
    values.iter().any(Option::is_some).then(|| Curve {
        label: "refusing (episodes)".to_owned(),
        colour: 1,
        dashed: true,
        values,
    })
}

/// Of the connections whose accept() was told, each second; where none was, of all until
/// then, as listeners were looked at.
fn latency(case: &Case, history: &History, id: String) -> Option<Chart> {
    let time = times(case, &history.slots);
    let of = |spread: fn(&TimeSlot) -> Option<Distribution>| -> Vec<Option<Distribution>> {
        let slot = |time: &i64| history.slots.get(&(time / case.width));
        time.iter().map(|time| spread(slot(time)?)).collect()
    };
    let each = of(|slot| slot.waits.as_ref()?.distribution());
    let (spreads, whose) = if each.iter().any(Option::is_some) {
        (each, "of the connections accepted in each moment")
    } else {
        let until = of(|slot| slot.latency_us?.distribution());
        (until, "of all connections accepted until then")
    };
    // One moment makes no line; the table of listeners has it.
    (spreads.iter().flatten().count() > 1).then_some(())?;
    let values = |part: fn(Distribution) -> u64| -> Vec<Option<u64>> {
        spreads.iter().map(|spread| spread.map(part)).collect()
    };
    let series = [
        ("half of them", 3, values(|spread| spread.p50)),
        ("99 of 100", 1, values(|spread| spread.p99)),
        ("the longest", 0, values(|spread| spread.max)),
    ];
    let series = series.map(|(label, colour, values)| Curve {
        label: label.to_owned(),
        colour,
        dashed: false,
        values,
    });
    Some(Chart {
        id,
        title: format!("Time in the accept queue, {whose}"),
        unit: MICROSECONDS,
        stacked: false,
        time,
        series: series.into(),
    })
}

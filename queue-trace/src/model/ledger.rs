//! The ledger: the kernel's own counters of a namespace beside the sum of our
//! verdicts, and the difference. Pure arithmetic; `netns` reads the kernel's side,
//! `probe` ours.

use std::collections::BTreeMap;

use queue_trace_common::counter::{
    self, COUNTERS, DO_COOKIES, EMBRYONIC_RST, Moved, OVERFLOW, QUEUE_DROP,
};
use serde::{Deserialize, Serialize};

/// Values of the counters, in the order of [`COUNTERS`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters(pub [u64; counter::COUNT]);

/// The counters that the ledger compares. `EmbryonicRsts` is only evidence: the
/// kernel moves it for every reset of a half-open connection.
const COMPARED: Moved = !EMBRYONIC_RST;

const PAST_TCP: &str = "full queues were counted that dropped nothing: a BPF program makes SYN cookies \
     for these listeners (bpf_tcp_gen_syncookie), of which TCP sees no packet";

impl Counters {
    /// From the text of `/proc/net/netstat`: a line of names and a line of values, by
    /// name, as columns move between kernels. A column that a kernel lacks is 0.
    /// `None` if there is no section `TcpExt`.
    #[must_use]
    pub fn parse(netstat: &str) -> Option<Self> {
        let mut lines = netstat
            .lines()
            .filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, values) = (lines.next()?, lines.next()?);
        let columns: BTreeMap<_, _> = names
            .split_whitespace()
            .zip(values.split_whitespace())
            .collect();
        let mut counters = Self::default();
        for (value, counter) in counters.0.iter_mut().zip(&COUNTERS) {
            if let Some(column) = columns.get(counter.name) {
                *value = column.parse().ok()?;
            }
        }
        Some(counters)
    }

    /// Adds other counters, one by one.
    pub fn add_all(&mut self, others: &Self) {
        for (value, other) in self.0.iter_mut().zip(others.0) {
            *value = value.wrapping_add(other);
        }
    }

    /// Whether one of them stands lower than it stood before.
    #[must_use]
    pub fn is_behind(&self, before: &Self) -> bool {
        self.0
            .iter()
            .zip(before.0)
            .any(|(now, before)| *now < before)
    }

    /// Adds `count` to each counter of the set.
    pub fn add(&mut self, moved: Moved, count: u64) {
        for (index, value) in self.0.iter_mut().enumerate() {
            if moved >> index & 1 == 1 {
                *value = value.wrapping_add(count);
            }
        }
    }
}

/// One look at both sides: ours before and after the kernel's, as neither stands
/// still.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BothSides {
    /// Our sums, before.
    pub seen_before: Counters,
    /// The kernel's counters.
    pub kernel: Counters,
    /// Our sums, after.
    pub seen_after: Counters,
}

/// The ledger of one namespace, over the time attached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "ledger")]
pub struct Ledger {
    /// The namespace.
    pub netns: u32,
    /// Counter by counter.
    pub counters: BTreeMap<String, CounterLine>,
    /// Records that found the ring full, and are in the stream as counts only.
    pub lost: u64,
    /// Movements of the kernel's counters that no verdict explains, and verdicts that
    /// no movement backs. Absent where a filter keeps us from seeing all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unexplained: Option<u64>,
    /// Why `unexplained` is absent, or what to know of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Where a filter leaves listeners or packets out: how many drops of the namespace
    /// (`ListenDrops`) are theirs, as far as is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub other_drops: Option<u64>,
}

/// Both sides of one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CounterLine {
    /// How far the kernel's counter moved; absent if it cannot be read any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<u64>,
    /// What our verdicts add up to.
    pub seen: u64,
}

impl Ledger {
    /// The ledger between two looks.
    #[must_use]
    pub fn between(netns: u32, start: &BothSides, end: &BothSides, lost: u64) -> Self {
        let mut counters = BTreeMap::new();
        let mut unexplained = 0;
        for (index, counter) in COUNTERS.iter().enumerate() {
            if COMPARED >> index & 1 == 0 {
                continue;
            }
            let moved = |from: &Counters, to: &Counters| to.0[index].wrapping_sub(from.0[index]);
            let kernel = moved(&start.kernel, &end.kernel);
            // The kernel was read between the two readings of ours, so the true sum
            // of ours over the same time lies between these.
            let least = moved(&start.seen_after, &end.seen_before);
            let most = moved(&start.seen_before, &end.seen_after);
            // `least` is negative, that is, huge, if more was seen during the first
            // look than in all the time between the looks.
            let least = if least > most { 0 } else { least };
            let seen = kernel.clamp(least, most);
            unexplained += kernel.abs_diff(seen);
            counters.insert(
                counter.name.to_owned(),
                CounterLine {
                    kernel: Some(kernel),
                    seen,
                },
            );
        }
        let mut ledger = Self {
            netns,
            counters,
            lost,
            unexplained: Some(unexplained),
            note: None,
            other_drops: None,
        };
        if ledger.cookies_were_made_past_tcp() {
            ledger.note = Some(PAST_TCP.to_owned());
        }
        ledger
    }

    /// Whether the kernel's side is ahead as it is where a BPF program makes SYN cookies:
    /// full queues are counted, and no drop (`tcp_get_syncookie_mss`,
    /// net/ipv4/tcp_input.c).
    fn cookies_were_made_past_tcp(&self) -> bool {
        const MOVED: Moved = DO_COOKIES | QUEUE_DROP | OVERFLOW;
        let mut past = 0;
        for (index, counter) in COUNTERS.iter().enumerate() {
            let Some(line) = self.counters.get(counter.name) else {
                continue;
            };
            match line.kernel {
                Some(kernel) if kernel > line.seen && MOVED >> index & 1 == 1 => past += 1,
                Some(kernel) if kernel != line.seen => return false,
                _ => {}
            }
        }
        past > 0
    }

    /// The ledger of a namespace whose counters cannot be read: our side, and why.
    #[must_use]
    pub fn one_sided(netns: u32, seen: &Counters, lost: u64, why: &str) -> Self {
        let still = BothSides::default();
        let end = BothSides {
            seen_before: *seen,
            kernel: *seen,
            seen_after: *seen,
        };
        let mut ledger = Self::between(netns, &still, &end, lost);
        for line in ledger.counters.values_mut() {
            line.kernel = None;
        }
        ledger.unexplained = None;
        ledger.note = Some(why.to_owned());
        ledger
    }

    /// Whether our side is ahead of the kernel's somewhere, and behind it nowhere.
    #[must_use]
    pub fn is_ahead(&self) -> bool {
        let lines = || self.counters.values();
        let ahead = |line: &CounterLine| line.kernel.is_some_and(|kernel| line.seen > kernel);
        let behind = |line: &CounterLine| line.kernel.is_some_and(|kernel| line.seen < kernel);
        lines().any(ahead) && !lines().any(behind)
    }

    /// How many drops the kernel counts beyond ours, if its counter is known.
    #[must_use]
    pub fn drops_unseen(&self) -> Option<u64> {
        let line = self.counters.get("ListenDrops")?;
        Some(line.kernel?.saturating_sub(line.seen))
    }

    /// What happened beyond a filter, in words: so that a wrong port is noticed.
    #[must_use]
    pub fn beyond_filter(&self) -> Option<String> {
        let drops = self.other_drops.filter(|drops| *drops > 0)?;
        Some(format!(
            "{drops} more drops in netns {}, which the filter leaves out: other listeners, or other \
             packets",
            self.netns
        ))
    }

    /// Whether nothing moved at all.
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.counters
            .values()
            .all(|line| line.kernel.unwrap_or(0) == 0 && line.seen == 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use queue_trace_common::counter::{DROP, OVERFLOW};

    use super::*;

    const NETSTAT: &str = "\
TcpExt: SyncookiesSent ListenDrops NotOurs ListenOverflows
TcpExt: 3 20 99 19
IpExt: InNoRoutes ListenDrops
IpExt: 7 8
";

    #[test]
    fn a_ledger_is_ahead_only_if_it_is_nowhere_behind() {
        let look = |kernel: [u64; 2], seen: [u64; 2]| {
            let of = |values: [u64; 2]| {
                let mut counters = Counters::default();
                counters.add(OVERFLOW, values[0]);
                counters.add(DROP, values[1]);
                counters
            };
            BothSides {
                seen_before: of(seen),
                kernel: of(kernel),
                seen_after: of(seen),
            }
        };
        let is_ahead = |kernel, seen| {
            Ledger::between(1, &BothSides::default(), &look(kernel, seen), 0).is_ahead()
        };
        assert!(is_ahead([3, 3], [3, 5]));
        assert!(!is_ahead([3, 3], [3, 3]));
        assert!(!is_ahead([3, 3], [2, 5]));
        assert!(!is_ahead([3, 3], [2, 3]));
    }

    #[test]
    fn columns_are_found_by_name_in_their_section() {
        let counters = Counters::parse(NETSTAT).unwrap();
        assert_eq!(counters.0[OVERFLOW.trailing_zeros() as usize], 19);
        assert_eq!(counters.0[DROP.trailing_zeros() as usize], 20);
        assert_eq!(Counters::parse("IpExt: A\nIpExt: 1\n"), None);
        assert_eq!(Counters::parse("TcpExt: ListenDrops\nTcpExt: many\n"), None);
    }

    fn still(kernel: Counters, seen: Counters) -> BothSides {
        BothSides {
            seen_before: seen,
            kernel,
            seen_after: seen,
        }
    }

    #[test]
    fn a_movement_without_a_verdict_is_unexplained() {
        let mut kernel = Counters::default();
        kernel.add(OVERFLOW | DROP, 6);
        let mut seen = Counters::default();
        seen.add(OVERFLOW | DROP, 5);
        let ledger = Ledger::between(1, &BothSides::default(), &still(kernel, seen), 0);
        assert_eq!(ledger.unexplained, Some(2));
        assert_eq!(
            ledger.counters["ListenOverflows"],
            CounterLine {
                kernel: Some(6),
                seen: 5
            }
        );
        assert!(!ledger.counters.contains_key("EmbryonicRsts"));
    }

    proptest! {
        #[test]
        fn equal_movements_reconcile_wherever_they_start(
            kernel in any::<[u64; counter::COUNT]>(),
            seen in any::<[u64; counter::COUNT]>(),
            moved in any::<[u32; counter::COUNT]>(),
        ) {
            let start = still(Counters(kernel), Counters(seen));
            let forward = |from: [u64; counter::COUNT]| {
                let mut to = from;
                for (value, by) in to.iter_mut().zip(moved) {
                    *value = value.wrapping_add(by.into());
                }
                Counters(to)
            };
            let end = still(forward(kernel), forward(seen));
            prop_assert_eq!(Ledger::between(1, &start, &end, 0).unexplained, Some(0));
        }

        #[test]
        fn a_difference_is_never_hidden_when_both_stand_still(
            seen in 0u64..1 << 40, kernel in 0u64..1 << 40,
        ) {
            let end = still(Counters([kernel; counter::COUNT]), Counters([seen; counter::COUNT]));
            let ledger = Ledger::between(1, &BothSides::default(), &end, 0);
            let compared = u64::from(COMPARED.count_ones());
            prop_assert_eq!(ledger.unexplained, Some(kernel.abs_diff(seen) * compared));
        }

        #[test]
        fn what_moves_during_a_look_is_bracketed(before in 0u64..1000, during in 0u64..1000, at in 0u64..1000) {
            let kernel = before + at.min(during);
            let end = BothSides {
                seen_before: Counters([before; counter::COUNT]),
                kernel: Counters([kernel; counter::COUNT]),
                seen_after: Counters([before + during; counter::COUNT]),
            };
            prop_assert_eq!(Ledger::between(1, &BothSides::default(), &end, 0).unexplained, Some(0));
        }
    }
}

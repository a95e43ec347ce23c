//! The ledger: the kernel's own counters of a namespace beside the sum of our
//! verdicts, and the difference. Pure arithmetic; `netns` reads the kernel's side,
//! `probe` ours.

use std::collections::BTreeMap;

use queue_trace_common::{
    counter::{self, COUNTERS, DO_COOKIES, EMBRYONIC_RST, Moved, OVERFLOW, QUEUE_DROP},
    outcome,
};
use serde::{Deserialize, Serialize};

use super::{
    event::Name,
    front::{self, FRONT, FrontCounters, FrontTexts, Scope},
};

/// Values of the kernel's counters, or what our verdicts say of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Those that prove verdicts, in the order of [`COUNTERS`].
    pub proving: [u64; counter::COUNT],
    /// Those of packets that never came into a queue, in the order of [`FRONT`].
    pub in_front: [u64; front::COUNT],
}

/// The counters that the ledger compares. `EmbryonicRsts` is only evidence: the
/// kernel moves it for every reset of a half-open connection.
const COMPARED: Moved = !EMBRYONIC_RST;

const PAST_TCP: &str = "full queues were counted that dropped nothing: a BPF program makes SYN cookies \
     for these listeners (bpf_tcp_gen_syncookie), of which TCP sees no packet";

impl Counters {
    /// From the texts of the files, by name, as columns move between kernels. A column that a
    /// kernel lacks is 0. `None` if there is no section `TcpExt`.
    #[must_use]
    pub fn parse(texts: FrontTexts) -> Option<Self> {
        let columns = front::section(texts.netstat, "TcpExt:")?;
        let mut counters = Self {
            in_front: texts.sums(),
            ..Self::default()
        };
        for (value, counter) in counters.proving.iter_mut().zip(&COUNTERS) {
            if let Some(column) = columns.get(counter.name) {
                *value = column.parse().ok()?;
            }
        }
        Some(counters)
    }

    /// Adds other counters, one by one.
    pub fn add_all(&mut self, others: &Self) {
        for (value, other) in self.values_mut().zip(others.values()) {
            *value = value.wrapping_add(other);
        }
    }

    /// All of them.
    pub fn values(&self) -> impl Iterator<Item = u64> {
        self.proving.into_iter().chain(self.in_front)
    }

    fn values_mut(&mut self) -> impl Iterator<Item = &mut u64> {
        self.proving.iter_mut().chain(&mut self.in_front)
    }

    /// Whether one of them stands lower than it stood before.
    #[must_use]
    pub fn is_behind(&self, before: &Self) -> bool {
        self.values()
            .zip(before.values())
            .any(|(now, before)| now < before)
    }

    /// Adds what so many verdicts of an outcome say, which moved these counters.
    pub fn add_verdicts(&mut self, tag: u8, moved: Moved, count: u64) {
        self.add(moved, count);
        if let Some(index) = FrontCounters::index_of(tag) {
            self.in_front[index] = self.in_front[index].wrapping_add(count);
        }
    }

    /// Adds `count` to each counter of the set.
    pub fn add(&mut self, moved: Moved, count: u64) {
        for (index, value) in self.proving.iter_mut().enumerate() {
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
    /// What the kernel counts of packets that never came into a queue, by the outcome of such a
    /// packet.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub in_front: BTreeMap<String, FrontLine>,
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

/// Both sides of the counters of packets that never came into a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrontLine {
    /// How far the kernel's counters moved, most of them for packets of every kind; absent if they
    /// cannot be read any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<u64>,
    /// How many such outcomes we saw; absent where these are not observable, or not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seen: Option<u64>,
}

impl Ledger {
    /// The ledger between two looks. `told`: the outcomes that are observable here and asked for.
    #[must_use]
    pub fn between(
        netns: u32,
        start: &BothSides,
        end: &BothSides,
        lost: u64,
        told: outcome::Set,
    ) -> Self {
        let mut counters = BTreeMap::new();
        let mut unexplained = 0;
        for (index, counter) in COUNTERS.iter().enumerate() {
            if COMPARED >> index & 1 == 0 {
                continue;
            }
            let moved = |from: &Counters, to: &Counters| {
                to.proving[index].wrapping_sub(from.proving[index])
            };
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
        let mut in_front = BTreeMap::new();
        for (index, row) in FRONT.iter().enumerate() {
            let moved = |from: &Counters, to: &Counters| {
                to.in_front[index].wrapping_sub(from.in_front[index])
            };
            let kernel = moved(&start.kernel, &end.kernel);
            let least = moved(&start.seen_after, &end.seen_before);
            let most = moved(&start.seen_before, &end.seen_after);
            let least = if least > most { 0 } else { least };
            // Other packets may move them as well.
            let seen = most.min(kernel.max(least));
            let is_told = told & row.outcome().bit() != 0;
            if is_told {
                unexplained += row.unexplained(kernel, seen);
            }
            if kernel != 0 || seen != 0 {
                let line = FrontLine {
                    kernel: Some(kernel),
                    seen: is_told.then_some(seen),
                };
                in_front.insert(Name(row.outcome()).to_string(), line);
            }
        }
        let mut ledger = Self {
            netns,
            counters,
            in_front,
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
    pub fn one_sided(
        netns: u32,
        seen: &Counters,
        lost: u64,
        told: outcome::Set,
        why: &str,
    ) -> Self {
        let still = BothSides::default();
        let end = BothSides {
            seen_before: *seen,
            kernel: *seen,
            seen_after: *seen,
        };
        let mut ledger = Self::between(netns, &still, &end, lost, told);
        for line in ledger.counters.values_mut() {
            line.kernel = None;
        }
        for line in ledger.in_front.values_mut() {
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

    /// What the kernel dropped in front of listeners' queues and only its counters tell of, in words,
    /// one sentence for each outcome.
    pub fn only_counted(&self) -> impl Iterator<Item = String> {
        let rows = FRONT.iter().filter(|row| row.scope == Scope::Listeners);
        rows.filter_map(|row| {
            let outcome = Name(row.outcome()).to_string();
            let line = self.in_front.get(&outcome)?;
            let count = line.kernel.filter(|count| *count > 0)?;
            line.seen.is_none().then(|| {
                format!(
                    "netns {}: by its counters the kernel dropped {count} packets in front of the \
                     queues ({outcome}); no verdict says which, as this kernel does not tell, or \
                     nobody asked",
                    self.netns
                )
            })
        })
    }

    /// Both sides of an outcome whose packets never came into a queue, if its counters moved.
    #[must_use]
    pub fn front(&self, tag: u8) -> Option<&FrontLine> {
        let outcome = outcome::Outcome::of(tag)?;
        self.in_front.get(&Name(outcome).to_string())
    }

    /// Whether nothing moved at all, but resets.
    #[must_use]
    pub fn is_still(&self) -> bool {
        self.counters
            .values()
            .all(|line| line.kernel.unwrap_or(0) == 0 && line.seen == 0)
            && !FRONT.iter().any(|row| {
                // Something is reset anywhere and at any time.
                row.scope != Scope::Resets && self.front(row.tag).is_some()
            })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use queue_trace_common::{
        counter::{DROP, OVERFLOW},
        outcome::SYN_DROPPED_MD5,
    };

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
            Ledger::between(1, &BothSides::default(), &look(kernel, seen), 0, ALL).is_ahead()
        };
        assert!(is_ahead([3, 3], [3, 5]));
        assert!(!is_ahead([3, 3], [3, 3]));
        assert!(!is_ahead([3, 3], [2, 5]));
        assert!(!is_ahead([3, 3], [2, 3]));
    }

    #[test]
    fn columns_are_found_by_name_in_their_section() {
        let parse = |netstat| {
            Counters::parse(FrontTexts {
                netstat,
                ..FrontTexts::default()
            })
        };
        let counters = parse(NETSTAT).unwrap();
        assert_eq!(counters.proving[OVERFLOW.trailing_zeros() as usize], 19);
        assert_eq!(counters.proving[DROP.trailing_zeros() as usize], 20);
        assert_eq!(parse("IpExt: A\nIpExt: 1\n"), None);
        assert_eq!(parse("TcpExt: ListenDrops\nTcpExt: many\n"), None);
    }

    const ALL: outcome::Set = outcome::Set::MAX;

    fn proving(values: [u64; counter::COUNT]) -> Counters {
        Counters {
            proving: values,
            ..Counters::default()
        }
    }

    /// Other packets than SYNs move the counters of what is dropped in front of the queues.
    #[test]
    fn what_is_dropped_in_front_of_the_queues_bounds_our_sums() {
        let look = |kernel: u64, seen: u64| {
            let mut ours = Counters::default();
            ours.add_verdicts(SYN_DROPPED_MD5, 0, seen);
            let mut theirs = Counters::default();
            theirs.add_verdicts(SYN_DROPPED_MD5, 0, kernel);
            still(theirs, ours)
        };
        let ledger = |kernel, seen, told| {
            Ledger::between(1, &BothSides::default(), &look(kernel, seen), 0, told)
        };
        let line = |ledger: &Ledger| ledger.in_front["syn_dropped:md5"];
        let known = |kernel, seen| FrontLine {
            kernel: Some(kernel),
            seen,
        };
        let seven = ledger(7, 7, ALL);
        assert_eq!(
            (line(&seven), seven.unexplained),
            (known(7, Some(7)), Some(0))
        );
        assert!(!seven.is_still());
        let more = ledger(9, 7, ALL);
        assert_eq!(
            (line(&more), more.unexplained),
            (known(9, Some(7)), Some(0))
        );
        let too_many = ledger(7, 9, ALL);
        assert_eq!(
            (line(&too_many), too_many.unexplained),
            (known(7, Some(9)), Some(2))
        );
        let blind = ledger(7, 0, 0);
        assert_eq!(line(&blind), known(7, None));
        assert!(
            blind
                .only_counted()
                .next()
                .unwrap()
                .contains("dropped 7 packets")
        );
        assert_eq!(seven.only_counted().count(), 0);
        assert!(ledger(0, 0, ALL).in_front.is_empty());
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
        let ledger = Ledger::between(1, &BothSides::default(), &still(kernel, seen), 0, ALL);
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
            let start = still(proving(kernel), proving(seen));
            let forward = |from: [u64; counter::COUNT]| {
                let mut to = from;
                for (value, by) in to.iter_mut().zip(moved) {
                    *value = value.wrapping_add(by.into());
                }
                proving(to)
            };
            let end = still(forward(kernel), forward(seen));
            prop_assert_eq!(Ledger::between(1, &start, &end, 0, ALL).unexplained, Some(0));
        }

        #[test]
        fn a_difference_is_never_hidden_when_both_stand_still(
            seen in 0u64..1 << 40, kernel in 0u64..1 << 40,
        ) {
            let end = still(proving([kernel; counter::COUNT]), proving([seen; counter::COUNT]));
            let ledger = Ledger::between(1, &BothSides::default(), &end, 0, ALL);
            let compared = u64::from(COMPARED.count_ones());
            prop_assert_eq!(ledger.unexplained, Some(kernel.abs_diff(seen) * compared));
        }

        #[test]
        fn what_moves_during_a_look_is_bracketed(before in 0u64..1000, during in 0u64..1000, at in 0u64..1000) {
            let kernel = before + at.min(during);
            let end = BothSides {
                seen_before: proving([before; counter::COUNT]),
                kernel: proving([kernel; counter::COUNT]),
                seen_after: proving([before + during; counter::COUNT]),
            };
            prop_assert_eq!(Ledger::between(1, &BothSides::default(), &end, 0, ALL).unexplained, Some(0));
        }
    }
}

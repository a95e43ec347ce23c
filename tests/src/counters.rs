//! The kernel's counters of a namespace, read by the tests themselves: none of this
//! is the tracer's own reading.

use std::collections::BTreeMap;

use queue_trace::lab::Netns;

/// All counters of the section `TcpExt` of `/proc/net/netstat`, by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Those of a namespace, now.
    #[must_use]
    pub fn of(netns: &Netns) -> Self {
        let text = netns.netstat().unwrap();
        let mut lines = text
            .lines()
            .filter_map(|line| line.strip_prefix("TcpExt: "));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let values = values.split(' ').map(|value| value.parse().unwrap());
        Self(names.split(' ').map(str::to_owned).zip(values).collect())
    }

    /// One of them. None may be missing: all that the tests ask for are in every
    /// kernel.
    #[must_use]
    pub fn get(&self, name: &str) -> u64 {
        *self
            .0
            .get(name)
            .unwrap_or_else(|| panic!("/proc/net/netstat has no {name}"))
    }

    /// How far one of them has moved since `before`.
    #[must_use]
    pub fn since(&self, before: &Self, name: &str) -> u64 {
        self.get(name) - before.get(name)
    }
}

//! The maps in which the kernel side keeps what it knows of listeners' queues.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use aya::{
    Ebpf,
    maps::{self, MapData, PerCpuHashMap},
};
use queue_trace_common::queue::{Entered, LISTENERS, Marks, Queue, QueueKey, WAITING};

use crate::kernel::probe::{named::take, wire::Wire};

/// The maps.
pub(super) struct Queues {
    shared: maps::HashMap<MapData, Wire<QueueKey>, Wire<Queue>>,
    marks: PerCpuHashMap<MapData, Wire<QueueKey>, Wire<Marks>>,
    waiting: maps::HashMap<MapData, u64, Wire<Entered>>,
}

/// What is kept, at a moment.
#[derive(Debug, Clone, Default)]
pub struct Kept {
    /// By listener.
    pub listeners: HashMap<QueueKey, (Queue, Marks)>,
    /// When the connections in each accept queue entered it, the newest first.
    pub waiting: HashMap<QueueKey, Vec<u64>>,
}

impl Queues {
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            shared: take(ebpf, "QUEUES")?,
            marks: take(ebpf, "MARKS")?,
            waiting: take(ebpf, "WAITING")?,
        })
    }

    pub(super) fn shared(&self) -> Result<HashMap<QueueKey, Queue>> {
        // Where entries go meanwhile the kernel begins anew, so that some come twice.
        let most = 2 * LISTENERS as usize;
        self.shared
            .iter()
            .take(most)
            .map(|entry| {
                let (Wire(key), Wire(queue)) = entry.context("cannot read the queues")?;
                Ok((key, queue))
            })
            .collect()
    }

    pub(super) fn read(&self) -> Result<Kept> {
        let mut kept = Kept::default();
        for (key, queue) in self.shared()? {
            kept.listeners.entry(key).or_default().0 = queue;
        }
        for entry in self.marks.iter().take(2 * LISTENERS as usize) {
            let (Wire(key), cpus) = entry.context("cannot read the high-water marks")?;
            kept.listeners.entry(key).or_default().1 = cpus
                .iter()
                .fold(Marks::default(), |sum, Wire(cpu)| together(&sum, cpu));
        }
        let connections: HashMap<u64, Entered> = self
            .waiting
            .iter()
            .take(2 * WAITING as usize)
            .map(|entry| {
                let (child, Wire(entered)) = entry.context("cannot read who waits")?;
                Ok((child, entered))
            })
            .collect::<Result<_>>()?;
        for entered in connections.into_values() {
            let queue = kept.waiting.entry(entered.listener).or_default();
            queue.push(entered.at_ns);
        }
        for queue in kept.waiting.values_mut() {
            queue.sort_unstable_by(|a, b| b.cmp(a));
        }
        Ok(kept)
    }

    /// Forgets listeners, which must be closed.
    pub(super) fn forget(&mut self, keys: &HashSet<QueueKey>) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        for key in keys {
            // What is not there needs no forgetting.
            let _ = self.shared.remove(&Wire(*key));
            let _ = self.marks.remove(&Wire(*key));
        }
        let mut stale = Vec::new();
        for entry in self.waiting.iter().take(2 * WAITING as usize) {
            let (child, Wire(entered)) = entry.context("cannot read who waits")?;
            if keys.contains(&entered.listener) {
                stale.push(child);
            }
        }
        for child in stale {
            let _ = self.waiting.remove(&child);
        }
        Ok(())
    }
}

/// What two CPUs keep, together.
fn together(a: &Marks, b: &Marks) -> Marks {
    let deeper = |a: (u32, u64), b: (u32, u64)| {
        if b.0 > a.0 || b.0 == a.0 && b.1 < a.1 {
            b
        } else {
            a
        }
    };
    let (accept_high, accept_high_ns) = deeper(
        (a.accept_high, a.accept_high_ns),
        (b.accept_high, b.accept_high_ns),
    );
    let (syn_high, syn_high_ns) = deeper((a.syn_high, a.syn_high_ns), (b.syn_high, b.syn_high_ns));
    let mut sum = Marks {
        accept_high,
        accept_high_ns,
        syn_high,
        syn_high_ns,
        entered: a.entered + b.entered,
        waited_max_ns: a.waited_max_ns.max(b.waited_max_ns),
        handshake_max_us: a.handshake_max_us.max(b.handshake_max_us),
        waited: a.waited,
        handshakes: a.handshakes,
    };
    for (place, more) in sum.waited.iter_mut().zip(b.waited) {
        *place += more;
    }
    for (place, more) in sum.handshakes.iter_mut().zip(b.handshakes) {
        *place += more;
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_counts_and_of_equals_the_first() {
        let cpu = |accept_high, accept_high_ns| Marks {
            accept_high,
            accept_high_ns,
            waited: [1; _],
            ..Marks::default()
        };
        let sum = together(&cpu(3, 50), &together(&cpu(4, 70), &cpu(4, 60)));
        assert_eq!((sum.accept_high, sum.accept_high_ns), (4, 60));
        assert_eq!(sum.waited, [3; _]);
    }
}

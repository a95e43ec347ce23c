//! The network namespaces as they were listed last. Listing them takes a look at every process
//! and thread, so whoever wants some that are known does without, and so does whoever knows a
//! process that is in one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::kernel::{
    netns::{self, NetnsPath},
    selection::Selection,
};

/// The ways into namespaces, by number.
pub type Listed = Arc<BTreeMap<u32, NetnsPath>>;

/// The namespaces that were listed last, for all who share them.
#[derive(Debug, Clone, Default)]
pub struct KnownNamespaces(Arc<Mutex<Latest>>);

#[derive(Debug, Default)]
struct Latest {
    list: Option<List>,
}

#[derive(Debug)]
struct List {
    at: Instant,
    /// How often listeners had been made or closed then.
    changes: u64,
    listed: Listed,
    /// Those that were wanted and not found.
    missing: BTreeSet<u32>,
}

/// How old a list may be. The ways into a namespace end, and numbers are given to others.
const AGE: Duration = Duration::from_secs(60);

/// For so long those that were not found are not looked for again: most of them have ended.
const MISSING: Duration = Duration::from_secs(5);

impl KnownNamespaces {
    fn latest(&self) -> MutexGuard<'_, Latest> {
        // A list is whole or not there.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists them now. `changes`: how often listeners were made or closed before.
    pub fn list(&self, selection: &Selection, changes: u64) -> Listed {
        self.latest().take(selection, changes)
    }

    /// A list of all in which a listener may be, if there is one: no older than a minute, and
    /// since it was made no listener was made or closed.
    #[must_use]
    pub fn unchanged(&self, changes: u64) -> Option<Listed> {
        let mut latest = self.latest();
        let list = latest.young().filter(|list| list.changes == changes)?;
        Some(Arc::clone(&list.listed))
    }

    /// A list that has all of these, if they exist.
    pub fn with(&self, selection: &Selection, changes: u64, wanted: &BTreeSet<u32>) -> Listed {
        let mut latest = self.latest();
        if let Some(list) = latest.young() {
            let young = list.at.elapsed() < MISSING;
            let is_known = |netns: &u32| {
                list.listed.contains_key(netns) || young && list.missing.contains(netns)
            };
            if wanted.iter().all(is_known) {
                return Arc::clone(&list.listed);
            }
        }
        let listed = latest.take(selection, changes);
        if let Some(list) = &mut latest.list {
            let missing = wanted.iter().filter(|netns| !listed.contains_key(netns));
            list.missing = missing.copied().collect();
        }
        listed
    }

    /// Adds the ways of processes: each of them was in the namespace when it made a listener.
    pub fn add_ways(&self, selection: &Selection, processes: impl Iterator<Item = (u32, u32)>) {
        let mut latest = self.latest();
        let Some(list) = latest.young() else {
            return;
        };
        for (netns, process) in processes {
            if process != 0
                && selection.has_netns(netns)
                && !list.listed.contains_key(&netns)
                && let Some(way) = netns::of_process(process).remove(&netns)
            {
                Arc::make_mut(&mut list.listed).insert(netns, way);
            }
        }
    }
}

impl Latest {
    fn young(&mut self) -> Option<&mut List> {
        self.list.as_mut().filter(|list| list.at.elapsed() < AGE)
    }

    fn take(&mut self, selection: &Selection, changes: u64) -> Listed {
        let listed = Arc::new(selection.namespaces());
        self.list = Some(List {
            at: Instant::now(),
            changes,
            listed: Arc::clone(&listed),
            missing: BTreeSet::new(),
        });
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> BTreeSet<u32> {
        BTreeSet::from([netns::own().unwrap()])
    }

    #[test]
    fn known_ones_are_not_listed_again() {
        let selection = Selection::default();
        let known = KnownNamespaces::default();
        let own = own();
        let first = known.with(&selection, 0, &own);
        assert!(first.contains_key(own.first().unwrap()));
        assert!(Arc::ptr_eq(&first, &known.with(&selection, 1, &own)));
        // Nobody knows one of this number; it may be new.
        let other = BTreeSet::from([1]);
        let second = known.with(&selection, 1, &other);
        assert!(!Arc::ptr_eq(&first, &second));
        // It was looked for just now. Another one was not.
        assert!(Arc::ptr_eq(&second, &known.with(&selection, 1, &other)));
        let third = known.with(&selection, 1, &[1, 2].into());
        assert!(!Arc::ptr_eq(&second, &third));
    }

    #[test]
    fn a_list_of_all_is_used_again_while_listeners_stay() {
        let selection = Selection::default();
        let known = KnownNamespaces::default();
        let shared = known.clone();
        assert_eq!(known.unchanged(7), None);
        let first = known.list(&selection, 7);
        // Whoever shares it has it as well.
        assert!(Arc::ptr_eq(&first, &shared.unchanged(7).unwrap()));
        assert_eq!(known.unchanged(8), None);
    }

    #[test]
    fn the_namespace_of_a_known_process_takes_no_list() {
        let selection = Selection::default();
        let known = KnownNamespaces::default();
        let netns = netns::own().unwrap();
        let add = |process| known.add_ways(&selection, [(netns, process)].into_iter());
        let forget = || {
            let mut latest = known.latest();
            let list = latest.list.as_mut().unwrap();
            Arc::make_mut(&mut list.listed).remove(&netns);
        };
        known.list(&selection, 0);
        forget();
        // Nobody has this number, and nobody said who made it.
        add(u32::MAX);
        add(0);
        let has = || known.unchanged(0).unwrap().contains_key(&netns);
        assert!(!has());
        add(std::process::id());
        assert!(has());
        // Who asked only for others is not given it.
        forget();
        let other = Selection {
            netns: [(1, None)].into(),
            ..Selection::default()
        };
        known.add_ways(&other, [(netns, std::process::id())].into_iter());
        assert!(!has());
    }
}

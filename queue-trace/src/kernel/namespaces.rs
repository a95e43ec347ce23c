//! The network namespaces as they were listed last. Listing them takes a look at every process
//! and thread, so whoever wants some that are known does without.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::kernel::{netns::NetnsPath, selection::Selection};

/// The ways into namespaces, by number.
pub type Listed = Arc<BTreeMap<u32, NetnsPath>>;

/// The namespaces that were listed last.
#[derive(Debug, Default)]
pub struct KnownNamespaces {
    listed: Option<(Instant, Listed)>,
}

/// How old a list may be. The ways into a namespace end, and numbers are given to others.
const AGE: Duration = Duration::from_secs(60);

impl KnownNamespaces {
    /// Lists them now.
    pub fn list(&mut self, selection: &Selection) -> Listed {
        let listed = Arc::new(selection.namespaces());
        self.listed = Some((Instant::now(), Arc::clone(&listed)));
        listed
    }

    /// A list that has all of these, if they exist.
    pub fn with(&mut self, selection: &Selection, wanted: &BTreeSet<u32>) -> Listed {
        if let Some((at, listed)) = &self.listed
            && at.elapsed() < AGE
            && wanted.iter().all(|netns| listed.contains_key(netns))
        {
            return Arc::clone(listed);
        }
        self.list(selection)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netns;

    #[test]
    fn known_ones_are_not_listed_again() {
        let selection = Selection::default();
        let mut known = KnownNamespaces::default();
        let own = BTreeSet::from([netns::own().unwrap()]);
        let first = known.with(&selection, &own);
        assert!(first.contains_key(own.first().unwrap()));
        assert!(Arc::ptr_eq(&first, &known.with(&selection, &own)));
        // Nobody knows one of this number; it may be new.
        let other = BTreeSet::from([1]);
        assert!(!Arc::ptr_eq(&first, &known.with(&selection, &other)));
    }
}

//! Finds the types that are looked up by name, and the enumerators, once: by a search where a kernel
//! has its types in the order of their names, else on one way through all of them.

use std::{collections::HashSet, mem, ops::Range};

use btf_rs::Type;
use queue_trace_common::counter::COUNTERS;

use super::{ENUMS, Types, enumerators};

/// As many types as one name has in any kernel, several times over.
const MOST: usize = 64;

impl Types {
    /// Finds the types that are used somewhere, by name, and the enumerators.
    pub(super) fn index(&mut self) {
        if let Some(named) = self.first_with_name() {
            self.search(named);
            let mut counters = COUNTERS.iter().map(|counter| counter.enumerator);
            if counters.all(|name| self.enumerators.contains_key(name)) {
                return;
            }
        }
        self.walk();
    }

    /// Goes through all types once. Enumerators are taken wherever they are declared: the kernel's
    /// counters and states are in anonymous enums, which have no name to look up.
    pub(super) fn walk(&mut self) {
        let wanted = enumerators();
        for id in self.numbers() {
            // What was wanted and cannot be decoded will be missed by name.
            let Ok(kind) = self.btf.resolve_type_by_id(id) else {
                continue;
            };
            self.take_enumerators(&kind, &wanted);
            if let Some(named) = kind.as_btf_type()
                && let Ok(name) = self.btf.resolve_name(named)
                && let Some(ids) = self.by_name.get_mut(&name)
                && ids.len() < MOST
                && !ids.contains(&id)
            {
                ids.push(id);
            }
        }
    }

    /// The same where types stand in the order of their names, from `named` on, behind those that
    /// have none.
    fn search(&mut self, named: u32) {
        let wanted = enumerators();
        for id in self.numbers().start..named {
            if let Ok(kind) = self.btf.resolve_type_by_id(id) {
                self.take_enumerators(&kind, &wanted);
            }
        }
        let end = self.numbers().end;
        let mut by_name = mem::take(&mut self.by_name);
        for (name, ids) in &mut by_name {
            let first = first_of(named..end, |id| self.name_of(id) >= *name);
            let same = (first..end).take_while(|id| self.name_of(*id) == *name);
            ids.extend(same.take(MOST));
        }
        for id in ENUMS.iter().filter_map(|name| by_name.get(*name)).flatten() {
            if let Ok(kind) = self.btf.resolve_type_by_id(*id) {
                self.take_enumerators(&kind, &wanted);
            }
        }
        self.by_name = by_name;
    }

    /// The first type with a name, if all stand in the order of their names: kernels have put them
    /// so since 7.0 and look them up so (kernel/bpf/btf.c, `btf_check_sorted`). Some are asked, as
    /// many as are not in order by chance.
    pub(super) fn first_with_name(&self) -> Option<u32> {
        const ASKED: usize = 256;
        let numbers = self.numbers();
        let step = (numbers.len() / ASKED).max(1);
        let in_order = numbers
            .clone()
            .step_by(step)
            .map(|id| self.name_of(id))
            .is_sorted();
        in_order.then(|| first_of(numbers, |id| !self.name_of(id).is_empty()))
    }

    /// The numbers of all types.
    fn numbers(&self) -> Range<u32> {
        let (first, last) = self.btf.base().type_id_range();
        first..last + 1
    }

    /// The name of a type; empty if it has none.
    fn name_of(&self, id: u32) -> String {
        let kind = self.btf.resolve_type_by_id(id).ok();
        let name = kind.and_then(|kind| self.btf.resolve_name(kind.as_btf_type()?).ok());
        name.unwrap_or_default()
    }

    fn take_enumerators(&mut self, kind: &Type, wanted: &HashSet<&str>) {
        let Type::Enum(kind) = kind else { return };
        for member in &kind.members {
            if let Ok(name) = self.btf.resolve_name(member)
                && wanted.contains(name.as_str())
            {
                let value = u64::from(member.val());
                self.enumerators.entry(name).or_insert(value);
            }
        }
    }
}

/// The first number of which something is so, or the end, where it is so of all that follow it.
fn first_of(mut numbers: Range<u32>, is_so: impl Fn(u32) -> bool) -> u32 {
    while !numbers.is_empty() {
        let middle = numbers.start + (numbers.end - numbers.start) / 2;
        if is_so(middle) {
            numbers.end = middle;
        } else {
            numbers.start = middle + 1;
        }
    }
    numbers.start
}

//! Files that import each other in a circle.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use super::{finding::Finding, names::Import};

/// One finding for each circle that a walk along the imports closes.
pub fn findings(imports: &[Import]) -> Vec<Finding> {
    let mut from: BTreeMap<&Path, Vec<&Import>> = BTreeMap::new();
    for import in imports {
        from.entry(&import.from).or_default().push(import);
    }
    let mut walk = Walk {
        from: &from,
        way: Vec::new(),
        done: BTreeSet::new(),
        findings: Vec::new(),
    };
    for file in from.keys() {
        walk.at(file);
    }
    walk.findings
}

struct Walk<'a> {
    from: &'a BTreeMap<&'a Path, Vec<&'a Import>>,
    /// The imports that led here.
    way: Vec<&'a Import>,
    /// Files from which every way was walked.
    done: BTreeSet<&'a Path>,
    findings: Vec<Finding>,
}

impl<'a> Walk<'a> {
    fn at(&mut self, file: &'a Path) {
        if self.done.contains(file) {
            return;
        }
        for import in self.from.get(file).into_iter().flatten() {
            let began = self.way.iter().position(|step| step.from == import.to);
            self.way.push(import);
            match began {
                Some(began) => self.findings.push(circle(&self.way[began..])),
                None if import.to == import.from => {}
                None => self.at(&import.to),
            }
            self.way.pop();
        }
        self.done.insert(file);
    }
}

fn circle(steps: &[&Import]) -> Finding {
    let first = steps[0];
    let way: Vec<_> = steps
        .iter()
        .map(|step| format!("{}:{} ({})", step.from.display(), step.line, step.what))
        .collect();
    Finding {
        file: first.from.clone(),
        line: first.line,
        what: format!("a circle of {} files: {}", steps.len(), way.join(" -> ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(from: &str, to: &str) -> Import {
        Import {
            from: from.into(),
            to: to.into(),
            line: 3,
            what: "x".into(),
        }
    }

    #[test]
    fn a_circle_is_found_once_and_named() {
        let imports = [
            import("a.rs", "b.rs"),
            import("b.rs", "c.rs"),
            import("c.rs", "b.rs"),
            import("d.rs", "a.rs"),
        ];
        let found = findings(&imports);
        assert_eq!(found.len(), 1);
        assert_eq!(
            found[0].to_string(),
            "b.rs:3: a circle of 2 files: b.rs:3 (x) -> c.rs:3 (x)"
        );
    }

    #[test]
    fn two_ways_to_one_file_are_no_circle() {
        let imports = [
            import("a.rs", "b.rs"),
            import("a.rs", "c.rs"),
            import("b.rs", "d.rs"),
            import("c.rs", "d.rs"),
        ];
        assert_eq!(findings(&imports), []);
    }
}

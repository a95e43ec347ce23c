//! The flow: the folders of a crate on floors, from the bottom up. A file imports from its own
//! folder and from lower floors, not from its neighbours and not from above.

use std::{collections::BTreeSet, path::Path};

use super::{finding::Finding, names::Import};

/// What stands on each floor: names of folders, or of files that have none.
pub struct Floors(pub &'static [&'static [&'static str]]);

/// Up to `top` no kernel is needed.
pub const USER_SIDE: Floors = Floors(&[
    &["model", "options"],
    &["aside", "stderr", "stopping"],
    &["stop"],
    &["sink"],
    &["recording"],
    &["diagnose"],
    &["report", "top"],
    &["lab"],
    &["kernel"],
    &["listeners"],
    &["trace"],
    &["agent"],
    &["commands"],
    &["lib"],
]);

pub const KERNEL_SIDE: Floors = Floors(&[
    &["state"],
    &["read"],
    &["filter", "frame"],
    &["queues"],
    &["emit"],
    &["steps", "iterators"],
    &["tracepoints"],
    &["main"],
]);

impl Floors {
    /// The imports of a crate, the files of which are in `folder`, that go up or sideways.
    pub fn findings(&self, folder: &Path, imports: &[Import]) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut unknown = BTreeSet::new();
        for import in imports {
            let (from, to) = (room(folder, &import.from), room(folder, &import.to));
            if from == to {
                continue;
            }
            let [above, below] = [&from, &to].map(|room| {
                let floor = self.floor(room);
                if floor.is_none() {
                    unknown.insert(room.clone());
                }
                floor
            });
            if let (Some(above), Some(below)) = (above, below)
                && above <= below
            {
                findings.push(Finding {
                    file: import.from.clone(),
                    line: import.line,
                    what: format!(
                        "`{from}` imports `{}` of `{to}`, against the flow",
                        import.what
                    ),
                });
            }
        }
        findings.extend(unknown.into_iter().map(|room| Finding {
            file: folder.join(&room),
            line: 0,
            what: format!("`{room}` has no place in the flow (xtask/src/lint/floors.rs)"),
        }));
        findings
    }

    fn floor(&self, room: &str) -> Option<usize> {
        self.0.iter().position(|rooms| rooms.contains(&room))
    }
}

/// The folder below `folder` that a file is in, or the file's own name.
fn room(folder: &Path, file: &Path) -> String {
    let inside = file.strip_prefix(folder).unwrap_or(file);
    let first = inside
        .components()
        .next()
        .map(std::path::Component::as_os_str);
    let name = Path::new(first.unwrap_or_default()).file_stem();
    name.unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn import(from: &str, to: &str) -> Import {
        Import {
            from: from.into(),
            to: to.into(),
            line: 1,
            what: "x".into(),
        }
    }

    fn found(imports: &[Import]) -> Vec<String> {
        let floors = Floors(&[&["model"], &["sink", "recording"], &["lib"]]);
        let findings = floors.findings(Path::new("s"), imports);
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn imports_go_down() {
        assert!(found(&[import("s/lib.rs", "s/model.rs")]).is_empty());
        assert!(found(&[import("s/sink/text.rs", "s/model/event.rs")]).is_empty());
        assert!(found(&[import("s/sink/text.rs", "s/sink/mod.rs")]).is_empty());
    }

    #[test]
    fn not_up_nor_sideways() {
        assert_eq!(
            found(&[
                import("s/model/event.rs", "s/sink/text.rs"),
                import("s/sink/text.rs", "s/recording.rs")
            ]),
            [
                "s/model/event.rs:1: `model` imports `x` of `sink`, against the flow",
                "s/sink/text.rs:1: `sink` imports `x` of `recording`, against the flow"
            ]
        );
    }

    #[test]
    fn a_new_folder_needs_a_place() {
        let found = found(&[import("s/lib.rs", "s/news/mod.rs")]);
        assert_eq!(
            found,
            ["s/news: `news` has no place in the flow (xtask/src/lint/floors.rs)"]
        );
    }
}

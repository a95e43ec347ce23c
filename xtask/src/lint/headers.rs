//! A file says first what it is for, in a `//!` header.

use super::{finding::Finding, source::Sources};

pub fn findings(sources: &Sources) -> Vec<Finding> {
    let without = sources
        .iter()
        .filter(|(_, text)| !text.starts_with("//! "))
        .map(|(file, _)| Finding {
            file: file.to_owned(),
            line: 1,
            what: "no `//!` header that says what the file is for".into(),
        });
    without.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_first() {
        let sources = Sources::of(&[
            ("a.rs", "//! Says it.\n\nfn a() {}\n"),
            ("b.rs", "use std::fs;\n//! Too late.\n"),
            ("c.rs", "//!\n"),
            ("d.rs", ""),
        ]);
        let found: Vec<_> = findings(&sources).into_iter().map(|f| f.file).collect();
        assert_eq!(
            found,
            ["b.rs", "c.rs", "d.rs"].map(std::path::PathBuf::from)
        );
    }
}

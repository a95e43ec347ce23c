//! The pages' prose wraps at one width. Code, tables and headings are as long as they are.

use std::{fs, path::Path};

use anyhow::{Context, Result};

use super::finding::Finding;

/// Where prose wraps.
pub const WIDTH: usize = 100;

/// Folders with pages.
const FOLDERS: [&str; 2] = [".", "docs"];

pub fn findings(root: &Path) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        let entries = fs::read_dir(root.join(folder)).context(folder)?;
        for entry in entries {
            let path = entry?.path();
            if path.extension().is_some_and(|kind| kind == "md") {
                let name = path.strip_prefix(root)?;
                let name = name.strip_prefix(".").unwrap_or(name);
                let text = fs::read_to_string(&path)?;
                found.extend(too_long(&text).map(|line| Finding {
                    file: name.to_owned(),
                    line,
                    what: format!("prose wraps at {WIDTH} columns"),
                }));
            }
        }
    }
    Ok(found)
}

/// The numbers of the lines that should have been wrapped.
fn too_long(text: &str) -> impl Iterator<Item = usize> {
    let mut is_code = false;
    text.lines().zip(1..).filter_map(move |(line, number)| {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        }
        let as_it_is = is_code || line.starts_with("    ") || line.starts_with(['|', '#', '<']);
        // A link without a space cannot be divided.
        let words = line.split_whitespace().count();
        let is_long = line.chars().count() > WIDTH && words > 2;
        (!as_it_is && is_long).then_some(number)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prose_is_wrapped_and_code_is_not() {
        let long = "word ".repeat(30);
        let text = format!(
            "{long}\n    {long}\n```\n{long}\n```\n| {long}|\n# {long}\n- {long}\n  {long}\n{}\n",
            "x".repeat(200)
        );
        assert_eq!(too_long(&text).collect::<Vec<_>>(), [1, 8, 9]);
    }
}

//! Imports in one style: one `use` for each crate, and the standard library first, then other
//! crates, then this one. `rustfmt` does so from nightly on (`imports_granularity = "Crate"`,
//! `group_imports = "StdExternalCrate"`); this checks it with any.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result};
use syn::spanned::Spanned;

use super::{finding::Finding, source::Sources};

pub fn findings(sources: &Sources) -> Result<Vec<Finding>> {
    let mut findings = Vec::new();
    for (file, text) in sources.iter() {
        let syntax =
            syn::parse_file(text).with_context(|| format!("cannot parse {}", file.display()))?;
        of_items(file, &syntax.items, &mut findings);
    }
    Ok(findings)
}

fn of_items(file: &Path, items: &[syn::Item], findings: &mut Vec<Finding>) {
    let mut seen = BTreeSet::new();
    let mut last = Group::Standard;
    for item in items {
        match item {
            syn::Item::Use(item) => {
                let line = item.span().start().line;
                let mut find = |what: String| {
                    findings.push(Finding {
                        file: file.to_owned(),
                        line,
                        what,
                    });
                };
                let Some(root) = root(&item.tree) else {
                    continue;
                };
                let group = Group::of(&root);
                if !seen.insert((root.clone(), said(&item.vis, &item.attrs))) {
                    find(format!("two `use` of `{root}` that could be one"));
                }
                // What is handed on may stand anywhere.
                if matches!(item.vis, syn::Visibility::Inherited) && item.attrs.is_empty() {
                    if group < last {
                        find(format!("`use {root}` belongs above"));
                    }
                    last = last.max(group);
                }
            }
            syn::Item::Mod(item) => {
                if let Some((_, items)) = &item.content {
                    of_items(file, items, findings);
                }
            }
            _ => {}
        }
    }
}

/// In the order in which they stand.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    Standard,
    Others,
    Own,
}

impl Group {
    fn of(root: &str) -> Self {
        match root {
            "std" | "core" | "alloc" => Self::Standard,
            "crate" | "self" | "super" => Self::Own,
            _ => Self::Others,
        }
    }
}

fn root(tree: &syn::UseTree) -> Option<String> {
    match tree {
        syn::UseTree::Path(path) => Some(path.ident.to_string()),
        syn::UseTree::Name(name) => Some(name.ident.to_string()),
        syn::UseTree::Rename(name) => Some(name.ident.to_string()),
        syn::UseTree::Glob(_) | syn::UseTree::Group(_) => None,
    }
}

/// What tells two imports of one crate apart: to whom they are handed on, and when.
fn said(visibility: &syn::Visibility, attributes: &[syn::Attribute]) -> String {
    let visibility = match visibility {
        syn::Visibility::Public(_) => "pub".to_owned(),
        syn::Visibility::Restricted(to) => to
            .path
            .segments
            .last()
            .map(|last| last.ident.to_string())
            .unwrap_or_default(),
        syn::Visibility::Inherited => String::new(),
    };
    let attributes = attributes.iter().map(|attribute| match &attribute.meta {
        syn::Meta::List(list) => list.tokens.to_string(),
        _ => String::new(),
    });
    std::iter::once(visibility)
        .chain(attributes)
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let findings = findings(&Sources::of(&[("a.rs", text)])).unwrap();
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn one_use_for_each_crate() {
        assert_eq!(
            found("use std::fs;\nuse std::io;\n"),
            ["a.rs:2: two `use` of `std` that could be one"]
        );
        let apart = "use std::fs;\n#[cfg(unix)]\nuse std::os;\npub use a::B;\nuse a::C;\n";
        assert!(found(apart).is_empty());
    }

    #[test]
    fn in_the_order_of_the_groups() {
        assert_eq!(
            found("use crate::a;\nuse anyhow::Result;\n"),
            ["a.rs:2: `use anyhow` belongs above"]
        );
        assert!(found("use std::fs;\nuse anyhow::Result;\nuse crate::a;\n").is_empty());
    }
}

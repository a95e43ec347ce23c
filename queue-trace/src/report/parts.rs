//! What several parts of the page use.

use maud::{Markup, html};

use crate::diagnose::case::Key;

/// What tells a listener from others, in words.
pub(super) fn identity(key: &Key) -> String {
    match key.inode {
        Some(inode) => format!("netns {}, socket inode {inode}", key.netns),
        None => format!("netns {}", key.netns),
    }
}

/// How many rows a table does not show.
pub(super) fn left_out(all: usize, shown: usize, what: &str) -> Markup {
    html! {
        @if all > shown { p.soft { (all - shown) " more " (what) " are not shown." } }
    }
}

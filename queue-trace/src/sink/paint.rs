//! Colours of text: on a terminal that wants them, nothing elsewhere.

use std::fmt::Display;

use anstyle::{AnsiColor, Style};
use queue_trace_common::outcome::{Kind, Outcome};

use crate::model::words::verdict_words;

pub(super) const DIM: Style = Style::new().dimmed();
pub(super) const BOLD: Style = Style::new().bold();
pub(super) const RED: Style = AnsiColor::Red.on_default();
pub(super) const YELLOW: Style = AnsiColor::Yellow.on_default();
pub(super) const GREEN: Style = AnsiColor::Green.on_default();

/// Width of the column of verdicts.
pub(super) const VERDICT_WIDTH: usize = 20;

/// Whether text has colours.
#[derive(Clone, Copy)]
pub(super) struct Paint(pub(super) bool);

impl Paint {
    /// What goes before and after text in a style.
    pub(super) fn around(self, style: Style) -> (impl Display, impl Display) {
        let style = if self.0 { style } else { Style::new() };
        (style.render(), style.render_reset())
    }

    /// Text in a style, or as it is.
    pub(super) fn styled(self, style: Style, text: &str) -> String {
        let (before, after) = self.around(style);
        format!("{before}{text}{after}")
    }

    /// The verdict as its column, in its colour.
    pub(super) fn verdict(self, outcome: &Outcome) -> String {
        let words = format!("{:<VERDICT_WIDTH$}", verdict_words(outcome));
        self.styled(style_of(outcome), &words)
    }
}

fn style_of(outcome: &Outcome) -> Style {
    match (outcome.kind, outcome.verdict) {
        (Kind::Routine, "accepted" | "established" | "queued") => GREEN,
        (Kind::Routine, _) | (_, "cookie_sent" | "fast_open_refused") => YELLOW,
        (Kind::Refusal, _) => RED,
    }
}

//! Listeners as a table for a person: one row a socket, with what matters in an
//! incident. Columns are as wide as what is in them.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};

use crate::model::{
    snapshot::{Gauge, Snapshot},
    words::{listener_words, short_time},
};

const TITLES: [&str; 8] = [
    "LISTENER",
    "OWNER",
    "ACCEPT",
    "LIMIT FROM",
    "SYN",
    "DROPS",
    "ACCEPT WAIT",
    "OLDEST",
];

const RED: Style = AnsiColor::Red.on_default().bold();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const DIM: Style = Style::new().dimmed();

/// Writes the table.
///
/// # Errors
/// What the writer says.
pub fn write(out: &mut impl Write, rows: &[Snapshot], colour: bool) -> io::Result<()> {
    if rows.is_empty() {
        return writeln!(out, "No listeners.");
    }
    let cells: Vec<[String; 8]> = rows.iter().map(cells).collect();
    let mut widths = TITLES.map(str::len);
    for row in &cells {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; 8]| {
        let mut line = String::new();
        for (cell, width) in cells.into_iter().zip(widths) {
            // Writing to a string does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        line.trim_end().to_owned()
    };
    let styled = |style: Option<Style>, text: String| match style {
        Some(style) if colour => format!("{style}{text}{style:#}"),
        _ => text,
    };
    let mut netns = None;
    let several = rows.iter().any(|row| row.netns != rows[0].netns);
    writeln!(out, "{}", styled(Some(DIM), line(TITLES)))?;
    for (row, cells) in rows.iter().zip(&cells) {
        if several && netns != Some(row.netns) {
            netns = Some(row.netns);
            writeln!(out, "{}", styled(Some(DIM), format!("netns {}", row.netns)))?;
        }
        let style = match row {
            row if row.is_full() => Some(RED),
            row if row.drops.as_ref().is_some_and(|drops| !drops.is_empty()) => Some(YELLOW),
            _ => None,
        };
        let line = line(cells.each_ref().map(String::as_str));
        writeln!(out, "{}", styled(style, line))?;
    }
    Ok(())
}

fn cells(row: &Snapshot) -> [String; 8] {
    [
        listener(row),
        row.owner().unwrap_or_else(|| "?".to_owned()),
        accept(row),
        row.limit_words(),
        syn(row),
        drops(row),
        row.accept_latency_us
            .map_or(String::new(), |latency| latency.to_string()),
        row.oldest_waiting_us.map(short_time).unwrap_or_default(),
    ]
}

fn listener(row: &Snapshot) -> String {
    let mut text = listener_words(&row.listener, row.device_name.as_deref());
    if let Some(group) = row.group.filter(|group| group.size > 1) {
        // Writing to a string does not fail.
        let _ = write!(text, " {}/{}", group.index + 1, group.size);
        if let Some(share) = group.share {
            let _ = write!(text, " {:.0}%", share * 100.0);
        }
    }
    if row.is_closed() {
        text.push_str(" closed");
    }
    text
}

fn accept(row: &Snapshot) -> String {
    let Some(queue) = &row.accept_queue else {
        return String::new();
    };
    let mut text = filled(queue);
    if let Some(high) = queue.high_water {
        // Writing to a string does not fail.
        let _ = write!(text, " max {high}");
    }
    if queue.is_full() {
        let among_idle = row.group.and_then(|group| group.full_among_idle);
        text.push_str(match among_idle {
            Some(true) => " FULL, others idle",
            _ => " FULL",
        });
    }
    text.trim_start().to_owned()
}

fn syn(row: &Snapshot) -> String {
    let Some(queue) = &row.syn_queue else {
        return String::new();
    };
    let high = queue
        .high_water
        .map_or(String::new(), |high| format!(" max {high}"));
    format!("{}{high}", filled(queue))
}

/// How many are in a queue, and how many may be, if it is known.
fn filled(queue: &Gauge) -> String {
    match (queue.depth, queue.limit) {
        (Some(depth), Some(limit)) => format!("{depth}/{limit}"),
        _ => String::new(),
    }
}

fn drops(row: &Snapshot) -> String {
    let drops: Vec<_> = row
        .drops
        .iter()
        .flatten()
        .map(|(cause, count)| format!("{} {count}", cause.replace('_', " ")))
        .collect();
    drops.join(", ")
}

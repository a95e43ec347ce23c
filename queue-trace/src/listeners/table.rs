//! Listeners as a table for a person: one row a socket, with what matters in an
//! incident. Columns are as wide as what is in them.

use std::{
    fmt::Write as _,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};

use super::{LimitFrom, Row, Spread};
use crate::{
    sink::{endpoint, short_time},
    snapshot::Snapshot,
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
pub fn write(out: &mut impl Write, rows: &[Row], colour: bool) -> io::Result<()> {
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
            row if row.accept_queue.is_full() => Some(RED),
            row if row.drops.as_ref().is_some_and(|drops| !drops.is_empty()) => Some(YELLOW),
            _ => None,
        };
        let line = line(cells.each_ref().map(String::as_str));
        writeln!(out, "{}", styled(style, line))?;
    }
    Ok(())
}

fn cells(row: &Row) -> [String; 8] {
    [
        listener(row),
        owner(row),
        accept(row),
        limit_from(row),
        syn(row),
        drops(row),
        wait(row.accept_latency_us),
        row.oldest_waiting_us.map(short_time).unwrap_or_default(),
    ]
}

fn listener(row: &Row) -> String {
    let mut text = endpoint(row.listener.addr, row.listener.port);
    if let Some(group) = row.group.filter(|group| group.size > 1) {
        // Writing to a string does not fail.
        let _ = write!(text, " {}/{}", group.index + 1, group.size);
        if let Some(share) = group.share {
            let _ = write!(text, " {:.0}%", share * 100.0);
        }
    }
    if row.closed {
        text.push_str(" closed");
    }
    text
}

/// Whose it is, as far as we may know.
pub(crate) fn owner(row: &Row) -> String {
    Snapshot::from(row)
        .owner()
        .unwrap_or_else(|| "?".to_owned())
}

fn accept(row: &Row) -> String {
    let queue = &row.accept_queue;
    let mut text = format!("{}/{}", queue.depth, queue.limit);
    if row.closed {
        text.clear();
    }
    if let Some(high) = queue.high_water {
        // Writing to a string does not fail.
        let _ = write!(text, " max {high}");
    }
    if queue.is_full() && !row.closed {
        text.push_str(match row.group {
            Some(group) if group.full_among_idle => " FULL, others idle",
            _ => " FULL",
        });
    }
    text.trim_start().to_owned()
}

pub(crate) fn limit_from(row: &Row) -> String {
    let mut text = match row.accept_queue.limit_from {
        _ if row.closed => String::new(),
        Some(LimitFrom::Backlog) => "backlog".to_owned(),
        Some(LimitFrom::Somaxconn) => "somaxconn".to_owned(),
        Some(LimitFrom::EarlierSomaxconn) => "earlier somaxconn".to_owned(),
        None => String::new(),
    };
    if let Some(asked) = row.accept_queue.asked
        && row.accept_queue.limit_from != Some(LimitFrom::Backlog)
    {
        // Writing to a string does not fail.
        let _ = write!(text, " (asked {asked})");
    }
    if let Some(somaxconn) = row.accept_queue.somaxconn
        && row.accept_queue.limit_from != Some(LimitFrom::Somaxconn)
    {
        // Writing to a string does not fail.
        let _ = write!(text, " (somaxconn {somaxconn})");
    }
    if let Some(default_of) = row.default_of {
        let _ = write!(text, ", default of {default_of}");
    }
    text
}

fn syn(row: &Row) -> String {
    let Some(queue) = row.syn_queue else {
        return String::new();
    };
    let high = queue
        .high_water
        .map_or(String::new(), |high| format!(" max {high}"));
    format!("{}/{}{high}", queue.depth, queue.limit)
}

fn drops(row: &Row) -> String {
    let drops: Vec<_> = row
        .drops
        .iter()
        .flatten()
        .map(|(cause, count)| format!("{} {count}", cause.replace('_', " ")))
        .collect();
    drops.join(", ")
}

/// Half of them, nearly all of them, the longest.
pub(crate) fn wait(spread: Option<Spread>) -> String {
    spread.map_or(String::new(), |spread| {
        let [p50, p99, max] = [spread.p50, spread.p99, spread.max].map(short_time);
        format!("{p50} {p99} {max}")
    })
}

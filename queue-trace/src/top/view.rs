//! Draws what `top` shows: a table of listeners, and below it the one selected.

use jiff::{Timestamp, tz::TimeZone};
use queue_trace_common::queue::BUCKETS;
use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Clear, Paragraph, Row as TableRow, Table, TableState, Wrap},
};

use crate::{
    model::{
        clients::Clients,
        clock::NS_PER_SECOND,
        event::Name,
        printable::printable,
        snapshot::{Latency, Snapshot},
        stall::cause::conclude,
        words::short_time,
    },
    top::state::{Sort, Top, name, owner},
};

/// The least that all fits into.
const LEAST: (u16, u16) = (60, 12);

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, top: &Top) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let (width, height) = LEAST;
        let text = format!("The terminal is too small: {width}x{height} at least.");
        frame.render_widget(Paragraph::new(text), area);
        return;
    }
    // The one selected takes half; a table longer than its rows needs no more.
    let rows = u16::try_from(top.shown().count()).unwrap_or(u16::MAX);
    let rows = rows.saturating_add(1);
    let table = rows.min((area.height - 2) / 2).max(3);
    let [head, list, detail, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(table),
        Constraint::Min(0),
        Constraint::Length(1),
    ])
    .areas(area);
    draw_head(frame, top, head);
    draw_list(frame, top, list);
    match top.selected() {
        Some((_, row)) => draw_detail(frame, top, row, detail),
        None => frame.render_widget(Paragraph::new("No listeners."), detail),
    }
    draw_foot(frame, top, foot);
    if top.help {
        draw_help(frame, top, area);
    }
}

/// Colours say again what words say.
fn coloured(top: &Top, colour: Color) -> Style {
    if top.colour {
        Style::new().fg(colour)
    } else {
        Style::new()
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const DIM: Style = Style::new().add_modifier(Modifier::DIM);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

fn draw_head(frame: &mut Frame<'_>, top: &Top, area: Rect) {
    let at = moment(top, top.seen.at_ns);
    let mut line = Line::from(vec![Span::styled("queue-trace top ", BOLD), Span::raw(at)]);
    if let Some((from, to)) = top.span {
        line.push_span(format!(" of {} to {}", moment(top, from), moment(top, to)));
    }
    if top.at_end() {
        line.push_span(Span::styled("  END", REVERSED));
    } else if top.paused {
        line.push_span(Span::styled("  PAUSED", REVERSED));
    }
    if top.seen.lost.parts().next().is_some() {
        let style = coloured(top, Color::Red).add_modifier(Modifier::BOLD);
        line.push_span(Span::styled(format!("  LOST {}", top.seen.lost), style));
    }
    line.push_span(format!("  {}", top.title));
    frame.render_widget(line, area);
}

/// The time of day, with the day where a recording has several.
fn moment(top: &Top, ns: i128) -> String {
    let zoned = |ns| Timestamp::from_nanosecond(ns).map(|at| at.to_zoned(TimeZone::system()));
    let days = top.span.map(|(from, to)| (zoned(from), zoned(to)));
    let format = match days {
        Some((Ok(from), Ok(to))) if from.date() != to.date() => "%m-%d %H:%M:%S",
        _ => "%H:%M:%S",
    };
    zoned(ns).map_or_else(|_| "?".to_owned(), |at| at.strftime(format).to_string())
}

fn draw_foot(frame: &mut Frame<'_>, top: &Top, area: Rect) {
    let line = if top.typing {
        Line::from(format!(
            "filter: {}_   Enter keeps it, Esc drops it",
            top.filter
        ))
    } else {
        let filter = match top.filter.as_str() {
            "" => String::new(),
            filter => format!("  filter: {filter} (Esc drops it)"),
        };
        let time = match top.span {
            Some(_) => "space play  left/right 1 s  [ ] 1 min",
            None => "space pause",
        };
        Line::from(format!(
            "? help  q quit  / filter  {time}  sorted by {}{filter}",
            top.sort.name()
        ))
    };
    frame.render_widget(line.style(DIM), area);
}

fn draw_list(frame: &mut Frame<'_>, top: &Top, area: Rect) {
    // The columns beside the names: accept queue, SYN queue, drops, waits, drops a second,
    // oldest, depth. A narrow screen leaves two of them out.
    let wide = area.width >= 130;
    let fixed: &[u16] = if wide {
        &[13, 9, 8, 18, 12, 7, 12]
    } else {
        &[13, 7, 6, 6, 8]
    };
    let columns = fixed.len() as u16 + 2;
    let names = area.width - fixed.iter().sum::<u16>() - (columns - 1);
    let listener = (names * 3 / 5).min(48);
    let mut widths = vec![listener, names - listener];
    widths.extend(fixed);
    let mut titles = vec!["LISTENER", "OWNER", "ACCEPT QUEUE", "SYN", "DROPS"];
    if wide {
        titles.extend(["WAIT 50% 99% max", "DROPS/s"]);
    }
    titles.extend(["OLDEST", "DEPTH"]);
    let rows = top.shown().map(|row| {
        let style = match row.refused() {
            _ if row.is_full() => coloured(top, Color::Red).patch(BOLD),
            1.. => coloured(top, Color::Yellow),
            0 => Style::new(),
        };
        let snapshot = row;
        let syn = snapshot.syn_queue.as_ref();
        let syn = syn.map_or(String::new(), |syn| fill(syn.depth, syn.limit));
        let past = top.seen.past(row);
        let spark = |past: Option<&std::collections::VecDeque<u64>>, most| {
            past.map_or(String::new(), |past| {
                sparks(past.iter().copied(), if wide { 11 } else { 8 }, most)
            })
        };
        let full = if row.is_full() { " FULL" } else { "" };
        let mut cells = vec![
            name(row),
            owner(row),
            format!("{}{full}", fill(row.depth(), row.limit())),
            syn,
            number(row.refused()),
        ];
        if wide {
            let spread = snapshot.accept_latency_us.and_then(Latency::distribution);
            cells.push(spread.map_or(String::new(), |spread| spread.to_string()));
            cells.push(spark(past.map(|past| &past.drops), None));
        }
        cells.push(
            snapshot
                .oldest_waiting_us
                .map(short_time)
                .unwrap_or_default(),
        );
        cells.push(spark(
            past.map(|past| &past.depth),
            row.limit().map(|limit| u64::from(limit) + 1),
        ));
        TableRow::new(cells.into_iter().map(Cell::from)).style(style)
    });
    let table = Table::new(rows, widths)
        .column_spacing(1)
        .header(TableRow::new(titles).style(DIM))
        .row_highlight_style(REVERSED);
    let mut state = TableState::new().with_selected(top.selected().map(|(at, _)| at));
    frame.render_stateful_widget(table, area, &mut state);
}

/// `3/128`, with a question mark for what is not known.
fn fill(depth: Option<u32>, limit: Option<u32>) -> String {
    let [depth, limit] =
        [depth, limit].map(|number| number.map_or("?".to_owned(), |number| number.to_string()));
    format!("{depth}/{limit}")
}

/// To four digits: `950`, `12k`, `3.4M`.
fn number(count: u64) -> String {
    match count {
        0 => String::new(),
        1..10_000 => count.to_string(),
        10_000..10_000_000 => format!("{}k", count / 1000),
        _ => format!("{}M", count / 1_000_000),
    }
}

/// The latest values as a row of bars, the highest of which stands for `most`, or for the
/// highest of them.
fn sparks(values: impl DoubleEndedIterator<Item = u64>, width: usize, most: Option<u64>) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let mut latest: Vec<_> = values.rev().take(width).collect();
    latest.reverse();
    let most = most.or(latest.iter().copied().max()).unwrap_or(0).max(1);
    let bar = |value: u64| BARS[(u128::from(value.min(most)) * 8).div_ceil(most.into()) as usize];
    latest.into_iter().map(bar).collect()
}

fn draw_detail(frame: &mut Frame<'_>, top: &Top, row: &Snapshot, area: Rect) {
    let title = format!(" {}  netns {} ", name(row), row.netns);
    let block = Block::new()
        .borders(Borders::TOP)
        .title(Span::styled(title, BOLD));
    let inside = block.inner(area);
    frame.render_widget(block, area);
    // Nothing measured takes no room.
    let measured = if row.accept_latency_us.is_some() {
        24
    } else {
        0
    };
    let [facts, waits, news] = Layout::horizontal([
        Constraint::Percentage(40),
        Constraint::Length(measured),
        Constraint::Min(0),
    ])
    .spacing(1)
    .areas(inside);
    let text = Paragraph::new(fact_lines(top, row, facts)).wrap(Wrap { trim: false });
    frame.render_widget(text, facts);
    frame.render_widget(Paragraph::new(wait_lines(top, row, waits)), waits);
    let clients = top.seen.clients_of(row);
    let networks = clients.as_ref().map_or(0, |clients| clients.networks.len());
    let listed = networks.min(usize::from(news.height) / 3) as u16;
    let title = u16::from(listed > 0);
    let [events, top_clients] =
        Layout::vertical([Constraint::Min(0), Constraint::Length(listed + title)]).areas(news);
    frame.render_widget(Paragraph::new(event_lines(top, row)), events);
    let lines = clients.map_or_else(Vec::new, |clients| client_lines(&clients, listed.into()));
    frame.render_widget(Paragraph::new(lines), top_clients);
}

/// So many networks of clients, and how well they are known.
fn client_lines(clients: &Clients, listed: usize) -> Vec<Line<'static>> {
    let estimate = clients.estimate();
    let title = if estimate.is_empty() {
        "top clients".to_owned()
    } else {
        format!("top clients, {estimate}")
    };
    let mut lines = vec![Line::styled(title, DIM)];
    lines.extend(clients.networks.iter().take(listed).map(|network| {
        let share = network.share(clients) * 100.0;
        let (count, network) = (network.count, network.network);
        Line::raw(format!("{count:>8}  {share:>5.1}%  {network}"))
    }));
    lines
}

/// A gauge of a queue: full when the bar is.
fn gauge(depth: Option<u32>, limit: Option<u32>, width: usize) -> String {
    let (Some(depth), Some(limit)) = (depth, limit) else {
        return fill(depth, limit);
    };
    let room = u64::from(limit) + 1;
    let filled = (u64::from(depth).min(room) * width as u64).div_ceil(room) as usize;
    format!(
        "[{}{}] {depth}/{limit}",
        "#".repeat(filled),
        ".".repeat(width - filled)
    )
}

fn fact_lines<'a>(top: &Top, row: &Snapshot, area: Rect) -> Vec<Line<'a>> {
    let width = usize::from(area.width.saturating_sub(18)).clamp(4, 30);
    let snapshot = row;
    let bar = gauge(row.depth(), row.limit(), width);
    let mut lines = vec![Line::raw(format!("accept {bar}"))];
    let mut history = Vec::new();
    if let Some(syn) = &snapshot.syn_queue {
        let bar = gauge(syn.depth, syn.limit, width);
        lines.push(Line::raw(format!("SYN    {bar}")));
    }
    if let Some(queue) = &snapshot.accept_queue {
        let high = queue.high_water;
        history.extend(high.map(|high| format!("accept at most {high}")));
        let syn = snapshot.syn_queue.as_ref().and_then(|syn| syn.high_water);
        history.extend(syn.map(|high| format!("SYN at most {high}")));
        let full = queue.full_us.filter(|us| *us > 0);
        history.extend(full.map(|us| format!("full for {}", short_time(us))));
    }
    if !history.is_empty() {
        lines.push(Line::raw(history.join(", ")));
    }
    if let Some(group) = snapshot.group.filter(|group| group.size > 1) {
        let share = group.share.map_or(String::new(), |share| {
            format!(", {:.0}% of it", share * 100.0)
        });
        let idle = if group.full_among_idle == Some(true) {
            ": full, others idle"
        } else {
            ""
        };
        lines.push(Line::raw(format!(
            "{} of a group of {}{share}{idle}",
            group.index.saturating_add(1),
            group.size
        )));
    }
    lines.push(Line::raw(owner(row)));
    if let Some(path) = &snapshot.cgroup {
        lines.push(Line::styled(printable(path).into_owned(), DIM));
    }
    if snapshot.is_stalled()
        && let Some(conclusion) = conclude(snapshot)
    {
        let style = coloured(top, Color::Red);
        lines.push(Line::styled(
            format!("not accepting: {}", conclusion.words),
            style,
        ));
    }
    if let Some(threads) = snapshot.thread_words() {
        lines.push(Line::raw(format!("threads: {threads}")));
    }
    let limit_from = snapshot.limit_words();
    if !limit_from.is_empty() {
        lines.push(Line::raw(format!("limit from {limit_from}")));
    }
    let mut causes: Vec<_> = snapshot.drops.iter().flatten().collect();
    causes.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (cause, count) in causes {
        let text = format!("{count:>8}  {}", cause.replace('_', " "));
        lines.push(Line::styled(text, coloured(top, Color::Red)));
    }
    lines
}

/// How long connections waited, a bar for each power of two.
fn wait_lines<'a>(top: &Top, row: &Snapshot, area: Rect) -> Vec<Line<'a>> {
    let mut lines = vec![Line::styled("waited for accept()", DIM)];
    let spread = row.accept_latency_us.and_then(Latency::distribution);
    lines.extend(spread.map(|spread| Line::raw(spread.to_string())));
    let Some(places) = row.waits else {
        return lines;
    };
    let room = usize::from(area.height.saturating_sub(2));
    let first = places.iter().position(|count| *count > 0).unwrap_or(0);
    let last = places.iter().rposition(|count| *count > 0).unwrap_or(0);
    // Where all do not fit the longest are what matters.
    let first = first.max((last + 1).saturating_sub(room));
    let most = places.iter().copied().max().unwrap_or(1).max(1);
    for (place, count) in places.iter().enumerate().take(last + 1).skip(first) {
        let below = if place + 1 < BUCKETS {
            short_time(1 << place)
        } else {
            "more".to_owned()
        };
        let bar = "#".repeat(count.saturating_mul(8).div_ceil(most) as usize);
        let text = format!("<{below:<6}{bar:<8} {}", number(*count));
        lines.push(Line::styled(text, coloured(top, Color::Cyan)));
    }
    lines
}

fn event_lines<'a>(top: &Top, row: &Snapshot) -> Vec<Line<'a>> {
    let mut lines = vec![Line::styled("latest events", DIM)];
    lines.extend(top.seen.events_of(row).map(|event| {
        let client = event
            .client
            .map_or(String::new(), |client| client.addr.to_string());
        let times = if event.count > 1 {
            format!(" x{}", event.count)
        } else {
            String::new()
        };
        let ago = (top.seen.at_ns - event.wall_ns).max(0) / NS_PER_SECOND;
        Line::raw(format!("{ago:>4}s {} {client}{times}", Name(event.outcome)))
    }));
    lines
}

fn draw_help(frame: &mut Frame<'_>, top: &Top, area: Rect) {
    let mut lines = vec![
        Line::raw("up, down   select a listener (k, j; page up, page down)"),
        Line::raw("/          filter by address, port or owner"),
        Line::raw("space      pause and go on"),
    ];
    if top.span.is_some() {
        lines.extend([
            Line::raw("left right a second back, a second further"),
            Line::raw("[ ]        a minute back, a minute further"),
            Line::raw("Home End   to the beginning, to the end of the recording"),
        ]);
    }
    lines.extend([Line::raw("q, ctrl-C  quit")]);
    // Two lines, so that there is room for what is not told.
    let sort = |(key, _, name): &(char, Sort, &str)| format!("{key} {name}");
    for (title, half) in ["sort by", ""]
        .iter()
        .zip(Sort::ALL.chunks(Sort::ALL.len() / 2))
    {
        let keys: Vec<_> = half.iter().map(sort).collect();
        lines.push(Line::raw(format!("{title:<11}{}", keys.join(", "))));
    }
    let mut notes = top.notes.iter().chain(&top.seen.notes).peekable();
    if notes.peek().is_some() {
        lines.push(Line::raw(""));
        lines.push(Line::raw("Not told here:"));
        lines.extend(notes.map(|note| Line::raw(note.clone())));
    }
    let width = area.width.min(76);
    let height = area.height.min(lines.len() as u16 + 4);
    let place = Rect {
        x: (area.width - width) / 2,
        y: (area.height - height) / 2,
        width,
        height,
    };
    let text = Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .block(Block::bordered().title(" Keys (any key closes this) "));
    frame.render_widget(Clear, place);
    frame.render_widget(text, place);
}

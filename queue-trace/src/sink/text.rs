//! Text for a person: one aligned line an event, and a summary at the end.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::{IpAddr, SocketAddr},
};

use anstyle::{AnsiColor, Style};
use jiff::{Timestamp, tz::TimeZone};
use queue_trace_common::outcome::{Kind, Outcome};

use super::{Counts, Header, LossNote, Medium, Sink, Total};
use crate::{
    clients::Clients,
    event::{Event, Listener},
    ledger::Ledger,
    snapshot::Snapshot,
};

/// Writes text, in colour or not.
pub struct Text<W> {
    out: W,
    colour: bool,
    zone: TimeZone,
    // Grow with what is shown, so that columns stay aligned.
    listener_width: usize,
    client_width: usize,
    titled: bool,
    /// What was told last of each listener, by namespace and inode number.
    listeners: HashMap<(u32, Option<u64>), Snapshot>,
}

const DIM: Style = Style::new().dimmed();
const BOLD: Style = Style::new().bold();
const RED: Style = AnsiColor::Red.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const GREEN: Style = AnsiColor::Green.on_default();

/// Networks of clients in the summary, for each listener.
const SHOWN_NETWORKS: usize = 5;

const VERDICT_WIDTH: usize = 20;
const CAUSE_WIDTH: usize = 23;

impl<W: Medium> Text<W> {
    /// Writes to `out`, with times in the zone given.
    pub fn new(out: W, colour: bool, zone: TimeZone) -> Self {
        Self {
            out,
            colour,
            zone,
            listener_width: "192.168.100.100:65535".len(),
            client_width: "192.168.100.100:65535".len(),
            titled: false,
            listeners: HashMap::new(),
        }
    }

    /// Text in a style, or as it is.
    fn styled(&self, style: Style, text: &str) -> String {
        if self.colour {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    fn time(&self, wall_ns: i128) -> String {
        match Timestamp::from_nanosecond(wall_ns) {
            Ok(moment) => moment
                .to_zoned(self.zone.clone())
                .strftime("%H:%M:%S.%3f")
                .to_string(),
            Err(_) => "?".to_owned(),
        }
    }

    fn title(&mut self) -> io::Result<()> {
        self.titled = true;
        let title = format!(
            "{:<12}  {:<VERDICT_WIDTH$}  {:<CAUSE_WIDTH$}  {:<listener$}  {:<client$}  QUEUES",
            "TIME",
            "VERDICT",
            "CAUSE",
            "LISTENER",
            "CLIENT",
            listener = self.listener_width,
            client = self.client_width,
        );
        let title = self.styled(DIM, &title);
        writeln!(self.out, "{title}")
    }
}

/// How full the accept queue got, for how long, and how long connections waited.
fn history(snapshot: &Snapshot) -> Option<String> {
    let queue = snapshot.accept_queue.as_ref()?;
    let mut text = format!("accept queue at most {}", queue.high_water?);
    if let Some(limit) = queue.limit.filter(|_| snapshot.closed.is_none()) {
        text.push_str(&format!(", limit {limit}"));
    }
    if let Some(full_us @ 1..) = queue.full_us {
        text.push_str(&format!(", full for {}", short_time(full_us)));
    }
    let spread = snapshot.accept_latency_us.unwrap_or_default();
    if let (Some(half), Some(most), Some(max)) = (spread.p50, spread.p99, spread.max) {
        let [half, most, max] = [half, most, max].map(short_time);
        text.push_str(&format!(
            "; waited {half} (half), {most} (99%), {max} (longest)"
        ));
    }
    Some(text)
}

/// A time in microseconds, to two or three digits: `840us`, `1.2ms`, `35s`.
#[must_use]
pub fn short_time(us: u64) -> String {
    let units = [(1_000_000, "s"), (1_000, "ms")];
    match units.iter().find(|(size, _)| us >= *size) {
        Some((size, unit)) if us < 10 * size => {
            format!("{}.{}{unit}", us / size, us % size * 10 / size)
        }
        Some((size, unit)) => format!("{}{unit}", us / size),
        None => format!("{us}us"),
    }
}

/// A verdict in words: `syn_dropped` is "SYN dropped".
fn verdict_words(outcome: &Outcome) -> String {
    outcome
        .verdict
        .split('_')
        .map(|word| match word {
            "syn" | "ack" => word.to_uppercase(),
            "synack" => "SYN-ACK".to_owned(),
            _ => word.to_owned(),
        })
        .collect::<Vec<_>>()
        .join(" ")
}

fn cause_words(outcome: &Outcome) -> String {
    outcome.cause.unwrap_or_default().replace('_', " ")
}

fn style_of(outcome: &Outcome) -> Style {
    match (outcome.kind, outcome.verdict) {
        (Kind::Routine, "accepted" | "established" | "queued") => GREEN,
        (Kind::Routine, _) | (_, "cookie_sent") => YELLOW,
        (Kind::Refusal, _) => RED,
    }
}

/// An address and a port, as they are written together.
#[must_use]
pub fn endpoint(addr: Option<IpAddr>, port: u16) -> String {
    match addr {
        Some(addr) => SocketAddr::new(addr, port).to_string(),
        None => format!("?:{port}"),
    }
}

fn listener_words(listener: &Listener) -> String {
    endpoint(listener.addr, listener.port)
}

impl<W: Medium> Sink for Text<W> {
    fn header(&mut self, _: &Header) -> io::Result<()> {
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        let listener = listener_words(&event.listener);
        let client = event
            .client
            .map(|client| endpoint(Some(client.addr), client.port))
            .unwrap_or_default();
        if listener.len() > self.listener_width || client.len() > self.client_width {
            self.listener_width = self.listener_width.max(listener.len());
            self.client_width = self.client_width.max(client.len());
            // New widths want a new title.
            self.titled = false;
        }
        if !self.titled {
            self.title()?;
        }
        let mut queues = Vec::new();
        if let Some(queue) = event.accept_queue {
            queues.push(format!("accept {}/{}", queue.depth, queue.limit));
        }
        if let Some(queue) = event.syn_queue {
            queues.push(format!("syn {}/{}", queue.depth, queue.limit));
        }
        if event.count > 1 {
            queues.push(format!("x{}", event.count));
        }
        if let Some(times) = event.retransmits.filter(|times| *times > 0) {
            queues.push(format!("sent again {times}x"));
        }
        if let Some(waited_us) = event.waited_us {
            queues.push(format!("waited {}", short_time(waited_us)));
        }
        if let Some(process) = &event.process {
            queues.push(format!("by {}[{}]", process.comm, process.pid));
        }
        let verdict = format!("{:<VERDICT_WIDTH$}", verdict_words(event.outcome));
        let verdict = self.styled(style_of(event.outcome), &verdict);
        let time = self.styled(DIM, &self.time(event.wall_ns));
        let line = format!(
            "{time}  {verdict}  {:<CAUSE_WIDTH$}  {listener:<listener_width$}  {client:<client_width$}  {}",
            cause_words(event.outcome),
            queues.join("  "),
            listener_width = self.listener_width,
            client_width = self.client_width,
        );
        writeln!(self.out, "{}", line.trim_end())
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        // For the summary, which has no word of those of which nothing was counted.
        let whose = (snapshot.netns, snapshot.listener.inode);
        if snapshot.is_closed() && snapshot.counts.as_ref().is_none_or(BTreeMap::is_empty) {
            self.listeners.remove(&whose);
        } else {
            self.listeners.insert(whose, snapshot.clone());
        }
        Ok(())
    }

    fn counts(&mut self, _: &Counts) -> io::Result<()> {
        Ok(())
    }

    fn loss(&mut self, note: &LossNote) -> io::Result<()> {
        let parts: Vec<_> = note
            .parts()
            .map(|(name, count)| format!("{count} {name}"))
            .collect();
        let line = self.styled(YELLOW, &format!("lost: {}", parts.join(", ")));
        writeln!(self.out, "{line}")
    }

    fn summary(&mut self, totals: &[Total]) -> io::Result<()> {
        if self.titled {
            writeln!(self.out)?;
        }
        if totals.is_empty() {
            writeln!(
                self.out,
                "None of the outcomes asked for was seen while attached."
            )?;
        }
        let mut last = None;
        for total in totals {
            let whose = (total.netns, total.listener);
            if last != Some(whose) {
                last = Some(whose);
                let name = self.styled(BOLD, &listener_words(&total.listener));
                let mut identity = format!("netns {}", total.netns);
                if let Some(inode) = total.listener.inode {
                    identity.push_str(&format!(", socket inode {inode}"));
                }
                let told = self.listeners.get(&(total.netns, total.listener.inode));
                if let Some(owner) = told.and_then(Snapshot::owner) {
                    identity.push_str(", ");
                    identity.push_str(&owner);
                }
                writeln!(self.out, "{name}  ({identity})")?;
                if let Some(history) = told.and_then(history) {
                    writeln!(self.out, "            {history}")?;
                }
            }
            let verdict = format!("{:<VERDICT_WIDTH$}", verdict_words(total.outcome));
            let verdict = self.styled(style_of(total.outcome), &verdict);
            let line = format!(
                "{:>10}  {verdict}  {}",
                total.count,
                cause_words(total.outcome)
            );
            writeln!(self.out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn clients(&mut self, clients: &Clients) -> io::Result<()> {
        let name = listener_words(&clients.listener);
        let title = self.styled(BOLD, &format!("{name} by network of clients"));
        let note = match clients.estimate() {
            all if all.is_empty() => all,
            estimate => format!("  ({estimate})"),
        };
        writeln!(self.out, "{title}{note}")?;
        for network in clients.networks.iter().take(SHOWN_NETWORKS) {
            writeln!(
                self.out,
                "{:>10}  {:<VERDICT_WIDTH$}  {:.1}%",
                network.count,
                network.network,
                network.share(clients) * 100.0
            )?;
        }
        Ok(())
    }

    fn ledger(&mut self, ledger: &Ledger) -> io::Result<()> {
        let result = match ledger.unexplained {
            Some(0) => self.styled(GREEN, "unexplained 0"),
            Some(count) => self.styled(RED, &format!("unexplained {count}")),
            None => self.styled(YELLOW, "not compared"),
        };
        let note = ledger
            .note
            .as_deref()
            .map_or(String::new(), |note| format!(" ({note})"));
        writeln!(
            self.out,
            "ledger of netns {}: {result}{note}, {} records lost",
            ledger.netns, ledger.lost
        )?;
        for (name, line) in &ledger.counters {
            let kernel = line
                .kernel
                .map_or("?".to_owned(), |kernel| kernel.to_string());
            if line.kernel.unwrap_or(0) == 0 && line.seen == 0 {
                continue;
            }
            writeln!(self.out, "{kernel:>10}  {name:<20}  seen {}", line.seen)?;
        }
        Ok(())
    }

    fn end(&mut self, _: &str) -> io::Result<()> {
        self.out.finish()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

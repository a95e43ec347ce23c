//! Text for a person: one aligned line an event, and a summary at the end.

use std::{
    collections::{BTreeMap, HashMap},
    io,
};

use jiff::tz::TimeZone;

use crate::{
    model::{
        clients::Clients,
        event::{Event, Name},
        front::{FRONT, Scope},
        ledger::Ledger,
        lines::{Counts, Header, LossNote, Total},
        snapshot::Snapshot,
        words::{DeviceNames, cause_words, listener_words, short_time},
    },
    sink::{
        Medium, Sink,
        paint::{BOLD, GREEN, Paint, RED, VERDICT_WIDTH, YELLOW},
        rows::Rows,
    },
};

/// Writes text, in colour or not.
pub struct Text<W> {
    out: W,
    paint: Paint,
    rows: Rows,
    devices: DeviceNames,
    /// What the summary says of each listener, by namespace and inode number.
    listeners: HashMap<(u32, Option<u64>), ListenerSummary>,
}

/// What the summary says of a listener, as was told last.
struct ListenerSummary {
    owner: Option<String>,
    history: Option<String>,
}

/// Listeners of which the summary says more than their counts.
const LISTENERS: usize = 1 << 16;
/// Characters of an owner's name.
const LONGEST: usize = 512;

/// Networks of clients in the summary, for each listener.
const SHOWN_NETWORKS: usize = 5;

impl<W: Medium> Text<W> {
    /// Writes to `out`, with times in the zone given.
    pub fn new(out: W, colour: bool, zone: TimeZone) -> Self {
        Self {
            out,
            paint: Paint(colour),
            rows: Rows::new(Paint(colour), zone),
            devices: DeviceNames::default(),
            listeners: HashMap::new(),
        }
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

impl<W: Medium> Sink for Text<W> {
    fn header(&mut self, _: &Header) -> io::Result<()> {
        Ok(())
    }

    fn event(&mut self, event: &Event) -> io::Result<()> {
        self.out
            .write_all(self.rows.of(event, &self.devices).as_bytes())
    }

    fn listener(&mut self, snapshot: &Snapshot) -> io::Result<()> {
        self.devices.learn(snapshot);
        // For the summary, which has no word of those of which nothing was counted.
        let whose = (snapshot.netns, snapshot.listener.inode);
        if snapshot.is_closed() && snapshot.counts.as_ref().is_none_or(BTreeMap::is_empty) {
            self.listeners.remove(&whose);
        } else if self.listeners.len() < LISTENERS || self.listeners.contains_key(&whose) {
            let short = |owner: String| owner.chars().take(LONGEST).collect();
            let told = ListenerSummary {
                owner: snapshot.owner().map(short),
                history: history(snapshot),
            };
            self.listeners.insert(whose, told);
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
        let line = self
            .paint
            .styled(YELLOW, &format!("lost: {}", parts.join(", ")));
        writeln!(self.out, "{line}")
    }

    fn summary(&mut self, totals: &[Total]) -> io::Result<()> {
        if self.rows.titled() {
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
                let device = self.devices.of(total.netns, &total.listener);
                let name = self
                    .paint
                    .styled(BOLD, &listener_words(&total.listener, device));
                let mut identity = format!("netns {}", total.netns);
                if let Some(inode) = total.listener.inode {
                    identity.push_str(&format!(", socket inode {inode}"));
                }
                let told = self.listeners.get(&(total.netns, total.listener.inode));
                if let Some(owner) = told.and_then(|told| told.owner.as_ref()) {
                    identity.push_str(", ");
                    identity.push_str(owner);
                }
                writeln!(self.out, "{name}  ({identity})")?;
                if let Some(history) = told.and_then(|told| told.history.as_ref()) {
                    writeln!(self.out, "            {history}")?;
                }
            }
            let verdict = self.paint.verdict(total.outcome);
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
        let name = listener_words(
            &clients.listener,
            self.devices.of(clients.netns, &clients.listener),
        );
        let title = self
            .paint
            .styled(BOLD, &format!("{name} by network of clients"));
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
            Some(0) => self.paint.styled(GREEN, "unexplained 0"),
            Some(count) => self.paint.styled(RED, &format!("unexplained {count}")),
            None => self.paint.styled(YELLOW, "not compared"),
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
        for row in &FRONT {
            let Some(line) = ledger.front(row.tag) else {
                continue;
            };
            let counts = match row.scope {
                Scope::Outcome => "",
                Scope::Listeners | Scope::Packets => " (kernel: all packets)",
                // Resets alone are nothing to tell.
                Scope::Resets if line.seen.unwrap_or(0) == 0 => continue,
                Scope::Resets => " (kernel: all resets)",
            };
            let shown =
                |count: Option<u64>| count.map_or("?".to_owned(), |count| count.to_string());
            let (kernel, seen) = (shown(line.kernel), shown(line.seen));
            let outcome = Name(row.outcome()).to_string();
            writeln!(self.out, "{kernel:>10}  {outcome:<20}  seen {seen}{counts}")?;
        }
        if let Some(beyond) = ledger.beyond_filter() {
            writeln!(self.out, "{}", self.paint.styled(YELLOW, &beyond))?;
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

//! One line of a recording, from its bytes. A pure function of the bytes: it never panics,
//! whatever they are.
//!
//! A recording may come from anybody. So the words of a line are printable
//! ([`crate::model::printable`]), its lists have no more entries than queue-trace writes, and its
//! times and numbers are ones that there can be.

use std::{borrow::Cow, collections::BTreeMap};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    model::{
        clients::Clients,
        clock::NS_PER_SECOND,
        event::{Event, from_rfc3339},
        ledger::Ledger,
        lines::{Counts, End, Header, LossNote, Total},
        printable::printable,
        snapshot::Snapshot,
        stall::{Stall, cause::conclude},
    },
    sink::Sink,
};

/// One line.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "docs/events.md says what they are")]
pub enum Line {
    Header(Header),
    Event(Event),
    Listener(Box<Snapshot>),
    Counts(Counts),
    Loss(LossNote),
    Total(Total),
    Clients(Clients),
    Ledger(Ledger),
    End(End),
}

/// Why bytes are not a line that this version understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Not a JSON object with a type, or not with the fields of its type.
    #[error("{0}")]
    Garbled(String),
    /// Of a type that this version does not know: a newer one wrote it.
    #[error("lines of type {0:?}")]
    UnknownType(String),
    /// With a time or a number that there cannot be.
    #[error("lines with {0} that cannot be")]
    Impossible(&'static str),
    /// With a verdict or a cause that this version does not know.
    #[error("verdicts or causes like {0}")]
    UnknownWords(String),
}

impl Line {
    /// Parses a line, without its end.
    ///
    /// # Errors
    /// [`Fault`], if the bytes are not a line that this version understands.
    pub fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let line = match made_printable(bytes) {
            Some(bytes) => Self::parse_exactly(&bytes),
            None => Self::parse_exactly(bytes),
        };
        let mut line = line?;
        line.shorten();
        match line.impossible() {
            Some(what) => Err(Fault::Impossible(what)),
            None => Ok(line),
        }
    }

    fn parse_exactly(bytes: &[u8]) -> Result<Self, Fault> {
        let kind = kind(bytes)?;
        match kind.as_ref() {
            "event" => fields(bytes).map(Self::Event),
            "counts" => fields(bytes).map(Self::Counts),
            "listener" => fields(bytes).map(|snapshot| Self::Listener(Box::new(snapshot))),
            "loss" => fields(bytes).map(Self::Loss),
            "total" => fields(bytes).map(Self::Total),
            "clients" => fields(bytes).map(Self::Clients),
            "ledger" => fields(bytes).map(Self::Ledger),
            "header" => fields(bytes).map(Self::Header),
            "end" => fields(bytes).map(Self::End),
            other => Err(Fault::UnknownType(shown(other))),
        }
    }

    /// Leaves no more entries in its lists, and no longer words, than queue-trace writes, so that
    /// what is kept of a line is small.
    fn shorten(&mut self) {
        match self {
            Self::Header(header) => {
                let attach = &mut header.attach;
                let words = [&mut header.host, &mut header.kernel, &mut header.version];
                words.into_iter().for_each(shorten_word);
                shorten_word(&mut attach.family);
                let outcomes = attach.outcomes.as_mut();
                for list in [
                    Some(&mut attach.hooks),
                    Some(&mut attach.limits),
                    attach.filters.as_mut(),
                    outcomes,
                ]
                .into_iter()
                .flatten()
                {
                    list.truncate(MOST);
                    list.iter_mut().for_each(shorten_word);
                }
            }
            Self::Listener(snapshot) => shorten_snapshot(snapshot),
            Self::Event(event) => {
                if let Some(process) = &mut event.process {
                    shorten_word(&mut process.comm);
                }
            }
            Self::Counts(counts) => shorten(&mut counts.outcomes),
            Self::Clients(clients) => {
                clients.networks.truncate(MOST);
                clients.networks.shrink_to_fit();
            }
            Self::Ledger(ledger) => {
                shorten(&mut ledger.counters);
                shorten(&mut ledger.in_front);
                ledger.note.iter_mut().for_each(shorten_word);
            }
            Self::Loss(_) | Self::Total(_) | Self::End(_) => {}
        }
    }

    /// What of it cannot be: a time that no clock shows, or a number beyond all that is counted.
    fn impossible(&self) -> Option<&'static str> {
        let (time, counts): (_, Vec<u64>) = match self {
            Self::Event(event) => {
                let depths = event.accept_queue.map(|queue| (queue.depth, queue.limit));
                let young = event.syn_queue.map(|queue| (queue.depth, queue.limit));
                let mut depths = depths.into_iter().chain(young);
                if depths.any(|(depth, limit)| depth > DEEPEST || limit > DEEPEST) {
                    return Some("depths");
                }
                let high = event.count.max(event.waited_us.unwrap_or(0)) > HIGHEST;
                return match event.wall_ns {
                    time if !TIMES.contains(&time) => Some("times"),
                    _ => high.then_some("counts"),
                };
            }
            Self::Listener(snapshot) => {
                let queues = [&snapshot.accept_queue, &snapshot.syn_queue];
                let mut depths = queues
                    .into_iter()
                    .flatten()
                    .flat_map(|queue| [queue.depth, queue.limit, queue.high_water]);
                if depths.any(|depth| depth > Some(DEEPEST)) {
                    return Some("depths");
                }
                let counts = snapshot.counts.iter().chain(&snapshot.drops).flatten();
                let counts = counts.map(|(_, count)| *count);
                (snapshot.time.as_ref(), counts.collect())
            }
            Self::Header(header) => (Some(&header.time), Vec::new()),
            Self::Counts(counts) => (
                Some(&counts.time),
                counts.outcomes.values().copied().collect(),
            ),
            Self::Loss(note) => {
                let lost = note.parts().map(|(_, count)| count);
                (Some(&note.time), lost.collect())
            }
            Self::Total(total) => (None, vec![total.count]),
            Self::Clients(clients) => (None, vec![clients.events]),
            Self::Ledger(ledger) => {
                let counters = ledger.counters.values();
                let moved = counters.flat_map(|line| [line.kernel.unwrap_or(0), line.seen]);
                let in_front = ledger.in_front.values();
                let in_front = in_front.flat_map(|line| [line.kernel, line.seen]);
                let moved = moved.chain(in_front.flatten());
                (None, moved.chain(ledger.unexplained).collect())
            }
            Self::End(end) => (Some(&end.time), vec![end.lines]),
        };
        let shown = |time: &String| from_rfc3339(time).is_ok_and(|ns| TIMES.contains(&ns));
        if !time.is_none_or(shown) {
            return Some("times");
        }
        counts
            .iter()
            .any(|count| *count > HIGHEST)
            .then_some("counts")
    }

    /// Hands it to a sink.
    ///
    /// # Errors
    /// What the sink's writer says.
    pub fn to(&self, sink: &mut dyn Sink) -> std::io::Result<()> {
        match self {
            Self::Header(header) => sink.header(header),
            Self::Event(event) => sink.event(event),
            Self::Listener(snapshot) => sink.listener(snapshot),
            Self::Counts(counts) => sink.counts(counts),
            Self::Loss(note) => sink.loss(note),
            Self::Total(total) => sink.summary(std::slice::from_ref(total)),
            Self::Clients(clients) => sink.clients(clients),
            Self::Ledger(ledger) => sink.ledger(ledger),
            Self::End(end) => sink.end(&end.time),
        }
    }
}

/// More than queue-trace writes into any list of a line but that of a listener's processes, of
/// which a few are shown.
const MOST: usize = 128;

/// Bytes of a word: a path of the kernel's, or a sentence.
const LONGEST: usize = 4096;
/// Bytes of a name in a list.
const LONGEST_NAME: usize = 128;

/// listen(2) takes an `int`.
const DEEPEST: u32 = i32::MAX as u32;

/// More than a machine counts in a year at a hundred million a second.
const HIGHEST: u64 = 1 << 52;

/// What a clock shows, nanoseconds since 1970: from then on, as one that was never set does, and
/// before 2200.
const TIMES: std::ops::Range<i128> = 0..7_258_118_400 * NS_PER_SECOND;

fn shorten<V>(list: &mut BTreeMap<String, V>) {
    list.retain(|name, _| name.len() <= LONGEST_NAME);
    while list.len() > MOST {
        list.pop_last();
    }
}

fn shorten_word(word: &mut String) {
    shorten_to(word, LONGEST);
}

fn shorten_to(word: &mut String, longest: usize) {
    if word.len() > longest {
        let whole = (0..=longest).rev().find(|at| word.is_char_boundary(*at));
        word.truncate(whole.unwrap_or(0));
        word.shrink_to_fit();
    }
}

fn shorten_snapshot(snapshot: &mut Snapshot) {
    let lists = [&mut snapshot.drops, &mut snapshot.counts];
    lists.into_iter().flatten().for_each(shorten);
    snapshot.threads.iter_mut().for_each(shorten);
    snapshot.cgroup.iter_mut().for_each(shorten_word);
    for name in [
        &mut snapshot.unit,
        &mut snapshot.container,
        &mut snapshot.pod,
        &mut snapshot.pod_name,
        &mut snapshot.device_name,
        &mut snapshot.default_of,
    ] {
        name.iter_mut()
            .for_each(|name| shorten_to(name, 2 * LONGEST_NAME));
    }
    for queue in [&mut snapshot.accept_queue, &mut snapshot.syn_queue] {
        let from = queue.as_mut().and_then(|queue| queue.limit_from.as_mut());
        from.into_iter()
            .for_each(|from| shorten_to(from, LONGEST_NAME));
    }
    if snapshot.stall.is_some() {
        snapshot
            .stall
            .iter_mut()
            .for_each(|stall| shorten_stall(stall));
        // A recording gives evidence, never the conclusion.
        let concluded = conclude(snapshot).map(|conclusion| conclusion.cause.name.to_owned());
        if let Some(stall) = &mut snapshot.stall {
            stall.cause = concluded;
        }
    }
    if let Some(processes) = &mut snapshot.processes {
        processes.truncate(MOST);
        processes.shrink_to_fit();
        for process in processes {
            shorten_to(&mut process.comm, LONGEST_NAME);
        }
    }
}

fn shorten_stall(stall: &mut Stall) {
    stall.doing.truncate(Stall::MOST);
    stall.doing.shrink_to_fit();
    for one in &mut stall.doing {
        one.kernel.truncate(Stall::MOST);
        let words = [&mut one.comm, &mut one.state].into_iter();
        let words = words.chain(&mut one.call).chain(&mut one.on);
        words
            .chain(&mut one.kernel)
            .for_each(|word| shorten_to(word, LONGEST_NAME));
    }
    stall.unread.truncate(Stall::MOST);
    let files = stall.cpu.iter_mut().map(|cpu| &mut cpu.file);
    let files = files.chain(stall.memory.iter_mut().map(|memory| &mut memory.file));
    let words = files.chain(&mut stall.frozen_by).chain(&mut stall.unread);
    words.for_each(|word| shorten_to(word, 2 * LONGEST_NAME));
}

/// The line with all its words printable; `None` if they are.
fn made_printable(bytes: &[u8]) -> Option<Vec<u8>> {
    // All that is not printable is either written by an escape or not ASCII.
    if !bytes.iter().any(|byte| matches!(byte, b'\\' | 0x7f..)) {
        return None;
    }
    // What is no JSON has no words, and is refused in its own words below.
    let mut line = serde_json::from_slice(bytes).ok()?;
    make_printable(&mut line);
    serde_json::to_vec(&line).ok()
}

fn make_printable(value: &mut Value) {
    match value {
        Value::String(word) => {
            if let Cow::Owned(shown) = printable(word) {
                *word = shown;
            }
        }
        Value::Array(values) => values.iter_mut().for_each(make_printable),
        Value::Object(fields) => {
            let all = std::mem::take(fields).into_iter();
            fields.extend(all.map(|(name, mut value)| {
                make_printable(&mut value);
                (printable(&name).into_owned(), value)
            }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The type of a line. queue-trace writes it first, which saves reading the line twice.
fn kind(bytes: &[u8]) -> Result<Cow<'_, str>, Fault> {
    #[derive(Deserialize)]
    struct TypeField<'a> {
        #[serde(borrow)]
        r#type: Cow<'a, str>,
    }
    let first = bytes
        .strip_prefix(br#"{"type":""#)
        .and_then(|rest| rest.split(|byte| *byte == b'"').next())
        .and_then(|word| std::str::from_utf8(word).ok())
        .filter(|word| !word.contains('\\'));
    match first {
        Some(word) => Ok(Cow::Borrowed(word)),
        None => serde_json::from_slice::<TypeField<'_>>(bytes)
            .map(|typed| typed.r#type)
            .map_err(|error| Fault::Garbled(error.to_string())),
    }
}

fn fields<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|error| {
        unknown_words(bytes).map_or_else(
            || Fault::Garbled(error.to_string()),
            |words| Fault::UnknownWords(shown(&words)),
        )
    })
}

/// The words of a line whose outcome this version does not know.
fn unknown_words(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct LineWords<'a> {
        #[serde(borrow)]
        step: Cow<'a, str>,
        #[serde(borrow)]
        verdict: Cow<'a, str>,
        #[serde(borrow, default)]
        cause: Option<Cow<'a, str>>,
    }
    let LineWords {
        step,
        verdict,
        cause,
    } = serde_json::from_slice(bytes).ok()?;
    if crate::model::event::outcome_of(&step, &verdict, cause.as_deref()).is_some() {
        return None;
    }
    Some(match cause {
        Some(cause) => format!("{verdict}:{cause}"),
        None => verdict.into_owned(),
    })
}

/// A word of a file, short.
fn shown(word: &str) -> String {
    const LONGEST: usize = 60;
    printable(word).chars().take(LONGEST).collect()
}

//! One line of a recording, from its bytes. A pure function of the bytes: it never panics,
//! whatever they are.

use std::borrow::Cow;

use serde::Deserialize;

use crate::{
    model::{
        clients::Clients,
        event::Event,
        ledger::Ledger,
        lines::{Counts, End, Header, LossNote, Total},
        snapshot::Snapshot,
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

/// The type of a line. queue-trace writes it first, which saves reading the line twice.
fn kind(bytes: &[u8]) -> Result<Cow<'_, str>, Fault> {
    #[derive(Deserialize)]
    struct Typed<'a> {
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
        None => serde_json::from_slice::<Typed<'_>>(bytes)
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
    struct Words<'a> {
        #[serde(borrow)]
        step: Cow<'a, str>,
        #[serde(borrow)]
        verdict: Cow<'a, str>,
        #[serde(borrow, default)]
        cause: Option<Cow<'a, str>>,
    }
    let Words {
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

/// A word of a file as it can be shown: short, and without what moves a terminal's cursor.
fn shown(word: &str) -> String {
    const LONGEST: usize = 60;
    let clean = word.chars().map(|c| if c.is_control() { '?' } else { c });
    clean.take(LONGEST).collect()
}

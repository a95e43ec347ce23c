//! What is said where somebody asks about a port or a service, whether or not anything is wrong
//! with it: nobody listens; no SYN arrived; all were served; some were refused. What the
//! recording cannot tell is not claimed.

use queue_trace_common::outcome::{ACCEPTED, OUTCOMES, Outcome, QUEUED, Set, Step};
use serde::Serialize;

use super::case::{Case, ENTERED, History, set_of};
use crate::model::{snapshot::is_drop, words::short_time};

/// What was asked, and what the answer can rest on.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The filters that ask, as they are on the command line.
    pub words: Vec<String>,
    /// Whether the open listeners were listed.
    pub listed: bool,
    /// The filters that were at work before; `None` if that is not known.
    pub made_with: Option<Vec<String>>,
    /// Why some listeners may have been left out, a sentence each.
    pub unlisted: Vec<String>,
    /// Events of which is not known whether they fit.
    pub unplaced: u64,
}

/// How things stand with what was asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Nobody listens.
    NobodyListens,
    /// No listener was seen, but there may be one.
    NoListenerSeen,
    /// It listens, and no SYN arrived.
    NoSyn,
    /// It listens, and no SYN was seen, but some may have come.
    NoSynSeen,
    /// SYNs arrived, and none was refused.
    Served,
    /// Some handshakes were refused.
    Refused,
}

/// The answer.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// The filters that ask.
    pub about: Vec<String>,
    /// How it stands.
    pub state: State,
    /// Listeners that fit.
    pub listeners: u64,
    /// SYNs that reached them, those that were sent again too.
    pub syns: u64,
    /// Connections that entered an accept queue.
    pub established: u64,
    /// Connections that were accepted; absent if that is not observable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted: Option<u64>,
    /// Packets that were refused.
    pub refused: u64,
    /// The longest that a connection waited for accept(), microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slowest_us: Option<u64>,
    /// In words.
    pub says: String,
}

/// What arrives for a listener.
fn syns() -> Set {
    set(|outcome| outcome.step == Step::Syn)
}

fn set(wanted: impl Fn(&Outcome) -> bool) -> Set {
    let wanted = OUTCOMES.iter().filter(|outcome| wanted(outcome));
    wanted.fold(0, |set, outcome| set | outcome.bit())
}

/// The answer, if somebody asked.
#[must_use]
pub fn answer(case: &Case) -> Option<Answer> {
    let question = case.question.as_ref()?;
    let known = case.listeners.values();
    let listeners = known.filter(|history| history.snapshot.is_some()).count() as u64;
    let accepts = case.tells(set_of(&[ACCEPTED]));
    let mut answer = Answer {
        about: question.words.clone(),
        state: State::Served,
        listeners,
        syns: case.count(syns()),
        established: case.count(ENTERED),
        accepted: accepts.then(|| case.count(set_of(&[ACCEPTED]))),
        refused: case.count(set(is_drop)),
        slowest_us: case.listeners.values().filter_map(slowest).max(),
        says: String::new(),
    };
    let active = answer.syns > 0 || answer.established > 0 || answer.accepted > Some(0);
    answer.state = if answer.refused > 0 {
        State::Refused
    } else if active {
        State::Served
    } else if listeners > 0 {
        match why_not_all_syns(case, question) {
            None => State::NoSyn,
            Some(_) => State::NoSynSeen,
        }
    } else {
        match why_not_all_listeners(question) {
            None => State::NobodyListens,
            Some(_) => State::NoListenerSeen,
        }
    };
    answer.says = says(&answer, case, question);
    Some(answer)
}

fn says(answer: &Answer, case: &Case, question: &Question) -> String {
    let seconds = case.seconds();
    match answer.state {
        State::NobodyListens => format!(
            "Nobody listened on it in {seconds:.1} s. A client is answered with a reset, or gets no answer \
             if a firewall drops its SYN. Is the service running? Does it listen on another port, or \
             in another network namespace?"
        ),
        State::NoListenerSeen => format!(
            "No listener was seen for it in {seconds:.1} s. That does not prove that nobody listens: {}.",
            why_not_all_listeners(question).unwrap_or_default()
        ),
        State::NoSyn => format!(
            "No SYN for it arrived in {seconds:.1} s: the clients do not reach this listener. Look at the \
             load balancer, the firewall and DNS."
        ),
        State::NoSynSeen => format!(
            "No SYN for it was seen in {seconds:.1} s. That does not prove that none arrived: {}.",
            why_not_all_syns(case, question).unwrap_or_default()
        ),
        State::Served => format!(
            "In {seconds:.1} s {} SYNs arrived and none was refused. {}",
            answer.syns,
            course(answer, case)
        ),
        State::Refused => format!(
            "In {seconds:.1} s {} SYNs arrived, and {} packets were refused. {}",
            answer.syns,
            answer.refused,
            course(answer, case)
        ),
    }
}

/// What became of the connections.
fn course(answer: &Answer, case: &Case) -> String {
    if !case.tells(ENTERED) && answer.established == 0 {
        return "What became of the others was not looked for.".to_owned();
    }
    let mut text = format!(
        "{} connections entered the accept queue",
        answer.established
    );
    match answer.accepted {
        Some(accepted) => text.push_str(&format!(", {accepted} were accepted")),
        None => text.push_str("; accept() is not observable here"),
    }
    let waiting = waiting(case);
    if waiting > 0 {
        text.push_str(&format!(", {waiting} wait for accept() now"));
    }
    if let Some(us) = answer.slowest_us {
        text.push_str(&format!("; the slowest waited {}", short_time(us)));
    }
    text.push('.');
    text
}

/// Connections in the queues at the last look.
fn waiting(case: &Case) -> u64 {
    let open = case
        .listeners
        .values()
        .filter(|history| !history.is_closed());
    let depths = open.filter_map(|history| history.snapshot.as_ref()?.depth());
    depths.map(u64::from).sum()
}

/// The longest that a connection at one listener waited for accept().
fn slowest(history: &History) -> Option<u64> {
    let snapshot = history.snapshot.as_ref();
    let kept = snapshot.and_then(|snapshot| snapshot.accept_latency_us?.max);
    let slots = history.slots.values();
    let seen = slots.filter_map(|slot| {
        let one_by_one = slot.waits.as_ref()?.distribution();
        one_by_one.map(|waits| waits.max)
    });
    kept.max(seen.max())
}

/// Why a listener may be missing, if one may.
fn why_not_all_listeners(question: &Question) -> Option<String> {
    if !question.listed {
        return Some("the recording does not list the open listeners".to_owned());
    }
    if let Some(why) = question.unlisted.first() {
        return Some(why.clone());
    }
    match &question.made_with {
        None => Some("the recording does not say whether a filter left some out".to_owned()),
        Some(filters) => {
            let more = filters
                .iter()
                .filter(|filter| !question.words.contains(filter));
            let more: Vec<_> = more.cloned().collect();
            (!more.is_empty()).then(|| format!("the recording was made with {}", more.join(" ")))
        }
    }
}

/// Why a SYN may have come unseen, if one may.
fn why_not_all_syns(case: &Case, question: &Question) -> Option<String> {
    if !case.tells(set_of(&[QUEUED])) {
        return Some("SYNs that were not refused were not looked for".to_owned());
    }
    if question.unplaced > 0 {
        return Some(format!(
            "of {} events it is not known whether they fit",
            question.unplaced
        ));
    }
    let lost = case.losses.iter();
    // These are in the counts all the same.
    let mut lost = lost.filter(|(what, _)| **what != "records that found the ring full");
    if let Some((what, count)) = lost.next() {
        return Some(format!("lost on the way: {count} {what}"));
    }
    why_not_all_listeners(question)
}

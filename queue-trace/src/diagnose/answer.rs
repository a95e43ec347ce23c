//! What is said where somebody asks about a port or a service, whether or not anything is wrong
//! with it: nobody listens; no SYN arrived; all were served; some were refused. What the
//! recording cannot tell is not claimed.

use queue_trace_common::outcome::{ACCEPTED, OUTCOMES, Outcome, QUEUED, Set, Step};
use serde::Serialize;

use super::{
    case::{Case, ENTERED, History, set_of},
    question::Question,
};
use crate::model::{snapshot::is_drop, words::short_time};

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
            let narrow = filters
                .iter()
                .filter(|filter| !is_covered(filter, filters, &question.words));
            let narrow: Vec<_> = narrow.cloned().collect();
            (!narrow.is_empty())
                .then(|| format!("the recording was made with {}", narrow.join(" ")))
        }
    }
}

/// Whether a filter of the recording leaves out nothing that was asked about: values of one option
/// add up, so all values that were asked about must be among those that were recorded.
fn is_covered(filter: &str, recorded: &[String], asked: &[String]) -> bool {
    let option = |words: &str| words.split(' ').next().unwrap_or_default().to_owned();
    let mut asked = asked
        .iter()
        .filter(|words| option(words) == option(filter))
        .peekable();
    asked.peek().is_some() && asked.all(|words| recorded.contains(words))
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
    let mut ledgers = case.ledgers_asked();
    if let Some(dropped) = ledgers.find_map(|ledger| ledger.only_counted().next()) {
        return Some(dropped);
    }
    why_not_all_listeners(question)
}

#[cfg(test)]
mod tests {
    use queue_trace_common::outcome::SYN_DROPPED_MD5;

    use super::*;
    use crate::{
        model::{
            event::Name,
            ledger::{BothSides, Ledger},
            lines::{AttachPlan, Counts, Header, LossNote},
            snapshot::{Gauge, Latency, Snapshot},
            socket::Listener,
        },
        sink::Sink,
    };

    fn question(words: &[&str]) -> Question {
        Question {
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            listed: true,
            made_with: Some(Vec::new()),
            ..Question::default()
        }
    }

    /// A case of ten seconds in which these outcomes were looked for.
    fn case(told: impl Fn(&Outcome) -> bool, question: Question) -> Case {
        let mut case = Case::new();
        let told = OUTCOMES.iter().filter(|outcome| told(outcome));
        let header = Header {
            schema: 1,
            version: String::new(),
            time: "2026-11-26T10:00:00Z".to_owned(),
            host: "host".to_owned(),
            kernel: String::new(),
            attach: AttachPlan {
                family: "fentry".to_owned(),
                hooks: Vec::new(),
                outcomes: Some(told.map(|outcome| Name(outcome).to_string()).collect()),
                filters: Some(Vec::new()),
                limits: Vec::new(),
            },
        };
        case.header(&header).unwrap();
        case.question = Some(question);
        case
    }

    fn end(mut case: Case) -> Answer {
        case.end("2026-11-26T10:00:10Z").unwrap();
        answer(&case).unwrap()
    }

    fn listener() -> Listener {
        Listener {
            port: 80,
            inode: Some(1),
            ..Listener::default()
        }
    }

    fn listens(case: &mut Case, depth: u32) {
        let snapshot = Snapshot {
            time: Some("2026-11-26T10:00:09Z".to_owned()),
            netns: 1,
            listener: listener(),
            accept_queue: Some(Gauge {
                depth: Some(depth),
                limit: Some(8),
                ..Gauge::default()
            }),
            accept_latency_us: Some(Latency {
                max: Some(12_345),
                ..Latency::default()
            }),
            ..Snapshot::default()
        };
        case.listener(&snapshot).unwrap();
    }

    fn counts(case: &mut Case, outcomes: &[(&str, u64)]) {
        let outcomes = outcomes.iter();
        let counts = Counts {
            time: "2026-11-26T10:00:05Z".to_owned(),
            mono_ns: None,
            netns: 1,
            listener: listener(),
            outcomes: outcomes.map(|(name, n)| ((*name).to_owned(), *n)).collect(),
        };
        case.counts(&counts).unwrap();
    }

    #[test]
    fn nobody_asked() {
        assert!(answer(&Case::new()).is_none());
    }

    #[test]
    fn nobody_listens_only_if_that_can_be_known() {
        let answer = end(case(|_| true, question(&["--port 80"])));
        assert_eq!(answer.state, State::NobodyListens);
        assert!(answer.says.contains("Nobody listened on it in 10.0 s"));
        for (asked, why) in [
            (
                Question {
                    listed: false,
                    ..question(&["--port 80"])
                },
                "does not list",
            ),
            (
                Question {
                    made_with: None,
                    ..question(&["--port 80"])
                },
                "does not say whether",
            ),
            (
                Question {
                    made_with: Some(vec!["--port 443".to_owned()]),
                    ..question(&["--port 80"])
                },
                "was made with --port 443",
            ),
            (
                Question {
                    unlisted: vec!["netns 7 cannot be listed".to_owned()],
                    ..question(&["--port 80"])
                },
                "netns 7",
            ),
        ] {
            let answer = end(case(|_| true, asked));
            assert_eq!(answer.state, State::NoListenerSeen, "{answer:?}");
            assert!(answer.says.contains(why), "{answer:?}");
        }
    }

    #[test]
    fn a_recording_covers_what_is_within_its_filters() {
        let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        let covered = |recorded: &[&str], asked: &[&str]| {
            let (recorded, asked) = (words(recorded), words(asked));
            recorded
                .iter()
                .all(|filter| is_covered(filter, &recorded, &asked))
        };
        assert!(covered(&["--port 80"], &["--port 80"]));
        assert!(covered(&["--port 80", "--port 443"], &["--port 443"]));
        assert!(covered(&["--port 80"], &["--port 80", "--process nginx"]));
        assert!(!covered(&["--port 80"], &["--port 80", "--port 443"]));
        assert!(!covered(&["--port 80"], &["--process nginx"]));
        assert!(!covered(
            &["--port 80", "--netns 7"],
            &["--port 80", "--netns 8"]
        ));
    }

    #[test]
    fn no_syn_arrived_only_if_syns_were_looked_for_and_nothing_was_lost() {
        let mut all = case(|_| true, question(&["--port 80"]));
        listens(&mut all, 0);
        let answer = end(all);
        assert_eq!((answer.state, answer.listeners), (State::NoSyn, 1));
        assert!(answer.says.contains("load balancer"), "{answer:?}");

        let refusals = |outcome: &Outcome| is_drop(outcome);
        let mut partial = case(refusals, question(&["--port 80"]));
        listens(&mut partial, 0);
        let answer = end(partial);
        assert_eq!(answer.state, State::NoSynSeen);
        assert!(answer.says.contains("not looked for"), "{answer:?}");

        let mut lossy = case(|_| true, question(&["--port 80"]));
        listens(&mut lossy, 0);
        let lost = LossNote {
            time: "2026-11-26T10:00:05Z".to_owned(),
            uncounted: 3,
            ..LossNote::default()
        };
        lossy.loss(&lost).unwrap();
        let answer = end(lossy);
        assert_eq!(answer.state, State::NoSynSeen);
        assert!(answer.says.contains("lost"), "{answer:?}");

        let mut keys = case(|_| true, question(&["--port 80"]));
        listens(&mut keys, 0);
        let mut before = BothSides::default();
        before.kernel.add_verdicts(SYN_DROPPED_MD5, 0, 3);
        let ledger = Ledger::between(1, &BothSides::default(), &before, 0, 0);
        keys.ledger(&ledger).unwrap();
        let answer = end(keys);
        assert_eq!(answer.state, State::NoSynSeen);
        assert!(answer.says.contains("syn_dropped:md5"), "{answer:?}");

        let unplaced = Question {
            unplaced: 2,
            ..question(&["--unit a.service"])
        };
        let mut unknown = case(|_| true, unplaced);
        listens(&mut unknown, 0);
        assert_eq!(end(unknown).state, State::NoSynSeen);
    }

    #[test]
    fn all_were_served_and_the_slowest_waited() {
        let mut served = case(|_| true, question(&["--port 80"]));
        listens(&mut served, 2);
        let course = [("queued", 9), ("established:handshake", 8), ("accepted", 6)];
        counts(&mut served, &course);
        let answer = end(served);
        assert_eq!(answer.state, State::Served);
        let numbers = (answer.syns, answer.established, answer.accepted);
        assert_eq!(numbers, (9, 8, Some(6)));
        assert_eq!(answer.slowest_us, Some(12_345));
        for words in ["9 SYNs", "none was refused", "2 wait", "12ms"] {
            assert!(answer.says.contains(words), "{words}: {answer:?}");
        }
    }

    #[test]
    fn what_is_not_observable_is_not_claimed() {
        let unseen = |outcome: &Outcome| outcome.tag != ACCEPTED;
        let mut served = case(unseen, question(&["--port 80"]));
        listens(&mut served, 0);
        counts(&mut served, &[("queued", 9), ("established:handshake", 8)]);
        let answer = end(served);
        assert_eq!((answer.state, answer.accepted), (State::Served, None));
        assert!(answer.says.contains("not observable"), "{answer:?}");
    }

    #[test]
    fn some_were_refused() {
        let mut refused = case(|_| true, question(&["--port 80"]));
        listens(&mut refused, 0);
        let course = [("queued", 9), ("syn_dropped:accept_queue_full", 4)];
        counts(&mut refused, &course);
        let answer = end(refused);
        assert_eq!(answer.state, State::Refused);
        assert_eq!((answer.syns, answer.refused), (13, 4));
    }
}

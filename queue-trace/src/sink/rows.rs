//! An event as an aligned line of text.
//!
//! In a flood this is what the tracer does most, on a machine that has no time for it. So
//! what one line has in common with others is written out once and kept, and a line costs
//! a quarter of what it does when all of it is formatted.

use std::{
    fmt::Write,
    net::{IpAddr, SocketAddr},
};

use jiff::{Timestamp, tz::TimeZone};
use queue_trace_common::outcome::OUTCOMES;

use crate::{
    model::{
        clock::NS_PER_SECOND,
        event::Event,
        printable::Printable,
        socket::Listener,
        words::{DeviceNames, cause_words, listener_words, short_time},
    },
    sink::paint::{DIM, Paint, VERDICT_WIDTH},
};

/// Width of the column of causes.
const CAUSE_WIDTH: usize = 23;

/// Makes the lines of events, and the title above them.
pub struct Rows {
    paint: Paint,
    zone: TimeZone,
    // Grow with what is shown, so that columns stay aligned.
    listener_width: usize,
    client_width: usize,
    titled: bool,
    line: String,
    client: String,
    /// The columns of each outcome, by its tag.
    outcomes: Vec<String>,
    /// When the second of the last event began, nanoseconds since 1970, and how it is shown.
    second: (i128, String),
    after_time: String,
    /// The namespace and the listener of the last event.
    listener: (u32, Listener, String),
}

impl Rows {
    /// Lines with times in the zone given.
    pub fn new(paint: Paint, zone: TimeZone) -> Self {
        let outcomes = OUTCOMES.iter().map(|outcome| {
            let cause = cause_words(outcome);
            format!("  {}  {cause:<CAUSE_WIDTH$}  ", paint.verdict(outcome))
        });
        let listener = Listener::default();
        Self {
            paint,
            listener_width: "192.168.100.100:65535".len(),
            client_width: "192.168.100.100:65535".len(),
            titled: false,
            line: String::new(),
            client: String::new(),
            outcomes: outcomes.collect(),
            // The first event's is another one.
            second: (i128::MIN / 2, String::new()),
            after_time: paint.around(DIM).1.to_string(),
            listener: (0, listener, listener_words(&listener, None)),
            zone,
        }
    }

    /// Whether there were any.
    pub fn titled(&self) -> bool {
        self.titled
    }

    /// The line of an event, after a title where it needs one, each with its end.
    pub fn of(&mut self, event: &Event, devices: &DeviceNames) -> &str {
        let Event {
            netns, listener, ..
        } = event;
        if (self.listener.0, self.listener.1) != (*netns, *listener) {
            let words = listener_words(listener, devices.of(*netns, listener));
            self.listener = (*netns, *listener, words);
        }
        self.client.clear();
        if let Some(client) = event.client {
            endpoint(&mut self.client, client.addr, client.port);
        }
        let (listener, client) = (self.listener.2.len(), self.client.len());
        if listener > self.listener_width || client > self.client_width {
            self.listener_width = self.listener_width.max(listener);
            self.client_width = self.client_width.max(client);
            // New widths want a new title.
            self.titled = false;
        }
        self.line.clear();
        if !self.titled {
            self.titled = true;
            self.title();
        }
        self.time(event.wall_ns);
        self.line
            .push_str(&self.outcomes[usize::from(event.outcome.tag)]);
        column(&mut self.line, &self.listener.2, self.listener_width);
        self.line.push_str("  ");
        column(&mut self.line, &self.client, self.client_width);
        self.queues(event);
        self.line.truncate(self.line.trim_end().len());
        self.line.push('\n');
        &self.line
    }

    fn title(&mut self) {
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
        self.line.push_str(&self.paint.styled(DIM, &title));
        self.line.push('\n');
    }

    fn time(&mut self, wall_ns: i128) {
        if !(0..NS_PER_SECOND).contains(&(wall_ns - self.second.0)) {
            let second = wall_ns.div_euclid(NS_PER_SECOND);
            let (before, _) = self.paint.around(DIM);
            let shown = format!("{before}{}.", clock_of(second, &self.zone));
            self.second = (second * NS_PER_SECOND, shown);
        }
        let milliseconds = (wall_ns - self.second.0) as u64 / 1_000_000;
        let zeros = match milliseconds {
            0..10 => "00",
            10..100 => "0",
            _ => "",
        };
        self.line.push_str(&self.second.1);
        self.line.push_str(zeros);
        number(&mut self.line, milliseconds);
        self.line.push_str(&self.after_time);
    }

    fn queues(&mut self, event: &Event) {
        let line = &mut self.line;
        if let Some(queue) = event.accept_queue {
            line.push_str("  accept ");
            fill(line, queue.depth, queue.limit);
        }
        if let Some(queue) = event.syn_queue {
            line.push_str("  syn ");
            fill(line, queue.depth, queue.limit);
        }
        if event.count > 1 {
            push(line, format_args!("  x{}", event.count));
        }
        if let Some(times) = event.retransmits.filter(|times| *times > 0) {
            push(line, format_args!("  sent again {times}x"));
        }
        if let Some(waited_us) = event.waited_us {
            push(line, format_args!("  waited {}", short_time(waited_us)));
        }
        if let Some(process) = &event.process {
            let comm = Printable(&process.comm);
            push(line, format_args!("  by {comm}[{}]", process.pid));
        }
    }
}

/// A second since 1970, as a clock shows it.
fn clock_of(second: i128, zone: &TimeZone) -> String {
    i64::try_from(second)
        .ok()
        .and_then(|second| Timestamp::from_second(second).ok())
        .map_or("?".to_owned(), |moment| {
            let moment = moment.to_zoned(zone.clone());
            moment.strftime("%H:%M:%S").to_string()
        })
}

/// How full a queue is.
fn fill(line: &mut String, depth: u32, limit: u32) {
    number(line, depth);
    line.push('/');
    number(line, limit);
}

/// An address and a port, as a [`SocketAddr`] shows them.
fn endpoint(line: &mut String, addr: IpAddr, port: u16) {
    let IpAddr::V4(v4) = addr else {
        return push(line, format_args!("{}", SocketAddr::new(addr, port)));
    };
    let [first, rest @ ..] = v4.octets();
    number(line, first);
    for octet in rest {
        line.push('.');
        number(line, octet);
    }
    line.push(':');
    number(line, port);
}

/// A number, at a tenth of what formatting it costs.
fn number(line: &mut String, number: impl itoa::Integer) {
    line.push_str(itoa::Buffer::new().format(number));
}

/// Text without tabs or marks, in a column so wide.
fn column(line: &mut String, text: &str, width: usize) {
    line.push_str(text);
    line.extend(std::iter::repeat_n(' ', width - text.len()));
}

fn push(line: &mut String, what: std::fmt::Arguments<'_>) {
    // A string takes whatever is written to it.
    let _ = line.write_fmt(what);
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use queue_trace_common::outcome::{self, Outcome};

    use super::*;
    use crate::model::{event::AcceptQueue, socket::Client};

    fn event(listener: IpAddr, wall_ns: i128, count: u64) -> Event {
        Event {
            mono_ns: 0,
            wall_ns,
            outcome: Outcome::of(outcome::SYN_DROPPED_ACCEPT_QUEUE_FULL).unwrap(),
            count,
            netns: 1,
            listener: Listener {
                addr: Some(listener),
                port: 80,
                ..Listener::default()
            },
            local: None,
            client: Some(Client {
                addr: Ipv4Addr::new(10, 0, 0, 1).into(),
                port: 1024,
            }),
            accept_queue: Some(AcceptQueue { depth: 6, limit: 5 }),
            syn_queue: None,
            sysctls: None,
            retransmits: None,
            waited_us: None,
            process: None,
            moved: 0,
            cpu: Some(0),
            sk: 0,
        }
    }

    #[test]
    fn what_is_kept_changes_with_the_event() {
        let mut rows = Rows::new(Paint(false), TimeZone::UTC);
        let short = IpAddr::from(Ipv4Addr::LOCALHOST);
        let devices = DeviceNames::default();
        let first = rows
            .of(&event(short, 1_999_999_999, 1), &devices)
            .to_owned();
        assert_eq!(
            first,
            "TIME          VERDICT               CAUSE                    LISTENER               CLIENT                 QUEUES\n\
             00:00:01.999  SYN dropped           accept queue full        127.0.0.1:80           10.0.0.1:1024          accept 6/5\n"
        );
        assert_eq!(
            rows.of(&event(short, 2_000_000_000, 7), &devices),
            "00:00:02.000  SYN dropped           accept queue full        127.0.0.1:80           10.0.0.1:1024          accept 6/5  x7\n"
        );
        // A longer name: wider columns, under a title of their own.
        let long = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 1, 2, 3, 4, 5, 6));
        let wider = rows.of(&event(long, 2_000_000_000, 1), &devices).to_owned();
        let [title, line] = wider.lines().collect::<Vec<_>>()[..] else {
            panic!("{wider}");
        };
        let column = title.find("CLIENT");
        assert_eq!(line.find("10.0.0.1:1024"), column, "{wider}");
        let next = rows.of(&event(short, 2_000_000_000, 1), &devices);
        assert_eq!(next.find("10.0.0.1:1024"), column, "{next}");
        assert_eq!(next.lines().count(), 1, "the title came once");
    }
}

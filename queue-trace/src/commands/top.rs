//! `queue-trace top`: the listeners in a terminal, those of a recording or this machine's.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

#[cfg(target_os = "linux")]
pub use self::live::watch;
use crate::{
    model::clients::Prefixes,
    options::{KernelOptions, ListenerFilters},
    sink,
    stderr::say,
    stop::StopSignals,
    top::{need_terminal, on_terminal, recorded::Recorded, state::Top},
};

/// Options of `top`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples:\n  \
    queue-trace top -p 80,443                this machine, now\n  \
    queue-trace top incident.jsonl.zst       a recording, on any machine")]
pub struct TopArgs {
    /// Recordings, in order of time. Without any, this machine is watched
    #[arg(
        value_name = "FILE",
        required = cfg!(not(target_os = "linux")),
        conflicts_with_all = ["attach", "no_canary", "btf"]
    )]
    pub files: Vec<PathBuf>,

    /// Prefix lengths (IPv4,IPv6) by which clients are grouped
    #[arg(long, value_name = "V4,V6", default_value = "24,64")]
    pub networks: Prefixes,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub listeners: ListenerFilters,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub kernel: KernelOptions,
}

/// Shows the listeners of a recording.
///
/// # Errors
/// If the recording cannot be read, or there is no terminal, or it fails.
pub async fn recorded(args: &TopArgs) -> Result<()> {
    need_terminal("queue-trace replay FILE")?;
    say!("reading …");
    // Until it is read a signal ends the program as ever.
    let recorded = Recorded::open(&args.files, &args.listeners, args.networks)?;
    let signals = StopSignals::listen_to_all().context("cannot handle signals")?;
    let mut top = Top::new(
        recorded.title(),
        recorded.notes(),
        sink::person_wants_colour(),
    );
    top.span = Some(recorded.span());
    on_terminal(top, recorded, signals).await
}

#[cfg(target_os = "linux")]
mod live {
    //! This machine's kernel as what `top` shows: attached if possible, else looked at.

    use super::*;
    use crate::{
        aside::Aside,
        commands::listeners,
        kernel::{
            decode::decode, host::Host, probe::AT_ONCE, selection::Selection, session::Session,
        },
        listeners::{News, Watch},
        model::{
            clock::{monotonic_now, wall_now},
            event::Event,
            snapshot::Snapshot,
        },
        recording::{Belongs, Members},
        top::{Source, seen::Seen, state::Jump},
        trace::{
            losses::Losses,
            withheld::{self, Withheld},
        },
    };

    /// Shows this machine's listeners.
    ///
    /// # Errors
    /// If there is no terminal, or it fails.
    pub async fn watch(args: &TopArgs) -> Result<()> {
        need_terminal("queue-trace listeners --watch 1s")?;
        let signals = StopSignals::listen_to_all().context("cannot handle signals")?;
        say!("attaching …");
        let live = LiveTop::begin(args)?;
        let top = Top::new(live.title(), live.notes(), sink::person_wants_colour());
        on_terminal(top, live, signals).await
    }

    /// Records a second from each CPU: enough for a person.
    const RECORDS: u32 = 100;

    /// Events that wait for their listener at most.
    const PENDING: usize = 1000;

    /// The kernel side, and what was seen of it.
    pub struct LiveTop {
        session: Option<Session>,
        watch: Aside<Watch, Result<News>>,
        /// How it is attached, or why not.
        how: String,
        held: Withheld,
        losses: Losses,
        undecoded: u64,
        seen: Seen,
        members: Option<Members>,
        /// Events at listeners of which is not known yet whose they are.
        pending: Vec<Event>,
        /// Those that found no room among them.
        unplaced: u64,
    }

    impl LiveTop {
        /// Attaches, if it may.
        ///
        /// # Errors
        /// If a namespace that was named is not there.
        pub fn begin(args: &TopArgs) -> Result<Self> {
            let selection = Selection::of_listeners(&args.listeners, RECORDS)?;
            let (session, watch, how) = match listeners::begin(&args.kernel, &selection) {
                Ok((session, watch)) => {
                    let how = format!("attached by {}", session.plan.family.name());
                    (Some(session), watch, how)
                }
                Err(error) => {
                    let how = format!("not attached: {error:#}");
                    (None, Watch::unattached(selection), how)
                }
            };
            Ok(Self {
                session,
                watch: Aside::new(watch),
                how,
                held: Withheld::default(),
                losses: Losses::default(),
                undecoded: 0,
                seen: Seen::new(args.networks),
                members: Members::of(&args.listeners),
                pending: Vec::new(),
                unplaced: 0,
            })
        }

        /// Who observes what, how.
        pub fn title(&self) -> String {
            let host = Host::look();
            format!("{}  Linux {}  {}", host.name, host.release, self.how)
        }

        /// What cannot be told here.
        pub fn notes(&self) -> Vec<String> {
            let session = self.session.as_ref();
            session.map_or_else(Vec::new, |session| session.plan.limits())
        }

        /// Shows an event, if it is wanted.
        fn event(&mut self, event: Event) {
            let Some(members) = &self.members else {
                return self.seen.event(&event);
            };
            match members.has(event.netns, &event.listener) {
                Belongs::Yes => self.seen.event(&event),
                Belongs::No => {}
                Belongs::Unknown if self.pending.len() < PENDING => self.pending.push(event),
                Belongs::Unknown => self.unplaced += event.count,
            }
        }

        /// Leaves the rows that are wanted, and shows what waited for them.
        fn keep_members(&mut self, rows: &mut Vec<Snapshot>) {
            if let Some(members) = &mut self.members {
                rows.retain(|row| members.takes(row));
                for event in std::mem::take(&mut self.pending) {
                    self.event(event);
                }
            }
        }

        /// Takes in what came of events and counts.
        fn take(&mut self, news: &News) -> Result<()> {
            let Some(Session { probe, .. }) = &mut self.session else {
                return Ok(());
            };
            let mut events = Vec::new();
            let offset = wall_now() - i128::from(monotonic_now());
            loop {
                let records = probe.take_records();
                let last = records.len() < AT_ONCE;
                for record in records {
                    match decode(record, offset) {
                        Ok(event) => events.push(event),
                        Err(_) => self.undecoded += 1,
                    }
                }
                if last {
                    break;
                }
            }
            probe.retire(|key| news.is_over(key))?;
            events.extend(self.held.news(&probe.counts()?, withheld::listener_of));
            for (key, counted) in probe.release() {
                self.held.forget(&key, counted.held);
            }
            let undecoded = std::mem::take(&mut self.undecoded);
            if let Some(note) = self.losses.news(probe, undecoded, true)? {
                self.seen.lost(&note);
            }
            for event in events {
                self.event(event);
            }
            Ok(())
        }
    }

    impl Source for LiveTop {
        fn tick(&mut self, _paused: bool) -> Result<Option<Seen>> {
            self.watch.begin(Watch::all)?;
            Ok(None)
        }

        async fn arrived(&mut self) -> Result<Seen> {
            let mut news = self.watch.done().await??;
            self.take(&news)?;
            news.rows.retain(|row| !row.is_closed());
            self.keep_members(&mut news.rows);
            if self.unplaced > 0 {
                news.notes.push(format!(
                    "{} events are left out: it is not known whose their listeners are",
                    self.unplaced
                ));
            }
            self.seen.notes = std::mem::take(&mut news.notes);
            self.seen.take_rows(news.rows, wall_now());
            Ok(self.seen.clone())
        }

        fn go(&mut self, _: Jump) -> Result<Option<Seen>> {
            // Now is all there is.
            Ok(None)
        }
    }
}

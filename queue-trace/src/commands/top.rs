//! `queue-trace top`: the listeners in a terminal, those of a recording or this machine's.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

#[cfg(target_os = "linux")]
pub use self::live::watch;
use crate::{
    model::clients::Prefixes,
    options::Which,
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

    /// Lengths of the IPv4 and IPv6 networks by which clients are put together
    #[arg(long, value_name = "V4,V6", default_value = "24,64")]
    pub networks: Prefixes,

    #[command(flatten)]
    #[expect(missing_docs, reason = "it would be shown as help")]
    pub which: Which,
}

/// Shows the listeners of a recording.
///
/// # Errors
/// If the recording cannot be read, or there is no terminal, or it fails.
pub async fn recorded(args: &TopArgs) -> Result<()> {
    need_terminal("queue-trace replay FILE")?;
    say!("reading …");
    // Until it is read a signal ends the program as ever.
    let recorded = Recorded::open(&args.files, &args.which, args.networks)?;
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
        commands::listeners::{self, Attached},
        kernel::{decode::decode, host::Host, selection::Selection, session::Session},
        listeners::look,
        model::{
            clock::{monotonic_now, wall_now},
            snapshot::Snapshot,
        },
        top::{
            Source,
            seen::{Row, Seen},
            state::Step,
        },
        trace::withheld::{self, Withheld},
    };

    /// Shows this machine's listeners.
    ///
    /// # Errors
    /// If there is no terminal, or it fails.
    pub async fn watch(args: &TopArgs) -> Result<()> {
        need_terminal("queue-trace listeners --watch 1s")?;
        let signals = StopSignals::listen_to_all().context("cannot handle signals")?;
        say!("attaching …");
        let live = Live::begin(args)?;
        let top = Top::new(live.title(), live.notes(), sink::person_wants_colour());
        on_terminal(top, live, signals).await
    }

    /// Records a second from each CPU: enough for a person.
    const RECORDS: u32 = 100;

    /// The kernel side, and what was seen of it.
    pub struct Live {
        attached: Option<Attached>,
        selection: Selection,
        /// How it is attached, or why not.
        how: String,
        held: Withheld,
        seen: Seen,
    }

    impl Live {
        /// Attaches, if it may.
        ///
        /// # Errors
        /// If a namespace that was named is not there.
        pub fn begin(args: &TopArgs) -> Result<Self> {
            let selection = Selection::of_listeners(&args.which, RECORDS)?;
            let (attached, how) = match listeners::begin(&args.which, &selection) {
                Ok(attached) => {
                    let how = format!("attached by {}", attached.session.plan.family.name());
                    (Some(attached), how)
                }
                Err(error) => (None, format!("not attached: {error:#}")),
            };
            Ok(Self {
                attached,
                selection,
                how,
                held: Withheld::default(),
                seen: Seen::new(args.networks),
            })
        }

        /// Who observes what, how.
        pub fn title(&self) -> String {
            let host = Host::look();
            format!("{}  Linux {}  {}", host.name, host.release, self.how)
        }

        /// What cannot be told here.
        pub fn notes(&self) -> Vec<String> {
            let attached = self.attached.as_ref();
            attached.map_or_else(Vec::new, |attached| attached.session.plan.limits())
        }
    }

    impl Source for Live {
        fn tick(&mut self, paused: bool) -> Result<Option<Seen>> {
            let rows = match &mut self.attached {
                Some(Attached {
                    session: Session { probe, .. },
                    watch,
                }) => {
                    let offset = wall_now() - i128::from(monotonic_now());
                    for record in probe.take_records() {
                        if let Ok(event) = decode(record, offset) {
                            self.seen.event(&event);
                        }
                    }
                    for event in self.held.news(&probe.counts()?, withheld::listener_of) {
                        self.seen.event(&event);
                    }
                    watch.all(probe, &self.selection)?
                }
                None => look(&self.selection, None).rows,
            };
            let open = rows.iter().filter(|row| !row.closed).map(|row| Row {
                snapshot: Snapshot::from(row),
                waits: row.waits,
            });
            self.seen.take_rows(open.collect(), wall_now());
            Ok((!paused).then(|| self.seen.clone()))
        }

        fn go(&mut self, _: Step) -> Result<Option<Seen>> {
            // Now is all there is.
            Ok(None)
        }
    }
}

//! This machine's kernel as what `top` shows: attached if possible, else looked at.

use anyhow::Result;

use super::{
    Source,
    seen::{Row, Seen},
    state::Step,
};
use crate::{
    cli,
    clock::{monotonic_now, wall_now},
    decode::decode,
    held::{self, Held},
    host::Host,
    listeners::{
        command::{self, Attached},
        look,
    },
    snapshot::Snapshot,
    wanted::Wanted,
};

/// Records a second from each CPU: enough for a person.
const RECORDS: u32 = 100;

/// The kernel side, and what was seen of it.
pub struct Live {
    attached: Option<Attached>,
    wanted: Wanted,
    /// How it is attached, or why not.
    how: String,
    held: Held,
    seen: Seen,
}

impl Live {
    /// Attaches, if it may.
    ///
    /// # Errors
    /// If a namespace that was named is not there.
    pub fn begin(args: &cli::Top) -> Result<Self> {
        let wanted = Wanted::of_listeners(&args.which, RECORDS)?;
        let (attached, how) = match command::begin(&args.which, &wanted) {
            Ok(attached) => {
                let how = format!("attached by {}", attached.plan.family.name());
                (Some(attached), how)
            }
            Err(error) => (None, format!("not attached: {error:#}")),
        };
        Ok(Self {
            attached,
            wanted,
            how,
            held: Held::default(),
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
        attached.map_or_else(Vec::new, |attached| attached.plan.limits())
    }
}

impl Source for Live {
    fn tick(&mut self, paused: bool) -> Result<Option<Seen>> {
        let rows = match &mut self.attached {
            Some(Attached { probe, watch, .. }) => {
                let offset = wall_now() - i128::from(monotonic_now());
                for record in probe.take_records() {
                    if let Ok(event) = decode(record, offset) {
                        self.seen.event(&event);
                    }
                }
                for event in self.held.news(&probe.counts()?, held::listener_of) {
                    self.seen.event(&event);
                }
                watch.all(probe, &self.wanted)?
            }
            None => look(&self.wanted, None).rows,
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

//! What was lost since it was last said.

use anyhow::Result;
use queue_trace_common::loss::Loss;

use crate::{
    kernel::probe::MapReader,
    model::{clock::wall_now, event::rfc3339, lines::LossNote},
};

/// What has been said.
#[derive(Debug, Default)]
pub struct Losses {
    loss: Loss,
    missed: u64,
}

impl Losses {
    /// What was lost since the last time, if anything. `undecoded`: records that could not be
    /// decoded since then. `programs`: whether it is asked how each of them fared, which takes
    /// some system calls for each.
    ///
    /// # Errors
    /// If the kernel does not show how its programs fared.
    pub fn news(
        &mut self,
        reader: &MapReader,
        undecoded: u64,
        programs: bool,
    ) -> Result<Option<LossNote>> {
        let loss = reader.loss();
        let missed = if programs {
            reader.missed()?
        } else {
            self.missed
        };
        if undecoded == 0 && missed <= self.missed && loss == self.loss {
            return Ok(None);
        }
        let note = LossNote {
            missed: missed.saturating_sub(self.missed),
            undecoded,
            ..LossNote::between(&self.loss, &loss, rfc3339(wall_now()))
        };
        self.loss = loss;
        self.missed = missed.max(self.missed);
        let any = note.parts().next().is_some();
        Ok(any.then_some(note))
    }
}

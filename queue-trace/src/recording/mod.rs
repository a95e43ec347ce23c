//! Recordings: the JSON lines that `--json` wrote, read again on any machine.

mod line;
mod reader;
pub(crate) mod select;

pub use self::{
    line::{Fault, Line},
    reader::{Entry, Place, Reader},
};

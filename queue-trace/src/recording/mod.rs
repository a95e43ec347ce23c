//! Recordings: the JSON lines that `--json` wrote, read again on any machine.

mod input;
mod line;
mod reader;
pub(crate) mod select;

pub use self::{
    input::Input,
    line::{Fault, Line},
    reader::{Entry, Place, Reader},
};

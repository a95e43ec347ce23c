//! Recordings: the JSON lines that `--json` wrote, read again on any machine.

mod input;
mod line;
mod members;
mod narrowed;
mod reader;
pub(crate) mod select;

pub use self::{
    input::Input,
    line::{Fault, Line},
    members::{Belongs, Members},
    narrowed::Narrowed,
    reader::{Entry, Reader, ReaderPlace},
};

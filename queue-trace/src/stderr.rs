//! What the user is told beside the data: notes, warnings, that it is ready. It goes to standard
//! error, printable whatever is quoted in it, and nothing depends on whether anybody can read it.

use std::{
    fmt::Arguments,
    io::{self, Write},
};

use crate::model::printable::printable;

/// Says something on standard error, as `eprintln!` does, without failing.
macro_rules! say {
    ($($message:tt)*) => {
        $crate::stderr::tell(format_args!($($message)*))
    };
}
pub(crate) use say;

/// Says something on standard error.
pub fn tell(message: Arguments<'_>) {
    // One message, one line.
    let mut text = printable(&message.to_string()).into_owned();
    text.push('\n');
    // In one piece, so that it is not mixed with another's. Closed or full, it is no reason
    // to stop.
    let _ = io::stderr().write_all(text.as_bytes());
}

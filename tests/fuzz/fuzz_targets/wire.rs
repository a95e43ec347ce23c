//! Any bytes as a record of the kernel side: decoded, written as text and as JSON, and read
//! again. What is read is what was written, unless it is a time or number that cannot be.
//!
//! `cargo xtask fuzz 600 --target wire` runs it for ten minutes.

#![no_main]

use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;
use queue_trace::{
    kernel::decode::decode,
    model::printable::is_printable,
    recording::{Fault, Line},
    sink::{Sink, Text},
};

fuzz_target!(|bytes: &[u8]| {
    // With the right version and length much more of it is reached.
    let mut record = [0; queue_trace_common::record::SIZE];
    let length = bytes.len().min(record.len());
    record[..length].copy_from_slice(&bytes[..length]);
    for bytes in [bytes, &record[..]] {
        let Ok(event) = decode(bytes, 1_700_000_000_000_000_000) else {
            continue;
        };
        let mut text = Text::new(Vec::new(), false, TimeZone::UTC);
        text.event(&event).expect("memory can be written to");
        let line = serde_json::to_string(&event).expect("an event is JSON");
        match Line::parse(line.as_bytes()) {
            Ok(Line::Event(again)) => {
                let hidden = |word: &str| word.chars().any(|c| !is_printable(c));
                if !event.process.as_ref().is_some_and(|by| hidden(&by.comm)) {
                    assert_eq!(serde_json::to_string(&again).expect("JSON"), line);
                }
            }
            Err(Fault::Impossible(_)) => {}
            other => panic!("{line}: {other:?}"),
        }
    }
});

//! Any bytes as a recording, in every compression: read, shown as text, diagnosed and made
//! into a page. It must not panic, and must not take more memory than the input allows for.
//!
//! `cargo xtask fuzz 600` runs it for ten minutes.

#![no_main]

use std::io::{Cursor, ErrorKind};

use jiff::tz::TimeZone;
use libfuzzer_sys::fuzz_target;
use queue_trace::{
    diagnose::{self, Case},
    recording::Reader,
    report,
    sink::Text,
};

fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::of("fuzz", Cursor::new(bytes.to_vec()));
    let mut case = Case::new();
    let mut text = Text::new(Vec::new(), true, TimeZone::UTC);
    while let Ok(Some(entry)) = reader.next() {
        if let Some(line) = entry.line {
            line.to(&mut text).expect("memory can be written to");
            // A case takes every line but those of another recording.
            if let Err(error) = line.to(&mut case) {
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
                break;
            }
        }
    }
    case.notes = reader.notes().to_vec();
    let _ = diagnose::diagnose(&case);
    let _ = report::page(&case);
});

//! Recordings come back as they were written, and whatever befell a file, what is whole of
//! it is read and what is missing is said.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeSet,
    io::{Cursor, Write},
};

use proptest::prelude::*;
use queue_trace::recording::{Line, Reader};

/// A real recording: the demo's accept overflow, with everything.
const RECORDING: &str = include_str!("recordings/accept-overflow.jsonl");

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // Flushed now and then, as the recorder does.
    for chunk in text.chunks(2000) {
        encoder.write_all(chunk).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
    for chunk in text.chunks(2000) {
        encoder.write_all(chunk).unwrap();
        encoder.flush().unwrap();
    }
    encoder.finish().unwrap()
}

/// All lines that a reader gives, as text, and its notes; or why it gives none.
fn read(bytes: impl Into<Vec<u8>>) -> Result<(Vec<String>, Vec<String>), String> {
    let mut reader = Reader::of("x", Cursor::new(bytes.into()));
    let mut lines = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(entry)) => lines.push(String::from_utf8_lossy(entry.raw).into_owned()),
            Ok(None) => return Ok((lines, reader.notes().to_vec())),
            Err(error) => return Err(format!("{error:#}")),
        }
    }
}

fn notes_of(bytes: impl Into<Vec<u8>>) -> String {
    read(bytes).unwrap().1.join("\n")
}

#[test]
fn a_whole_recording_is_read_as_it_is_in_every_form() {
    let whole: Vec<_> = RECORDING.lines().map(str::to_owned).collect();
    let text = RECORDING.as_bytes();
    for bytes in [text.to_vec(), gzip(text), zstd(text)] {
        let (lines, notes) = read(bytes).unwrap();
        assert_eq!(lines, whole);
        assert!(notes.is_empty(), "{notes:?}");
    }
}

/// What is read is what was written: a line that is parsed and written again is the same. The
/// lines are those of all recordings here, and the examples of the documentation, as few
/// recordings have a loss: together they are of every type.
#[test]
fn every_line_comes_back_the_same() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/recordings");
    let mut texts: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    texts.push(include_str!("../../docs/events.md").to_owned());
    let mut types = BTreeSet::new();
    let lines = texts.iter().flat_map(|text| text.lines());
    for text in lines.filter(|line| line.starts_with("{\"type\":")) {
        let (kind, again) = match Line::parse(text.as_bytes()).unwrap() {
            Line::Header(line) => ("header", serde_json::to_string(&line)),
            Line::Event(line) => ("event", serde_json::to_string(&line)),
            Line::Listener(line) => ("listener", serde_json::to_string(&line)),
            Line::Counts(line) => ("counts", serde_json::to_string(&line)),
            Line::Loss(line) => ("loss", serde_json::to_string(&line)),
            Line::Total(line) => ("total", serde_json::to_string(&line)),
            Line::Clients(line) => ("clients", serde_json::to_string(&line)),
            Line::Ledger(line) => ("ledger", serde_json::to_string(&line)),
            Line::End(line) => ("end", serde_json::to_string(&line)),
        };
        let [again, text]: [serde_json::Value; 2] =
            [&again.unwrap(), text].map(|json| serde_json::from_str(json).unwrap());
        // What a newer version adds to a line may be added to an older one's.
        for (name, value) in text.as_object().unwrap() {
            assert_eq!(again.get(name), Some(value), "{name} of {text}");
        }
        types.insert(kind);
    }
    assert_eq!(types.len(), 9, "not every type of line: {types:?}");
}

/// The recorder can be killed at any byte.
#[test]
fn cut_off_at_any_byte_the_whole_lines_are_read() {
    let whole: Vec<_> = RECORDING.lines().map(str::to_owned).collect();
    let text = RECORDING.as_bytes();
    let first = text.iter().position(|byte| *byte == b'\n').unwrap();
    for cut in (0..text.len())
        .step_by(61)
        .chain(text.len() - 90..text.len())
    {
        let ends = text[..cut].iter().filter(|byte| **byte == b'\n').count();
        match read(&text[..cut]) {
            Ok((lines, notes)) => {
                // A last line that lacks nothing but its end is whole.
                let complete = text[cut] == b'\n';
                assert_eq!(lines.len(), ends + usize::from(complete), "cut at {cut}");
                assert_eq!(lines, whole[..lines.len()]);
                let all = lines.len() == whole.len();
                assert_eq!(notes.is_empty(), all, "cut at {cut}: {notes:?}");
            }
            Err(_) => assert!(cut < first, "cut at {cut}"),
        }
    }
    for packed in [gzip(text), zstd(text)] {
        let mut most = 0;
        // Every one of the last, in which the compressed file's own end is.
        let length = packed.len();
        let cuts: BTreeSet<_> = (0..length).step_by(13).chain(length - 40..length).collect();
        for cut in cuts {
            if let Ok((lines, notes)) = read(&packed[..cut]) {
                assert_eq!(lines, whole[..lines.len()], "cut at {cut}");
                assert!(lines.len() >= most, "cut at {cut}: fewer lines than before");
                most = lines.len();
                assert!(
                    notes.iter().any(|note| note.contains("cut off")),
                    "{notes:?}"
                );
            }
        }
        assert_eq!(most, whole.len(), "what was flushed is read");
    }
}

#[test]
fn garbled_lines_are_left_out_and_counted() {
    let mut lines: Vec<_> = RECORDING.lines().map(str::to_owned).collect();
    let whole = lines.len();
    lines.insert(5, "\u{0}\u{0}\u{0}".to_owned());
    lines.insert(9, "{\"type\":\"event\",\"time\":7}".to_owned());
    let (read_lines, notes) = read(lines.join("\n")).unwrap();
    assert_eq!(read_lines.len(), whole);
    let notes = notes.join("\n");
    assert!(
        notes.contains("2 lines that are not a recording's (the first is line 6)"),
        "{notes}"
    );
}

#[test]
fn an_endless_line_is_left_out() {
    let mut text = RECORDING.lines().next().unwrap().as_bytes().to_vec();
    text.push(b'\n');
    text.extend(std::iter::repeat_n(b'x', 5 << 20));
    text.push(b'\n');
    text.extend_from_slice(RECORDING.lines().last().unwrap().as_bytes());
    let (lines, notes) = read(text).unwrap();
    assert_eq!(lines.len(), 2);
    assert!(notes.join("\n").contains("longer than any"), "{notes:?}");
}

#[test]
fn a_newer_version_is_read_as_far_as_it_is_understood() {
    let newer = RECORDING
        .replacen("\"schema\":1", "\"schema\":2", 1)
        .replacen("\"type\":\"counts\"", "\"type\":\"weather\"", 1)
        .replacen("\"syn_dropped\"", "\"syn_postponed\"", 1);
    let notes = notes_of(newer);
    assert!(notes.contains("schema version 2"), "{notes}");
    assert!(notes.contains("weather"), "{notes}");
    assert!(notes.contains("syn_postponed"), "{notes}");
}

#[test]
fn fields_that_are_not_known_are_passed_over() {
    let newer = RECORDING.replace(
        "\"type\":\"event\",",
        "\"type\":\"event\",\"mood\":[1,{\"a\":2}],",
    );
    let (lines, notes) = read(newer).unwrap();
    assert_eq!(lines.len(), RECORDING.lines().count());
    assert!(notes.is_empty(), "{notes:?}");
}

#[test]
fn a_beginning_and_an_end_that_are_missing_are_said() {
    let lines: Vec<_> = RECORDING.lines().collect();
    let notes = notes_of(lines[1..lines.len() - 1].join("\n"));
    assert!(notes.contains("has no header"), "{notes}");
    assert!(notes.contains("has no end"), "{notes}");
    let mut holed = lines;
    holed.remove(3);
    assert!(notes_of(holed.join("\n")).contains("1 lines more or less"));
}

#[test]
fn what_editors_and_shells_put_before_the_text_is_passed_over() {
    let marked = format!("\u{feff}{RECORDING}");
    for bytes in [marked.as_bytes().to_vec(), gzip(marked.as_bytes())] {
        let (lines, notes) = read(bytes).unwrap();
        assert_eq!(lines.len(), RECORDING.lines().count());
        assert!(notes.is_empty(), "{notes:?}");
    }
    let wide: Vec<u8> = "\u{feff}{}"
        .encode_utf16()
        .flat_map(u16::to_le_bytes)
        .collect();
    let error = read(wide).unwrap_err();
    assert!(
        error.contains("UTF-16") && error.contains("UTF-8"),
        "{error}"
    );
}

/// A damaged number or time is no evidence: its line is left out, and reported.
#[test]
fn numbers_and_times_that_cannot_be_are_left_out() {
    let event = RECORDING
        .lines()
        .find(|line| line.contains("\"type\":\"event\""))
        .unwrap();
    let with = |field: &str, value: &str| {
        let (before, rest) = event.split_once(&format!("\"{field}\":")).unwrap();
        let end = rest.find([',', '}']).unwrap();
        format!("{before}\"{field}\":{value}{}", &rest[end..])
    };
    assert_eq!(with("count", "1"), event);
    for (line, what) in [
        (with("time", "\"0001-01-01T00:00:00Z\""), "times"),
        (with("time", "\"9998-01-01T00:00:00Z\""), "times"),
        (with("count", "18446744073709551615"), "counts"),
        (with("depth", "4294967295"), "depths"),
        (with("limit", "3000000000"), "depths"),
    ] {
        let text = RECORDING.replacen(event, &line, 1);
        let mut reader = Reader::of("x", Cursor::new(text.into_bytes()));
        let mut understood = 0;
        while let Some(entry) = reader.next().unwrap() {
            understood += usize::from(entry.line.is_some());
        }
        assert_eq!(understood, RECORDING.lines().count() - 1, "{line}");
        let notes = reader.notes().join("\n");
        assert!(
            notes.contains(&format!("1 lines with {what} that cannot be")),
            "{notes}"
        );
    }
    // A clock that was never set begins in 1970.
    let unset = RECORDING.replacen(event, &with("time", "\"1970-01-01T00:00:09Z\""), 1);
    assert!(read(unset).unwrap().1.is_empty());
}

#[test]
fn what_is_kept_of_a_line_is_bounded() {
    let many: Vec<_> = (0..5000)
        .map(|pid| format!("{{\"pid\":{pid},\"comm\":\"{}\"}}", "x".repeat(150)))
        .collect();
    let text = format!(
        "{{\"type\":\"listener\",\"netns\":1,\"listener\":{{\"port\":80}},\"cgroup\":\"{}é\",\
         \"unit\":\"{}\",\"counts\":{{\"{}\":1,\"queued\":2}},\"processes\":[{}]}}",
        "/a".repeat(50_000),
        "u".repeat(9000),
        "c".repeat(5000),
        many.join(",")
    );
    let Ok(Line::Listener(snapshot)) = Line::parse(text.as_bytes()) else {
        panic!("it is a line of a listener");
    };
    let processes = snapshot.processes.as_ref().unwrap();
    assert!(processes.len() <= 128 && processes[0].comm.len() <= 128);
    assert!(snapshot.cgroup.as_ref().unwrap().len() <= 4096);
    assert!(snapshot.unit.as_ref().unwrap().len() <= 256);
    let counts = snapshot.counts.as_ref().unwrap();
    assert_eq!(
        counts.iter().collect::<Vec<_>>(),
        [(&"queued".to_owned(), &2)]
    );
}

#[test]
fn what_is_no_recording_is_said_to_be_none() {
    for (bytes, words) in [
        (&b""[..], "empty"),
        (b"\n\n", "empty"),
        (b"hello\nworld\n", "not a recording of queue-trace"),
        (b"{\"type\":\"letter\"}\n", "not a recording of queue-trace"),
        (b"[1,2,3]", "nothing can be read"),
        (b"\x1f\x8b\x08", "nothing can be read"),
        (b"\x28\xb5\x2f\xfd", "nothing can be read"),
        (b"\x1f\x8bnonsense", "nothing can be read"),
    ] {
        let error = read(bytes).unwrap_err();
        assert!(error.contains(words), "{bytes:?}: {error}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = read(bytes);
    }

    #[test]
    fn nor_do_flipped_bytes_of_a_recording(
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..50),
        form in 0..3u8,
    ) {
        let text = RECORDING.as_bytes();
        let mut bytes = match form {
            0 => text.to_vec(),
            1 => gzip(text),
            _ => zstd(text),
        };
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        let _ = read(bytes);
    }
}

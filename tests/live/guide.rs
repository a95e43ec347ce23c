//! Sessions in the documentation are what the program says: each block that begins with
//! `$ queue-trace demo …` is run here and compared, except for what no run has like another
//! (times, numbers of processes, sockets and namespaces, ports of clients).
//!
//! `QUEUE_TRACE_WRITE_GUIDE=1` writes the blocks anew instead (`cargo xtask guide`). The pages
//! are read from the sources, so this runs on the machine that has them.

use std::{fs, path::Path};

use live_tests::{ALL, Finished, Launch, attach, unproven};
use regex_lite::Regex;

/// The pages with sessions.
const PAGES: [&str; 2] = ["README.md", "docs/guide.md"];

/// Lines of one kind that are shown of a long run of them.
const SHOWN: usize = 3;

#[test]
fn sessions_in_the_documentation_are_real() {
    if unproven("guide::sessions_in_the_documentation_are_real", ALL) {
        return;
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let write = std::env::var_os("QUEUE_TRACE_WRITE_GUIDE").is_some();
    let mut sessions = 0;
    for page in PAGES {
        let path = root.join(page);
        let text = fs::read_to_string(&path).unwrap();
        let mut anew = String::new();
        let mut rest = text.as_str();
        while let Some((before, block, after)) = next_session(rest) {
            let said = session(block.lines().next().unwrap());
            if !write {
                assert_eq!(
                    alike(&said),
                    alike(block),
                    "{page}: another session than written"
                );
            }
            sessions += 1;
            anew.push_str(before);
            anew.push_str(&said);
            rest = after;
        }
        anew.push_str(rest);
        if write {
            fs::write(&path, anew).unwrap();
        }
    }
    assert!(sessions > 3, "only {sessions} sessions were found");
}

/// What comes before the next session of a page, the session, and the rest.
fn next_session(text: &str) -> Option<(&str, &str, &str)> {
    const BEGIN: &str = "```text\n";
    let begin = text.find("```text\n$ queue-trace demo")? + BEGIN.len();
    let end = begin + text[begin..].find("```")?;
    Some((&text[..begin], &text[begin..end], &text[end..]))
}

/// Runs the command, and gives what it says, long runs of events cut.
fn session(command: &str) -> String {
    let args = command.strip_prefix("$ queue-trace ").unwrap();
    let finished = Launch::plain(args.split_whitespace())
        .args(["--attach", attach().name()])
        .start()
        .wait();
    assert_eq!(finished.status.code(), Some(0), "{finished:?}");
    let Finished { stdout, stderr, .. } = finished;
    let mut lines = vec![command.to_owned()];
    let mut events = 0;
    for line in stdout.lines() {
        let is_event = line.get(2..3) == Some(":") && line.get(5..6) == Some(":");
        events = if is_event { events + 1 } else { 0 };
        match events {
            0..=SHOWN => lines.push(line.trim_end().to_owned()),
            more if more == SHOWN + 1 => lines.push("…".to_owned()),
            _ => {}
        }
    }
    // What the case did, in its own words: the end of standard error.
    let (_, did) = stderr.rsplit_once("\n\n").unwrap();
    lines.push(String::new());
    lines.extend(did.lines().map(str::to_owned));
    lines.join("\n") + "\n"
}

/// A session without what no run has like another.
fn alike(session: &str) -> String {
    [
        (r"\d\d:\d\d:\d\d\.\d{3}", "TIME"),
        (r"netns \d+", "netns N"),
        (r"inode \d+", "inode N"),
        (r"\[\d+\]", "[N]"),
        (r"(127\.0\.0\.1|\[::1\]):[1-9]\d{4}", "$1:PORT"),
    ]
    .iter()
    .fold(session.to_owned(), |text, (pattern, with)| {
        Regex::new(pattern)
            .unwrap()
            .replace_all(&text, *with)
            .into_owned()
    })
}

#[test]
fn sessions_are_found_and_compared() {
    let page = "a\n```text\n$ queue-trace demo x\n1\n```\nb\n";
    let (before, block, after) = next_session(page).unwrap();
    assert_eq!(
        (before, block, after),
        ("a\n```text\n", "$ queue-trace demo x\n1\n", "```\nb\n")
    );
    assert_eq!(
        alike("21:23:15.002 127.0.0.1:40312 netns 7"),
        "TIME 127.0.0.1:PORT netns N"
    );
    assert_ne!(alike("accept 6/5"), alike("accept 7/5"));
}

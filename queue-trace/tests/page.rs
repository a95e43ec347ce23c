//! The page of `queue-trace report`: self-contained, safe with whatever a recording says,
//! readable without its charts; and in a browser.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use queue_trace::{
    diagnose,
    model::{snapshot::Snapshot, socket::Listener},
    recording::Line,
    report,
    sink::Sink as _,
};

fn recording(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/recordings");
    folder.join(format!("{name}.jsonl"))
}

fn page_of(name: &str) -> String {
    report::page(&diagnose::read(&[recording(name)]).unwrap())
}

/// The page of a recording whose accepted connections say how long they waited, as newer
/// ones do: here it is computed from the moments at which they came and were accepted.
fn page_with_waits() -> String {
    let text = fs::read_to_string(recording("fentry-accept-too-slow")).unwrap();
    let mut case = diagnose::Case::new();
    let mut came = HashMap::new();
    for line in text.lines() {
        let mut line = Line::parse(line.as_bytes()).unwrap();
        if let Line::Event(event) = &mut line {
            let client = event.client.map(|client| client.port);
            match event.outcome.verdict {
                "established" => drop(came.insert(client, event.mono_ns)),
                "accepted" => {
                    let came = came.get(&client).copied();
                    event.waited_us = came.map(|came| (event.mono_ns - came) / 1000);
                }
                _ => {}
            }
        }
        line.to(&mut case).unwrap();
    }
    report::page(&case)
}

/// The page without what is embedded in it.
fn words(page: &str) -> String {
    let mut words = page.to_owned();
    for tag in ["style", "script"] {
        while let Some(from) = words.find(&format!("<{tag}")) {
            let end = format!("</{tag}>");
            let to = words[from..].find(&end).unwrap() + from + end.len();
            words.replace_range(from..to, "");
        }
    }
    words
}

#[test]
fn it_has_every_part_in_order() {
    let page = words(&page_of("tracepoint-accept-stopped"));
    let parts = [
        "<h1>",
        "What is wrong",
        "took nothing from its accept queue",
        "Course of time",
        "Episodes",
        "Listeners",
        "Clients refused or put off",
        "Ledger",
        "unexplained 0",
        "Environment",
        "tracepoint",
    ];
    let mut at = 0;
    for part in parts {
        at += page[at..]
            .find(part)
            .unwrap_or_else(|| panic!("no {part:?} after {at}"));
    }
    assert_eq!(page.matches("<h1>").count(), 1);
}

/// Nothing is fetched when it is read: it has no address of anything but in its texts.
#[test]
fn it_needs_no_network() {
    let page = page_of("tracepoint-bursts");
    for outside in [
        "src=",
        "href=",
        "@import",
        "url(",
        "fetch(",
        "XMLHttpRequest",
    ] {
        assert!(!page.contains(outside), "{outside}");
    }
    assert!(page.contains("default-src 'none'"));
}

/// Who accepts too slowly lets connections wait: the chart has numbers, and says them.
#[test]
fn it_shows_how_long_connections_waited() {
    let page = words(&page_with_waits());
    let (_, chart) = page
        .split_once("Time in the accept queue, of the connections accepted in each moment")
        .unwrap();
    let (sentence, _) = chart.split_once("A table follows").unwrap();
    for words in [
        "half of them at most 1.1s",
        "99 of 100 at most 1.1s",
        "the longest at most 1.1s",
    ] {
        assert!(sentence.contains(words), "{sentence}");
    }
}

/// Beside the depth of the queue stands what kept the application from accepting.
#[test]
fn it_shows_what_kept_the_application() {
    let page = words(&page_of("tracepoint-throttled"));
    let (_, chart) = page
        .split_once("What kept the application from accepting, in percent of the time")
        .unwrap();
    let (sentence, _) = chart.split_once("A table follows").unwrap();
    for words in ["throttled by its CPU quota at most ", "waited for a CPU"] {
        assert!(sentence.contains(words), "{sentence}");
    }
    let page = words(&page_of("tracepoint-accept-stopped"));
    assert!(!page.contains("What kept the application"));
}

/// Listeners in trouble are at hand, the others counted and folded.
#[test]
fn those_that_are_well_do_not_stand_in_the_way() {
    let page = words(&page_of("tracepoint-healthy"));
    assert!(page.contains("1 listener refused nothing and had room."));
    assert!(page.contains("<summary>Show them"));
    let page = words(&page_of("tracepoint-default"));
    assert!(page.contains("python3["), "whose it is");
    assert!(page.contains("default of Python"), "what set its limit");
    assert!(!page.contains("refused nothing"));
}

/// Rows that do not fit are counted.
#[test]
fn rows_that_are_left_out_are_counted() {
    let mut case = diagnose::Case::new();
    for port in 1..=1300 {
        let snapshot = Snapshot {
            netns: 1,
            listener: Listener {
                addr: Some(Ipv4Addr::LOCALHOST.into()),
                port,
                ..Listener::default()
            },
            ..Snapshot::default()
        };
        case.listener(&snapshot).unwrap();
    }
    let page = words(&report::page(&case));
    assert_eq!(page.matches("127.0.0.1:").count(), 1000);
    assert!(page.contains("44 more listeners are not shown"), "{page}");
    assert!(
        page.contains("256 listeners that refused nothing are not kept"),
        "{page}"
    );
}

/// Every chart has its sentence and its table.
#[test]
fn it_can_be_read_without_its_charts() {
    let page = words(&page_of("tracepoint-accept-too-slow"));
    let charts = page.matches("class=\"chart\"").count();
    assert!(charts >= 4, "{charts}");
    assert_eq!(page.matches("role=\"img\"").count(), charts);
    assert_eq!(page.matches("aria-label=\"Chart over time").count(), charts);
    assert_eq!(page.matches("The same as a table").count(), charts);
}

/// What a recording says is text, wherever it comes to stand.
#[test]
fn a_recording_cannot_write_into_the_page() {
    let evil = "</script><script>alert(1)</script><img src=x onerror=alert(1)>";
    let text = fs::read_to_string(recording("tracepoint-bursts")).unwrap();
    let mut case = diagnose::Case::new();
    for line in text.lines() {
        let mut line: serde_json::Value = serde_json::from_str(line).unwrap();
        for field in ["host", "kernel", "version"] {
            if line[field].is_string() {
                line[field] = evil.into();
            }
        }
        if line["type"] == "ledger" {
            line["note"] = evil.into();
            line["counters"] = serde_json::json!({evil: {"seen": 1}});
        }
        let line = serde_json::to_string(&line).unwrap();
        Line::parse(line.as_bytes()).unwrap().to(&mut case).unwrap();
    }
    case.notes.push(evil.to_owned());
    let page = report::page(&case);
    assert!(page.contains("&lt;/script&gt;"));
    assert!(!page.contains("<img"));
    assert_eq!(page.matches("<script").count(), 3);
}

/// A browser draws every chart, says nothing on its console, and has nothing wider than a
/// phone's screen. Needs Chromium: `cargo test --test page -- --ignored`.
#[test]
#[ignore = "needs Chromium"]
fn a_browser_draws_it() {
    for (name, page) in [
        ("with-waits", page_with_waits()),
        ("flood-many", page_of("tracepoint-flood-many")),
        ("healthy", page_of("tracepoint-healthy")),
    ] {
        let folder =
            std::env::temp_dir().join(format!("queue-trace-page-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let charts = words(&page).matches("class=\"chart\"").count();
        // Charts are drawn into a frame of a phone's width, which then measures itself.
        let measured = "<script>addEventListener('load', () => setTimeout(() => parent.postMessage( \
            document.querySelectorAll('canvas').length + ' drawn, ' + \
            document.documentElement.scrollWidth + ' wide', '*'), 500))</script>";
        let probe = page.replace("</body>", &format!("{measured}</body>"));
        fs::write(folder.join("page.html"), probe).unwrap();
        let frame = "<script>addEventListener('message', (e) => document.title = e.data)</script>\
            <iframe src=page.html style='width:390px;height:3000px;border:0'></iframe>";
        fs::write(folder.join("phone.html"), frame).unwrap();
        let output = Command::new("chromium")
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--allow-file-access-from-files",
            ])
            .args([
                "--enable-logging=stderr",
                "--virtual-time-budget=4000",
                "--dump-dom",
            ])
            .arg(format!(
                "--user-data-dir={}",
                folder.join("profile").display()
            ))
            .arg(format!("file://{}", folder.join("phone.html").display()))
            .output()
            .expect("chromium is not installed");
        let dom = String::from_utf8_lossy(&output.stdout).into_owned();
        let log = String::from_utf8_lossy(&output.stderr).into_owned();
        fs::remove_dir_all(&folder).unwrap();
        assert!(
            dom.contains(&format!("<title>{charts} drawn, 390 wide</title>")),
            "{name}: {dom}\n{log}"
        );
        assert!(!log.contains("CONSOLE"), "{name}: {log}");
    }
}

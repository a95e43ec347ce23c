//! Makes the pictures of the documentation from what the program really shows: `top` as an SVG
//! of its terminal, the report as a browser shows it. `cargo xtask pictures` runs this with the
//! program and the folder of the pictures.

#![expect(
    clippy::unwrap_used,
    reason = "without the program or the browser there is no picture"
)]

use std::{
    env,
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use live_tests::{Scratch, Screen};

/// An incident of which the pictures are made.
const RECORDING: &str = "queue-trace/tests/recordings/tracepoint-bursts.jsonl";

const COLUMNS: u16 = 118;
const ROWS: u16 = 30;

/// Size of a character, in pixels.
const CELL: (u16, u16) = (8, 17);

fn main() {
    let mut args = env::args_os().skip(1).map(PathBuf::from);
    let (program, folder) = (args.next().unwrap(), args.next().unwrap());
    fs::create_dir_all(&folder).unwrap();
    let recording = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(RECORDING);
    fs::write(folder.join("top.svg"), top(&program, &recording)).unwrap();
    report(&program, &recording, &folder.join("report.png"));
}

/// `top` in the middle of the incident.
fn top(program: &Path, recording: &Path) -> String {
    let (mut screen, theirs) = Screen::open(COLUMNS, ROWS);
    let mut child: Child = Command::new(program)
        .arg("top")
        .arg(recording)
        .env("TERM", "xterm-256color")
        .env("TZ", "UTC")
        .env_remove("NO_COLOR")
        .stdin(theirs.try_clone().unwrap())
        .stdout(theirs.try_clone().unwrap())
        .stderr(theirs)
        .spawn()
        .unwrap();
    screen.wait_for("LISTENER");
    // Paused, at the first moment of the incident.
    screen.press(" ");
    screen.wait_for("PAUSED");
    screen.press("\x1b[H");
    screen.wait_for("FULL");
    let picture = svg(screen.shows());
    screen.press("q");
    assert!(child.wait().unwrap().success());
    picture
}

/// A terminal as a picture.
fn svg(screen: &vt100::Screen) -> String {
    let (rows, columns) = screen.size();
    let (rows, columns) = (rows.get(), columns.get());
    let (wide, high) = CELL;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{}\" font-family=\"ui-monospace, \
         DejaVu Sans Mono, monospace\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" \
         fill=\"#16181d\"/>\n",
        (columns + 2) * wide,
        (rows + 1) * high,
    );
    for row in 0..rows {
        let mut column = 0;
        while column < columns {
            let begin = column;
            let style = style_at(screen, row, column);
            let mut text = String::new();
            while column < columns && style_at(screen, row, column) == style {
                let cell = screen.cell(row, column).unwrap();
                text.push_str(if cell.has_contents() {
                    cell.contents()
                } else {
                    " "
                });
                column += 1;
            }
            let (colour, ground, bold) = style;
            let (x, y) = ((begin + 1) * wide, (row + 1) * high);
            let width = (column - begin) * wide;
            if let Some(ground) = ground {
                writeln!(
                    svg,
                    "<rect x=\"{x}\" y=\"{}\" width=\"{width}\" height=\"{high}\" fill=\"{ground}\"/>",
                    y - 13
                )
                .unwrap();
            }
            if !text.trim().is_empty() {
                let weight = if bold { " font-weight=\"bold\"" } else { "" };
                writeln!(
                    svg,
                    "<text x=\"{x}\" y=\"{y}\" fill=\"{colour}\"{weight} textLength=\"{width}\" \
                     xml:space=\"preserve\">{}</text>",
                    text.replace('&', "&amp;").replace('<', "&lt;")
                )
                .unwrap();
            }
        }
    }
    svg + "</svg>\n"
}

/// Colour of the text, colour of the ground if it has one, and whether it is bold.
fn style_at(
    screen: &vt100::Screen,
    row: u16,
    column: u16,
) -> (&'static str, Option<&'static str>, bool) {
    let cell = screen.cell(row, column).unwrap();
    let (text, ground) = (named(cell.fgcolor()), named(cell.bgcolor()));
    let plain = if cell.dim() { "#8a919c" } else { "#d7dae0" };
    if cell.inverse() {
        return (
            ground.unwrap_or("#16181d"),
            Some(text.unwrap_or(plain)),
            cell.bold(),
        );
    }
    (text.unwrap_or(plain), ground, cell.bold())
}

/// A terminal's colour; its default is none.
fn named(colour: vt100::Color) -> Option<&'static str> {
    match colour {
        vt100::Color::Default => None,
        vt100::Color::Idx(1 | 9) => Some("#ff6b6b"),
        vt100::Color::Idx(2 | 10) => Some("#7ed491"),
        vt100::Color::Idx(3 | 11) => Some("#f2c55c"),
        vt100::Color::Idx(4 | 12) => Some("#6ab0f3"),
        vt100::Color::Idx(5 | 13) => Some("#d08bf0"),
        vt100::Color::Idx(6 | 14) => Some("#5fd0d6"),
        vt100::Color::Idx(0) => Some("#16181d"),
        vt100::Color::Idx(8) => Some("#6b7280"),
        _ => Some("#ffffff"),
    }
}

/// The report in a browser.
fn report(program: &Path, recording: &Path, picture: &Path) {
    let scratch = Scratch::new("pictures");
    let page = scratch.path().join("report.html");
    let made = Command::new(program)
        .arg("report")
        .arg(recording)
        .arg("-o")
        .arg(&page)
        .env("TZ", "UTC")
        .status()
        .unwrap();
    assert!(made.success());
    let mut screenshot = std::ffi::OsString::from("--screenshot=");
    screenshot.push(picture);
    let mut profile = std::ffi::OsString::from("--user-data-dir=");
    profile.push(scratch.path().join("profile"));
    let shown = Command::new("chromium")
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
        ])
        .args(["--window-size=1100,900", "--virtual-time-budget=4000"])
        .args([&screenshot, &profile])
        .arg(&page)
        .status()
        .expect("chromium is not installed: cargo xtask setup");
    assert!(shown.success());
}

//! docs/kernels.md: what was found on each kernel, as a page. Writes no file.

use super::{
    checked::{Checked, Hook, State},
    kernels::{Attach, Kernel},
};
use crate::lint::prose;

/// What was found on one kernel.
pub struct Found {
    pub kernel: &'static Kernel,
    /// The package's version.
    pub version: String,
    pub by_attach: Vec<(Attach, Checked)>,
}

impl Found {
    fn release(&self) -> &str {
        self.by_attach
            .first()
            .map_or("", |(_, checked)| &checked.release)
    }

    /// In the order of the report, which is the same for every way to attach.
    fn hooks(&self) -> &[Hook] {
        self.by_attach
            .first()
            .map_or(&[], |(_, checked)| &checked.hooks)
    }
}

const HEADER: &str = "\
# Kernels

<!-- Written by `cargo xtask vm kernels`; do not edit. -->

What `queue-trace check` finds on the kernels that the tests run on, booted in virtual machines: of
x86-64, and of arm64 where the name says so (`16k`: with pages of 16 KiB). Prototypes are those of
the kernel's own type information (BTF), without `struct` and `const`, in the order of its
arguments; a hook attaches only to a prototype that queue-trace knows, and is left out by name
otherwise. Tracepoints need no hooks.

`queue-trace check --btf FILE --release RELEASE` judges any other kernel by its types alone, on any
Linux machine. Nothing is attached. `--json` writes one object: `modes` has for each way to attach
whether it can be used, why not, and which outcomes are observable; `hooks` has the state of each
function. The types do not tell privileges, lockdown, and what the verifier says of the programs. On
arm64 fentry takes Linux 6.4 or newer; older ones are watched by kprobes.

Verdicts of `check --btf` on kernels outside Debian, as numbers of observable outcomes:

| distribution | release | fentry | kprobe | tracepoint |
|---|---|---|---|---|
| Ubuntu 20.04 | 5.4.0-216-generic | too old | too old | too old |
| Ubuntu 20.04, hardware enablement | 5.15.0-139-generic | 29 | 29 | 18 |
| Ubuntu 22.04 | 5.15.0-204-generic | 29 | 29 | 18 |
| Ubuntu 24.04 | 6.8.0-151-generic | 29 | 29 | 18 |
| Ubuntu 24.04, GKE | 6.8.0-1069-gke | 29 | 29 | 18 |
| Ubuntu 24.04, AWS | 7.0.0-1018-aws | 29 | 29 | 18 |
| Ubuntu 26.04 | 7.0.0-14-generic | 29 | 29 | 18 |

Of these kernels only those types were kept that queue-trace read at that time. Some outcomes came
later and were not judged: `syn_refused:no_listener`, `fast_open_refused`, `ack_deferred`,
`syn_dropped:md5`, `syn_dropped:ao`, `syn_dropped:min_ttl`, `syn_dropped:socket_filter`,
`syn_dropped:policy`, `syn_dropped:checksum`. Linux 5.15 gives no reason for freeing a packet, so
the six of `syn_dropped` are not observable there. `queue-trace check` on one of these machines
judges all outcomes.

The types of RHEL, Amazon Linux, Container-Optimized OS, Azure Linux and Android were not judged:
the tests have no such data. RHEL 8 (Linux 4.18) is too old.

On the tests' kernels:
";

pub fn page(found: &[Found]) -> String {
    let mut page = HEADER.to_string();
    page += "\n| kernel | release | Debian's version | observable outcomes |\n|---|---|---|---|\n";
    for on_kernel in found {
        page += &summary(on_kernel);
    }
    for on_kernel in found {
        page += &section(on_kernel);
    }
    page
}

/// A page on which these kernels have their new rows and sections, in their old places; new
/// ones come last.
pub fn renewed(page: &str, found: &[Found]) -> String {
    let mut page = page.to_string();
    for on_kernel in found {
        let name = on_kernel.kernel.name;
        let (head, sections) = page.split_once("\n## ").unwrap_or((&page, ""));
        let begins = |line: &str| line.starts_with(&format!("| {name} |"));
        let row = summary(on_kernel);
        let mut head = head.trim_end().to_string() + "\n";
        match head.lines().find(|line| begins(line)) {
            Some(old) => head = head.replace(&format!("{old}\n"), &row),
            None => head += &row,
        }
        let mut all: Vec<String> = sections
            .split("\n## ")
            .filter(|section| !section.is_empty())
            .map(|section| format!("\n## {}\n", section.trim_end()))
            .collect();
        let new = section(on_kernel);
        let title = heading(on_kernel.kernel);
        match all.iter_mut().find(|section| section.starts_with(&title)) {
            Some(old) => *old = new,
            None => all.push(new),
        }
        page = head + &all.concat();
    }
    page
}

fn summary(found: &Found) -> String {
    let counts = found.by_attach.iter().map(|(attach, checked)| {
        let (yes, no) = (checked.observable.len(), checked.unobservable.len());
        format!("{} {yes} of {}", attach.name(), yes + no)
    });
    format!(
        "| {} | {} | {} | {} |\n",
        found.kernel.name,
        found.release(),
        found.version,
        counts.collect::<Vec<_>>().join(", ")
    )
}

fn section(found: &Found) -> String {
    let mut text = heading(found.kernel);
    text += "\n| hook | prototype |";
    // Tracepoints use no hook.
    let by_hooks: Vec<_> = found
        .by_attach
        .iter()
        .filter(|(attach, _)| *attach != Attach::Tracepoint)
        .collect();
    for (attach, _) in &by_hooks {
        text += &format!(" {} |", attach.name());
    }
    text += &format!("\n|{}\n", "---|".repeat(2 + by_hooks.len()));
    for (index, hook) in found.hooks().iter().enumerate() {
        let states = by_hooks
            .iter()
            .filter_map(|(_, checked)| checked.hooks.get(index));
        text += &row(&hook.function, states.map(|hook| &hook.state));
    }
    text.push('\n');
    for (attach, checked) in &found.by_attach {
        text += &remarks(*attach, checked);
    }
    text
}

pub fn heading(kernel: &Kernel) -> String {
    format!("\n## {}\n", kernel.name)
}

fn row<'a>(function: &str, states: impl Iterator<Item = &'a State>) -> String {
    let mut known = "";
    let mut cells = String::new();
    for state in states {
        let cell = match state {
            State::Present {
                attached,
                prototype,
            } => {
                known = prototype;
                if *attached { "attached" } else { "not used" }
            }
            State::LeftOut(why) => why,
        };
        cells += &format!(" {cell} |");
    }
    let prototype = match known {
        "" => String::new(),
        known => format!("`{known}`"),
    };
    format!("| `{function}` | {prototype} |{cells}\n")
}

/// What cannot be observed in one way to attach, and what else is to be noted.
fn remarks(attach: Attach, checked: &Checked) -> String {
    let name = attach.name();
    let mut text = match &checked.unobservable[..] {
        [] => item(&format!("{name}: every outcome is observable.")),
        missing => item(&format!(
            "{name}: not observable: `{}`.",
            missing.join("`, `")
        )),
    };
    for note in &checked.notes {
        // It repeats the list above.
        if !note.starts_with("not observable here") {
            text += &item(&format!("{name}: {note}."));
        }
    }
    text
}

/// An item of a list, wrapped between words.
fn item(text: &str) -> String {
    let options = textwrap::Options::new(prose::WIDTH)
        .initial_indent("- ")
        .subsequent_indent("  ")
        .break_words(false)
        .word_splitter(textwrap::WordSplitter::NoHyphenation)
        .wrap_algorithm(textwrap::WrapAlgorithm::FirstFit);
    textwrap::fill(text, options) + "\n"
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::Value;

    use super::*;
    use crate::{vm::kernels, workspace};

    /// The counts of the table are what `check --btf` said of the kept types, and the outcomes
    /// that are missing there are those of which the page says that they were not judged.
    #[test]
    fn kernels_outside_debian_have_the_counts_of_their_types() {
        let fixtures = workspace::root().join("queue-trace/tests/kernels");
        let mut judged = 0;
        for (series, file) in [
            ("5.15.0-", "5.15-ubuntu-x86_64.json"),
            ("6.8.0-", "6.8-ubuntu-x86_64.json"),
            ("7.0.0-", "7.0-ubuntu-x86_64.json"),
        ] {
            let report = fs::read_to_string(fixtures.join(file)).unwrap();
            let report: Value = serde_json::from_str(&report).unwrap();
            let modes = report["modes"].as_array().unwrap();
            let counts = modes
                .iter()
                .map(|mode| mode["observable"].as_array().unwrap().len());
            let counts: Vec<_> = counts.map(|count| format!(" {count} |")).collect();
            let rows = HEADER.lines().filter(|line| line.contains(series));
            for row in rows {
                judged += 1;
                assert!(row.ends_with(&counts.concat()), "{row}, {counts:?}");
            }
            for outcome in modes[0]["not_observable"].as_array().unwrap() {
                let name = format!("`{}`", outcome.as_str().unwrap());
                assert!(HEADER.contains(&name), "{file}: {name}");
            }
        }
        assert_eq!(judged, 6);
    }

    fn hook(function: &str, state: State) -> Hook {
        Hook {
            function: function.into(),
            state,
        }
    }

    fn left_out(why: &str) -> State {
        State::LeftOut(why.into())
    }

    /// One kernel renewed, and one that was not there.
    fn the_same_page_comes_of_its_parts(page: &str) {
        let found = |name: &str, version: &str| Found {
            kernel: kernels::find(name).unwrap(),
            version: version.into(),
            by_attach: vec![(Attach::Fentry, Checked::default())],
        };
        let renewed = renewed(page, &[found("6.1", "6.1.999-1"), found("7.3", "7.3-1")]);
        let lines = |wanted: &str| renewed.lines().filter(|line| line.contains(wanted)).count();
        assert_eq!(lines("6.1.192-2"), 0, "{renewed}");
        assert_eq!(lines("6.1.999-1"), 1, "{renewed}");
        assert_eq!(lines("## 6.1"), 1, "{renewed}");
        assert_eq!(lines("## 7.3"), 1, "{renewed}");
        let twice = super::renewed(&renewed, &[found("7.3", "7.3-1")]);
        assert_eq!(twice, renewed);
    }

    #[test]
    fn the_page_says_what_was_found() {
        let prototype = State::Present {
            attached: true,
            prototype: "*sock (*sock)".into(),
        };
        let all = Checked {
            release: "6.1.0".into(),
            hooks: vec![
                hook("tcp_check_req", prototype),
                hook("tcp_req_err", left_out("no such function")),
            ],
            observable: vec!["queued".into(), "accepted".into()],
            ..Checked::default()
        };
        let some = Checked {
            release: "6.1.0".into(),
            hooks: vec![
                hook("tcp_check_req", left_out("REFUSED: no")),
                hook("tcp_req_err", left_out("no such function")),
            ],
            observable: vec!["queued".into()],
            unobservable: vec!["accepted".into()],
            notes: vec![
                "not observable here: accepted".into(),
                "not attached: tcp_check_req: no".into(),
            ],
        };
        let page = page(&[Found {
            kernel: kernels::find("6.1").unwrap(),
            version: "6.1.192-2".into(),
            by_attach: vec![(Attach::Fentry, all), (Attach::Kprobe, some)],
        }]);
        for line in [
            "| 6.1 | 6.1.0 | 6.1.192-2 | fentry 2 of 2, kprobe 1 of 2 |",
            "| `tcp_check_req` | `*sock (*sock)` | attached | REFUSED: no |",
            "| `tcp_req_err` |  | no such function | no such function |",
            "- fentry: every outcome is observable.",
            "- kprobe: not observable: `accepted`.",
            "- kprobe: not attached: tcp_check_req: no.",
        ] {
            assert!(
                page.lines().any(|of_page| of_page == line),
                "{line}\n{page}"
            );
        }
        assert!(!page.contains("not observable here"));
        the_same_page_comes_of_its_parts(&page);
    }
}

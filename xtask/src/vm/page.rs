//! docs/kernels.md: what was found on each kernel, as a page. Writes no file.

use super::{
    checked::{Checked, Hook, State},
    kernels::{Attach, Kernel},
};

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

What `queue-trace check` finds on the kernels that the tests run on, booted in virtual machines. Prototypes are those of
the kernel's own type information (BTF), without `struct` and `const`, in the order of its arguments; a hook attaches only
to a prototype that queue-trace knows, and is left out by name otherwise. Tracepoints need no hooks.
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
        [] => format!("- {name}: every outcome is observable.\n"),
        missing => format!("- {name}: not observable: `{}`.\n", missing.join("`, `")),
    };
    for note in &checked.notes {
        // It repeats the list above.
        if !note.starts_with("not observable here") {
            text += &format!("- {name}: {note}.\n");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernels;

    fn hook(function: &str, state: State) -> Hook {
        Hook {
            function: function.into(),
            state,
        }
    }

    fn left_out(why: &str) -> State {
        State::LeftOut(why.into())
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
    }
}

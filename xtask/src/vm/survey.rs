//! `cargo xtask vm kernels`: what queue-trace finds on each kernel, written to
//! docs/kernels.md. Tests nothing: that is the matrix's part.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::cache;
use super::checked::{self, Checked, Hook, State};
use super::guest::Guest;
use super::kernels::{Attach, KERNELS, Kernel};
use super::machine::{self, Size};
use crate::artifacts::{self, For};
use crate::workspace;

/// What was found on one kernel.
struct Found {
    kernel: &'static Kernel,
    /// The package's version.
    version: String,
    by_attach: Vec<(Attach, Checked)>,
}

/// Boots every kernel once and writes the page.
pub fn run() -> Result<()> {
    let program = artifacts::program(For::Guest)?;
    let mut found = Vec::new();
    for kernel in KERNELS {
        let on_kernel = ask(kernel, &program).with_context(|| format!("kernel {}", kernel.name))?;
        println!("{:<10} {}", kernel.name, on_kernel.version);
        found.push(on_kernel);
    }
    let path = page_path();
    fs::write(&path, page(&found)).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}", path.display());
    Ok(())
}

fn page_path() -> PathBuf {
    workspace::root().join("docs/kernels.md")
}

/// Stands before the answer for each way to attach.
const ANSWER: &str = "ANSWER ";

fn ask(kernel: &'static Kernel, program: &Path) -> Result<Found> {
    let image = cache::cached_or_fetched(kernel)?;
    let name = format!("{}-survey", kernel.name);
    let guest = guest(kernel, program);
    let run = machine::run(&image, &guest, &Size::default(), &name, false)?;
    if let Some(fault) = run.fault() {
        bail!("{fault}; the console: {}", run.log.display());
    }
    let by_attach = answers(&run.console, kernel.attach)
        .with_context(|| format!("the console: {}", run.log.display()))?;
    Ok(Found {
        kernel,
        version: image.version,
        by_attach,
    })
}

fn guest(kernel: &Kernel, program: &Path) -> Guest {
    // The kernel's own messages would come between the lines, and within them.
    let mut script = "echo 1 >/proc/sys/kernel/printk".to_string();
    for attach in kernel.attach {
        let name = attach.name();
        script += &format!("\necho '{ANSWER}{name}'\nqueue-trace check --attach {name}");
    }
    Guest {
        programs: vec![program.to_path_buf()],
        environment: Vec::new(),
        command: ["dash", "-c", &script].map(String::from).to_vec(),
    }
}

/// The answers on a console. One without hooks or outcomes is an error: every way
/// to attach that the table has for a kernel must work there.
fn answers(console: &str, ways: &[Attach]) -> Result<Vec<(Attach, Checked)>> {
    let answer = |&attach: &Attach| {
        let (_, after) = console
            .split_once(&format!("{ANSWER}{}\n", attach.name()))
            .with_context(|| format!("queue-trace was not asked about {}", attach.name()))?;
        let text = after.split(ANSWER).next().unwrap_or(after);
        let checked = checked::read(text);
        if checked.hooks.is_empty() || checked.observable.is_empty() {
            bail!("{} does not attach:\n{text}", attach.name());
        }
        Ok((attach, checked))
    };
    ways.iter().map(answer).collect()
}

const HEADER: &str = "\
# Kernels

<!-- Written by `cargo xtask vm kernels`; do not edit. -->

What `queue-trace check` finds on the kernels that the tests run on, booted in virtual machines. Prototypes are those of
the kernel's own type information (BTF), without `struct` and `const`, in the order of its arguments; a hook attaches only
to a prototype that queue-trace knows, and is left out by name otherwise. Tracepoints need no hooks.
";

fn page(found: &[Found]) -> String {
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
    for (attach, checked) in &found.by_attach {
        text += &observable(*attach, checked);
    }
    text
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

fn heading(kernel: &Kernel) -> String {
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
fn observable(attach: Attach, checked: &Checked) -> String {
    let name = attach.name();
    let mut text = match &checked.unobservable[..] {
        [] => format!("\n- {name}: every outcome is observable.\n"),
        missing => format!("\n- {name}: not observable: `{}`.\n", missing.join("`, `")),
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

    const CONSOLE: &str = "\
boot
ANSWER fentry
kernel       6.1.0
hooks
  tcp_check_req                  fentry        *sock (*sock)
  tcp_req_err                    - (no such function)
observable
  queued     It was queued
ANSWER kprobe
kernel       6.1.0
hooks
  tcp_check_req                  REFUSED: no
  tcp_req_err                    - (no such function)
observable
  queued     It was queued
not observable
  accepted   It was accepted
note: not observable here: accepted
note: not attached: tcp_check_req: no

VM-EXIT rc=1
";

    const WAYS: &[Attach] = &[Attach::Fentry, Attach::Kprobe];

    #[test]
    fn the_page_says_what_was_found() {
        let found = Found {
            kernel: kernels::find("6.1").unwrap(),
            version: "6.1.192-2".into(),
            by_attach: answers(CONSOLE, WAYS).unwrap(),
        };
        let page = page(&[found]);
        for line in [
            "| 6.1 | 6.1.0 | 6.1.192-2 | fentry 1 of 1, kprobe 1 of 2 |",
            "| `tcp_check_req` | `*sock (*sock)` | attached | REFUSED: no |",
            "| `tcp_req_err` |  | - (no such function) | - (no such function) |",
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

    #[test]
    fn a_way_that_does_not_attach_is_an_error() {
        let error = answers("ANSWER fentry\nerror: no\n", &[Attach::Fentry]).unwrap_err();
        assert!(error.to_string().contains("error: no"));
        assert!(answers(CONSOLE, &[Attach::Tracepoint]).is_err());
    }

    #[test]
    fn the_committed_page_has_every_kernel() {
        let page = fs::read_to_string(page_path()).unwrap();
        for kernel in KERNELS {
            assert!(
                page.contains(&heading(kernel)),
                "docs/kernels.md lacks {}: run `cargo xtask vm kernels`",
                kernel.name
            );
        }
    }
}

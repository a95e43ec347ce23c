//! `cargo xtask vm kernels`: what queue-trace finds on each kernel, written to
//! docs/kernels.md. Tests nothing: that is the matrix's part.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use super::{
    cache,
    checked::{self, Checked},
    guest::Guest,
    kernels::{self, Attach, Kernel},
    machine::{self, Size},
    page::{self, Found},
};
use crate::{
    artifacts::{self, For},
    workspace,
};

/// Boots the named kernels once, or all of them, and writes their part of the page.
pub fn run(names: &[String]) -> Result<()> {
    let mut found = Vec::new();
    for kernel in kernels::select(names)? {
        let program = artifacts::program(For::Guest(kernel.architecture))?;
        let on_kernel = ask(kernel, &program).with_context(|| format!("kernel {}", kernel.name))?;
        println!("{:<15} {}", kernel.name, on_kernel.version);
        found.push(on_kernel);
    }
    let path = page_path();
    let page = match names {
        [] => page::page(&found),
        _ => {
            let before = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            page::renewed(&before, &found)
        }
    };
    fs::write(&path, page).with_context(|| format!("cannot write {}", path.display()))?;
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
    // However busy this machine is, the self-test must not be late by the guest's clock.
    let size = Size {
        icount: true,
        ..Size::default()
    };
    let run = machine::run(&image, &guest, &size, &name, false)?;
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
        architecture: kernel.architecture,
        trees: Vec::new(),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::kernels::KERNELS;

    #[test]
    fn each_way_has_its_answer() {
        let console = "boot\nANSWER fentry\nkernel  6.1.0\nhooks\n  a  fentry  int (*sock)\n\
                       observable\n  queued  It was queued\nANSWER kprobe\nkernel  6.1.0\n\
                       hooks\n  b  REFUSED: no\nobservable\n  accepted  It was accepted\n\
                       \nVM-EXIT rc=1\n";
        let answers = answers(console, &[Attach::Fentry, Attach::Kprobe]).unwrap();
        let observable = answers.iter().map(|(_, checked)| &checked.observable[..]);
        assert_eq!(observable.collect::<Vec<_>>(), [["queued"], ["accepted"]]);
        assert_eq!(answers[1].1.hooks[0].function, "b");
    }

    #[test]
    fn a_way_that_does_not_attach_is_an_error() {
        let error = answers("ANSWER fentry\nerror: no\n", &[Attach::Fentry]).unwrap_err();
        assert!(error.to_string().contains("error: no"));
        assert!(answers("ANSWER fentry\n", &[Attach::Kprobe]).is_err());
    }

    #[test]
    fn the_committed_page_has_every_kernel() {
        let committed = fs::read_to_string(page_path()).unwrap();
        for kernel in KERNELS {
            assert!(
                committed.contains(&page::heading(kernel)),
                "docs/kernels.md lacks {}: run `cargo xtask vm kernels`",
                kernel.name
            );
        }
    }
}

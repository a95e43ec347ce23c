//! `cargo xtask lint`: what the compiler does not check of the layout. No files import each
//! other in a circle, no folder imports against the flow (`floors`), every file says in its
//! header what it is for, no live test returns early without a reason (`early`), imports are in one
//! style, and the pages' prose wraps at one width.

mod circles;
mod early;
mod finding;
mod floors;
mod headers;
mod imports;
mod names;
pub mod prose;
mod source;

use std::path::Path;

use anyhow::{Result, bail};
use floors::Floors;
use names::Crate;
use source::Sources;

use crate::workspace;

/// The crates whose files form no circle, and the floors of those that have some.
const CRATES: [(&str, Option<&Floors>); 5] = [
    ("queue-trace/src/lib.rs", Some(&floors::USER_SIDE)),
    ("queue-trace-ebpf/src/main.rs", Some(&floors::KERNEL_SIDE)),
    ("queue-trace-common/src/lib.rs", None),
    ("tests/src/lib.rs", None),
    ("xtask/src/main.rs", None),
];

pub fn run() -> Result<()> {
    let root = workspace::root();
    let sources = Sources::read(&root)?;
    let mut findings = headers::findings(&sources);
    findings.extend(early::findings(&sources)?);
    findings.extend(imports::findings(&sources)?);
    findings.extend(prose::findings(&root)?);
    let mut edges = 0;
    for (name, floors) in CRATES {
        let imports = Crate::read(&sources, Path::new(name))?.imports();
        edges += imports.len();
        findings.extend(circles::findings(&imports));
        if let Some(floors) = floors {
            let folder = Path::new(name).parent().unwrap_or(Path::new(""));
            findings.extend(floors.findings(folder, &imports));
        }
    }
    findings.sort();
    for finding in &findings {
        println!("{finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    // A lint that has seen nothing finds nothing.
    println!(
        "{} files, {edges} imports between them: no circle, none against the flow",
        sources.len()
    );
    Ok(())
}

//! Any bytes as a kernel's types: checked, looked up, and the kernel judged from them. It must
//! not panic, nor go round in circles.
//!
//! `cargo xtask fuzz 600 --target types` runs it for ten minutes.

#![no_main]

use std::{fs, path::PathBuf, process, sync::LazyLock};

use libfuzzer_sys::fuzz_target;
use queue_trace::kernel::{btf::Types, judgement::Judgement};

/// Rewritten for each run: types are read from a file.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let name = format!("queue-trace-fuzz-{}.btf", process::id());
    std::env::temp_dir().join(name)
});

fuzz_target!(|bytes: &[u8]| {
    fs::write(&*FILE, bytes).expect("there is room for a file");
    let Ok(types) = Types::of_file(&FILE) else {
        return;
    };
    let _ = types.fields();
    let _ = types.kernel();
    let judgement = Judgement::of(&types, Some("6.8.0"));
    let _ = judgement.best();
});

//! `queue-trace check --btf`: what it says of the kernels in `tests/kernels`, byte for byte.
//! `BLESS=1 cargo test --test check` writes what it says now.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![cfg(target_os = "linux")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels")
}

fn check(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_queue-trace"))
        .current_dir(folder())
        .arg("check")
        .args(args)
        .output()
        .unwrap()
}

fn kernels() -> Vec<String> {
    let files = fs::read_dir(folder()).unwrap();
    let files = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut kernels: Vec<_> = files
        .filter_map(|file| Some(file.strip_suffix(".btf")?.to_owned()))
        .collect();
    kernels.sort();
    assert!(kernels.len() >= 11, "{kernels:?}");
    kernels
}

#[test]
fn each_kernel_is_judged_as_before() {
    for kernel in kernels() {
        let file = format!("{kernel}.btf");
        let text = check(&["--btf", &file, "--release", &kernel]);
        let json = check(&["--btf", &file, "--release", &kernel, "--json"]);
        assert_eq!(text.status.code(), json.status.code());
        for (ending, output) in [("txt", text), ("json", json)] {
            assert!(output.stderr.is_empty(), "{output:?}");
            let said = String::from_utf8(output.stdout)
                .unwrap()
                .replace(env!("CARGO_PKG_VERSION"), "VERSION");
            let path = folder().join(format!("{kernel}.{ending}"));
            if std::env::var_os("BLESS").is_some() {
                fs::write(&path, &said).unwrap();
            }
            let before = fs::read_to_string(&path).unwrap_or_default();
            assert_eq!(said, before, "{}", path.display());
        }
    }
}

#[test]
fn the_status_is_the_verdict() {
    let status = |args: &[&str]| check(args).status.code();
    assert_eq!(status(&["--btf", "7.3-x86_64.btf"]), Some(0));
    let too_old = ["--btf", "7.3-x86_64.btf", "--release", "4.18.0-553.el8"];
    assert_eq!(status(&too_old), Some(2));
    assert_eq!(status(&["--btf", "README.md"]), Some(2));
    assert_eq!(status(&["--btf", "/dev/zero"]), Some(2));
    assert_eq!(status(&["--release", "6.1"]), Some(2), "it needs --btf");
}

#[test]
fn what_cannot_be_judged_is_said() {
    let output = check(&["--btf", "README.md", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["type"], "check");
    assert_eq!(report["verdict"], "none");
    let error = report["error"].as_str().unwrap();
    assert!(error.contains("README.md: it is not BTF"), "{error}");
}

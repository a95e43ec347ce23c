//! `cargo xtask`: everything the project does to itself, from the BPF object to
//! the tests on real kernels. Parses, calls, prints the error; the work is in
//! the modules.

mod apt;
mod architecture;
mod artifacts;
mod bench;
mod beside;
mod bpf;
mod clean_root;
mod cross;
mod dependencies;
mod fuzz;
mod gate;
mod guide;
mod lint;
mod lint_table;
mod live;
mod metadata;
mod package;
mod peers;
mod process;
mod setup;
mod tested;
mod vm;
mod windows;
mod workspace;

use std::process::ExitCode;

use clap::Parser;

/// Builds, boots and tests queue-trace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
enum Task {
    /// Install what the BPF build and the tests need (Debian).
    Setup,
    /// Build the kernel side from source into queue-trace/bpf.
    BuildEbpf(bpf::Args),
    /// Fetch kernels, boot them, run the live tests on them.
    #[command(subcommand)]
    Vm(vm::Command),
    /// Run the live tests on this machine's own kernel.
    Live(live::Args),
    /// Build the static program as a tarball, a Debian or RPM package, or a container image.
    Package(package::Args),
    /// Run the agent beside Prometheus, VictoriaMetrics and systemd, which take what it tells.
    Peers(peers::Args),
    /// Measure what queue-trace costs, beside what others cost.
    Bench(bench::Args),
    /// Give the reader of recordings any bytes, for a while.
    Fuzz(fuzz::Args),
    /// Check the layout: circles, imports against the flow, headers, tests that end early.
    Lint,
    /// Check licences and sources of dependencies, by deny.toml.
    Dependencies,
    /// Check that what reads recordings builds for Windows.
    Windows,
    /// Make the pictures of the documentation.
    Pictures,
    /// Write the sessions of the documentation anew.
    Guide,
    /// Run every check there is, the fast ones first.
    Test(gate::Args),
}

fn main() -> ExitCode {
    let result = match Task::parse() {
        Task::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Task::BuildEbpf(args) => bpf::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Vm(command) => vm::run(command),
        Task::Live(args) => live::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Package(args) => package::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Peers(args) => peers::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Fuzz(args) => fuzz::run(&args).map(|()| ExitCode::SUCCESS),
        Task::Lint => lint::run().map(|()| ExitCode::SUCCESS),
        Task::Dependencies => dependencies::run().map(|()| ExitCode::SUCCESS),
        Task::Windows => windows::run().map(|()| ExitCode::SUCCESS),
        Task::Pictures => guide::pictures().map(|()| ExitCode::SUCCESS),
        Task::Guide => guide::sessions().map(|()| ExitCode::SUCCESS),
        Task::Test(args) => gate::run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

//! What it costs: the same loads with nothing attached, with queue-trace, and with what
//! an engineer would use instead, in one run and in turn. `cargo xtask bench` builds and
//! starts this program, here or in a virtual machine.
//!
//! Every number that is compared comes from the same round as the number it is compared
//! with. Where the machine is emulated with a clock that counts instructions, times are
//! counts of instructions.

#![expect(
    clippy::unwrap_used,
    reason = "as in tests: what is not there is a failure, and says so"
)]

mod churn;
mod contender;
mod cpu;
mod idle;
mod late;
mod load;
mod scale;
mod soak;
mod spread;
mod table;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use contender::Contender;
use load::Load;
use table::Table;

/// Measures what queue-trace and others cost.
#[derive(Debug, Parser)]
struct Args {
    /// The program.
    #[arg(long)]
    program: PathBuf,
    /// How it attaches: fentry, kprobe or tracepoint.
    #[arg(long)]
    attach: String,
    /// The folder into which the others' packages were unpacked.
    #[arg(long)]
    rivals: Option<PathBuf>,
    /// Only the contenders of these names, and nothing attached. With `--idle`, of these: agent,
    /// node_exporter, ss, and nsenter, which is `ss` in all namespaces.
    #[arg(long)]
    only: Vec<String>,
    /// Rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// SYNs of a load.
    #[arg(long, default_value_t = 20_000)]
    syns: u32,
    /// Connections of a load.
    #[arg(long, default_value_t = 2_000)]
    connections: u32,
    /// The clock counts instructions.
    #[arg(long)]
    icount: bool,
    /// Instead of all this: flood for so many seconds, and watch the memory.
    #[arg(long)]
    soak: Option<u64>,
    /// Instead of all this: so many listeners that come and go, and a namespace for each
    /// twenty. Fails if a sum is wrong.
    #[arg(long)]
    churn: Option<u64>,
    /// Instead of all this: what the agent, node_exporter and `ss` take in so many seconds in
    /// which nothing happens.
    #[arg(long)]
    idle: Option<u64>,
    /// With `--idle`: not at rest, but while a full accept queue drops so many SYNs a second. Fails
    /// if the agent does not count them.
    #[arg(long, requires = "idle")]
    flood: Option<u32>,
    /// Instead of all this: an overflow of two seconds after so many in which all is well. Fails
    /// if the agent's incident recording lacks the minute before, or tells a wrong cause.
    #[arg(long)]
    late: Option<u64>,
    /// node_exporter, for `--idle`.
    #[arg(long)]
    node_exporter: Option<PathBuf>,
    /// Instead of all this: what a look takes, by how many listeners there are, and what `--spread`
    /// prints.
    #[arg(long)]
    scale: bool,
    /// Instead of all this: what a SYN takes, by how many CPUs send and how many clients there are.
    #[arg(long)]
    spread: bool,
}

fn main() -> ExitCode {
    // bpftrace starts a command once it is attached: this one.
    if std::env::args().nth(1).as_deref() == Some(contender::READY) {
        contender::say_ready();
    }
    let args = Args::parse();
    if let Some(seconds) = args.soak {
        soak::run(&args.program, &args.attach, Duration::from_secs(seconds));
        return ExitCode::SUCCESS;
    }
    if let Some(listeners) = args.churn {
        churn::run(&args.program, &args.attach, listeners);
        return ExitCode::SUCCESS;
    }
    if let Some(seconds) = args.idle {
        let idle = idle::Idle {
            program: &args.program,
            attach: &args.attach,
            node_exporter: args.node_exporter.as_deref(),
            time: Duration::from_secs(seconds),
            only: &args.only,
        };
        match args.flood {
            Some(rate) => idle.flooded(rate),
            None => idle.at_rest(),
        }
        return ExitCode::SUCCESS;
    }
    if let Some(seconds) = args.late {
        late::run(&args.program, &args.attach, Duration::from_secs(seconds));
        return ExitCode::SUCCESS;
    }
    if args.scale {
        scale::run(&args.program, &args.attach);
        println!();
    }
    if args.scale || args.spread {
        spread::run(&args.program, &args.attach);
        return ExitCode::SUCCESS;
    }
    let contenders = Contender::all(&args.program, &args.attach, args.rivals.as_deref());
    let contenders: Vec<_> = contenders
        .into_iter()
        .filter(|contender| {
            args.only.is_empty() || contender.is_nothing() || args.only.contains(&contender.name)
        })
        .collect();
    load::settle();
    let loads = Load::possible();
    let mut table = Table::new(args.icount, loads.clone());
    let mut complete = true;
    for round in 0..args.rounds {
        for turn in 0..contenders.len() {
            // Another one begins each round, so that none always runs after the same.
            let contender = &contenders[(turn + round) % contenders.len()];
            eprintln!("round {}: {}", round + 1, contender.name);
            let Some(mut running) = contender.start() else {
                table.failed(contender);
                continue;
            };
            table.started(contender, &running);
            for &load in &loads {
                let cost = load.run(args.syns, args.connections, &running);
                table.add(round, contender, load, cost);
            }
            running.count_programs(true);
            for &load in &loads {
                let cost = load.run(args.syns, args.connections, &running);
                if contender.is_own {
                    for program in load.unseen_by(&args.attach, &cost) {
                        eprintln!("{}: {program} did not see all of it", load.name());
                        complete = false;
                    }
                }
                table.add_programs(contender, load, cost);
            }
            running.count_programs(false);
            table.ended(contender, &running);
            running.stop();
        }
    }
    print!("{table}");
    if complete {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

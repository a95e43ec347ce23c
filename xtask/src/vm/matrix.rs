//! `cargo xtask vm test`: the live tests on every kernel, in every way to
//! attach, a few machines at a time, and one table of what came of it.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use anyhow::{Context, Result, anyhow};

use super::{
    cache::{self, Image},
    console,
    guest::Guest,
    kernels::{self, Attach, Kernel},
    machine::{self, End, Run, Size},
};
use crate::{
    architecture::Architecture,
    artifacts::{self, For},
    live,
};

#[derive(clap::Args, Default)]
pub struct Args {
    /// The kernels; all of them if none is named.
    pub kernels: Vec<String>,
    /// How queue-trace attaches; by default every way that is tested on the kernel.
    #[arg(long, value_enum)]
    pub attach: Vec<Attach>,
    #[command(flatten)]
    pub size: Size,
    /// Arguments of the test program: names of tests, or its options.
    #[arg(last = true)]
    pub filters: Vec<String>,
    /// Which part of the tests it is, where several machines share them.
    #[arg(skip)]
    pub part: Option<&'static str>,
}

/// Servers that the live tests look at; `cargo xtask setup` installs them.
const SERVERS: [&str; 2] = ["/usr/sbin/nginx", "/usr/bin/redis-server"];

/// Tests of servers that are more than a program and its libraries, or too big to travel in
/// memory, and of a disk: on this machine's own kernel only.
const HERE_ONLY: [&str; 11] = [
    "defaults",
    "incidents",
    "refused::haproxy_restarts",
    "servers::python",
    "servers::node",
    "diagnose::a_default_backlog_that_nobody_chose",
    "diagnose::a_backlog_that_somebody_chose",
    "diagnose::a_server_out_of_file_descriptors",
    "stall::an_interpreter_with_its_lock_held",
    "stall::disk",
    "stall::systemd",
];

/// One machine to boot.
struct Job<'a> {
    kernel: &'static Kernel,
    attach: Attach,
    args: &'a Args,
}

/// What came of it.
#[derive(Debug, PartialEq)]
struct Outcome {
    passed: u32,
    failed: u32,
    seconds: u64,
    /// What went wrong other than tests that failed.
    fault: Option<String>,
}

/// What every machine gets.
struct Plan {
    /// The programs, for each architecture that is needed.
    built: Vec<Built>,
}

/// What is tested, and the tests.
struct Built {
    architecture: Architecture,
    program: PathBuf,
    tests: PathBuf,
}

impl Built {
    fn of(architecture: Architecture) -> Result<Self> {
        let place = For::Guest(architecture);
        Ok(Self {
            architecture,
            program: artifacts::program(place)?,
            tests: artifacts::live_tests(place)?,
        })
    }
}

/// Builds the programs of every architecture, so that nobody waits for them later.
pub fn build() -> Result<()> {
    for architecture in Architecture::ALL {
        Built::of(architecture)?;
    }
    Ok(())
}

/// Whether all tests passed.
pub fn run(args: &Args) -> Result<bool> {
    run_all(std::slice::from_ref(args))
}

/// The same for several at once, so that no processor waits between them. Those that take
/// longest had better be the first.
pub fn run_all(all: &[Args]) -> Result<bool> {
    let mut jobs = Vec::new();
    for args in all {
        for kernel in kernels::select(&args.kernels)? {
            args.size.check(kernel.architecture)?;
            // One after the other, before any machine waits for it.
            cache::cached_or_fetched(kernel)?;
            jobs.extend(args.jobs(kernel));
        }
    }
    let needed = |architecture: &Architecture| {
        let mut jobs = jobs.iter();
        jobs.any(|job| job.kernel.architecture == *architecture)
    };
    let needed = Architecture::ALL.into_iter().filter(needed);
    let plan = Plan {
        built: needed.map(Built::of).collect::<Result<_>>()?,
    };
    let outcomes = plan.run(&jobs)?;

    println!(
        "\n{:<15} {:<20} {:<10} {:>6} {:>6} {:>7}",
        "kernel", "version", "attach", "passed", "failed", "seconds"
    );
    for (Job { kernel, attach, .. }, (image, outcome)) in jobs.iter().zip(&outcomes) {
        let Outcome {
            passed,
            failed,
            seconds,
            fault,
        } = outcome;
        let (name, version, attach) = (kernel.name, &image.version, attach.name());
        let fault = fault.as_deref().unwrap_or_default();
        let row = format!(
            "{name:<15} {version:<20} {attach:<10} {passed:>6} {failed:>6} {seconds:>7}  {fault}"
        );
        println!("{}", row.trim_end());
    }
    let sum = |count: fn(&Outcome) -> u32| {
        outcomes
            .iter()
            .map(|(_, outcome)| count(outcome))
            .sum::<u32>()
    };
    let (passed, failed) = (sum(|outcome| outcome.passed), sum(|outcome| outcome.failed));
    println!("\n{passed} passed, {failed} failed");
    Ok(failed == 0)
}

impl Args {
    fn jobs(&self, kernel: &'static Kernel) -> impl Iterator<Item = Job<'_>> {
        let attach = if self.attach.is_empty() {
            kernel.attach
        } else {
            &self.attach
        };
        let job = move |&attach| Job {
            kernel,
            attach,
            args: self,
        };
        attach.iter().map(job)
    }
}

impl Plan {
    /// Runs the jobs on as many threads as there are processors for their machines.
    fn run(&self, jobs: &[Job<'_>]) -> Result<Vec<(Image, Outcome)>> {
        let processors = thread::available_parallelism()?.get();
        let each = jobs.iter().map(|job| job.args.size.smp).max();
        let workers = processors / each.unwrap_or(1).max(1) as usize;
        let workers = workers.clamp(1, jobs.len().max(1));
        let next = AtomicUsize::new(0);
        let work = || -> Result<Vec<_>> {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(job) = jobs.get(index) else {
                    return Ok(done);
                };
                done.push((index, self.boot(job)?));
            }
        };
        let mut outcomes = Vec::new();
        thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            for worker in workers {
                outcomes.extend(
                    worker
                        .join()
                        .map_err(|_| anyhow!("a machine's thread panicked"))??,
                );
            }
            anyhow::Ok(())
        })?;
        outcomes.sort_by_key(|(index, _)| *index);
        Ok(outcomes.into_iter().map(|(_, outcome)| outcome).collect())
    }

    fn boot(&self, job: &Job<'_>) -> Result<(Image, Outcome)> {
        let image = cache::cached_or_fetched(job.kernel)?;
        let mut name = format!("{}-{}", job.kernel.name, job.attach.name());
        if job.args.size.smp > 1 {
            name += &format!("-{}cpu", job.args.size.smp);
        }
        if let Some(part) = job.args.part {
            name += &format!("-{part}");
        }
        let run = machine::run(&image, &self.guest(job)?, &job.args.size, &name, false)?;
        let outcome = judge(&run);

        let Outcome {
            passed,
            failed,
            seconds,
            fault,
        } = &outcome;
        if *failed > 0 {
            let fault = fault.as_deref().unwrap_or("tests failed");
            println!(
                "\n{name}: {fault}; the end of {}:\n{}\n",
                run.log.display(),
                console::tail(&run.console, TAIL)
            );
        }
        println!(
            "{name}: {passed} passed, {failed} failed, {seconds} s, {}",
            run.log.display()
        );
        Ok((image, outcome))
    }

    fn guest(&self, job: &Job<'_>) -> Result<Guest> {
        let architecture = job.kernel.architecture;
        let mut built = self.built.iter();
        let built = built
            .find(|built| built.architecture == architecture)
            .with_context(|| format!("nothing was built for {}", architecture.name()))?;
        let in_guest =
            |path: &PathBuf| format!("/bin/{}", path.file_name().unwrap_or_default().display());
        let environment = live::environment(&in_guest(&built.program), job.attach);
        let mut command = vec![in_guest(&built.tests), "--test-threads=1".into()];
        command.extend(job.args.filters.iter().cloned());
        let skipped = job.left_out(job.args.size.smp);
        let skipped = skipped.flat_map(|group| ["--skip".into(), format!("{group}::")]);
        command.extend(skipped);
        let skipped = HERE_ONLY.iter().flat_map(|group| ["--skip", group]);
        command.extend(skipped.map(String::from));
        Ok(Guest {
            architecture,
            trees: Vec::new(),
            programs: [&built.program, &built.tests]
                .into_iter()
                .cloned()
                .chain(SERVERS.map(PathBuf::from))
                .collect(),
            environment: environment
                .map(|(name, value)| (name.to_string(), value))
                .to_vec(),
            command,
        })
    }
}

/// Groups of tests that are the same on every kernel and however it attaches: of the
/// command line and the output, and with real servers.
const ANYWHERE: [&str; 8] = [
    "bad_input",
    "check",
    "demo",
    "ending",
    "output",
    "recordings",
    "servers",
    "top",
];

/// Where they run, in the first of the kernel's ways to attach: an old kernel and a new one.
const ENDS: [&str; 2] = ["5.10", "7.2"];

/// Groups that are the same however it attaches: what user space makes of the counts, and
/// filters, which are the same code in every program.
const ANYHOW: [&str; 7] = [
    "audit",
    "diagnose",
    "filters",
    "ledger",
    "loss",
    "namespaces",
    "records",
];

/// Groups that need several processors.
const SEVERAL: [&str; 1] = ["concurrency"];

impl Job<'_> {
    /// The groups of tests that the machine leaves to others.
    fn left_out(&self, processors: u32) -> impl Iterator<Item = &'static str> {
        let first = self.kernel.attach.first() == Some(&self.attach);
        let at_an_end = ENDS.contains(&self.kernel.name);
        [
            (!first || !at_an_end, ANYWHERE.as_slice()),
            (!first, &ANYHOW),
            (processors < 2, &SEVERAL),
        ]
        .into_iter()
        .filter(|(left_out, _)| *left_out)
        .flat_map(|(_, groups)| groups)
        .copied()
    }
}

/// How much of a failing machine's console is shown.
const TAIL: usize = 60;

/// A machine that failed counts as one failed test, if no test did.
fn judge(run: &Run) -> Outcome {
    let counts = console::test_counts(&run.console);
    let (passed, failed) = counts.unwrap_or_default();
    let fault = run.fault().or_else(|| match (counts, &run.end) {
        (None, _) => Some("the tests gave no result".into()),
        (Some((0, 0)), _) => Some("no test ran".into()),
        (Some((_, 0)), End::Exit(status @ 1..)) => {
            Some(format!("the test program ended with status {status}"))
        }
        _ => None,
    });
    let failed = if fault.is_some() {
        failed.max(1)
    } else {
        failed
    };
    Outcome {
        passed,
        failed,
        seconds: run.took.as_secs(),
        fault,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn judged(end: End, console: &str) -> (u32, u32, Option<String>) {
        let run = Run {
            end,
            console: console.into(),
            log: PathBuf::new(),
            took: Duration::ZERO,
        };
        let outcome = judge(&run);
        (outcome.passed, outcome.failed, outcome.fault)
    }

    #[test]
    fn every_group_runs_on_some_machine() {
        let left_out = |name: &str, attach, processors| {
            let kernel = kernels::find(name).unwrap();
            let args = &Args::default();
            let job = Job {
                kernel,
                attach,
                args,
            };
            job.left_out(processors).collect::<Vec<_>>()
        };
        assert_eq!(left_out("7.2", Attach::Fentry, 1), SEVERAL);
        assert!(left_out("5.10", Attach::Fentry, 4).is_empty());
        let kprobe = left_out("5.10", Attach::Kprobe, 4);
        assert_eq!(kprobe, [&ANYWHERE[..], &ANYHOW].concat());
        assert!(ENDS.iter().all(|name| kernels::find(name).is_ok()));
    }

    #[test]
    fn outcomes_are_those_of_the_tests_and_of_the_machine() {
        let good = "test result: ok. 9 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out";
        let bad = "test result: FAILED. 8 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(judged(End::Exit(0), good), (9, 0, None));
        assert_eq!(judged(End::Exit(101), bad), (8, 1, None));
        assert_eq!(
            judged(End::Exit(0), ""),
            (0, 1, Some("the tests gave no result".into()))
        );
        let none = "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 90 filtered out";
        assert_eq!(
            judged(End::Exit(0), none),
            (0, 1, Some("no test ran".into()))
        );
        assert_eq!(
            judged(End::Exit(3), good),
            (9, 1, Some("the test program ended with status 3".into()))
        );
        let (passed, failed, fault) =
            judged(End::Exit(0), &format!("[    1.000000] BUG: x\n{good}"));
        assert_eq!((passed, failed), (9, 1));
        assert!(fault.unwrap().contains("BUG: x"));
    }
}

//! The numbers of all rounds, and the table made of them.

use std::{collections::BTreeMap, fmt, time::Duration};

use crate::{
    contender::{Contender, Programs, Running},
    load::{Cost, Load},
};

/// The contender whose programs are shown one by one.
const OWN: &str = "queue-trace";

/// What was measured so far.
pub struct Table {
    icount: bool,
    loads: Vec<Load>,
    /// In the order in which they were first seen.
    contenders: Vec<String>,
    costs: BTreeMap<(Load, String), BTreeMap<usize, Cost>>,
    programs: BTreeMap<(Load, String), Vec<Cost>>,
    takes: BTreeMap<String, Takes>,
}

/// What a contender takes besides time under load.
#[derive(Default)]
struct Takes {
    start: Vec<f64>,
    start_cpu: Vec<f64>,
    at_rest: Vec<f64>,
    after: Vec<f64>,
    maps: Vec<f64>,
    failed: bool,
}

impl Table {
    /// An empty one. `icount`: the clock counts instructions.
    pub fn new(icount: bool, loads: Vec<Load>) -> Self {
        Self {
            icount,
            loads,
            contenders: Vec::new(),
            costs: BTreeMap::new(),
            programs: BTreeMap::new(),
            takes: BTreeMap::new(),
        }
    }

    fn of(&mut self, contender: &Contender) -> &mut Takes {
        if !self.contenders.contains(&contender.name) {
            self.contenders.push(contender.name.clone());
        }
        self.takes.entry(contender.name.clone()).or_default()
    }

    /// It does not run here.
    pub fn failed(&mut self, contender: &Contender) {
        self.of(contender).failed = true;
    }

    /// It is attached.
    pub fn started(&mut self, contender: &Contender, running: &Running) {
        let takes = self.of(contender);
        if running.is_something() {
            takes.start.push(running.start.as_secs_f64() * 1e3);
            takes.start_cpu.push(running.start_cpu.as_secs_f64() * 1e3);
            takes.at_rest.push(running.resident() as f64);
            takes.maps.push(running.maps() as f64);
        }
    }

    /// It has seen all loads.
    pub fn ended(&mut self, contender: &Contender, running: &Running) {
        let takes = self.of(contender);
        if running.is_something() {
            takes.after.push(running.resident() as f64);
        }
    }

    /// What a load took with it.
    pub fn add(&mut self, round: usize, contender: &Contender, load: Load, cost: Cost) {
        let key = (load, contender.name.clone());
        self.costs.entry(key).or_default().insert(round, cost);
    }

    /// What its programs did under a load, which was counted.
    pub fn add_programs(&mut self, contender: &Contender, load: Load, cost: Cost) {
        let key = (load, contender.name.clone());
        self.programs.entry(key).or_default().push(cost);
    }

    fn loads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = if self.icount { "instr." } else { "ns" };
        let nothing = &self.contenders.first().cloned().unwrap_or_default();
        for &load in &self.loads {
            writeln!(f, "\n{}", load.name())?;
            writeln!(
                f,
                "  {:<27} {:>9}  {:<20}  {:>9} {:>7} {:>7}  {:>9} {:>5}",
                "",
                "a second",
                "of nothing attached",
                format!("{unit} CPU"),
                "more",
                "tracer",
                "in progr.",
                "runs"
            )?;
            let Some(base) = self.costs.get(&(load, nothing.clone())) else {
                continue;
            };
            let base_cpu = median(base.values().map(per_operation));
            for name in &self.contenders {
                let Some(rounds) = self.costs.get(&(load, name.clone())) else {
                    writeln!(f, "  {name:<27} does not run here")?;
                    continue;
                };
                let rates = median(rounds.values().map(rate));
                let ratios: Vec<_> = rounds
                    .iter()
                    .filter_map(|(round, cost)| Some(rate(cost) / rate(base.get(round)?)))
                    .collect();
                let cpu = median(rounds.values().map(per_operation));
                let tracer = median(rounds.values().map(of_the_tracer));
                let programs = &self.programs[&(load, name.clone())];
                let each = |of: fn(&Programs) -> u64| {
                    let each = |cost: &Cost| {
                        let all = cost.programs.values().copied();
                        let all = all.fold(Programs::default(), Programs::and);
                        of(&all) as f64 / f64::from(cost.operations)
                    };
                    median(programs.iter().map(each))
                };
                let (inside, runs) = (each(|sum| sum.nanoseconds), each(|sum| sum.runs));
                writeln!(
                    f,
                    "  {name:<27} {rates:>9.0}  {:<20}  {cpu:>9.0} {:>7.0} {tracer:>7.0}  {inside:>9.0} {runs:>5.1}",
                    spread(&ratios),
                    cpu - base_cpu,
                )?;
            }
        }
        Ok(())
    }

    /// What each program of queue-trace took for each run, in the round measured last.
    fn programs(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for ((load, name), rounds) in &self.programs {
            if name != OWN {
                continue;
            }
            writeln!(f, "\n{}, by program of {OWN}", load.name())?;
            for (name, did) in rounds.last().iter().flat_map(|cost| &cost.programs) {
                let each = did.nanoseconds as f64 / did.runs as f64;
                writeln!(f, "  {name:<27} {each:>9.0} a run, {} runs", did.runs)?;
            }
        }
        Ok(())
    }

    fn takes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "\n  {:<27} {:>10} {:>10}  {:>16} {:>12} {:>12}",
            "", "start, ms", "CPU, ms", "resident, KiB", "after", "maps, KiB"
        )?;
        for name in &self.contenders {
            let takes = &self.takes[name];
            if takes.start.is_empty() {
                continue;
            }
            writeln!(
                f,
                "  {name:<27} {:>10.0} {:>10.0}  {:>16.0} {:>12.0} {:>12.0}",
                median(takes.start.iter().copied()),
                median(takes.start_cpu.iter().copied()),
                median(takes.at_rest.iter().copied()),
                median(takes.after.iter().copied()),
                median(takes.maps.iter().copied()),
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.loads(f)?;
        self.programs(f)?;
        self.takes(f)
    }
}

fn rate(cost: &Cost) -> f64 {
    f64::from(cost.operations) / cost.elapsed.as_secs_f64()
}

fn per_operation(cost: &Cost) -> f64 {
    each(cost.cpu, cost)
}

fn of_the_tracer(cost: &Cost) -> f64 {
    each(cost.tracer, cost)
}

/// Nanoseconds for each operation.
fn each(time: Duration, cost: &Cost) -> f64 {
    time.as_secs_f64() * 1e9 / f64::from(cost.operations)
}

/// `median (min–max)`.
fn spread(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!(
        "{:.3} ({least:.3}-{most:.3})",
        median(values.iter().copied())
    )
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => 0.0,
        n if n % 2 == 1 => values[n / 2],
        n => f64::midpoint(values[n / 2 - 1], values[n / 2]),
    }
}

//! What the cgroups of a process and the host let it do: CPU quota, limits of memory, freezer,
//! pressure. Version 2 of cgroups and version 1, wherever the hierarchies are mounted. A limit of
//! an outer cgroup holds as well, so all of them up to the root are read.

use std::path::{Path, PathBuf};

use crate::{
    kernel::text::text,
    model::stall::{Files, Memory, Pressure, Quota, Stall},
};

/// So many levels are read.
const LEVELS: usize = 8;

/// Where the hierarchies are mounted.
#[derive(Debug, Default)]
pub struct Cgroups {
    mounts: Option<Vec<Mount>>,
}

/// A hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mount {
    point: PathBuf,
    /// The cgroup that is at its top.
    root: String,
    /// Its controllers; `None`: it is that of version 2.
    controllers: Option<Vec<String>>,
}

/// The cgroups of a process, the innermost first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Levels {
    unified: Vec<PathBuf>,
    cpu: Vec<PathBuf>,
    memory: Vec<PathBuf>,
    freezer: Vec<PathBuf>,
    /// What could not be found, a sentence each.
    pub unread: Vec<String>,
}

impl Cgroups {
    /// Those of the process whose folder in /proc this is.
    pub fn of_process(&mut self, folder: &Path) -> Levels {
        let mounts = self.mounts.get_or_insert_with(|| {
            let text = text(Path::new("/proc/self/mountinfo")).unwrap_or_default();
            text.lines().filter_map(Mount::of).collect()
        });
        match text(&folder.join("cgroup")) {
            Ok(text) => Levels::of(&text, mounts),
            Err(error) => Levels {
                unread: vec![format!("its cgroup cannot be read: {error}")],
                ..Levels::default()
            },
        }
    }
}

impl Mount {
    /// A line of mountinfo.
    fn of(line: &str) -> Option<Self> {
        let (front, back) = line.split_once(" - ")?;
        let mut front = front.split(' ').skip(3);
        let root = front.next()?.to_owned();
        let point = PathBuf::from(front.next()?.replace("\\040", " "));
        let mut back = back.split(' ');
        let controllers = match back.next()? {
            "cgroup2" => None,
            "cgroup" => Some(back.nth(1)?.split(',').map(str::to_owned).collect()),
            _ => return None,
        };
        Some(Self {
            point,
            root,
            controllers,
        })
    }

    /// The folders of a cgroup and of those around it; `None` if it is not below this mount.
    fn levels(&self, path: &str) -> Option<Vec<PathBuf>> {
        let inside = match self.root.as_str() {
            "/" => path,
            root => path.strip_prefix(root)?,
        };
        let inside = inside.trim_start_matches('/');
        if inside.split('/').any(|part| part == "..") {
            return None;
        }
        let mut levels = Vec::new();
        let mut folder = self.point.join(inside);
        while levels.len() < LEVELS && folder.starts_with(&self.point) {
            levels.push(folder.clone());
            if !folder.pop() {
                break;
            }
        }
        Some(levels)
    }
}

impl Levels {
    /// From the text of `/proc/PID/cgroup`.
    fn of(text: &str, mounts: &[Mount]) -> Self {
        let mut levels = Self::default();
        let mut outside = false;
        for line in text.lines() {
            let mut parts = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let mut find = |is: &dyn Fn(&Mount) -> bool| {
                let mount = mounts.iter().find(|mount| is(mount))?;
                let found = mount.levels(path);
                outside |= found.is_none();
                found
            };
            if controllers.is_empty() {
                let is = |mount: &Mount| mount.controllers.is_none();
                levels.unified = find(&is).unwrap_or_default();
                continue;
            }
            for controller in controllers.split(',') {
                let is = |mount: &Mount| {
                    let own = mount.controllers.iter().flatten();
                    own.into_iter().any(|own| own == controller)
                };
                let place = match controller {
                    "cpu" => &mut levels.cpu,
                    "memory" => &mut levels.memory,
                    "freezer" => &mut levels.freezer,
                    _ => continue,
                };
                *place = find(&is).unwrap_or_default();
            }
        }
        if outside {
            let note = "a cgroup of it is outside of those that are mounted here: its limits cannot be read";
            levels.unread.push(note.to_owned());
        } else if levels.unified.is_empty() && levels.cpu.is_empty() {
            let note = "no hierarchy of cgroups is mounted here that has its CPU quota";
            levels.unread.push(note.to_owned());
        }
        levels
    }
}

/// What was counted until a moment.
#[derive(Debug, Default)]
pub struct Reading {
    cpu: Vec<(PathBuf, Throttled)>,
    memory: Vec<(PathBuf, Hits)>,
    /// Microseconds of pressure: CPU, disks, memory.
    pressure: [Option<u64>; 3],
    host: [Option<u64>; 3],
    frozen_by: Option<PathBuf>,
    /// What could not be read, a sentence each.
    pub unread: Vec<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Throttled {
    periods: u64,
    throttled: u64,
    us: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Hits {
    high: u64,
    max: u64,
}

const KINDS: [&str; 3] = ["cpu", "io", "memory"];

impl Reading {
    /// Of these cgroups, and of the host.
    pub fn read(levels: &Levels, proc: &Path) -> Self {
        let mut reading = Self::default();
        for folder in levels.unified.iter().chain(&levels.cpu) {
            let stat = text(&folder.join("cpu.stat")).ok();
            if let Some(throttled) = stat.and_then(|stat| Throttled::of(&stat)) {
                reading.cpu.push((folder.clone(), throttled));
            }
        }
        for folder in levels.unified.iter().chain(&levels.memory) {
            if let Some(hits) = Hits::read(folder) {
                reading.memory.push((folder.clone(), hits));
            }
        }
        let frozen = levels
            .unified
            .iter()
            .map(|level| (level.join("cgroup.freeze"), level.join("cgroup.freeze")));
        let older = levels.freezer.iter();
        let older = older.map(|level| {
            (
                level.join("freezer.self_freezing"),
                level.join("freezer.state"),
            )
        });
        let is_on = |file: &Path| text(file).is_ok_and(|text| text.trim() == "1");
        let mut frozen = frozen.chain(older);
        reading.frozen_by = frozen.find(|(file, _)| is_on(file)).map(|(_, file)| file);
        let pressures = |folder: &Path, suffix: &str| {
            KINDS.map(|kind| {
                let text = text(&folder.join(format!("{kind}{suffix}"))).ok()?;
                some_total(&text)
            })
        };
        reading.host = pressures(&proc.join("pressure"), "");
        // The root has none of its own: that is the host's.
        if let Some(own) = levels.unified.first().filter(|_| levels.unified.len() > 1) {
            reading.pressure = pressures(own, ".pressure");
        }
        if reading.host == [None; 3] {
            let note = "this kernel tells no pressure (CONFIG_PSI, or psi=1 on its command line)";
            reading.unread.push(note.to_owned());
        } else if reading.pressure == [None; 3] && !levels.cpu.is_empty() {
            let note = "the pressure of its cgroup is told by cgroup v2 only";
            reading.unread.push(note.to_owned());
        }
        reading
    }

    /// Whether one of the cgroups is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen_by.is_some()
    }

    /// Adds what was counted since `before`, where it is worse than what is there.
    pub fn add_to(&self, before: Option<&Self>, stall: &mut Stall) {
        let shown = |file: PathBuf| file.to_string_lossy().into_owned();
        if let Some(file) = &self.frozen_by {
            stall.frozen_by = Some(shown(file.clone()));
        }
        for (folder, now) in &self.cpu {
            let then = before.and_then(|before| of(&before.cpu, folder));
            let quota = quota(folder, then.map(|then| now.since(then)));
            let worse = |known: &Quota| quota.throttled_us > known.throttled_us;
            if quota.quota_us.is_some() && stall.cpu.as_ref().is_none_or(worse) {
                stall.cpu = Some(quota);
            }
        }
        for (folder, now) in &self.memory {
            let then = before.and_then(|before| of(&before.memory, folder));
            let memory = memory(folder, then.map(|then| now.since(then)));
            let times = |memory: &Memory| {
                let both = [memory.high_times, memory.max_times];
                both.into_iter().flatten().fold(0, u64::saturating_add)
            };
            let worse = |known: &Memory| times(&memory) > times(known);
            if (memory.high.is_some() || memory.max.is_some())
                && stall.memory.as_ref().is_none_or(worse)
            {
                stall.memory = Some(memory);
            }
        }
        let own = before.and_then(|before| between(&self.pressure, &before.pressure));
        let worse = |known: &Pressure| own.is_some_and(|own| own.cpu_us > known.cpu_us);
        if stall.pressure.as_ref().is_none_or(worse) {
            stall.pressure = own;
        }
    }

    /// The host's pressure since `before`.
    pub fn host_pressure(&self, before: &Self) -> Option<Pressure> {
        between(&self.host, &before.host)
    }
}

fn of<T: Copy>(all: &[(PathBuf, T)], folder: &Path) -> Option<T> {
    let found = all.iter().find(|(known, _)| known == folder);
    found.map(|(_, value)| *value)
}

fn between(now: &[Option<u64>; 3], before: &[Option<u64>; 3]) -> Option<Pressure> {
    let since = |at: usize| Some(now[at]?.saturating_sub(before[at]?));
    let pressure = Pressure {
        cpu_us: since(0),
        io_us: since(1),
        memory_us: since(2),
    };
    Some(pressure).filter(|pressure| !pressure.is_unknown())
}

/// The value behind a name, a line each.
fn value(text: &str, name: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let (known, value) = line.split_once(' ')?;
        (known == name).then(|| value.trim().parse().ok())?
    })
}

impl Throttled {
    /// The text of `cpu.stat`: version 2 counts microseconds, version 1 nanoseconds.
    fn of(text: &str) -> Option<Self> {
        let us = value(text, "throttled_usec");
        Some(Self {
            periods: value(text, "nr_periods")?,
            throttled: value(text, "nr_throttled")?,
            us: us.or_else(|| Some(value(text, "throttled_time")? / 1000))?,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            periods: self.periods.saturating_sub(before.periods),
            throttled: self.throttled.saturating_sub(before.throttled),
            us: self.us.saturating_sub(before.us),
        }
    }
}

impl Hits {
    fn read(folder: &Path) -> Option<Self> {
        let local = text(&folder.join("memory.events.local"));
        if let Ok(events) = local.or_else(|_| text(&folder.join("memory.events"))) {
            return Some(Self {
                high: value(&events, "high")?,
                max: value(&events, "max")?,
            });
        }
        let failed = number(&folder.join("memory.failcnt"))?;
        Some(Self {
            high: 0,
            max: failed,
        })
    }

    fn since(self, before: Self) -> Self {
        Self {
            high: self.high.saturating_sub(before.high),
            max: self.max.saturating_sub(before.max),
        }
    }
}

/// A file with one number; `max`, and a number beyond all memory, is none.
fn number(file: &Path) -> Option<u64> {
    let number = text(file).ok()?.trim().parse().ok()?;
    (number < 1 << 60).then_some(number)
}

fn quota(folder: &Path, since: Option<Throttled>) -> Quota {
    let unified = folder.join("cpu.max");
    let (file, quota_us, period_us) = match text(&unified) {
        Ok(text) => {
            let mut words = text.split_whitespace().map(|word| word.parse().ok());
            (unified, words.next().flatten(), words.next().flatten())
        }
        Err(_) => {
            let file = folder.join("cpu.cfs_quota_us");
            // -1: none.
            (
                file.clone(),
                number(&file),
                number(&folder.join("cpu.cfs_period_us")),
            )
        }
    };
    Quota {
        file: file.to_string_lossy().into_owned(),
        quota_us,
        period_us,
        periods: since.map(|since| since.periods),
        throttled_periods: since.map(|since| since.throttled),
        throttled_us: since.map(|since| since.us),
    }
}

fn memory(folder: &Path, since: Option<Hits>) -> Memory {
    let high = number(&folder.join("memory.high"));
    let max = number(&folder.join("memory.max"));
    let older = folder.join("memory.limit_in_bytes");
    // A wait for `high` may be longer than the time since the look before, in which it was not hit
    // anew.
    let only_max = since.is_some_and(|since| since.high == 0 && since.max > 0);
    let file = if older.exists() {
        older.clone()
    } else if high.is_some() && !only_max {
        folder.join("memory.high")
    } else {
        folder.join("memory.max")
    };
    let current = number(&folder.join("memory.current"));
    Memory {
        file: file.to_string_lossy().into_owned(),
        current: current.or_else(|| number(&folder.join("memory.usage_in_bytes"))),
        high,
        max: max.or_else(|| number(&older)),
        high_times: since.map(|since| since.high),
        max_times: since.map(|since| since.max),
    }
}

/// The microseconds in the line `some` of a file of pressure.
fn some_total(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.rsplit_once("total=")?.1.trim().parse().ok()
}

/// Open files of the host.
pub fn files(proc: &Path) -> Option<Files> {
    let text = text(&proc.join("sys/fs/file-nr")).ok()?;
    let mut words = text.split_whitespace();
    Some(Files {
        open: words.next()?.parse().ok()?,
        limit: words.nth(1)?.parse().ok()?,
        exempt: false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mounts() -> Vec<Mount> {
        let lines = [
            "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate",
            "31 25 0:27 / /v1/cpu rw - cgroup cgroup rw,cpu,cpuacct",
            "32 25 0:28 /docker/abc /v1/memory rw - cgroup cgroup rw,memory",
            "33 25 0:29 / / rw - ext4 /dev/vda rw",
        ];
        lines.iter().filter_map(|line| Mount::of(line)).collect()
    }

    #[test]
    fn a_cgroup_and_those_around_it() {
        let mounts = mounts();
        assert_eq!(mounts.len(), 3);
        let text = "4:cpu,cpuacct:/a\n3:memory:/docker/abc/x\n0::/system.slice/nginx.service\n";
        let levels = Levels::of(text, &mounts);
        let paths = |all: &[&str]| all.iter().map(PathBuf::from).collect::<Vec<_>>();
        let unified = [
            "/sys/fs/cgroup/system.slice/nginx.service",
            "/sys/fs/cgroup/system.slice",
            "/sys/fs/cgroup",
        ];
        assert_eq!(levels.unified, paths(&unified));
        assert_eq!(levels.cpu, paths(&["/v1/cpu/a", "/v1/cpu"]));
        assert_eq!(levels.memory, paths(&["/v1/memory/x", "/v1/memory"]));
        assert!(levels.unread.is_empty());
        // What cannot be seen from here is said.
        let outside = Levels::of("0::/../../other\n", &mounts);
        assert!(outside.unified.is_empty() && outside.unread[0].contains("outside"));
        let outside = Levels::of("3:memory:/elsewhere\n", &mounts);
        assert!(outside.memory.is_empty() && outside.unread[0].contains("outside"));
        assert!(Levels::of("0::/a\n", &[]).unread[0].contains("no hierarchy"));
    }

    #[test]
    fn both_versions_count_what_was_throttled() {
        let two = "usage_usec 9\nnr_periods 20\nnr_throttled 19\nthrottled_usec 1800000\n";
        let one = "nr_periods 20\nnr_throttled 19\nthrottled_time 1800000000\n";
        let expected = Throttled {
            periods: 20,
            throttled: 19,
            us: 1_800_000,
        };
        assert_eq!(Throttled::of(two), Some(expected));
        assert_eq!(Throttled::of(one), Some(expected));
        // A cgroup without the controller.
        assert_eq!(Throttled::of("usage_usec 9\n"), None);
    }

    #[test]
    fn pressure_and_files() {
        let text =
            "some avg10=80.67 avg60=74.21 avg300=51.12 total=8058163689\nfull avg10=0.00 total=1\n";
        assert_eq!(some_total(text), Some(8_058_163_689));
        assert_eq!(some_total(""), None);
        let now = [Some(10), None, Some(7)];
        let since = between(&now, &[Some(4), Some(1), None]).unwrap();
        assert_eq!(
            (since.cpu_us, since.io_us, since.memory_us),
            (Some(6), None, None)
        );
        assert!(between(&[None; 3], &now).is_none());
        assert!(files(Path::new("/proc")).is_some_and(|files| files.open > 0 && files.limit > 0));
    }

    /// The outer cgroup's quota holds too, and the one that throttles most is told.
    #[test]
    fn the_worst_of_all_levels() {
        let top = std::env::temp_dir().join(format!("queue-trace-groups-{}", std::process::id()));
        let inner = top.join("pod/container");
        std::fs::create_dir_all(&inner).unwrap();
        let stat = |periods, throttled, us| {
            format!("nr_periods {periods}\nnr_throttled {throttled}\nthrottled_usec {us}\n")
        };
        let write = |folder: &Path, name: &str, text: &str| {
            std::fs::write(folder.join(name), text).unwrap();
        };
        let levels = Levels {
            unified: vec![inner.clone(), top.join("pod"), top.clone()],
            ..Levels::default()
        };
        let read = |us: u64| {
            write(&inner, "cpu.stat", &stat(0, 0, 0));
            write(&inner, "cpu.max", "max 100000\n");
            write(
                &top.join("pod"),
                "cpu.stat",
                &stat(us / 100_000, us / 100_000, us),
            );
            write(&top.join("pod"), "cpu.max", "5000 100000\n");
            write(
                &inner,
                "memory.events",
                &format!("low 0\nhigh {us}\nmax 0\noom 0\n"),
            );
            write(&inner, "memory.high", "1048576\n");
            write(&inner, "memory.max", "max\n");
            write(&inner, "cgroup.freeze", "0\n");
            write(&top.join("pod"), "cgroup.freeze", "1\n");
            Reading::read(&levels, &top)
        };
        let (before, now) = (read(1_000_000), read(1_900_000));
        let mut stall = Stall::default();
        now.add_to(Some(&before), &mut stall);
        let cpu = stall.cpu.unwrap();
        assert!(cpu.file.ends_with("pod/cpu.max"), "{cpu:?}");
        assert_eq!((cpu.quota_us, cpu.period_us), (Some(5000), Some(100_000)));
        assert_eq!(
            (cpu.throttled_periods, cpu.throttled_us),
            (Some(9), Some(900_000))
        );
        let memory = stall.memory.unwrap();
        assert!(memory.file.ends_with("container/memory.high"), "{memory:?}");
        assert_eq!(
            (memory.high, memory.max, memory.high_times),
            (Some(1 << 20), None, Some(900_000))
        );
        assert!(stall.frozen_by.unwrap().ends_with("pod/cgroup.freeze"));
        // The setting that is none is never the one that was hit.
        let mut still = Stall::default();
        now.add_to(Some(&now), &mut still);
        let memory = still.memory.unwrap();
        assert!(memory.file.ends_with("container/memory.high"), "{memory:?}");
        // A first look has settings and no rates.
        let mut first = Stall::default();
        now.add_to(None, &mut first);
        assert_eq!(first.cpu.unwrap().throttled_us, None);
        std::fs::remove_dir_all(top).unwrap();
    }
}

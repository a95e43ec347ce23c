//! Where a listener runs: its cgroup, and what the path of a cgroup says of systemd's,
//! a container runtime's and Kubernetes' naming. A pure function of the path, but for
//! finding it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use crate::model::snapshot::Snapshot;

/// A cgroup, and what its path says. Absent: it does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Cgroup {
    /// Path in the cgroup hierarchy.
    pub path: Option<String>,
    /// systemd unit.
    pub unit: Option<String>,
    /// Container id.
    pub container: Option<String>,
    /// Kubernetes pod uid.
    pub pod: Option<String>,
}

impl Cgroup {
    /// What a path says.
    #[must_use]
    pub fn of_path(path: &str) -> Self {
        let mut cgroup = Self {
            path: Some(path.to_owned()),
            ..Self::default()
        };
        for part in path.split('/') {
            if let Some(container) = container(part) {
                cgroup.container = Some(container.to_owned());
            } else if let Some(pod) = pod(part) {
                cgroup.pod = Some(pod);
            } else if is_unit(part) {
                cgroup.unit = Some(part.to_owned());
            }
        }
        cgroup
    }

    /// That of a process; `None` if it is gone or may not be looked at.
    #[must_use]
    pub fn of_process(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        in_hierarchy(&text).map(Self::of_path)
    }

    /// Notes on a listener that it runs there.
    pub fn describe(&self, row: &mut Snapshot) {
        row.cgroup.clone_from(&self.path);
        row.unit.clone_from(&self.unit);
        row.container.clone_from(&self.container);
        row.pod.clone_from(&self.pod);
    }
}

/// The folders of the unified hierarchy by their inode numbers, which are the numbers of the
/// cgroups: found by one walk, and by another one only where a number is not among them.
#[derive(Debug, Default)]
pub struct Folders {
    by_number: HashMap<u64, Cgroup>,
    /// Numbers that the latest walk did not find.
    missing: HashSet<u64>,
}

impl Folders {
    /// The cgroup of a number; `None` if it is gone, or there is no unified hierarchy.
    pub fn cgroup(&mut self, number: u64) -> Option<&Cgroup> {
        if !self.by_number.contains_key(&number) && self.missing.insert(number) {
            self.walk();
        }
        self.by_number.get(&number)
    }

    fn walk(&mut self) {
        self.by_number.clear();
        if let Some(root) = root() {
            self.walk_below(&root);
        }
        let found = &self.by_number;
        self.missing.retain(|number| !found.contains_key(number));
    }

    fn walk_below(&mut self, root: &Path) {
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            // What is gone meanwhile is left out; the others are still to be found.
            let Ok(number) = fs::metadata(&folder).map(|folder| folder.ino()) else {
                continue;
            };
            if let Ok(path) = folder.strip_prefix(root) {
                let cgroup = Cgroup::of_path(&format!("/{}", path.display()));
                self.by_number.insert(number, cgroup);
            }
            let inside = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(
                inside
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
    }
}

/// The path in `/proc/PID/cgroup`: that in the unified hierarchy (`0::`), and where nothing
/// lives in it, systemd's.
fn in_hierarchy(text: &str) -> Option<&str> {
    let unified = text.lines().find_map(|line| line.strip_prefix("0::"));
    let systemd = text
        .lines()
        .find_map(|line| line.split_once(":name=systemd:").map(|(_, path)| path));
    match (unified, systemd) {
        (Some("/") | None, Some(path)) => Some(path),
        (unified, _) => unified,
    }
}

/// Where the unified hierarchy is mounted.
fn root() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    mounts.lines().find_map(|line| {
        let (front, back) = line.split_once(" - ")?;
        back.starts_with("cgroup2 ").then_some(())?;
        front.split(' ').nth(4).map(PathBuf::from)
    })
}

/// A container's id: 64 hexadecimal digits, bare (Docker with cgroupfs) or between a
/// runtime's name and `.scope` (`docker-ID.scope`, `cri-containerd-ID.scope`,
/// `crio-ID.scope`, `libpod-ID.scope`).
fn container(part: &str) -> Option<&str> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let id = name.rsplit('-').next()?;
    let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then_some(id)
}

/// A pod's uid: `podUID`, or `kubepods-burstable-podUID.slice` with `_` for `-`.
fn pod(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match name.rsplit_once("-pod") {
        Some((before, uid)) if before.starts_with("kubepods") => uid,
        _ => name.strip_prefix("pod")?,
    };
    let uid = uid.replace('_', "-");
    let is_uid = uid.len() >= 32 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    is_uid.then_some(uid)
}

fn is_unit(part: &str) -> bool {
    [".service", ".scope", ".socket"]
        .iter()
        .any(|suffix| part.ends_with(suffix))
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicBool, Ordering},
        thread,
    };

    use super::*;

    const ID: &str = "3601745b3bd54d9780436faa5f0e4f7203601745b3bd54d9780436faa5f0e4f7";
    const UID: &str = "1d2e6d39-4a6c-4b2e-9d43-6a1f0a4a1c11";

    #[track_caller]
    fn assert_says(path: &str, unit: Option<&str>, container: Option<&str>, pod: Option<&str>) {
        let cgroup = Cgroup::of_path(path);
        assert_eq!(cgroup.path.as_deref(), Some(path));
        assert_eq!(cgroup.unit.as_deref(), unit, "{path}");
        assert_eq!(cgroup.container.as_deref(), container, "{path}");
        assert_eq!(cgroup.pod.as_deref(), pod, "{path}");
    }

    #[test]
    fn paths_of_the_known_runtimes() {
        let escaped = UID.replace('-', "_");
        assert_says("/", None, None, None);
        assert_says(
            "/system.slice/nginx.service",
            Some("nginx.service"),
            None,
            None,
        );
        assert_says(
            &format!("/system.slice/docker-{ID}.scope"),
            None,
            Some(ID),
            None,
        );
        assert_says(&format!("/docker/{ID}"), None, Some(ID), None);
        assert_says(
            &format!("/machine.slice/libpod-{ID}.scope/container"),
            None,
            Some(ID),
            None,
        );
        assert_says(
            &format!("/kubepods/burstable/pod{UID}/{ID}"),
            None,
            Some(ID),
            Some(UID),
        );
        assert_says(
            &format!(
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{escaped}.slice/cri-containerd-{ID}.scope"
            ),
            None,
            Some(ID),
            Some(UID),
        );
        assert_says(
            "/user.slice/user-1000.slice/user@1000.service/app.slice/podman.service",
            Some("podman.service"),
            None,
            None,
        );
    }

    #[test]
    fn the_unified_hierarchy_goes_first_unless_nothing_lives_in_it() {
        assert_eq!(in_hierarchy("0::/a\n"), Some("/a"));
        assert_eq!(
            in_hierarchy("4:memory:/x\n1:name=systemd:/b\n0::/\n"),
            Some("/b")
        );
        assert_eq!(in_hierarchy("4:memory:/x\n"), None);
    }

    /// Cgroups come and go while they are listed, as on every host with short-lived units.
    #[test]
    fn folders_that_vanish_hide_no_others() {
        let root = std::env::temp_dir().join(format!("queue-trace-cgroups-{}", std::process::id()));
        let lasting = |number: u32| root.join(format!("a{number}.service")).join("inside");
        for number in 0..20 {
            fs::create_dir_all(lasting(number)).unwrap();
        }
        let number_of = |path: PathBuf| fs::metadata(path).unwrap().ino();
        let numbers: Vec<_> = (0..20).map(lasting).map(number_of).collect();
        let over = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                for number in (0..20).cycle() {
                    let brief = root.join(format!("b{number}.scope"));
                    fs::create_dir_all(brief.join("inside")).unwrap();
                    fs::remove_dir_all(brief).unwrap();
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
            let all_found = (0..200).all(|_| {
                let mut folders = Folders::default();
                folders.walk_below(&root);
                numbers
                    .iter()
                    .all(|number| folders.by_number.contains_key(number))
            });
            over.store(true, Ordering::Relaxed);
            assert!(all_found);
        });
        fs::remove_dir_all(root).unwrap();
    }
}

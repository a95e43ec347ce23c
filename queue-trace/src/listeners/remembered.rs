//! Whose each listener was when it was looked at last: what closed has no owner any more.

use std::collections::{HashMap, HashSet};

use crate::model::{
    snapshot::Snapshot,
    socket::{Listener, Process},
};

/// By the socket's inode number.
#[derive(Debug, Default)]
pub struct Remembered {
    owners: HashMap<u64, RememberedOwner>,
    /// Those of which nobody was found: processes of another PID namespace hold them, or the kernel
    /// does.
    nobody: HashSet<u64>,
}

#[derive(Debug, Clone)]
struct RememberedOwner {
    listener: Listener,
    processes: Vec<Process>,
    cgroup: [Option<String>; 4],
    /// Whose default its limit is, and the limit.
    default_of: Option<(String, u32)>,
    device_name: Option<String>,
}

impl Remembered {
    /// Takes in whose the listeners are, and adds it to those of which it is not known now.
    pub fn complete(&mut self, rows: &mut [Snapshot]) {
        for row in rows {
            let Some(inode) = row.listener.inode else {
                continue;
            };
            if row.processes.as_ref().is_none_or(Vec::is_empty) || row.is_closed() {
                if let Some(owner) = self.owners.get(&inode) {
                    owner.add_to(row);
                }
            } else {
                self.owners.insert(inode, RememberedOwner::of(row));
                self.nobody.remove(&inode);
            }
            if row.is_closed() {
                self.owners.remove(&inode);
                self.nobody.remove(&inode);
            }
        }
    }

    /// Owners of all of these were looked for: notes of whom none was found.
    pub fn asked(&mut self, rows: &[Snapshot]) {
        let nobodys = rows
            .iter()
            .filter(|row| !row.is_closed() && row.processes.as_ref().is_none_or(Vec::is_empty));
        self.nobody
            .extend(nobodys.filter_map(|row| row.listener.inode));
    }

    /// Whether it is known whose all of these are, or that nobody is found.
    pub fn knows(&self, rows: &[Snapshot]) -> bool {
        let mut inodes = rows.iter().map(|row| row.listener.inode);
        inodes.all(|inode| {
            inode.is_none_or(|inode| {
                self.owners.contains_key(&inode) || self.nobody.contains(&inode)
            })
        })
    }

    /// Forgets all listeners but these, which are all that there are.
    pub fn keep_only(&mut self, rows: &[Snapshot]) {
        let there: HashSet<_> = rows.iter().filter_map(|row| row.listener.inode).collect();
        self.keep(|inode| there.contains(&inode));
    }

    /// Forgets the others.
    pub fn keep(&mut self, is_kept: impl Fn(u64) -> bool) {
        self.owners.retain(|inode, _| is_kept(*inode));
        self.nobody.retain(|inode| is_kept(*inode));
    }
}

impl RememberedOwner {
    fn of(row: &Snapshot) -> Self {
        Self {
            listener: row.listener,
            processes: row.processes.clone().unwrap_or_default(),
            device_name: row.device_name.clone(),
            default_of: row.default_of.clone().zip(row.limit()),
            cgroup: [&row.cgroup, &row.unit, &row.container, &row.pod].map(Clone::clone),
        }
    }

    fn add_to(&self, row: &mut Snapshot) {
        row.listener.cookie = row.listener.cookie.or(self.listener.cookie);
        row.listener.device = row.listener.device.or(self.listener.device);
        if row.device_name.is_none() {
            row.device_name.clone_from(&self.device_name);
        }
        if row.processes.as_ref().is_none_or(Vec::is_empty) {
            row.processes = Some(self.processes.clone());
        }
        if let Some((name, limit)) = &self.default_of
            && row.default_of.is_none()
            && row.limit() == Some(*limit)
        {
            row.default_of = Some(name.clone());
        }
        if row.cgroup.is_none() {
            let [cgroup, unit, container, pod] = self.cgroup.clone();
            (row.cgroup, row.unit) = (cgroup, unit);
            (row.container, row.pod) = (container, pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(inode: u64, processes: &[u32], closed: bool) -> Snapshot {
        let process = |pid: &u32| Process {
            pid: *pid,
            comm: "server".to_owned(),
        };
        Snapshot {
            listener: Listener {
                inode: Some(inode),
                cookie: (!closed).then_some(7),
                ..Listener::default()
            },
            processes: Some(processes.iter().map(process).collect()),
            closed: closed.then_some(true),
            ..Snapshot::default()
        }
    }

    #[test]
    fn that_nobody_is_found_is_known_too() {
        let mut remembered = Remembered::default();
        let rows = [row(1, &[10], false), row(2, &[], false)];
        remembered.complete(&mut rows.clone());
        assert!(remembered.knows(&rows[..1]) && !remembered.knows(&rows));
        remembered.asked(&rows);
        assert!(remembered.knows(&rows));
        // Somebody is found later, and it closes.
        remembered.complete(&mut [row(2, &[20], false)]);
        assert!(remembered.knows(&rows));
        remembered.complete(&mut [row(2, &[], true)]);
        assert!(!remembered.knows(&rows));
        remembered.asked(&rows);
        remembered.keep_only(&rows[..1]);
        assert!(!remembered.knows(&rows));
    }

    #[test]
    fn what_closed_has_its_last_owner() {
        let mut remembered = Remembered::default();
        remembered.complete(&mut [row(1, &[10], false), row(2, &[20], false)]);
        let mut rows = [row(1, &[], true)];
        remembered.complete(&mut rows);
        assert_eq!(rows[0].processes.as_ref().unwrap()[0].pid, 10);
        assert_eq!(rows[0].listener.cookie, Some(7));
        // The number may be another socket's by now.
        let mut rows = [row(1, &[], true)];
        remembered.complete(&mut rows);
        assert_eq!(rows[0].processes, Some(Vec::new()));
        remembered.keep_only(&[]);
        let mut rows = [row(2, &[], true)];
        remembered.complete(&mut rows);
        assert_eq!(rows[0].processes, Some(Vec::new()));
    }
}

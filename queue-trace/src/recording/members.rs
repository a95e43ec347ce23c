//! Which listeners are those that the user named by whose they are, or by their device. A
//! listener is known by its socket, and whose it is from the `listener` lines, so the same code
//! serves live and from a recording. A service that starts again has new sockets, which belong to
//! it like the old ones.

use std::collections::HashMap;

use crate::{
    model::{snapshot::Snapshot, socket::Listener},
    options::{ListenerFilters, NetDevice, ProcessArg},
};

/// Sockets that are remembered.
const MOST: usize = 1 << 16;

/// Which sockets belong to what was named.
#[derive(Debug, Clone)]
pub struct Members {
    named: ListenerFilters,
    /// By namespace and inode number.
    sockets: HashMap<(u32, u64), bool>,
    /// How many of the sockets on a port belong to it, and how many do not.
    ports: HashMap<(u32, u16), (u32, u32)>,
}

/// Whether a listener belongs to what was named.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Belongs {
    /// It does.
    Yes,
    /// It does not.
    No,
    /// Nothing has said yet whose it is.
    Unknown,
}

impl Members {
    /// Nothing is known yet. `None` if no owner and no device is named.
    #[must_use]
    pub fn of(filters: &ListenerFilters) -> Option<Self> {
        filters.name_owners().then(|| Self {
            named: filters.clone(),
            sockets: HashMap::new(),
            ports: HashMap::new(),
        })
    }

    /// Takes in what a snapshot says, and whether its listener belongs to what was named.
    pub fn learn(&mut self, snapshot: &Snapshot) -> Belongs {
        let listener = &snapshot.listener;
        let Some(inode) = listener.inode else {
            return Belongs::Unknown;
        };
        let socket = (snapshot.netns, inode);
        let before = self.sockets.get(&socket).copied();
        // What belonged to it once still does: a socket may be held by another process, too.
        let now = match (before, says(&self.named, snapshot)) {
            (Some(true), _) => Some(true),
            (before, now) => now.or(before),
        };
        let Some(belongs) = now else {
            return Belongs::Unknown;
        };
        if before != now && (before.is_some() || self.sockets.len() < MOST) {
            self.sockets.insert(socket, belongs);
            let (members, others) = self
                .ports
                .entry((snapshot.netns, listener.port))
                .or_default();
            if before.is_some() {
                *others = others.saturating_sub(1);
            }
            *(if belongs { members } else { others }) += 1;
        }
        if belongs { Belongs::Yes } else { Belongs::No }
    }

    /// Whether what happened at a listener belongs to what was named. Where only its port is
    /// known, it does if all listeners on the port do.
    #[must_use]
    pub fn has(&self, netns: u32, listener: &Listener) -> Belongs {
        let known = match listener.inode {
            Some(inode) => self.sockets.get(&(netns, inode)).copied(),
            None => match self.ports.get(&(netns, listener.port)) {
                Some((1.., 0)) => Some(true),
                Some((0, 1..)) => Some(false),
                _ => None,
            },
        };
        match known {
            Some(true) => Belongs::Yes,
            Some(false) => Belongs::No,
            None => Belongs::Unknown,
        }
    }

    /// Whether any listener belongs to what was named.
    #[must_use]
    pub fn any(&self) -> bool {
        self.sockets.values().any(|belongs| *belongs)
    }

    /// Whether a row of the table of listeners is wanted: one of an unknown owner is not.
    pub fn takes(&mut self, row: &Snapshot) -> bool {
        self.learn(row) == Belongs::Yes
    }
}

/// Whether a snapshot is of what was named; `None` if it does not say.
fn says(named: &ListenerFilters, snapshot: &Snapshot) -> Option<bool> {
    let says = [
        any(&named.processes, |wanted| is_held_by(wanted, snapshot)),
        any(&named.units, |wanted| {
            in_cgroup(snapshot, snapshot.unit.as_ref(), |unit| unit == wanted)
        }),
        any(&named.containers, |wanted| {
            in_cgroup(snapshot, snapshot.container.as_ref(), |id| {
                id.starts_with(wanted.as_str())
            })
        }),
        any(&named.pods, |wanted| is_in_pod(wanted, snapshot)),
        any(&named.devices, |wanted| is_on(wanted, snapshot)),
    ];
    // Each kind of filter narrows the others.
    if says.contains(&Some(false)) {
        return Some(false);
    }
    says.iter().all(Option::is_some).then_some(true)
}

/// Whether one of the values fits; of none all are wanted.
fn any<T>(wanted: &[T], fits: impl Fn(&T) -> Option<bool>) -> Option<bool> {
    if wanted.is_empty() {
        return Some(true);
    }
    let mut unknown = false;
    for one in wanted {
        match fits(one) {
            Some(true) => return Some(true),
            Some(false) => {}
            None => unknown = true,
        }
    }
    (!unknown).then_some(false)
}

fn is_held_by(wanted: &ProcessArg, snapshot: &Snapshot) -> Option<bool> {
    let processes = snapshot.processes.as_ref()?;
    if processes.is_empty() {
        return None;
    }
    Some(processes.iter().any(|process| match wanted {
        ProcessArg::Pid(pid) => process.pid == *pid,
        ProcessArg::Name(name) => process.comm == *name,
    }))
}

/// Whether a word of the cgroup's path fits; one that the path does not have does not.
fn in_cgroup(
    snapshot: &Snapshot,
    word: Option<&String>,
    fits: impl Fn(&String) -> bool,
) -> Option<bool> {
    snapshot.cgroup.as_ref()?;
    Some(word.is_some_and(fits))
}

/// By its uid, or by its name, with its namespace or without.
fn is_in_pod(wanted: &String, snapshot: &Snapshot) -> Option<bool> {
    let Some(uid) = &snapshot.pod else {
        return snapshot.cgroup.as_ref().map(|_| false);
    };
    if uid == wanted {
        return Some(true);
    }
    let full = snapshot.pod_name.as_ref()?;
    let short = full.split_once('/').map(|(_, name)| name);
    Some(full == wanted || short == Some(wanted))
}

fn is_on(wanted: &NetDevice, snapshot: &Snapshot) -> Option<bool> {
    let Some(device) = snapshot.listener.device else {
        return Some(false);
    };
    match wanted {
        NetDevice::Number(number) => Some(device == *number),
        NetDevice::Name(name) => Some(snapshot.device_name.as_ref()? == name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::socket::Process;

    fn row(inode: u64, port: u16) -> Snapshot {
        Snapshot {
            netns: 7,
            listener: Listener {
                port,
                inode: Some(inode),
                ..Listener::default()
            },
            ..Snapshot::default()
        }
    }

    fn held_by(inode: u64, port: u16, pid: u32, comm: &str) -> Snapshot {
        Snapshot {
            processes: Some(vec![Process {
                pid,
                comm: comm.to_owned(),
            }]),
            ..row(inode, port)
        }
    }

    fn process(name: &str) -> Members {
        Members::of(&ListenerFilters {
            processes: vec![name.parse().unwrap()],
            ..ListenerFilters::default()
        })
        .unwrap()
    }

    #[test]
    fn nothing_named_is_no_filter() {
        let ports = ListenerFilters {
            ports: vec![80..=80],
            ..ListenerFilters::default()
        };
        assert!(Members::of(&ports).is_none());
    }

    #[test]
    fn a_process_is_followed_as_it_starts_again() {
        let mut members = process("nginx");
        assert_eq!(members.learn(&held_by(1, 80, 10, "nginx")), Belongs::Yes);
        assert_eq!(members.learn(&held_by(2, 81, 11, "redis")), Belongs::No);
        // The end of the first, and another one on another port.
        let closed = Snapshot {
            processes: Some(Vec::new()),
            closed: Some(true),
            ..row(1, 80)
        };
        assert_eq!(members.learn(&closed), Belongs::Yes);
        assert_eq!(members.learn(&held_by(3, 8080, 12, "nginx")), Belongs::Yes);
        assert_eq!(members.has(7, &row(1, 80).listener), Belongs::Yes);
        assert_eq!(members.has(7, &row(3, 8080).listener), Belongs::Yes);
        assert_eq!(members.has(7, &row(2, 81).listener), Belongs::No);
        assert_eq!(members.has(8, &row(1, 80).listener), Belongs::Unknown);
        assert_eq!(members.has(7, &row(4, 80).listener), Belongs::Unknown);
    }

    #[test]
    fn a_number_is_one_process_and_a_long_name_is_cut_as_the_kernel_cuts_it() {
        let mut members = process("12");
        assert_eq!(members.learn(&held_by(1, 80, 12, "a")), Belongs::Yes);
        assert_eq!(members.learn(&held_by(2, 80, 13, "12")), Belongs::No);
        let mut members = process("a-server-with-a-long-name");
        let row = held_by(1, 80, 12, "a-server-with-a");
        assert_eq!(members.learn(&row), Belongs::Yes);
    }

    #[test]
    fn an_owner_that_is_not_known_is_neither() {
        let mut members = process("nginx");
        let nobody = Snapshot {
            processes: Some(Vec::new()),
            ..row(1, 80)
        };
        assert_eq!(members.learn(&nobody), Belongs::Unknown);
        assert!(!members.takes(&nobody));
        // It is renamed after it began to listen.
        assert_eq!(members.learn(&held_by(1, 80, 10, "sh")), Belongs::No);
        assert_eq!(members.learn(&held_by(1, 80, 10, "nginx")), Belongs::Yes);
        let by_port = Listener {
            port: 80,
            ..Listener::default()
        };
        assert_eq!(members.has(7, &by_port), Belongs::Yes);
        members.learn(&held_by(2, 80, 11, "redis"));
        // Of two listeners on the port one is another's.
        assert_eq!(members.has(7, &by_port), Belongs::Unknown);
    }

    #[test]
    fn units_containers_and_pods_are_words_of_the_cgroup() {
        let of = |filters: ListenerFilters| Members::of(&filters).unwrap();
        let text = |text: &str| vec![text.to_owned()];
        let nginx = Snapshot {
            cgroup: Some("/system.slice/nginx.service".to_owned()),
            unit: Some("nginx.service".to_owned()),
            ..row(1, 80)
        };
        let pod = Snapshot {
            cgroup: Some("/kubepods/pod-uid/id".to_owned()),
            container: Some("0123456789abcdef".to_owned()),
            pod: Some("11-22".to_owned()),
            pod_name: Some("shop/web-1".to_owned()),
            ..row(2, 80)
        };
        let nowhere = row(3, 80);
        let mut unit = of(ListenerFilters {
            units: text("nginx.service"),
            ..ListenerFilters::default()
        });
        assert_eq!(
            [&nginx, &pod, &nowhere].map(|row| unit.learn(row)),
            [Belongs::Yes, Belongs::No, Belongs::Unknown]
        );
        let mut container = of(ListenerFilters {
            containers: text("0123456789ab"),
            ..ListenerFilters::default()
        });
        assert_eq!(
            [&nginx, &pod, &nowhere].map(|row| container.learn(row)),
            [Belongs::No, Belongs::Yes, Belongs::Unknown]
        );
        for (wanted, belongs) in [
            ("11-22", Belongs::Yes),
            ("shop/web-1", Belongs::Yes),
            ("web-1", Belongs::Yes),
            ("other/web-1", Belongs::No),
            ("web", Belongs::No),
        ] {
            let mut members = of(ListenerFilters {
                pods: text(wanted),
                ..ListenerFilters::default()
            });
            assert_eq!(members.learn(&pod), belongs, "{wanted}");
            assert_eq!(members.learn(&nginx), Belongs::No);
        }
        // A name that nobody could find out.
        let nameless = Snapshot {
            pod_name: None,
            ..pod
        };
        let mut members = of(ListenerFilters {
            pods: text("web-1"),
            ..ListenerFilters::default()
        });
        assert_eq!(members.learn(&nameless), Belongs::Unknown);
    }

    #[test]
    fn kinds_of_filters_narrow_each_other_and_values_add_up() {
        let filters = ListenerFilters {
            processes: vec!["nginx".parse().unwrap(), "redis".parse().unwrap()],
            devices: vec!["eth1".parse().unwrap(), "4".parse().unwrap()],
            ..ListenerFilters::default()
        };
        let mut members = Members::of(&filters).unwrap();
        let on = |inode, comm, device: Option<u32>, name: Option<&str>| Snapshot {
            listener: Listener {
                device,
                ..row(inode, 80).listener
            },
            device_name: name.map(str::to_owned),
            ..held_by(inode, 80, 1, comm)
        };
        for (row, belongs) in [
            (on(1, "nginx", Some(4), None), Belongs::Yes),
            (on(2, "redis", Some(3), Some("eth1")), Belongs::Yes),
            (on(3, "nginx", Some(3), Some("eth0")), Belongs::No),
            (on(4, "nginx", Some(3), None), Belongs::Unknown),
            (on(5, "nginx", None, None), Belongs::No),
            (on(6, "sshd", Some(4), None), Belongs::No),
        ] {
            assert_eq!(members.learn(&row), belongs, "{row:?}");
        }
    }
}

//! Listeners that share an address and a port by `SO_REUSEPORT`: the kernel gives each new
//! connection to one of them, whether that one is stuck or not.

use std::collections::HashMap;

use crate::model::{
    snapshot::{Group, Snapshot},
    socket::Listener,
};

/// Finds the groups among listeners: those of one namespace with the same address, port, and
/// device. Their order is the kernel's if that is known, else that of their inode numbers.
pub fn find(rows: &mut [Snapshot]) {
    let mut groups: HashMap<_, Vec<usize>> = HashMap::new();
    for (at, row) in rows.iter().enumerate().filter(|(_, row)| !row.is_closed()) {
        let Listener {
            addr, port, device, ..
        } = row.listener;
        let key = (row.netns, addr, port, device);
        groups.entry(key).or_default().push(at);
    }
    for mut members in groups.into_values() {
        let known = members.iter().all(|at| rows[*at].place.is_some());
        if !known && members.len() == 1 {
            continue;
        }
        members.sort_by_key(|at| (rows[*at].place, rows[*at].listener.inode));
        for (made, at) in members.iter().enumerate() {
            let (index, size) = match rows[*at].place {
                Some(place) if known => place,
                _ => (made as u32, members.len() as u32),
            };
            rows[*at].group = Some(Group {
                index,
                size,
                ..Group::default()
            });
        }
        let idle = members.iter().any(|at| rows[*at].depth() == Some(0));
        // One that was given nothing has nothing to tell; its siblings' word has to do.
        let told = members.iter().any(|at| rows[*at].entered.is_some());
        let all: u64 = members.iter().map(|at| given(&rows[*at])).sum();
        for at in members {
            let full = rows[at].is_full();
            let given = given(&rows[at]);
            if let Some(group) = &mut rows[at].group {
                group.full_among_idle = (full && idle).then_some(true);
                group.share = (told && all > 0).then(|| given as f64 / all as f64);
            }
        }
    }
}

/// The connections that a listener was given: those that entered its queue, and those
/// that it had no room for.
fn given(row: &Snapshot) -> u64 {
    let drops = row.drops.as_ref();
    let refused = drops.and_then(|drops| drops.get("accept_queue_full"));
    row.entered.unwrap_or(0) + refused.copied().unwrap_or(0)
}

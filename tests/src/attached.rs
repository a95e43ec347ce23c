//! What a tracer has in the kernel, to see that nothing of it stays.

use std::{
    collections::HashSet,
    fs, thread,
    time::{Duration, Instant},
};

/// The BPF programs that a process holds, by number.
pub(crate) fn programs_of(pid: u32) -> HashSet<u32> {
    let Ok(folder) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else {
        // It has just ended.
        return HashSet::new();
    };
    folder
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path()).ok())
        .filter_map(|info| {
            let number = info.lines().find_map(|line| line.strip_prefix("prog_id:"));
            number?.trim().parse().ok()
        })
        .collect()
}

/// All of them are gone; the kernel frees them a moment after their last user.
pub(crate) fn assert_gone(programs: &HashSet<u32>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // One that vanishes while they are listed is an error of its own.
        let loaded: HashSet<_> = aya::programs::loaded_programs()
            .filter_map(|program| Some(program.ok()?.id()))
            .collect();
        let left: Vec<_> = programs.intersection(&loaded).collect();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < deadline, "BPF programs left: {left:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

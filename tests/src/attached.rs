//! What a tracer has in the kernel: its maps, and its programs, to see that nothing of them stays.

use std::{
    collections::HashSet,
    fs, thread,
    time::{Duration, Instant},
};

use aya::{
    maps::{MapData, MapInfo},
    programs::loaded_programs,
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

/// The map of that name that one of these programs uses.
pub(crate) fn map_of(programs: &HashSet<u32>, name: &str) -> MapData {
    let loaded = loaded_programs().filter_map(Result::ok);
    let own = loaded.filter(|program| programs.contains(&program.id()));
    let number = own
        .flat_map(|program| program.map_ids().unwrap().unwrap_or_default())
        .find(|number| MapInfo::from_id(*number).unwrap().name_as_str() == Some(name));
    MapData::from_id(number.expect("no program uses such a map")).unwrap()
}

/// All of them are gone; the kernel frees them a moment after their last user.
pub(crate) fn assert_gone(programs: &HashSet<u32>) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        // One that vanishes while they are listed is an error of its own.
        let loaded: HashSet<_> = loaded_programs()
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

/// How often those programs of that name ran while runs were counted.
pub(crate) fn runs_of(programs: &HashSet<u32>, name: &str) -> u64 {
    let all = loaded_programs().filter_map(Result::ok);
    all.filter(|program| programs.contains(&program.id()))
        .filter(|program| program.name_as_str() == Some(name))
        .map(|program| program.run_count())
        .sum()
}

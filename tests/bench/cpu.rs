//! CPU time in nanoseconds: of this process, of another one with all threads that it had, and of
//! the children that were waited for.

#![expect(unsafe_code, reason = "no crate here has another process's clock")]

use std::{fs, io, time::Duration};

/// Of this process.
pub fn own() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Of a process, by the kernel's clock for it: threads that ended are part of it.
///
/// # Errors
/// If there is no such process.
pub fn of(pid: u32) -> io::Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: both calls write one value to a place of its type, which lives until they return.
    let read = unsafe {
        match libc::clock_getcpuclockid(pid.cast_signed(), &raw mut clock) {
            0 => libc::clock_gettime(clock, &raw mut time),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    };
    if read != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Of the children that were waited for (`cutime` and `cstime`, proc_pid_stat(5)), in ticks of
/// the clock.
pub fn of_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields = rest.split(' ').skip(13).take(2);
    let ticks: u64 = fields.map(|field| field.parse::<u64>().unwrap()).sum();
    let each = rustix::param::clock_ticks_per_second();
    Duration::from_millis(ticks * 1000 / each)
}

#[cfg(test)]
mod tests {
    use std::{
        process::{self, Command},
        thread,
        time::Instant,
    };

    use super::*;

    #[test]
    fn a_thread_that_ended_is_part_of_its_process() {
        let busy = || {
            let began = own();
            while own() - began < Duration::from_millis(3) {}
        };
        let before = of(process::id()).unwrap();
        thread::spawn(busy).join().unwrap();
        let taken = of(process::id()).unwrap() - before;
        assert!(taken >= Duration::from_millis(3), "{taken:?}");
    }

    #[test]
    fn a_process_that_only_waits_takes_less_than_a_tick() {
        let began = Instant::now();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let taken = of(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        let taken = taken.unwrap();
        assert!(
            taken > Duration::ZERO && taken <= began.elapsed(),
            "{taken:?}"
        );
        of(child.id()).unwrap_err();
    }
}

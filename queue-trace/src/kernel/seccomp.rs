//! The system calls that a tracer needs once it is attached; all others fail with EPERM.
//!
//! What is left out on purpose: starting programs (`execve`), loading or attaching kernel
//! code (`bpf` beyond maps and iterators, `perf_event_open`, `init_module`), looking into
//! other processes' memory (`ptrace`, `process_vm_readv`), raw packets (`AF_PACKET`),
//! mounts, keys, clocks, users, memory that is written and then run, and whatever a future
//! kernel adds. A call that was forgotten fails softly: its caller sees an error.
//!
//! A filter is of one thread and of those that it starts later, as capabilities are.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch, apply_filter,
};

/// Calls that are allowed with any arguments: what they act on is checked by the kernel
/// against the privileges that are left.
const ALLOWED: &[c_long] = &[
    // Files: /proc and /sys, recordings and their rotation.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_pwrite64,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_getdents64,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getcwd,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_unlinkat,
    libc::SYS_mkdirat,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_copy_file_range,
    // Waiting, and the event loop.
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_eventfd2,
    libc::SYS_pipe2,
    libc::SYS_dup,
    libc::SYS_dup3,
    // Sockets that there are already, or that the rules below allow.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_shutdown,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_getsockopt,
    libc::SYS_setsockopt,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_sendmmsg,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    libc::SYS_recvmmsg,
    // Memory.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Threads and signals.
    libc::SYS_clone3,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_membarrier,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_tgkill,
    libc::SYS_restart_syscall,
    // What it is and what time it is.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getrusage,
    libc::SYS_getcpu,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // To give up more.
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_seccomp,
];

/// The older names of the same, which newer architectures lack and C libraries use.
#[cfg(target_arch = "x86_64")]
const ALLOWED_OLDER: &[c_long] = &[
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_mkdir,
    libc::SYS_chmod,
    libc::SYS_epoll_wait,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_pipe,
    libc::SYS_dup2,
    libc::SYS_time,
    libc::SYS_getrlimit,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_OLDER: &[c_long] = &[
    38, // renameat (include/uapi/asm-generic/unistd.h), of which the crate has no name here
];

/// Commands of bpf(2) (`enum bpf_cmd`, include/uapi/linux/bpf.h): maps are read and emptied,
/// iterators are run. Nothing is loaded.
const BPF_COMMANDS: &[u64] = &[
    1,  // MAP_LOOKUP_ELEM
    2,  // MAP_UPDATE_ELEM
    3,  // MAP_DELETE_ELEM
    4,  // MAP_GET_NEXT_KEY
    15, // OBJ_GET_INFO_BY_FD
    21, // MAP_LOOKUP_AND_DELETE_ELEM
    24, // MAP_LOOKUP_BATCH
    25, // MAP_LOOKUP_AND_DELETE_BATCH
    26, // MAP_UPDATE_BATCH
    27, // MAP_DELETE_BATCH
    28, // LINK_CREATE: an iterator's; programs of other kinds are attached already
    33, // ITER_CREATE
    34, // LINK_DETACH
];

/// Requests of ioctl(2): of terminals without those that put words into them (`TIOCSTI`,
/// `TIOCLINUX`), of pipes and sockets, of a device its name,
/// of a namespace what kind it is, and of a probe to
/// detach it (include/uapi/asm-generic/ioctls.h, nsfs.h, perf_event.h).
const IOCTLS: &[u64] = &[
    0x5401,      // TCGETS
    0x5402,      // TCSETS
    0x5403,      // TCSETSW
    0x5404,      // TCSETSF
    0x802c_542a, // TCGETS2
    0x402c_542b, // TCSETS2
    0x402c_542c, // TCSETSW2
    0x402c_542d, // TCSETSF2
    0x5413,      // TIOCGWINSZ
    0x541b,      // FIONREAD
    0x5421,      // FIONBIO
    0x5451,      // FIOCLEX
    0x8910,      // SIOCGIFNAME
    0xb703,      // NS_GET_NSTYPE
    0x2400,      // PERF_EVENT_IOC_ENABLE
    0x2401,      // PERF_EVENT_IOC_DISABLE
];

/// Families of socket(2): the kernel's socket diagnosis, and what metrics and alerts use.
const FAMILIES: &[u64] = &[
    libc::AF_UNIX as u64,
    libc::AF_INET as u64,
    libc::AF_INET6 as u64,
    libc::AF_NETLINK as u64,
];

/// What prctl(2) may do: name a thread, and give up more.
const PRCTLS: &[u64] = &[
    libc::PR_SET_NAME as u64,
    libc::PR_GET_NAME as u64,
    libc::PR_CAPBSET_READ as u64,
    libc::PR_CAPBSET_DROP as u64,
    libc::PR_CAP_AMBIENT as u64,
    libc::PR_SET_NO_NEW_PRIVS as u64,
    libc::PR_GET_NO_NEW_PRIVS as u64,
];

/// Filters this thread's system calls, and those of threads that it starts later, for good.
///
/// # Errors
/// If the kernel takes no filters.
pub fn allow_only_what_is_needed() -> Result<()> {
    for filter in programs()? {
        apply_filter(&filter).context("the kernel takes no filter of system calls")?;
    }
    Ok(())
}

/// The filters, for the architecture that this is built for.
fn programs() -> Result<[BpfProgram; 2]> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)
        .context("there is no filter of system calls for this architecture")?;
    let allowed = SeccompFilter::new(
        rules()?,
        SeccompAction::Errno(libc::EPERM as u32),
        SeccompAction::Allow,
        arch,
    )?;
    // Its flags are in memory, where no filter can look; told that there is no such call,
    // C libraries use clone(2), of which a rule above takes threads only.
    let no_clone3 = SeccompFilter::new(
        [(libc::SYS_clone3, Vec::new())].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
        arch,
    )?;
    Ok([BpfProgram::try_from(no_clone3)?, allowed.try_into()?])
}

fn rules() -> Result<BTreeMap<c_long, Vec<SeccompRule>>> {
    let any = ALLOWED.iter().chain(ALLOWED_OLDER);
    let mut rules: BTreeMap<_, _> = any.map(|call| (*call, Vec::new())).collect();
    let one_of = |argument, values: &[u64]| -> Result<Vec<SeccompRule>> {
        values
            .iter()
            .map(|value| rule(&[(argument, Is::Eq, *value)]))
            .collect()
    };
    rules.insert(libc::SYS_bpf, one_of(0, BPF_COMMANDS)?);
    rules.insert(libc::SYS_ioctl, one_of(1, IOCTLS)?);
    rules.insert(libc::SYS_socket, one_of(0, FAMILIES)?);
    rules.insert(libc::SYS_prctl, one_of(0, PRCTLS)?);
    // Into network namespaces, and no others.
    rules.insert(libc::SYS_setns, one_of(1, &[libc::CLONE_NEWNET as u64])?);
    // Itself only, to be put aside.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_kill, one_of(0, &[own])?);
    // Its own limits only.
    rules.insert(libc::SYS_prlimit64, one_of(0, &[0])?);
    let thread = libc::CLONE_THREAD as u64;
    rules.insert(
        libc::SYS_clone,
        vec![rule(&[(0, Is::MaskedEq(thread), thread)])?],
    );
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        let not_to_run = rule(&[(2, Is::MaskedEq(libc::PROT_EXEC as u64), 0)])?;
        rules.insert(call, vec![not_to_run]);
    }
    Ok(rules)
}

fn rule(conditions: &[(u8, Is, u64)]) -> Result<SeccompRule> {
    let conditions = conditions.iter().map(|(argument, is, value)| {
        SeccompCondition::new(*argument, Width::Dword, is.clone(), *value)
    });
    Ok(SeccompRule::new(conditions.collect::<Result<_, _>>()?)?)
}

#[cfg(test)]
mod tests {
    use std::{fs, io, process::Command, thread};

    use super::*;

    /// In a thread of its own, as a filter stays.
    fn filtered<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
        let filtered = thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            allow_only_what_is_needed().unwrap();
            work()
        });
        filtered.join().unwrap()
    }

    #[expect(unsafe_code, reason = "system calls that no safe crate would make")]
    fn errno(call: c_long, arguments: [u64; 3]) -> Option<i32> {
        // SAFETY: each call below is refused before it does anything, or takes null for a
        // pointer, which the kernel answers with an error.
        let result = unsafe { libc::syscall(call, arguments[0], arguments[1], arguments[2]) };
        (result == -1).then(|| io::Error::last_os_error().raw_os_error().unwrap())
    }

    #[test]
    fn what_is_needed_goes_on() {
        filtered(|| {
            fs::read_to_string("/proc/self/status").unwrap();
            let path =
                std::env::temp_dir().join(format!("queue-trace-seccomp-{}", std::process::id()));
            fs::write(&path, "x").unwrap();
            fs::rename(&path, path.with_extension("y")).unwrap();
            fs::remove_file(path.with_extension("y")).unwrap();
            fs::read_dir("/proc").unwrap().for_each(drop);
            // A thread, named, with a filter of its own by then.
            let named = thread::Builder::new().name("named".to_owned());
            let seccomp = named.spawn(|| fs::read_to_string("/proc/thread-self/status").unwrap());
            let status = seccomp.unwrap().join().unwrap();
            assert!(status.contains("Seccomp:\t2"), "{status}");
            // Commands on maps reach the kernel, which finds nothing at null.
            assert_ne!(errno(libc::SYS_bpf, [1, 0, 0]), Some(libc::ENOSYS));
            std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        });
    }

    #[test]
    fn what_is_not_needed_is_refused() {
        filtered(|| {
            let error = Command::new("/bin/true").spawn().unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            let refused = [
                ("load a program", libc::SYS_bpf, [5, 0, 0]),
                ("open a tracepoint", libc::SYS_bpf, [17, 0, 0]),
                ("perf", libc::SYS_perf_event_open, [0, 0, 0]),
                ("execve", libc::SYS_execve, [0, 0, 0]),
                ("ptrace", libc::SYS_ptrace, [16, 1, 0]),
                ("mount", libc::SYS_mount, [0, 0, 0]),
                (
                    "unshare",
                    libc::SYS_unshare,
                    [libc::CLONE_NEWUSER as u64, 0, 0],
                ),
                ("fork", libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0]),
                (
                    "another namespace",
                    libc::SYS_setns,
                    [0, libc::CLONE_NEWPID as u64, 0],
                ),
                (
                    "raw packets",
                    libc::SYS_socket,
                    [libc::AF_PACKET as u64, 3, 0],
                ),
                ("words into a terminal", libc::SYS_ioctl, [0, 0x5412, 0]),
                ("another's limits", libc::SYS_prlimit64, [1, 0, 0]),
                ("another process", libc::SYS_kill, [1, 0, 0]),
                ("modules", libc::SYS_init_module, [0, 0, 0]),
                (
                    "memory to run",
                    libc::SYS_mmap,
                    [0, 4096, libc::PROT_EXEC as u64],
                ),
            ];
            for (what, call, arguments) in refused {
                assert_eq!(errno(call, arguments), Some(libc::EPERM), "{what}");
            }
            assert_eq!(errno(libc::SYS_clone3, [0, 0, 0]), Some(libc::ENOSYS));
        });
    }
}

//! What exists at a moment, asked from user space: programs that the kernel runs over every
//! open file of every process (`iter/task_file`) and over every TCP socket of a namespace
//! (`iter/tcp`). They write what they find to the file that is read.

use core::ffi::c_void;

use aya_ebpf::{bindings::seq_file, helpers::generated};
use queue_trace_common::{
    field,
    queue::{Depths, Held},
};

use crate::{
    read::{
        memory::{self, Plain},
        socket,
    },
    state::config,
};

/// Writes a record to the file that is read. `meta` is the context's first member
/// (`struct bpf_iter_meta`, include/linux/bpf.h), whose first member is the file.
#[inline(always)]
fn write<T>(meta: *const *mut seq_file, record: &T) {
    // SAFETY: the kernel gives both pointers, never null; the record is plain data of that
    // size. If the file has no room the kernel asks for the same again.
    unsafe {
        generated::bpf_seq_write(
            *meta,
            (&raw const *record).cast::<c_void>().cast_mut(),
            size_of::<T>() as u32,
        );
    }
}

/// Context of `iter/task_file` (`struct bpf_iter__task_file`, kernel/bpf/task_iter.c).
#[repr(C)]
struct TaskFile {
    meta: *const *mut seq_file,
    task: u64,
    fd: u64,
    file: u64,
}

/// Every process's listening sockets, of all namespaces, each with its SYN queue and its place in
/// its group.
#[unsafe(link_section = "iter/task_file")]
#[unsafe(no_mangle)]
fn held_sockets(ctx: *const TaskFile) -> i32 {
    // SAFETY: the context of this program type, readable whole.
    let (meta, task, file) = unsafe { ((*ctx).meta, (*ctx).task, (*ctx).file) };
    if task == 0 || file == 0 {
        // After the last one.
        return 0;
    }
    let (task, file) = (memory::plain(task), memory::plain(file));
    let inode: u64 = memory::value(file, field::FILE_INODE);
    // A socket's inode is in one `struct socket_alloc` with the socket, which begins it and is
    // what the file's private data points to. For no other file is that so.
    let number = u64::from(config::field(field::INODE_NUMBER).offset);
    let enclosed = u64::from(config::field(field::SOCKET_INODE).offset);
    let socket = inode.wrapping_add(number).wrapping_sub(enclosed);
    if memory::value::<u64>(file, field::FILE_PRIVATE) != socket {
        return 0;
    }
    let sk: u64 = memory::value(socket, field::SOCKET_SK);
    let (_, _, listen) = config::tcp_states();
    if sk == 0 || memory::value::<u8>(sk, field::SK_STATE) != listen {
        return 0;
    }
    let leader: u64 = memory::value(task, field::TASK_LEADER);
    let held = Held {
        depths: Depths {
            inode: memory::value(inode, field::INODE_NUMBER),
            ..depths(sk)
        },
        comm: memory::value(leader, field::TASK_COMM),
        pid: memory::value(task, field::TASK_PID),
        _pad: 0,
    };
    write(meta, &held);
    0
}

/// Context of `iter/tcp` (`struct bpf_iter__tcp`, net/ipv4/tcp_ipv4.c).
#[repr(C)]
struct Tcp {
    meta: *const *mut seq_file,
    sk: u64,
}

/// What a program says of a socket that it was shown: to go on, or to end. Whoever reads then finds
/// that there is no more for now (`EAGAIN`; `bpf_iter_run_prog`, kernel/bpf/bpf_iter.c).
const GO_ON: i32 = 0;
const END: i32 = 1;

/// Calls `f` with a socket that listens. The kernel shows listeners first (`tcp_get_idx`,
/// net/ipv4/tcp_ipv4.c), and then all connections, each of which it locks meanwhile: on a machine
/// with many it takes long, and who closes a listener with connections that are locked has the
/// kernel warn (`inet_csk_listen_stop`). So it ends with the first that is not a listener.
#[inline(always)]
pub fn if_it_listens(sk: u64, f: impl FnOnce()) -> i32 {
    /// A listener that is being closed (include/net/tcp_states.h).
    const CLOSE: u8 = 7;
    if sk == 0 {
        return GO_ON;
    }
    let (_, _, listen) = config::tcp_states();
    match memory::value::<u8>(sk, field::SK_STATE) {
        state if state == listen => {
            f();
            GO_ON
        }
        CLOSE => GO_ON,
        _ => END,
    }
}

/// The same of all listeners of one namespace, also of those that no process holds.
#[unsafe(link_section = "iter/tcp")]
#[unsafe(no_mangle)]
fn queue_depths(ctx: *const Tcp) -> i32 {
    // SAFETY: the context of this program type, of which this is the beginning.
    let (meta, sk) = unsafe { ((*ctx).meta, (*ctx).sk) };
    let sk = memory::plain(sk);
    if_it_listens(sk, || {
        let depths = Depths {
            inode: socket::inode(Plain(sk)),
            ..depths(sk)
        };
        write(meta, &depths);
    })
}

/// The SYN queue of a listener, and its place in its group; not its inode number.
#[inline(always)]
fn depths(sk: u64) -> Depths {
    let (index, size) = place_in_group(sk);
    Depths {
        sk,
        inode: 0,
        syn_depth: memory::value(sk, field::SYN_DEPTH),
        syn_young: memory::value(sk, field::SYN_YOUNG),
        index,
        size,
    }
}

/// Place in the `SO_REUSEPORT` group, and how many are in it; (0, 0): in none.
#[inline(always)]
fn place_in_group(sk: u64) -> (u32, u32) {
    const AT_ONCE: usize = 16;
    const MOST: u16 = 256;
    let group: u64 = memory::value(sk, field::SK_REUSEPORT);
    if group == 0 {
        return (0, 0);
    }
    let size: u16 = memory::value(group, field::GROUP_SIZE);
    let first = group + u64::from(config::field(field::GROUP_SOCKETS).offset);
    let mut members = [0u64; AT_ONCE];
    let mut index = 0;
    'search: while index < MOST && index < size {
        // Past the last of them it reads what is of no use, and may not even be there.
        let _ = memory::fetch(&mut members, first + 8 * u64::from(index));
        for member in members {
            // The verifier follows each of them: so they are not compared with the size as well.
            if member == sk {
                break 'search;
            }
            index += 1;
        }
    }
    (u32::from(index.min(size)), u32::from(size))
}

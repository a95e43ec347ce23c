//! Reads a table of the kernel side whole, many entries with one system call. The BPF library
//! makes two calls for each entry, which is most of what a look costs on a machine with thousands
//! of listeners.

#![expect(unsafe_code, reason = "the BPF library does not have this command")]

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
};

use aya::maps::{IterableMap, MapData};
use bytemuck::Pod;

use crate::kernel::probe::wire::PodWire;

/// Entries that are asked for at once. A bucket with more of them is asked for again.
const AT_ONCE: usize = 256;

/// More than any table has.
const MOST: usize = 1 << 17;

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd` (include/uapi/linux/bpf.h), from Linux 5.6 on.
const COMMAND: libc::c_long = 24;

/// The member `batch` of `union bpf_attr`.
#[repr(C)]
struct BatchAttribute {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Gives each entry of a hash table that all CPUs share to `take`.
///
/// # Errors
/// If the kernel does not show it.
pub(super) fn each<K: Pod, V: Pod>(
    map: &impl IterableMap<PodWire<K>, PodWire<V>>,
    mut take: impl FnMut(K, &V),
) -> io::Result<()> {
    let map: &MapData = map.map();
    let mut room = AT_ONCE;
    let mut from: Option<u64> = None;
    let mut keys = vec![K::zeroed(); room];
    let mut values = vec![V::zeroed(); room];
    loop {
        let mut next = 0u64;
        let mut attribute = BatchAttribute {
            in_batch: from
                .as_ref()
                .map_or(0, |from| std::ptr::from_ref(from) as u64),
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: room as u32,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the kernel writes at most `count` keys and values. The buffers have room for as
        // many: a key is as long as K, and a value as V, as the types of the map were made to say
        // and the BPF library relies on as well. Of a hash table the place is a u32, for which
        // `next` and `from` have room. Any bytes are a K and a V. All live until the call returns.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                COMMAND,
                std::ptr::from_mut(&mut attribute),
                size_of::<BatchAttribute>(),
            )
        } != 0;
        let error = failed.then(io::Error::last_os_error);
        let is = |error: &Option<io::Error>, code| {
            error.as_ref().and_then(io::Error::raw_os_error) == Some(code)
        };
        let is_last = is(&error, libc::ENOENT);
        if is(&error, libc::ENOSPC) && room < MOST {
            room *= 2;
            keys.resize(room, K::zeroed());
            values.resize(room, V::zeroed());
            continue;
        }
        if let Some(error) = error.filter(|_| !is_last) {
            return Err(error);
        }
        let count = (attribute.count as usize).min(room);
        for (key, value) in keys.iter().zip(&values).take(count) {
            take(*key, value);
        }
        if is_last {
            return Ok(());
        }
        from = Some(next);
    }
}

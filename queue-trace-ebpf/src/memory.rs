//! The only file that reads kernel memory: fields through the table of offsets,
//! and this CPU's copy of per-CPU data.

use core::ffi::c_void;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_probe_read_kernel, generated},
};
use queue_trace_common::field;

use crate::{
    emit,
    globals::{self, CPU},
};

/// Reads a value of kernel memory. A failed read is counted: the address came from
/// the kernel, so it should not fail.
#[inline(always)]
pub fn read<T: Copy>(address: u64) -> Option<T> {
    // SAFETY: the helper checks the address and fails rather than faults; every T
    // used here is plain data.
    match unsafe { bpf_probe_read_kernel(address as *const T) } {
        Ok(value) => Some(value),
        Err(_) => {
            read_failed();
            None
        }
    }
}

/// Reads into a place, without the copy that returning a large value costs the
/// stack. Whether it could be read.
#[inline(always)]
pub fn read_into<T: Copy>(place: &mut T, address: u64) -> bool {
    // SAFETY: the helper writes size_of::<T>() bytes to a place of that size, or
    // fails; every T used here is plain data.
    let failed = unsafe {
        generated::bpf_probe_read_kernel(
            (&raw mut *place).cast(),
            size_of::<T>() as u32,
            address as *const c_void,
        )
    } != 0;
    if failed {
        read_failed();
    }
    !failed
}

/// Reads a field of the struct at `base`; `None` if this kernel has no such field.
#[inline(always)]
pub fn get<T: Copy>(base: u64, index: usize) -> Option<T> {
    let field = globals::field(index);
    if field.size == 0 || base == 0 {
        return None;
    }
    read(base + u64::from(field.offset))
}

/// Counts a failed read. A function of its own, as there are many reads.
#[inline(never)]
fn read_failed() {
    emit::lost(|loss| &mut loss.read_failed);
}

/// Reads an unsigned integer whose width differs between kernels (a sysctl that
/// was an int and is a u8).
#[inline(always)]
pub fn get_uint(base: u64, index: usize) -> Option<u32> {
    let field = globals::field(index);
    let mut value = 0u64;
    if field.size == 0 || usize::from(field.size) > size_of_val(&value) {
        return None;
    }
    // SAFETY: writes at most as many bytes as `value` has.
    let failed = unsafe {
        generated::bpf_probe_read_kernel(
            (&raw mut value).cast(),
            u32::from(field.size),
            (base + u64::from(field.offset)) as *const c_void,
        )
    } != 0;
    // Little-endian, as every kernel this was built for: the low bytes come first.
    const { assert!(cfg!(target_endian = "little")) };
    (!failed).then_some(value as u32)
}

/// The value that the traced function returned. It sits behind the last argument,
/// and the number of arguments differs between kernels; a read of the context at
/// an index known only at load is refused by the verifier, so it is read as memory.
#[inline(always)]
pub fn return_value(ctx: &impl EbpfContext, hook: usize) -> u64 {
    read(ctx.as_ptr() as u64 + 8 * globals::arity(hook) as u64).unwrap_or(0)
}

/// What to add to a per-CPU address to reach this CPU's copy.
///
/// `__per_cpu_offset` is not in every kernel's symbols. But a lookup in a per-CPU
/// array returns the address of this CPU's copy of the value, and the map itself
/// (`bpf_array.pptrs[0]`) holds the per-CPU address; their difference is the offset.
#[inline(always)]
pub fn per_cpu_offset(here: *const crate::evidence::Cpu) -> u64 {
    // The verifier allows no arithmetic on these pointers, but on plain numbers.
    let map = plain(&raw const CPU as u64);
    let slot: u64 = get(map, field::PERCPU_SLOTS).unwrap_or(0);
    plain(here as u64).wrapping_sub(slot)
}

/// Turns a pointer into a plain number, by reading it as memory.
#[inline(always)]
fn plain(pointer: u64) -> u64 {
    let spilled = pointer;
    let mut value = 0u64;
    // SAFETY: reads eight bytes of this program's own stack.
    unsafe {
        generated::bpf_probe_read_kernel((&raw mut value).cast(), 8, (&raw const spilled).cast());
    }
    value
}

//! What happens when there is no memory: a message that says so, and the status of an error. Rust
//! would abort, which leaves a core dump and says nothing of a limit.

#![expect(unsafe_code, reason = "an allocator is unsafe by its trait")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicU8, Ordering},
};

/// The system's allocator.
struct OrExit;

#[global_allocator]
static ALLOCATOR: OrExit = OrExit;

static STATUS: AtomicU8 = AtomicU8::new(1);

/// Has all threads share one arena of glibc's. Each look is made by a thread of its own, and each
/// of several arenas would keep as much as the largest look took.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no other thread was started yet; it sets a number, and says whether it could.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// With which status it ends for want of memory.
pub fn exit_with(status: u8) {
    STATUS.store(status, Ordering::Relaxed);
}

// SAFETY: all is done by the system's allocator, whose promises these are; what is not null is
// passed on as it is.
unsafe impl GlobalAlloc for OrExit {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those of the system's allocator.
        or_exit(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        or_exit(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        or_exit(unsafe { System.realloc(place, layout, size) })
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(place, layout) }
    }
}

fn or_exit(place: *mut u8) -> *mut u8 {
    const MESSAGE: &[u8] = b"queue-trace: there is no memory left for it: raise its limit \
        (ulimit -v, MemoryMax= in a unit) or give it less to read\n";
    if place.is_null() {
        // SAFETY: the bytes are there as long as the program is; neither call allocates, and the
        // second one ends the process.
        unsafe {
            libc::write(libc::STDERR_FILENO, MESSAGE.as_ptr().cast(), MESSAGE.len());
            libc::_exit(STATUS.load(Ordering::Relaxed).into());
        }
    }
    place
}

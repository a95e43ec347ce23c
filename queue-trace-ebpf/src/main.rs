//! The kernel side of queue-trace.
//!
//! From below: `state` (globals, maps, losses), `read` (all that reads the kernel), `filter`,
//! `frame`, `emit`, `queues` (their statistics), `steps`, `tracepoints`. Nothing uses what comes
//! after it.
//!
//! One file for each step of the handshake; the programs in it are shells around a
//! body that fentry and kprobe share. A body opens a *frame* when a packet enters a
//! kernel function, and when the function returns compares this CPU's counters with
//! what they were: what moved in between was moved by this packet, and gives the
//! verdict (`frame`). A verdict is counted, and sent as a record if wanted
//! (`emit`). `tracepoints` does the same from tracepoints alone.
#![no_std]
#![no_main]
// The one atomic instruction that all kernels have: `state::tally::add`.
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod emit;
mod filter;
mod frame;
mod iterators;
mod queues;
mod read;
mod state;
mod steps;
mod tracepoints;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // The verifier refuses unbounded loops, so a panic that could be reached would
    // keep the object from loading.
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

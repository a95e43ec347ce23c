//! Ends a virtual machine: writes a status to the port of QEMU's debug-exit
//! device. Runs in the guest, so it needs nothing but the standard library.

#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "writes to an I/O port, without any crate")
)]

use std::process::ExitCode;
#[cfg(target_arch = "x86_64")]
use std::{
    arch::asm,
    ffi::{c_int, c_ulong},
};

#[cfg(target_arch = "x86_64")]
const PORT: u16 = 0xf4;

#[cfg(target_arch = "x86_64")]
unsafe extern "C" {
    fn ioperm(from: c_ulong, count: c_ulong, turn_on: c_int) -> c_int;
}

#[cfg(target_arch = "x86_64")]
fn main() -> ExitCode {
    let status = std::env::args()
        .nth(1)
        .and_then(|status| status.parse::<u32>().ok())
        .unwrap_or(1);
    // SAFETY: `ioperm` takes plain numbers and only changes this thread's port rights.
    if unsafe { ioperm(c_ulong::from(PORT), 4, 1) } != 0 {
        eprintln!(
            "vm-exit: no access to the port: {}",
            std::io::Error::last_os_error()
        );
        return ExitCode::FAILURE;
    }
    // SAFETY: access to the port was granted above, and nothing but the
    // debug-exit device listens there; writing to it touches no memory.
    unsafe { asm!("out dx, eax", in("dx") PORT, in("eax") status, options(nomem, nostack)) };
    // The machine ends a moment later. Were this to return, init would end first, and the
    // kernel would panic.
    loop {
        std::thread::park();
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() -> ExitCode {
    eprintln!("vm-exit: only x86-64 has ports; guests of other architectures power off");
    ExitCode::FAILURE
}

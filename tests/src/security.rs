//! A security module that refuses: a BPF program that changes what a security hook
//! returns (`BPF_MODIFY_RETURN`), a kind that the BPF library does not load.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result, anyhow};
use aya_obj::generated::{bpf_attach_type, bpf_attr, bpf_cmd, bpf_prog_type};
use queue_trace::btf::Types;
use rustix::process::{Resource, Rlimit, setrlimit};

/// Refuses connections as long as it lives.
#[derive(Debug)]
pub struct SecurityModule {
    _link: OwnedFd,
    _program: OwnedFd,
}

impl SecurityModule {
    /// Refuses every connection that this process's own packets ask for: the kernel
    /// receives what is sent on `lo` in the sender's own context.
    ///
    /// # Errors
    /// If the kernel does not let a BPF program do so.
    pub fn that_refuses() -> Result<Self> {
        const HOOK: &str = "security_inet_conn_request";
        let hook = Types::read(None)?
            .function(HOOK)
            .with_context(|| format!("this kernel has no {HOOK}"))?;
        let program =
            load_program(hook).with_context(|| format!("cannot load a program for {HOOK}"))?;
        let mut request = no_request();
        request.raw_tracepoint.prog_fd = program.as_raw_fd().cast_unsigned();
        let link = bpf(bpf_cmd::BPF_RAW_TRACEPOINT_OPEN, &mut request)
            .with_context(|| format!("cannot attach a program to {HOOK}"))?;
        Ok(Self {
            _link: link,
            _program: program,
        })
    }
}

/// Loads a program that changes what the function of that number in the kernel's BTF
/// returns.
fn load_program(function: u32) -> Result<OwnedFd> {
    const LICENSE: &CStr = c"GPL";
    const GET_CURRENT_PID_TGID: u32 = 14;
    let code = format!(
        "call {GET_CURRENT_PID_TGID}
        rsh r0, 32
        jeq r0, {}, +2
        mov r0, 0
        exit
        mov r0, {}
        exit",
        std::process::id(),
        -libc::EPERM,
    );
    let code = rbpf::assembler::assemble(&code).map_err(|error| anyhow!("{error}"))?;
    lift_memory_limit();
    let mut log = vec![0u8; 1 << 16];
    let mut request = no_request();
    // SAFETY: all fields of the union are plain data.
    let load = unsafe { &mut request.__bindgen_anon_3 };
    load.prog_type = bpf_prog_type::BPF_PROG_TYPE_TRACING as u32;
    load.expected_attach_type = bpf_attach_type::BPF_MODIFY_RETURN as u32;
    load.attach_btf_id = function;
    load.insns = code.as_ptr().expose_provenance() as u64;
    load.insn_cnt = u32::try_from(code.len() / 8)?;
    load.license = LICENSE.as_ptr().expose_provenance() as u64;
    load.log_level = 1;
    load.log_buf = log.as_mut_ptr().expose_provenance() as u64;
    load.log_size = u32::try_from(log.len())?;
    bpf(bpf_cmd::BPF_PROG_LOAD, &mut request).with_context(|| {
        let end = log.iter().position(|&byte| byte == 0).unwrap_or(log.len());
        String::from_utf8_lossy(&log[..end]).into_owned()
    })
}

/// Kernels before 5.11 count BPF programs as locked memory. One that refuses to lift the
/// limit may still have room under it.
fn lift_memory_limit() {
    let unlimited = Rlimit {
        current: None,
        maximum: None,
    };
    let _ = setrlimit(Resource::Memlock, unlimited);
}

fn no_request() -> bpf_attr {
    // SAFETY: plain data, for which all zeroes is a value.
    unsafe { std::mem::zeroed() }
}

/// One bpf(2) that returns a file descriptor.
fn bpf(command: bpf_cmd, request: &mut bpf_attr) -> io::Result<OwnedFd> {
    // SAFETY: the request, and what it points to, lives until the call returns.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command as libc::c_long,
            &raw mut *request,
            size_of_val(request),
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(libc::c_int::try_from(fd).unwrap_or(-1)) })
}

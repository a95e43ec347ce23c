//! A security module that refuses: a BPF program that changes what a security hook
//! returns.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use queue_trace::kernel::btf::Types;

use crate::bpf;

/// Refuses connections as long as it lives.
#[derive(Debug)]
pub struct SecurityModule {
    _attached: [OwnedFd; 2],
}

impl SecurityModule {
    /// Refuses every connection that this process's own packets ask for: the kernel
    /// receives what is sent on `lo` in the sender's own context.
    ///
    /// # Errors
    /// If the kernel does not let a BPF program do so.
    pub fn that_refuses() -> Result<Self> {
        const HOOK: &str = "security_inet_conn_request";
        const GET_CURRENT_PID_TGID: u32 = 14;
        let hook = Types::read(None)?
            .function(HOOK)
            .with_context(|| format!("this kernel has no {HOOK}"))?;
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
        let attached = bpf::modify_return(hook, &code).context(HOOK)?;
        Ok(Self {
            _attached: attached,
        })
    }
}

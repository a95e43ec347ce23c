//! What a kernel's types prove of how it was built: each option has a function or a struct that
//! is there with it only. For kernels that do not run here.

use super::{
    Types,
    marks::{DIRECT_CALLS, FUNCTION_TRACER, KPROBES, REGISTERS, RING_BUFFER, TRAMPOLINES},
};

/// Machines that queue-trace has programs for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    X86_64,
    /// arm64.
    Aarch64,
}

impl Architecture {
    /// As `uname -m` says it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

impl Types {
    /// The architecture, if it is one that queue-trace has programs for.
    #[must_use]
    pub fn architecture(&self) -> Option<Architecture> {
        let has = |member: &str| self.locate(&format!("{REGISTERS}.{member}")).is_some();
        if has("orig_ax") || has("orig_rax") {
            Some(Architecture::X86_64)
        } else if has("pstate") && has("syscallno") {
            Some(Architecture::Aarch64)
        } else {
            None
        }
    }

    /// Whether the kernel has the ring buffer.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn has_ring_buffer(&self) -> Result<(), String> {
        match self.enumerator(RING_BUFFER) {
            Ok(_) => Ok(()),
            Err(_) => Err("the kernel has no BPF ring buffer (Linux 5.8)".to_owned()),
        }
    }

    /// Whether programs can be attached by fentry.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn has_fentry(&self) -> Result<(), String> {
        if self.function(TRAMPOLINES).is_none() {
            return Err("the kernel was built without BPF trampolines (CONFIG_BPF_JIT)".to_owned());
        }
        let untold = self.function(FUNCTION_TRACER).is_none()
            && self.architecture() == Some(Architecture::X86_64);
        if self.function(DIRECT_CALLS).is_none() && !untold {
            return Err(
                "the kernel's function tracer cannot call programs directly \
                 (CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS; on arm64 since Linux 6.4)"
                    .to_owned(),
            );
        }
        Ok(())
    }

    /// Whether programs can be attached by kprobes.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn has_kprobes(&self) -> Result<(), String> {
        match self.structure(KPROBES) {
            Some(_) => Ok(()),
            None => Err("the kernel was built without kprobes (CONFIG_KPROBE_EVENTS)".to_owned()),
        }
    }
}

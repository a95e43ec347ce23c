//! Names by which a kernel's types show how it was built.

/// With the ring buffer of BPF (5.8).
pub(super) const RING_BUFFER: &str = "BPF_MAP_TYPE_RINGBUF";

/// The enum that has it.
pub(super) const MAP_TYPES: &str = "bpf_map_type";

/// With `CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS`: the function tracer calls programs (5.5; on
/// arm64 6.4).
pub(super) const DIRECT_CALLS: &str = "register_ftrace_direct";

/// A function of the function tracer that is there in any case. The types of older kernels
/// (5.10) leave out all that cannot be traced, and with it the function tracer itself; on x86-64
/// these can call programs directly.
pub(super) const FUNCTION_TRACER: &str = "register_ftrace_function";

/// With `CONFIG_BPF_JIT` and `CONFIG_BPF_SYSCALL`: programs are called from functions (5.5).
pub(super) const TRAMPOLINES: &str = "bpf_trampoline_link_prog";

/// With `CONFIG_KPROBE_EVENTS`, by which programs come to kprobes (kernel/trace/trace_kprobe.c).
pub(super) const KPROBES: &str = "trace_kprobe";

/// The registers that a kernel saves, which differ between architectures.
pub(super) const REGISTERS: &str = "pt_regs";

/// All that are names of types or functions.
pub(super) const NAMES: [&str; 5] = [
    DIRECT_CALLS,
    FUNCTION_TRACER,
    TRAMPOLINES,
    KPROBES,
    REGISTERS,
];

/// The members of structs that are looked up for it.
pub(super) const MEMBERS: [&str; 4] = ["orig_ax", "orig_rax", "pstate", "syscallno"];

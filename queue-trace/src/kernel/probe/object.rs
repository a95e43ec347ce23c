//! The kernel side as it was built, and made to fit the running kernel.

use std::fs;

use queue_trace_common::settings::CAST_MARK;

use crate::kernel::btf::Types;

/// The kernel side, built ahead from `queue-trace-ebpf`. There is one for each architecture: the
/// programs of kprobes read the registers of the kernel that they run on.
#[cfg(all(target_arch = "x86_64", target_endian = "little"))]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/queue-trace.x86_64.bpf.o");
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../bpf/queue-trace.aarch64.bpf.o");
#[cfg(not(all(
    any(target_arch = "x86_64", target_arch = "aarch64"),
    target_endian = "little"
)))]
compile_error!(
    "queue-trace watches kernels of x86-64 and of little-endian arm64: its programs for the \
     kernel are built for these two, and read other registers than this target's"
);

/// An instruction: its code, its registers, an offset of two bytes, four immediate bytes
/// (Documentation/bpf/standardization/instruction-set.rst).
type Instruction = [u8; 8];

/// `call CAST_MARK`, of a helper.
const MARKED: Instruction = call(0, CAST_MARK);

/// `r0 = r1`: what the cast does at run time.
const MOVE: Instruction = [0xbf, 0x10, 0, 0, 0, 0, 0, 0];

/// What in a call's source register says that a function of the kernel is called.
const KERNEL_FUNCTION: u8 = 2;

const fn call(kind: u8, whom: i32) -> Instruction {
    let [a, b, c, d] = whom.to_le_bytes();
    [0x85, kind << 4, 0, 0, a, b, c, d]
}

/// The number of the kernel's function that gives an address its type, if programs can call
/// it: the kernel must compile them, and be able to compile that
/// (`bpf_jit_supports_kfunc_call`). A setting that cannot be read is not relied on.
pub fn cast(types: &Types) -> Option<u32> {
    let compiled = fs::read_to_string("/proc/sys/net/core/bpf_jit_enable")
        .is_ok_and(|setting| setting.trim() != "0");
    let able = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
    types.cast().filter(|_| compiled && able)
}

/// The object, calling the kernel's function of the number given where it gives an address its
/// type. Without one nothing of that is ever run. The BPF library cannot call functions of the
/// kernel, so this is done before it has the object.
pub fn fitted(cast: Option<u32>) -> Vec<u8> {
    let instead = match cast {
        Some(number) => call(KERNEL_FUNCTION, number.cast_signed()),
        None => MOVE,
    };
    let mut object = OBJECT.to_vec();
    let (instructions, _) = object.as_chunks_mut();
    for instruction in instructions {
        if *instruction == MARKED {
            *instruction = instead;
        }
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    fn how_many(object: &[u8], selection: Instruction) -> usize {
        let (instructions, _) = object.as_chunks();
        instructions
            .iter()
            .filter(|found| **found == selection)
            .count()
    }

    #[test]
    fn every_marked_call_becomes_the_kernels() {
        let marked = how_many(OBJECT, MARKED);
        assert!(marked > 0, "the compiler writes the call otherwise");
        for (cast, instead) in [(Some(77), call(KERNEL_FUNCTION, 77)), (None, MOVE)] {
            let object = fitted(cast);
            assert_eq!(how_many(&object, MARKED), 0);
            assert_eq!(
                how_many(&object, instead),
                how_many(OBJECT, instead) + marked
            );
        }
    }
}

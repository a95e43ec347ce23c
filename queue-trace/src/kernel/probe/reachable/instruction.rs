//! An instruction, as far as its parts matter
//! (Documentation/bpf/standardization/instruction-set.rst).

/// An instruction: its code, its registers, an offset of two bytes, four immediate bytes.
pub(super) type Instruction = [u8; SIZE];

/// Bytes of an instruction.
pub(super) const SIZE: usize = 8;

/// The classes of instructions, in the lowest three bits of their codes.
pub(super) const LOAD: u8 = 0;
pub(super) const LOAD_FROM: u8 = 1;
pub(super) const STORE: u8 = 2;
pub(super) const STORE_FROM: u8 = 3;
pub(super) const ALU32: u8 = 4;
pub(super) const JUMP: u8 = 5;
pub(super) const JUMP32: u8 = 6;
pub(super) const ALU64: u8 = 7;

/// An instruction that takes two places.
pub(super) const LOAD_64: u8 = 0x18;
/// `goto`, to a place that its offset tells.
pub(super) const GOTO: u8 = 0x05;
/// The same to one that its immediate bytes tell.
pub(super) const GOTO_FAR: u8 = 0x06;
/// Of eight bytes: from and to memory.
pub(super) const LOAD_8: u8 = 0x79;
pub(super) const STORE_8: u8 = 0x7b;
pub(super) const CALL: u8 = 0x85;
pub(super) const EXIT: u8 = 0x95;

/// The register that points to the stack's end.
pub(super) const STACK: u8 = 10;

/// The operation that does not ask what its first register holds.
pub(super) const MOVE: u8 = 0xb;

/// The registers by which a call passes what it passes.
pub(super) const PASSED: u16 = 0b11_1110;

/// What in a code says that the second operand is a register.
pub(super) const BY_REGISTER: u8 = 0x08;
/// What in the code of a store says that it is an atomic operation.
pub(super) const ATOMIC: u8 = 0xc0;

/// Places that an instruction takes.
pub(super) fn length(instruction: &Instruction) -> usize {
    if instruction[0] == LOAD_64 { 2 } else { 1 }
}

/// Whether it calls a function of the object, and not one of the kernel.
pub(super) fn is_own_call(instruction: &Instruction) -> bool {
    const OWN: u8 = 1;
    instruction[0] == CALL && instruction[1] >> 4 == OWN
}

pub(super) fn is_jump(instruction: &Instruction) -> bool {
    matches!(instruction[0] & 7, JUMP | JUMP32) && !matches!(instruction[0], CALL | EXIT)
}

/// Whether an instruction jumps or not.
pub(super) fn is_question(instruction: &Instruction) -> bool {
    is_jump(instruction) && !matches!(instruction[0], GOTO | GOTO_FAR)
}

/// Its immediate bytes.
pub(super) fn immediate(instruction: &Instruction) -> i32 {
    let [.., a, b, c, d] = *instruction;
    i32::from_le_bytes([a, b, c, d])
}

/// Where the jump at a place leads.
pub(super) fn target(instruction: &Instruction, number: usize) -> Option<usize> {
    let distance = if instruction[0] == GOTO_FAR {
        isize::try_from(immediate(instruction)).ok()?
    } else {
        i16::from_le_bytes([instruction[2], instruction[3]]).into()
    };
    (number + 1).checked_add_signed(distance)
}

/// How many places one is after another.
pub(super) fn distance(place: usize, after: usize) -> Option<isize> {
    isize::try_from(place).ok()?.checked_sub_unsigned(after)
}

pub(super) fn set_distance(instruction: &mut Instruction, distance: isize) -> Option<()> {
    if instruction[0] == GOTO_FAR {
        instruction[4..].copy_from_slice(&i32::try_from(distance).ok()?.to_le_bytes());
    } else {
        instruction[2..4].copy_from_slice(&i16::try_from(distance).ok()?.to_le_bytes());
    }
    Some(())
}

//! The instructions that do nothing for anybody.

use super::{
    instruction::{
        ALU32, ALU64, BY_REGISTER, CALL, EXIT, Instruction, JUMP, LOAD, LOAD_FROM, MOVE, PASSED,
        STORE, STORE_FROM, immediate, is_question, length, target,
    },
    known::Ways,
};

/// The instructions that only set a register which nobody asks for before it is set again: where
/// the answer to a question is known it is not asked any more.
pub(super) fn idle(code: &[Instruction], ways: &[Option<Ways>]) -> Option<Vec<bool>> {
    // The registers that somebody asks for from each instruction on, a bit each.
    let mut asked: Vec<u16> = vec![0; code.len()];
    let mut idle = vec![false; code.len()];
    loop {
        let mut is_news = false;
        for (number, instruction) in code.iter().enumerate().rev() {
            let Some(ways) = ways[number] else { continue };
            let mut after = 0;
            if ways.on {
                after |= asked.get(number + length(instruction))?;
            }
            if ways.away {
                after |= asked.get(target(instruction, number)?)?;
            }
            let sets = 1 << (instruction[1] & 0xf);
            let is_answered = is_question(instruction) && ways.on != ways.away;
            idle[number] = is_sum(instruction) && after & sets == 0;
            let before = if idle[number] || is_answered {
                after
            } else {
                after & !set_by(instruction) | asked_by(instruction)
            };
            is_news |= before != asked[number];
            asked[number] = before;
        }
        if !is_news {
            return Some(idle);
        }
    }
}

/// Whether all that an instruction does is to set a register from registers and numbers.
fn is_sum(instruction: &Instruction) -> bool {
    matches!(instruction[0] & 7, ALU32 | ALU64)
}

/// The registers that an instruction sets, whatever they were.
fn set_by(instruction: &Instruction) -> u16 {
    let to = 1 << (instruction[1] & 0xf);
    match instruction[0] & 7 {
        LOAD | LOAD_FROM => to,
        ALU32 | ALU64 if instruction[0] >> 4 == MOVE => to,
        JUMP if instruction[0] == CALL => PASSED | 1,
        _ => 0,
    }
}

/// The registers that an instruction asks for.
fn asked_by(instruction: &Instruction) -> u16 {
    let [code, registers, ..] = *instruction;
    let (to, from) = (1 << (registers & 0xf), 1 << (registers >> 4));
    let operand = if code & BY_REGISTER != 0 { from } else { 0 };
    match code & 7 {
        LOAD => 0,
        LOAD_FROM => from,
        STORE => to,
        // An exchange asks for the first one as well.
        STORE_FROM => to | from | 1,
        ALU32 | ALU64 if code >> 4 == MOVE => operand,
        ALU32 | ALU64 => to | operand,
        _ if code == CALL && is_call_without_arguments(instruction) => 0,
        _ if code == CALL => PASSED,
        _ if code == EXIT => 1,
        _ if is_question(instruction) => to | operand,
        _ => 0,
    }
}

/// Whether it calls one of the kernel's helpers that is passed nothing: the time, the CPU, the task
/// (`ktime_get_ns`, `get_smp_processor_id`, `get_current_pid_tgid`, `get_current_task`,
/// `get_current_cgroup_id`, `jiffies64` of include/uapi/linux/bpf.h).
fn is_call_without_arguments(instruction: &Instruction) -> bool {
    const WITHOUT: [i32; 6] = [5, 8, 14, 35, 80, 118];
    instruction[1] >> 4 == 0 && WITHOUT.contains(&immediate(instruction))
}

//! The instructions of one function that can be reached
//! (Documentation/bpf/standardization/instruction-set.rst).

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

/// An instruction: its code, its registers, an offset of two bytes, four immediate bytes.
type Instruction = [u8; SIZE];

/// Bytes of an instruction.
pub(super) const SIZE: usize = 8;

/// The classes of instructions, in the lowest three bits of their codes.
const LOAD: u8 = 0;
const LOAD_FROM: u8 = 1;
const STORE: u8 = 2;
const STORE_FROM: u8 = 3;
const ALU32: u8 = 4;
const JUMP: u8 = 5;
const JUMP32: u8 = 6;
const ALU64: u8 = 7;

/// An instruction that takes two places.
const LOAD_64: u8 = 0x18;
/// `goto`, to a place that its offset tells.
const GOTO: u8 = 0x05;
/// The same to one that its immediate bytes tell.
const GOTO_FAR: u8 = 0x06;
/// Of eight bytes: from and to memory.
const LOAD_8: u8 = 0x79;
const STORE_8: u8 = 0x7b;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// The register that points to the stack's end.
const STACK: u8 = 10;

/// The operation that does not ask what its first register holds.
const MOVE: u8 = 0xb;

/// The registers by which a call passes what it passes.
const PASSED: u16 = 0b11_1110;

/// What in a code says that the second operand is a register.
const BY_REGISTER: u8 = 0x08;
/// What in the code of a store says that it is an atomic operation.
const ATOMIC: u8 = 0xc0;

/// What is known at an instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// What the registers hold.
    registers: [Option<u64>; 11],
    /// What the stack holds, by the offset from its end.
    stack: BTreeMap<i16, u64>,
}

/// What is left of a function.
#[derive(Debug)]
pub(super) struct Code {
    /// Its instructions.
    pub(super) bytes: Vec<u8>,
    /// The number that each instruction has now, or that of the one that comes next if it does
    /// nothing; `None` if it cannot be reached.
    pub(super) places: Vec<Option<usize>>,
    /// Which of them call a function of the object, by the numbers that they had.
    calls: Vec<usize>,
}

/// Which ways lead on from an instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ways {
    /// To the next one.
    on: bool,
    /// To where it jumps.
    away: bool,
}

impl Code {
    /// `None` if it is no function: if it leads out of itself.
    pub(super) fn reachable(bytes: &[u8]) -> Option<Self> {
        let (code, []) = bytes.as_chunks::<SIZE>() else {
            return None;
        };
        let ways = follow(code)?;
        let idle = idle(code, &ways)?;
        let is_left = |number: usize, ways: Ways| {
            // A question of which the answer is no goes as well.
            !idle[number] && (ways.away || !is_question(&code[number]))
        };
        let mut places = vec![None; code.len()];
        let mut next = 0;
        for (number, ways) in ways.iter().enumerate() {
            let Some(ways) = *ways else { continue };
            places[number] = Some(next);
            if is_left(number, ways) {
                next += length(&code[number]);
            }
        }
        let mut left = Vec::with_capacity(next * SIZE);
        for (number, ways) in ways.iter().enumerate() {
            let (Some(ways), Some(place)) = (*ways, places[number]) else {
                continue;
            };
            if !is_left(number, ways) {
                continue;
            }
            let mut instruction = code[number];
            if is_question(&instruction) && !ways.on {
                instruction = [GOTO, 0, instruction[2], instruction[3], 0, 0, 0, 0];
            }
            if ways.away {
                let to = places[target(&instruction, number)?]?;
                set_distance(&mut instruction, distance(to, place + 1)?)?;
            }
            left.extend(instruction);
            if length(&instruction) == 2 {
                left.extend(code[number + 1]);
            }
        }
        let calls = (0..code.len()).filter(|number| is_own_call(&code[*number]));
        Some(Self {
            bytes: left,
            calls: calls.collect(),
            places,
        })
    }

    /// The calls of functions of the object that are left: the numbers that they had and have.
    pub(super) fn calls(&self) -> impl Iterator<Item = (usize, usize)> {
        let left = |number: &usize| Some((*number, self.places[*number]?));
        self.calls.iter().filter_map(left)
    }
}

/// For each instruction that can be reached, which ways lead on from it. `None` if one leads out of
/// the function.
fn follow(code: &[Instruction]) -> Option<Vec<Option<Ways>>> {
    let shared = shared_stack(code);
    let meets = meetings(code)?;
    let mut ways: Vec<Option<Ways>> = vec![None; code.len()];
    let mut known: HashMap<usize, Known> = HashMap::from([(0, Known::default())]);
    let mut due = vec![0];
    while let Some(mut number) = due.pop() {
        let mut here = known.get(&number)?.clone();
        loop {
            let instruction = code.get(number)?;
            let leads = leads(instruction, &here);
            let sum = ways[number].get_or_insert_default();
            sum.on |= leads.on;
            sum.away |= leads.away;
            here.run(instruction, shared)?;
            let next = number + length(instruction);
            if leads.on && !leads.away && !*meets.get(next)? {
                number = next;
                continue;
            }
            let away = match leads.away {
                true => Some(target(instruction, number)?),
                false => None,
            };
            for next in leads.on.then_some(next).into_iter().chain(away) {
                let is_news = match known.entry(next) {
                    Entry::Vacant(place) => {
                        place.insert(here.clone());
                        true
                    }
                    Entry::Occupied(mut before) => before.get_mut().join(&here),
                };
                if is_news {
                    due.push(next);
                }
            }
            break;
        }
    }
    Some(ways)
}

/// The instructions to which jumps lead, where several ways may meet.
fn meetings(code: &[Instruction]) -> Option<Vec<bool>> {
    let mut meets = vec![false; code.len()];
    let mut number = 0;
    while let Some(instruction) = code.get(number) {
        if is_jump(instruction) {
            *meets.get_mut(target(instruction, number)?)? = true;
        }
        number += length(instruction);
    }
    Some(meets)
}

/// The instructions that only set a register which nobody asks for before it is set again: where
/// the answer to a question is known it is not asked any more.
fn idle(code: &[Instruction], ways: &[Option<Ways>]) -> Option<Vec<bool>> {
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

/// The part of the stack, from here to its end, to which there may be pointers. What is below is
/// only reached by its offset from the end.
fn shared_stack(code: &[Instruction]) -> i32 {
    const POINT: u8 = 0xbf;
    const ADD: u8 = 0x07;
    let pairs = code.iter().zip(code.iter().skip(1));
    let pointers = pairs.filter(|(first, _)| first[0] == POINT && first[1] >> 4 == STACK);
    let starts = pointers.map(|(first, second)| {
        let is_moved = second[0] == ADD && second[1] & 0xf == first[1] & 0xf;
        if is_moved {
            immediate(second)
        } else {
            i32::MIN
        }
    });
    starts.min().unwrap_or(0)
}

/// Places that an instruction takes.
fn length(instruction: &Instruction) -> usize {
    if instruction[0] == LOAD_64 { 2 } else { 1 }
}

/// Whether it calls a function of the object, and not one of the kernel.
fn is_own_call(instruction: &Instruction) -> bool {
    const OWN: u8 = 1;
    instruction[0] == CALL && instruction[1] >> 4 == OWN
}

fn is_jump(instruction: &Instruction) -> bool {
    matches!(instruction[0] & 7, JUMP | JUMP32) && !matches!(instruction[0], CALL | EXIT)
}

/// Whether an instruction jumps or not.
fn is_question(instruction: &Instruction) -> bool {
    is_jump(instruction) && !matches!(instruction[0], GOTO | GOTO_FAR)
}

/// Its immediate bytes.
fn immediate(instruction: &Instruction) -> i32 {
    let [.., a, b, c, d] = *instruction;
    i32::from_le_bytes([a, b, c, d])
}

/// Where the jump at a place leads.
fn target(instruction: &Instruction, number: usize) -> Option<usize> {
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

fn set_distance(instruction: &mut Instruction, distance: isize) -> Option<()> {
    if instruction[0] == GOTO_FAR {
        instruction[4..].copy_from_slice(&i32::try_from(distance).ok()?.to_le_bytes());
    } else {
        instruction[2..4].copy_from_slice(&i16::try_from(distance).ok()?.to_le_bytes());
    }
    Some(())
}

/// Which ways lead on.
fn leads(instruction: &Instruction, known: &Known) -> Ways {
    const ON: Ways = Ways {
        on: true,
        away: false,
    };
    const AWAY: Ways = Ways {
        on: false,
        away: true,
    };
    match instruction[0] {
        EXIT => return Ways::default(),
        GOTO | GOTO_FAR => return AWAY,
        _ if !is_question(instruction) => return ON,
        _ => {}
    }
    let (Some(first), Some(second)) = (known.first(instruction), known.second(instruction)) else {
        return Ways {
            on: true,
            away: true,
        };
    };
    let (first, second) = match instruction[0] & 7 {
        JUMP32 => (first & u64::from(u32::MAX), second & u64::from(u32::MAX)),
        _ => (first, second),
    };
    let jumps = match instruction[0] >> 4 {
        0x1 => first == second,
        0x2 => first > second,
        0x3 => first >= second,
        0x4 => first & second != 0,
        0x5 => first != second,
        0xa => first < second,
        0xb => first <= second,
        // Of numbers with a sign, which nothing here asks.
        _ => {
            return Ways {
                on: true,
                away: true,
            };
        }
    };
    if jumps { AWAY } else { ON }
}

impl Known {
    /// The first operand of an instruction.
    fn first(&self, instruction: &Instruction) -> Option<u64> {
        *self.registers.get(usize::from(instruction[1] & 0xf))?
    }

    /// The second one.
    fn second(&self, instruction: &Instruction) -> Option<u64> {
        if instruction[0] & BY_REGISTER != 0 {
            *self.registers.get(usize::from(instruction[1] >> 4))?
        } else {
            Some(i64::from(immediate(instruction)).cast_unsigned())
        }
    }

    /// Keeps what is known by another way as well. Whether that is less than before.
    fn join(&mut self, other: &Self) -> bool {
        let mut less = false;
        for (own, other) in self.registers.iter_mut().zip(&other.registers) {
            if own.is_some() && own != other {
                *own = None;
                less = true;
            }
        }
        let before = self.stack.len();
        self.stack
            .retain(|offset, number| other.stack.get(offset) == Some(number));
        less || self.stack.len() < before
    }

    /// After an instruction; `shared`: see [`shared_stack`]. `None` if it is none that is known.
    fn run(&mut self, instruction: &Instruction, shared: i32) -> Option<()> {
        let [code, registers, low, high, ..] = *instruction;
        let (to, from) = (registers & 0xf, registers >> 4);
        let offset = i16::from_le_bytes([low, high]);
        match code & 7 {
            LOAD_FROM if code == LOAD_8 && from == STACK => {
                let number = self.stack.get(&offset).copied();
                self.set(to, number)?;
            }
            LOAD | LOAD_FROM => self.set(to, None)?,
            STORE | STORE_FROM if code & 0xe0 == ATOMIC => {
                // It may give what was there before.
                self.set(0, None)?;
                self.set(from, None)?;
                self.stack.clear();
            }
            STORE | STORE_FROM => {
                if to != STACK && offset < 0 {
                    // Before what a pointer points to.
                    self.stack.clear();
                }
                if to == STACK {
                    // Of up to eight bytes.
                    self.stack.retain(|place, _| (*place - offset).abs() >= 8);
                    if code == STORE_8
                        && i32::from(offset) + 8 <= shared
                        && let Some(number) = *self.registers.get(usize::from(from))?
                    {
                        self.stack.insert(offset, number);
                    }
                }
            }
            JUMP | JUMP32 => {
                if code == CALL {
                    self.registers[..6].fill(None);
                }
            }
            class @ (ALU32 | ALU64) => {
                let (first, second) = (self.first(instruction), self.second(instruction));
                // A move that extends a sign has an offset.
                let number = result(code >> 4, first, second).filter(|_| offset == 0);
                let number = match class {
                    // Shifts by more than 31 are different.
                    ALU32 if matches!(code >> 4, 0x6 | 0x7) => None,
                    ALU32 => number.map(|number| number & u64::from(u32::MAX)),
                    _ => number,
                };
                self.set(to, number)?;
            }
            _ => return None,
        }
        Some(())
    }

    fn set(&mut self, register: u8, number: Option<u64>) -> Option<()> {
        *self.registers.get_mut(usize::from(register))? = number;
        Some(())
    }
}

/// What comes of two numbers, if it is one of the simple operations.
fn result(operation: u8, first: Option<u64>, second: Option<u64>) -> Option<u64> {
    let second = second?;
    if operation == MOVE {
        return Some(second);
    }
    let first = first?;
    let shift = u32::try_from(second & 63).ok()?;
    Some(match operation {
        0x0 => first.wrapping_add(second),
        0x1 => first.wrapping_sub(second),
        0x4 => first | second,
        0x5 => first & second,
        0x6 => first << shift,
        0x7 => first >> shift,
        0xa => first ^ second,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_EQUAL: u8 = 0x55;
    const EQUAL: u8 = 0x15;
    const SET: u8 = 0xb7;

    /// An instruction: its registers `to` and `from`, offset and number.
    fn instruction(code: u8, to: u8, from: u8, offset: i16, number: i32) -> Instruction {
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = number.to_le_bytes();
        [code, from << 4 | to, low, high, a, b, c, d]
    }

    fn set(register: u8, number: i32) -> Instruction {
        instruction(SET, register, 0, 0, number)
    }

    fn helper(number: i32) -> Instruction {
        instruction(CALL, 0, 0, 0, number)
    }

    const END: Instruction = [EXIT, 0, 0, 0, 0, 0, 0, 0];

    fn left(code: &[Instruction]) -> Vec<Instruction> {
        let left = Code::reachable(code.as_flattened()).unwrap();
        let (left, []) = left.bytes.as_chunks() else {
            panic!("half an instruction")
        };
        left.to_vec()
    }

    #[test]
    fn a_number_that_is_known_decides() {
        let (yes, no) = (helper(1), helper(2));
        for (number, way) in [(5, yes), (6, no)] {
            let code = [
                set(1, number),
                instruction(EQUAL, 1, 0, 2, 5),
                no,
                END,
                yes,
                END,
            ];
            let left = left(&code);
            assert!(left.contains(&way) && !left.contains(if way == yes { &no } else { &yes }));
        }
    }

    #[test]
    fn what_is_not_known_goes_both_ways() {
        // What a helper gives, an argument, and what two ways leave.
        let by_helper = [helper(7), instruction(EQUAL, 0, 0, 1, 5), helper(1), END];
        assert_eq!(left(&by_helper), by_helper);
        let argument = [instruction(EQUAL, 1, 0, 1, 5), helper(1), END];
        assert_eq!(left(&argument), argument);
        let two_ways = [
            set(2, 5),
            instruction(EQUAL, 1, 0, 1, 0),
            set(2, 6),
            instruction(EQUAL, 2, 0, 1, 5),
            helper(1),
            END,
        ];
        assert_eq!(left(&two_ways), two_ways);
        // One that changes as the loop goes round.
        let round = [
            set(2, 0),
            instruction(0x07, 2, 0, 0, 1),
            instruction(NOT_EQUAL, 2, 0, -2, 9),
            helper(1),
            END,
        ];
        assert_eq!(left(&round), round);
    }

    #[test]
    fn jumps_lead_where_they_led() {
        let code = [
            set(3, 1),
            instruction(EQUAL, 1, 0, 4, 0),
            instruction(NOT_EQUAL, 3, 0, 2, 0),
            helper(1),
            helper(2),
            helper(3),
            helper(4),
            END,
        ];
        let after = [
            set(3, 1),
            instruction(EQUAL, 1, 0, 2, 0),
            instruction(GOTO, 0, 0, 0, 0),
            helper(3),
            helper(4),
            END,
        ];
        assert_eq!(left(&code), after);
        let places = Code::reachable(code.as_flattened()).unwrap().places;
        let places: Vec<_> = places.into_iter().flatten().collect();
        assert_eq!(places, [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn the_stack_keeps_numbers_where_no_pointer_leads() {
        let through = |pointer: &[Instruction], slot: i16| {
            let mut code = vec![set(6, 1), instruction(STORE_8, STACK, 6, slot, 0)];
            code.extend(pointer);
            code.extend([
                helper(1),
                instruction(LOAD_8, 6, STACK, slot, 0),
                instruction(EQUAL, 6, 0, 1, 1),
                helper(2),
                END,
            ]);
            left(&code).contains(&helper(2))
        };
        let pointer = [
            instruction(0xbf, 1, STACK, 0, 0),
            instruction(0x07, 1, 0, 0, -16),
        ];
        assert!(!through(&[], -8));
        assert!(!through(&pointer, -24));
        assert!(through(&pointer, -16) && through(&pointer, -8));
        // A pointer of which nobody knows where it leads.
        assert!(through(&pointer[..1], -24));
        // Something else is put there, or over half of it.
        assert!(through(&[instruction(STORE_8, STACK, 7, -24, 0)], -24));
        assert!(through(&[instruction(0x63, STACK, 7, -20, 0)], -24));
    }

    #[test]
    fn what_nobody_asks_for_is_not_set() {
        const TIME: i32 = 5;
        const MOVE_FROM: u8 = 0xbf;
        let add = |to, from| instruction(0x0f, to, from, 0, 0);
        // Of a sum and what goes into it, and of a question that is answered.
        let code = [
            set(6, 0),
            set(7, 3),
            add(7, 6),
            instruction(EQUAL, 7, 0, 1, 4),
            helper(TIME),
            END,
        ];
        assert_eq!(left(&code), [helper(TIME), END]);
        // One that is passed, returned, stored, or asked for by one of two ways.
        for ask in [
            helper(1),
            instruction(MOVE_FROM, 0, 3, 0, 0),
            instruction(STORE_8, STACK, 3, -8, 0),
            instruction(LOAD_8, 0, 3, 0, 0),
            instruction(ATOMIC | 0x1b, 1, 3, 0, 0),
        ] {
            let code = [set(3, 3), instruction(EQUAL, 1, 0, 1, 0), ask, END];
            assert_eq!(left(&code), code, "{ask:?}");
        }
        // It is set again before anybody asks, except on one way.
        let code = [set(0, 1), instruction(EQUAL, 1, 0, 1, 0), set(0, 2), END];
        assert_eq!(left(&code), code);
        assert_eq!(left(&[set(0, 1), set(0, 2), END]), [set(0, 2), END]);
    }

    #[test]
    fn halves_are_compared_as_halves() {
        const EQUAL_32: u8 = 0x16;
        for (code, stays) in [(EQUAL, true), (EQUAL_32, false)] {
            // All bits are set: as a number of 32 bits it is not equal to one of 64.
            let code = [
                instruction(0xb4, 1, 0, 0, -1),
                instruction(code, 1, 0, 1, -1),
                helper(1),
                END,
            ];
            assert_eq!(left(&code).contains(&helper(1)), stays);
        }
    }

    #[test]
    fn what_leads_out_of_a_function_is_none() {
        for code in [
            vec![helper(1)],
            vec![instruction(GOTO, 0, 0, 3, 0), END],
            vec![instruction(EQUAL, 1, 0, -5, 0), END],
            vec![],
        ] {
            assert!(Code::reachable(code.as_flattened()).is_none());
        }
        assert!(Code::reachable(&[EXIT]).is_none());
    }
}

//! What is known at each instruction of a function, and which ways therefore lead on from it.

use std::collections::{BTreeMap, HashMap, hash_map::Entry};

use super::instruction::{
    ALU32, ALU64, ATOMIC, BY_REGISTER, CALL, EXIT, GOTO, GOTO_FAR, Instruction, JUMP, JUMP32, LOAD,
    LOAD_8, LOAD_FROM, MOVE, STACK, STORE, STORE_8, STORE_FROM, immediate, is_jump, is_question,
    length, target,
};

/// What is known at an instruction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// What the registers hold.
    registers: [Option<u64>; 11],
    /// What the stack holds, by the offset from its end.
    stack: BTreeMap<i16, u64>,
}

/// Which ways lead on from an instruction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Ways {
    /// To the next one.
    pub(super) on: bool,
    /// To where it jumps.
    pub(super) away: bool,
}

/// For each instruction that can be reached, which ways lead on from it. `None` if one leads out of
/// the function.
pub(super) fn follow(code: &[Instruction]) -> Option<Vec<Option<Ways>>> {
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

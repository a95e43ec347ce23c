//! The instructions of one function that can be reached
//! (Documentation/bpf/standardization/instruction-set.rst).

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
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// What in a code says that the second operand is a register.
const BY_REGISTER: u8 = 0x08;
/// What in the code of a store says that it is an atomic operation.
const ATOMIC: u8 = 0xc0;

/// What the registers hold, where that is known.
type Registers = [Option<u64>; 11];

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
        let mut places = vec![None; code.len()];
        let mut next = 0;
        for (number, ways) in ways.iter().enumerate() {
            let Some(ways) = ways else { continue };
            places[number] = Some(next);
            next += match length(&code[number]) {
                // A question of which the answer is no.
                1 if is_question(&code[number]) && !ways.away => 0,
                length => length,
            };
        }
        let mut left = Vec::with_capacity(next * SIZE);
        for (number, ways) in ways.iter().enumerate() {
            let (Some(ways), Some(place)) = (ways, places[number]) else {
                continue;
            };
            let mut instruction = code[number];
            if is_question(&instruction) && !ways.away {
                continue;
            }
            if is_question(&instruction) && !ways.on {
                instruction = [GOTO, 0, instruction[2], instruction[3], 0, 0, 0, 0];
            }
            if ways.away {
                let to = places[target(&instruction, number)?]?;
                set_distance(&mut instruction, to.checked_signed_diff(place + 1)?)?;
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
    let mut ways: Vec<Option<Ways>> = vec![None; code.len()];
    let mut known: Vec<Option<Registers>> = vec![None; code.len()];
    *known.first_mut()? = Some([None; 11]);
    let mut due = vec![0];
    while let Some(number) = due.pop() {
        let instruction = code.get(number)?;
        let mut registers = known[number]?;
        let leads = leads(instruction, &registers);
        let sum = ways[number].get_or_insert_default();
        sum.on |= leads.on;
        sum.away |= leads.away;
        run(instruction, &mut registers)?;
        let on = leads.on.then_some(number + length(instruction));
        let away = match leads.away {
            true => Some(target(instruction, number)?),
            false => None,
        };
        for next in on.into_iter().chain(away) {
            let place = known.get_mut(next)?;
            let joined = match place {
                None => registers,
                Some(before) => std::array::from_fn(|register| {
                    before[register].filter(|_| before[register] == registers[register])
                }),
            };
            if *place != Some(joined) {
                *place = Some(joined);
                due.push(next);
            }
        }
    }
    Some(ways)
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

fn set_distance(instruction: &mut Instruction, distance: isize) -> Option<()> {
    if instruction[0] == GOTO_FAR {
        instruction[4..].copy_from_slice(&i32::try_from(distance).ok()?.to_le_bytes());
    } else {
        instruction[2..4].copy_from_slice(&i16::try_from(distance).ok()?.to_le_bytes());
    }
    Some(())
}

/// The second operand, if it is known.
fn operand(instruction: &Instruction, registers: &Registers) -> Option<u64> {
    if instruction[0] & BY_REGISTER != 0 {
        *registers.get(usize::from(instruction[1] >> 4))?
    } else {
        Some(i64::from(immediate(instruction)).cast_unsigned())
    }
}

/// Which ways lead on.
fn leads(instruction: &Instruction, registers: &Registers) -> Ways {
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
    let first = registers.get(usize::from(instruction[1] & 0xf)).copied();
    let (Some(first), Some(second)) = (first.flatten(), operand(instruction, registers)) else {
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

/// What registers hold after an instruction. `None` if it is none that is known.
fn run(instruction: &Instruction, registers: &mut Registers) -> Option<()> {
    let code = instruction[0];
    let to = usize::from(instruction[1] & 0xf);
    let from = usize::from(instruction[1] >> 4);
    match code & 7 {
        LOAD | LOAD_FROM => *registers.get_mut(to)? = None,
        STORE => {}
        STORE_FROM => {
            if code & 0xe0 == ATOMIC {
                // It may give what was there before.
                registers[0] = None;
                *registers.get_mut(from)? = None;
            }
        }
        JUMP | JUMP32 => {
            if code == CALL {
                registers[..6].fill(None);
            }
        }
        class @ (ALU32 | ALU64) => {
            let first = *registers.get(to)?;
            let second = operand(instruction, registers);
            // A move that extends a sign has an offset.
            let plain = instruction[2..4] == [0, 0];
            let number = result(code >> 4, first, second).filter(|_| plain);
            let number = match class {
                // A shift by a register is masked otherwise.
                ALU32 if matches!(code >> 4, 0x6 | 0x7) => None,
                ALU32 => number.map(|number| number & u64::from(u32::MAX)),
                _ => number,
            };
            *registers.get_mut(to)? = number;
        }
        _ => return None,
    }
    Some(())
}

/// What comes of two numbers, if it is one of the simple operations.
fn result(operation: u8, first: Option<u64>, second: Option<u64>) -> Option<u64> {
    const MOVE: u8 = 0xb;
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

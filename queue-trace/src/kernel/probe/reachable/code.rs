//! What is left of one function.

use super::{
    idle::idle,
    instruction::{GOTO, SIZE, distance, is_own_call, is_question, length, set_distance, target},
    known::{Ways, follow},
};

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

#[cfg(test)]
mod tests {
    use super::{
        super::instruction::{ATOMIC, CALL, EXIT, Instruction, LOAD_8, STACK, STORE_8},
        *,
    };

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

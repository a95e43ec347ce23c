//! Takes out of an object what its programs cannot reach once the kernel's and the user's numbers
//! are in their instructions. The kernel would find that out as well, but only after it has gone
//! through all of it several times, and a third of all is for other kernels and other filters.
//!
//! What is followed is what registers hold. Where that is not known both ways are taken, so too
//! much may stay, but never too little. The kernel then verifies what is left.

mod code;
mod idle;
mod instruction;
mod known;
mod layout;

use std::collections::HashMap;

use anyhow::{Context as _, Result};

use self::{
    code::Code,
    instruction::SIZE,
    layout::{ASTRAY, Layout},
};

/// The object with nothing in its functions that they cannot reach.
///
/// # Errors
/// If it is not laid out as the linker does.
pub(super) fn only(mut object: Vec<u8>) -> Result<Vec<u8>> {
    let layout = Layout::of(&object)?;
    let mut left = HashMap::new();
    // Where each function of the text begins now.
    let mut moved = HashMap::new();
    for section in &layout.sections {
        let mut next = 0;
        for function in &section.functions {
            let code = section.code(&object, function).context(ASTRAY)?;
            let code = Code::reachable(code).context(ASTRAY)?;
            // The library goes from one function of the text to the next; programs have symbols.
            let start = if section.is_text {
                next
            } else {
                function.start
            };
            if section.is_text {
                moved.insert(function.start, start);
            }
            next = start + code.bytes.len();
            left.insert((section.index, function.start), (start, code));
        }
    }
    for section in &layout.sections {
        let mut size = 0;
        for function in &section.functions {
            let (start, code) = &left[&(section.index, function.start)];
            section
                .set_code(&mut object, *start, &code.bytes)
                .context(ASTRAY)?;
            function
                .set_symbol(&mut object, *start, code.bytes.len())
                .context(ASTRAY)?;
            size = start + code.bytes.len();
        }
        if section.is_text {
            section.set_size(&mut object, size).context(ASTRAY)?;
        }
        for relocation in &section.relocations {
            let function = section.function_at(relocation.at).context(ASTRAY)?;
            let (start, code) = &left[&(section.index, function.start)];
            let number = (relocation.at - function.start) / SIZE;
            let Some(place) = code.places.get(number).context(ASTRAY)? else {
                relocation.remove(&mut object).context(ASTRAY)?;
                continue;
            };
            let at = start + place * SIZE;
            relocation.move_to(&mut object, at).context(ASTRAY)?;
            if relocation.calls_text {
                // Its number is of its callee's place in the text, one less.
                let callee = place_of(section.number(&object, at), 1).context(ASTRAY)?;
                let callee = moved.get(&callee).context(ASTRAY)?;
                let number = distance(*callee, SIZE).context(ASTRAY)?;
                section
                    .set_number(&mut object, at, number)
                    .context(ASTRAY)?;
            }
        }
        for function in section.functions.iter().filter(|_| section.is_text) {
            let (start, code) = &left[&(section.index, function.start)];
            for (number, place) in code.calls() {
                let called_at = function.start + number * SIZE;
                if section.is_relocated(called_at) {
                    continue;
                }
                // From one function of the text to another its number is the way to go.
                let at = start + place * SIZE;
                let after = called_at / SIZE + 1;
                let callee = place_of(section.number(&object, at), after).context(ASTRAY)?;
                let callee = moved.get(&callee).context(ASTRAY)?;
                let number = distance(*callee, at + SIZE).context(ASTRAY)?;
                section
                    .set_number(&mut object, at, number)
                    .context(ASTRAY)?;
            }
        }
    }
    Ok(object)
}

/// The place that is so many instructions after another one.
fn place_of(instructions: Option<i32>, after: usize) -> Option<usize> {
    let instructions = isize::try_from(instructions?).ok()?;
    after.checked_add_signed(instructions)?.checked_mul(SIZE)
}

/// How many instructions a place is after another one.
fn distance(place: usize, after: usize) -> Option<i32> {
    i32::try_from(instruction::distance(place / SIZE, after / SIZE)?).ok()
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, HashSet},
        path::Path,
    };

    use queue_trace_common::settings::Filter;

    use super::*;
    use crate::kernel::{btf::Types, plan::HookFamily, probe::object};

    fn fitted(family: HookFamily, cast: Option<u32>, filter: &Filter) -> Vec<u8> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/7.3-x86_64.btf");
        let types = Types::of_file(&path).unwrap();
        let (fields, kernel) = (types.fields().unwrap(), types.kernel().unwrap());
        object::fitted(Some(family), cast, &fields, &kernel, filter).unwrap()
    }

    /// How many instructions each program has once the library has linked it.
    fn linked(object: &[u8]) -> BTreeMap<String, usize> {
        let mut object = aya_obj::Object::parse(object).unwrap();
        let sections = object.functions.keys().map(|(section, _)| *section);
        object
            .relocate_calls(&sections.collect::<HashSet<_>>())
            .unwrap();
        let programs = object.programs.iter().map(|(name, program)| {
            let function = &object.functions[&program.function_key()];
            (name.clone(), function.instructions.len())
        });
        programs.collect()
    }

    #[test]
    fn every_program_is_there_and_shorter() {
        for family in [
            HookFamily::Fentry,
            HookFamily::Kprobe,
            HookFamily::Tracepoint,
        ] {
            for cast in [None, Some(77)] {
                let whole = fitted(family, cast, &Filter::default());
                let (before, after) = (linked(&whole), linked(&only(whole).unwrap()));
                assert!(before.keys().eq(after.keys()));
                assert!(before.iter().all(|(name, size)| after[name] <= *size));
                let sum = |sizes: &BTreeMap<_, usize>| sizes.values().sum::<usize>();
                assert!(
                    sum(&after) * 4 < sum(&before) * 3,
                    "{family:?}, cast {cast:?}"
                );
            }
        }
    }

    #[test]
    fn what_is_asked_for_stays() {
        let size = |filter: &Filter| {
            let object = only(fitted(HookFamily::Fentry, Some(77), filter)).unwrap();
            linked(&object)["syn_v4_enter"]
        };
        let all = Filter::default();
        let ports = Filter { ports: 1, ..all };
        let addresses = Filter { addrs: 1, ..all };
        assert!(size(&all) < size(&ports) && size(&ports) < size(&addresses));
    }

    #[test]
    fn nothing_is_left_to_take_out() {
        let object = only(fitted(HookFamily::Fentry, Some(77), &Filter::default())).unwrap();
        let layout = Layout::of(&object).unwrap();
        let mut functions = 0;
        for section in &layout.sections {
            for function in &section.functions {
                let before = section.code(&object, function).unwrap();
                let after = Code::reachable(before).unwrap();
                assert_eq!(after.bytes, before);
                functions += 1;
            }
        }
        assert!(functions > 100, "{functions}");
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(only(Vec::new()).is_err());
        let mut cut = fitted(HookFamily::Fentry, None, &Filter::default());
        cut.truncate(cut.len() / 2);
        assert!(only(cut).is_err());
    }
}

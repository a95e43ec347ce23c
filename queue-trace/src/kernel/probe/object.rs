//! The kernel side as it was built, and made to fit the running kernel.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result};
use bytemuck::bytes_of;
use object::{
    LittleEndian, Object as _, ObjectSection as _,
    read::elf::{ElfFile64, FileHeader as _},
};
use queue_trace_common::{
    counter::GROUPS,
    field::{self, Field},
    settings::{CAST_MARK, Filter, Kernel, mark},
};

use crate::kernel::{btf::Types, plan::HookFamily};

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

/// `lock *(u64 *)(… + EXCHANGE) += …`, apart from its registers, and what it becomes: an addition
/// that is never run, or `BPF_CMPXCHG`.
const ATOMIC: u8 = 0xdb;
const COMPARE_AND_EXCHANGE: u8 = 0xf1;

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

/// The programs that only one way to attach uses, by their sections.
const ONLY_BY: [(HookFamily, &[&str]); 3] = [
    (HookFamily::Fentry, &["fentry", "fexit"]),
    (HookFamily::Kprobe, &["kprobe", "kretprobe"]),
    (
        HookFamily::Tracepoint,
        &[
            "cgroup_skb/ingress",
            "raw_tp/consume_skb",
            "raw_tp/inet_sock_set_state",
            "raw_tp/netif_receive_skb",
            "tp_btf/netif_receive_skb",
        ],
    ),
];

/// The object for a kernel: marked loads are from its places, marked numbers are the kernel's and
/// the user's, and where an address is given its
/// type, its function of the number given is called. Without one nothing of that is ever run. The
/// BPF library cannot call functions of the kernel, so this is done before it has the object.
///
/// Programs that the way to attach does not use are hidden: the library would read and relocate
/// them as well.
///
/// # Errors
/// If a place is farther away than an instruction reaches.
pub fn fitted(
    family: Option<HookFamily>,
    cast: Option<u32>,
    fields: &[Field; field::COUNT],
    kernel: &Kernel,
    filter: &Filter,
) -> Result<Vec<u8>> {
    let typed = match cast {
        Some(number) => call(KERNEL_FUNCTION, number.cast_signed()),
        None => MOVE,
    };
    let places = places(fields, kernel);
    let mut object = OBJECT.to_vec();
    let (instructions, _) = object.as_chunks_mut();
    for instruction in instructions {
        if *instruction == MARKED {
            *instruction = typed;
        } else if is_exchange(instruction) {
            let kind = cast.map_or(0, |_| COMPARE_AND_EXCHANGE);
            instruction[2..].copy_from_slice(&[0, 0, kind, 0, 0, 0]);
        } else if let Some(number) = marked_number(instruction, kernel, filter) {
            instruction[4..].copy_from_slice(&number);
        } else if let Some((bytes, mark)) = marked_load(instruction)
            && let Some(place) = places.get(&mark)
        {
            let [code, registers, ..] = *instruction;
            *instruction = if bytes > place.size {
                [SET, registers & 0xf, 0, 0, 0, 0, 0, 0]
            } else {
                let [low, high] = i16::try_from(place.offset)
                    .context("a field is farther away than an instruction reaches")?
                    .to_le_bytes();
                [code, registers, low, high, 0, 0, 0, 0]
            };
        }
    }
    let others = ONLY_BY.iter().filter(|(by, _)| Some(*by) != family);
    let hidden: Vec<_> = others.flat_map(|(_, sections)| *sections).collect();
    hide(&mut object, |section| {
        let section = section.strip_prefix(".rel").unwrap_or(section);
        hidden.iter().any(|hidden| **hidden == section)
    })?;
    Ok(object)
}

/// Makes sections of an object such that nobody looks for anything in them.
fn hide(object: &mut [u8], is_hidden: impl Fn(&str) -> bool) -> Result<()> {
    /// Of the entries in an ELF file's table of sections, and where the type is in them.
    const ENTRY: usize = 64;
    const TYPE: usize = 4;
    let elf =
        ElfFile64::<LittleEndian>::parse(&*object).context("the kernel side is no ELF file")?;
    let table = usize::try_from(elf.elf_header().e_shoff(LittleEndian))?;
    let hidden = elf
        .sections()
        .filter(|section| section.name().is_ok_and(&is_hidden));
    let places: Vec<_> = hidden
        .map(|section| table + ENTRY * section.index().0 + TYPE)
        .collect();
    for place in places {
        let kind = object
            .get_mut(place..place + 4)
            .context("its table is cut off")?;
        kind.copy_from_slice(&object::elf::SHT_NOTE.to_le_bytes());
    }
    Ok(())
}

fn is_exchange(instruction: &Instruction) -> bool {
    let [code, _, low, high, 0, 0, 0, 0] = *instruction else {
        return false;
    };
    code == ATOMIC && i16::from_le_bytes([low, high]) == mark::EXCHANGE
}

/// Sets a register to the number given: what is loaded from a field that this kernel lacks.
const SET: u8 = 0xb7;

/// The number that a register is to be set to, if it is set to the mark of one.
fn marked_number(instruction: &Instruction, kernel: &Kernel, filter: &Filter) -> Option<[u8; 4]> {
    let [SET, _, 0, 0, mark @ ..] = *instruction else {
        return None;
    };
    let (of, size, offset) = mark::member_of(i32::from_le_bytes(mark))?;
    let whole = if of == mark::KERNEL {
        bytes_of(kernel)
    } else {
        bytes_of(filter)
    };
    let mut number = [0; 4];
    number[..size].copy_from_slice(whole.get(offset..offset + size)?);
    Some(number)
}

/// How many bytes a load from memory takes, and its offset if that may be a mark.
fn marked_load(instruction: &Instruction) -> Option<(u16, i16)> {
    let [code, _, low, high, 0, 0, 0, 0] = *instruction else {
        return None;
    };
    let bytes = match code {
        0x61 => 4,
        0x69 => 2,
        0x71 => 1,
        0x79 => 8,
        _ => return None,
    };
    Some((bytes, i16::from_le_bytes([low, high])))
}

/// Where in this kernel what each mark stands for is.
fn places(fields: &[Field; field::COUNT], kernel: &Kernel) -> HashMap<i16, Field> {
    let word = |word: usize| Field {
        offset: u16::try_from(8 * word).unwrap_or(u16::MAX),
        size: 8,
    };
    let fields = (mark::FIELD..).zip(fields.iter().copied());
    let returned = (mark::RETURNED..).zip(kernel.arity.map(|arity| word(arity.into())));
    // The groups are the counters in their order.
    let counters = GROUPS
        .iter()
        .zip(kernel.counters)
        .flat_map(|(&(_, count), base)| (0..count).map(move |next| word(base as usize + next)));
    let sole = kernel.sole.iter().map(|place| word(*place as usize));
    let counters = (mark::COUNTER..).zip(counters.chain(sole));
    fields.chain(returned).chain(counters).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use queue_trace_common::hook;

    use super::*;

    fn how_many(object: &[u8], selection: Instruction) -> usize {
        let (instructions, _) = object.as_chunks();
        instructions
            .iter()
            .filter(|found| **found == selection)
            .count()
    }

    fn kernel() -> ([Field; field::COUNT], Kernel) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/7.3-x86_64.btf");
        let types = Types::of_file(&path).unwrap();
        (types.fields().unwrap(), types.kernel().unwrap())
    }

    fn fitted_to(cast: Option<u32>) -> Vec<u8> {
        let (fields, kernel) = kernel();
        fitted(None, cast, &fields, &kernel, &Filter::default()).unwrap()
    }

    fn loads_from(object: &[u8], offsets: &[i16]) -> usize {
        let (instructions, _) = object.as_chunks();
        instructions
            .iter()
            .filter_map(marked_load)
            .filter(|(_, offset)| offsets.contains(offset))
            .count()
    }

    #[test]
    fn what_opens_a_frame_has_both_ends() {
        let object = fitted_to(None);
        let has = |name: &str| {
            let name = format!("\0{name}\0");
            object
                .windows(name.len())
                .any(|part| part == name.as_bytes())
        };
        for hook in hook::OPENING.map(|index| hook::HOOKS[index].name) {
            for family in ["", "_kprobe"] {
                for end in ["enter", "exit"] {
                    let name = format!("{hook}_{end}{family}");
                    assert!(has(&name), "{name}");
                }
            }
        }
    }

    #[test]
    fn every_marked_load_is_from_the_kernels_place() {
        let (fields, kernel) = kernel();
        let object = fitted_to(None);
        let places = places(&fields, &kernel);
        for (kind, first) in [
            ("fields", mark::FIELD),
            ("what is returned", mark::RETURNED),
            ("counters", mark::COUNTER),
        ] {
            let marks: Vec<_> = (first..first + 0x100).collect();
            assert!(loads_from(OBJECT, &marks) > 0, "no mark of {kind}");
            assert_eq!(loads_from(&object, &marks), 0, "marks of {kind} are left");
        }
        let depth = fields[field::SK_DEPTH];
        let of_depth = mark::FIELD + field::SK_DEPTH as i16;
        assert_eq!(places[&of_depth], depth);
        let loads = loads_from(OBJECT, &[of_depth]);
        assert!(loads > 0);
        assert!(loads_from(&object, &[depth.offset.cast_signed()]) >= loads);
        // tcp_check_req(sk, skb, req, fastopen, lost_race, drop_reason)
        assert_eq!(places[&(mark::RETURNED + hook::ACK as i16)].offset, 8 * 6);
        // ListenOverflows, ListenDrops
        let [overflows, drops] = [0, 1].map(|index| places[&(mark::COUNTER + index)].offset);
        assert_eq!(u32::from(overflows), 8 * kernel.counters[0]);
        assert_eq!(drops, overflows + 8);
    }

    #[test]
    fn every_marked_number_is_the_kernels_or_the_users() {
        let numbers = |object: &[u8]| -> Vec<_> {
            let (instructions, _) = object.as_chunks();
            let of = |(at, instruction): (usize, &Instruction)| {
                let [SET, _, 0, 0, mark @ ..] = *instruction else {
                    return None;
                };
                Some((at, i32::from_le_bytes(mark)))
            };
            instructions.iter().enumerate().filter_map(of).collect()
        };
        let is_mark = |&(_, number): &(usize, i32)| mark::member_of(number).is_some();
        let (fields, mut kernel) = kernel();
        kernel.tcp_listen = 123;
        let filter = Filter {
            netns_count: 0x0102_0304,
            ..Filter::default()
        };
        let object = fitted(None, None, &fields, &kernel, &filter).unwrap();
        let after = numbers(&object);
        assert!(!after.iter().any(is_mark));
        let listen = std::mem::offset_of!(Kernel, tcp_listen);
        let count = std::mem::offset_of!(Filter, netns_count);
        for (whose, number) in [
            (mark::member(mark::KERNEL, 1, listen), 123),
            (mark::member(mark::FILTER, 4, count), 0x0102_0304),
        ] {
            let before = numbers(OBJECT);
            let places: Vec<_> = before.iter().filter(|(_, mark)| *mark == whose).collect();
            assert!(!places.is_empty());
            for (at, _) in places {
                assert!(after.contains(&(*at, number)));
            }
        }
    }

    #[test]
    fn what_the_kernel_lacks_is_zero() {
        let (mut fields, kernel) = kernel();
        fields[field::NET_COOKIE] = Field::default();
        let object = fitted(None, None, &fields, &kernel, &Filter::default()).unwrap();
        let zeros = |object: &[u8]| {
            let (instructions, _) = object.as_chunks::<8>();
            instructions
                .iter()
                .filter(|[code, registers, rest @ ..]| {
                    *code == SET && registers >> 4 == 0 && rest == &[0; 6]
                })
                .count()
        };
        let of_cookie = mark::FIELD + field::NET_COOKIE as i16;
        let loads = loads_from(OBJECT, &[of_cookie]);
        assert!(loads > 0);
        assert_eq!(zeros(&object), zeros(&fitted_to(None)) + loads);
    }

    #[test]
    fn only_the_programs_of_one_way_to_attach_are_read() {
        let (fields, kernel) = kernel();
        let programs = |family| {
            let object = fitted(family, None, &fields, &kernel, &Filter::default()).unwrap();
            let object = aya_obj::Object::parse(&object).unwrap();
            object.programs.into_keys().collect::<Vec<_>>()
        };
        let all = [
            (HookFamily::Fentry, "syn_v4_exit"),
            (HookFamily::Kprobe, "syn_v4_exit_kprobe"),
            (HookFamily::Tracepoint, "packet_received"),
        ];
        for family in [None]
            .into_iter()
            .chain(all.map(|(family, _)| Some(family)))
        {
            let programs = programs(family);
            let has = |name: &str| programs.iter().any(|program| program == name);
            for (of, name) in all {
                assert_eq!(has(name), family == Some(of), "{name} by {family:?}");
            }
            // Those that list, and those that are attached in several ways.
            for name in ["held_sockets", "packet_refused", "task_switched"] {
                assert!(has(name), "{name} by {family:?}");
            }
        }
    }

    #[test]
    fn a_field_out_of_reach_is_an_error() {
        let (mut fields, kernel) = kernel();
        fields[field::SK_DEPTH].offset = u16::MAX;
        assert!(fitted(None, None, &fields, &kernel, &Filter::default()).is_err());
    }

    #[test]
    fn every_marked_addition_is_an_exchange_where_there_are_some() {
        let kinds = |object: &[u8]| -> Vec<_> {
            let (instructions, _) = object.as_chunks::<8>();
            let marked = OBJECT.as_chunks::<8>().0.iter().zip(instructions);
            marked
                .filter(|(before, _)| is_exchange(before))
                .map(|(before, [code, registers, rest @ ..])| {
                    assert_eq!([*code, *registers], before[..2]);
                    *rest
                })
                .collect()
        };
        let added = kinds(&fitted_to(None));
        assert!(!added.is_empty());
        assert!(added.iter().all(|rest| *rest == [0; 6]));
        let exchanged = kinds(&fitted_to(Some(77)));
        assert_eq!(exchanged.len(), added.len());
        assert!(
            exchanged
                .iter()
                .all(|rest| *rest == [0, 0, COMPARE_AND_EXCHANGE, 0, 0, 0])
        );
    }

    #[test]
    fn every_marked_call_becomes_the_kernels() {
        let marked = how_many(OBJECT, MARKED);
        assert!(marked > 0, "the compiler writes the call otherwise");
        for (cast, instead) in [(Some(77), call(KERNEL_FUNCTION, 77)), (None, MOVE)] {
            let object = fitted_to(cast);
            assert_eq!(how_many(&object, MARKED), 0);
            assert_eq!(
                how_many(&object, instead),
                how_many(OBJECT, instead) + marked
            );
        }
    }
}

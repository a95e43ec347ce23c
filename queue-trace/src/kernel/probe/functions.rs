//! The kernel's functions and tracepoints, as the BPF library asks for them.
//!
//! It takes all of the kernel's types, and goes through them for each program: a seventh of the
//! time until all is attached. What it gets here has types that are nothing, but for those
//! that it will ask for.

use anyhow::{Context, Result};
use aya::Btf;
use object::Endianness;
use queue_trace_common::hook::HOOKS;

use crate::kernel::btf::{ITERATORS, TRACEPOINT, TRACEPOINTS, Types};

/// The functions that are watched or iterated with, and the types of tracepoints, each at the
/// running kernel's number.
///
/// # Errors
/// If the types are not the running kernel's, and those cannot be read.
pub fn of(types: &Types) -> Result<Btf> {
    if !types.are_the_kernels() {
        return Btf::from_sys_fs().context("cannot read the kernel's BTF");
    }
    numbered(types)
}

/// What the library looks up.
enum Wanted {
    Function(&'static str),
    Tracepoint(&'static str),
}

/// All of it.
fn wanted() -> impl Iterator<Item = Wanted> {
    let functions = HOOKS.iter().map(|hook| hook.function).chain(ITERATORS);
    functions
        .map(Wanted::Function)
        .chain(TRACEPOINTS.map(Wanted::Tracepoint))
}

/// What is looked up at the numbers that these types give it, with nothing in between.
fn numbered(types: &Types) -> Result<Btf> {
    let mut numbered: Vec<_> = wanted()
        .filter_map(|wanted| match wanted {
            Wanted::Function(name) => Some((types.function(name)?, FUNCTION, name.to_owned())),
            Wanted::Tracepoint(name) => {
                let number = types.tracepoint_number(name)?;
                Some((number, TYPEDEF, format!("{TRACEPOINT}{name}")))
            }
        })
        .collect();
    numbered.sort_unstable();
    // The first name is the one of what has none.
    let mut names = vec![0];
    let mut kinds: Vec<[u32; 3]> = Vec::new();
    for (number, kind, name) in numbered {
        // Numbers begin with 1.
        kinds.resize(number as usize - 1, [0, NOTHING, 0]);
        kinds.push([names.len() as u32, kind, 0]);
        names.extend(name.bytes());
        names.push(0);
    }
    let bytes = written(&kinds, &names);
    Btf::parse(&bytes, Endianness::default()).context("cannot read types that were just written")
}

// Kinds of types, where the format has them (Documentation/bpf/btf.rst, `struct btf_type`).
const NOTHING: u32 = 7 << 24; // a declaration
const TYPEDEF: u32 = 8 << 24;
const FUNCTION: u32 = 12 << 24;

/// Types of three words each and their names as the kernel writes them. The low bytes come first, as
/// on every architecture this was built for.
fn written(kinds: &[[u32; 3]], names: &[u8]) -> Vec<u8> {
    const MAGIC_AND_VERSION: u32 = 0x0001_eb9f;
    const HEADER: u32 = 24;
    let length = size_of_val(kinds) as u32;
    let header = [
        MAGIC_AND_VERSION,
        HEADER,
        0,
        length,
        length,
        names.len() as u32,
    ];
    let mut bytes: Vec<u8> = bytemuck::cast_slice(&header).to_vec();
    bytes.extend_from_slice(bytemuck::cast_slice(kinds));
    bytes.extend_from_slice(names);
    bytes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aya_obj::btf::BtfKind;

    use super::*;

    #[test]
    fn all_have_the_kernels_numbers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
        for kernel in ["5.10-x86_64", "7.3-x86_64"] {
            let path = folder.join(format!("{kernel}.btf"));
            let ours = numbered(&Types::of_file(&path).unwrap()).unwrap();
            let all = Btf::parse_file(&path, Endianness::Little).unwrap();
            let mut found = 0;
            for wanted in wanted() {
                let (name, kind) = match wanted {
                    Wanted::Function(name) => (name.to_owned(), BtfKind::Func),
                    Wanted::Tracepoint(name) => (format!("{TRACEPOINT}{name}"), BtfKind::Typedef),
                };
                let number = |btf: &Btf| btf.id_by_type_name_kind(&name, kind).ok();
                assert_eq!(number(&ours), number(&all), "{name} of {kernel}");
                found += usize::from(number(&ours).is_some());
            }
            assert!(found > HOOKS.len() / 2, "{found} of {kernel}");
        }
    }
}

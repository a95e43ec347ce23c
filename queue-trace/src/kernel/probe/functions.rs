//! The kernel's functions, as the BPF library asks for them.
//!
//! It takes all of the kernel's types, and goes through them for each program: a seventh of the
//! time until all is attached. What it gets here has types that are nothing, but for the
//! functions that it will ask for.

use anyhow::{Context, Result};
use aya::Btf;
use aya_obj::btf::{BtfType, Func, FuncLinkage};
use queue_trace_common::hook::HOOKS;

use crate::kernel::btf::{ITERATORS, Types};

/// The functions that are watched or iterated with, each at the running kernel's number.
///
/// # Errors
/// If the types are not the running kernel's, and those cannot be read.
pub fn of(types: &Types) -> Result<Btf> {
    if !types.are_the_kernels() {
        return Btf::from_sys_fs().context("cannot read the kernel's BTF");
    }
    Ok(numbered(types))
}

/// The functions at the numbers that these types give them, with nothing in between.
fn numbered(types: &Types) -> Btf {
    let mut numbered: Vec<_> = HOOKS
        .iter()
        .map(|hook| hook.function)
        .chain(ITERATORS)
        .filter_map(|name| Some((types.function(name)?, name)))
        .collect();
    numbered.sort_unstable();
    let mut btf = Btf::new();
    let mut next = btf.add_type(BtfType::Unknown) + 1;
    for (number, name) in numbered {
        while next < number {
            next = btf.add_type(BtfType::Unknown) + 1;
        }
        let name = btf.add_string(name);
        next = btf.add_type(BtfType::Func(Func::new(name, 0, FuncLinkage::Static))) + 1;
    }
    btf
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use aya_obj::btf::BtfKind;
    use object::Endianness;

    use super::*;

    #[test]
    fn functions_have_the_kernels_numbers() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels");
        for kernel in ["5.10-x86_64", "7.3-x86_64"] {
            let path = folder.join(format!("{kernel}.btf"));
            let ours = numbered(&Types::of_file(&path).unwrap());
            let all = Btf::parse_file(&path, Endianness::Little).unwrap();
            let mut found = 0;
            for name in HOOKS.iter().map(|hook| hook.function).chain(ITERATORS) {
                let number = |btf: &Btf| btf.id_by_type_name_kind(name, BtfKind::Func).ok();
                assert_eq!(number(&ours), number(&all), "{name} of {kernel}");
                found += usize::from(number(&ours).is_some());
            }
            assert!(found > HOOKS.len() / 2, "{found} functions of {kernel}");
        }
    }
}

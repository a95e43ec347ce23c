//! The kernel side loaded for its iterators alone, with nothing attached.

use std::sync::{Arc, Mutex};

use anyhow::Result;

use crate::kernel::{
    btf::Types,
    probe::{
        attach::load,
        functions,
        iterate::{Iterators, prepare},
    },
    selection::Selection,
};

/// Loads the iterators.
///
/// # Errors
/// If the kernel does not allow it, or lacks what they need.
pub fn unattached() -> Result<Iterators> {
    let types = Types::read(None)?;
    let mut ebpf = load(&types, 0, &Selection::default())?;
    prepare(&mut ebpf, &functions::of(&types)?)?;
    Ok(Iterators::of(Arc::new(Mutex::new(Some(ebpf)))))
}

//! The kernel side loaded for its iterators alone, with nothing attached.

use anyhow::Result;
use aya::Ebpf;

use crate::kernel::{
    btf::Types,
    probe::{
        attach::load,
        functions,
        iterate::{Iterators, prepare},
    },
    selection::Selection,
};

/// The iterators without anything attached.
pub struct Unattached(Ebpf);

impl Unattached {
    /// Loads them.
    ///
    /// # Errors
    /// If the kernel does not allow it, or lacks what they need.
    pub fn load() -> Result<Self> {
        let types = Types::read(None)?;
        let mut ebpf = load(&types, 0, &Selection::default())?;
        prepare(&mut ebpf, &functions::of(&types)?)?;
        Ok(Self(ebpf))
    }

    /// To be run.
    pub fn iterators(&mut self) -> Iterators<'_> {
        Iterators(&mut self.0)
    }
}

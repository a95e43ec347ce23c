//! Plain data of the kernel side, as the BPF library takes it.

#![expect(
    unsafe_code,
    reason = "the BPF library asks for a promise about plain data"
)]

use aya::Pod;

/// Data that travels between kernel and user side as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub(super) struct PodWire<T>(pub(super) T);

// SAFETY: bytemuck's Pod is the stronger promise: any bytes are a value, and no byte
// is padding. The wrapper adds nothing to the layout.
unsafe impl<T: bytemuck::Pod> Pod for PodWire<T> {}

//! The only file that reads kernel memory: fields through the table of offsets,
//! and this CPU's copy of per-CPU data.

use core::{ffi::c_void, mem::MaybeUninit, ops::BitOr};

use aya_ebpf::{EbpfContext, helpers::generated, programs::FExitContext};
use queue_trace_common::{
    counter, field,
    settings::{self, mark},
};

use crate::state::{config, maps::PER_CPU, tally};

/// The outcome of one or more reads. Combined with `|` and asked once: a branch for
/// each read would double the ways through the program that the verifier follows, and
/// cost the hot path.
#[derive(Clone, Copy)]
#[must_use]
pub struct Status(i64);

impl Status {
    /// A read that was not even tried.
    pub const FAILED: Self = Self(1);

    /// Whether all went well. If not, it is counted: the addresses came from the
    /// kernel, so reads should not fail.
    #[inline(always)]
    pub fn ok(self) -> bool {
        if self.0 != 0 {
            read_failed();
        }
        self.0 == 0
    }
}

impl BitOr for Status {
    type Output = Self;

    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// Counts a failed read. A function of its own, as there are many reads.
#[inline(never)]
fn read_failed() {
    tally::lost(|loss| &mut loss.failed_reads);
}

/// A number that can be loaded in one instruction.
pub trait Number: Copy + Default {
    /// From a pointer whose type the verifier knows, or from a program's context, at the
    /// place that a [`mark`] stands for.
    fn at<const KIND: i16, const INDEX: usize>(base: u64) -> Self;
}

macro_rules! numbers {
    ($($number:ident)*) => {$(
        impl Number for $number {
            #[inline(always)]
            fn at<const KIND: i16, const INDEX: usize>(base: u64) -> Self {
                // SAFETY: the loader puts the place there. The verifier refuses the program
                // unless this is a load of the kernel's type of this size, and the kernel
                // catches a fault.
                #[cfg(target_arch = "bpf")]
                unsafe {
                    let value: u64;
                    core::arch::asm!(
                        concat!("{value} = *(", stringify!($number), " *)({base} + {place})"),
                        value = out(reg) value,
                        base = in(reg) base,
                        place = const KIND + INDEX as i16,
                        options(pure, readonly, nostack, preserves_flags),
                    );
                    value as Self
                }
                // To be linted, not to be run.
                #[cfg(not(target_arch = "bpf"))]
                {
                    (base + KIND as u64 + INDEX as u64) as Self
                }
            }
        }
    )*};
}
numbers!(u8 u16 u32 u64);

/// A pointer to a struct of the kernel, of one of two kinds: one that the verifier knows
/// the type of, through which fields are loaded, and a plain address, from which they
/// are read by a helper. A field that this kernel lacks, or that cannot be read, is zero.
pub trait Pointer: Copy {
    /// Whether a load costs a few instructions, not a call.
    const LOADS: bool;

    /// A field that is a number.
    fn load<T: Number, const FIELD: usize>(self) -> T;

    /// The struct that a field points to.
    fn follow<const FIELD: usize>(self) -> Self;

    /// The address. What the verifier knows as a pointer stays one to it until it is made
    /// [`plain`].
    fn address(self) -> u64;

    /// A number whose width differs between kernels.
    #[inline(always)]
    fn load_uint<const FIELD: usize>(self) -> u32 {
        match config::field(FIELD).size {
            1 => u32::from(self.load::<u8, FIELD>()),
            2 => u32::from(self.load::<u16, FIELD>()),
            4 => self.load::<u32, FIELD>(),
            _ => 0,
        }
    }
}

/// An argument of a function that is watched by fentry or fexit, or what it leads to. The
/// verifier has its type from the kernel's BTF, checks that a load is of a whole member, and
/// lets it fail to zero where there is nothing.
#[derive(Clone, Copy)]
pub struct Typed(pub u64);

impl Pointer for Typed {
    const LOADS: bool = true;

    // The loader puts the number zero in the place of a field that this kernel lacks.
    #[inline(always)]
    fn load<T: Number, const FIELD: usize>(self) -> T {
        T::at::<{ mark::FIELD }, FIELD>(self.0)
    }

    #[inline(always)]
    fn follow<const FIELD: usize>(self) -> Self {
        Self(self.load::<u64, FIELD>())
    }

    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }
}

impl Typed {
    /// An address of a struct, given its type; `None` where the kernel cannot do that.
    /// `WHICH`: a place in [`settings::TYPED`].
    #[inline(always)]
    pub fn cast<const WHICH: usize>(address: u64) -> Option<Self> {
        let number = config::type_of::<WHICH>();
        if number == 0 {
            return None;
        }
        // SAFETY: the loader puts the kernel's function in place of this call. It takes any
        // address, and what is loaded through it may fail, to zero.
        let cast: unsafe extern "C" fn(u64, u64) -> u64 =
            unsafe { core::mem::transmute(settings::CAST_MARK as usize) };
        // SAFETY: as above.
        Some(Self(unsafe { cast(address, number) }))
    }

    /// A number at a place that is the same on all kernels.
    #[inline(always)]
    pub fn at<T: Number, const PLACE: usize>(self) -> T {
        T::at::<0, PLACE>(self.0)
    }

    /// One of a CPU's counters. The index is a constant once compiled.
    #[inline(always)]
    pub fn counter(self, index: usize) -> u64 {
        macro_rules! of {
            ($($index:literal)*) => {
                match index {
                    $($index => u64::at::<{ mark::COUNTER }, $index>(self.0),)*
                    _ => 0,
                }
            };
        }
        const { assert!(counter::COUNT + counter::SOLE.len() <= 12) };
        of!(0 1 2 3 4 5 6 7 8 9 10 11)
    }
}

/// An address that is only a number to the verifier.
#[derive(Clone, Copy)]
pub struct Plain(pub u64);

impl Pointer for Plain {
    const LOADS: bool = false;

    #[inline(always)]
    fn load<T: Number, const FIELD: usize>(self) -> T {
        value(self.0, FIELD)
    }

    #[inline(always)]
    fn follow<const FIELD: usize>(self) -> Self {
        Self(value(self.0, FIELD))
    }

    #[inline(always)]
    fn address(self) -> u64 {
        self.0
    }
}

/// Sets words to zero one by one: for more than one the compiler would else call a function that
/// writes byte by byte, with a loop that the verifier follows to its end each time.
#[inline(always)]
pub fn zeroed<const WORDS: usize>(place: &mut MaybeUninit<[u64; WORDS]>) -> &mut [u64; WORDS] {
    let first = place.as_mut_ptr().cast::<u64>();
    for word in 0..WORDS {
        // SAFETY: one of the words of the place.
        unsafe { first.add(word).write_volatile(0) };
    }
    // SAFETY: all of them are written.
    unsafe { place.assume_init_mut() }
}

/// Reads a value of kernel memory into a place.
#[inline(always)]
pub fn fetch<T: Copy>(place: &mut T, address: u64) -> Status {
    fetch_bytes(place, address, size_of::<T>() as u32)
}

/// Reads the first bytes of a header into a place that is large enough for any: stack is scarce.
#[inline(always)]
pub fn fetch_header(place: &mut [u64; 5], address: u64, size: HeaderSize) -> Status {
    fetch_bytes(place, address, size as u32)
}

/// How much of a header is read, bytes.
#[derive(Clone, Copy)]
pub enum HeaderSize {
    /// Of TCP, up to its flags.
    Tcp = 14,
    /// Of IPv4.
    V4 = 20,
    /// Of IPv6.
    V6 = 40,
}

/// The one call of the helper: reads `size` bytes, no more than the place has.
#[inline(always)]
fn fetch_bytes<T: Copy>(place: &mut T, address: u64, size: u32) -> Status {
    // SAFETY: the helper writes `size` bytes, or fails and fills them with zeros; the
    // callers see to it that the place has them, and every T used is plain data.
    Status(unsafe {
        generated::bpf_probe_read_kernel((&raw mut *place).cast(), size, address as *const c_void)
    })
}

/// Reads a field of the struct at `base` into a place, which is left alone if this
/// kernel has no such field.
#[inline(always)]
pub fn fetch_field<T: Copy>(place: &mut T, base: u64, index: usize) -> Status {
    let field = config::field(index);
    if !field::is_in_all(index) && field.size == 0 {
        return Status::FAILED;
    }
    fetch(place, base + u64::from(field.offset))
}

/// Reads an unsigned integer whose width differs between kernels (a sysctl that
/// was an int and is a u8) into a place that holds zero.
#[inline(always)]
pub fn fetch_uint(place: &mut u32, base: u64, index: usize) -> Status {
    // The low bytes come first, as on every architecture this was built for.
    const { assert!(cfg!(target_endian = "little")) };
    let field = config::field(index);
    let size = u32::from(field.size);
    if size == 0 || size > size_of::<u32>() as u32 {
        return Status::FAILED;
    }
    fetch_bytes(place, base + u64::from(field.offset), size)
}

/// Whether this kernel has a field.
#[inline(always)]
pub fn has(index: usize) -> bool {
    config::field(index).size != 0
}

/// Reads a value of kernel memory.
#[inline(always)]
pub fn read<T: Copy + Default>(address: u64) -> Option<T> {
    let mut value = T::default();
    fetch(&mut value, address).ok().then_some(value)
}

/// Reads a field of the struct at `base`; `None` if this kernel has no such field, or
/// if there is no struct.
#[inline(always)]
pub fn get<T: Copy + Default>(base: u64, index: usize) -> Option<T> {
    let field = config::field(index);
    if field.size == 0 || base == 0 {
        return None;
    }
    read(base + u64::from(field.offset))
}

/// The value of a field, or zero where it cannot be read. Without a branch.
#[inline(always)]
pub fn value<T: Copy + Default>(base: u64, index: usize) -> T {
    let mut value = T::default();
    let _ = fetch_field(&mut value, base, index);
    value
}

/// The value that a function watched by fexit returned. It sits behind the last argument, and
/// the number of arguments differs between kernels.
#[inline(always)]
pub fn returned<const HOOK: usize>(ctx: &FExitContext) -> u64 {
    plain(u64::at::<{ mark::RETURNED }, HOOK>(ctx.as_ptr() as u64))
}

/// What to add to a per-CPU address to reach this CPU's copy.
///
/// `__per_cpu_offset` is not in every kernel's symbols. But a lookup in a per-CPU
/// array returns the address of this CPU's copy of the value, and the map itself
/// (`bpf_array.pptrs[0]`) holds the per-CPU address; their difference is the offset.
#[inline(always)]
pub fn per_cpu_offset() -> u64 {
    let Some(here) = PER_CPU.get_ptr_mut(0) else {
        return 0;
    };
    // The verifier allows no arithmetic on these pointers, but on plain numbers.
    let map = plain(&raw const PER_CPU as u64);
    let slot: u64 = get(map, field::PERCPU_SLOTS).unwrap_or(0);
    plain(here as u64).wrapping_sub(slot)
}

/// Turns a pointer into a plain number: what the verifier knows of a register ends where its
/// sign is changed.
#[inline(always)]
pub fn plain(pointer: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = pointer;
        // SAFETY: changes the sign twice.
        unsafe {
            core::arch::asm!(
                "{value} = -{value}",
                "{value} = -{value}",
                value = inout(reg) value,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        value
    }
    // To be linted, not to be run.
    #[cfg(not(target_arch = "bpf"))]
    pointer
}

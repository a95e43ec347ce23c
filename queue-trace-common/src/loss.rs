//! The registry of losses: everything that the kernel side could not do as it should, each
//! counted by itself, on each CPU. A new one is one row here and the place that counts it.

use bytemuck::{Pod, Zeroable};

/// One row of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LossKind {
    /// The name in JSON.
    pub name: &'static str,
    /// What is counted, in a few words.
    pub says: &'static str,
}

macro_rules! losses {
    ($($name:ident $says:literal;)*) => {
        /// What was lost, how often.
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
        pub struct Loss {
            $(
                #[doc = concat!("How many ", $says, ".")]
                pub $name: u64,
            )*
        }

        /// Every loss, in the order of the members of [`Loss`].
        pub static LOSSES: [LossKind; COUNT] = [
            $(LossKind { name: stringify!($name), says: $says },)*
        ];
    };
}

losses! {
    records "records that found the ring full";
    by_port "counts kept by port or namespace, as the table of counts had no room for the listener";
    uncounted "counts that found no room at all";
    failed_reads "failed reads";
    unpaired "unpaired calls";
    ambiguous "ambiguous calls";
    interleaved "calls that others on the same CPU interrupted too often for their counters to be told apart";
    no_baseline "packets without a baseline";
    unlisted "queues without room in the table";
    untimed "connections whose wait is not known";
    unknown_listeners "listeners without room in the table of addresses";
}

/// How many kinds of loss there are.
pub const COUNT: usize = size_of::<Loss>() / size_of::<u64>();

impl Loss {
    /// The numbers, in the order of [`LOSSES`].
    #[must_use]
    pub fn numbers(&self) -> [u64; COUNT] {
        bytemuck::cast(*self)
    }

    /// The sum with those of another CPU.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        self.with(other, u64::wrapping_add)
    }

    /// What came to it since an earlier reading.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        self.with(earlier, u64::saturating_sub)
    }

    fn with(&self, other: &Self, both: impl Fn(u64, u64) -> u64) -> Self {
        let mut numbers = self.numbers();
        for (number, other) in numbers.iter_mut().zip(other.numbers()) {
            *number = both(*number, other);
        }
        bytemuck::cast(numbers)
    }
}

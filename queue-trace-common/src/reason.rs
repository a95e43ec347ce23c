//! The kernel's reasons for freeing a packet that serve as evidence of a verdict
//! (`enum skb_drop_reason`, include/net/dropreason-core.h). Their numbers move between releases,
//! so they are looked up by enumerator name. Kernels before 5.17 have none.

use crate::outcome::{self, Set};

/// One row of the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// Enumerator of `enum skb_drop_reason`.
    pub enumerator: &'static str,
    /// What became of a SYN that is freed for it.
    pub outcome: u8,
}

macro_rules! reasons {
    ($($konst:ident $enumerator:literal $outcome:ident;)*) => {
        /// Every reason, at its index.
        pub static REASONS: [Reason; COUNT] = [
            $(Reason { enumerator: $enumerator, outcome: outcome::$outcome },)*
        ];
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "only numbers the constants")]
        enum Index { $($konst,)* COUNT }
        /// How many reasons there are.
        pub const COUNT: usize = Index::COUNT as usize;
        $(
            #[doc = concat!("Index of `", $enumerator, "`.")]
            pub const $konst: usize = Index::$konst as usize;
        )*
    };
}

reasons! {
    NO_SOCKET "SKB_DROP_REASON_NO_SOCKET" SYN_REFUSED_NO_LISTENER;
}

/// The outcomes that a kernel with these numbers tells by its reasons.
#[must_use]
pub fn outcomes(numbers: &[u32; COUNT]) -> Set {
    let known = REASONS
        .iter()
        .zip(numbers)
        .filter(|(_, number)| **number != 0);
    known.fold(0, |set, (reason, _)| set | 1 << reason.outcome)
}

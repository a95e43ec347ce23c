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
    MD5_NOT_FOUND "SKB_DROP_REASON_TCP_MD5NOTFOUND" SYN_DROPPED_MD5;
    MD5_UNEXPECTED "SKB_DROP_REASON_TCP_MD5UNEXPECTED" SYN_DROPPED_MD5;
    MD5_FAILURE "SKB_DROP_REASON_TCP_MD5FAILURE" SYN_DROPPED_MD5;
    AO_NOT_FOUND "SKB_DROP_REASON_TCP_AONOTFOUND" SYN_DROPPED_AO;
    AO_UNEXPECTED "SKB_DROP_REASON_TCP_AOUNEXPECTED" SYN_DROPPED_AO;
    AO_KEY_NOT_FOUND "SKB_DROP_REASON_TCP_AOKEYNOTFOUND" SYN_DROPPED_AO;
    AUTH_HEADER "SKB_DROP_REASON_TCP_AUTH_HDR" SYN_DROPPED_AO;
    AO_FAILURE "SKB_DROP_REASON_TCP_AOFAILURE" SYN_DROPPED_AO;
    MIN_TTL "SKB_DROP_REASON_TCP_MINTTL" SYN_DROPPED_MIN_TTL;
    SOCKET_FILTER "SKB_DROP_REASON_SOCKET_FILTER" SYN_DROPPED_SOCKET_FILTER;
    POLICY "SKB_DROP_REASON_XFRM_POLICY" SYN_DROPPED_POLICY;
    CHECKSUM "SKB_DROP_REASON_TCP_CSUM" SYN_DROPPED_CHECKSUM;
}

/// The kernel's numbers that can be asked for are below this one. Those of its core are: there were
/// some 120 in 7.3 (`enum skb_drop_reason`).
pub const NUMBERS: u32 = 256;

/// Whether a kernel that numbers a reason so tells it; 0: it does not have it.
#[must_use]
pub const fn is_told(number: u32) -> bool {
    number != 0 && number < NUMBERS
}

/// The outcomes that a kernel with these numbers tells by its reasons.
#[must_use]
pub fn outcomes(numbers: &[u32; COUNT]) -> Set {
    let known = REASONS
        .iter()
        .zip(numbers)
        .filter(|(_, number)| is_told(**number));
    known.fold(0, |set, (reason, _)| set | 1 << reason.outcome)
}

/// The outcome of each reason, by its index.
pub static TELLS: [u8; COUNT] = tells();

const fn tells() -> [u8; COUNT] {
    let mut tells = [0; COUNT];
    let mut index = 0;
    while index < COUNT {
        tells[index] = REASONS[index].outcome;
        index += 1;
    }
    tells
}

//! The kernel's own counters (`/proc/net/netstat`, section `TcpExt`) that serve as
//! evidence of a verdict and as the kernel's side of the ledger.
//!
//! The kernel keeps them per CPU and per network namespace, in
//! `net->mib.net_statistics` (include/net/netns/mib.h). Their places in that array
//! move between releases, so they are looked up by enumerator name.

/// One counter: its column in `/proc/net/netstat` and its enumerator in the
/// kernel's BTF (include/uapi/linux/snmp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter {
    /// Column in `/proc/net/netstat`.
    pub name: &'static str,
    /// Enumerator of the anonymous enum `LINUX_MIB_*`.
    pub enumerator: &'static str,
}

macro_rules! counters {
    ($($konst:ident $name:literal $enumerator:literal;)*) => {
        /// Every counter, at the index that its bit has in a [`Moved`] mask.
        pub static COUNTERS: [Counter; COUNT] = [
            $(Counter { name: $name, enumerator: $enumerator },)*
        ];
        #[expect(non_camel_case_types, clippy::upper_case_acronyms, reason = "only numbers the constants")]
        enum Index { $($konst,)* COUNT }
        /// How many counters there are.
        pub const COUNT: usize = Index::COUNT as usize;
        $(
            #[doc = concat!("Bit of `", $name, "` in a [`Moved`] mask.")]
            pub const $konst: Moved = 1 << Index::$konst as Moved;
        )*
    };
}

/// A set of counters: those that moved while one packet was handled.
pub type Moved = u8;

/// All counters.
pub const ALL: Moved = Moved::MAX;

// The kernel side reads these with one read for each run of neighbours in the
// kernel's array; GROUPS below says where the runs begin.
counters! {
    OVERFLOW      "ListenOverflows"      "LINUX_MIB_LISTENOVERFLOWS";
    DROP          "ListenDrops"          "LINUX_MIB_LISTENDROPS";
    DO_COOKIES    "TCPReqQFullDoCookies" "LINUX_MIB_TCPREQQFULLDOCOOKIES";
    QUEUE_DROP    "TCPReqQFullDrop"      "LINUX_MIB_TCPREQQFULLDROP";
    COOKIE_SENT   "SyncookiesSent"       "LINUX_MIB_SYNCOOKIESSENT";
    COOKIE_RECV   "SyncookiesRecv"       "LINUX_MIB_SYNCOOKIESRECV";
    COOKIE_FAILED "SyncookiesFailed"     "LINUX_MIB_SYNCOOKIESFAILED";
    EMBRYONIC_RST "EmbryonicRsts"        "LINUX_MIB_EMBRYONICRSTS";
}

/// Runs of counters that are neighbours in the kernel's array on every kernel
/// examined: (first index in [`COUNTERS`], how many). Checked against the running
/// kernel's BTF before load.
pub const GROUPS: [(usize, usize); 3] = [(0, 2), (2, 2), (4, 4)];

const _: () = assert!(COUNT <= Moved::BITS as usize);

/// Counters of which each tells an outcome by itself. They are read only for the few packets that
/// can move them, and no verdict but their own depends on them.
pub const SOLE: [Counter; 2] = [
    Counter {
        name: "TCPDeferAcceptDrop",
        enumerator: "LINUX_MIB_TCPDEFERACCEPTDROP",
    },
    Counter {
        name: "TCPFastOpenListenOverflow",
        enumerator: "LINUX_MIB_TCPFASTOPENLISTENOVERFLOW",
    },
];

/// Index of `TCPDeferAcceptDrop` in [`SOLE`].
pub const DEFERRED: usize = 0;

/// Index of `TCPFastOpenListenOverflow` in [`SOLE`].
pub const FAST_OPEN_FULL: usize = 1;
